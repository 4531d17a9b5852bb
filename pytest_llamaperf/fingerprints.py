"""What a result was made with and on, field by field: what must match for a comparison, what may differ, what is only kept.

One table, FIELDS. Comparisons, histories, `--against`, `--resume`, merging and `llamaperf doctor` read it; docs/fingerprint.md shows it.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

# How much a machine's part of run.json tells. 1: GPUs by product and UUID, driver, processor, cores. 2: all of FIELDS.
FORMAT = 2

# Settings that are variables of the engine's environment: `env NCCL_ALGO`.
ENVIRONMENT = "env "


class Meaning(StrEnum):
    """What it means for a comparison that a field differs."""

    MATCH = "must match"  # not compared, unless --allow-difference names it
    TOLD = "may differ, told"  # compared, and the difference is said
    RECORDED = "recorded only"


class Part(StrEnum):
    """Of what a field is. The values are headings of the page."""

    RESULT = "The result"
    MACHINE = "The machine, of what is measured"
    VERSIONS = "Versions, as loaded by the engine's process"
    SETTINGS = "Settings in effect"


@dataclass(frozen=True)
class Field:
    """A row of the table.

    name   as a mismatch calls it; `*` stands for every other one of its part
    where  in run.json; after `gpus.` it is of each GPU
    since  the first FORMAT that told it
    unit   of numbers, where there is one
    """

    part: Part
    name: str
    meaning: Meaning
    where: str
    about: str
    since: int = 1
    unit: str = ""


def _fields(part: Part, *rows: tuple[Any, ...]) -> tuple[Field, ...]:
    return tuple(Field(part, *row) for row in rows)


FIELDS: tuple[Field, ...] = (
    *_fields(
        Part.RESULT,
        ("hardware", Meaning.MATCH, "case.hardware", "what the case is about"),
        ("engine", Meaning.MATCH, "case.engine", "what answered"),
        ("source", Meaning.MATCH, "source", "measured, predicted or published; allowed to differ, nothing follows"),
        (
            "harness",
            Meaning.MATCH,
            "run.engine",
            "who measured, by which definition; allowed to differ, nothing follows",
        ),
        ("unit", Meaning.MATCH, "unit", "cannot be allowed to differ"),
        ("better", Meaning.MATCH, "better", "which direction is better; cannot be allowed to differ"),
        (
            "GPUs watched",
            Meaning.MATCH,
            "health.blind",
            "what was measured blind on either side is compared with nothing",
        ),
    ),
    *_fields(
        Part.MACHINE,
        ("GPUs", Meaning.MATCH, "gpus.product", "how many of which product this run may use"),
        ("GPU boards", Meaning.MATCH, "gpus.uuid", "which ones: boards of a product differ in speed"),
        ("GPU board part", Meaning.MATCH, "gpus.board.part_number", "part number of the board: the form factor", 2),
        ("GPU brand", Meaning.MATCH, "gpus.board.brand", "line of products", 2),
        ("GPU memory", Meaning.MATCH, "gpus.memory", "in all", 2, "B"),
        ("GPU power limit", Meaning.MATCH, "gpus.board.power_limit", "the limit in force", 2, "W"),
        (
            "GPU default power limit",
            Meaning.MATCH,
            "gpus.board.power_limit_default",
            "that of the board as it is sold",
            2,
            "W",
        ),
        ("GPU clock asked", Meaning.MATCH, "gpus.board.clock_asked", "application clock of the processors", 2, "Hz"),
        (
            "GPU memory clock asked",
            Meaning.MATCH,
            "gpus.board.memory_clock_asked",
            "application clock of memory",
            2,
            "Hz",
        ),
        ("GPU clock at most", Meaning.MATCH, "gpus.board.clock_most", "of the processors", 2, "Hz"),
        ("GPU memory clock at most", Meaning.MATCH, "gpus.board.memory_clock_most", "of memory", 2, "Hz"),
        ("GPU ECC", Meaning.MATCH, "gpus.board.ecc", "whether errors of memory are corrected", 2),
        ("GPU MIG", Meaning.MATCH, "gpus.board.mig", "whether the GPU is divided", 2),
        ("GPU persistence", Meaning.TOLD, "gpus.board.persistence", "whether the driver stays loaded without work", 2),
        ("GPU NVLinks", Meaning.MATCH, "gpus.board.nvlinks", "links that are up", 2),
        (
            "GPU NVLink ends",
            Meaning.MATCH,
            "gpus.board.nvlink_ends",
            "what they lead to: switches (NVSwitch), or GPUs",
            2,
        ),
        ("GPU fabric", Meaning.MATCH, "gpus.board.fabric", "whether the GPU has joined the fabric of its switches", 2),
        ("GPU connections", Meaning.MATCH, "topology", "between each two: NVLink, or the way over PCIe", 2),
        ("driver", Meaning.MATCH, "driver", "version of NVIDIA's driver"),
        ("CUDA of the driver", Meaning.TOLD, "cuda", "newest CUDA it runs; a container may bring a newer one", 2),
        ("processor", Meaning.MATCH, "processor", "product name"),
        ("cores", Meaning.MATCH, "cores", "that this run may use"),
        ("kernel", Meaning.TOLD, "kernel", "release of Linux", 2),
        ("container", Meaning.TOLD, "container", "its kind, and its image where LLAMAPERF_IMAGE names it", 2),
        ("problem", Meaning.RECORDED, "problem", "why the driver could not be asked, or which GPU is lost"),
        ("format", Meaning.RECORDED, "format", "how much is told: see below", 2),
        ("*", Meaning.MATCH, "*", "whatever other tools tell of their machine"),
    ),
    *_fields(
        Part.VERSIONS,
        ("tensorrt_llm", Meaning.TOLD, "tensorrt_llm", "what comparisons are about"),
        ("tensorrt-llm (operator tables)", Meaning.TOLD, "tensorrt-llm (operator tables)", "the same, of predictions"),
        ("aiconfigurator-core", Meaning.MATCH, "aiconfigurator-core", "makes the numbers of predictions"),
        ("lm_eval", Meaning.MATCH, "lm_eval", "asks the questions of accuracy tasks"),
        (
            "*",
            Meaning.TOLD,
            "*",
            "torch, cuda, cublas, cudnn, nccl, nvidia-modelopt, transformers: they come with a build",
        ),
    ),
    *_fields(
        Part.SETTINGS,
        ("checkpoint", Meaning.MATCH, "checkpoint", "SHA-256 of what decides its content"),
        ("dataset", Meaning.MATCH, "dataset", "SHA-256 of the requests, or of the documents that were asked"),
        ("env CUDA_VISIBLE_DEVICES", Meaning.RECORDED, "env CUDA_VISIBLE_DEVICES", "the GPU boards say which", 2),
        ("env *", Meaning.MATCH, "env *", "variables of the engine's environment that decide speed or answers", 2),
        ("*", Meaning.MATCH, "*", "every setting of the engine as it is in effect, or of the predictor"),
    ),
)

_BY_NAME = {(field.part, field.name): field for field in FIELDS}
_MACHINE = [field for field in FIELDS if field.part is Part.MACHINE and field.name != "*"]
_BOARD = "gpus.board."
_OF_A_PART = ("GPU boards", "GPU connections", "cores")
# What came with format 2: all settings of results of accuracy, which lm-eval made, and of the torch engine its requests.
_EVALUATOR = "lm_eval"
_WITHOUT_REQUESTS = ("torch", "dataset")


def field_of(part: Part, name: str) -> Field:
    """The row of the table that is about a name."""
    found = _BY_NAME.get((part, name))
    if found is None and part is Part.SETTINGS and name.startswith(ENVIRONMENT):
        found = _BY_NAME[part, "env *"]
    return found or _BY_NAME[part, "*"]


def named(part: Part, meaning: Meaning) -> tuple[str, ...]:
    """Names in the table that mean this."""
    return tuple(
        field.name for field in FIELDS if field.part is part and field.meaning is meaning and "*" not in field.name
    )


def format_of(machine: Mapping[str, Any]) -> int:
    """How much a machine's part of a run tells; 1 where it does not say how much."""
    told = machine.get("format")
    return told if isinstance(told, int) else 1


