"""How long engines took, told with the run, and what later runs make of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from engine_sessions import Folder
from hypothesis import given
from hypothesis import strategies as st

from pytest_llamaperf.account import Activity, EngineUse, Ledger, account_lines
from pytest_llamaperf.cases import Case
from pytest_llamaperf.catalog import case_of_key
from pytest_llamaperf.engines import EngineSpec
from pytest_llamaperf.gates import Decision
from pytest_llamaperf.hosting.durations import MOST, Durations
from pytest_llamaperf.hosting.phases import FLOORS, LEAST_LEARNED, Deadlines, Phase
from pytest_llamaperf.runs import RunHeader, read_durations, run_document

KEY = "tensorrt-llm/llama-3.1-405b/modelopt-fp8/tp8/max-throughput-128-128"


def case(hardware: str = "h200", key: str = KEY) -> Case:
    return case_of_key(hardware, key)


def learned(given: Deadlines = Deadlines(), **took: list[float]) -> Deadlines:  # noqa: B008  # frozen
    durations = Durations()
    durations.learn({"engine": took}, "out/run.json")
    return durations.deadlines("engine", given)


def test_a_deadline_is_three_times_what_nearly_all_took() -> None:
    found = learned(load=[700.0, 900.0, 800.0], run=[200.0, 210.0, 400.0], close=[30.0, 31.0, 32.0])

    assert (found.load, found.run, found.close) == (2700.0, 1200.0, 96.0)
    assert found.origin(Phase.RUN) == (
        "learned from out/run.json: 3 times the 400 s that is the 99th percentile of 3 earlier openings, and 300 s at least"
    )


def test_the_floor_the_default_and_what_somebody_asked_for() -> None:
    quick = learned(load=[1.0] * 3, run=[1.0] * 3, close=[0.1] * 3)
    assert {phase: quick.of(phase) for phase in Phase} == FLOORS

    few = learned(run=[1000.0] * (LEAST_LEARNED - 1))
    assert (few.run, few.origin(Phase.RUN)) == (Deadlines().run, "the default")

    asked = learned(Deadlines.parse("run=20"), run=[1000.0] * 3, load=[1000.0] * 3)
    assert (asked.run, asked.origin(Phase.RUN), asked.load) == (20.0, "from llamaperf_deadlines", 3000.0)


@given(st.lists(st.floats(0, 1e6), min_size=LEAST_LEARNED, max_size=50))
def test_no_deadline_is_below_three_times_what_all_took(took: list[float]) -> None:
    for phase in Phase:
        found = learned(**{phase.value: took}).of(phase)
        assert found == max(FLOORS[phase], 3 * max(took))


def test_durations_go_from_run_to_run_and_the_oldest_are_forgotten() -> None:
    told = {"engine": {"load": [float(n) for n in range(MOST)]}}
    durations = Durations()
    durations.learn(json.loads(json.dumps(told)), "out/run.json")
    durations.add("engine", {Phase.LOAD: 500.0, Phase.CLOSE: 1.0})
    durations.add("other", {Phase.RUN: 2.0})

    after = durations.to_dict()

    assert after["engine"]["load"] == [*map(float, range(1, MOST)), 500.0]
    assert after["engine"]["close"] == [1.0]
    assert after["other"] == {"run": [2.0]}
    # What this session took decides about later ones only.
    assert durations.deadlines("other", Deadlines()) == Deadlines()


@pytest.mark.parametrize(
    "told",
    [[], {"e": 1}, {"e": {"load": 1}}, {"e": {"fly": [1]}}, {"e": {"load": ["x"]}}, {"e": {"load": [-1]}}, {"e": {"load": ["nan"]}}],
)  # fmt: skip
def test_what_are_no_durations_is_refused(told: object) -> None:
    with pytest.raises((AttributeError, TypeError, ValueError)):
        Durations().learn(told, "")  # type: ignore[arg-type]  # as it may stand in a file


def test_engines_of_other_limits_are_other_engines() -> None:
    short, long = (EngineSpec.of(case(key=KEY.replace("128-128", lengths))) for lengths in ("128-128", "20000-2000"))

    assert str(short) == str(long)
    assert short.key != long.key


def test_the_account_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 3600.0, 3700.0, 4420.0, 7200.0])
    monkeypatch.setattr("pytest_llamaperf.account.time.monotonic", lambda: next(clock))
    ledger = Ledger()
    holding = ledger.hold(EngineSpec.of(case()))
    with holding.doing(Activity.LOAD):
        pass
    with holding.doing(Activity.MEASURED):
        pass
    holding.end()
    holding.end()

    (use,) = ledger.uses

    assert (use.gpus, use.held) == (8, 7200.0)
    assert use.hours() == {"load": 8.0, "measured": 1.6, "idle": pytest.approx(6.4)}
    assert EngineUse.from_dict(json.loads(json.dumps(use.to_dict()))) == use
    assert account_lines([use]) == [
        "GPU-hours held by engines: 16.00",
        "  h200/tensorrt-llm/llama-3.1-405b/modelopt-fp8/tp8: 16.00 in 1 opening: load 8.00, measured 1.60, idle 6.40",
    ]


def test_of_a_cpu_it_is_processors_and_says_so() -> None:
    use = EngineUse("cpu/torch/smollm2-135m/bf16/tp2", "cpu", 2, 3600.0, {"load": 1800.0})

    assert (
        account_lines([use])[0] == "processor-hours (a processor for each rank; no GPU was used) held by engines: 2.00"
    )
    assert account_lines([]) == []


SUITE = """
import pytest
from pytest_llamaperf import OUTPUT_THROUGHPUT

