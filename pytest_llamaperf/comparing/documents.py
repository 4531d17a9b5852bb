"""A comparison as JSON: everything, in base units."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from pytest_llamaperf.comparing.comparison import Comparison, Missing, Unlike
from pytest_llamaperf.comparing.judging import Compared
from pytest_llamaperf.comparing.likeness import Difference
from pytest_llamaperf.comparing.pairing import Build
from pytest_llamaperf.observations import Observation

# 1: before, after, conclusion, counts, compared, unlike, missing, added.
SCHEMA = 1


def document(comparison: Comparison) -> dict[str, object]:
    """`loss` is relative, positive for worse; `change` is of the value as it stands."""
    return {
        "schema": SCHEMA,
        "before": _build(comparison.before),
        "after": _build(comparison.after),
        "conclusion": comparison.conclusion,
        "counts": dict(comparison.counts),
        "culprits": [{"kind": c.kind, "cases": len(c.moves), "slower": c.of} for c in comparison.culprits],
        "compared": [_compared(each) for each in comparison.compared],
        "unlike": [_unlike(each) for each in comparison.unlike],
        "missing": [_missing(each) for each in comparison.missing],
        "added": [_missing(each) for each in comparison.added],
    }


def _build(build: Build) -> dict[str, object]:
    observations = build.observations
    return {
        "name": build.name,
        "versions": sorted({one.version for one in observations if one.version}),
        "sources": sorted({one.source for one in observations}),
        "runs": sorted({one.run for one in observations}),
    }


def _compared(each: Compared) -> dict[str, object]:
    after = each.after
    return {
        "case": each.case,
        "metric": each.metric,
        "unit": after.unit,
        "better": after.better,
        "source": after.source,
        "before": _number(each.before.value),
        "after": _number(after.value),
        "change": None if each.loss is None else _number(after.value / each.before.value - 1),
        "loss": each.loss,
        "low": each.low,
        "high": each.high,
        "outcome": each.outcome.value,
        "reason": each.reason,
        "allowed": _differences(each.allowed),
        "operators": [
            {
                "iteration": phase.name,
                "before": phase.before,
                "after": phase.after,
                "moved": [{"kind": m.kind, "before": m.before, "after": m.after} for m in phase.moves],
                "not_blamed": list(phase.aside),
            }
            for phase in each.phases
        ],
    }


def _unlike(each: Unlike) -> dict[str, object]:
    before, after = _number(each.pair.before.value), _number(each.pair.after.value)
    return {
        **_named(each.pair.after),
        "before": before,
        "after": after,
        "differences": _differences((*each.differences, *each.allowed)),
    }


def _missing(each: Missing) -> dict[str, object]:
    return {**_named(each.observation), "why": each.why}


def _named(observation: Observation) -> dict[str, Any]:
    return {"case": observation.case, "metric": observation.metric}


def _differences(differences: Iterable[Difference]) -> list[dict[str, object]]:
    return [{"field": each.field, "before": each.before, "after": each.after} for each in differences]


def _number(value: float) -> float | None:
    """What is no number is not JSON; its verdict says that it is none."""
    return value if math.isfinite(value) else None