def since(name: str, engine: str, versions: Mapping[str, Any]) -> int:
    """The first format in which results of an engine, of these versions, told a setting."""
    later = _EVALUATOR in versions or (engine, name) == _WITHOUT_REQUESTS
    return max(field_of(Part.SETTINGS, name).since, 2 if later else 1)


def told(machine: Mapping[str, Any]) -> dict[str, Any]:
    """A machine's part of run.json by the names of the table, numbers with their units. What is not known is left out.

    Of GPUs that are alike a value is told once, of others with how many have it.
    """
    boards = _boards(machine)
    found: dict[str, Any] = {}
    for field in _MACHINE:
        if field.name == "GPU connections":
            value = _counted(_mapping(machine.get(field.where)).values(), str, always=True)
        elif field.name in ("GPUs", "GPU boards"):
            values = [str(gpu.get(field.where.removeprefix("gpus."))) for gpu in boards]
            value = _counted(values, str, always=True) if field.name == "GPUs" else ", ".join(sorted(values)) or None
        elif field.where.startswith("gpus."):
            path = field.where.removeprefix("gpus.")
            value = _counted([_at(gpu, path) for gpu in boards], functools.partial(_exact, unit=field.unit))
        else:
            value = machine.get(field.where)
        if value is not None:
            found[field.name] = value
    return found | dict(_others(machine, boards))


