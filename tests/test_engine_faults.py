"""Everything that engines can do wrong, in whole pytest sessions: named, on the test it belongs to, and in time.

The other tests of the session run as if nothing had happened, and nothing is left of what went wrong.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# pytester forgets what a session it runs imports first, and numpy refuses to be loaded twice.
import pytest
import scipy.special  # noqa: F401
from engine_sessions import PATIENCE, Folder, fake_engine, tiny_checkpoint, wait_for

pytest_plugins = ["pytester"]

LOAD, RUN, CLOSE = 5.0, 3.0, 2.0  # seconds
DEADLINES = f"llamaperf_deadlines = load={LOAD:g} run={RUN:g} close={CLOSE:g}"
ENDING = 8.0  # seconds for ending processes and for a new engine, on a machine that does other things too

CONFTEST = """
import pytest_llamaperf.engines.torch
from pathlib import Path

pytest_llamaperf.engines.torch.DRIVER = str(Path(__file__).parent / "driver.py")
"""

# Serves without a network: a request takes a millisecond. What it does wrong is said by the layers of its network.
DRIVER = """
import os, resource, signal, sys, time

HEALTHY, HANGS_IN_LOAD, HANGS_IN_RUN, HANGS_IN_CLOSE, EXITS, EXITS_AS_IF_WELL, IS_SHOT, EATS_MEMORY, TALKS_GARBAGE, \\
    CUTS_SHORT, PRINTS, ANSWERS_NAN, ANSWERS_ELSE, LOADS_ELSE, LOSES_REQUESTS, RAISES, LEAVES_CHILDREN = range(1, 18)

def open_driver(report):
    return Driver(report.__self__._descriptor)

class Driver:
    def __init__(self, events):
        self.events = events

    def handle(self, command, arguments):
        if command == "load":
            self.fault = arguments["config"]["num_hidden_layers"]
            return self.load()
        return self.run([tuple(lengths) for lengths in arguments["lengths"]])

    def load(self):
        if self.fault == HANGS_IN_LOAD:
            time.sleep(600)
        if self.fault == LOADS_ELSE:
            return {"something": "else"}
        return {"versions": {"torch": "2.13.0"}, "threads": 1}

    def run(self, lengths):
        answer = {
            "traces": [[0.001 * n, 0.001 * n + 0.0005, 0.001 * n + 0.001, *both] for n, both in enumerate(lengths)],
            "peak_memory": 1000,
            "dataset": "0" * 64,
        }
        if self.fault == HANGS_IN_RUN:
            while True: pass
        if self.fault == EXITS:
            print("cannot go on", file=sys.stderr, flush=True)
            os._exit(3)
        if self.fault == EXITS_AS_IF_WELL:
            os._exit(0)
        if self.fault == IS_SHOT:
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.fault == EATS_MEMORY:
            size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20), resource.RLIM_INFINITY))
            hoard = [bytearray(16 << 20) for _ in range(100)]
        if self.fault == TALKS_GARBAGE:
            os.write(self.events, b"Loading weights: 100%\\n")
        if self.fault == CUTS_SHORT:
            os.write(self.events, b'{"id": 3, "result": {"traces": [')
            os._exit(0)
        if self.fault == PRINTS:
            print('{"id": 3, "result": "garbage"}', flush=True)
            os.write(1, b"garbage\\n")
        if self.fault == ANSWERS_NAN:
            answer["peak_memory"] = float("nan")
        if self.fault == ANSWERS_ELSE:
            return {"something": "else"}
        if self.fault == LOSES_REQUESTS:
            answer["traces"].pop()
        if self.fault == RAISES:
            raise ValueError("the shapes do not fit")
        if self.fault == LEAVES_CHILDREN and not os.fork():
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
        return answer

    def close(self):
        if self.fault == HANGS_IN_CLOSE:
            time.sleep(600)
"""

SUITE = """
import pytest
from pytest_llamaperf import OUTPUT_THROUGHPUT

def case(layers):
    return pytest.mark.cases(
        model=f"smollm2-135m@random@layers={layers}", hardware="cpu", recipe="bf16", layout="tp1",
        workload="min-latency-16-8",
    )

