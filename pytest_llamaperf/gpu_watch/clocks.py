"""SM clocks locked for a session, and unlocked after it, or before the next one where it was killed.

A file for each GPU says that its clocks are locked, written before they are and removed after they are not: whoever
reserves the GPU next finds it.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from pytest_llamaperf.errors import EngineError
from pytest_llamaperf.files import write_atomically
from pytest_llamaperf.hardware import devices

OPTION = "--lock-clocks"


class LockedClocks:
    """Of all GPUs of a catalog name that this process may use; `folder` keeps the records."""

    def __init__(self, hardware: str, mhz: int, folder: Path) -> None:
        self._hardware, self._mhz, self._folder = hardware, mhz, folder

    def lock(self) -> None:
        """Raises EngineError where the driver refuses, and leaves nothing locked then."""
        import pynvml

        try:
            with devices(self._hardware) as found:
                for handle in found.values():
                    self._lock(handle)
        except (pynvml.NVMLError, OSError) as problem:
            with contextlib.suppress(EngineError):  # what stays locked has its record, and is told by the next session
                unlock(self._hardware, self._folder)
            raise EngineError(f"{OPTION} {self._mhz}: {problem}; {_advice(problem, self._mhz)}") from None

    def _lock(self, handle: Any) -> None:
        import pynvml

        record = _record(self._folder, handle)
        write_atomically(record, json.dumps({"mhz": self._mhz, "pid": os.getpid()}) + "\n")
        try:
            pynvml.nvmlDeviceSetGpuLockedClocks(handle, self._mhz, self._mhz)
        except pynvml.NVMLError:
            record.unlink(missing_ok=True)
            raise


def unlock(hardware: str, folder: Path) -> None:
    """Every GPU that has a record. Raises EngineError where one stays locked; its record stays too."""
    import pynvml

    try:
        with devices(hardware) as found:
            for index, handle in found.items():
                record = _record(folder, handle)
                if record.exists():
                    try:
                        pynvml.nvmlDeviceResetGpuLockedClocks(handle)
                    except pynvml.NVMLError as problem:
                        raise EngineError(
                            f"the clocks of GPU {index} are locked ({record} says so) and cannot be unlocked: {problem}; "
                            f"let an administrator do it: nvidia-smi -i {index} -rgc && rm {record}"
                        ) from None
                    record.unlink(missing_ok=True)
    except pynvml.NVMLError as problem:
        if left := [path.name for path in folder.glob("*.clocks")]:
            raise EngineError(f"clocks may be locked still ({', '.join(left)} in {folder}): {problem}") from None


def _record(folder: Path, handle: Any) -> Path:
    import pynvml

    return folder / f"{pynvml.nvmlDeviceGetUUID(handle)}.clocks"


def _advice(problem: Exception, mhz: int) -> str:
    import pynvml

    value = getattr(problem, "value", None)
    if value == pynvml.NVML_ERROR_NO_PERMISSION:
        return "this needs root, or leave the option out and have an administrator lock them: nvidia-smi -lgc " + str(
            mhz
        )
    if value == pynvml.NVML_ERROR_INVALID_ARGUMENT:
        return "nvidia-smi -q -d SUPPORTED_CLOCKS lists the clocks that this GPU takes"
    return "leave the option out, and the clocks are seen all the same"
