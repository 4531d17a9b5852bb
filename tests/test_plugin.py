"""The plugin as its users meet it: whole pytest sessions with an engine double whose speed each test chooses."""

from __future__ import annotations

import errno
import fnmatch
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

# pytester forgets what a session it runs imports first, and numpy refuses to be loaded twice.
import aiconfigurator_core  # noqa: F401
import junitparser
import pytest
import scipy.special  # noqa: F401
from click.testing import CliRunner

from pytest_llamaperf.commands import main
from pytest_llamaperf.hardware import FoundGpu, Machine
from pytest_llamaperf.records import Result

pytest_plugins = ["pytester"]

CASE = "torch/smollm2-135m/bf16/tp1/max-throughput-16-8"

# Every request of 8 tokens takes 8 / speed seconds, one after the other, so the throughput is the speed. Each restart
# takes the next speed of the list; a speed of 0 is an engine that fails.
ENGINE = """
import pytest
from pytest_llamaperf.engines import Run
from pytest_llamaperf.errors import EngineError
from pytest_llamaperf.measurements import Source
from pytest_llamaperf.traces import Trace

opened = []

class Engine:
    source = Source.MEASURED

    def __init__(self, case, speed):
        self.speed = speed
        self.open = True
        opened.append(self)

    def run(self, workload):
        if not self.speed:
            raise EngineError("worker died: signal 9")
        seconds = workload.osl / self.speed
        return Run(tuple(
            Trace(0.0, (i + 0.5) * seconds, (i + 1) * seconds, workload.isl, workload.osl)
            for i in range(workload.requests)
        ))

    def close(self):
        self.open = False

speeds = iter({speeds})

def pytest_llamaperf_engines():
    return {{"torch": lambda case: Engine(case, next(speeds))}}

def pytest_sessionfinish():
    assert not any(engine.open for engine in opened)
    print(f"opened {{len(opened)}} engines")
"""

SUITE = """
import pytest
from pytest_llamaperf import OUTPUT_THROUGHPUT

@pytest.mark.cases(
    model="smollm2-135m", recipe="bf16", layout="tp1", workload="max-throughput-16-8", hardware="cpu"
)
def test_speed(case, measure, baseline):
    baseline.check(measure(case), OUTPUT_THROUGHPUT)
"""

PREDICTED = """
import pytest
from pytest_llamaperf import OUTPUT_THROUGHPUT

@pytest.mark.cases(
    model="llama-3.1-8b", recipe="modelopt-fp8", layout=["tp1", "tp2"], workload="min-latency-128-128"
)
def test_speed(case, measure, baseline):
    baseline.check(measure(case), OUTPUT_THROUGHPUT)
"""


def promise(pytester: pytest.Pytester, value: float, tolerance: float = 0.05) -> None:
    """A measured promise for the case of SUITE."""
    folder = pytester.mkdir("baselines") / "cpu"
    folder.mkdir()
    (folder / "smollm2-135m.yaml").write_text(
        f"""schema: 1
promises:
  {CASE}:
    output_throughput: {{value: {value}, unit: tok/s, tolerance: {tolerance}, source: measured,
      recorded: {{date: "2026-11-01", version: "0.1", restarts: 3, commit: "abc1234"}}}}
"""
    )


def promise_prediction(pytester: pytest.Pytester, gpu: str = "h200", tp1: float = 100.0, tp2: float = 100.0) -> None:
    folder = pytester.mkdir("baselines") / gpu
    folder.mkdir()
    lines = [
        f"  tensorrt-llm/llama-3.1-8b/modelopt-fp8/{layout}/min-latency-128-128:\n"
        f"    output_throughput: {{value: {value}, unit: tok/s, tolerance: 0.1, source: published, reference: here}}"
        for layout, value in (("tp1", tp1), ("tp2", tp2))
    ]
    text = "\n".join(["schema: 1", "references:", "  here: made up for this test", "promises:", *lines])
    (folder / "llama-3.1-8b.yaml").write_text(text)


@pytest.fixture
def measured(pytester: pytest.Pytester) -> Any:
    """Run SUITE on an engine of the given speeds, one for each restart."""

    def run(
        *options: str, speeds: list[float] | None = None, suite: str = SUITE, own_process: bool = False
    ) -> pytest.RunResult:
        pytester.makeconftest(ENGINE.format(speeds=speeds or [100.0, 101.0, 99.0, 100.0]))
        pytester.makepyfile(suite)
        return (pytester.runpytest_subprocess if own_process else pytester.runpytest)(
            "--gpu=cpu", "--restarts=2", *options
        )

    return run


def run_json(pytester: pytest.Pytester, folder: str = "out") -> dict[str, Any]:
    document: dict[str, Any] = json.loads((pytester.path / folder / "run.json").read_text())
    return document


# --- the outcome lands on the test, with the reasons ------------------------------------------------------------


def test_a_kept_promise_passes(pytester: pytest.Pytester, measured: Any) -> None:
    promise(pytester, 100)

    measured(speeds=[100.0, 101.0]).assert_outcomes(passed=1)


