"""The test bench: engines are opened once for each restart, in whatever order tests ask, and take turns."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llamaperf import measuring
from pytest_llamaperf.bench import Bench
from pytest_llamaperf.cases import Case, Layout, Task, Workload
from pytest_llamaperf.catalog import case_of_key, recipe_named
from pytest_llamaperf.engines import AnsweringEngine, Engine, EngineSpec, Run, Scored
from pytest_llamaperf.errors import EngineError, UsageError
from pytest_llamaperf.lengths import request_lengths
from pytest_llamaperf.measurements import Measurement, Source
from pytest_llamaperf.measuring import Sampling
from pytest_llamaperf.metrics import OUTPUT_THROUGHPUT
from pytest_llamaperf.quiet import CpuReading
from pytest_llamaperf.traces import Trace

BF16 = case_of_key("cpu", "torch/smollm2-135m/bf16/tp1/min-latency-16-10")
FP8 = BF16.with_recipe(recipe_named("modelopt-fp8"))
PP2 = BF16.with_layout(Layout(pp=2))
ANSWERS = dataclasses.replace(BF16, work=Task("answers"))


def with_work(case: Case, scenario: str) -> Case:
    return dataclasses.replace(case, work=Workload(scenario, 16, 10, requests=2))


def run_of(workload: Workload, seconds: float) -> Run:
    """All requests at once, each taking this long."""
    return Run(tuple(Trace(0.0, seconds / 2, seconds, isl, osl) for isl, osl in request_lengths(workload)))


class Room:
    """Opens fake engines and writes down, in short words, what happens to them."""

    def __init__(self, seconds: Callable[[str], float] = lambda name: 1.0) -> None:
        self.log: list[str] = []
        self.opened: Counter[str] = Counter()
        self.seconds = seconds
        self.failing: dict[str, Exception] = {}

    def open(self, spec: EngineSpec) -> Engine:
        name = f"{spec.recipe}/{spec.layout}"
        self.opened[name] += 1
        self.happens(f"open {name}")
        return FakeEngine(self, name)

    def happens(self, what: str) -> None:
        self.log.append(what)
        if what in self.failing:
            raise self.failing.pop(what)

    def words(self, verb: str) -> list[str]:
        return [word.removeprefix(f"{verb} ") for word in self.log if word.startswith(f"{verb} ")]


class FakeEngine:
    source = Source.MEASURED

    def __init__(self, room: Room, name: str) -> None:
        self.room, self.name = room, name

    def run(self, workload: Workload) -> Run:
        self.room.happens(f"run {self.name} {workload.scenario}")
        return run_of(workload, self.room.seconds(self.name))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[len(text) % 50, 1, 2] for text in texts]

    def decode(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        return ["" for _ in sequences]

    def generate(
        self, prompts: Sequence[Sequence[int]], tokens: int, *, until=None, concurrency: int | None = None
    ) -> list[list[int]]:
        self.room.happens(f"generate {self.name}")
        return [[prompt[0]] * tokens for prompt in prompts]

    def score(self, sequences: Sequence[Sequence[int]], *, noise: float = 0.0) -> list[Scored]:
        return [Scored((-1.0 - noise,) * (len(s) - 1), (7,) * (len(s) - 1)) for s in sequences]

    def close(self) -> None:
        self.room.happens(f"close {self.name}")


def bench(room: Room, restarts: int = 1, rounds: int = 1, *, together: bool = True, watch_cpu: bool = False) -> Bench:
    return Bench(room.open, Sampling(restarts, rounds, watch_cpu=watch_cpu), together=together)


def test_the_fake_engine_is_what_the_plugin_takes_for_one_that_answers() -> None:
    assert isinstance(FakeEngine(Room(), ""), AnsweringEngine)


# --- how often engines are opened -------------------------------------------------------------------------------


@given(st.randoms(use_true_random=False), st.booleans())
def test_an_engine_is_opened_once_a_restart_in_whatever_order_tests_ask(shuffle: random.Random, together: bool) -> None:
    cases = [with_work(case, scenario) for case in (BF16, FP8, PP2) for scenario in ("min-latency", "concurrency-2")]
    compared = [(with_work(FP8, "min-latency"), with_work(BF16, "min-latency"))]
    room = Room()
    tested = bench(room, restarts=2, rounds=2, together=together)
    expectations: list[tuple[Case, ...]] = [*((case,) for case in cases), *compared]
    shuffle.shuffle(expectations)
    for expected in expectations:
        tested.expect(measured=expected)
    tested.expect(answered=[ANSWERS])
    questions: list[Case] = [*cases, ANSWERS]
    shuffle.shuffle(questions)

    for case in questions:
        _ = tested.answers(case) if case == ANSWERS else tested.measurement(case)

    assert room.opened == {"bf16/tp1": 2, "modelopt-fp8/tp1": 2, "bf16/pp2": 2}
    assert sorted(room.words("open")) == sorted(room.words("close"))


def test_what_nobody_announced_is_measured_all_the_same() -> None:
    room = Room()
    tested = bench(room, restarts=2)
    tested.expect(measured=[BF16])

    assert tested.measurement(BF16) is tested.measurement(BF16)
    assert tested.measurement(FP8).case == FP8
    assert room.opened == {"bf16/tp1": 2, "modelopt-fp8/tp1": 2}


def test_an_engine_that_is_only_asked_is_opened_once_however_many_restarts() -> None:
    room = Room()
    tested = bench(room, restarts=3)

    answers = tested.answers(ANSWERS)

    assert room.opened == {"bf16/tp1": 1}
    assert len(answers.together) == len(answers.again) > len(answers.alone) == 2


def test_a_case_about_answers_has_no_speed() -> None:
    with pytest.raises(UsageError, match="is about answers"):
        bench(Room()).measurement(ANSWERS)


def test_an_engine_without_answers_says_so() -> None:
    class Mute:
        source = Source.MEASURED

        def run(self, workload: Workload) -> Run:
            return run_of(workload, 1.0)

        def close(self) -> None: ...

    tested = Bench(lambda spec: Mute(), Sampling(1, 1), together=True)

    with pytest.raises(EngineError, match="cannot be asked for answers"):
        tested.answers(ANSWERS)


# --- the order of things ----------------------------------------------------------------------------------------


def test_compared_engines_take_turns_round_by_round_where_they_may_be_open_together() -> None:
    room = Room()
    tested = bench(room, rounds=3)
    tested.expect(measured=[BF16, FP8])

    tested.measurement(FP8)

    turns = [word.split("/")[0] for word in room.words("run")]
    assert turns == ["bf16", "modelopt-fp8", "bf16", "modelopt-fp8", "modelopt-fp8", "bf16", "bf16", "modelopt-fp8"]
    assert room.log[:2] == ["open bf16/tp1", "open modelopt-fp8/tp1"]


def test_on_a_gpu_an_engine_is_closed_before_the_next_is_opened_and_restarts_alternate() -> None:
    room = Room()
    tested = bench(room, restarts=2, together=False)
    tested.expect(measured=[BF16, FP8])

    tested.measurement(BF16)

    moves = [word.replace("/tp1", "") for word in room.log if not word.startswith("run")]
    there, back = ["open bf16", "close bf16"], ["open modelopt-fp8", "close modelopt-fp8"]
    assert moves == [*there, *back, *back, *there]


def test_engines_that_are_open_together_are_opened_in_alternating_order() -> None:
    """Of two, the one that is opened second is faster on some machines, whichever it is."""
    room = Room()
    tested = bench(room, restarts=3)
    tested.expect(measured=[BF16, FP8])

    tested.measurement(BF16)

    opened = [word.split("/")[0] for word in room.words("open")]
    assert opened == ["bf16", "modelopt-fp8", "modelopt-fp8", "bf16", "bf16", "modelopt-fp8"]
    first_turns = [word.split("/")[0] for word in room.words("run")[::4]]
    assert first_turns == ["bf16", "modelopt-fp8", "bf16"]


def test_engines_that_nobody_compares_are_not_open_together() -> None:
    room = Room()
    tested = bench(room)
    tested.expect(measured=[BF16])
    tested.expect(measured=[FP8])

    tested.measurement(BF16)

    assert room.opened == {"bf16/tp1": 1}


def test_engines_that_are_only_asked_are_open_alone() -> None:
    room = Room()
    tested = bench(room)
    tested.expect(answered=[ANSWERS, ANSWERS.with_layout(Layout(pp=2))])

    tested.answers(ANSWERS)

    assert [word for word in room.log if "generate" not in word] == [
        "open bf16/tp1", "close bf16/tp1", "open bf16/pp2", "close bf16/pp2",
    ]  # fmt: skip


def test_a_restarts_value_is_the_median_of_its_rounds() -> None:
    seconds = iter([9.0, 1.0, 4.0, 2.0, 9.0, 1.0, 1.0, 5.0])
    room = Room(lambda name: next(seconds))

    measurement = bench(room, restarts=2, rounds=3).measurement(BF16)

    tokens = 10 * BF16.work.requests if isinstance(BF16.work, Workload) else 0
    assert measurement.samples[OUTPUT_THROUGHPUT] == (tokens / 2.0, tokens / 1.0)
    assert measurement.elapsed == (1.0, 4.0, 2.0, 1.0, 1.0, 5.0)


def test_a_first_round_that_still_warms_up_is_dropped() -> None:
    seconds = iter([9.0, 3.0, 1.0, 1.0, 1.0])
    room = Room(lambda name: next(seconds))

    measurement = bench(room, rounds=3).measurement(BF16)

    assert measurement.elapsed == (1.0, 1.0, 1.0)


def test_an_engine_that_never_settles_is_measured_with_what_there_is() -> None:
    seconds = iter(3.0 * 0.5**n for n in range(100))
    room = Room(lambda name: next(seconds))

    measurement = bench(room, rounds=3).measurement(BF16)

    assert len(measurement.elapsed) == 3
    assert len(room.words("run")) == 1 + 3 + 3  # as many spare rounds as rounds


# --- other work on the machine ----------------------------------------------------------------------------------


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say how many cores other processes use in each round, the one that warms up included."""

    def use(*cores: float) -> None:
        readings: list[CpuReading] = []
        for used in cores:
            readings += [CpuReading(0.0, 0.0, 0.0), CpuReading(1.0, used, 0.0)]
        told = iter(readings)
        monkeypatch.setattr(measuring.CpuReading, "now", lambda: next(told))

    return use


