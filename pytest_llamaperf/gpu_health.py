"""What a driver told of GPUs while they worked: samples, and what they amount to for a measurement."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

# Bits of NVML's clocks event reasons, which its ABI fixes: why clocks are lower than they could be.
REASONS: Mapping[int, str] = {
    0x001: "idle",
    0x002: "application clocks",
    0x004: "power limit",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "software thermal slowdown",
    0x040: "hardware thermal slowdown",
    0x080: "hardware power brake",
    0x100: "display clocks",
}


@dataclass(frozen=True)
class Sample:
    """One look at one GPU.

    at         seconds since its watch began
    gpu        its number, as the driver counts
    sm_clock, memory_clock   MHz, the unit of all of NVIDIA's tools
    reasons    bits of REASONS
    temperature, power       degrees Celsius, watts
    used       bytes of its memory in use
    processes  those that compute on it, by number, and the bytes each holds

    None is what this GPU, or this driver, does not tell.
    """

    at: float
    gpu: int
    sm_clock: int
    memory_clock: int | None
    reasons: int
    temperature: int | None
    power: float | None
    used: int
    processes: Mapping[int, int | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Spread:
    """Of readings in the order of their values."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, readings: Iterable[float | None]) -> Spread | None:
        """None where nothing was told."""
        told = [reading for reading in readings if reading is not None]
        return cls(min(told), statistics.median(told), max(told)) if told else None


@dataclass(frozen=True)
class GpuReadings:
    """Of one GPU in all rounds of a measurement, in the units of Sample; `reasons` are the looks at which each was given."""

    gpu: int
    uuid: str | None
    sm_clock: Spread | None
    memory_clock: Spread | None
    temperature: Spread | None
    power: Spread | None
    used: Spread | None
    reasons: Mapping[str, int]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GpuReadings:
        """Raises TypeError for what is none."""
        spreads = {name: Spread(**data[name]) for name in _SPREADS if data.get(name)}
        return cls(**{**data, **spreads})


@dataclass(frozen=True)
class Health:
    """How the GPUs did during a measurement.

    blind         why nobody can tell, None where somebody looked; a gate takes no result that was measured blind
    looks         at each of the GPUs
    lock_clocks   MHz that SM clocks were locked at, None where they were left alone
    trace         the file of all samples, within the folder of results; `trace_problem` is why it is not complete
    """

    blind: str | None
    looks: int = 0
    gpus: tuple[GpuReadings, ...] = ()
    lock_clocks: int | None = None
    trace: str | None = None
    trace_problem: str | None = None

    def beside(self, other: Health | None) -> Health:
        """Of a value made of two measurements: whether either was blind. The rest stands with each."""
        return Health(self.blind or (other.blind if other else None))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Health:
        """Raises KeyError or TypeError for what is none."""
        readings = tuple(GpuReadings.from_dict(each) for each in data["gpus"])
        return cls(**{**data, "gpus": readings})


_SPREADS = ("sm_clock", "memory_clock", "temperature", "power", "used")


def readings(samples: Sequence[Sample], uuids: Mapping[int, str]) -> tuple[GpuReadings, ...]:
    """What samples amount to, for each GPU in the order of their numbers."""
    by_gpu: dict[int, list[Sample]] = {}
    for sample in samples:
        by_gpu.setdefault(sample.gpu, []).append(sample)
    return tuple(
        GpuReadings(
            gpu,
            uuids.get(gpu),
            Spread.of(s.sm_clock for s in found),
            Spread.of(s.memory_clock for s in found),
            Spread.of(s.temperature for s in found),
            Spread.of(s.power for s in found),
            Spread.of(s.used for s in found),
            dict(Counter(name for s in found for name in reason_names(s.reasons))),
        )
        for gpu, found in sorted(by_gpu.items())
    )


def reason_names(bits: int) -> list[str]:
    """Names of REASONS; a bit that is newer than they are is its number."""
    return [REASONS.get(1 << place, hex(1 << place)) for place in range(bits.bit_length()) if bits >> place & 1]
