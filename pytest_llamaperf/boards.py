"""How a GPU is built, set and connected, as the driver (NVML) tells it. What it does not tell of a board is None."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

MEGA = 1_000_000


@dataclass(frozen=True)
class Board:
    """Clocks in hertz, power in watts.

    clock_asked   application clocks; clocks locked by `nvidia-smi -lgc` are told by no call of NVML
    nvlinks       how many are up, and `nvlink_ends` what they lead to: `switches`, `GPUs`
    fabric        of GPUs with NVSwitch: `completed`, `in progress`, `not started`
    """

    part_number: str | None = None
    brand: str | None = None
    power_limit: float | None = None
    power_limit_default: float | None = None
    clock_asked: int | None = None
    memory_clock_asked: int | None = None
    clock_most: int | None = None
    memory_clock_most: int | None = None
    ecc: bool | None = None
    mig: bool | None = None
    persistence: bool | None = None
    nvlinks: int | None = None
    nvlink_ends: str | None = None
    fabric: str | None = None


def board_of(handle: Any) -> Board:
    """Raises NVMLError_GpuIsLost; whatever else the driver has no answer to is None."""
    import pynvml as nvml

    graphics, memory = nvml.NVML_CLOCK_GRAPHICS, nvml.NVML_CLOCK_MEM
    links = _links(handle)
    return Board(
        part_number=_asked(nvml.nvmlDeviceGetBoardPartNumber, handle, read=_text),
        brand=_asked(nvml.nvmlDeviceGetBrand, handle, read=_brand),
        power_limit=_asked(nvml.nvmlDeviceGetEnforcedPowerLimit, handle, read=_watts),
        power_limit_default=_asked(nvml.nvmlDeviceGetPowerManagementDefaultLimit, handle, read=_watts),
        clock_asked=_asked(nvml.nvmlDeviceGetApplicationsClock, handle, graphics, read=_hertz),
        memory_clock_asked=_asked(nvml.nvmlDeviceGetApplicationsClock, handle, memory, read=_hertz),
        clock_most=_asked(nvml.nvmlDeviceGetMaxClockInfo, handle, graphics, read=_hertz),
        memory_clock_most=_asked(nvml.nvmlDeviceGetMaxClockInfo, handle, memory, read=_hertz),
        ecc=_asked(nvml.nvmlDeviceGetEccMode, handle, read=_now),
        mig=_asked(nvml.nvmlDeviceGetMigMode, handle, read=_now),
        persistence=_asked(nvml.nvmlDeviceGetPersistenceMode, handle, read=bool),
        nvlinks=None if links is None else sum(links.values()),
        nvlink_ends=_ends(handle, links or {}),
        fabric=_asked(_fabric, handle),
    )


def topology(handles: Mapping[int, Any]) -> dict[str, str]:
    """Between each two GPUs, `0-1` by their numbers: `NVLink`, or how far PCIe has to go; nothing of a GPU that is lost."""
    import pynvml as nvml

    ways = {
        nvml.NVML_TOPOLOGY_INTERNAL: "one board",
        nvml.NVML_TOPOLOGY_SINGLE: "one PCIe switch",
        nvml.NVML_TOPOLOGY_MULTIPLE: "PCIe switches",
        nvml.NVML_TOPOLOGY_HOSTBRIDGE: "PCIe host bridge",
        nvml.NVML_TOPOLOGY_NODE: "one NUMA node",
        nvml.NVML_TOPOLOGY_SYSTEM: "between NUMA nodes",
    }
    found = {}
    for (one, ours), (other, theirs) in combinations(sorted(handles.items()), 2):
        with contextlib.suppress(nvml.NVMLError_GpuIsLost):
            status = _asked(nvml.nvmlDeviceGetP2PStatus, ours, theirs, nvml.NVML_P2P_CAPS_INDEX_NVLINK)
            if status == nvml.NVML_P2P_STATUS_OK:
                found[f"{one}-{other}"] = "NVLink"
            elif (way := _asked(nvml.nvmlDeviceGetTopologyCommonAncestor, ours, theirs)) in ways:
                found[f"{one}-{other}"] = ways[way]
    return found


def cuda_version() -> str | None:
    """`12.8`: the newest CUDA that the driver runs. NVML must be open."""
    import pynvml as nvml

    number = _asked(nvml.nvmlSystemGetCudaDriverVersion_v2)
    return None if number is None else f"{number // 1000}.{number % 1000 // 10}"


def _asked(call: Callable[..., Any], *arguments: Any, read: Callable[[Any], Any] = lambda answer: answer) -> Any:
    """None where the driver or the board has no answer."""
    import pynvml as nvml

    try:
        return read(call(*arguments))
    except nvml.NVMLError_GpuIsLost:
        raise
    except nvml.NVMLError:
        return None


def _links(handle: Any) -> dict[int, bool] | None:
    """Whether each NVLink is up, by its number; None where the board has none that it tells of."""
    import pynvml as nvml

    states = {link: _asked(nvml.nvmlDeviceGetNvLinkState, handle, link) for link in range(nvml.NVML_NVLINK_MAX_LINKS)}
    return {link: bool(state) for link, state in states.items() if state is not None} or None


def _ends(handle: Any, links: Mapping[int, bool]) -> str | None:
    import pynvml as nvml

    words = {nvml.NVML_NVLINK_DEVICE_TYPE_SWITCH: "switches", nvml.NVML_NVLINK_DEVICE_TYPE_GPU: "GPUs"}
    kinds = {_asked(nvml.nvmlDeviceGetNvLinkRemoteDeviceType, handle, link) for link, up in links.items() if up}
    return ", ".join(sorted(words[kind] for kind in kinds if kind in words)) or None


def _fabric(handle: Any) -> str | None:
    import pynvml as nvml

    said = nvml.c_nvmlGpuFabricInfo_t()
    nvml.nvmlDeviceGetGpuFabricInfo(handle, ctypes.byref(said))
    return {
        nvml.NVML_GPU_FABRIC_STATE_COMPLETED: "completed",
        nvml.NVML_GPU_FABRIC_STATE_IN_PROGRESS: "in progress",
        nvml.NVML_GPU_FABRIC_STATE_NOT_STARTED: "not started",
    }.get(said.state)


def _brand(number: int) -> str | None:
    """`NVIDIA`, `TESLA`: by NVML's own names, of which two may be of one number; the first, then."""
    import pynvml as nvml

    if number == nvml.NVML_BRAND_UNKNOWN:
        return None
    names = (name for name in sorted(dir(nvml)) if name.startswith("NVML_BRAND_"))
    return next((name.removeprefix("NVML_BRAND_") for name in names if getattr(nvml, name) == number), str(number))


def _text(answer: Any) -> str | None:
    return str(answer) or None


def _watts(milliwatts: int) -> float:
    return milliwatts / 1000


def _hertz(megahertz: int) -> int:
    return megahertz * MEGA


def _now(modes: Any) -> bool:
    """Of a mode now, and after the next reset."""
    return bool(modes[0])