def test_a_broken_promise_fails_its_test_with_promise_fact_place_and_advice(
    pytester: pytest.Pytester, measured: Any
) -> None:
    promise(pytester, 130)

    result = measured(speeds=[100.0, 101.0])

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            f"cpu/{CASE}",
            "  output_throughput: regression",
            "    promised   130.0 tok/s, so at least 123.5 tok/s (5 % tolerance)",
            "    measured   100.5 tok/s (97.34 tok/s to 103.7 tok/s), 2 restarts: -22.7 % against the promise, *",
            "    promise in *baselines/cpu/smollm2-135m.yaml:4 (measured*)",
            "    to do      find the change that cost this*",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*checking.py*")


def test_an_interval_across_the_limit_is_inconclusive_and_no_pass(pytester: pytest.Pytester, measured: Any) -> None:
    promise(pytester, 100, tolerance=0.01)

    result = measured("-rs", speeds=[95.0, 105.0])

    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*inconclusive*", "*the limit lies within the interval: run again with more*"])


def test_one_restart_is_inconclusive_however_fast(pytester: pytest.Pytester, measured: Any) -> None:
    promise(pytester, 100)

    result = measured("-rs", "--restarts=1", speeds=[1000.0])

    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*one restart does not show how much restarts differ*"])


def test_a_value_without_promise_skips_with_the_yaml_to_add_which_then_passes(
    pytester: pytest.Pytester, measured: Any
) -> None:
    result = measured("-rs", speeds=[100.0, 101.0])

    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["to promise it, write baselines/cpu/smollm2-135m.yaml:"])
    start = result.stdout.lines.index("schema: 1")
    text = "\n".join(result.stdout.lines[start : start + 5])
    for left_open, filled_in in {"<today>": "2026-11-23", "<engine version>": "0.1", "<commit>": "abc1234"}.items():
        text = text.replace(left_open, filled_in)
    folder = pytester.mkdir("baselines") / "cpu"
    folder.mkdir()
    (folder / "smollm2-135m.yaml").write_text(text)

    measured(speeds=[100.0, 101.0]).assert_outcomes(passed=1)


def test_an_engine_that_fails_is_an_error_and_never_a_regression(pytester: pytest.Pytester, measured: Any) -> None:
    promise(pytester, 100)

    result = measured("--results=out", speeds=[100.0, 0.0])

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"cpu/{CASE}", "  error, not a regression: worker died: signal 9"])
    (found,) = run_json(pytester)["results"]
    assert (found["outcome"], found["metric"], found["value"]) == ("error", None, None)


def test_a_case_is_measured_once_a_session_in_as_many_engines_as_restarts(
    pytester: pytest.Pytester, measured: Any
) -> None:
    promise(pytester, 100)
    twice = SUITE + SUITE.replace("test_speed", "test_again")

    result = measured("-s", "--restarts=3", speeds=[100.0, 101.0, 99.0], suite=twice)

    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*opened 3 engines"])


def test_the_engine_fixture_is_open_in_the_test_and_closed_after_it(pytester: pytest.Pytester, measured: Any) -> None:
    suite = SUITE.replace("case, measure, baseline", "engine, workload").replace(
        "baseline.check(measure(case), OUTPUT_THROUGHPUT)",
        "assert engine.open and len(engine.run(workload).traces) == workload.requests and workload.osl == 8",
    )

    measured(suite=suite).assert_outcomes(passed=1)