def test_a_disturbed_round_is_repeated_and_counted(others: Callable[..., None]) -> None:
    others(0.0, 0.0, 0.9, 0.1)

    measurement = bench(Room(), rounds=2, watch_cpu=True).measurement(BF16)

    assert len(measurement.elapsed) == 2
    assert measurement.notes == ("other processes were at work: 1 round repeated",)


def test_rounds_on_a_busy_machine_are_kept_in_the_end_and_told(others: Callable[..., None]) -> None:
    others(*[0.9] * 5)

    measurement = bench(Room(), rounds=2, watch_cpu=True).measurement(BF16)

    assert len(measurement.elapsed) == 2
    assert measurement.notes == (
        "other processes were at work: 2 rounds repeated",
        "other processes were at work in 2 rounds that had to be kept (up to 0.9 cores)",
    )


# --- failures ---------------------------------------------------------------------------------------------------


def test_an_engine_that_dies_fails_its_case_and_the_others_are_measured() -> None:
    latency, users = with_work(BF16, "min-latency"), with_work(BF16, "concurrency-2")
    room = Room()
    room.failing = {"run bf16/tp1 min-latency": EngineError("died by signal 9")}
    tested = bench(room, restarts=2)
    tested.expect(measured=[latency, with_work(FP8, "min-latency")])
    tested.expect(measured=[users])

    with pytest.raises(EngineError, match="signal 9"):
        tested.measurement(latency)

    assert isinstance(tested.measurement(users), Measurement)
    assert isinstance(tested.measurement(with_work(FP8, "min-latency")), Measurement)
    assert room.opened == {"bf16/tp1": 3, "modelopt-fp8/tp1": 2}  # one more, in the place of the dead one
    with pytest.raises(EngineError, match="signal 9"):
        tested.measurement(latency)


