"""What a comparison has measured is kept, given back once, and never mistaken for another comparison's."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from builders import case

from pytest_llamaperf.cases import Case
from pytest_llamaperf.errors import EngineError, LlamaperfError, UsageError
from pytest_llamaperf.files import checksum
from pytest_llamaperf.gpu_health import GpuReadings, Health, Spread
from pytest_llamaperf.journal import Journal
from pytest_llamaperf.measurements import Fingerprint, Measurement, Source
from pytest_llamaperf.metrics import OUTPUT_THROUGHPUT, TTFT_P99

CASE = "tensorrt-llm/llama-3.1-8b/modelopt-fp8/tp1/{}-128-128"
ABOUT = {"gpu": "cpu", "rounds": 2, "environment": {"A": "1"}}
ONE, TWO = case(CASE.format("max-throughput")), case(CASE.format("min-latency"))


class Meter:
    """Gives every question another answer; `broken` are numbers of questions that end in an error."""

    def __init__(self, broken: Sequence[int] = ()) -> None:
        self.asked = 0
        self._broken = broken

    def __call__(self, cases: Sequence[Case], restarts: int) -> dict[Case, Measurement | LlamaperfError]:
        self.asked += 1
        if self.asked in self._broken:
            return dict.fromkeys(cases, EngineError("worker died"))
        return {
            each: Measurement(
                each,
                Source.MEASURED,
                {OUTPUT_THROUGHPUT: (self.asked + 0.1,) * restarts, TTFT_P99: (1e-3 / self.asked,) * restarts},
                Fingerprint({"torch": "2.13.0"}, {"slots": 8, "graphs": True}),
                ("a note",),
                (0.25, 0.5),
                "llamaperf predict",
                health=Health(
                    None, 3, (GpuReadings(0, "GPU-0", Spread(1, 2, 3), None, None, None, None, {"idle": 1}),), 1500
                ),
            )
            for each in cases
        }


def ask(path: Path, meter: Meter, questions: Sequence[tuple[list[Case], int]], *, resume: bool = False) -> list[object]:
    journal = Journal(path, ABOUT, resume=resume)
    measure = journal.through(meter)
    return [measure(*question) for question in questions]


QUESTIONS = [([ONE, TWO], 3), ([ONE], 1), ([ONE], 1)]


def test_what_was_answered_is_given_back_to_the_bit_and_measured_once(tmp_path: Path) -> None:
    path, meter = tmp_path / "out" / "against.jsonl", Meter()
    before = ask(path, meter, QUESTIONS)

    after = ask(path, meter, [*QUESTIONS, ([ONE], 1)], resume=True)

    assert after[:3] == before
    assert meter.asked == 4
    # And a third time, with what the second one added.
    assert ask(path, meter, [*QUESTIONS, ([ONE], 1)], resume=True) == after
    assert meter.asked == 4


def test_what_failed_is_tried_again_and_nothing_else(tmp_path: Path) -> None:
    path, meter = tmp_path / "against.jsonl", Meter(broken=[2])
    before = ask(path, meter, [([ONE, TWO], 3), ([TWO], 1), ([ONE], 1)])

    after = ask(path, meter, [([ONE, TWO], 3), ([TWO], 1), ([ONE], 1)], resume=True)

    assert isinstance(before[1][TWO], EngineError)  # type: ignore[index]
    assert after[0] == before[0]
    assert after[2] == before[2]
    assert after[1][TWO].samples[OUTPUT_THROUGHPUT] == (4.1,)  # type: ignore[index]


@pytest.mark.parametrize("cut", [1, 40, 200])
def test_a_step_that_was_not_written_whole_is_measured_again(tmp_path: Path, cut: int) -> None:
    path, meter = tmp_path / "against.jsonl", Meter()
    before = ask(path, meter, QUESTIONS)
    path.write_bytes(path.read_bytes()[:-cut])

    after = ask(path, meter, QUESTIONS, resume=True)

    assert after[:2] == before[:2]
    assert meter.asked == 4
    assert [json.loads(line) for line in path.read_text().splitlines()]  # every line is whole again


def test_an_unfinished_comparison_is_not_lost_by_accident(tmp_path: Path) -> None:
    path = tmp_path / "against.jsonl"
    ask(path, Meter(), QUESTIONS)
    kept = path.read_bytes()

    with pytest.raises(UsageError, match="a comparison was cut off here, with 3 steps measured; --resume goes on"):
        Journal(path, ABOUT, resume=False)

    assert path.read_bytes() == kept


def test_a_finished_comparison_is_followed_by_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "against.jsonl"
    journal = Journal(path, ABOUT, resume=False)
    journal.through(Meter())([ONE], 1)
    journal.finish()

    meter = Meter()
    ask(path, meter, [([ONE], 1)])

    assert meter.asked == 1


def sealed(text: str) -> str:
    """With checksums of what lines say now, where they are JSON."""
    lines = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError, TypeError):
            step = json.loads(line)
            line = json.dumps({**step, "checksum": checksum(step)})
        lines.append(line + "\n")
    return "".join(lines)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda text: text.replace('"rounds": 2', '"rounds": 3'), r"another comparison: rounds was 3 and is 2; repeat"),
        (lambda text: text.replace('"gpu": "cpu", ', ""), r"another comparison: gpu was None and is 'cpu'"),
        (lambda text: text.replace('"schema": 2', '"schema": 1'), r"is of schema 1, this version goes on with 2"),
        (lambda text: text.replace('"asked"', '"aksed"'), r"against\.jsonl:2: is no step of a comparison"),
        (lambda text: text.replace('{"asked"', '"asked"', 1), r"against\.jsonl:2: is no step"),
        (lambda text: "[]\n" + text, r"against\.jsonl:1: is no step of a comparison"),
        (lambda text: text.replace('"source": "measured"', '"source": "guessed"'), r"against\.jsonl:2: is no step"),
        (lambda text: text.replace('"ttft_p99"', '"ttft_p98"'), r"against\.jsonl:2: is no step"),
    ],
    ids=["rounds", "no gpu", "schema", "no key", "no JSON", "no header", "source", "metric"],
)
def test_a_file_of_something_else_is_refused_and_left_as_it_is(tmp_path: Path, damage, problem: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "against.jsonl"
    ask(path, Meter(), QUESTIONS[:1])
    path.write_text(sealed(damage(path.read_text())))
    kept = path.read_bytes()

    with pytest.raises(UsageError, match=problem):
        Journal(path, ABOUT, resume=True)

    assert path.read_bytes() == kept


def test_a_digit_that_changed_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "against.jsonl"
    ask(path, Meter(), QUESTIONS[:1])
    path.write_text(path.read_text().replace("1.1", "9.1"))
    kept = path.read_bytes()

    with pytest.raises(UsageError, match=r"against\.jsonl:2: is no step of a comparison; begin anew"):
        Journal(path, ABOUT, resume=True)

    assert path.read_bytes() == kept
