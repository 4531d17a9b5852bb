"""TensorRT-LLM's engines in whole pytest sessions, with doubles in its place: verdicts, errors, what the gate makes of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_sessions import Folder, tiny_checkpoint

DOUBLES = Path(__file__).parent / "doubles"

SUITE = """
import pytest
from pytest_llamaperf import OUTPUT_THROUGHPUT

TINY = {"model": CHECKPOINT, "hardware": "cpu", "recipe": "bf16"}

@pytest.mark.cases(**TINY, layout="tp1", workload="max-throughput-16-8")
def test_speed(case, measure, baseline):
    baseline.check(measure(case), OUTPUT_THROUGHPUT)

@pytest.mark.cases(**TINY, layout="tp1", workload="max-throughput-16-8", engine="tensorrt-llm")
@pytest.mark.versus(engine="trtllm-bench")
def test_engines(case, other, measure, baseline):
    ratio = measure(case).versus(measure(other), OUTPUT_THROUGHPUT)
    baseline.check(ratio, OUTPUT_THROUGHPUT.versus("trtllm-bench"))

@pytest.mark.cases(**TINY, layout="tp2", task="answers")
@pytest.mark.versus(layout="tp1")
def test_answers(case, other, answers):
    assert answers(case).agreement(answers(other)).likely > 0.99
    assert answers(case).again == answers(case).together

@pytest.mark.cases(**TINY, layout="tp1", task="answers", engine="torch")
def test_of_another_engine(case, answers):
    raise AssertionError
"""

Session = Callable[..., tuple[pytest.RunResult, Folder]]


@pytest.fixture
def session(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Session:
    """A session under an engine, with a double of a version that may do something wrong."""
    suite = SUITE.replace("CHECKPOINT", repr(str(tiny_checkpoint(tmp_path_factory))))

    def run(
        engine: str, version: str, *options: str, fault: str = "", deadlines: str = "load=60 run=60 close=10"
    ) -> tuple[pytest.RunResult, Folder]:
        folder = Folder(tmp_path)
        folder.write(test_suite=suite)
        folder.ini(f"llamaperf_deadlines = {deadlines}")
        monkeypatch.setenv("PYTHONPATH", str(DOUBLES / version))
        programs = [DOUBLES / version / "bin", Path(sys.executable).parent, os.environ["PATH"]]
        monkeypatch.setenv("PATH", os.pathsep.join(map(str, programs)))
        monkeypatch.setenv("TRTLLM_DOUBLE_FAULT", fault)
        given = (f"--engine={engine}", "--gpu=cpu", "--restarts=2", "--results=out", "-rs", *options)
        return folder.run(*given), folder

    return run


def outcomes(document: dict[str, Any]) -> dict[str, str]:
    return {test["nodeid"].rpartition("::")[2].partition("[")[0]: test["outcome"] for test in document["tests"]}


def test_each_result_says_which_version_it_is_of_and_has_its_line_by_hand(session: Session) -> None:
    result, folder = session("tensorrt-llm", "v1_2")

    document = folder.run_json()
    assert set(outcomes(document)) == {"test_speed", "test_engines", "test_answers"}
    assert outcomes(document)["test_answers"] == "passed"
    assert {r["outcome"] for r in document["results"]} == {"no-baseline"}
    assert {r["fingerprint"]["versions"]["tensorrt_llm"] for r in document["results"]} == {"1.2.1"}
    lines = {r["metric"]: r["reproduce"] for r in document["results"]}
    assert lines["output_throughput"].startswith("trtllm-bench --model tiny ")
    assert len(lines["output_throughput vs trtllm-bench"].splitlines()) == 2
    assert folder.left_over() == {}
    result.stdout.fnmatch_lines(["llamaperf: this run is about cpu and tensorrt-llm; 1 case of other*"])


def test_trtllm_bench_is_a_restart_each_time_and_has_no_answers(session: Session) -> None:
    result, folder = session("trtllm-bench", "v1_3rc")

    result.stdout.fnmatch_lines(["*not supported: trtllm-bench runs workloads and cannot be asked for answers"])
    (found,) = folder.run_json()["results"]
    assert len(found["values"]) == 2
    assert found["outcome"] == "no-baseline"
    log = (folder.path / "out" / "engines" / "cpu_trtllm-bench_tiny_bf16_tp1.log").read_text()
    assert 2 <= log.count("Total Latency (ms)") <= 4  # rounds that others disturb are repeated, once


def test_without_log_likelihoods_what_needs_them_skips_and_closes_the_gate(session: Session) -> None:
    result, folder = session("tensorrt-llm", "v1_0", "--gate", "-k", "answers")

    result.assert_outcomes(skipped=1, deselected=3)
    assert result.ret == 1
    told = "not supported: log-likelihoods need TensorRT-LLM 1.1 or newer, found 1.0.0"
    reasons = folder.run_json()["decision"]["reasons"]
    assert any(told in reason for reason in reasons), reasons


@pytest.mark.parametrize(
    ("engine", "fault", "told"),
    [
        ("tensorrt-llm", "oom_init", "the engine ran out of memory (load)"),
        ("tensorrt-llm", "illegal_memory", "a GPU or the links between GPUs failed (run)"),
        ("trtllm-bench", "wrong_count", "what the engine reports is not what was asked (run)"),
        ("trtllm-bench", "exit_without_report", "the engine ended by itself (run)"),
    ],
)
def test_a_failure_is_an_error_and_neither_a_pass_a_skip_nor_a_regression(
    session: Session, engine: str, fault: str, told: str
) -> None:
    result, folder = session(engine, "v1_2", "--gate", "-k", "speed", fault=fault)

    assert result.parseoutcomes()["failed"] == 1
    assert "passed" not in result.parseoutcomes()
    assert result.ret == 1
    document = folder.run_json()
    (found,) = document["results"]
    assert found["outcome"] == "error"
    assert told in found["message"]
    assert any(reason.startswith(f"error: cpu/{engine}/") for reason in document["decision"]["reasons"])
    result.stdout.fnmatch_lines([f"*error, not a regression: {told}*"])
    result.stdout.no_fnmatch_line("*Traceback*")
    assert folder.left_over() == {}


def test_an_engine_that_does_not_end_keeps_its_results_and_they_say_so(session: Session) -> None:
    result, folder = session(
        "tensorrt-llm", "v1_2", "-k", "speed", fault="hang_shutdown", deadlines="load=60 run=60 close=1"
    )

    (found,) = folder.run_json()["results"]
    assert found["outcome"] == "no-baseline"
    assert len(found["values"]) == 2
    assert (
        "after its work 'close' took longer than 1 s (from llamaperf_deadlines), and the engine was killed"
        in found["notes"]
    )
    result.stdout.fnmatch_lines(["note: after its work 'close' took longer than 1 s*"])
    assert folder.left_over() == {}


def test_a_run_of_the_tool_is_a_restart_and_has_no_rounds(session: Session) -> None:
    result, _ = session("trtllm-bench", "v1_2", "--rounds=3")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["ERROR: --rounds with --engine trtllm-bench: every run of it is a restart*"])
