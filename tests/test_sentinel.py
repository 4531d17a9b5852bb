"""A machine that is not what it was is found out before anything is concluded from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from engine_sessions import Folder

from pytest_llamaperf.engines import Surroundings
from pytest_llamaperf.hosting.failures import EngineFailure, FailureKind
from pytest_llamaperf.hosting.phases import Deadlines
from pytest_llamaperf.sentinel import CPU_TOLERANCE, Sentinel, cpu_probe, gpu_probe


def probe(*loops: float, copy: float = 0.01) -> Iterator[Mapping[str, float]]:
    """Seconds of a loop at every look, the last one again and again."""
    while True:
        loop, *loops = loops if len(loops) > 1 else (*loops, *loops)  # type: ignore[assignment]
        yield {"a loop": loop, "a copy": copy}


def sentinel(*loops: float, patience: float = 0.05) -> Sentinel:
    looks = probe(*loops)
    return Sentinel(lambda: next(looks), 1.5, patience=patience)


def test_a_steady_machine_passes_and_its_best_is_the_yardstick() -> None:
    steady = sentinel(0.010, 0.014, 0.008, 0.0119)

    for _ in range(4):
        steady.check()


def test_a_machine_that_slowed_down_is_not_fit_and_says_by_how_much() -> None:
    slowed = sentinel(0.010, 0.016)
    slowed.check()

    with pytest.raises(
        EngineFailure,
        match=r"a loop, a fixed piece of work, takes 1\.60 times as long as at best .*\(16 ms\); up to 1\.5",
    ) as caught:
        slowed.check()

    assert caught.value.kind is FailureKind.UNSTABLE


def test_a_machine_that_calms_down_in_time_is_waited_for() -> None:
    calming = sentinel(0.010, 0.016, 0.016, 0.010, patience=5.0)
    calming.check()

    calming.check()


def test_the_probes_measure_work_that_takes_time(tmp_path: Path) -> None:
    surroundings = Surroundings(Deadlines(), tmp_path, lambda text, done, total: None)

    for found in (cpu_probe(), gpu_probe(surroundings, "cpu")):
        assert len(found) == 2
        assert all(1e-6 < seconds < 5 for seconds in found.values())


def test_a_probe_of_gpus_where_there_are_none_is_an_error(tmp_path: Path) -> None:
    surroundings = Surroundings(dataclasses.replace(Deadlines(), load=60.0), tmp_path, lambda text, done, total: None)

    with pytest.raises(EngineFailure, match="torch sees no GPU"):
        gpu_probe(surroundings)


SUITE = """
import pytest
from pytest_llamaperf import OUTPUT_THROUGHPUT

@pytest.mark.cases(
    model="smollm2-135m", recipe="bf16", layout="tp1", hardware="cpu", workload="max-throughput-16-8", engine="torch"
)
def test_speed(case, measure, baseline):
    baseline.check(measure(case), OUTPUT_THROUGHPUT)
"""

# Like FAKE of engine_sessions, with a machine that slows down after so many looks, for good or for a while.
CONFTEST = """
from pytest_llamaperf import sentinel
from test_against_engine import Engine  # which has a steady machine; here it is another

looks = 0

def probe():
    global looks
    looks += 1
    return {"a loop": 0.03 if FROM <= looks < UNTIL else 0.01}

sentinel.cpu_probe = probe
sentinel.PATIENCE = 0.01

def pytest_llamaperf_engines():
    return {"torch": Engine}
"""


@pytest.mark.parametrize(("slow", "passed"), [((2, 4), True), ((2, 10**6), False)], ids=["for a moment", "for good"])
def test_builds_on_a_machine_that_is_not_fit_are_an_error_and_no_verdict(
    tmp_path: Path, slow: tuple[int, int], passed: bool
) -> None:
    import sys

    from test_against import CONFTEST as ENGINE

    folder = Folder(tmp_path)
    (folder.path / "old.yaml").write_text(f"name: release 1.1\npython: {sys.executable}\n")
    folder.write(
        test_suite=SUITE,
        test_against_engine="GIVEN = (0.0, 8, None)\n" + ENGINE,
        conftest=f"FROM, UNTIL = {slow!r}\n{CONFTEST}",
    )

    result = folder.run("--gpu=cpu", "--against=old.yaml", "--results=out", "--rounds=1", "test_suite.py")

    (found,) = folder.run_json()["results"]
    if passed:
        assert found["outcome"] == "pass"
    else:
        result.assert_outcomes(failed=1)
        assert found["outcome"] == "error"
        result.stdout.fnmatch_lines(
            ["*the machine was not fit to measure on*a loop, a fixed piece of work, takes 3.00*"]
        )
        assert CPU_TOLERANCE < 3
