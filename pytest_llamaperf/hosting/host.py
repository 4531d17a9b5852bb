"""A driver in a process of its own: start it, call it, and end it with everything it started, whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, NoReturn, Self, cast

from pytest_llamaperf.files import make_private, open_private
from pytest_llamaperf.hosting.channel import Channel, Cut, Expired
from pytest_llamaperf.hosting.failures import EngineFailure, FailureKind, classify
from pytest_llamaperf.hosting.phases import Deadlines, Phase
from pytest_llamaperf.hosting.processes import OWNER, Family, memory_kills, new_owner
from pytest_llamaperf.interrupts import uninterrupted

PROGRAM = Path(__file__).parents[1] / "children" / "program.py"
DEFAULT_DEADLINES = Deadlines()
EXIT_PATIENCE = 1.0  # seconds between the end of a process's stream and its own
REAP_PATIENCE = 1.0  # seconds; only what the kernel will not end takes longer than none
LAST_LINES = 20  # of the log, for a message
LAST_BYTES = 8192  # of the log, in which to look for them

# Libraries look things up, and tell of their use, wherever they are not told otherwise.
SILENT = {"DO_NOT_TRACK": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRTLLM_NO_USAGE_STATS": "1"}
OFFLINE = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


@dataclass(frozen=True)
class Progress:
    """How far a call is: `done` of `total` things, or of unknown many."""

    phase: Phase
    text: str
    done: int
    total: int | None


class Host:
    """A running driver. Use it in a `with` statement, or close it; keep it to the thread that made it.

    `environment` is what its process was started with. It may hold credentials: see `pytest_llamaperf.environment`.

    Linux ends the driver's process when that thread ends, however it ends. After any failure all its processes have
    been ended, and every further call raises that failure again.
    """

    def __init__(
        self,
        driver: str | Path,
        *,
        log: Path,
        python: Path | None = None,
        deadlines: Deadlines = DEFAULT_DEADLINES,
        environment: Mapping[str, str] = MappingProxyType({}),
        network: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """Starts `driver`, a name in `children/` or the path of a .py file, under `python` (default: this one).

        What the driver and its libraries print is added to `log`, which its owner alone may read; `environment` is added to
        this process's. Libraries are told to stay off the network, unless it is `network` that somebody asked for. Raises
        EngineFailure when the driver is not ready within the deadline of loading.
        """
        self.deadlines, self.log = deadlines, log
        self._on_progress = on_progress
        self._owner = new_owner()
        self._memory_kills = memory_kills()
        self._calls = 0
        self.longest: dict[Phase, float] = {}  # seconds of the longest call that was answered
        self._failure: EngineFailure | None = None
        self._ended = False
        quiet = SILENT if network else {**SILENT, **OFFLINE}
        self.environment = {**os.environ, **quiet, **environment, OWNER: self._owner}
        self._process = self._started(driver, python or Path(sys.executable))
        self._family = Family(self.pid, self._owner)
        # With bufsize=0 and bytes, pipes of Popen are FileIO.
        writing, reading = cast(FileIO, self._process.stdin), cast(FileIO, self._process.stdout)
        self._channel = Channel(writing, reading, lambda: self._family.exit_by() is None)
        with self._ended_on_failure(Phase.LOAD, f"starting {driver}"):
            began = time.monotonic()
            self._answer(None, Phase.LOAD, began + deadlines.load)
            self.longest[Phase.LOAD] = time.monotonic() - began

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, command: str, arguments: Mapping[str, Any], phase: Phase) -> Any:
        """The driver's answer, within the phase's deadline. Raises EngineFailure, ValueError for no JSON or a closed host.

        Whatever ends the waiting, Ctrl-C too, ends the driver.
        """
        if self._failure:
            raise EngineFailure(
                self._failure.kind, self._failure.phase, f"earlier: {self._failure.problem}", log=self.log
            )
        if self._ended:
            raise ValueError(f"call of {command!r} on a host that is closed")
        until = time.monotonic() + self.deadlines.of(phase)
        self._calls += 1
        asked = json.dumps({"id": self._calls, "command": command, "arguments": dict(arguments)}, allow_nan=False)
        with self._ended_on_failure(phase, repr(command)):
            began = time.monotonic()
            self._channel.send(asked.encode("ascii"), until)
            answer = self._answer(self._calls, phase, until)
            self.longest[phase] = max(self.longest.get(phase, 0.0), time.monotonic() - began)
            return answer

    def versions(self) -> dict[str, str]:
        """Of what the driver's process has loaded by now: torch, cuda, cublas, cudnn, nccl ... Raises EngineFailure."""
        return dict(self.call("versions", {}, Phase.LOAD))

    def close(self) -> None:
        """Let the driver close, then end what is left. Raises EngineFailure when it could not or took too long.

        May be called twice. How the process exits after a good answer says nothing about the work, and is not looked at.
        """
        if self._ended:
            return
        self._family.alive()  # remembers them all, also those who will have lost their parent when it has closed
        until = time.monotonic() + self.deadlines.close
        self.call("close", {}, Phase.CLOSE)
        with self._ended_on_failure(Phase.CLOSE, "ending after 'close'"):
            if self._family.exit_by(until) is None:
                raise Expired
        self.kill()
        if remains := self.left_over():
            raise EngineFailure(FailureKind.LEAK, Phase.CLOSE, "processes do not end", log=self.log, remains=remains)

    def kill(self) -> None:
        """End all processes of the driver, now. Never raises for those that do not end: see `left_over`."""
        if self._ended:
            return
        with uninterrupted():
            self._family.end()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(REAP_PATIENCE)
                self._family.forget_leader()
            self._channel.close()
            self._ended = True

    def left_over(self) -> list[int]:
        """Numbers of the driver's processes that are alive."""
        return [process.pid for process in self._family.alive()]

    def cpu_seconds(self) -> float:
        """CPU time, user and system, of the driver's processes that are alive."""
        return self._family.cpu_seconds()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """After an exception there is nothing to close in good order, and nothing that may hide it."""
        if problem is None:
            self.close()
        else:
            self.kill()

    def _started(self, driver: str | Path, python: Path) -> subprocess.Popen[bytes]:
        try:
            make_private(self.log.parent)
            with os.fdopen(open_private(self.log), "ab") as log:
                self._log_start = log.tell()
                try:
                    return subprocess.Popen(
                        [python, PROGRAM, driver],
                        bufsize=0,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log,
                        env=self.environment,
                        start_new_session=True,  # so that Ctrl-C does not reach it, and a group can be ended
                    )
                except (FileNotFoundError, PermissionError) as problem:
                    missing = f"cannot run {python}: {problem.strerror}"
                    raise EngineFailure(FailureKind.NOT_INSTALLED, Phase.LOAD, missing) from None
        except OSError as problem:
            raise classify(Phase.LOAD, type(problem).__name__, str(problem)) from None

    def _answer(self, identity: int | None, phase: Phase, until: float) -> Any:
        """The result of a call, or that the driver is ready, for None; tells progress meanwhile."""
        while True:
            line = self._channel.receive(until)
            match _event(line):
                case {"progress": {"text": str(text), "done": int(done), "total": int() | None as total}}:
                    if self._on_progress:
                        self._on_progress(Progress(phase, text, done, total))
                case {"ready": dict(ready)} if identity is None:
                    return ready
                case {"id": int(answered), "result": result} if answered == identity:
                    return result
                case {"id": int() | None as answered, "failed": {"type": str(name), "message": str(message)}} if (
                    answered == identity
                ):
                    raise classify(phase, name, message, log=self.log)
                case _:
                    asked = "that it is ready" if identity is None else f"answer {identity}"
                    problem = f"wanted {asked}, got {_shortened(line)}"
                    raise EngineFailure(FailureKind.PROTOCOL, phase, problem, log=self.log)

    @contextlib.contextmanager
    def _ended_on_failure(self, phase: Phase, work: str) -> Iterator[None]:
        """Nothing of the driver outlives a failure, Ctrl-C, or an error of whoever is told the progress."""
        try:
            with self._explained(phase, work):
                yield
        except EngineFailure as failure:
            self.kill()
            self._failure = self._completed(failure)
            raise self._failure from None
        except BaseException:
            self.kill()
            raise

    @contextlib.contextmanager
    def _explained(self, phase: Phase, work: str) -> Iterator[None]:
        """What a stream that ends or stands still means; looks at the processes, which must not have been ended yet."""
        try:
            yield
        except Expired:
            self._family.show_stack()
            self._fail(
                FailureKind.HANG,
                phase,
                f"{work} took longer than {self.deadlines.of(phase):g} s ({self.deadlines.origin(phase)})",
            )
        except Cut as cut:
            ended = self._family.exit_by(time.monotonic() + EXIT_PATIENCE)
            if ended is None:
                self._fail(FailureKind.PROTOCOL, phase, f"{work}: no more events, though the process goes on")
            elif ended.signal is not None:
                self._fail(FailureKind.DIED, phase, f"{work}: died by {ended}")
            elif ended.status != 0:
                self._fail(FailureKind.CRASHED, phase, f"{work}: {ended}")
            elif cut.rest:
                self._fail(FailureKind.PROTOCOL, phase, f"{work}: the answer is cut off after {_shortened(cut.rest)}")
            else:
                self._fail(FailureKind.INTERRUPTED, phase, f"{work}: {ended}, and no answer")

    def _fail(self, kind: FailureKind, phase: Phase, problem: str) -> NoReturn:
        raise EngineFailure(kind, phase, problem, log=self.log, last_lines=self._last_lines()) from None

    def _completed(self, failure: EngineFailure) -> EngineFailure:
        """With what only the machine knows: whom the kernel ended, and who is still there."""
        kind, problem = failure.kind, failure.problem
        if re.search(r"died by signal 9\b", problem) and memory_kills() > self._memory_kills:
            kind = FailureKind.OUT_OF_MEMORY
            problem += "; the kernel ended a process for want of memory meanwhile"
        return EngineFailure(
            kind, failure.phase, problem, log=failure.log, last_lines=failure.last_lines, remains=self.left_over()
        )

    def _last_lines(self) -> list[str]:
        """Of what this host's processes wrote to the log, which may be longer."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(self._log_start, file.seek(0, os.SEEK_END) - LAST_BYTES))
                return file.read().decode("utf-8", errors="replace").splitlines()[-LAST_LINES:]
        except OSError:  # the log explains a failure; where it cannot be read the failure stands without
            return []


def _event(line: bytes) -> object:
    """None for what is no JSON; NaN is none."""
    try:
        return json.loads(line, parse_constant=_refused)
    except (ValueError, RecursionError):
        return None


def _refused(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _shortened(line: bytes) -> str:
    text = line.decode("utf-8", errors="replace")
    return repr(text if len(text) <= 80 else text[:80] + "...")
