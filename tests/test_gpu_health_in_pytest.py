"""What becomes of GPUs decides what whole sessions say: with a doubled driver, and engines that take no time."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pynvml

# pytester forgets what a session it runs imports first, and numpy refuses to be loaded twice.
import pytest
import scipy.special  # noqa: F401
from engine_sessions import Folder, fake_engine, wait_for
from nvml_driver import H200, Driver, wait_for_looks

from pytest_llamaperf.gpu_watch import memory, strangers, watching
from pytest_llamaperf.gpu_watch.keeping import COLUMNS

pytest_plugins = ["pytester"]

GIB = 2**30
CASE = "h200/tensorrt-llm/llama-3.1-8b/{}/tp1/max-throughput-128-128"

SUITE = """
import pytest
from pytest_llamaperf import OUTPUT_THROUGHPUT

@pytest.mark.cases(hardware="h200", model="llama-3.1-8b", recipe=["bf16", "modelopt-fp8"], layout="tp1",
                   workload="max-throughput-128-128")
def test_speed(case, measure, baseline):
    baseline.check(measure(case), OUTPUT_THROUGHPUT)
"""

# Its engines are opened under TensorRT-LLM's name, and call what a test has put here while they run and close.
ENGINE = (
    fake_engine(every=[100.0, 101.0])
    + """
import nvml_driver

class Visible(Engine):
    def run(self, workload):
        nvml_driver.HAPPENING("run", self.name)
        return super().run(workload)

    def close(self):
        super().close()
        nvml_driver.HAPPENING("close", self.name)

@__import__("pytest").hookimpl(tryfirst=True)
def pytest_llamaperf_engines():
    return {"tensorrt-llm": Visible}
"""
)

PROMISES = """
schema: 1
references: {here: made up for these tests}
promises:
  tensorrt-llm/llama-3.1-8b/bf16/tp1/max-throughput-128-128:
    output_throughput: &PROMISE
  tensorrt-llm/llama-3.1-8b/modelopt-fp8/tp1/max-throughput-128-128:
    output_throughput: &PROMISE
