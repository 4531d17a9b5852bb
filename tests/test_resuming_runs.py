"""Runs that are cut off, by whatever, are true about it, and go on to what they would have come to."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from builders import record, result
from engine_sessions import PATIENCE, Folder, fake_engine, short, wait_for

from pytest_llamaperf.records import Result, TestRecord
from pytest_llamaperf.runs import read_log, read_run

pytest_plugins = ["pytester"]

# Tests of all kinds: measured passes, a regression, what cannot be told, an engine that fails, a skip, one of no engine,
# fixtures of a module between them; and one that waits where it is told to.
SUITE = """
import pytest, time
from pathlib import Path
from pytest_llamaperf import OUTPUT_THROUGHPUT

CASES = dict(model="smollm2-135m", layout="tp1", hardware="cpu")

@pytest.fixture(scope="module")
def shared():
    yield
    with open("torn-down", "a") as log: print(__name__, file=log)

@pytest.mark.cases(**CASES, recipe=["bf16", "modelopt-fp8", "llama-fp8"], workload="max-throughput-16-8")
def test_speed(case, measure, baseline, shared):
    with open("ran", "a") as log: print(case.recipe, file=log)
    baseline.check(measure(case), OUTPUT_THROUGHPUT)

@pytest.mark.cases(**CASES, recipe="modelopt-int8-sq", workload="max-throughput-16-8")
def test_error(case, measure, baseline):
    with open("ran", "a") as log: print("error", file=log)
    baseline.check(measure(case), OUTPUT_THROUGHPUT)

def test_skip(shared):
    with open("ran", "a") as log: print("skip", file=log)
    pytest.skip("no reason to run")

def test_wait():
    with open("ran", "a") as log: print("wait", file=log)
    while Path("wait").exists():
        Path("waiting").touch()
        time.sleep(0.01)

@pytest.mark.cases(**CASES, recipe="bf16", workload="min-latency-16-8")
def test_last(case, measure, baseline):
    with open("ran", "a") as log: print("last", file=log)
    baseline.check(measure(case), OUTPUT_THROUGHPUT)
"""
PROMISES = """schema: 1
promises:
"""
PROMISE = """  torch/smollm2-135m/{recipe}/tp1/{work}:
    output_throughput: {{value: 100.0, unit: tok/s, tolerance: 0.05, source: measured,
      recorded: {{date: "2026-11-01", version: "2.13", restarts: 3, commit: "abc1234"}}}}
"""
SPEEDS = {
    "bf16_tp1": [101.0], "modelopt-fp8_tp1": [50.0], "llama-fp8_tp1": [90.0, 101.0, 112.0], "modelopt-int8-sq_tp1": [0.0],
}  # fmt: skip
# What else this machine does is no part of the runs that are compared.
CONFTEST = (
    fake_engine(**SPEEDS)
    + """
