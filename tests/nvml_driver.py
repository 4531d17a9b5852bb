"""A driver of GPUs that answers as it is told, or as was recorded of another one."""

from __future__ import annotations

import functools
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
from engine_sessions import wait_for

from pytest_llamaperf.gpu_health import Sample
from pytest_llamaperf.gpu_watch import watching
from pytest_llamaperf.gpu_watch.watching import THREAD

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


# Looks of whoever watches while an engine works, by GPU.
LOOKS: Counter[int] = Counter()


class Driver:
    """Answers of NVML for GPUs of (product, bytes).

    `open` counts who asked for it and did not hand it back. `used` is bytes in use by GPU; `reasons` are bits of why clocks
    are lowered, of one look after the other, the last one again and again. `clocks` are MHz of SM and memory by GPU, and
    `processes` number and bytes of those that compute on a GPU. `locked` are MHz that clocks are locked at, by GPU.
    `answers` are NVML's own of how boards are built and set, by the name of the call and the number of the GPU, None where it is
    not supported: at first those of SXM boards on NVSwitch.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *gpus: tuple[str, int]) -> None:
        self.open = 0
        self.used: dict[int, int] = {}
        self.reasons: list[int] = [0]
        self.answers: dict[str, dict[int, Any]] = {
            name: dict.fromkeys(range(len(gpus)), answer) for name, answer in SXM.items()
        }
        self.clocks: dict[int, tuple[int, int]] = {}
        self.processes: dict[int, dict[int, int | None]] = {}
        self.locked: dict[int, int] = {}
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(watching, "look", _counted(watching.look))
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
            "nvmlDeviceGetClockInfo": lambda handle, kind: self.clocks.get(handle, (1980, 3201))[
                0 if kind == pynvml.NVML_CLOCK_SM else 1
            ],
            "nvmlDeviceGetTemperature": lambda handle, sensor: 41,
            "nvmlDeviceGetPowerUsage": lambda handle: 412_300,
            "nvmlDeviceGetComputeRunningProcesses": lambda handle: [
                SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.processes.get(handle, {}).items()
            ],
            "nvmlDeviceSetGpuLockedClocks": self._lock,
            "nvmlDeviceResetGpuLockedClocks": lambda handle: self.locked.pop(handle, None),
        }.items():
            monkeypatch.setattr(pynvml, name, answer)

    def fail(self, name: str, error: int, *, gpu: int | None = None, after: int = 0) -> None:
        """From its call number `after` on, that call fails, of one GPU or of all."""
        answer = getattr(pynvml, name)
        calls = 0

        def failing(*arguments: Any) -> Any:
            nonlocal calls
            if gpu is None or arguments[0] == gpu:
                calls += 1
                if calls > after:
                    raise pynvml.NVMLError(error)
            return answer(*arguments)

        self._monkeypatch.setattr(pynvml, name, failing)

    def play(self, recording: Path) -> None:
        """Answer as the samples of a file, which `--results` kept of a session with GPUs, one after the other.

        The last one goes on. What was seen in between nobody knows: a sample holds until the next look.
        """
        looks = [{sample["gpu"]: sample for sample in samples} for samples in recorded(recording)]
        current = 0
        asked: set[int] = set()

        def of(handle: int) -> Mapping[str, Any]:
            return looks[min(current, len(looks) - 1)][handle]

        def clock(handle: int, kind: int) -> int:
            # The clock is what a look asks first: who asks it again of the same GPU looks again.
            nonlocal current
            if kind == pynvml.NVML_CLOCK_SM:
                if handle in asked:
                    asked.clear()
                    current += 1
                asked.add(handle)
            return int(of(handle)["sm_clock" if kind == pynvml.NVML_CLOCK_SM else "memory_clock"])

        total = pynvml.nvmlDeviceGetMemoryInfo(0).total
        for name, answer in {
            "nvmlDeviceGetClockInfo": clock,
            "nvmlDeviceGetCurrentClocksEventReasons": lambda handle: of(handle)["reasons"],
            "nvmlDeviceGetTemperature": lambda handle, sensor: of(handle)["temperature"],
            "nvmlDeviceGetPowerUsage": lambda handle: round(of(handle)["power"] * 1000),
            "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=total, free=1, used=of(handle)["used"]),
            "nvmlDeviceGetComputeRunningProcesses": lambda handle: [
                SimpleNamespace(pid=int(pid), usedGpuMemory=used) for pid, used in of(handle)["processes"].items()
            ],
        }.items():
            self._monkeypatch.setattr(pynvml, name, answer)

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

    def _lock(self, handle: int, lowest: int, highest: int) -> None:
        assert lowest == highest
        self.locked[handle] = highest


def _counted(look: Callable[..., Sample]) -> Callable[..., Sample]:
    def counted(at: float, index: int, handle: Any) -> Sample:
        LOOKS[index] += 1
        return look(at, index, handle)

    return counted


def wait_for_looks(looks: int = 10) -> None:
    """Until whoever watches a driver while an engine works has looked so often at each GPU, or has given up."""
    LOOKS.clear()
    wait_for(lambda: max(LOOKS.values(), default=0) > looks or THREAD not in {t.name for t in threading.enumerate()})


def recorded(path: Path) -> Iterator[Sequence[Mapping[str, Any]]]:
    """The looks of a file of samples: for each one the samples of all GPUs, by the names of the file's columns."""
    header, *lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if "samples" in line:
            yield [dict(zip(header["columns"], row, strict=True)) for row in line["samples"]]