""".replace("&PROMISE", "{value: 100.0, unit: tok/s, tolerance: 0.5, source: published, reference: here}")

Session = Callable[..., dict[str, Any]]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    monkeypatch.setattr(watching, "INTERVAL", 0.01)
    monkeypatch.setattr(memory, "GLANCE", 0.01)
    monkeypatch.setattr(memory, "FREEING", 0.1)
    monkeypatch.setattr(strangers, "numbers_are_ours", lambda: True)
    return Driver(monkeypatch, H200)


@pytest.fixture
def session(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, driver: Driver) -> Session:
    """Runs a session under the gate, with two promises that are kept; what happens meanwhile is for a test to say."""

    def run(happening: Callable[[str, str], None] = lambda verb, name: None, *options: str) -> dict[str, Any]:
        monkeypatch.setattr("nvml_driver.HAPPENING", happening, raising=False)
        pytester.makeconftest(ENGINE)
        pytester.makepyfile(SUITE)
        folder = pytester.mkdir("baselines")
        (folder / "h200").mkdir()
        (folder / "h200" / "llama-3.1-8b.yaml").write_text(PROMISES)
        given = ("--gpu=h200", "--engine=tensorrt-llm", "--restarts=2", "--rounds=1", "--results=out", *options)
        result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "--gate", *given)
        document: dict[str, Any] = json.loads((pytester.path / "out" / "run.json").read_text())
        document["exit"] = int(result.ret)
        document["output"] = result.stdout.str() + result.stderr.str()
        return document

    return run


def outcomes(document: dict[str, Any]) -> dict[str, str]:
    return {result["case"]["recipe"]: result["outcome"] for result in document["results"]}


def messages(document: dict[str, Any]) -> str:
    return "\n".join(result["message"] for result in document["results"])


def test_healthy_gpus_release_and_their_health_stands_with_each_result(
    session: Session, pytester: pytest.Pytester
) -> None:
    document = session()

    assert document["decision"]["reasons"] == []
    assert document["exit"] == 0
    for result in document["results"]:
        health = result["health"]
        assert (health["blind"], health["lock_clocks"], health["trace_problem"]) == (None, None, None)
        assert health["gpus"][0]["uuid"] == "GPU-0"
        assert health["gpus"][0]["sm_clock"] == {"min": 1980, "median": 1980, "max": 1980}
        assert health["gpus"][0]["power"]["median"] == 412.3
        assert "clock" not in json.dumps(result["fingerprint"])
        lines = (pytester.path / "out" / health["trace"]).read_text().splitlines()
        assert json.loads(lines[0])["case"] == result["case"]["id"]
        assert sum('"ended"' in line for line in lines) == 4  # two restarts, each warmed up by a run


def test_a_slowdown_is_an_error_of_its_case_and_the_next_one_is_measured(session: Session, driver: Driver) -> None:
    def hot(verb: str, name: str) -> None:
        driver.reasons = [pynvml.nvmlClocksEventReasonHwThermalSlowdown if (verb, name) == ("run", "bf16/tp1") else 0]
        if verb == "run":
            wait_for_looks()

    document = session(hot)

    assert outcomes(document) == {"bf16": "error", "modelopt-fp8": "pass"}
    assert "the machine was not fit to measure on (run): GPU 0 was slowed down by its hardware, too hot" in messages(
        document
    )
    assert document["exit"] == 1


@pytest.mark.parametrize(
    ("name", "error", "after"),
    [
        ("nvmlDeviceGetClockInfo", pynvml.NVML_ERROR_UNKNOWN, 2),
        ("nvmlDeviceGetCurrentClocksEventReasons", pynvml.NVML_ERROR_NOT_SUPPORTED, 0),
        ("nvmlDeviceGetComputeRunningProcesses", pynvml.NVML_ERROR_NO_PERMISSION, 0),
    ],
)
def test_what_was_measured_blind_passes_and_releases_nothing(
    session: Session, driver: Driver, name: str, error: int, after: int
) -> None:
    driver.fail(name, error, after=after)

    document = session()

    assert outcomes(document) == {"bf16": "pass", "modelopt-fp8": "pass"}
    (reason,) = document["decision"]["reasons"]
    assert re.match("measured blind: 2 results: ", reason)
    assert document["exit"] == 1


def test_a_driver_that_lies_zeros_releases_nothing(session: Session, driver: Driver) -> None:
    driver.clocks = {0: (0, 0)}

    reasons = session()["decision"]["reasons"]

    assert reasons == ["measured blind: 2 results: GPU 0 is said to have a clock of 0 MHz at every look"]


def test_a_leak_fails_the_case_that_leaks_and_no_other(session: Session, driver: Driver) -> None:
    def leak(verb: str, name: str) -> None:
        if (verb, name) == ("run", "bf16/tp1"):
            driver.used = {0: 70 * GIB}
        elif (verb, name) == ("close", "bf16/tp1"):
            driver.used = {0: GIB}
        elif verb == "close":
            driver.used = {0: 2}

    document = session(leak)

    assert outcomes(document) == {"bf16": "error", "modelopt-fp8": "pass"}
    assert re.search(
        r"the engine left something behind \(close\): GPU 0 holds 1.0 GiB \(1,073,741,822 bytes\) more than before",
        messages(document),
    )


def test_a_gpu_that_is_gone_skips_what_needs_it_and_releases_nothing(
    monkeypatch: pytest.MonkeyPatch, session: Session, pytester: pytest.Pytester
) -> None:
    driver = Driver(monkeypatch, *[H200] * 8)
    driver.fail("nvmlDeviceGetName", pynvml.NVML_ERROR_GPU_IS_LOST, gpu=5)
    pytester.makepyfile(test_eight=SUITE.replace('layout="tp1"', 'layout="tp8"'))

    document = session()

    reasons = document["decision"]["reasons"]
    assert any("needs 8 H200, found 7" in reason for reason in reasons)
    assert outcomes(document) == {"bf16": "error", "modelopt-fp8": "error"}
    assert "a GPU or the links between GPUs failed (load): GPU 5: GPU is lost" in messages(document)


def test_a_recording_of_other_gpus_is_played_to_a_whole_session(
    session: Session, driver: Driver, tmp_path: Path
) -> None:
    slow = [0, 1410, 3201, 0x20, 88, 690.0, 70 * GIB, {}]
    lines = [{"columns": COLUMNS}, *({"at": at, "samples": [slow]} for at in (0.0, 0.5))]
    (tmp_path / "recorded.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def play(verb: str, name: str) -> None:
        if verb == "run":
            driver.play(tmp_path / "recorded.jsonl")
            wait_for_looks()

    document = session(play)

    assert "slowed down by its driver, too hot" in messages(document)
    assert "at up to 88 °C, with clocks down to 1,410 MHz" in messages(document)


# Clocks


def test_clocks_are_locked_while_a_session_measures_and_unlocked_after_it(
    session: Session, driver: Driver, pytester: pytest.Pytester
) -> None:
    during: list[dict[int, int]] = []

    document = session(lambda verb, name: during.append(dict(driver.locked)), "--lock-clocks=1500")

    assert during
    assert all(locked == {0: 1500} for locked in during)
    assert driver.locked == {}
    assert {result["health"]["lock_clocks"] for result in document["results"]} == {1500}
    assert {result["fingerprint"]["settings"]["SM clocks locked at"] for result in document["results"]} == {1500}
    assert list(Path(os.environ["LLAMAPERF_LOCKS"]).iterdir()) == []


def test_without_permission_clocks_stay_as_they_are_and_nothing_is_measured(session: Session, driver: Driver) -> None:
    driver.fail("nvmlDeviceSetGpuLockedClocks", pynvml.NVML_ERROR_NO_PERMISSION)

    document = session(lambda verb, name: None, "--lock-clocks=1500")

    assert outcomes(document) == {"bf16": "error", "modelopt-fp8": "error"}
    assert "--lock-clocks 1500: Insufficient Permissions; this needs root, or leave the option out" in messages(
        document
    )
    assert list(Path(os.environ["LLAMAPERF_LOCKS"]).iterdir()) == []


def test_clocks_that_a_killed_session_locked_are_unlocked_by_the_next(session: Session, driver: Driver) -> None:
    locks = Path(os.environ["LLAMAPERF_LOCKS"])
    locks.mkdir(parents=True)
    (locks / "GPU-0.clocks").write_text('{"mhz": 1200, "pid": 1}\n')
    driver.locked = {0: 1200}

    document = session()

    assert document["exit"] == 0
    assert driver.locked == {}
    assert list(locks.iterdir()) == []


def test_clocks_that_stay_locked_let_nobody_measure(session: Session, driver: Driver) -> None:
    locks = Path(os.environ["LLAMAPERF_LOCKS"])
    locks.mkdir(parents=True)
    (locks / "GPU-0.clocks").write_text('{"mhz": 1200, "pid": 1}\n')
    driver.fail("nvmlDeviceResetGpuLockedClocks", pynvml.NVML_ERROR_NO_PERMISSION)

    document = session()

    assert outcomes(document) == {"bf16": "error", "modelopt-fp8": "error"}
    assert "let an administrator do it: nvidia-smi -i 0 -rgc && rm " in messages(document)
    assert [path.name for path in locks.iterdir()] == ["GPU-0.clocks"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--gpu=cpu", "--lock-clocks=1500"), "--lock-clocks with --gpu cpu: no GPU is measured on"),
        (("--gpu=h200", "--engine=predicted", "--lock-clocks=1500"), "--lock-clocks with --engine predicted"),
        (("--lock-clocks=fast",), "a whole number from 1 up, not 'fast'"),
        (("-o", "llamaperf_wait=soon"), "llamaperf_wait: 'soon' is no number of seconds"),
        (("-o", "llamaperf_wait=-1"), "llamaperf_wait: '-1' is no number of seconds"),
    ],
)
def test_what_cannot_be_is_refused_at_the_start(pytester: pytest.Pytester, options: tuple[str, ...], told: str) -> None:
    pytester.makepyfile("def test_nothing(): pass")

    result = pytester.runpytest_inprocess(*options)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert told in result.stderr.str()


# Two sessions on one machine


MEASURING = """
import pytest
from pytest_llamaperf import OUTPUT_THROUGHPUT

