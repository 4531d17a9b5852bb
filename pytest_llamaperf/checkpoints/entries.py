"""What is wrong with an entry of the cache that is to be a checkpoint."""

from __future__ import annotations

from pathlib import Path

from pytest_llamaperf import cache
from pytest_llamaperf.checkpoints.safetensors_files import BadCheckpoint, tensors


def problem_of(entry: Path, key: str) -> str | None:
    """Beside what can be wrong with any entry: it does not say what wrote it, or a tensor has no place in one file."""
    if problem := cache.problem_of(entry, key):
        return problem
    match cache.read_manifest(entry):
        case {"versions": dict(versions)} if all(isinstance(version, str) for version in versions.values()):
            pass
        case _:
            return f"{cache.MANIFEST}: does not say which versions wrote it"
    try:
        tensors(entry)
    except BadCheckpoint as problem:
        return str(problem)
    return None
