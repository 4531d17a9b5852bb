"""What differs from one cluster to the next, in a YAML file that is read strictly.

`slurm.yaml`, every key of which but `schema` may be left out:

    schema: 1
    partition: h200
    account: inference
    qos: release
    gres: gpu:h200                    # what a GPU is called, in --gres
    exclude: [node07]                 # nodes that get no shard
    share_nodes: false                # whether shards that measure may have company on their node
    sbatch: [--cpus-per-gpu=12, --constraint=nvlink]   # more options of every shard's sbatch
    srun: [--container-image=/images/trtllm.sqsh]      # more options of srun; with any, shards of one node use it too
    setup: [module load cuda, source /opt/trtllm/env]  # lines of shell before a shard
    minutes: {factor: 3, least: 30}   # time limit of a shard: its expected minutes by factor, and never less
    merge: {partition: cpu, sbatch: [--mem=4G]}        # of the job that merges, which needs no GPU
    look: 10                          # seconds between two questions to Slurm, which is there for others too
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pytest_llamaperf.documents import Section, read_document

# 1: as above.
SCHEMA = 1

# Options of sbatch that every script sets, with what to write instead. Slurm takes any beginning of a long name for it.
_OURS = {
    "--account": "account", "-A": "account",
    "--array": "", "-a": "",
    "--comment": "",
    "--dependency": "", "-d": "",
    "--error": "", "-e": "",
    "--exclude": "exclude", "-x": "exclude",
    "--exclusive": "share_nodes",
    "--gpus": "gres", "-G": "gres", "--gpus-per-node": "gres", "--gpus-per-task": "gres", "--gres": "gres",
    "--hold": "", "-H": "",
    "--job-name": "", "-J": "",
    "--no-requeue": "", "--requeue": "",
    "--nodes": "", "-N": "",
    "--ntasks": "", "-n": "", "--ntasks-per-node": "",
    "--output": "", "-o": "",
    "--oversubscribe": "share_nodes", "-s": "share_nodes",
    "--parsable": "",
    "--partition": "partition", "-p": "partition",
    "--qos": "qos", "-q": "qos",
    "--signal": "",
    "--test-only": "",
    "--time": "minutes", "-t": "minutes",
    "--wait": "", "-W": "",
    "--wrap": "",
}  # fmt: skip
_OURS_OF_SRUN = {"--mpi": "", "--nodes": "", "-N": "", "--ntasks": "", "-n": "", "--ntasks-per-node": ""}


@dataclass(frozen=True)
class Minutes:
    """The time limit of a shard: its expected minutes by `factor`, and never less than `least`.

    An expectation is a guess until a shard was run once, so both are generous: what hangs is noticed by deadlines of the
    engine long before.
    """

    factor: float = 3.0
    least: float = 30.0

    def limit(self, expected: float) -> float:
        return max(self.least, self.factor * expected)


@dataclass(frozen=True)
class Merging:
    """Of the job that merges; an empty partition is that of the shards."""

    partition: str = ""
    sbatch: tuple[str, ...] = ()


@dataclass(frozen=True)
class Profile:
    """Texts that are empty are left to the cluster's defaults. `document` is None where nobody wrote a profile."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    gres: str = "gpu"
    exclude: tuple[str, ...] = ()
    share_nodes: bool = False
    sbatch: tuple[str, ...] = ()
    srun: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    minutes: Minutes = Minutes()
    merge: Merging = Merging()
    look: float = 10.0
    document: Section | None = None


def read_profile(path: Path) -> Profile:
    """Raises DocumentError naming file and line for anything that could be misread."""
    document = read_document(path)
    document.only(
        "schema", "partition", "account", "qos", "gres", "exclude", "share_nodes", "sbatch", "srun", "setup", "minutes",
        "merge", "look",
    )  # fmt: skip
    document.expect_schema(SCHEMA)
    return Profile(
        partition=_word(document, "partition"),
        account=_word(document, "account"),
        qos=_word(document, "qos"),
        gres=_word(document, "gres", "gpu"),
        exclude=_words(document, "exclude"),
        share_nodes=document.flag("share_nodes", False),
        sbatch=_options(document, "sbatch", _OURS),
        srun=_options(document, "srun", _OURS_OF_SRUN),
        setup=tuple(document.texts("setup")),
        minutes=_minutes(document),
        merge=_merge(document),
        look=_look(document),
        document=document,
    )


def _minutes(document: Section) -> Minutes:
    if "minutes" not in document:
        return Minutes()
    section = document.section("minutes")
    section.only("factor", "least")
    least = section.number("least", Minutes.least)
    if least <= 0:
        raise section.error(f"'least' is minutes, above 0, found {least:g}", key="least")
    return Minutes(section.number("factor", Minutes.factor, least=1.0), least)


def _merge(document: Section) -> Merging:
    if "merge" not in document:
        return Merging()
    section = document.section("merge")
    section.only("partition", "sbatch")
    return Merging(_word(section, "partition"), _options(section, "sbatch", _OURS))


def _look(document: Section) -> float:
    seconds = document.number("look", Profile.look)
    if seconds <= 0:
        raise document.error(f"'look' is seconds, above 0, found {seconds:g}", key="look")
    return seconds


def _word(section: Section, key: str, default: str = "") -> str:
    """What becomes the value of an option."""
    if key not in section:
        return default
    text = section.text(key)
    if text.split() != [text] or not text.isprintable():
        raise section.error(f"{key!r} must be one word, found {text!r}", key=key)
    return text


def _words(section: Section, key: str) -> tuple[str, ...]:
    """A list of names, as of nodes: no ranges in brackets, so that one more can be added to it."""
    words = tuple(section.texts(key))
    for word in words:
        if word.split() != [word] or not word.isprintable() or "," in word or "[" in word:
            raise section.error(f"{key!r} is a list of single names such as node07, found {word!r}", key=key)
    return words


def _options(section: Section, key: str, ours: dict[str, str]) -> tuple[str, ...]:
    options = tuple(section.texts(key))
    for option in options:
        if not option.startswith("-") or not option.strip("-") or not option.isprintable():
            raise section.error(
                f"{key!r} is a list of options, each with its value in one text such as --constraint=nvlink, found {option!r}",
                key=key,
            )
        if (taken := _taken(option, ours)) is not None:
            instead = f"write it as {ours[taken]!r}" if ours[taken] else "every script sets it"
            raise section.error(f"{option!r} cannot stand in {key!r}: {instead}", key=key)
    return options


def _taken(option: str, ours: dict[str, str]) -> str | None:
    name = option.partition("=")[0]
    if not name.startswith("--"):
        return name[:2] if name[:2] in ours else None
    return name if name in ours else next((own for own in ours if own.startswith(name)), None)