import pytest_llamaperf.measuring
pytest_llamaperf.measuring.TOLERATED_CORES = 1e6
"""
)
OPTIONS = ("--gpu=cpu", "--rounds=1", "--restarts=3", "--results=out")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return project(tmp_path)


@pytest.fixture(scope="module")
def cut_off_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = project(tmp_path_factory.mktemp("cut-off"))
    interrupt(made, signal.SIGTERM)
    words(made)
    return made.path


@pytest.fixture
def cut_off(tmp_path: Path, cut_off_once: Path) -> Folder:
    """A project with a session that was cut off in `test_wait`: the same one for all tests, each with a copy."""
    shutil.copytree(cut_off_once, tmp_path, dirs_exist_ok=True)
    return Folder(tmp_path)


def project(path: Path) -> Folder:
    made = Folder(path)
    made.write(conftest=CONFTEST, test_suite=SUITE)
    promises = made.path / "baselines" / "cpu" / "smollm2-135m.yaml"
    promises.parent.mkdir(parents=True)
    recipes = ("bf16", "modelopt-fp8", "llama-fp8", "modelopt-int8-sq")
    cases = [(recipe, "max-throughput-16-8") for recipe in recipes] + [("bf16", "min-latency-16-8")]
    promises.write_text(PROMISES + "".join(PROMISE.format(recipe=recipe, work=work) for recipe, work in cases))
    return made


def interrupt(
    folder: Folder, number: signal.Signals, *options: str, tests: int = 5
) -> subprocess.CompletedProcess[str]:
    """A session that is sent a signal in the middle of `test_wait`, when so many tests are on disk."""
    (folder.path / "wait").touch()
    process = folder.start(*OPTIONS, *options)
    wait_for((folder.path / "waiting").exists)
    wait_for(lambda: (folder.path / "out" / "run.jsonl").read_text().count('{"test"') == tests)
    process.send_signal(number)
    output, _ = process.communicate(timeout=PATIENCE)
    for name in ("wait", "waiting"):
        (folder.path / name).unlink()
    print(output)
    return subprocess.CompletedProcess([], process.returncode, output)


# What says when something was, or how long it took, or by which session; and the versions of what was installed.
TIMES = ("id", "started", "finished", "duration", "session", "sessions", "resumed", "engines", "durations", "checksum")


def timeless(told: Any) -> Any:
    if isinstance(told, dict):
        return {name: timeless(value) for name, value in told.items() if name not in TIMES}
    return list(map(timeless, told)) if isinstance(told, list) else told


def counts(text: str) -> str:
    """The last line of pytest, without its seconds."""
    return text.strip().splitlines()[-1].partition(" in ")[0].strip("= ")


def words(folder: Folder) -> list[str]:
    """What ran, in order; forgotten then."""
    found = folder.words("ran")
    (folder.path / "ran").unlink(missing_ok=True)
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_files_that_say_so(folder: Folder, number: signal.Signals) -> None:
    found = interrupt(folder, number, "--junitxml=junit.xml")

    assert found.returncode == pytest.ExitCode.INTERRUPTED
    assert "INTERNALERROR" not in found.stdout
    assert "cut off: the same command with --resume goes on" in found.stdout
    document = folder.run_json()
    assert document["run"]["interrupted"] == number.name
    assert [short(nodeid) for nodeid in document["not_run"]] == ["test_last"]
    outcomes = {short(test["nodeid"]): test["outcome"] for test in document["tests"]}
    assert outcomes["test_wait"] == "unfinished"
    assert document["decision"]["releasable"] is False
    assert f"the session ended early, by {number.name}" in document["decision"]["reasons"]
    assert len(list(ElementTree.parse(folder.path / "junit.xml").iter("testcase"))) == 6
    assert {short(nodeid) for nodeid in read_log(folder.path / "out" / "run.jsonl").tests} == {
        "test_speed", "test_error", "test_skip"
    }  # fmt: skip
    page = (folder.path / "out" / "summary.md").read_text()
    assert f"by {number.name}" in page
    assert "### Never ran\n\n- test_suite.py::test_last" in page
    assert folder.left_over() == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_it_goes_on_to_what_it_would_have_come_to(folder: Folder, number: signal.Signals) -> None:
    uninterrupted = folder.run(*OPTIONS, "--junitxml=whole.xml")
    whole, _ = folder.run_json(), words(folder)
    interrupt(folder, number)
    assert words(folder) == ["bf16", "modelopt-fp8", "llama-fp8", "error", "skip", "wait"]
    (folder.path / "engines.log").unlink()
    (folder.path / "torn-down").unlink(missing_ok=True)

    result = folder.run(*OPTIONS, "--resume", "--junitxml=junit.xml", "-v")

    # Passes, the regression and what cannot be told are not measured again; errors and skips are.
    assert words(folder) == ["error", "skip", "wait", "last"]
    assert {word.split()[1] for word in folder.words()} == {"bf16/tp1", "modelopt-int8-sq/tp1"}
    document = folder.run_json()
    assert timeless(document) == timeless(whole)
    lines = [json.loads(line) for line in (folder.path / "out" / "run.jsonl").read_text().splitlines()]
    assert len([line for line in lines if "test" in line]) == 7  # each once
    assert (document["run"]["sessions"], document["run"]["interrupted"]) == (2, None)
    assert [test["session"] for test in document["tests"]] == [1, 1, 1, 2, 2, 2, 2]
    assert "cut off:" not in result.stdout.str()
    assert counts("\n".join(result.outlines)) == counts("\n".join(uninterrupted.outlines))
    result.stdout.fnmatch_lines(
        [
            "--resume: out/run.jsonl: 3 tests kept from before; the others run",
            "*test_speed*bf16*PASSED (kept)*",
            "*test_speed*modelopt-fp8*FAILED (kept)*",
            "*test_speed*llama-fp8*SKIPPED (kept)*",
            "kept: 3 tests of 7 ran in an earlier session of this run, which started at *; this is session 2",
        ]
    )
    assert folder.words("torn-down") == ["test_suite"]
    page = (folder.path / "out" / "summary.md").read_text()
    assert "Resumed: 3 tests of 7 ran in an earlier session, 2 in all." in page
    assert (
        "### What it cost\n\n- processor-hours (a processor for each rank; no GPU was used) held by engines: " in page
    )
    # Of both sessions: three restarts of four cases in one, and of two in the other, one of which fails at its first.
    assert [use["engine"].split("/")[3] for use in document["engines"]].count("bf16") == 6
    before, after = (properties(folder.path / name) for name in ("whole.xml", "junit.xml"))
    kept = [found.pop("llamaperf_kept_from_session", None) for found in after]
    assert kept == ["1"] * 3 + [None] * 4
    assert after == before


def properties(path: Path) -> list[dict[str, Any]]:
    return [
        {
            "name": case.get("name"),
            "children": [
                (child.tag, child.get("message")) for child in case if child.tag in ("failure", "skipped", "error")
            ],
            **{found.get("name", ""): found.get("value") for found in case.iter("property")},
        }
        for case in ElementTree.parse(path).iter("testcase")
    ]


def test_a_run_that_told_all_is_measured_anew(folder: Folder) -> None:
    folder.run(*OPTIONS)
    words(folder)

    result = folder.run(*OPTIONS, "--resume")

    assert words(folder) == ["bf16", "modelopt-fp8", "llama-fp8", "error", "skip", "wait", "last"]
    result.stdout.fnmatch_lines(["--resume: out/run.jsonl holds nothing to go on with; everything is measured"])
    assert folder.run_json()["run"]["sessions"] == 1


# What a log says it was measured under, in place of what it was.
ASKED_BEFORE: dict[str, Any] = {
    "installed": {"pytest": "8.0"},
    "machine": {"GPU power limit": "500 W", "cores": 999},
    "lock_clocks": 1500,
}


@pytest.mark.parametrize(
    ("options", "change", "problem"),
    [
        (("--restarts=2",), None, "*: was measured under other conditions: restarts was 3 and is 2; *"),
        (("--gate",), None, "*conditions: gate was False and is True; *"),
        ((), "baselines", "*conditions: promises cpu/smollm2-135m.yaml was '*' and is '*'; *"),
        ((), "test_suite.py", "*--resume: the run that was cut off had other tests: test_suite.py was '*' and is '*'; *"),
        ((), "conftest.py", "*had other tests: conftest.py was '*' and is '*'; *"),
        (("-k", "speed"), None, "*had other tests: 4 tests are gone: test_suite.py::test_error*"),
        ((), "waivers.yaml", "*conditions: waivers waivers.yaml was None and is '*'; *"),
        ((), "installed", "*conditions: installed pytest was '8.0' and is '*'; *"),
        ((), "machine", "*conditions: machine GPU power limit was '500 W' and is None; machine cores was 999 and is *; *"),
        ((), "lock_clocks", "*conditions: lock_clocks was 1500 and is None; *"),
        ((), "NCCL_ALGO", "*conditions: environment env NCCL_ALGO was None and is 'Ring'; *"),
    ],
    ids=["restarts", "gate", "promises", "tests", "conftest", "selection", "waivers", "installed", "machine", "clocks", "variable"],
)  # fmt: skip
def test_nothing_is_kept_under_other_conditions(
    cut_off: Folder, options: tuple[str, ...], change: str | None, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = cut_off.path / "out" / "run.jsonl"
    if change == "baselines":
        path = cut_off.path / "baselines" / "cpu" / "smollm2-135m.yaml"
        path.write_text(path.read_text().replace("0.05", "0.6"))
    elif change == "waivers.yaml":
        (cut_off.path / change).write_text("schema: 1\nwaivers: {}\n")
    elif change == "NCCL_ALGO":
        monkeypatch.setenv(change, "Ring")
    elif change in ASKED_BEFORE:
        header, *rest = log.read_text().splitlines()
        told = json.loads(header)
        now, before_it = told["asked"][change], ASKED_BEFORE[change]
        told["asked"][change] = {**now, **before_it} if isinstance(now, dict) else before_it
        log.write_text("\n".join([json.dumps(told), *rest, ""]))
    elif change:
        with (cut_off.path / change).open("a") as file:
            file.write("\nMORE = 1\n")
    before = {path.name: path.read_bytes() for path in log.parent.iterdir() if path.is_file()}
    words(cut_off)

    result = cut_off.run(*OPTIONS, "--resume", *options)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines([problem])
    assert words(cut_off) == []
    assert "Traceback" not in result.stdout.str()
    assert {path.name: path.read_bytes() for path in log.parent.iterdir() if path.is_file()} == before


def test_a_line_that_was_cut_off_is_dropped_and_its_test_runs_again(cut_off: Folder) -> None:
    log = cut_off.path / "out" / "run.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    last = next(number for number, line in enumerate(lines) if "llama-fp8" in line and "reports" in line)
    log.write_text("".join(lines[:last]) + lines[last][:-40])
    words(cut_off)

    result = cut_off.run(*OPTIONS, "--resume")

    result.stdout.fnmatch_lines(
        [
            "--resume: out/run.jsonl: 2 tests kept from before, and a line that was cut off while it was written is dropped; *"
        ]
    )
    assert words(cut_off) == ["llama-fp8", "error", "skip", "wait", "last"]


def test_a_session_that_is_cut_off_again_forgets_nothing(cut_off: Folder) -> None:
    """It stops before it comes to the tests that are kept, here because it is told to begin at another end."""
    (cut_off.path / "reversing.py").write_text("def pytest_collection_modifyitems(items): items.reverse()\n")

    cut_off.run(*OPTIONS, "--resume", "-p", "reversing", "--maxfail=1")

    document = cut_off.run_json()
    tests = {test["nodeid"]: test for test in document["tests"]}
    assert sorted(short(nodeid) for nodeid, test in tests.items() if test["session"] == 1) == ["test_speed"] * 3
    assert sorted(short(nodeid) for nodeid, test in tests.items() if test["session"] == 2) == [
        "test_error", "test_last", "test_skip", "test_wait"
    ]  # fmt: skip
    assert document["not_run"] == []
    assert document["decision"]["releasable"] is False
    assert words(cut_off) == ["last", "wait", "skip", "error"]
    cut_off.run(*OPTIONS, "--resume")
    assert words(cut_off) == ["error", "skip"]


@pytest.mark.parametrize(("line", "number"), [("{", 2), ("[]", 2), ('{"test": 1}', 2), ('{"else": {}}', 2)])
def test_a_line_in_the_middle_that_is_none_is_refused(cut_off: Folder, line: str, number: int) -> None:
    log = cut_off.path / "out" / "run.jsonl"
    header, _, *rest = log.read_text().splitlines()
    log.write_text("\n".join([header, line, *rest, ""]))

    result = cut_off.run(*OPTIONS, "--resume")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines([f"ERROR: out/run.jsonl:{number}: is no*"])
    assert "Traceback" not in result.stdout.str()


def test_a_session_killed_at_twenty_moments_comes_to_the_same(folder: Folder) -> None:
    """At every one the files can be read, and no test that was settled runs again."""
    began = time.monotonic()
    folder.run(*OPTIONS)
    whole, took = folder.run_json(), time.monotonic() - began
    (folder.path / "out" / "run.json").unlink()
    words(folder)
    # Random, and the same in every run of this test; most of a short session is its start, so the moments lie in its end.
    moments = random.Random(20261126)
    settled: set[str] = set()
    (folder.path / "out" / "run.jsonl").unlink()

    for _ in range(20):
        process = folder.start(*OPTIONS, "--resume", stdout=subprocess.DEVNULL)
        time.sleep(moments.uniform(0.25, 0.9) * took)
        process.kill()
        process.wait(PATIENCE)
        ran = words(folder)
        assert not settled & set(ran)
        if not (folder.path / "out" / "run.jsonl").exists():
            continue
        log = read_log(folder.path / "out" / "run.jsonl")
        assert read_run(folder.path / "out").tests == tuple(kept.record for kept in log.tests.values()) or log.ended
        recipes = {
            "[cpu/torch/smollm2-135m/" + r + "/tp1/max-throughput-16-8]": r
            for r in ("bf16", "modelopt-fp8", "llama-fp8")
        }
        settled = {
            recipes[n[n.index("[") :]] for n, kept in log.tests.items() if "test_speed" in n and kept.record.settled
        }
        if log.ended:  # the next one measures everything anew
            settled = set()
    folder.run(*OPTIONS, "--resume")

    assert timeless(folder.run_json()) == timeless(whole)
    assert folder.left_over() == {}


def test_with_workers_kept_tests_are_told_again_by_them(folder: Folder) -> None:
    suite = """
