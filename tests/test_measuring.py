"""Measuring a case: engines are opened one after the other, closed whatever happens, and give one value each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import pytest

from pytest_llamaperf import metrics
from pytest_llamaperf.bench import Bench
from pytest_llamaperf.cases import Case, Task, Workload
from pytest_llamaperf.catalog import case_of_key
from pytest_llamaperf.engines import Engine, EngineSpec, Opener, Run
from pytest_llamaperf.engines.predicted import PredictedEngine
from pytest_llamaperf.errors import EngineError, UsageError
from pytest_llamaperf.measurements import Fingerprint, Measurement, Source
from pytest_llamaperf.measuring import Sampling
from pytest_llamaperf.metrics import Metric
from pytest_llamaperf.predicting import predict
from pytest_llamaperf.traces import Trace

ONE_REQUEST = Workload("min-latency", 128, 11, requests=1)
CASE = dataclasses.replace(
    case_of_key("h200", "tensorrt-llm/llama-3.1-8b/modelopt-fp8/tp2/min-latency-128-11"), work=ONE_REQUEST
)


def measure(case: Case, open_engine: Opener, *, restarts: int) -> Measurement:
    """One case on a bench of its own, one round a restart beside the one that warms up."""
    return Bench(open_engine, Sampling(restarts, rounds=1), together=False).measurement(case)


def answering_in(
    seconds: float,
    readings: Mapping[Metric, float] | None = None,
    notes: tuple[str, ...] = (),
    fingerprint: Fingerprint | None = None,
) -> Run:
    """A run of one request of 11 output tokens: the first after a second, the last when it says."""
    trace = Trace(0.0, 1.0, seconds, 128, 11)
    return Run((trace,), readings or {}, notes, fingerprint or Fingerprint())


class Workshop:
    """Opens fake engines that carry out the given runs, one each, and writes down what happens to them."""

    def __init__(self, *runs: Run | EngineError, source: Source = Source.MEASURED) -> None:
        self.runs: Sequence[Run | EngineError] = runs
        self.source = source
        self.log: list[str] = []
        self.asked: list[object] = []
        self.opened = 0

    def open(self, spec: EngineSpec) -> Engine:
        self.asked.append(spec)
        self.opened += 1
        self.log.append(f"open {self.opened}")
        return FakeEngine(self, self.opened, self.runs[self.opened - 1])


class FakeEngine:
    def __init__(self, workshop: Workshop, number: int, outcome: Run | EngineError) -> None:
        self.workshop, self.number, self.outcome = workshop, number, outcome
        self.source = workshop.source

    def run(self, workload: Workload) -> Run:
        self.workshop.log.append(f"run {self.number}")
        self.workshop.asked.append(workload)
        if isinstance(self.outcome, EngineError):
            raise self.outcome
        return self.outcome

    def close(self) -> None:
        self.workshop.log.append(f"close {self.number}")


def test_every_restart_gives_a_value_in_order() -> None:
    workshop = Workshop(answering_in(11.0), answering_in(6.0), answering_in(3.0))

    measurement = measure(CASE, workshop.open, restarts=3)

    # 11 tokens over the time to the last one, on 2 GPUs; 10 of them after the first second.
    assert measurement.case is CASE
    assert measurement.source is Source.MEASURED
    assert measurement.samples[metrics.OUTPUT_THROUGHPUT] == (11 / 11, 11 / 6, 11 / 3)
    assert measurement.samples[metrics.OUTPUT_THROUGHPUT_PER_GPU] == (11 / 22, 11 / 12, 11 / 6)
    assert measurement.samples[metrics.TPOT_MEDIAN] == (1.0, 0.5, 0.2)
    assert measurement.samples[metrics.TTFT_MEDIAN] == (1.0, 1.0, 1.0)


def test_an_engine_is_closed_before_the_next_is_opened() -> None:
    """Two would not fit the GPU."""
    workshop = Workshop(answering_in(11.0), answering_in(6.0))

    measure(CASE, workshop.open, restarts=2)

    assert workshop.log == ["open 1", "run 1", "run 1", "close 1", "open 2", "run 2", "run 2", "close 2"]


def test_the_engine_is_opened_for_the_case_and_runs_its_workload() -> None:
    workshop = Workshop(answering_in(11.0))

    measure(CASE, workshop.open, restarts=1)

    assert workshop.asked == [EngineSpec.of(CASE), CASE.work, CASE.work]


def test_a_prediction_is_made_once_however_many_restarts_are_asked_for() -> None:
    workshop = Workshop(answering_in(11.0), answering_in(6.0), source=Source.PREDICTED)

    measurement = measure(CASE, workshop.open, restarts=2)

    assert workshop.log == ["open 1", "run 1", "close 1"]
    assert measurement.source is Source.PREDICTED
    assert measurement.samples[metrics.OUTPUT_THROUGHPUT] == (1.0,)


def test_an_engine_that_fails_is_closed_and_no_other_opened() -> None:
    workshop = Workshop(answering_in(11.0), EngineError("out of memory"), answering_in(6.0))

    with pytest.raises(EngineError, match="out of memory"):
        measure(CASE, workshop.open, restarts=3)

    assert workshop.log == ["open 1", "run 1", "run 1", "close 1", "open 2", "run 2", "close 2"]


def test_an_engine_that_cannot_be_opened_is_not_closed() -> None:
    def refuse(spec: EngineSpec) -> Engine:
        raise EngineError(f"{spec}: no such checkpoint")

    with pytest.raises(EngineError, match=r"modelopt-fp8/tp2: no such checkpoint"):
        measure(CASE, refuse, restarts=2)


@pytest.mark.parametrize(
    ("traces", "problem"),
    [
        ((), "asked for 1 requests, the engine reports 0; 1 of ISL 128 and OSL 11 are missing"),
        ((Trace(0.0, 1.0, 2.0, 128, 10),), "asked for 1 requests, the engine reports 1; 1 of ISL 128 and OSL 11 are"),
        ((Trace(0.0, 1.0, 2.0, 127, 11),), "asked for 1 requests, the engine reports 1; 1 of ISL 128 and OSL 11 are"),
        ((Trace(0.0, 1.0, 2.0, 128, 11),) * 2, "asked for 1 requests, the engine reports 2; 1 of ISL 128 and OSL 11"),
    ],
)
def test_a_run_that_is_not_the_one_asked_for_is_an_error(traces: tuple[Trace, ...], problem: str) -> None:
    workshop = Workshop(Run(traces))

    with pytest.raises(EngineError, match=problem):
        measure(CASE, workshop.open, restarts=1)

    assert workshop.log[-1] == "close 1"


@pytest.mark.parametrize("failing", ["open", "run", "close"])
def test_whatever_an_engine_raises_is_an_error_of_the_engine(failing: str) -> None:
    class Broken:
        source = Source.MEASURED

        def __init__(self, case: Case) -> None:
            self.do("open")

        def run(self, workload: Workload) -> Run:
            self.do("run")
            return answering_in(11.0)

        def close(self) -> None:
            self.do("close")

        def do(self, what: str) -> None:
            if what == failing:
                raise RuntimeError("CUDA error: out of memory")

    with pytest.raises(EngineError, match="the engine failed: RuntimeError: CUDA error: out of memory"):
        measure(CASE, Broken, restarts=1)


def test_a_reading_that_is_no_number_is_an_error() -> None:
    workshop = Workshop(answering_in(11.0, readings={metrics.PEAK_MEMORY: float("nan")}))

    with pytest.raises(EngineError, match="the engine reports no number for peak_memory"):
        measure(CASE, workshop.open, restarts=1)


def test_readings_stand_beside_the_metrics_of_the_traces() -> None:
    readings = [
        {metrics.PEAK_MEMORY: 7e9, metrics.LOAD_TIME: 30.0},
        {metrics.PEAK_MEMORY: 8e9, metrics.LOAD_TIME: 20.0},
    ]
    workshop = Workshop(*(answering_in(11.0, readings=reading) for reading in readings))

    measurement = measure(CASE, workshop.open, restarts=2)

    assert measurement.samples[metrics.PEAK_MEMORY] == (7e9, 8e9)
    assert measurement.samples[metrics.LOAD_TIME] == (30.0, 20.0)
    assert measurement.samples[metrics.OUTPUT_THROUGHPUT] == (1.0, 1.0)


def test_notes_of_all_restarts_are_kept_once_each() -> None:
    workshop = Workshop(answering_in(11.0, notes=("hot", "slow")), answering_in(6.0, notes=("late", "hot")))

    assert measure(CASE, workshop.open, restarts=2).notes == ("hot", "slow", "late")


def test_the_fingerprint_is_that_of_the_engine() -> None:
    fingerprint = Fingerprint({"tensorrt-llm": "1.2.1"}, {"max_batch_size": 64})
    workshop = Workshop(*[answering_in(11.0, fingerprint=fingerprint)] * 2)

    assert measure(CASE, workshop.open, restarts=2).fingerprint == fingerprint


def test_an_accuracy_task_has_no_speed_and_opens_no_engine() -> None:
    workshop = Workshop(answering_in(11.0))

    with pytest.raises(UsageError, match=r"tp2/gsm8k: is about answers \(gsm8k\), which have no speed to measure"):
        measure(dataclasses.replace(CASE, work=Task("gsm8k")), workshop.open, restarts=1)

    assert workshop.log == []


def test_the_predictor_is_measured_like_any_engine() -> None:
    prediction = predict(CASE)

    measurement = measure(CASE, PredictedEngine, restarts=2)

    assert measurement.source is Source.PREDICTED
    assert measurement.samples == {metric: (value,) for metric, value in prediction.values.items()}
    assert measurement.notes == prediction.notes
    assert measurement.fingerprint == prediction.fingerprint


def test_restarts_of_different_sources_are_no_measurement() -> None:
    """A prediction ends the restarts, so it can only come after a measurement."""
    sources = iter([Source.MEASURED, Source.PREDICTED])
    workshop = Workshop(answering_in(11.0), answering_in(6.0))

    def open_engine(case: Case) -> Engine:
        workshop.source = next(sources)
        return workshop.open(case)

    with pytest.raises(EngineError, match="restarts of one case are of different sources: measured, predicted"):
        measure(CASE, open_engine, restarts=2)
