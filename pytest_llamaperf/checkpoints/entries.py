"""What is wrong with an entry of the cache that is to be a checkpoint."""

from __future__ import annotations

from pathlib import Path

from pytest_llamaperf import cache
from pytest_llamaperf.checkpoints.safetensors_files import BadCheckpoint, tensors


def problem_of(entry: Path, key: str) -> str | None:
    """Beside what can be wrong with any entry: every tensor has its place in one file."""
    if problem := cache.problem_of(entry, key):
        return problem
    try:
        tensors(entry)
    except BadCheckpoint as problem:
        return str(problem)
    return None