"""

ALONE = """
def test_alone():
    import psutil
    assert psutil.Process().children(recursive=True) == []
"""

# (what goes wrong, its number in DRIVER, how the message begins, seconds until it is known)
FAULTS: list[tuple[str, int, str, float]] = [
    ("healthy", 1, "", 0),
    ("hangs_in_load", 2, f"the engine hangs (load): 'load' took longer than {LOAD:g} s", LOAD),
    ("hangs_in_run", 3, f"the engine hangs (run): 'run' took longer than {RUN:g} s", RUN),
    ("hangs_in_close", 4, f"the engine hangs (close): 'close' took longer than {CLOSE:g} s", CLOSE),
    ("exits", 5, "the engine crashed (run): 'run': exit status 3", 0),
    ("exits_as_if_well", 6, "the engine ended by itself (run): 'run': exit status 0, and no answer", 0),
    ("is_shot", 7, "the engine died (run): 'run': died by signal 11 (SIGSEGV)", 0),
    ("eats_memory", 8, "the engine ran out of memory (run): MemoryError", 0),
    (
        "talks_garbage",
        9,
        "the engine's driver broke the protocol (run): wanted answer 3, got 'Loading weights: 100%'",
        0,
    ),
    ("cuts_short", 10, "the engine's driver broke the protocol (run): 'run': the answer is cut off after", 0),
    ("prints", 11, "", 0),
    (
        "answers_nan",
        12,
        "the engine's driver broke the protocol (run): NotJson: the result cannot be written as JSON",
        0,
    ),
    ("answers_else", 13, "the engine failed: KeyError: 'traces'", 0),
    ("loads_else", 14, "cpu/torch/smollm2-135m@random@layers=14/bf16/tp1: the engine failed: KeyError: ", 0),
    ("loses_requests", 15, "asked for 2 requests, the engine reports 1; 1 of ISL 16 and OSL 8 are missing", 0),
    ("raises", 16, "the engine crashed (run): ValueError: the shapes do not fit", 0),
    ("leaves_children", 17, "", 0),
]
NAMES = [fault[0] for fault in FAULTS]
HARMLESS = ("healthy", "prints", "leaves_children")
# What fails after the work: the results stay, and say so.
NOTED = {
    "hangs_in_close": f"after its work 'close' took longer than {CLOSE:g} s (from llamaperf_deadlines), and the engine was killed"
}


def suite_of(name: str, layers: int) -> str:
    return f"""
@case({layers})
def test_{name}(case, measure, baseline):
    baseline.check(measure(case), OUTPUT_THROUGHPUT)
