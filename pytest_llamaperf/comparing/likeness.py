"""In what do two results differ, beyond the version that the comparison is about?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_llamaperf.measurements import Source
from pytest_llamaperf.observations import RUNTIME, Observation

# Packages that make the numbers, or ask the questions, rather than being under test.
INSTRUMENTS = ("aiconfigurator-core", "lm_eval")

# May be allowed to differ, but then nothing is concluded: a change may be all theirs.
KINDS = ("source", "harness")

# Without these there is no change to speak of.
NEVER = ("unit", "better")


@dataclass(frozen=True)
class Difference:
    """`before` and `after` are None where nobody says."""

    field: str
    before: Any
    after: Any


def differences(before: Observation, after: Observation) -> tuple[Difference, ...]:
    """All but versions of what is under test, in alphabetic order. Empty if the two may be compared.

    What one side does not say is a difference too. Machines matter to measurements alone: a prediction is the same on each.
    Of different sources it is not told how else they differ: a prediction has other settings than a measurement.
    """
    if _surely_alike(before, after):
        return ()
    whole = before.source == after.source
    ours, theirs = _identity(before, whole), _identity(after, whole)
    names = sorted(ours.keys() | theirs.keys())
    return tuple(Difference(n, ours.get(n), theirs.get(n)) for n in names if ours.get(n) != theirs.get(n))


def other_versions(before: Observation, after: Observation) -> Iterator[Difference]:
    """Packages that came with another build, in other versions: told, and not refused."""
    if before.versions == after.versions:
        return
    for name in sorted(before.versions.keys() | after.versions.keys()):
        ours, theirs = before.versions.get(name), after.versions.get(name)
        if ours != theirs and name not in (*RUNTIME, *INSTRUMENTS):
            yield Difference(name, ours, theirs)


def _surely_alike(before: Observation, after: Observation) -> bool:
    """Everything is equal: most pairs are, and there may be a hundred thousand of them."""
    return (
        before.case == after.case
        and before.source == after.source
        and before.harness == after.harness
        and before.unit == after.unit
        and before.better == after.better
        and before.settings == after.settings
        and before.machine == after.machine
        and all(before.versions.get(name) == after.versions.get(name) for name in INSTRUMENTS)
    )


def _instruments(observation: Observation) -> dict[str, Any]:
    return {name: version for name, version in observation.versions.items() if name in INSTRUMENTS}


def _identity(observation: Observation, whole: bool) -> dict[str, Any]:
    hardware, engine, *_ = (*observation.case.split("/"), None, None)
    found = {
        "hardware": hardware,
        "engine": engine,
        **{name: getattr(observation, name) for name in (*KINDS, *NEVER)},
    }
    if whole:
        found |= _instruments(observation)
        found |= _machine(observation.machine) if observation.source == Source.MEASURED else {}
        found |= {(f"setting {name}" if name in found else name): value for name, value in observation.settings.items()}
    return found


def _machine(machine: Mapping[str, Any]) -> dict[str, Any]:
    """GPUs by product and by board, and everything else as it stands. `problem` is about the driver's answer."""
    found = {name: value for name, value in machine.items() if name not in ("gpus", "problem")}
    if gpus := machine.get("gpus"):
        products = Counter(str(gpu["product"]) for gpu in gpus)
        found["GPUs"] = ", ".join(f"{count} x {product}" for product, count in sorted(products.items()))
        found["GPU boards"] = ", ".join(sorted(str(gpu["uuid"]) for gpu in gpus))
    return found