def test_an_engine_that_cannot_be_opened_fails_all_its_cases_and_is_not_tried_again() -> None:
    latency, users = with_work(BF16, "min-latency"), with_work(BF16, "concurrency-2")
    room = Room()
    room.failing = {"open bf16/tp1": EngineError("out of memory")}
    tested = bench(room, restarts=3)
    tested.expect(measured=[latency, with_work(FP8, "min-latency")], answered=[ANSWERS])
    tested.expect(measured=[users])

    assert isinstance(tested.measurement(with_work(FP8, "min-latency")), Measurement)
    for case in (latency, users):
        with pytest.raises(EngineError, match="out of memory"):
            tested.measurement(case)
    with pytest.raises(EngineError, match="out of memory"):
        tested.answers(ANSWERS)
    assert room.opened["bf16/tp1"] == 1


def test_an_engine_that_does_not_close_fails_what_it_measured() -> None:
    room = Room()
    room.failing = {"close bf16/tp1": EngineError("hang in close")}
    tested = bench(room)
    tested.expect(measured=[BF16, FP8])

    with pytest.raises(EngineError, match="hang in close"):
        tested.measurement(BF16)
    assert isinstance(tested.measurement(FP8), Measurement)


@pytest.mark.parametrize("restarts", [1, 2])
def test_an_engine_that_does_not_close_fails_what_it_was_asked(restarts: int) -> None:
    room = Room()
    room.failing = {"close bf16/tp1": EngineError("it left something behind")}
    tested = bench(room, restarts)
    tested.expect(measured=[BF16], answered=[ANSWERS])

    with pytest.raises(EngineError, match="left something behind"):
        tested.answers(ANSWERS)
    with pytest.raises(EngineError, match="left something behind"):
        tested.measurement(BF16)


