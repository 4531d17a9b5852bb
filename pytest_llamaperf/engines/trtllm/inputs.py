"""The files an engine reads: prompts in trtllm-bench's format, and options. Named by their content, written once, kept.

A line that repeats a result by hand names them, so they have to be there when somebody does.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from pytest_llamaperf.cache import default_root
from pytest_llamaperf.cases import Workload
from pytest_llamaperf.errors import EngineError
from pytest_llamaperf.files import make_private, write_atomically
from pytest_llamaperf.lengths import request_lengths
from pytest_llamaperf.wording import shown_path

# Part of the file's name: another way to draw is another dataset.
DRAWN_BY = 1


@dataclass(frozen=True)
class Dataset:
    """Requests in a file: one JSON object a line, `task_id`, `input_ids`, `output_tokens`."""

    path: Path
    digest: str


def dataset(workload: Workload, vocabulary: int) -> Dataset:
    """Prompts of tokens drawn evenly, the same for every engine, version and machine. Raises EngineError."""
    path = dataset_path(workload, vocabulary)
    known = path.with_suffix(".sha256")
    if not _is_intact(path, known):
        text = "".join(f"{line}\n" for line in _lines(workload, vocabulary))
        _write(path, text)
        _write(known, hashlib.sha256(text.encode("ascii")).hexdigest())
    return Dataset(path, known.read_text(encoding="ascii").strip())


def _is_intact(path: Path, known: Path) -> bool:
    """Whether the file is the one that was written: other prompts under its digest would be compared with these."""
    if not path.is_file() or not known.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == known.read_text(encoding="ascii").strip()


def dataset_path(workload: Workload, vocabulary: int) -> Path:
    """Where `dataset` puts it."""
    return default_root() / "datasets" / _name(workload, vocabulary)


def options_file(options: Mapping[str, object]) -> Path:
    """Raises EngineError where it cannot be written."""
    path = options_path(options)
    if not path.is_file():
        _write(path, yaml.safe_dump(dict(options), sort_keys=False))
    return path


def options_path(options: Mapping[str, object]) -> Path:
    """Where `options_file` puts it."""
    text = yaml.safe_dump(dict(options), sort_keys=False)
    return default_root() / "options" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.yaml"


def _name(workload: Workload, vocabulary: int) -> str:
    shape = f"{workload.isl}-{workload.osl}" if workload.lengths == "constant" else workload.lengths
    return f"drawn{DRAWN_BY}-{shape}-{workload.requests}-of-{vocabulary}.jsonl"


def _lines(workload: Workload, vocabulary: int) -> Iterator[str]:
    source = random.Random(f"llamaperf {DRAWN_BY}")
    for number, (isl, osl) in enumerate(request_lengths(workload)):
        ids = source.choices(range(vocabulary), k=isl)
        yield json.dumps({"task_id": number, "input_ids": ids, "output_tokens": osl}, separators=(",", ":"))


def _write(path: Path, text: str) -> None:
    try:
        make_private(default_root())
        write_atomically(path, text)
    except OSError as problem:
        raise EngineError(f"{shown_path(path)}: cannot be written: {problem.strerror}") from None
