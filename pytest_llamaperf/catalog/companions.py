"""How far a healthy recipe may be from BF16 in what it expects of a fixed text."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from pytest_llamaperf.cases import Model, Recipe
from pytest_llamaperf.documents import Section, read_document

_FILE = Path(__file__).parent / "companions.yaml"
_DEFAULT = "default"


@dataclass(frozen=True)
class CompanionLimits:
    """What `accuracy.companions` may find at most, and of agreement at least; companions.yaml says where from.

    divergence and loss in nats per token, agreement as a share of tokens.
    """

    divergence: float
    agreement: float
    loss: float


def companion_limits(model: Model, recipe: Recipe) -> CompanionLimits:
    """Of a model, of a variant `NAME@...` those of NAME; the default where nothing was measured for it."""
    limits = _limits()
    ours = limits.get(model.name.partition("@")[0], {})
    return ours.get(recipe.name) or limits[_DEFAULT].get(recipe.name) or limits[_DEFAULT][_DEFAULT]


@functools.cache
def _limits() -> Mapping[str, Mapping[str, CompanionLimits]]:
    return {
        model: {recipe: _entry(entry) for recipe, entry in section.sections()}
        for model, section in read_document(_FILE).sections()
    }


def _entry(entry: Section) -> CompanionLimits:
    entry.only(*(field.name for field in fields(CompanionLimits)))
    agreement = entry.number("agreement", least=0)
    if agreement > 1:
        raise entry.error("'agreement' is a share, from 0 to 1", key="agreement")
    return CompanionLimits(entry.number("divergence", least=0), agreement, entry.number("loss", least=0))