def matching(machine: Mapping[str, Any]) -> dict[str, Any]:
    """What of a machine must be the same where it is measured on again."""
    return {
        name: value for name, value in told(machine).items() if field_of(Part.MACHINE, name).meaning is Meaning.MATCH
    }


def matching_parts(machine: Mapping[str, Any]) -> dict[str, Any]:
    """What of a machine must be the same in every part of a run that is spread over devices, or over machines.

    Which GPUs a part was given, how many, how these are connected, and with how many cores is its own.
    """
    kinds: list[dict[str, Any]] = []
    for gpu in _boards(machine):
        kind = {name: value for name, value in gpu.items() if name != "uuid"}
        if kind not in kinds:
            kinds.append(kind)
    found = matching({**machine, "gpus": kinds})
    return {name: value for name, value in found.items() if name not in _OF_A_PART}


def kind_of(machine: Mapping[str, Any]) -> str:
    """What decides how fast a machine is, not which of several alike it was, nor its driver.

    How its GPUs are set is said where it is known and unusual, so that a run that does not tell it stands with the usual ones.
    """
    known = told(machine)
    words = [str(machine[key]) for key in ("processor", "name") if machine.get(key)]
    words += [known["GPUs"]] if "GPUs" in known else []
    limit, usual = known.get("GPU power limit"), known.get("GPU default power limit")
    if limit is not None and usual is not None and limit != usual:
        words.append(f"power limit {limit} instead of {usual}")
    if known.get("GPU MIG") not in (None, "off"):
        words.append(f"MIG {known['GPU MIG']}")
    if known.get("GPU ECC") not in (None, "on"):
        words.append(f"ECC {known['GPU ECC']}")
    return ", ".join(words)


def _others(machine: Mapping[str, Any], boards: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
    """What this table does not know: of other tools, or of a later version."""
    known = {field.where for field in _MACHINE}
    for name, value in machine.items():
        if name not in known and name != "gpus":
            yield name, value
    for name in sorted({name for gpu in boards for name in _mapping(gpu.get("board"))}):
        if f"{_BOARD}{name}" not in known:
            yield f"GPU {name}", _counted([_at(gpu, f"board.{name}") for gpu in boards], _exact)


def _at(value: Any, path: str) -> Any:
    for name in path.split("."):
        value = _mapping(value).get(name)
    return value


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _boards(machine: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    gpus = machine.get("gpus")
    return [gpu for gpu in gpus if isinstance(gpu, Mapping)] if isinstance(gpus, list | tuple) else []


def _counted(values: Any, shown: Callable[[Any], str], *, always: bool = False) -> str | None:
    """`700 W`, or `7 x 700 W, 1 x 500 W`; None where nobody says."""
    counts = Counter("not told" if value is None else shown(value) for value in values)
    if set(counts) <= {"not told"}:
        return None
    if len(counts) == 1 and not always:
        return next(iter(counts))
    return ", ".join(f"{count} x {text}" for text, count in sorted(counts.items()))


def _exact(value: Any, unit: str = "") -> str:
    """Without rounding, so that two that read alike are alike."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if unit == "Hz" and isinstance(value, int) and value % 1_000_000 == 0:
        return f"{value // 1_000_000} MHz"
    number = f"{value:g}" if isinstance(value, float) and value.is_integer() and abs(value) < 1e6 else str(value)
    return f"{number} {unit}".rstrip()