"""


def named(test: dict[str, Any]) -> str:
    return str(test["nodeid"]).partition("::test_")[2].partition("[")[0]


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Folder, pytest.RunResult]]:
    """A session of all of them, one after the other, with one restart of each engine."""
    folder = Folder(tmp_path_factory.mktemp("faulty"))
    suite = SUITE + "".join(suite_of(name, layers) for name, layers, _, _ in FAULTS) + ALONE
    folder.write(conftest=CONFTEST, driver=DRIVER, test_faults=suite)
    folder.ini(DEADLINES)
    yield folder, folder.run("--gpu=cpu", "--restarts=1", "--rounds=1", "--results=out")
    for process in folder.processes():
        process.kill()


@pytest.mark.parametrize(("name", "layers", "message", "seconds"), FAULTS, ids=NAMES)
def test_a_fault_is_named_on_its_test_in_time_and_harms_no_other(
    faulty: tuple[Folder, pytest.RunResult], name: str, layers: int, message: str, seconds: float
) -> None:
    document = faulty[0].run_json()
    (test,) = [test for test in document["tests"] if named(test) == name]
    (result,) = [result for result in document["results"] if named(result) == name]

    if name in (*HARMLESS, *NOTED):
        assert (test["outcome"], result["outcome"]) == ("skipped", "no-baseline")
        assert result["values"] == [pytest.approx(8000)]
        assert ([NOTED[name]] if name in NOTED else []) == [note for note in result["notes"] if "killed" in note]
    else:
        assert (test["outcome"], result["outcome"]) == ("failed", "error")
        case = f"cpu/torch/smollm2-135m@random@layers={layers}/bf16/tp1/min-latency-16-8"
        assert result["case"]["id"] == case
        assert result["message"].removeprefix(f"{case}: ").startswith(message)
        assert test["reason"].startswith(f"error, not a regression: {message.removeprefix(f'{case}: ')}")
    assert test["duration"] < seconds + ENDING


def test_failures_are_short_and_tell_what_to_do_and_where_the_log_is(faulty: tuple[Folder, pytest.RunResult]) -> None:
    folder, result = faulty

    case = "cpu/torch/smollm2-135m@random@layers=5/bf16/tp1"
    result.stdout.fnmatch_lines(
        [
            f"{case}/min-latency-16-8",
            "  error, not a regression: the engine crashed (run): 'run': exit status 3",
            "the whole error stands in its log",
            f"log: out/engines/{case.replace('/', '_')}.log, which ends with",
            "    cannot go on",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*INTERNALERROR*")
    assert "garbage" in (folder.path / "out/engines/cpu_torch_smollm2-135m@random@layers=11_bf16_tp1.log").read_text()
    assert len(folder.run_json()["tests"]) == len(FAULTS) + 1
    assert folder.run_json()["decision"]["releasable"] is False


def test_a_faulty_engine_is_gone_before_the_next_test(faulty: tuple[Folder, pytest.RunResult]) -> None:
    (test,) = [test for test in faulty[0].run_json()["tests"] if named(test) == "alone"]

    assert test["outcome"] == "passed"


def test_nothing_is_left_of_faulty_engines(faulty: tuple[Folder, pytest.RunResult]) -> None:
    assert faulty[0].left_over() == {}


def test_a_log_that_a_failure_speaks_of_is_there_afterwards(tmp_path: Path) -> None:
    """Without --results as well; other logs are gone with the session."""
    folder = Folder(tmp_path)
    folder.write(conftest=CONFTEST, driver=DRIVER, test_faults=SUITE + suite_of("healthy", 1) + suite_of("raises", 16))
    folder.ini(DEADLINES)

    def logs(*options: str) -> tuple[str, list[Path]]:
        told = str(folder.run("--gpu=cpu", "--restarts=1", "--rounds=1", *options).stdout)
        return told, list((tmp_path / "tmp").glob("llamaperf-engines-*/*"))

    assert logs("-k", "healthy")[1] == []
    told, kept = logs()
    assert any(path.name in told and "do not fit" in path.read_text() for path in kept)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("load=20 runs=5", "llamaperf_deadlines: 'runs' is no phase of an engine; did you mean 'run'? *"),
        ("load=soon", "llamaperf_deadlines: 'load=soon' is not load and its seconds; write for example load=600"),
        ("run=0", "llamaperf_deadlines: run is 0; it takes a positive number of seconds"),
    ],
)
def test_wrong_deadlines_are_a_usage_error(pytester: pytest.Pytester, setting: str, message: str) -> None:
    pytester.makeini(f"[pytest]\nllamaperf_deadlines = {setting}\n")

    result = pytester.runpytest("--gpu=cpu")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {message}"])


# --- faults of the real engine ---------------------------------------------------------------------------------------

# The real driver, whose second rank is shot in the middle of a run, and whose larger network has no memory to be in.
WRAPPED = """
import os, resource, signal, threading
from torch_llama import open_driver as open_real

def open_driver(report):
    return Wrapped(open_real(report))

class Wrapped:
    def __init__(self, ranks):
        self.ranks = ranks

    def handle(self, command, arguments):
        if command == "load" and arguments["checkpoint"] is None:
            size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + (512 << 20), resource.RLIM_INFINITY))
        if command == "run":
            open(os.environ["TESTED_IN"] + "/running", "a").close()
            processes = [process for process, _ in self.ranks._ranks]
            if len(processes) == 2:
                threading.Timer(0.5, os.kill, (processes[1].pid, signal.SIGKILL)).start()
        return self.ranks.handle(command, arguments)

    def close(self):
        self.ranks.close()
