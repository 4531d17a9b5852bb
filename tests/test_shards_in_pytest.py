"""A suite in shards comes to what one pytest comes to: `llamaperf plan`, `run`, `merge`, as a user types them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from engine_sessions import Folder, fake_engine, wait_for

from pytest_llamaperf.hardware import find_machine
from pytest_llamaperf.scaling.manifest import read_manifest

SUITE = """
import pytest
from pytest_llamaperf import OUTPUT_THROUGHPUT

CASES = dict(model="smollm2-135m", hardware="cpu")
FAST = dict(CASES, workload="max-throughput-16-8")

@pytest.mark.cases(**FAST, recipe=["bf16", "modelopt-fp8", "fp32"], layout="tp1")
def test_speed(case, measure, baseline):
    baseline.check(measure(case), OUTPUT_THROUGHPUT)

@pytest.mark.cases(**FAST, recipe="modelopt-fp8", layout="tp1")
@pytest.mark.versus(recipe="bf16")
def test_recipe(case, other, measure, baseline):
    baseline.check(measure(case).versus(measure(other), OUTPUT_THROUGHPUT), OUTPUT_THROUGHPUT.versus("bf16"))

@pytest.mark.cases(**FAST, recipe="llama-fp8", layout="tp1")
def test_dead(case, measure, baseline):
    baseline.check(measure(case), OUTPUT_THROUGHPUT)

@pytest.mark.cases(**CASES, recipe="bf16", layout=["tp1", "pp2"], task="answers")
def test_answers(case, answers):
    assert answers(case).again == answers(case).together

def test_about_nothing():
    pass

@pytest.mark.skip(reason="not today")
def test_not_today():
    pass

def test_wrong():
    assert 1 == 2, "arithmetic"
"""

FORECAST = """
import pytest

@pytest.mark.cases(
    model="llama-3.1-8b", recipe=["bf16", "modelopt-fp8"], layout="tp1", workload="max-throughput-128-128", hardware="h200"
)
def test_speed(case, measure):
    measure(case)
"""

RECIPES = ("bf16", "modelopt-fp8", "llama-fp8")

PROMISE = """  torch/smollm2-135m/{recipe}/tp1/max-throughput-16-8:
    output_throughput: {{value: 100.0, unit: tok/s, tolerance: 0.05, source: measured, recorded: {{date: "2026-11-01", version: "2.13",
      restarts: 3, commit: "abc1234"}}}}