@pytest.mark.cases(model="smollm2-135m@random@layers=1", hardware="cpu", recipe="fp32", layout="tp1", workload="max-throughput-16-8")
def test_speed(case, measure, baseline):
    baseline.check(measure(case), OUTPUT_THROUGHPUT)
"""


def test_a_real_engine_gives_account_and_the_next_run_learns_from_it(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write(test_suite=SUITE)
    folder.run("--gpu=cpu", "--restarts=3", "--rounds=1", "--results=out")
    document = folder.run_json()

    assert [use["engine"] for use in document["engines"]] == ["cpu/torch/smollm2-135m@random@layers=1/fp32/tp1"] * 3
    for use in document["engines"]:
        assert set(use["spent"]) == {"load", "warm up", "measured", "close"}
        assert 0 < sum(use["spent"].values()) <= use["held"]
    ((engine, durations),) = document["durations"].items()
    assert {phase: len(took) for phase, took in durations.items()} == {"load": 3, "run": 3, "close": 3}

    # As if it had been slow: the next engine has that much time, and a hang says why.
    document["durations"][engine]["run"] = [150.0] * 3
    del document["checksum"]
    (folder.path / "out" / "run.json").write_text(json.dumps(document))
    assert read_durations(folder.path / "out", document["run"]["fingerprint"])[0] == document["durations"]
    folder.write(
        conftest="import pytest_llamaperf.hosting.phases as phases\n"
        "phases.FLOORS[phases.Phase.RUN] = 0.001\nphases.MARGIN = 1e-5\n"
    )
    result = folder.run("--gpu=cpu", "--restarts=1", "--rounds=1", "--results=out", "-rf")

    result.stdout.fnmatch_lines(
        [
            "*the engine hangs (run): 'run' took longer than 0.0015 s (learned from out/run.json: 1e-05 times the 150 s *)"
        ]
    )


@pytest.mark.parametrize(
    ("changes", "learned"),
    [({}, True), ({"driver": "580"}, True), ({"processor": "a slow CPU"}, False), ({"cores": 2}, False)],
)
def test_what_another_machine_took_teaches_nothing(tmp_path: Path, changes: dict[str, Any], learned: bool) -> None:
    """A folder may be shared, or be moved: three times what a fast machine took is a hang on no slow one."""
    machine = {"processor": "a CPU", "cores": 96, "driver": "570", "gpus": []}
    took = {"cpu/torch/m/bf16/tp1": {"run": [1.0, 1.0, 1.0]}}
    header = RunHeader("8a1c", "2026-11-22T10:00:00Z", "cpu", "torch", fingerprint=machine)
    document = run_document(header, [], Decision(("nothing was judged",)), durations=took)
    (tmp_path / "run.json").write_text(json.dumps(document))

    assert read_durations(tmp_path, {**machine, **changes})[0] == (took if learned else {})


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"schema": 1, "durations": 5}'])
def test_durations_that_cannot_be_read_leave_the_defaults(tmp_path: Path, content: str) -> None:
    folder = Folder(tmp_path)
    folder.write(test_suite="def test_it(): pass")
    (folder.path / "out").mkdir()
    (folder.path / "out" / "run.json").write_text(content)

    assert folder.run("--gpu=cpu", "--results=out").ret == 0
    assert folder.run_json()["durations"] == {}
