"""What takes long to make or to fetch, each made once and kept: in a cache on disk, shared by all processes of a machine.

An entry is a folder named after everything that decides its content, and whole as soon as it has that name: it is
written elsewhere, checked, and moved. Whoever makes it holds a lock of the operating system, which ends with the
process however that ends; who comes second waits, and finds the first one's work.

    entries/    finished ones             making/   unfinished ones, of this moment or of processes that were killed
    locks/      one file for each entry
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout, UnixFileLock

from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.files import make_private
from pytest_llamaperf.wording import printable, shown_path

SETTING = "LLAMAPERF_CACHE"
MANIFEST = "manifest.json"
FULL = (errno.ENOSPC, errno.EDQUOT)

# 1: key, made, files (name and size of each), and what was asked, done and found.
SCHEMA = 1

_TOLD_WAITING = 2.0  # seconds between two notes about a lock
_LONGEST = 200  # characters of a file's name that a message shows


def default_root() -> Path:
    """$LLAMAPERF_CACHE, or pytest-llamaperf in the user's cache. Raises UsageError for a user without a home."""
    try:
        if own := os.environ.get(SETTING):
            return Path(own).expanduser()
        cache = Path(os.environ.get("XDG_CACHE_HOME", ""))  # to be ignored unless absolute, says its specification
        return (cache if cache.is_absolute() else Path("~/.cache").expanduser()) / "pytest-llamaperf"
    except RuntimeError:
        raise UsageError(f"there is no home folder to keep a cache in; set {SETTING}") from None


class Cache:
    """Gives entries, and makes those that are not there. `tell` hears about waiting, `warn` about damage."""

    def __init__(self, root: Path, *, tell: Callable[[str], None], warn: Callable[[str], None]) -> None:
        self.root, self._tell, self._warn = root, tell, warn

    def path(self, name: str) -> Path:
        """Where the entry of that name is, or would be."""
        return self.root / "entries" / name

    def get(
        self,
        name: str,
        make: Callable[[Path], Mapping[str, Any]],
        problem_of: Callable[[Path], str | None],
    ) -> Path:
        """The entry's folder. `make` fills one and returns what its manifest is to say; `problem_of` finds a fault in it.

        What `make` raises goes on, and OSError; neither leaves anything.
        """
        entry = self.path(name)
        if not entry.exists() or problem_of(entry):
            with self._locked(name):
                self._sweep(name)
                if entry.exists() and (problem := problem_of(entry)):
                    self._warn(f"{shown_path(entry)} is damaged and is made again: {problem}")
                    _discard(entry, self.root / "making")
                if not entry.exists():
                    self._make(entry, make)
        return entry

    def _make(self, entry: Path, make: Callable[[Path], Mapping[str, Any]]) -> None:
        folder = Path(tempfile.mkdtemp(prefix=f"{entry.name}.", dir=self.root / "making"))
        try:
            _put_in_place(folder, entry, make(folder))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # what cannot be removed now is swept away later
            raise

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """One process at a time makes what is called so."""
        make_private(self.root)  # where it is made now; a folder for a team is made by whoever shares it
        for folder in ("locks", "making"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        lock = self._lock(name)
        while True:
            try:
                lock.acquire(timeout=_TOLD_WAITING)
                break
            except Timeout:
                self._tell(f"waiting for another process, which makes {name}")
        try:
            # What filelock falls back to where there are no such locks would stay behind a process that is killed.
            if not isinstance(lock, UnixFileLock):
                raise OSError(errno.ENOLCK, "its file system has no locks")
            yield
        finally:
            lock.release()

    def _lock(self, name: str) -> FileLock:
        return FileLock(self.root / "locks" / f"{name}.lock")

    def _sweep(self, own: str) -> None:
        """Remove what processes left behind that were killed: nobody holds the lock of what they were making.

        To be called with the lock of `own`.
        """
        for folder in (self.root / "making").iterdir():
            name = folder.name.rpartition(".")[0]
            if name == own:
                shutil.rmtree(folder, ignore_errors=True)
                continue
            lock = self._lock(name)
            with contextlib.suppress(Timeout), lock.acquire(blocking=False):
                shutil.rmtree(folder, ignore_errors=True)


def read_manifest(entry: Path) -> dict[str, Any]:
    """What an entry says of itself. Raises ValueError for a manifest that is missing or none."""
    try:
        manifest = json.loads((entry / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError("is missing") from None
    except OSError as problem:
        raise ValueError(f"cannot be read: {problem.strerror}") from None
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None
    match manifest:
        case {"schema": int(schema), "files": dict(sizes)} if schema == SCHEMA and all(map(_is_size, sizes.values())):
            found: dict[str, Any] = manifest
            return found
    raise ValueError(f"is no manifest of schema {SCHEMA}")


def problem_of(entry: Path, key: str) -> str | None:
    """What is wrong with an entry that is there; None where it is of that key, and every file has its size."""
    try:
        manifest = read_manifest(entry)
    except ValueError as problem:
        return f"{MANIFEST}: {problem}"
    if manifest.get("key") != key:
        return "it is of another key"
    for name, size in manifest["files"].items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            return f"{printable(name[:_LONGEST])} is outside of it"
        try:
            found = (entry / name).stat().st_size if (entry / name).is_file() else None
        except OSError as problem:
            return f"{printable(name[:_LONGEST])}: {problem.strerror}"
        if found != size:
            told = "is missing" if found is None else f"is {found:,} bytes long and was {size:,}"
            return f"{printable(name[:_LONGEST])} {told}"
    return None


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _put_in_place(folder: Path, entry: Path, manifest: Mapping[str, Any]) -> None:
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


def _discard(entry: Path, making: Path) -> None:
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