"""
REAL = """
import pytest
from pytest_llamaperf import OUTPUT_THROUGHPUT

TINY = {"model": CHECKPOINT, "hardware": "cpu", "recipe": "bf16"}

@pytest.mark.cases(**TINY, layout="tp1", workload="min-latency-16-8")
def test_healthy(case, measure, baseline):
    baseline.check(measure(case), OUTPUT_THROUGHPUT)

@pytest.mark.cases(**TINY, layout="tp2", workload="concurrency-4-64-512")
def test_rank_killed(case, measure, baseline):
    baseline.check(measure(case), OUTPUT_THROUGHPUT)

@pytest.mark.cases(
    model="llama-3.2-1b@random", recipe="fp32", layout="tp1", workload="min-latency-16-8", hardware="cpu"
)
def test_memory(case, measure, baseline):
    baseline.check(measure(case), OUTPUT_THROUGHPUT)

@pytest.mark.cases(model=TRUNCATED, hardware="cpu", recipe="bf16", layout="tp1", workload="min-latency-16-8")
def test_truncated(case, measure, baseline):
    baseline.check(measure(case), OUTPUT_THROUGHPUT)

@pytest.mark.cases(**TINY, layout="tp1", task="answers")
def test_asked(case, answers):
    assert answers(case).again == answers(case).together
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory)


def real_folder(path: Path, checkpoint: Path, suite: str = REAL) -> Folder:
    folder = Folder(path)
    truncated = path / "cut"
    shutil.copytree(checkpoint, truncated)
    (file,) = truncated.glob("*.safetensors")
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size * 2 // 3)
    suite = suite.replace("CHECKPOINT", repr(str(checkpoint))).replace("TRUNCATED", repr(str(truncated)))
    folder.write(conftest=CONFTEST, driver=WRAPPED, test_real=suite)
    folder.ini("llamaperf_deadlines = load=60 run=60 close=30")
    return folder


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> tuple[Folder, pytest.RunResult]:
    folder = real_folder(tmp_path_factory.mktemp("broken"), checkpoint)
    return folder, folder.run("--gpu=cpu", "--restarts=1", "--rounds=1", "--results=out")


def error_of(folder: Folder, name: str) -> str:
    (result,) = [result for result in folder.run_json()["results"] if named(result) == name]
    assert result["outcome"] == "error"
    return str(result["message"])


def test_a_rank_that_is_killed_is_named_and_ends_its_engine(broken: tuple[Folder, pytest.RunResult]) -> None:
    message = error_of(broken[0], "rank_killed")

    assert re.match(r"the engine died \(run\): .*rank [01] of 2 died by signal 9 \(SIGKILL\)", message), message


def test_a_network_too_large_for_memory_is_told_as_that(broken: tuple[Folder, pytest.RunResult]) -> None:
    assert error_of(broken[0], "memory").startswith("the engine ran out of memory (load): ")


def test_a_checkpoint_that_is_cut_off_is_refused_before_any_engine(broken: tuple[Folder, pytest.RunResult]) -> None:
    message = error_of(broken[0], "truncated")

    assert re.search(r"cut/model\.safetensors: .*bytes", message), message
    assert not (broken[0].path / "out" / "engines" / "cpu_torch_cut_bf16_tp1.log").exists()


def test_the_other_tests_have_their_engines(broken: tuple[Folder, pytest.RunResult]) -> None:
    outcomes = {named(test): test["outcome"] for test in broken[0].run_json()["tests"]}

    assert outcomes == {
        "healthy": "skipped", "rank_killed": "failed", "memory": "failed", "truncated": "failed", "asked": "passed",
    }  # fmt: skip
    broken[1].stdout.no_fnmatch_line("*INTERNALERROR*")


def test_nothing_is_left_of_the_real_engines(broken: tuple[Folder, pytest.RunResult]) -> None:
    assert broken[0].left_over() == {}


