"""A driver of GPUs that answers as it is told."""

from __future__ import annotations

from types import SimpleNamespace

import pynvml
import pytest

H200 = ("NVIDIA H200", 150_754_820_096)
H100 = ("NVIDIA H100 80GB HBM3", 85_520_809_984)
H100_PCIE = ("NVIDIA H100 PCIe", 85_520_809_984)


class Driver:
    """Answers of NVML for GPUs of (product, bytes).

    `open` counts who asked for it and did not hand it back. `used` is bytes in use by GPU; `reasons` are bits of why clocks
    are lowered, of one look after the other, the last one again and again.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *gpus: tuple[str, int]) -> None:
        self.open = 0
        self.used: dict[int, int] = {}
        self.reasons: list[int] = [0]
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        for name, answer in {
            "nvmlInit": self._init,
            "nvmlShutdown": self._shutdown,
            "nvmlSystemGetDriverVersion": lambda: "570.133.20",
            "nvmlDeviceGetCount": lambda: len(gpus),
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetName": lambda handle: gpus[handle][0],
            "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(
                total=gpus[handle][1], free=1, used=self.used.get(handle, 2)
            ),
            "nvmlDeviceGetCurrentClocksEventReasons": self._reasons,
            "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}",
        }.items():
            monkeypatch.setattr(pynvml, name, answer)

    def _init(self) -> None:
        self.open += 1

    def _shutdown(self) -> None:
        self.open -= 1

    def _reasons(self, handle: int) -> int:
        return self.reasons.pop(0) if len(self.reasons) > 1 else self.reasons[0]
