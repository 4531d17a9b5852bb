"""Files that are there whole or not at all, and what tells whether they are as they were written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Names of files and output of engines may hold what is no Unicode; \udc80 and the like is also how JSON escapes it.
UNPRINTABLE = "backslashreplace"


def write_atomically(path: Path, text: str) -> None:
    """Either the old content stays or the new one is there whole, also after a crash or a full disk. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        path.stat()  # links in a circle lead nowhere
    path = path.resolve()  # a link stays one, and what it points to is written
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8", errors=UNPRINTABLE)  # a device or a pipe cannot be replaced
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        os.fchmod(descriptor, 0o666 & ~_umask())  # mkstemp's files are readable by their owner alone
        with os.fdopen(descriptor, "w", encoding="utf-8", errors=UNPRINTABLE) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def checksum(document: Mapping[str, Any]) -> str:
    """Of what JSON makes of a document, without a checksum that stands in it; against accidents and hasty hands, not forgers."""
    told = {name: value for name, value in document.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def make_private(folder: Path) -> None:
    """For its owner alone, where it is not there yet. Folders above it are made as any others."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def open_private(path: Path) -> int:
    """A descriptor to add to a file that, where it is made now, is for its owner alone. Raises OSError, also for a link."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def write_private(path: Path, text: str, *, program: bool = False) -> None:
    """A new file, on the disk, for its owner alone; as a program it may be run.

    Raises OSError where something is there already, ValueError for a program that names what no file can be called.
    """
    mode, unprintable = (0o700, "surrogateescape") if program else (0o600, UNPRINTABLE)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8", errors=unprintable) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def is_absent(path: Path) -> bool:
    """Whether nothing has that name. What is there and cannot be read, as a link to nowhere, is not absent."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