def test_a_later_restart_that_fails_leaves_answers_as_they_were() -> None:
    room = Room()
    tested = bench(room, restarts=2)
    tested.expect(measured=[BF16], answered=[ANSWERS])
    opened = room.open

    def once(spec: EngineSpec) -> Engine:
        if room.opened:
            raise EngineError("the second one does not open")
        return opened(spec)

    tested._opener = once

    assert tested.answers(ANSWERS)
    with pytest.raises(EngineError, match="does not open"):
        tested.measurement(BF16)


def test_how_an_engine_is_closed_is_for_its_opener_to_say() -> None:
    room = Room()
    closed: list[Engine] = []

    def close(engine: Engine) -> None:
        closed.append(engine)
        engine.close()

    tested = Bench(room.open, Sampling(2, 1), together=True, closer=close)

    tested.measurement(BF16)

    assert len(closed) == len(room.words("close")) == 2


def test_whatever_an_engine_raises_is_an_error_that_names_the_case() -> None:
    room = Room()
    room.failing = {"run bf16/tp1 min-latency": RuntimeError("CUDA error 700")}

    with pytest.raises(EngineError, match=r"min-latency-16-10: the engine failed: RuntimeError: CUDA error 700"):
        bench(room).measurement(BF16)


def test_an_interrupt_closes_every_engine() -> None:
    room = Room()
    room.failing = {"run modelopt-fp8/tp1 min-latency": KeyboardInterrupt()}  # type: ignore[dict-item]
    tested = bench(room)
    tested.expect(measured=[BF16, FP8])

    with pytest.raises(KeyboardInterrupt):
        tested.measurement(BF16)

    assert sorted(room.words("open")) == sorted(room.words("close"))
