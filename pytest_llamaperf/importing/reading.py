"""What all formats have in common: strict JSON, numbers that are some, names as parts of a case's id."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from pytest_llamaperf.catalog import gpus, models
from pytest_llamaperf.errors import UsageError

LeftOut = Counter[str]  # reason -> how many values
_LARGEST = 1e30  # of any quantity here; an int of JSON may be too large for a float


@dataclass(frozen=True)
class Told:
    """What people say of files that do not say it themselves: the GPU, how requests arrived (`concurrency-64`)."""

    gpu: str | None = None
    scenario: str | None = None


def parsed(where: str, content: bytes) -> dict[str, Any]:
    """A JSON object. Raises UsageError, also for NaN and infinity, which Python writes into JSON without being asked."""
    try:
        document = json.loads(content, parse_constant=_refused)
    except json.JSONDecodeError as problem:
        raise UsageError(f"{where}: is no JSON (line {problem.lineno}: {problem.msg}); was it cut off?") from None
    except (ValueError, RecursionError) as problem:
        raise UsageError(f"{where}: is no JSON: {problem}") from None
    if not isinstance(document, dict):
        raise UsageError(f"{where}: is JSON of an unknown kind, a {type(document).__name__}")
    return document


def _refused(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}")


def at(document: Mapping[str, Any], *path: str) -> Any:
    """What stands there, None where nothing does."""
    value: Any = document
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def number(where: str, document: Mapping[str, Any], *path: str) -> float | None:
    """None where nothing stands. Raises UsageError for what is no finite number."""
    value = at(document, *path)
    if value is None or value == "N/A":
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < _LARGEST:
        raise UsageError(f"{where}: {'.'.join(path)} is {str(value)[:40]!r}, and should be a number")
    return float(value)


def needed(where: str, document: Mapping[str, Any], *path: str) -> float:
    """Raises UsageError where there is no number."""
    value = number(where, document, *path)
    if value is None:
        raise UsageError(f"{where}: {'.'.join(path)} is missing")
    return value


def part(name: str) -> str:
    """A name as a part of a case's id: `Llama 3.1 405B` is llama-3.1-405b."""
    return re.sub(r"[^a-z0-9.@_=]+", "-", name.lower()).strip("-.") or "unnamed"


def model_part(name: str) -> tuple[str, str | None]:
    """The catalog's name of a model, and the recipe of a checkpoint that is published quantized."""
    for model in models().values():
        if name in (model.name, model.source):
            return model.name, None
        for recipe, checkpoint in model.published.items():
            if name == checkpoint:
                return model.name, recipe
    return part(name.rstrip("/").rpartition("/")[2]), None


def gpu_part(product: str) -> str:
    """The catalog's name of what a driver calls a GPU; else its own, for another form factor is another GPU."""
    known = (gpu.name for gpu in gpus().values() if product in gpu.nvml_names)
    return next(known, part(product.removeprefix("NVIDIA ")))


def digest_of(document: Mapping[str, Any]) -> str:
    """A name for a document that has none, the same whenever it is read."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:12]