def test_an_engine_that_does_not_open_is_an_error_of_its_test(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        from pytest_llamaperf.errors import EngineError

        def broken(case):
            raise EngineError("out of memory while loading")

        def pytest_llamaperf_engines():
            return {"torch": broken}
        """
    )
    pytester.makepyfile(SUITE.replace("case, measure, baseline", "case, engine"))

    result = pytester.runpytest("--gpu=cpu", "--results=out")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"cpu/{CASE}", "  error, not a regression: out of memory while loading"])
    assert [found["outcome"] for found in run_json(pytester)["results"]] == ["error"]
    result.stdout.no_fnmatch_line("*Traceback*")


def test_predict_is_there_beside_a_measurement(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        PREDICTED.replace("measure, baseline", "predict").replace(
            "baseline.check(measure(case), OUTPUT_THROUGHPUT)",
            "run = predict(case); assert run.source == 'predicted' and run.of(OUTPUT_THROUGHPUT).value > 100",
        )
    )

    pytester.runpytest("--gpu=h200", "--engine=predicted").assert_outcomes(passed=2)


# --- the gate ----------------------------------------------------------------------------------------------------


def test_the_gate_releases_measured_passes(pytester: pytest.Pytester, measured: Any) -> None:
    promise(pytester, 100)

    result = measured("--gate", "--results=out", speeds=[100.0, 101.0])

    assert result.ret == 0
    result.stdout.fnmatch_lines(["releasable: every test is a measured pass"])
    assert run_json(pytester)["decision"]["releasable"] is True


def test_the_gate_fails_a_test_without_promise(pytester: pytest.Pytester, measured: Any) -> None:
    result = measured("--gate", speeds=[100.0, 101.0])

    assert result.ret == 1
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["not releasable: 1 reason", f"  - no-baseline: cpu/{CASE} output_throughput"])


def test_the_gate_blocks_predictions_that_keep_their_promises(pytester: pytest.Pytester) -> None:
    promise_prediction(pytester)
    pytester.makepyfile(PREDICTED)

    result = pytester.runpytest("--gpu=h200", "--engine=predicted", "--gate", "--results=out")

    assert result.ret == 1
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["not releasable: 1 reason", "  - predicted, not measured: 2 results"])
    assert run_json(pytester)["decision"]["reasons"] == ["predicted, not measured: 2 results"]


def test_the_gate_blocks_a_session_in_which_nothing_was_judged(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_nothing(): pass")

    result = pytester.runpytest("--gate")

    assert result.ret == 1
    result.stdout.fnmatch_lines(["  - nothing was judged"])


GOOD = {"speeds": [100.0, 101.0]}


@pytest.mark.parametrize(
    ("more", "options", "reason"),
    [
        ("def test_cut(): raise KeyboardInterrupt", (), "unfinished: *::test_cut"),
        ("def test_cut(): import pytest; pytest.exit('gpu lost', returncode=0)", (), "unfinished: *::test_cut"),
        ("def test_other(case): pass", ("-k", "speed"), "deselected: 1 test"),
        ("def test_forgot(case, measure): measure(case)", (), "judged nothing: *::test_forgot*"),
    ],
)
def test_the_gate_is_closed_by_what_is_not_a_judged_pass(
    pytester: pytest.Pytester, measured: Any, more: str, options: tuple[str, ...], reason: str
) -> None:
    promise(pytester, 100)
    marker = SUITE[SUITE.index("@pytest") : SUITE.index("def ")] if "case" in more else ""

    result = measured("--gate", "--results=out", *options, suite=SUITE + marker + more, own_process=True, **GOOD)

    assert result.ret != 0
    decision = run_json(pytester)["decision"]
    assert decision["releasable"] is False
    assert any(fnmatch.fnmatch(found, reason) for found in decision["reasons"])


@pytest.mark.parametrize(
    ("content", "options", "reason"),
    [
        ("import pytest; pytest.importorskip('tensorrt_llm_missing')", (), "not collected: test_more.py: *"),
        ("import tensorrt_llm_missing", ("--continue-on-collection-errors",), "not collected: test_more.py: *"),
    ],
)
def test_the_gate_is_closed_by_a_file_that_is_not_collected(
    pytester: pytest.Pytester, measured: Any, content: str, options: tuple[str, ...], reason: str
) -> None:
    promise(pytester, 100)
    (pytester.path / "test_more.py").write_text(content)

    result = measured("--gate", "--results=out", *options, **GOOD)

    assert result.ret == 1
    assert any(fnmatch.fnmatch(found, reason) for found in run_json(pytester)["decision"]["reasons"])


def test_the_gate_is_closed_by_a_promise_that_no_test_judged(pytester: pytest.Pytester, measured: Any) -> None:
    promise(pytester, 100)
    path = pytester.path / "baselines" / "cpu" / "smollm2-135m.yaml"
    path.write_text(
        path.read_text() + "    ttft_median: " + path.read_text().split("output_throughput: ")[1].replace("tok/s", "s")
    )

    result = measured("--gate", **GOOD)

    assert result.ret == 1
    result.stdout.fnmatch_lines([f"  - promised and not judged: cpu/{CASE} ttft_median"])


def test_what_a_fixture_judges_after_the_test_closes_the_gate(pytester: pytest.Pytester, measured: Any) -> None:
    suite = """
import pytest
from pytest_llamaperf import OUTPUT_THROUGHPUT

@pytest.fixture
def judged_later(case, measure, baseline):
    yield
    try:
        baseline.check(measure(case), OUTPUT_THROUGHPUT)
    except BaseException:
        pass
"""
    marker = SUITE[SUITE.index("@pytest") : SUITE.index("def ")]

    result = measured("--gate", suite=f"{suite}\n{marker}def test_speed(judged_later): pass", **GOOD)

    assert result.ret == 1
    result.stdout.fnmatch_lines([f"  - no-baseline: cpu/{CASE} output_throughput"])


def test_the_same_case_with_another_workload_is_measured_anew(pytester: pytest.Pytester, measured: Any) -> None:
    """The number of requests is no part of the id, and still another run, on the same engines."""
    suite = """
import dataclasses, pytest

def shorter(case):
    return dataclasses.replace(case, work=dataclasses.replace(case.work, requests=3))
"""
    marker = SUITE[SUITE.index("@pytest") : SUITE.index("def ")]
    body = "def test_speed(case, measure):\n    assert measure(shorter(case)) is not measure(case)"

    result = measured("-s", suite=f"{suite}\n{marker}{body}")

    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*opened 2 engines"])


def test_an_engine_that_cannot_load_is_not_loaded_again(pytester: pytest.Pytester, measured: Any) -> None:
    twice = SUITE + SUITE.replace("test_speed", "test_again")

    result = measured("-s", speeds=[0.0], suite=twice)

    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*opened 1 engines"])


def test_a_part_of_the_suite_is_not_releasable_without_the_gate_either(
    pytester: pytest.Pytester, measured: Any
) -> None:
    promise(pytester, 100)
    path = pytester.path / "baselines" / "cpu" / "smollm2-135m.yaml"
    path.write_text(path.read_text() + path.read_text().split("promises:\n")[1].replace("16-8", "16-9"))

    result = measured("--results=out", **GOOD)

    assert result.ret == 0
    assert run_json(pytester)["decision"]["releasable"] is False
    (reason,) = run_json(pytester)["decision"]["reasons"]
    assert reason == f"promised and not judged: cpu/{CASE.replace('16-8', '16-9')} output_throughput"


def test_an_engine_that_measures_may_not_give_predictions(pytester: pytest.Pytester, measured: Any) -> None:
    promise(pytester, 100)
    pytester.makeconftest(ENGINE.format(speeds=[100.0]).replace("Source.MEASURED", "Source.PREDICTED"))
    pytester.makepyfile(SUITE)

    result = pytester.runpytest("--gpu=cpu", "--gate")

    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [f"cpu/{CASE}", "*error, not a regression: the engine torch gave a result that is predicted"]
    )


def test_cases_of_other_hardware_do_not_close_the_gate(pytester: pytest.Pytester, measured: Any) -> None:
    promise(pytester, 100)
    elsewhere = PREDICTED[PREDICTED.index("@pytest") :].replace("test_speed", "test_elsewhere")

    result = measured("--gate", suite=SUITE + elsewhere, **GOOD)

    result.assert_outcomes(passed=1, deselected=2)
    assert result.ret == 0


def test_rows_are_in_the_same_order_whatever_order_the_tests_ran_in(pytester: pytest.Pytester) -> None:
    promise_prediction(pytester)
    pytester.makepyfile(PREDICTED.replace('["tp1", "tp2"]', '["tp2", "tp1"]'))

    result = pytester.runpytest("--gpu=h200", "--engine=predicted")

    result.stdout.fnmatch_lines(["modelopt-fp8  tp1 *", "modelopt-fp8  tp2 *"], consecutive=True)


def test_nobody_opens_predictions_but_the_plugin(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("def pytest_llamaperf_engines(): return {'predicted': print}")

    result = pytester.runpytest("--gpu=h200")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: pytest_llamaperf_engines: 'predicted' is the plugin's own; *"])


def test_a_retried_pass_is_no_pass(pytester: pytest.Pytester, measured: Any) -> None:
    """As pytest-rerunfailures does it: the same test runs through its phases again."""
    promise(pytester, 100)
    again = """
import pytest
from _pytest.runner import runtestprotocol

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    for attempt in range(2):
        item._initrequest()
        runtestprotocol(item, nextitem=nextitem, log=True)
    return True
"""
    pytester.makeconftest(ENGINE.format(speeds=[100.0, 101.0]) + again)
    pytester.makepyfile(SUITE)

    result = pytester.runpytest("--gpu=cpu", "--restarts=2", "--gate", "--results=out")

    assert result.ret == 1
    result.stdout.fnmatch_lines(["  - retried: *: passed at attempt 2"])
    assert len(run_json(pytester)["results"]) == 1


def test_baselines_that_are_not_there_are_a_usage_error(pytester: pytest.Pytester, measured: Any) -> None:
    result = measured("--baselines=baslines", **GOOD)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --baselines baslines: there is no such folder"])


def test_the_gate_counts_tests_that_never_ran(pytester: pytest.Pytester, measured: Any) -> None:
    promise(pytester, 100)
    interrupting = SUITE + "\ndef test_interrupts(): raise KeyboardInterrupt\n\ndef test_never_runs(): pass\n"

    result = measured("--gate", "--results=out", speeds=[100.0, 101.0], suite=interrupting, own_process=True)

    assert result.ret == pytest.ExitCode.INTERRUPTED
    decision = run_json(pytester)["decision"]
    assert decision["releasable"] is False
    assert any(reason.startswith("not run: ") for reason in decision["reasons"])


# --- files and JUnit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distribution", [(), ("-n2",)])
def test_results_are_written_as_they_come_and_as_a_whole(
    pytester: pytest.Pytester, distribution: tuple[str, ...]
) -> None:
    promise_prediction(pytester, tp1=100, tp2=9999)
    pytester.makepyfile(PREDICTED)

    result = pytester.runpytest("--gpu=h200", "--engine=predicted", "--results=out", *distribution)

    result.assert_outcomes(passed=1, failed=1)
    document = run_json(pytester)
    assert document["schema"] == 1
    assert (document["run"]["gpu"], document["run"]["engine"]) == ("h200", "predicted")
    assert document["run"]["finished"] >= document["run"]["started"]
    results = {found["case"]["id"].split("/")[4]: found for found in document["results"]}
    assert {layout: found["outcome"] for layout, found in results.items()} == {"tp1": "pass", "tp2": "regression"}
    first = results["tp1"]
    assert first["source"] == "predicted"
    assert first["values"] == [first["value"]]
    assert (first["low"], first["high"], first["unit"], first["better"]) == (None, None, "tok/s", "higher")
    assert first["baseline"]["reference"] == "made up for this test"
    assert first["case"]["workload"] == "min-latency"
    assert first["fingerprint"]["settings"]["max_batch_size"] > 0
    assert first["metrics"]["output_throughput"] == first["value"]
    assert first["metrics"]["tpot_median"] > 0
    assert {test["nodeid"]: test["outcome"] for test in document["tests"]} == {
        found["nodeid"]: "passed" if found["outcome"] == "pass" else "failed" for found in document["results"]
    }
    lines = [json.loads(line) for line in (pytester.path / "out" / "run.jsonl").read_text().splitlines()]
    assert lines[0]["run"]["id"] == document["run"]["id"]
    tests = [line["test"] for line in lines if "test" in line]
    assert {test["nodeid"] for test in tests} == {test["nodeid"] for test in document["tests"]}
    assert all(len(test["results"]) == 1 for test in tests)


@pytest.mark.parametrize("distribution", [(), ("-n2",)])
def test_junit_carries_the_results(pytester: pytest.Pytester, distribution: tuple[str, ...]) -> None:
    promise_prediction(pytester)
    pytester.makepyfile(PREDICTED)

    pytester.runpytest("--gpu=h200", "--engine=predicted", "--junitxml=junit.xml", *distribution)

    cases = ElementTree.parse(pytester.path / "junit.xml").getroot().findall(".//testcase")
    assert len(cases) == 2
    for case in cases:
        properties = {found.get("name"): found.get("value") or "" for found in case.findall(".//property")}
        assert properties["output_throughput"].startswith("pass: output_throughput predicted ")
        assert json.loads(properties["llamaperf"])["outcome"] == "pass"


def test_others_read_outcomes_and_results_from_junit(pytester: pytest.Pytester, measured: Any) -> None:
    promise(pytester, 130)
    # A value that XML cannot hold as it is, in a test that is about nothing of ours.
    other = "\ndef test_other():\n    assert '\\x1b<&>' == ']]>'\n"

    measured("--junitxml=junit.xml", "-k", "test_speed or test_other", suite=SUITE + other, speeds=[100.0, 101.0])

    file = junitparser.JUnitXml.fromfile(str(pytester.path / "junit.xml"))
    assert (file.tests, file.failures, file.errors) == (2, 2, 0)
    (suite,) = file
    speed, _ = suite
    assert speed.name == f"test_speed[cpu/{CASE}]"
    properties = {it.name: it.value for found in speed.iterchildren(junitparser.Properties) for it in found}
    assert properties["output_throughput"].startswith("regression: output_throughput measured 100.5 tok/s")
    assert Result.from_dict(json.loads(properties["llamaperf"])).values == (100.0, 101.0)
    assert speed.result[0].message.startswith("Failed: cpu/")


def test_a_summary_lies_beside_the_results_and_that_of_an_earlier_run_does_not(
    pytester: pytest.Pytester, measured: Any
) -> None:
    promise(pytester, 130)
    summary = pytester.mkdir("out") / "summary.md"
    summary.write_text("of an earlier run")

    measured("--results=out", "--collect-only")
    assert summary.read_text() == "of an earlier run"  # nothing ran
    measured("--results=out", speeds=[100.0, 101.0])

    told = summary.read_text()
    assert told.startswith("## Not releasable: 1 reason\n")
    assert f"#### regression: cpu/{CASE} output_throughput\n" in told


def test_what_was_accepted_from_a_run_is_kept_by_the_next(
    pytester: pytest.Pytester, measured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured("--results=out", speeds=[100.0, 101.0]).assert_outcomes(skipped=1)
    monkeypatch.chdir(pytester.path)

    accepted = CliRunner().invoke(main, ["accept", "out", "--reason", "the first on this machine"])

    assert accepted.exit_code == 0, accepted.output
    assert "wrote 1 promise to baselines/cpu/smollm2-135m.yaml" in accepted.stdout
    measured("--results=out", speeds=[100.0, 101.0]).assert_outcomes(passed=1)
    recorded = run_json(pytester)["results"][0]["baseline"]["recorded"]
    assert (recorded["restarts"], recorded["reason"]) == ("2", "the first on this machine")


def test_a_disk_that_fills_up_is_told_and_the_tests_go_on(
    pytester: pytest.Pytester, measured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    promise(pytester, 100)
    sync = os.fsync
    left = iter([None])  # the header still fits

    def full(descriptor: int) -> None:
        if next(left, "none") == "none":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)

    result = measured("--gate", "--results=out", speeds=[100.0, 101.0])

    result.assert_outcomes(passed=1)
    assert result.ret == 1
    lost = "ERROR: results in *out are not complete: No space left on device"
    result.stdout.fnmatch_lines(["not releasable: 1 reason", f"  - {lost}", lost])
    assert not (pytester.path / "out" / "run.json").exists()


def test_an_earlier_run_is_not_taken_for_one_that_was_cut_off(pytester: pytest.Pytester, measured: Any) -> None:
    promise(pytester, 100)
    measured("--results=out", speeds=[100.0, 101.0])
    first = run_json(pytester)["run"]["id"]
    killed = SUITE + "\ndef test_killed(): import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n"

    measured("--results=out", speeds=[100.0, 101.0], suite=killed, own_process=True)

    assert not (pytester.path / "out" / "run.json").exists()
    header, _, *_, test = (json.loads(line) for line in (pytester.path / "out" / "run.jsonl").read_text().splitlines())
    assert header["run"]["id"] != first
    assert test["test"]["results"][0]["outcome"] == "pass"


def test_nothing_is_written_unless_asked(pytester: pytest.Pytester, measured: Any) -> None:
    measured(speeds=[100.0, 101.0])

    assert not list(pytester.path.rglob("run.json*"))


def test_a_results_folder_that_cannot_be_is_a_usage_error(pytester: pytest.Pytester, measured: Any) -> None:
    (pytester.path / "out").write_text("a file is in the way")

    result = measured("--results=out")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --results *out: cannot be written: *"])


# --- the terminal --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("distribution", [(), ("-n2",)])
def test_the_table_fits_the_terminal(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, columns: int, distribution: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    promise_prediction(pytester)
    pytester.makepyfile(PREDICTED)

    result = pytester.runpytest("--gpu=h200", "--engine=predicted", "-q", *distribution)

    lines = result.stdout.lines
    start = next(n for n, line in enumerate(lines) if " llamaperf " in line)
    assert all(len(line) <= columns for line in lines[start:])
    table = "\n".join(lines[start:])
    for expected in ("llama-3.1-8b on h200", "tp1", "tp2", "100.0", "pass", "predictions, not measurements"):
        assert expected in table
    assert ("128/128" in table) == (columns > 60), "the narrowest terminal folds the names, never the numbers"


def test_other_projects_see_nothing_of_the_plugin(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_theirs(): pass")

    result = pytester.runpytest()

    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*release gate*")
    result.stdout.no_fnmatch_line("*= llamaperf =*")


# --- which cases a run is about ------------------------------------------------------------------------------------


def test_cases_of_other_hardware_are_left_out_and_counted(pytester: pytest.Pytester, measured: Any) -> None:
    result = measured(suite=PREDICTED)

    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    result.assert_outcomes(deselected=2)
    result.stdout.fnmatch_lines(
        ["llamaperf: this run is about cpu and torch; 2 cases of other hardware or engines left out (--gpu h200 *)"]
    )


def test_a_prediction_is_not_told_that_it_could_predict(measured: Any) -> None:
    result = measured("--gpu=h200", "--engine=predicted", "--collect-only", suite=SUITE)

    result.stdout.fnmatch_lines(
        ["llamaperf: this run is about h200 and predicted; 1 case of other hardware or engines left out"]
    )


@pytest.fixture
def h200s(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make this a machine with so many H200, and an engine for them."""

    def put_in(count: int) -> None:
        gpus = tuple(FoundGpu("h200", "NVIDIA H200", 150 * 10**9, f"GPU-{n}") for n in range(count))
        machine = Machine(gpus, driver="580.1", processor="a processor")
        monkeypatch.setattr("pytest_llamaperf.acceptance.find_machine", lambda: machine)
        pytester.makeconftest(ENGINE.format(speeds=[500.0, 501.0]).replace('"torch"', '"tensorrt-llm"'))

    return put_in


def test_cases_that_need_more_gpus_than_there_are_skip_and_block_the_gate(
    pytester: pytest.Pytester, h200s: Callable[[int], None]
) -> None:
    h200s(1)
    pytester.makepyfile(PREDICTED)
    promise_prediction(pytester)

    result = pytester.runpytest("--gpu=h200", "-rs", "--gate")

    result.assert_outcomes(passed=1, skipped=1)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["  - skipped: 1 test: needs 2 H200, found 1", "SKIPPED*: needs 2 H200, found 1"])


