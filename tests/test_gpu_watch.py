"""GPUs that were not fit to measure on, with a driver that answers as it is told or as was recorded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pynvml
import pytest
from builders import case
from nvml_driver import H100, H200, Driver, recorded, wait_for_looks

from pytest_llamaperf.cases import Workload
from pytest_llamaperf.engines import Run
from pytest_llamaperf.gpu_health import REASONS, Health, reason_names
from pytest_llamaperf.gpu_watch import memory, strangers, watching
from pytest_llamaperf.gpu_watch.gpus import WatchedGpus
from pytest_llamaperf.gpu_watch.judging import blindness, slowdowns
from pytest_llamaperf.gpu_watch.keeping import COLUMNS, trace_name
from pytest_llamaperf.gpu_watch.looking import look
from pytest_llamaperf.hosting.failures import EngineFailure
from pytest_llamaperf.hosting.processes import OWNER, is_ours, new_owner
from pytest_llamaperf.lengths import request_lengths
from pytest_llamaperf.measurements import Source
from pytest_llamaperf.measuring import Rounds, Sampling, measurement
from pytest_llamaperf.traces import Trace

TOO_HOT = pynvml.nvmlClocksEventReasonHwThermalSlowdown
AT_ITS_POWER_LIMIT = pynvml.nvmlClocksEventReasonSwPowerCap
GIB = 2**30
TP2 = case("tensorrt-llm/llama-3.1-8b/modelopt-fp8/tp2/max-throughput-128-128")


def run_of(workload: Workload) -> Run:
    return Run(tuple(Trace(0.0, 0.5, 1.0, isl, osl) for isl, osl in request_lengths(workload)))


class Quick:
    """Works until it was looked at often enough."""

    source = Source.MEASURED

    def run(self, workload: Workload) -> Run:
        wait_for_looks()
        return run_of(workload)

    def close(self) -> None: ...


class Fresh(Quick):
    """Loads its model for every run."""

    starts_with_every_run = True


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine of these tests is, it is no container, unless a test says so."""
    monkeypatch.setattr(watching, "INTERVAL", 0.01)
    monkeypatch.setattr(memory, "GLANCE", 0.01)
    monkeypatch.setattr(memory, "FREEING", 0.1)
    monkeypatch.setattr(strangers, "numbers_are_ours", lambda: True)


def watched(count: int = 1, **how: Any) -> WatchedGpus:
    return WatchedGpus("h200", [f"GPU-{index}" for index in range(count)], **how)


def rounds(gpus: WatchedGpus | None = None) -> Rounds:
    return Rounds(case(), Sampling(restarts=1, rounds=1, gpus=gpus or watched()))


def measured(gpus: WatchedGpus, engine: Quick | None = None) -> Health:
    found = rounds(gpus)
    found.measure(engine or Quick())
    health = measurement(case(), Source.MEASURED, [found]).health
    assert health is not None
    return health


def recording(path: Path, *looks: Sequence[dict[str, Any]]) -> Path:
    """Samples of one look after the other, each with what a test cares about."""
    told = {
        "sm_clock": 1980, "memory_clock": 3201, "reasons": 0, "temperature": 50, "power": 400.0,
        "used": 70 * GIB, "processes": {},
    }  # fmt: skip
    lines = [{"schema": 1, "columns": COLUMNS}, {"began": "2026-11-22T10:00:00Z", "gpus": {}}]
    for samples in looks:
        rows = [{"gpu": gpu, **told, **sample} for gpu, sample in enumerate(samples)]
        lines.append({"at": 0.0, "samples": [[row[column] for column in COLUMNS] for row in rows]})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


# Slowed down