# --- the session itself is ended -------------------------------------------------------------------------------------

ENDED = """
import pytest
from pytest_llamaperf import OUTPUT_THROUGHPUT

def test_before():
    pass

@pytest.mark.cases(model=CHECKPOINT, hardware="cpu", recipe="bf16", layout="tp3", workload="concurrency-4-64-512")
@pytest.mark.versus(layout="tp1")
def test_long(case, other, measure):
    measure(case), measure(other)

def test_after():
    pass
"""


@pytest.fixture
def running(tmp_path: Path, checkpoint: Path) -> Iterator[tuple[Folder, subprocess.Popen[str]]]:
    """A session in the middle of a run of four ranks in two engines."""
    folder = real_folder(tmp_path, checkpoint, ENDED)
    # An interrupt may come between opening a file and the place that closes it, so warnings are no errors.
    process = folder.start("--gpu=cpu", "--restarts=1", "--rounds=1", "--results=out", "-W", "default")
    try:
        wait_for((folder.path / "running").exists)
        assert len(folder.processes()) == 1 + 2 + 4  # pytest, two drivers, the ranks of both
        yield folder, process
    finally:
        process.kill()
        for left in folder.processes():
            left.kill()
        process.communicate()


def jsonl(folder: Folder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder.path / "out" / "run.jsonl").read_text().splitlines()]


def test_ctrl_c_ends_the_engines_and_the_results_say_what_was_not_done(
    running: tuple[Folder, subprocess.Popen[str]],
) -> None:
    folder, process = running
    started = time.monotonic()

    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=PATIENCE)

    assert process.returncode == pytest.ExitCode.INTERRUPTED
    assert time.monotonic() - started < 30  # the deadline of closing: of the engine that was idle
    assert "KeyboardInterrupt" in output
    assert "INTERNALERROR" not in output
    document = folder.run_json()
    assert {named(test): test["outcome"] for test in document["tests"]} == {"before": "passed", "long": "unfinished"}
    assert document["results"] == []
    reasons = document["decision"]["reasons"]
    assert document["decision"]["releasable"] is False
    assert "not run: 1 test" in reasons
    assert "the session ended early, by SIGINT" in reasons
    assert document["run"]["interrupted"] == "SIGINT"
    assert [named({"nodeid": nodeid}) for nodeid in document["not_run"]] == ["after"]
    assert any(reason.startswith("unfinished: test_real.py::test_long") for reason in reasons)
    assert [named(line["test"]) for line in jsonl(folder) if "test" in line] == ["before"]
    assert folder.left_over() == {}


def test_ctrl_c_pressed_again_and_again_leaves_no_engine(running: tuple[Folder, subprocess.Popen[str]]) -> None:
    folder, process = running

    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    process.communicate(timeout=PATIENCE)

    assert process.returncode != 0
    assert folder.left_over().get("processes") is None


def test_engines_of_a_pytest_that_is_killed_disappear_by_themselves(
    running: tuple[Folder, subprocess.Popen[str]],
) -> None:
    folder, process = running

    os.kill(process.pid, signal.SIGKILL)

    process.wait(PATIENCE)
    wait_for(lambda: not folder.processes(), patience=10)
    assert not (folder.path / "out" / "run.json").exists()
    assert [named(line["test"]) for line in jsonl(folder) if "test" in line] == ["before"]


def test_what_a_pytest_that_was_killed_left_is_removed_by_the_next_session_that_measures(
    running: tuple[Folder, subprocess.Popen[str]],
) -> None:
    folder, process = running
    os.kill(process.pid, signal.SIGKILL)
    process.wait(PATIENCE)
    wait_for(lambda: not folder.processes(), patience=10)
    left = folder.left_over()
    assert left.keys() == {"files", "reservations"}
    assert all(name.startswith("llamaperf-engine-") for name in left["files"])
    assert len(left["files"]) == 2

    folder.write(conftest=fake_engine(every=[100.0]))
    folder.run("--gpu=cpu", "--restarts=1", "--rounds=1")

    assert folder.left_over() == {}
