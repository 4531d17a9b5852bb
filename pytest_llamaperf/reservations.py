"""One session at a time measures on a GPU, and one on the CPU of a machine.

A session that measures has a file for each of them, locked by the operating system (flock) as long as it lives: however
it ends, its lock ends with it. Who comes looks at the files of others under a lock of the folder, which takes no time.
A file that nobody locks is of a session that was killed, and is removed.

A session that a test of another one runs is part of that, and not shut out; nor are shards of one run, to which
`llamaperf run` shares the machine out. See docs/decisions/0022-fit-gpus.md.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from pytest_llamaperf.wording import printable

SETTING = "LLAMAPERF_LOCKS"
RUN = "LLAMAPERF_RUN"  # in the environment of a shard: the id of its run
DEFAULT = Path("/tmp/llamaperf-locks")  # not TMPDIR, which schedulers set for each job
CPU_NAME = "cpu"
SUFFIX = ".session"

GLANCE = 0.5  # seconds between two tries


class Taken(Exception):
    """Somebody else measures there; its text says who, since when, and on what."""


@dataclass(frozen=True)
class Holder:
    """A session that measures. `namespace` is that of its process number; `run` that it is a shard of, empty for none."""

    pid: int
    namespace: str
    since: str
    command: str
    run: str = ""

    @classmethod
    def this(cls) -> Holder:
        since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return cls(os.getpid(), _namespace(), since, _command(), os.environ.get(RUN, ""))

    def belongs_to(self, other: Holder, ancestors: Sequence[int]) -> bool:
        """Whether this session, whose ancestors those are, is part of the other one, or of the same run."""
        if self.run and self.run == other.run:
            return True
        return self.namespace == other.namespace and other.pid in (self.pid, *ancestors)

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command}) since {self.since}"


class Reservation:
    """What this process has reserved, until `release`. `alone`: nobody it belongs to has reserved any of it."""

    def __init__(self, files: Mapping[Path, int], *, alone: bool) -> None:
        self._files, self.alone = dict(files), alone

    def release(self) -> None:
        for path, descriptor in self._files.items():
            path.unlink(missing_ok=True)
            os.close(descriptor)
        self._files.clear()


def folder() -> Path:
    """$LLAMAPERF_LOCKS, or one that all users of this machine share."""
    return Path(os.environ.get(SETTING) or DEFAULT)


def cannot_be_locked(root: Path, problem: OSError) -> str:
    """What to do about a folder for which `reserve` raised OSError."""
    return (
        f"{root}: cannot be locked, so another session could measure beside this one: {problem.strerror or problem}; "
        f"name a folder that can be in {SETTING}"
    )


def reserve(
    names: Sequence[str], root: Path, *, patience: float = 0.0, tell: Callable[[str], None] = lambda text: None
) -> Reservation:
    """All of these or none, after waiting for up to `patience` seconds; `tell` hears for whom.

    Raises Taken, and OSError for a folder in which nothing can be locked.
    """
    until = time.monotonic() + patience
    while True:
        try:
            return _reserved(names, root)
        except Taken as taken:
            if time.monotonic() >= until:
                raise
            tell(f"waiting: {taken}")
        time.sleep(GLANCE)


def _reserved(names: Sequence[str], root: Path) -> Reservation:
    me = Holder.this()
    ancestors = [parent.pid for parent in psutil.Process().parents()]
    alone = True
    with _locked(root):
        for name in names:
            for other in _holders(root, name):
                if other is None or not me.belongs_to(other, ancestors):
                    raise Taken(f"{name} is measured on by {other or 'a process that does not say who it is'}")
                alone = False
        files: dict[Path, int] = {}
        try:
            for name in names:
                path = root / f"{name}.{uuid.uuid4().hex}{SUFFIX}"
                files[path] = descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.write(descriptor, json.dumps(asdict(me)).encode())
        except BaseException:
            Reservation(files, alone=alone).release()
            raise
    return Reservation(files, alone=alone)


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """The folder, made for all users where it is not there."""
    if not root.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        root.chmod(0o1777)  # as /tmp: everybody adds files, and removes their own
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _holders(root: Path, name: str) -> Iterator[Holder | None]:
    """Those alive; None for one that does not say who it is. What the dead left is removed where we may."""
    for path in sorted(root.glob(f"{name}.*{SUFFIX}")):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue  # released meanwhile, which takes no lock of the folder
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield _read(descriptor)
        else:
            with contextlib.suppress(OSError):  # another user's
                path.unlink()
        finally:
            os.close(descriptor)


def _read(descriptor: int) -> Holder | None:
    try:
        return Holder(**json.loads(os.read(descriptor, 1 << 16)))
    except (OSError, TypeError, ValueError):
        return None


def _namespace() -> str:
    """Of process numbers: in containers they count anew."""
    with contextlib.suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return ""


def _command() -> str:
    """As others see it in a list of processes, on one short line."""
    name, *options = sys.argv
    text = printable(" ".join([Path(name).name if name else "python", *options]))
    return text if len(text) <= 120 else text[:117] + "..."