def test_a_slowdown_for_a_moment_in_the_middle_is_seen_and_no_result(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hot = {"reasons": TOO_HOT, "temperature": 93, "sm_clock": 1215}
    driver = Driver(monkeypatch, H200, H200)
    driver.play(
        recording(tmp_path / "hot.jsonl", [{}, {}], [{}, {}], [{}, hot], [{}, hot | {"temperature": 91}], [{}, {}])
    )

    with pytest.raises(EngineFailure) as failed:
        rounds(watched(2)).measure(Quick())

    assert (failed.value.kind, failed.value.phase) == ("unstable", "run")
    told = str(failed.value)
    assert told.startswith(
        "the machine was not fit to measure on (run): GPU 1 was slowed down by its hardware, too hot from"
    )
    assert " of the run, in 2 of " in told
    assert "looks, at up to 93 °C, with clocks down to 1,215 MHz" in told
    assert "GPU 0" not in told


@pytest.mark.parametrize(
    ("bits", "told"),
    [
        (0x08, "slowed down by its hardware at"),
        (0x48, "slowed down by its hardware, too hot at"),
        (0x88, "slowed down by its power supply at"),
        (0x20, "slowed down by its driver, too hot at"),
        (0x24, "slowed down by its driver, too hot at"),
    ],
)
def test_a_cause_is_told_once_and_as_exactly_as_the_driver_does(
    monkeypatch: pytest.MonkeyPatch, bits: int, told: str
) -> None:
    Driver(monkeypatch, H200).reasons = [bits]

    (only,) = slowdowns([look(1.0, 0, 0)])

    assert told in only


def test_the_bits_are_those_of_nvml() -> None:
    assert {bits: name for bits, name in REASONS.items() if bits in (0x4, 0x8, 0x20, 0x40, 0x80)} == {
        AT_ITS_POWER_LIMIT: "power limit",
        pynvml.nvmlClocksEventReasonHwSlowdown: "hardware slowdown",
        pynvml.nvmlClocksEventReasonSwThermalSlowdown: "software thermal slowdown",
        TOO_HOT: "hardware thermal slowdown",
        pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: "hardware power brake",
    }
    assert reason_names(0x1004) == ["power limit", "0x1000"]


def test_a_gpu_at_its_power_limit_does_what_it_was_bought_for(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, H200)
    driver.reasons = [AT_ITS_POWER_LIMIT]

    health = measured(watched())

    assert health.blind is None
    assert health.gpus[0].reasons == {"power limit": health.looks}
    assert driver.open == 0


# Strangers


def test_a_stranger_that_comes_during_a_run_is_told_with_what_it_held(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there = {"processes": {"1": 12 * GIB}}
    Driver(monkeypatch, H200, H200).play(recording(tmp_path / "t.jsonl", [{}, {}], [{}, there], [{}, there], [{}, {}]))

    with pytest.raises(
        EngineFailure, match=r"process 1 \(\w.* of root\) was on GPU 1 from .* in 2 of \d+ looks, with up to 12.0 GiB"
    ) as failed:
        rounds(watched(2)).measure(Quick())

    assert failed.value.kind == "unstable"


@pytest.fixture
def orphan() -> Iterator[int]:
    """A process of one of our hosts that lost its parent and left its session."""
    program = (
        "import os, sys, time; os.fork() and os._exit(0); os.setsid(); print(os.getpid(), flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, OWNER: new_owner()}, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.wait()
    parent.stdout.close()
    yield pid
    os.kill(pid, 9)


def test_processes_of_the_engine_are_no_strangers(monkeypatch: pytest.MonkeyPatch, orphan: int) -> None:
    driver = Driver(monkeypatch, H200)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    driver.processes = {0: {os.getpid(): None, child.pid: 70 * GIB, orphan: GIB}}

    try:
        assert measured(watched()).blind is None
        assert is_ours(orphan)
    finally:
        child.communicate()


def test_a_process_of_another_session_is_a_stranger_though_it_is_marked(
    orphan: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_llamaperf.hosting.processes._MARK", "another")

    assert not is_ours(orphan)


def test_in_a_container_a_number_tells_a_stranger_by_when_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver may count processes as the machine outside does: 999999 is nobody here."""
    monkeypatch.setattr(strangers, "numbers_are_ours", lambda: False)
    driver = Driver(monkeypatch, H200)
    gpus = watched()
    driver.processes = {0: {999_998: GIB}}
    gpus.check_free()
    driver.processes = {0: {999_999: 70 * GIB}}
    assert measured(gpus).blind is None  # the engine's, as far as anybody can tell

    driver.processes = {0: {999_998: GIB, 999_999: 70 * GIB}}
    with pytest.raises(EngineFailure, match="process 999998, as the driver counts, was on GPU 0"):
        rounds(gpus).measure(Quick())

    gpus.check_free()
    before_and_after: list[dict[int, int | None]] = [{999_997: 70 * GIB}, {999_997: 70 * GIB, 999_996: GIB}]

    def come(handle: int) -> list[Any]:
        told = before_and_after.pop(0) if len(before_and_after) > 1 else before_and_after[0]
        return [type("P", (), {"pid": pid, "usedGpuMemory": used}) for pid, used in told.items()]

    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", come)
    with pytest.raises(EngineFailure, match="process 999996, as the driver counts, was on GPU 0"):
        rounds(gpus).measure(Quick())


def test_in_a_container_what_comes_with_an_engine_that_loads_is_taken_for_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(strangers, "numbers_are_ours", lambda: False)
    loads = {"processes": {"999999": 70 * GIB}}
    Driver(monkeypatch, H200).play(recording(tmp_path / "t.jsonl", [{}], [loads], [loads]))

    assert measured(watched(), Fresh()).blind is None


def test_gpus_of_another_kind_or_not_for_us_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, H100, H200, H200)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    driver.used = {0: 60 * GIB, 1: 60 * GIB}
    driver.processes = {0: {1: GIB}, 1: {1: GIB}}
    gpus = WatchedGpus("h200", ["GPU-2"])

    gpus.check_free()

    assert [found.gpu for found in measured(gpus).gpus] == [2]


# Nobody can tell


def blind_note(gpus: WatchedGpus) -> tuple[str | None, tuple[str, ...]]:
    found = rounds(gpus)
    found.measure(Quick())
    told = measurement(case(), Source.MEASURED, [found])
    assert told.health is not None
    return told.health.blind, told.notes


def test_a_driver_that_is_missing_makes_a_measurement_blind(monkeypatch: pytest.MonkeyPatch) -> None:
    Driver(monkeypatch, H200).fail("nvmlInit", pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    gpus = watched()

    gpus.check_free()

    assert gpus.check_given_back() == "before the engine opened: NVML Shared Library Not Found"
    assert blind_note(gpus) == (
        "NVML Shared Library Not Found",
        ("the GPUs were not watched: NVML Shared Library Not Found",),
    )


@pytest.mark.parametrize(
    "name",
    [
        "nvmlDeviceGetClockInfo", "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetTemperature",
    ],
)  # fmt: skip
def test_a_driver_that_fails_half_way_makes_a_measurement_blind(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    driver = Driver(monkeypatch, H200)
    driver.fail(name, pynvml.NVML_ERROR_UNKNOWN, after=5)

    assert measured(watched()).blind == "Unknown Error"
    assert driver.open == 0


def test_a_driver_that_failed_only_before_the_engine_opened_leaves_it_blind(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, H200)
    gpus = watched()
    with monkeypatch.context() as failing:
        driver._monkeypatch = failing
        driver.fail("nvmlDeviceGetMemoryInfo", pynvml.NVML_ERROR_UNKNOWN)
        gpus.check_free()

    assert measured(gpus).blind == "before the engine opened: Unknown Error"


def test_what_a_gpu_has_no_sensor_for_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, H200)
    driver.fail("nvmlDeviceGetPowerUsage", pynvml.NVML_ERROR_NOT_SUPPORTED)

    health = measured(watched())

    assert (health.blind, health.gpus[0].power) == (None, None)
    assert health.gpus[0].temperature is not None


def test_clocks_of_nothing_but_zeros_are_no_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    Driver(monkeypatch, H200, H200).clocks = {1: (0, 0)}

    assert measured(watched(2)).blind == "GPU 1 is said to have a clock of 0 MHz at every look"


def test_memory_of_nothing_but_zeros_under_an_engine_is_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, H200, H200)
    driver.used = {0: 70 * GIB, 1: 0}
    gpus = watched(2)

    on_one, on_both = (Rounds(each, Sampling(restarts=1, rounds=1, gpus=gpus)) for each in (case(), TP2))
    for found in (on_one, on_both):
        found.measure(Quick())

    assert [found.kept()[0].watched.blind for found in (on_one, on_both)] == [  # type: ignore[union-attr]
        None,
        "GPU 1 is said to hold 0 bytes at every look, and an engine is loaded",
    ]


def test_a_gap_between_looks_is_told() -> None:
    looks = [look_at(at) for at in (0.0, 0.5, 1.0, 7.5, 8.0)]

    assert blindness(looks, 8.2, 1) == "no look at GPU 0 for 6.5 s from second 1.0"
    assert blindness(looks[:3], 4.0, 1) is None
    assert blindness(looks[:3], 6.1, 1) == "no look at GPU 0 for 5.1 s from second 1.0"
    assert blindness([], 1.0, 1) == "nobody looked"


def look_at(at: float) -> Any:
    from pytest_llamaperf.gpu_health import Sample

    return Sample(at, 0, 1980, None, 0, None, None, GIB)


def test_whatever_breaks_in_the_watch_it_was_blind(monkeypatch: pytest.MonkeyPatch) -> None:
    Driver(monkeypatch, H200)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetClockInfo", lambda handle, kind: int("no number"))

    assert "invalid literal" in str(measured(watched()).blind)


def test_a_driver_that_does_not_answer_does_not_hang_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    Driver(monkeypatch, H200)
    monkeypatch.setattr(watching, "PATIENCE", 0.2)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetClockInfo", lambda handle, kind: time.sleep(1) or 1980)
    monkeypatch.setattr(Quick, "run", lambda engine, workload: run_of(workload))

    assert measured(watched()).blind == "the driver has not answered for 0.2 s"
    for thread in threading.enumerate():
        if thread.name == watching.THREAD:
            thread.join()  # or it would hand back the driver of another test


def test_a_leak_that_nobody_can_look_for_makes_a_measurement_blind(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, H200)
    gpus = watched()
    gpus.check_free()
    found = rounds(gpus)
    found.measure(Quick())
    driver.fail("nvmlDeviceGetMemoryInfo", pynvml.NVML_ERROR_UNKNOWN)

    unseen = gpus.check_given_back()

    assert unseen == "after the engine closed: Unknown Error"
    health = measurement(case(), Source.MEASURED, [found], unseen=[unseen]).health
    assert health is not None
    assert health.blind == unseen


# A GPU that is gone


def test_a_gpu_that_is_lost_during_a_run_is_a_fault_and_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, *[H200] * 8)
    driver.fail("nvmlDeviceGetClockInfo", pynvml.NVML_ERROR_GPU_IS_LOST, gpu=5, after=4)

    with pytest.raises(EngineFailure, match="GPU 5 was lost") as failed:
        rounds(watched(8)).measure(Quick())

    assert failed.value.kind == "gpu-fault"
    assert driver.open == 0


def test_a_gpu_that_is_gone_since_the_session_began_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    Driver(monkeypatch, *[H200] * 7)

    with pytest.raises(EngineFailure, match="GPU-7 is gone") as failed:
        rounds(watched(8)).measure(Quick())

    assert failed.value.kind == "gpu-fault"


def test_a_gpu_that_is_lost_before_an_engine_opens_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, *[H200] * 8)
    driver.fail("nvmlDeviceGetName", pynvml.NVML_ERROR_GPU_IS_LOST, gpu=5)

    with pytest.raises(EngineFailure, match="GPU 5: GPU is lost") as failed:
        watched(8).check_free()

    assert (failed.value.kind, failed.value.phase) == ("gpu-fault", "load")


def test_a_lost_gpu_that_is_lent_to_somebody_else_is_not_our_affair(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, *[H200] * 3)
    driver.fail("nvmlDeviceGetName", pynvml.NVML_ERROR_GPU_IS_LOST, gpu=2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    gpus = watched(2)

    gpus.check_free()

    assert measured(gpus).blind is None


# Memory before and after an engine


def test_memory_that_others_hold_is_waited_for_and_then_told_with_who_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, H200, H200)
    driver.used = {1: 12 * GIB}
    driver.processes = {1: {1: 12 * GIB}}
    began = time.monotonic()

    with pytest.raises(
        EngineFailure, match=r"GPU 1 has 12.0 GiB in use before the engine starts: process 1 \(\w.* of root\)"
    ) as failed:
        watched(2).check_free()

    assert (failed.value.kind, failed.value.phase) == ("unstable", "load")
    assert time.monotonic() - began >= 0.1
    assert driver.open == 0


def test_memory_that_comes_back_in_time_is_no_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, H200)
    monkeypatch.setattr(memory, "FREEING", 20.0)
    gpus = watched()
    gpus.check_free()
    answers = [70 * GIB, 70 * GIB, 200 * 2**20]
    monkeypatch.setattr(
        "pytest_llamaperf.gpu_watch.memory.memory_used",
        lambda handle: answers.pop(0) if len(answers) > 1 else answers[0],
    )

    assert gpus.check_given_back() is None
    assert answers == [200 * 2**20]
    assert driver.open == 0


def test_memory_that_does_not_come_back_is_a_leak_with_bytes_and_processes(
    monkeypatch: pytest.MonkeyPatch, orphan: int
) -> None:
    driver = Driver(monkeypatch, H200, H200)
    driver.used = {0: GIB, 1: GIB}
    gpus = watched(2)
    gpus.check_free()
    driver.used = {0: GIB, 1: GIB + 3_000_000_000}
    driver.processes = {1: {orphan: 3_000_000_000}}

    with pytest.raises(
        EngineFailure,
        match=rf"GPU 1 holds 2.8 GiB \(3,000,000,000 bytes\) more than before, .* s after the engine closed: process {orphan} ",
    ) as failed:
        gpus.check_given_back()

    assert (failed.value.kind, failed.value.phase) == ("leak", "close")
    assert "GPU 0" not in str(failed.value)


def test_memory_of_a_stranger_who_came_is_no_leak_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, H200)
    gpus = watched()
    gpus.check_free()
    driver.used, driver.processes = {0: 5 * GIB}, {0: {1: 5 * GIB}}

    with pytest.raises(EngineFailure, match=r"process 1 \(") as failed:
        gpus.check_given_back()

    assert failed.value.kind == "unstable"


# What is kept


def test_every_sample_is_kept_and_can_be_played_back_to_the_same_health(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    warm = [{"temperature": 60, "power": 650.5, "reasons": AT_ITS_POWER_LIMIT}, {"sm_clock": 1900}]
    Driver(monkeypatch, H200, H200).play(recording(tmp_path / "real.jsonl", [{}, {}], warm, [{}, {}]))

    health = measured(watched(2, results=tmp_path))

    assert health.trace == trace_name(case())
    kept = tmp_path / health.trace
    assert [json.loads(line).keys() >= {"began", "gpus"} for line in kept.read_text().splitlines()[1:2]] == [True]
    last = json.loads(kept.read_text().splitlines()[-1])
    assert (last["blind"], last["problems"]) == (None, [])
    assert len(list(recorded(kept))) == health.looks
    assert health.gpus[0].temperature is not None
    assert (health.gpus[0].temperature.max, health.gpus[0].power.max) == (60, 650.5)  # type: ignore[union-attr]
    assert health.gpus[1].sm_clock is not None
    assert (health.gpus[1].sm_clock.min, health.gpus[1].sm_clock.median) == (1900, 1980)
    assert Health.from_dict(json.loads(json.dumps(health.to_dict()))) == health

    Driver(monkeypatch, H200, H200).play(kept)
    again = measured(watched(2))
    assert [(gpu.temperature.max, gpu.sm_clock.min) for gpu in again.gpus if gpu.temperature and gpu.sm_clock] == [
        (60, 1980),
        (50, 1900),
    ]


def test_a_session_begins_a_file_of_samples_anew_and_every_run_adds_to_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Driver(monkeypatch, H200)
    for _ in range(2):
        gpus = watched(results=tmp_path)
        for _ in range(2):
            measured(gpus)

    lines = [json.loads(line) for line in (tmp_path / trace_name(case())).read_text().splitlines()]

    assert [line["case"] for line in lines if "schema" in line] == [str(case())]
    assert sum("began" in line for line in lines) == sum("ended" in line for line in lines) == 2


def test_samples_that_cannot_be_kept_are_told_and_the_measurement_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Driver(monkeypatch, H200)
    (tmp_path / "gpus").write_text("a file where a folder should be")

    found = rounds(watched(results=tmp_path))
    found.measure(Quick())
    told = measurement(case(), Source.MEASURED, [found])

    assert told.health is not None
    assert told.health.blind is None
    assert any("is not complete: " in note for note in told.notes)


def test_after_a_failure_of_the_run_nobody_goes_on_watching(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, H200)

    with pytest.raises(ZeroDivisionError), watched().watch(case(), loaded=True):
        raise ZeroDivisionError

    assert driver.open == 0
