"""manifest.json: every shard of a run, written before anything starts, and what all of them must have in common."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.files import write_atomically
from pytest_llamaperf.wording import shown_path

# 1: run, shards, deselected, checksum.
SCHEMA = 1
NAME = "manifest.json"

Kind = Literal["performance", "accuracy"]
PERFORMANCE: Kind = "performance"
ACCURACY: Kind = "accuracy"


@dataclass(frozen=True)
class About:
    """What all shards of a run have in common, of which gpu, engine and versions are the class of their fingerprints.

    Paths are absolute. `directory` is where pytest is started, with `options`, so that every shard collects what the plan
    did; `gate_file` and `waivers` are None where nobody named one; `engine` is what runs the cases, `predicted` included,
    and `under_test` what they are about.
    """

    gpu: str
    engine: str
    under_test: str
    versions: Mapping[str, str]
    directory: str
    root: str
    baselines: str
    gate: bool
    gate_file: str | None
    waivers: str | None

    @property
    def on_gpus(self) -> bool:
        """Whether its devices are GPUs; a prediction takes a slot of a CPU, like anything on one."""
        return self.engine != "predicted" and self.gpu != "cpu"


@dataclass(frozen=True)
class Shard:
    """One pytest process.

    key          its name: the first of `engines`, and the value of --llamaperf-shard
    tests        node ids in the order of collection
    devices      GPUs it uses, or CPU slots: the most that one of its engines takes
    kind         performance: it measures, and others on its node would disturb it; accuracy: it may share a node
    minutes      how long it is expected to take, by `basis`: a guess, or earlier runs
    loads        how often it starts an engine
    checkpoints  what has to be quantized for it, where that is not kept already
    after        shards that quantize what it needs too, and have to end first
    """

    key: str
    engines: tuple[str, ...]
    tests: tuple[str, ...]
    devices: int
    kind: Kind
    minutes: float
    basis: str
    loads: int = 0
    checkpoints: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    def __str__(self) -> str:
        more = len(self.engines) - 1
        return f"{self.key} and {more} more" if more > 0 else self.key


@dataclass(frozen=True)
class Manifest:
    """`id` names the run, and is new with every plan; `planned` is UTC, ISO 8601."""

    id: str
    planned: str
    options: tuple[str, ...]
    about: About
    shards: tuple[Shard, ...]
    deselected: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        document = {
            "schema": SCHEMA,
            "run": {"id": self.id, "planned": self.planned, "options": list(self.options), **asdict(self.about)},
            "shards": [dict(vars(shard)) for shard in self.shards],
            "deselected": list(self.deselected),
        }
        return {**document, "checksum": _checksum(document)}

    def write(self, path: Path) -> None:
        write_atomically(path, json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")


def read_manifest(path: Path) -> Manifest:
    """From a file that `llamaperf plan` wrote, or the folder it is in.

    Raises UsageError for what is not there, of another version, damaged, changed since or contradicting itself.
    """
    found = path / NAME if path.is_dir() else path
    where = shown_path(found)
    try:
        document = json.loads(found.read_text(encoding="utf-8"))
    except OSError as problem:
        raise UsageError(f"{where}: cannot be read: {problem.strerror}; `llamaperf plan` writes one") from None
    except ValueError as problem:
        raise UsageError(f"{where}: is no JSON ({problem}); was it cut off? plan again") from None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        schema = document.get("schema") if isinstance(document, dict) else None
        newer = isinstance(schema, int) and schema > SCHEMA
        hint = "a newer version of pytest-llamaperf wrote it: use that one, or plan again" if newer else "plan again"
        raise UsageError(f"{where}: is a manifest of schema {schema!r}, this version reads {SCHEMA}; {hint}")
    if document.get("checksum") != _checksum(document):
        raise UsageError(f"{where}: was changed after it was written, for its checksum is of other content; plan again")
    try:
        run = dict(document["run"])
        manifest = Manifest(
            str(run.pop("id")),
            str(run.pop("planned")),
            tuple(run.pop("options")),
            About(**run),
            tuple(_shard(each) for each in document["shards"]),
            tuple(document["deselected"]),
        )
    except KeyError as problem:
        raise UsageError(
            f"{where}: is no manifest as this version writes it: {problem} is missing; plan again"
        ) from None
    except (TypeError, ValueError, AttributeError) as problem:
        raise UsageError(f"{where}: is no manifest as this version writes it: {problem}; plan again") from None
    _check(where, manifest)
    return manifest


def _shard(told: Mapping[str, Any]) -> Shard:
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in told.items()}
    shard = Shard(**given)
    if not shard.minutes >= 0 or shard.devices < 1 or shard.kind not in (PERFORMANCE, ACCURACY):
        raise ValueError(
            f"the shard {shard.key} has {shard.minutes!r} minutes, {shard.devices!r} devices, {shard.kind}"
        )
    return shard


def _check(where: str, manifest: Manifest) -> None:
    """Raises UsageError: what runs it relies on these."""
    keys = [shard.key for shard in manifest.shards]
    tests = [test for shard in manifest.shards for test in shard.tests]
    for what, found in (("shard", keys), ("test", tests)):
        if len(set(found)) < len(found):
            twice = next(each for each in found if found.count(each) > 1)
            raise UsageError(f"{where}: the {what} {twice} stands in it twice; plan again")
    ended: set[str] = set()
    waiting = list(manifest.shards)
    while ready := [shard for shard in waiting if ended.issuperset(shard.after)]:
        ended.update(shard.key for shard in ready)
        waiting = [shard for shard in waiting if shard.key not in ended]
    if waiting:
        raise UsageError(f"{where}: {waiting[0].key} waits for shards that wait for it, or are not there; plan again")


def _checksum(document: Mapping[str, Any]) -> str:
    """As that of run.json: against accidents and hasty hands, not forgers."""
    told = {name: value for name, value in document.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
