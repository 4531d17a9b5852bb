"""GPUs that were not fit to measure on, with a driver that answers as recorded."""

from __future__ import annotations

import time

import pynvml
import pytest
from builders import case
from nvml_driver import H100, H200, Driver

from pytest_llamaperf.cases import Workload
from pytest_llamaperf.engines import Run
from pytest_llamaperf.gpu_watch import GpuWatch, occupied
from pytest_llamaperf.hosting.failures import EngineFailure
from pytest_llamaperf.lengths import request_lengths
from pytest_llamaperf.measurements import Source
from pytest_llamaperf.measuring import Rounds, Sampling
from pytest_llamaperf.traces import Trace

TOO_HOT = pynvml.nvmlClocksEventReasonHwThermalSlowdown
AT_ITS_POWER_LIMIT = pynvml.nvmlClocksEventReasonSwPowerCap


class Quick:
    source = Source.MEASURED

    def run(self, workload: Workload) -> Run:
        time.sleep(0.1)
        return Run(tuple(Trace(0.0, 0.5, 1.0, isl, osl) for isl, osl in request_lengths(workload)))

    def close(self) -> None: ...


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_watch, "INTERVAL", 0.01)


def rounds() -> Rounds:
    return Rounds(case(), Sampling(restarts=1, rounds=1, watch_gpus="h200"))


def test_a_slowdown_for_a_moment_in_the_middle_is_seen_and_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    Driver(monkeypatch, H200, H200).reasons = [0, 0, 0, TOO_HOT, 0]

    with pytest.raises(EngineFailure, match="GPU 1 was slowed down by its hardware, too hot") as failed:
        rounds().measure(Quick())

    assert (failed.value.kind, failed.value.phase) == ("unstable", "run")
    assert str(failed.value).startswith("the machine was not fit to measure on (run)")


def test_a_gpu_at_its_power_limit_does_what_it_was_bought_for(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, H200)
    driver.reasons = [AT_ITS_POWER_LIMIT]
    measured = rounds()

    measured.measure(Quick())

    assert [found.run.notes for found in measured.kept()] == [()]
    assert driver.open == 0


def test_gpus_of_another_kind_or_not_for_us_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, H100, H200, H200)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    driver.used = {0: 60 * 2**30, 1: 60 * 2**30}

    assert occupied("h200", patience=0) == ()


def test_a_driver_that_cannot_be_asked_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    Driver(monkeypatch, H200)

    def lost(handle: int) -> int:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetCurrentClocksEventReasons", lost)
    measured = rounds()

    measured.measure(Quick())

    assert [found.run.notes for found in measured.kept()] == [("the GPUs were not watched: GPU is lost",)]


def test_memory_that_others_hold_is_waited_for_and_then_told(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, H200, H200)
    driver.used = {1: 12 * 2**30}

    began = time.monotonic()

    assert occupied("h200", patience=0.1) == ("GPU 1 has 12.0 GiB in use before the engine starts",)
    assert time.monotonic() - began >= 0.1
    assert driver.open == 0


def test_after_a_failure_of_the_run_nobody_goes_on_watching(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, H200)

    with pytest.raises(ZeroDivisionError), GpuWatch("h200"):
        raise ZeroDivisionError

    assert driver.open == 0
