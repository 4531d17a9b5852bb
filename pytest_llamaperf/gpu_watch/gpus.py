"""The GPUs of one session, as they are looked at: before an engine opens, while it works, after it closed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_llamaperf.cases import Case
from pytest_llamaperf.gpu_health import Health, Sample, readings
from pytest_llamaperf.gpu_watch import memory, watching
from pytest_llamaperf.gpu_watch.keeping import TraceFile
from pytest_llamaperf.gpu_watch.looking import is_lost
from pytest_llamaperf.gpu_watch.strangers import Strangers
from pytest_llamaperf.gpu_watch.watching import GpuWatch, Watched
from pytest_llamaperf.hardware import find_machine
from pytest_llamaperf.hosting.failures import EngineFailure, FailureKind
from pytest_llamaperf.hosting.phases import Phase


class WatchedGpus:
    """GPUs of one catalog name, one engine at a time.

    uuids         those that were there when the session began
    results       the folder in which all samples are kept, if any is wanted
    lock_clocks   MHz that their clocks are locked at, if they are
    nodes         how many machines an engine is spread over, of which this is one
    """

    def __init__(
        self,
        hardware: str,
        uuids: Sequence[str],
        *,
        results: Path | None = None,
        lock_clocks: int | None = None,
        nodes: int = 1,
    ) -> None:
        self.hardware, self.uuids, self._results = hardware, uuids, results
        self.lock_clocks, self._nodes = lock_clocks, nodes
        self._traces: dict[Case, TraceFile] = {}
        self._before: Mapping[int, memory.Holding] | None = None
        self._unseen: str | None = None
        self._strangers = Strangers()

    def check_free(self) -> None:
        """Before an engine opens. Raises EngineFailure where others hold them, or where one is lost.

        A driver that cannot be asked makes what is measured then blind.
        """
        import pynvml

        self._before, self._unseen, self._strangers = None, None, Strangers()
        try:
            self._before = memory.found_free(self.hardware, memory.FREEING)
        except pynvml.NVMLError as problem:
            if is_lost(problem):
                lost = find_machine().problem or str(problem)
                raise EngineFailure(FailureKind.GPU_FAULT, Phase.LOAD, lost) from None
            self._unseen = f"before the engine opened: {problem}"
        else:
            self._strangers = Strangers(before={pid for held in self._before.values() for pid in held.processes})

    def check_given_back(self) -> str | None:
        """After it closed. Raises EngineFailure for a leak; returns why nobody can tell, if that is so."""
        import pynvml

        if self._before is None:
            return self._unseen
        try:
            memory.given_back(self.hardware, self._before, self._strangers, memory.FREEING)
        except pynvml.NVMLError as problem:
            return f"after the engine closed: {problem}"
        return None

    def watch(self, case: Case, *, loaded: bool) -> GpuWatch:
        """While an engine runs a case, that was `loaded` before or loads now."""
        return GpuWatch(
            self.hardware,
            expected=self.uuids,
            loaded=-(-case.layout.gpus // self._nodes),
            strangers=self._strangers,
            late=loaded,
            trace=self._trace(case),
            unseen=self._unseen,
        )

    def health(self, case: Case, runs: Sequence[Watched], unseen: Sequence[str] = ()) -> Health:
        """Of a measurement, from all its runs; `unseen` are what nobody saw after engines closed."""
        samples: list[Sample] = [sample for watched in runs for sample in watched.samples]
        uuids = {gpu: uuid for watched in runs for gpu, uuid in watched.uuids.items()}
        blind = next((why for why in (*(watched.blind for watched in runs), *unseen) if why), None)
        told = readings(samples, uuids)
        trace = self._trace(case)
        looks = min((sum(sample.gpu == one.gpu for sample in samples) for one in told), default=0)
        if trace is None:
            return Health(blind, looks, told, self.lock_clocks)
        return Health(blind, looks, told, self.lock_clocks, trace.name, trace.problem)

    def _trace(self, case: Case) -> TraceFile | None:
        if self._results is None:
            return None
        if case not in self._traces:
            self._traces[case] = TraceFile(self._results, case, watching.INTERVAL)
        return self._traces[case]