@pytest.mark.cases(model="smollm2-135m", hardware="cpu", recipe=RECIPES, layout="tp1", workload="min-latency-16-8")
def test_speed(case, measure, baseline):
    baseline.check(measure(case), OUTPUT_THROUGHPUT)
"""

# The first session goes on until it is allowed to end.
LONG = (
    fake_engine(every=[100.0, 101.0])
    + """
import pathlib, time

class Long(Engine):
    def run(self, workload):
        pathlib.Path("measuring").touch()
        while not pathlib.Path("enough").exists():
            time.sleep(0.05)
        return super().run(workload)

def pytest_llamaperf_engines():
    return {"torch": Long}
"""
)


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Folder, Folder, subprocess.Popen[str]]]:
    """Two projects of one machine, and the session of the first, in the middle of measuring."""
    first, second = Folder(tmp_path / "first"), Folder(tmp_path / "second")
    for folder in (first, second):
        folder.write(conftest=LONG, test_mine=MEASURING.replace("RECIPES", '["bf16", "fp32"]'))
        (folder.path / "locks").symlink_to(tmp_path / "locks")
    (tmp_path / "locks").mkdir()
    (second.path / "enough").touch()
    # Nobody here is an ancestor: what this test reserved itself would be everybody's.
    process = first.start("--gpu=cpu", "--restarts=1", "--rounds=1", "--results=out")
    try:
        wait_for((first.path / "measuring").exists)
        yield first, second, process
    finally:
        process.kill()
        process.communicate()


def test_a_second_session_on_the_machine_is_refused_and_names_the_first(
    two: tuple[Folder, Folder, subprocess.Popen[str]],
) -> None:
    first, second, process = two

    result = second.run("--gpu=cpu", "--restarts=1", "--results=out", "--gate")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    document = second.run_json()
    assert {entry["outcome"] for entry in document["results"]} == {"error"}
    assert re.search(
        rf"another session measures on this machine \(load\): cpu is measured on by process {process.pid} "
        r"\(.*--gpu=cpu --restarts=1 --rounds=1 --results=out\) since 20",
        messages(document),
    )
    assert second.words() == []  # no engine was opened beside the first one's
    assert document["engines"] == []  # and none held anything meanwhile
    (first.path / "enough").touch()
    process.communicate(timeout=60)
    assert {entry["outcome"] for entry in first.run_json()["results"]} == {"no-baseline"}
    assert second.run("--gpu=cpu", "--restarts=1", "--results=out").parseoutcomes() == {"skipped": 2}
    assert first.left_over() == second.left_over() == {}


def test_a_second_session_that_waits_measures_after_the_first(
    two: tuple[Folder, Folder, subprocess.Popen[str]],
) -> None:
    first, second, process = two
    waiting = second.start("--gpu=cpu", "--restarts=1", "-o", "llamaperf_wait=60")
    wait_for((second.path / "tmp").iterdir)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.communicate(timeout=3)
    assert second.words() == []

    (first.path / "enough").touch()
    process.communicate(timeout=60)
    output, _ = waiting.communicate(timeout=60)

    assert "2 skipped" in output  # measured, and nothing is promised
    assert second.words("engines.log").count("open bf16/tp1") == 1


def test_a_session_that_is_killed_leaves_the_machine_to_the_next(
    two: tuple[Folder, Folder, subprocess.Popen[str]],
) -> None:
    first, second, process = two
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert first.left_over().keys() == {"reservations"}

    assert second.run("--gpu=cpu", "--restarts=1").parseoutcomes() == {"skipped": 2}

    assert second.left_over() == {}
    (first.path / "enough").touch()
    assert first.run("--gpu=cpu", "--restarts=1").parseoutcomes() == {"skipped": 2}
    assert first.left_over() == {}


@pytest.mark.parametrize(
    "options", [("--gpu=h200", "--engine=predicted"), ("--gpu=cpu", "--collect-only"), ("--gpu=cpu", "-k", "nothing")]
)
def test_who_does_not_measure_is_not_refused(
    two: tuple[Folder, Folder, subprocess.Popen[str]], options: tuple[str, ...]
) -> None:
    _, second, _ = two
    text = 'def test_predicted(case, predict):\n    predict(case)\ntest_predicted = __import__("pytest").mark.cases(hardware="h200", model="llama-3.1-8b", recipe="bf16", layout="tp1", workload="max-throughput-128-128")(test_predicted)\n'
    second.write(test_other=text)

    result = second.run(*options)

    assert result.ret in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
