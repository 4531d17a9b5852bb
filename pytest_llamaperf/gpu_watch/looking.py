"""One look at a GPU, as NVML answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytest_llamaperf.gpu_health import Sample


def look(at: float, index: int, handle: Any) -> Sample:
    """Raises NVMLError where the driver does not tell what a measurement is judged by.

    That is the SM clock, the reasons, the memory and the processes; some GPUs have no sensor for the rest.
    """
    import pynvml

    return Sample(
        at,
        index,
        int(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)),
        _if_told(lambda: int(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM))),
        int(pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle)),
        _if_told(lambda: int(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))),
        _if_told(lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000),  # milliwatts
        memory_used(handle),
        processes_on(handle),
    )


def memory_used(handle: Any) -> int:
    """Bytes."""
    import pynvml

    return int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)


def processes_on(handle: Any) -> dict[int, int | None]:
    """Numbers of processes that compute on a GPU, and the bytes they hold there, None where the driver does not tell."""
    import pynvml

    return {
        int(process.pid): None if process.usedGpuMemory is None else int(process.usedGpuMemory)
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    }


def is_lost(problem: Exception) -> bool:
    """Whether the driver says that a GPU fell off its bus."""
    import pynvml

    return isinstance(problem, pynvml.NVMLError) and bool(problem.value == pynvml.NVML_ERROR_GPU_IS_LOST)


def _if_told(ask: Callable[[], Any]) -> Any:
    import pynvml

    try:
        return ask()
    except pynvml.NVMLError as problem:
        if problem.value == pynvml.NVML_ERROR_NOT_SUPPORTED:
            return None
        raise