import pytest, time
from pathlib import Path

@pytest.mark.parametrize("number", range(8))
def test_quick(number):
    path = Path(f"ran-{number}")
    path.write_text(path.read_text() + "x" if path.exists() else "x")

def test_wait():
    while Path("wait").exists():
        Path("waiting").touch()
        time.sleep(0.01)
"""
    folder.write(test_suite=suite, conftest="")
    workers = ("-p", "xdist.plugin", "-n2", "--dist=loadfile")
    found = interrupt(folder, signal.SIGTERM, *workers, "--engine=torch", tests=8)
    assert found.returncode == pytest.ExitCode.INTERRUPTED
    assert folder.run_json()["run"]["interrupted"] == "SIGTERM"
    assert folder.left_over().get("processes") is None

    result = folder.run(*OPTIONS, *workers, "--engine=torch", "--resume", "-v")

    assert result.ret == 0
    assert [test["session"] for test in folder.run_json()["tests"]].count(1) == 8
    assert [len((folder.path / f"ran-{number}").read_text()) for number in range(8)] == [1] * 8
    result.stdout.fnmatch_lines(["*PASSED (kept)*", "kept: 8 tests of 9 *"])
    (folder.path / "out" / "run.jsonl").write_text(
        (folder.path / "out" / "run.jsonl").read_text().replace('{"ended": true}\n', "")
    )

    refused = folder.run(*OPTIONS, *workers, "--engine=torch", "--resume", "-k", "quick")

    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stdout.fnmatch_lines(["ERROR: --resume: the run that was cut off had other tests: 1 test is gone: *"])


def test_signals_again_and_again_lose_no_file(folder: Folder) -> None:
    """The second one comes while fixtures are torn down."""
    folder.write(
        conftest=CONFTEST,
        test_suite=SUITE.replace("    yield\n", "    yield\n    Path('tearing-down').touch()\n    time.sleep(30)\n"),
    )
    (folder.path / "wait").touch()
    process = folder.start(*OPTIONS, "--junitxml=junit.xml")
    wait_for((folder.path / "waiting").exists)
    process.send_signal(signal.SIGTERM)
    wait_for((folder.path / "tearing-down").exists)
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    output, _ = process.communicate(timeout=20)

    assert process.returncode != 0, output
    assert folder.run_json()["run"]["interrupted"] == "SIGTERM"
    assert read_log(folder.path / "out" / "run.jsonl").tests
    assert ElementTree.parse(folder.path / "junit.xml")
    assert folder.left_over() == {}


def test_the_handlers_of_before_are_there_after_a_session(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(): pass")
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    pytester.runpytest("--results=out", "--gpu=cpu").assert_outcomes(passed=1)

    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_no_build_is_released_of_which_two_were_measured(folder: Folder) -> None:
    """Same name, same version, same files installed: what the engine loads tells all the same."""
    folder.write(conftest="from engine_of_test import *\nimport engine_of_test\n")
    folder.write(engine_of_test=fake_engine(bf16_tp1=[101.0, 101.1]))
    folder.write(
        test_suite=SUITE.replace('["bf16", "modelopt-fp8", "llama-fp8"]', '["bf16"]').replace(
            "modelopt-int8-sq", "bf16"
        )
    )
    interrupt(folder, signal.SIGTERM, tests=3)
    folder.write(engine_of_test=fake_engine(bf16_tp1=[101.0, 101.1]).replace("2.13.0", "2.14.0"))

    folder.run(*OPTIONS, "--resume")

    assert (
        "sessions of this run measured other builds: torch loaded torch 2.13.0 in session 1, 2.14.0 in session 2"
        in folder.run_json()["decision"]["reasons"]
    )


# time.time() jumps by hours at every reading, forwards and backwards; datetime reads the same clock.
JUMPING = """
import datetime, itertools, time

