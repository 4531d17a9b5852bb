"""Were the GPUs fit to measure on? Asked of the driver before an engine opens, and again and again while it works."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from pytest_llamaperf.hardware import devices
from pytest_llamaperf.wording import amount

INTERVAL = 0.5  # seconds between two looks
OTHERS_MAY_HOLD = 2 * 2**30  # bytes of a GPU before an engine opens: contexts of the driver and of monitors
FREEING = 30.0  # seconds in which memory of an engine that has ended comes back

# Names in NVML of what lowers clocks, other than power within its limit and clocks that were set on purpose.
_SLOWED = {
    "nvmlClocksEventReasonHwSlowdown": "slowed down by its hardware",
    "nvmlClocksEventReasonHwThermalSlowdown": "slowed down by its hardware, too hot",
    "nvmlClocksEventReasonHwPowerBrakeSlowdown": "slowed down by its power supply",
    "nvmlClocksEventReasonSwThermalSlowdown": "slowed down by its driver, too hot",
}


class GpuWatch:
    """Looks at all GPUs of one catalog name while it is open. `problems` are for people, `blind` says why it cannot see."""

    def __init__(self, hardware: str) -> None:
        self._hardware = hardware
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)
        self._found: dict[str, None] = {}
        self.blind: str | None = None

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(self._found)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _look_on(self) -> None:
        import pynvml

        try:
            with devices(self._hardware) as found:
                while True:
                    self._found |= dict.fromkeys(_slowed(found))
                    if self._over.wait(INTERVAL):
                        return
        except pynvml.NVMLError as problem:
            self.blind = str(problem)


def occupied(hardware: str, patience: float = FREEING) -> tuple[str, ...]:
    """GPUs of a catalog name on which somebody else holds memory, also after waiting for what has just ended.

    Nothing where the driver cannot be asked.
    """
    import pynvml

    until = time.monotonic() + patience
    try:
        with devices(hardware) as found:
            while (held := tuple(_held(found))) and time.monotonic() < until:
                time.sleep(INTERVAL)
            return held
    except pynvml.NVMLError:
        return ()


def _slowed(found: dict[int, Any]) -> Iterator[str]:
    import pynvml

    for index, handle in found.items():
        reasons = pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
        for name, told in _SLOWED.items():
            if reasons & getattr(pynvml, name):
                yield f"GPU {index} was {told}"


def _held(found: dict[int, Any]) -> Iterator[str]:
    import pynvml

    for index, handle in found.items():
        used = int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
        if used > OTHERS_MAY_HOLD:
            yield f"GPU {index} has {amount(used, 'B')} in use before the engine starts"
