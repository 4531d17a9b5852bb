"""The history alert: silent on noise, outliers and gains, and there three nights after a step."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_llamaperf.detection.history import alert
from pytest_llamaperf.detection.readings import Cell
from pytest_llamaperf.errors import EngineError, UsageError
from pytest_llamaperf.metrics import OUTPUT_THROUGHPUT, TPOT_MEDIAN

CELL = Cell("e", "405b/tp8", OUTPUT_THROUGHPUT)


def nights(seed: int, step: float = 0.0, after: int = 3) -> list[float]:
    values = 100 * np.exp(0.01 * np.random.default_rng(seed).standard_normal(40))
    values[40 - after :] *= 1 - step
    return [float(value) for value in values]


def test_it_is_silent_on_noise_and_finds_a_step() -> None:
    assert sum(alert(CELL, nights(seed)) is not None for seed in range(1000)) <= 3
    assert sum(alert(CELL, nights(seed, 0.06)) is not None for seed in range(300)) > 240


def test_one_outlier_is_no_step_and_neither_is_a_gain() -> None:
    values = nights(1)
    assert alert(CELL, [*values[:-1], 50.0]) is None
    assert alert(CELL, nights(1, -0.2)) is None


def test_worse_is_more_where_less_is_better() -> None:
    cell = Cell("e", "c", TPOT_MEDIAN)
    assert alert(cell, nights(1, 0.2)) is None
    found = alert(cell, nights(1, -0.2))

    assert found is not None
    assert found.loss == pytest.approx(0.2, abs=0.02)
    assert "median of the last 3 against the 20 before" in str(found)


def test_short_and_impossible_histories_are_refused() -> None:
    with pytest.raises(UsageError, match="needs 23 values, there are 22"):
        alert(CELL, [100.0] * 22)
    with pytest.raises(EngineError, match="gave 0"):
        alert(CELL, [*[100.0] * 22, 0.0])


def test_a_history_without_noise_is_noticed_from_three_percent() -> None:
    assert alert(CELL, [*[100.0] * 20, *[97.5] * 3]) is None
    assert alert(CELL, [*[100.0] * 20, *[96.5] * 3]) is not None
