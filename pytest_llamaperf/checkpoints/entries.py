"""One entry of the store on disk: a checkpoint's folder with a manifest, which is there last and says what else is."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_llamaperf.checkpoints.configs import read_json
from pytest_llamaperf.checkpoints.safetensors_files import BadCheckpoint, tensors

MANIFEST = "manifest.json"

# 1: key, made, files (name and size of each), and what was asked, done and found.
SCHEMA = 1


def read_manifest(entry: Path) -> dict[str, Any]:
    """Raises BadCheckpoint for a manifest that is missing or none."""
    manifest = read_json(entry / MANIFEST)
    if manifest.get("schema") != SCHEMA or not isinstance(manifest.get("files"), dict):
        raise BadCheckpoint(entry / MANIFEST, f"is no manifest of schema {SCHEMA}")
    return manifest


def problem_of(entry: Path, key: str) -> str | None:
    """What is wrong with an entry that is there; every file has its size, and every tensor its place in one."""
    try:
        manifest = read_manifest(entry)
        if manifest.get("key") != key:
            return "it is of another key"
        for name, size in manifest["files"].items():
            found = (entry / name).stat().st_size if (entry / name).is_file() else None
            if found != size:
                return f"{name} is missing" if found is None else f"{name} is {found:,} bytes long and was {size:,}"
        tensors(entry)
    except BadCheckpoint as problem:
        return str(problem)
    return None


def put_in_place(folder: Path, entry: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest and move the folder to its name, each only when what it speaks of is on the disk.

    Raises OSError, and has not touched the entry then.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        path.chmod(0o666 & ~_umask())  # as any file: safetensors are written for their owner alone
        _sync(path)
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
    text = json.dumps({"schema": SCHEMA, **manifest, "files": sizes}, indent=2, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    _sync(folder / MANIFEST)
    folder.chmod(0o777 & ~_umask())  # mkdtemp's are closed to others
    _sync(folder)
    entry.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(entry)
    _sync(entry.parent)


def discard(entry: Path, making: Path) -> None:
    """Take an entry away: at once for whoever looks for it, then from the disk."""
    place = Path(tempfile.mkdtemp(prefix=f"{entry.name}.", dir=making))
    entry.rename(place / "discarded")
    shutil.rmtree(place)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