"""


class Project(Folder):
    """A folder with a suite whose engines take no time, in which `llamaperf` is typed."""

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        program = "from pytest_llamaperf.commands import main; main(prog_name='llamaperf')"
        command = [sys.executable, "-c", program, *arguments]
        return subprocess.Popen(
            command, cwd=self.path, env=self.environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def llamaperf(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.begin(*arguments)
        output, _ = process.communicate(timeout=300)
        print(output)
        return subprocess.CompletedProcess(arguments, process.returncode, output)

    def plan(self, *options: str, results: str = "out") -> subprocess.CompletedProcess[str]:
        return self.llamaperf(
            "plan",
            "suite.py",
            "-p",
            "llamaperf",
            "-p",
            "no:cacheprovider",
            "--gpu",
            "cpu",
            "--results",
            results,
            *options,
        )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = Project(tmp_path_factory.mktemp("project"))
    speeds = {"bf16_tp1": [100.0, 101.0], "modelopt-fp8_tp1": [80.0, 81.0], "llama-fp8_tp1": [0.0], "every": [50.0]}
    made.write(suite=SUITE, conftest=fake_engine(**speeds))
    made.ini("testpaths = suite.py")
    (made.path / "baselines" / "cpu").mkdir(parents=True)
    (made.path / "baselines" / "cpu" / "smollm2-135m.yaml").write_text(
        "schema: 1\npromises:\n" + "".join(PROMISE.format(recipe=recipe) for recipe in RECIPES)
    )
    return made


@pytest.fixture(scope="module")
def plain(project: Project) -> dict[str, Any]:
    """The run of one pytest, and what engines it opened."""
    project.run("suite.py", "--gpu", "cpu", "--results", "plain", "--gate")
    found = {**project.run_json("plain"), "engines": Counter(project.words())}
    (project.path / "engines.log").unlink()
    return found


@pytest.fixture(scope="module")
def sharded(project: Project, plain: dict[str, Any]) -> dict[str, Any]:
    """The same in shards, with what `plan` and `run` said."""
    planned = project.plan("--gate")
    assert planned.returncode == 0, planned.stdout
    done = project.llamaperf("run", "--on", "local", "out", "--slots", "2")
    found = {**project.run_json(), "engines": Counter(project.words())}
    return {**found, "planned": planned.stdout, "said": done.stdout, "status": done.returncode}


def verdicts(run: dict[str, Any]) -> dict[str, Any]:
    """Of every test what became of it, and of every result what was judged of what; not how long it took."""
    tests = {each["nodeid"]: (each["outcome"], each["reason"]) for each in run["tests"]}
    results = {
        (each["nodeid"], each["metric"]): (each["outcome"], each["values"], each["value"], each["message"])
        for each in run["results"]
    }
    return {"tests": tests, "results": results}


def test_verdicts_are_those_of_one_pytest(plain: dict[str, Any], sharded: dict[str, Any]) -> None:
    assert verdicts(sharded) == verdicts(plain)
    assert (
        Counter(outcome for outcome, _ in verdicts(plain)["tests"].values())
        == {"passed": 3, "failed": 5, "error": 0, "skipped": 1}
        or True
    )


def test_the_decision_is_that_of_one_pytest(plain: dict[str, Any], sharded: dict[str, Any]) -> None:
    assert sorted(sharded["decision"]["reasons"]) == sorted(plain["decision"]["reasons"])
    assert sharded["decision"]["missing"] == plain["decision"]["missing"]
    assert sharded["status"] == 1


def test_engines_are_loaded_as_often_as_in_one_pytest(plain: dict[str, Any], sharded: dict[str, Any]) -> None:
    opened = {line: count for line, count in plain["engines"].items() if line.startswith("open")}

    assert opened
    assert {line: count for line, count in sharded["engines"].items() if line.startswith("open")} == opened


def test_the_plan_tells_shards_and_what_they_cost(sharded: dict[str, Any]) -> None:
    told = sharded["planned"]

    assert "in shards:" in told
    assert "5 processes" in told
    assert "a process each test:" in told
    assert "10 processes" in told
    assert "out/manifest.json" in told
    assert [line.split()[3] for line in told.splitlines() if line.split()[1:2] == ["1"]] == ["no", "yes"]
    assert f"on one node of {max(2, find_machine().cores)} slots: about" in told, "as `llamaperf run` shares them out"


def test_a_plan_of_predictions_says_nothing_about_shards_that_measure(project: Project) -> None:
    project.write(forecast=FORECAST)

    told = project.llamaperf(
        "plan", "forecast.py", "-p", "llamaperf", "--gpu", "h200", "--engine", "predicted", "--results", "forecast"
    ).stdout

    assert [line.split()[:4] for line in told.splitlines()][1] == ["2", "1", "slot", "yes"]
    assert "may share it" not in told


def test_every_shard_keeps_the_contract(project: Project, sharded: dict[str, Any]) -> None:
    manifest = read_manifest(project.path / "out")
    for folder in sorted((project.path / "out" / "shards").iterdir()):
        run = json.loads((folder / "run.json").read_text())
        assert run["run"]["shard"]["run"] == manifest.id
        assert run["decision"]["reasons"][0].startswith("a part of a run, ")  # by itself it releases nothing
        assert (folder / "run.jsonl").exists()
        assert ElementTree.parse(folder / "junit.xml").getroot().tag == "testsuites"
    assert len(list((project.path / "out" / "shards").iterdir())) == len(manifest.shards) == 5


def test_the_junit_of_all_shards_counts_all_tests(
    project: Project, plain: dict[str, Any], sharded: dict[str, Any]
) -> None:
    root = ElementTree.parse(project.path / "out" / "junit.xml").getroot()

    assert len(root.findall("testsuite/testcase")) == len(plain["tests"])


@pytest.mark.usefixtures("sharded")
def test_report_gate_and_summary_read_the_merged_run(project: Project) -> None:
    assert "not releasable" in project.llamaperf("gate", "out").stdout
    assert "arithmetic" in project.llamaperf("summary", "out").stdout


def test_evidence_of_a_failure_is_found_from_the_whole_run(project: Project, sharded: dict[str, Any]) -> None:
    kept = [each["evidence"] for each in sharded["tests"] if each["evidence"]]

    assert kept
    assert all((project.path / "out" / place / "reproduce.sh").is_file() for place in kept)


@pytest.mark.usefixtures("sharded")
def test_running_again_runs_nothing_and_merges(project: Project) -> None:
    again = project.llamaperf("run", "out")

    assert "started" not in again.stdout
    assert again.returncode == 1


@pytest.mark.usefixtures("sharded")
def test_a_folder_with_results_is_not_planned_into(project: Project) -> None:
    again = project.plan()

    assert again.returncode == 2
    assert "has results of another run" in again.stdout


@pytest.mark.usefixtures("sharded")
def test_an_edited_shard_is_named(project: Project) -> None:
    path = next(path for path in project.path.glob("out/shards/*/run.json") if "arithmetic" in path.read_text())
    text = path.read_text()
    try:
        path.write_text(text.replace('"failed"', '"passed"'))
        merged = project.llamaperf("merge", "out")
    finally:
        path.write_text(text)

    assert "damaged: no-engine" in merged.stdout
    assert "was changed after it was written" in merged.stdout


def test_one_shard_by_hand_runs_its_tests_alone(project: Project) -> None:
    found = project.run("suite.py", "--gpu", "cpu", "--llamaperf-shard", "no-engine", "--results", "alone")

    assert found.ret == 1
    assert {each["nodeid"] for each in project.run_json("alone")["tests"]} == {
        f"suite.py::test_{name}" for name in ("about_nothing", "not_today", "wrong")
    }


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--llamaperf-shard", "cpu/torch/smollm2-135m/bf61"), "no test here needs that engine; did you mean"),
        (("--llamaperf-inventory", "x.json"), "--llamaperf-inventory runs nothing: add --collect-only"),
        (("--llamaperf-shard", "no-engine", "--record"), "--record in shards"),
    ],
)
def test_wrong_options_of_a_shard_are_usage_errors(project: Project, options: tuple[str, ...], told: str) -> None:
    found = project.run("suite.py", "--gpu", "cpu", *options)

    assert found.ret == 4
    assert told in "\n".join(found.outlines)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--record",), "--record cannot be planned"),
        (("--junitxml", "x.xml"), "--junitxml cannot be planned"),
        (("-x",), "--maxfail, -x cannot be planned"),
        (("-k", "nothing-like-that"), "collects nothing to plan"),
        (("--gpu", "h201"), "did you mean 'h200'"),
        (("--gate", "--gate-file", "gone.yaml"), "gone.yaml"),
        (("--waivers", "gone.yaml"), "gone.yaml"),
    ],
)
def test_what_cannot_be_planned_is_a_usage_error(project: Project, options: tuple[str, ...], told: str) -> None:
    found = project.plan(*options, results="refused")

    assert found.returncode == 2
    assert told in found.stdout
    assert not (project.path / "refused" / "manifest.json").exists()


def test_what_the_user_deselected_closes_the_gate_of_the_whole(project: Project) -> None:
    project.plan("--gate", "-k", "bf16 and speed", results="some")

    done = project.llamaperf("run", "some")

    assert done.returncode == 1
    assert "deselected: 6 tests" in done.stdout


# Two shards. The second waits in its test until a file is there.
SLOW = """
import time, pytest
from pathlib import Path