def test_gpus_of_all_nodes_count_where_a_launcher_started_them(
    pytester: pytest.Pytester, h200s: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    h200s(8)
    pytester.makepyfile(
        PREDICTED.replace("llama-3.1-8b", "llama-3.1-405b").replace('layout=["tp1", "tp2"]', 'layout="tp8-pp2"')
    )

    alone = pytester.runpytest("--gpu=h200", "-rs")
    monkeypatch.setenv("LLAMAPERF_NODES", "2")
    monkeypatch.setenv("LLAMAPERF_GPUS_PER_NODE", "8")
    launched = pytester.runpytest("--gpu=h200", "-rs")

    alone.stdout.fnmatch_lines(["SKIPPED*: needs 16 H200, found 8"])
    launched.stdout.no_fnmatch_line("*needs 16 H200*")
    launched.stdout.fnmatch_lines(["*tp8-pp2*no-baseline*"])


def test_gpu_auto_is_what_is_in_the_machine(pytester: pytest.Pytester, h200s: Callable[[int], None]) -> None:
    h200s(8)
    pytester.makepyfile(PREDICTED)

    result = pytester.runpytest("--collect-only", "-q")

    result.stdout.fnmatch_lines(
        ["*[[]h200/tensorrt-llm/llama-3.1-8b/modelopt-fp8/tp1/min-latency-128-128]", "2 tests collected*"]
    )


def test_promised_runs_every_case_the_baselines_promise(pytester: pytest.Pytester) -> None:
    promise_prediction(pytester)
    pytester.makepyfile(
        PREDICTED.replace(
            '@pytest.mark.cases(\n    model="llama-3.1-8b", recipe="modelopt-fp8", layout=["tp1", "tp2"], '
            'workload="min-latency-128-128"\n)',
            '@pytest.mark.promised(metric="output_throughput", layout="tp2")',
        )
    )

    result = pytester.runpytest("--gpu=h200", "--engine=predicted", "--collect-only", "-q")

    result.stdout.fnmatch_lines(["*/tp2/min-latency-128-128]", "1 test collected*"])


@pytest.mark.parametrize("engine", ["tensorrt-llm", "trtllm-bench"])
def test_what_was_published_for_tensorrt_llm_is_tested_by_both_of_its_engines(
    pytester: pytest.Pytester, engine: str
) -> None:
    promise_prediction(pytester)
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.promised(metric="output_throughput")
        def test_speed(case): ...
        """
    )

    result = pytester.runpytest("--gpu=h200", f"--engine={engine}", "--collect-only", "-q")

    result.stdout.fnmatch_lines([f"*[[]h200/{engine}/llama-3.1-8b/modelopt-fp8/tp{n}/*" for n in (1, 2)])


# --- what a user can get wrong -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpu=h20"], "*--gpu: unknown GPU 'h20'; did you mean 'h200'? known: auto, b200, cpu, h100, h200"),
        (["--engine=tensorrt"], "*unknown engine 'tensorrt'; did you mean 'tensorrt-llm'? known: *"),
        (["--restarts=0"], "*--restarts: a whole number from 1 up, not '0'"),
        (["--allow-difference=x"], "ERROR: --allow-difference is about the two builds of --against; add --against, *"),
        (["--gpu=h200"], "ERROR: --gpu h200: there is none in this machine; found: no NVIDIA GPU*"),
        (["--engine=predicted", "--gpu=cpu"], "ERROR: --engine predicted needs the GPU to predict: *"),
    ],
)
def test_wrong_options_are_usage_errors_with_the_way_out(
    pytester: pytest.Pytester, options: list[str], message: str
) -> None:
    pytester.makepyfile(PREDICTED)

    result = pytester.runpytest(*options)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message])
    result.stderr.no_fnmatch_line("*Traceback*")


def test_missing_gpus_name_the_commands_that_would_work(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest("--gpu=h200")

    result.stderr.fnmatch_lines(["  pytest suites/ --gpu h200 --engine predicted *", "  pytest suites/ --gpu cpu *"])


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ('model="lama-3.1-8b"', "*test_speed: unknown model 'lama-3.1-8b'; did you mean 'llama-3.1-8b'?*"),
        ('recipe="modelopt-fp4"', "*unknown recipe 'modelopt-fp4'; did you mean 'modelopt-fp8'?*"),
        ('layout="tp3"', "*tp3: llama-3.1-8b has 32 attention heads and 8 KV heads*these do: tp1, tp2, tp4, tp8*"),
        ('layout="8gpus"', "*unknown layout '8gpus'; write tp8*"),
        ('workload="min-latency-200000-1"', "*llama-3.1-8b reads at most 131,072 tokens*"),
        ('model="llama-3.1-405b"', "*756.0 GiB of weights on each GPU, and a H200*at least 6 GPUs (tp, pp)*"),
        ('workload="fastest"', "*unknown workload 'fastest'*"),
        ('hardware="h20"', "*unknown hardware 'h20'; did you mean 'h200'?*"),
        ('layouts="tp1"', "*unknown argument 'layouts'; did you mean 'layout'?*"),
    ],
)
@pytest.mark.parametrize("distribution", [(), ("-n2",)])
def test_wrong_names_in_a_suite_are_usage_errors_with_the_nearest_name(
    pytester: pytest.Pytester, marker: str, message: str, distribution: tuple[str, ...]
) -> None:
    name = marker.partition("=")[0]
    arguments = {
        "model": 'model="llama-3.1-8b"',
        "recipe": 'recipe="bf16"',
        "layout": 'layout="tp1"',
        "workload": 'workload="min-latency-128-128"',
        name: marker,
    }
    pytester.makepyfile(
        f"import pytest\n@pytest.mark.cases({', '.join(arguments.values())})\ndef test_speed(case): ..."
    )

    result = pytester.runpytest("--gpu=h200", "--engine=predicted", *distribution)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (result.stdout if distribution else result.stderr).fnmatch_lines([message])
    for stream in (result.stdout, result.stderr):
        stream.no_fnmatch_line("*Traceback*")
        stream.no_fnmatch_line("*INTERNALERROR*")


@pytest.mark.parametrize("distribution", [(), ("-n2",)])
def test_a_broken_baseline_file_is_a_usage_error_with_file_and_line(
    pytester: pytest.Pytester, distribution: tuple[str, ...]
) -> None:
    promise_prediction(pytester)
    path = pytester.path / "baselines" / "h200" / "llama-3.1-8b.yaml"
    path.write_text(path.read_text().replace("unit: tok/s", "unit: tokens", 1))
    pytester.makepyfile(PREDICTED)

    result = pytester.runpytest("--gpu=h200", "--engine=predicted", *distribution)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (result.stdout if distribution else result.stderr).fnmatch_lines(
        ["*llama-3.1-8b.yaml:6: *tp1/min-latency-128-128, output_throughput: output_throughput is in tok/s, not*"]
    )


def test_an_engine_that_is_not_here_is_a_usage_error(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(pytester.path))
    pytester.makepyfile(SUITE)

    result = pytester.runpytest("--gpu=cpu", "--engine=trtllm-bench")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: --engine trtllm-bench: there is no trtllm-bench on the PATH; it comes with TensorRT-LLM*"]
    )


def test_predictions_without_their_extra_are_a_usage_error(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    promise_prediction(pytester)
    pytester.makepyfile(PREDICTED)
    find = importlib.util.find_spec
    missing = {"aiconfigurator_core": None}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: missing.get(name, find(name, *rest)))

    result = pytester.runpytest("--gpu=h200", "--engine=predicted")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --engine predicted: *pip install 'pytest-llamaperf[[]predict]'*"])


def test_a_test_without_marker_is_told_what_it_needs(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_speed(case): pass")

    result = pytester.runpytest("--gpu=h200", "--engine=predicted")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["the fixture `case` needs @pytest.mark.cases(...) or @pytest.mark.promised(...)"])


def test_other_projects_keep_their_own_case(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_parameter="""
            import pytest

            @pytest.mark.parametrize("case", ["upper", "lower"])
            def test_theirs(case):
                assert case in ("upper", "lower")
        """,
        test_fixture="""
            import pytest

            @pytest.fixture(params=[1, 2])
            def case(request):
                return request.param

            def test_theirs(case):
                assert case in (1, 2)
        """,
    )

    pytester.runpytest().assert_outcomes(passed=4)


@pytest.mark.parametrize("option", ["--collect-only", "--fixtures", "--markers", "--help", "--version"])
def test_looking_needs_no_gpu(pytester: pytest.Pytester, option: str) -> None:
    pytester.makepyfile(PREDICTED)

    assert pytester.runpytest("--gpu=h200", option).ret == 0


def test_measuring_side_by_side_is_refused(pytester: pytest.Pytester, measured: Any) -> None:
    result = measured("-n2")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["ERROR: -n with --engine torch: engines measured side by side slow each other down*"])


def test_loadgroup_is_refused_where_it_groups_nothing(pytester: pytest.Pytester) -> None:
    """When this fails, pytest-xdist groups again and the refusal can go."""
    pytester.makepyfile(
        """
        import os, pytest

        @pytest.mark.parametrize("n", range(8))
        @pytest.mark.xdist_group("one")
        def test_where(n):
            with open("workers", "a") as file:
                file.write(os.environ["PYTEST_XDIST_WORKER"] + "\\n")
        """
    )

    refused = pytester.runpytest("-n2", "--dist=loadgroup")
    (pytester.path / "workers").unlink(missing_ok=True)
    pytester.runpytest("-n2", "--dist=loadgroup", "-p", "no:llamaperf")

    scattered = len(set((pytester.path / "workers").read_text().split())) > 1
    assert (refused.ret == pytest.ExitCode.USAGE_ERROR) == scattered


# --- cost ----------------------------------------------------------------------------------------------------------

HEAVY = (
    "torch",
    "transformers",
    "modelopt",
    "lm_eval",
    "tensorrt_llm",
    "aiconfigurator_core",
    "pandas",
    "scipy",
    "rich",
)


@pytest.mark.parametrize("arguments", [["--help"], ["--collect-only", "-q", "suites/", "--gpu=h200"]])
def test_help_and_collection_import_nothing_heavy(arguments: list[str]) -> None:
    repository = Path(__file__).parent.parent
    code = (
        "import sys, pytest\n"
        f"assert pytest.main({arguments!r}) == 0\n"
        f"print('IMPORTED', sorted(set(sys.modules) & set({HEAVY!r})))"
    )

    ran = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)

    assert "IMPORTED []" in ran.stdout
