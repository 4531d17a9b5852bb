"""A driver of GPUs that answers as it is told."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

H200 = ("NVIDIA H200", 150_754_820_096)
H100 = ("NVIDIA H100 80GB HBM3", 85_520_809_984)
H100_PCIE = ("NVIDIA H100 PCIe", 85_520_809_984)

LINKS = 18  # of a Hopper GPU

# What an SXM board on NVSwitch answers: by the call, or by a name where a call has more than one answer.
SXM: dict[str, Any] = {
    "nvmlDeviceGetBoardPartNumber": "692-2G520-0200-000",
    "nvmlDeviceGetBrand": pynvml.NVML_BRAND_NVIDIA,
    "nvmlDeviceGetEnforcedPowerLimit": 700_000,
    "nvmlDeviceGetPowerManagementDefaultLimit": 700_000,
    "nvmlDeviceGetEccMode": [1, 1],
    "nvmlDeviceGetMigMode": [0, 0],
    "nvmlDeviceGetPersistenceMode": 1,
    f"clock asked {pynvml.NVML_CLOCK_GRAPHICS}": 1980,
    f"clock asked {pynvml.NVML_CLOCK_MEM}": 3201,
    f"clock most {pynvml.NVML_CLOCK_GRAPHICS}": 1980,
    f"clock most {pynvml.NVML_CLOCK_MEM}": 3201,
    "links": LINKS,
    "link end": pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH,
    "fabric": pynvml.NVML_GPU_FABRIC_STATE_COMPLETED,
    "p2p": pynvml.NVML_P2P_STATUS_OK,
    "ancestor": pynvml.NVML_TOPOLOGY_SYSTEM,
}


class Driver:
    """Answers of NVML for GPUs of (product, bytes).

    `open` counts who asked for it and did not hand it back. `used` is bytes in use by GPU; `reasons` are bits of why clocks
    are lowered, of one look after the other, the last one again and again. `answers` are NVML's own of how boards are built and
    set, by the name of the call and the number of the GPU, None where it is not supported: at first those of SXM boards on
    NVSwitch.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *gpus: tuple[str, int]) -> None:
        self.open = 0
        self.used: dict[int, int] = {}
        self.reasons: list[int] = [0]
        self.answers: dict[str, dict[int, Any]] = {
            name: dict.fromkeys(range(len(gpus)), answer) for name, answer in SXM.items()
        }
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
            "nvmlSystemGetCudaDriverVersion_v2": lambda: 12080,
            "nvmlDeviceGetApplicationsClock": lambda handle, kind: self._answer(f"clock asked {kind}", handle),
            "nvmlDeviceGetMaxClockInfo": lambda handle, kind: self._answer(f"clock most {kind}", handle),
            "nvmlDeviceGetNvLinkState": self._link,
            "nvmlDeviceGetNvLinkRemoteDeviceType": lambda handle, link: self._answer("link end", handle),
            "nvmlDeviceGetGpuFabricInfo": self._fabric,
            "nvmlDeviceGetP2PStatus": lambda one, other, kind: self._answer("p2p", one),
            "nvmlDeviceGetTopologyCommonAncestor": lambda one, other: self._answer("ancestor", one),
            **{name: functools.partial(self._answer, name) for name in SXM if name.startswith("nvml")},
        }.items():
            monkeypatch.setattr(pynvml, name, answer)

    def _init(self) -> None:
        self.open += 1

    def _shutdown(self) -> None:
        self.open -= 1

    def _answer(self, name: str, handle: int) -> Any:
        answer = self.answers[name][handle]
        if answer is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return answer

    def _link(self, handle: int, link: int) -> int:
        up = self._answer("links", handle)
        if link >= LINKS:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return int(link < up)

    def _fabric(self, handle: int, found: Any) -> int:
        found._obj.state = self._answer("fabric", handle)  # what ctypes.byref points to
        return int(pynvml.NVML_SUCCESS)

    def _reasons(self, handle: int) -> int:
        return self.reasons.pop(0) if len(self.reasons) > 1 else self.reasons[0]
