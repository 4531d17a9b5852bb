"""Temporary folders that go with the process that made them, also where it is killed: the next one removes them then.

The process holds a lock of the operating system on a file in its folder. A folder whose file nobody locks is of a process
that was killed; one without the file is nobody's, and is left alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

OWNED = ".llamaperf-owned"


class OwnedFolder:
    """Somebody's who lives. `remove` it, or `keep` it for people, who then have to remove it."""

    def __init__(self, path: Path) -> None:
        """Takes a folder that is there. Raises OSError."""
        self.path = path
        self._file = path / OWNED
        # Under a name that nobody looks for until it is locked: between the two it would look like a dead one's.
        making = path / f"{OWNED}.{os.getpid()}"
        self._descriptor: int | None = os.open(making, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        making.rename(self._file)

    @classmethod
    def new(cls, prefix: str) -> OwnedFolder:
        return cls(Path(tempfile.mkdtemp(prefix=prefix)))

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._release()

    def keep(self) -> None:
        with contextlib.suppress(OSError):
            self._file.unlink(missing_ok=True)
        self._release()

    def _release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def sweep(prefix: str) -> None:
    """Remove folders of the dead that begin with `prefix`, this user's alone. Never raises for what cannot be removed."""
    with contextlib.suppress(OSError):
        for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
            with contextlib.suppress(OSError):
                if folder.lstat().st_uid == os.getuid() and folder.is_dir() and not folder.is_symlink():
                    _sweep(folder)


def _sweep(folder: Path) -> None:
    descriptor = os.open(folder / OWNED, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)
