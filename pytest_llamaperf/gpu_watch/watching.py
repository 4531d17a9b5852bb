"""A thread that looks at the GPUs while an engine works."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from pytest_llamaperf.gpu_health import Sample
from pytest_llamaperf.gpu_watch.judging import blindness, slowdowns, visits
from pytest_llamaperf.gpu_watch.keeping import TraceFile
from pytest_llamaperf.gpu_watch.looking import is_lost, look
from pytest_llamaperf.gpu_watch.strangers import Strangers
from pytest_llamaperf.hardware import devices, find_machine
from pytest_llamaperf.hosting.failures import EngineFailure, FailureKind
from pytest_llamaperf.hosting.phases import Phase

INTERVAL = 0.5  # seconds between two looks
THREAD = "llamaperf-gpu-watch"
PATIENCE = 10.0  # seconds for a look to end: a driver that does not answer must not hang the session


@dataclass(frozen=True)
class Watched:
    """What was seen of the GPUs in one run; `blind` is why it tells nothing. `uuids` are by number."""

    samples: tuple[Sample, ...]
    uuids: Mapping[int, str]
    blind: str | None


class GpuWatch:
    """Looks at all GPUs of one catalog name while it is open; `failure` and `watched` tell after that.

    expected   UUIDs of those that were there when the session began
    loaded     on how many an engine is loaded
    late       the engine was loaded before, so that what comes now is a stranger
    unseen     what could not be seen before this
    """

    def __init__(
        self,
        hardware: str,
        *,
        expected: Sequence[str],
        loaded: int,
        strangers: Strangers,
        late: bool,
        trace: TraceFile | None = None,
        unseen: str | None = None,
    ) -> None:
        self._hardware, self._expected, self._loaded, self._trace = hardware, expected, loaded, trace
        self._strangers, self._late, self._unseen = strangers, late, unseen
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name=THREAD, daemon=True)
        self._began = time.monotonic()
        self._samples: list[Sample] = []
        self._uuids: dict[int, str] = {}
        self._at_first: dict[int, frozenset[int]] = {}
        self._came: dict[int, str] = {}
        self._lost: dict[str, None] = {}
        self._problems: list[str] = []
        self.blind: str | None = None

    @property
    def watched(self) -> Watched:
        return Watched(tuple(self._samples), self._uuids, self.blind)

    def failure(self) -> EngineFailure | None:
        """What is wrong with the GPUs, with the facts; None where nothing is, or where nobody could look."""
        if not self._problems:
            return None
        kind = FailureKind.GPU_FAULT if self._lost else FailureKind.UNSTABLE
        return EngineFailure(kind, Phase.RUN, "; ".join(self._problems))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(PATIENCE)
        ended = time.monotonic() - self._began
        if self._thread.is_alive():
            self.blind = f"the driver has not answered for {PATIENCE:g} s"
        samples = tuple(self._samples)
        self._problems = [*self._lost, *slowdowns(samples), *visits(samples, self._came)]
        self.blind = self.blind or self._unseen or blindness(samples, ended, self._loaded)
        if self._trace and not self._thread.is_alive():
            self._trace.end(ended, self.blind, self._problems)

    def _look_on(self) -> None:
        """Whatever goes wrong here, the driver or this program: nobody looked, and that is told."""
        try:
            with devices(self._hardware) as found:
                self._meet(found)
                while True:
                    self._look(found)
                    if self._over.wait(INTERVAL):
                        return
        except Exception as problem:  # noqa: BLE001  told as blindness, which a gate does not take
            self.blind = str(problem) or type(problem).__name__
            if is_lost(problem):
                self._lost.setdefault(find_machine().problem or str(problem))

    def _meet(self, found: Mapping[int, Any]) -> None:
        import pynvml

        self._uuids = {index: str(pynvml.nvmlDeviceGetUUID(handle)) for index, handle in found.items()}
        self._lost |= {f"{uuid} is gone": None for uuid in self._expected if uuid not in self._uuids.values()}
        if self._trace:
            self._trace.begin(self._uuids)

    def _look(self, found: Mapping[int, Any]) -> None:
        import pynvml

        at = time.monotonic() - self._began
        samples = []
        for index, handle in found.items():
            try:
                samples.append(look(at, index, handle))
            except pynvml.NVMLError as problem:
                if not is_lost(problem):
                    raise
                self._lost.setdefault(f"GPU {index} was lost")
        for sample in samples:
            self._recognize(sample)
        self._samples += samples
        if self._trace:
            self._trace.add(at, samples)

    def _recognize(self, sample: Sample) -> None:
        """At once: a process that ended tells no longer whose it was."""
        first = self._at_first.setdefault(sample.gpu, frozenset(sample.processes))
        for pid in sample.processes:
            name = self._strangers.name(pid, late=self._late and pid not in first)
            if name is not None:
                self._came[pid] = name