_jumps, _real = itertools.cycle([5 * 3600.0, -9 * 3600.0, 3 * 3600.0]), time.time

class _Jumping(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.fromtimestamp(time.time(), tz)

def _jumped():
    return _real() + next(_jumps)

time.time = _jumped
import pytest_llamaperf.reporting.session_files
pytest_llamaperf.reporting.session_files.datetime = _Jumping
"""


def test_a_clock_that_jumps_changes_nothing_that_is_decided(folder: Folder) -> None:
    """Deadlines, durations and orders are of the monotonic clock; wall time is only told."""
    folder.run(*OPTIONS)
    still = folder.run_json()
    folder.write(conftest=CONFTEST + JUMPING)

    folder.run(*OPTIONS)

    jumped = folder.run_json()
    assert timeless(jumped) == timeless(still)
    assert jumped["run"]["started"] > jumped["run"]["finished"]  # the clock did jump
    assert all(0 <= use["held"] < 3600 for use in jumped["engines"])


def blind(made: Result) -> Result:
    return dataclasses.replace(made, health={"blind": "the driver did not answer"})


@pytest.mark.parametrize(
    ("test", "settled"),
    [
        (record(result()), True),
        (record(), True),
        (record(result("regression"), outcome="waived"), True),
        (record(result("regression"), outcome="failed"), True),
        (record(result("regression"), result("error"), outcome="error"), True),
        (record(result("inconclusive"), outcome="skipped"), True),
        (record(result("no-baseline"), outcome="skipped"), True),
        (record(outcome="skipped"), False),
        (record(result("error"), outcome="failed"), False),
        (record(result(), outcome="error"), False),
        (record(outcome="failed"), False),
        (record(outcome="unfinished"), False),
        (record(blind(result())), False),
        (record(result(), blind(result())), False),
        (record(blind(result("regression")), outcome="failed"), True),
        (record(blind(result("inconclusive")), outcome="skipped"), True),
        (record(blind(result("regression")), outcome="waived"), True),
    ],
)
def test_what_was_measured_and_is_not_good_is_never_asked_again(test: TestRecord, settled: bool) -> None:
    assert test.settled is settled