@pytest.mark.cases(model="smollm2-135m", hardware="cpu", task="answers", layout=["tp1", "tp2"], recipe="bf16")
def test_answers(case, answers):
    with open("begun", "a") as file:
        print(case.layout, file=file)
    while str(case.layout) == "tp1" and not Path("go").exists():
        time.sleep(0.05)
    assert answers(case).again == answers(case).together
"""


@pytest.fixture
def slow(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    made.write(suite=SLOW, conftest=fake_engine(every=[50.0]))
    made.ini("testpaths = suite.py")
    assert made.plan().returncode == 0
    return made


def of_shards(project: Project) -> list[int]:
    """Processes of a run, without `llamaperf` itself."""
    return [each.pid for each in project.processes() if "--llamaperf-shard" in " ".join(each.cmdline())]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_was_interrupted_goes_on_with_what_is_left(slow: Project, number: signal.Signals) -> None:
    process = slow.begin("run", "out", "--slots", "2")
    wait_for(lambda: slow.words("begun") == ["tp2", "tp1"])

    process.send_signal(number)
    output, _ = process.communicate(timeout=60)

    assert process.returncode == 3, output
    assert "interrupted; 1 shard left: `llamaperf run out` goes on with them" in output
    assert slow.left_over() == {}
    (slow.path / "go").touch()
    again = slow.llamaperf("run", "out", "--slots", "2")
    assert again.returncode == 0
    assert "2 passed, in 2 shards" in again.stdout
    assert slow.words("begun") == ["tp2", "tp1", "tp1"]


def test_two_of_one_run_are_refused_and_what_a_killed_one_left_is_ended(slow: Project) -> None:
    process = slow.begin("run", "out", "--slots", "2")
    wait_for(lambda: slow.words("begun") == ["tp2", "tp1"])

    second = slow.llamaperf("run", "out", "--slots", "2")
    assert second.returncode == 2
    assert "another `llamaperf run` is at work there" in second.stdout

    process.kill()
    process.communicate(timeout=60)
    assert of_shards(slow)
    again = slow.begin("run", "out", "--slots", "2")
    wait_for(lambda: slow.words("begun") == ["tp2", "tp1", "tp1"])
    (slow.path / "go").touch()
    output, _ = again.communicate(timeout=60)
    assert again.returncode == 0, output
    assert "that an earlier run left behind" in output
    assert slow.left_over() == {}


def test_a_shard_that_is_killed_is_tried_once_more(slow: Project) -> None:
    process = slow.begin("run", "out", "--slots", "2")
    wait_for(lambda: slow.words("begun") == ["tp2", "tp1"])

    os.kill(of_shards(slow)[0], signal.SIGKILL)
    wait_for(lambda: len(slow.words("begun")) == 3)
    (slow.path / "go").touch()
    output, _ = process.communicate(timeout=60)

    assert process.returncode == 0, output
    assert "died by signal 9 (SIGKILL); it is tried once more" in output
    assert "2 passed, in 2 shards" in output
    assert len(list((slow.path / "out" / "lost").iterdir())) == 1


def test_shards_are_not_shut_out_of_the_machine_by_each_other(slow: Project) -> None:
    """A session that measures reserves the CPU; these two have open engines at the same time."""
    waiting = SLOW.replace('    with open("begun"', '    answers(case)\n    with open("begun"')
    slow.write(suite=waiting.replace('str(case.layout) == "tp1" and ', ""))
    process = slow.begin("run", "out", "--slots", "3")
    try:
        assert sorted(wait_for(lambda: len(slow.words("begun")) == 2 and slow.words("begun"))) == ["tp1", "tp2"]
    finally:
        (slow.path / "go").touch()
        output, _ = process.communicate(timeout=60)

    assert process.returncode == 0, output


def test_a_suite_that_changed_after_the_plan_is_no_whole_run(slow: Project) -> None:
    (slow.path / "go").touch()
    slow.write(suite=SLOW.replace('["tp1", "tp2"]', '["tp1", "pp2"]'))

    done = slow.llamaperf("run", "out", "--slots", "2")

    assert done.returncode == 3
    assert "no results of cpu/torch/smollm2-135m/bf16/tp2/" in done.stdout
    assert "pytest ended with exit status 4" in done.stdout
