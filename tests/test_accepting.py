"""Values of a run become promises as they were asked for, and nothing else in the files changes."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import case, measured, predicted, promise, record
from click.testing import CliRunner
from click.testing import Result as Ran
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llamaperf.accepting import rewriting
from pytest_llamaperf.accepting.reviewing import Asked, review
from pytest_llamaperf.accepting.rewriting import NewText, new_texts, write
from pytest_llamaperf.baselines import Baseline, BaselineBook, read_baselines
from pytest_llamaperf.commands import main
from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.files import write_atomically
from pytest_llamaperf.gates import decide
from pytest_llamaperf.measurements import Fingerprint, Source, Summary
from pytest_llamaperf.metrics import OUTPUT_THROUGHPUT, TTFT_MEDIAN, Metric
from pytest_llamaperf.records import Result, TestRecord
from pytest_llamaperf.runs import Run, RunHeader, run_document, to_json
from pytest_llamaperf.verdicts import judge

SHIPPED = Path(__file__).parents[1] / "baselines"
HEADER = RunHeader("8a1c", "2026-11-22T10:00:00Z", "h200", "tensorrt-llm")
FINGERPRINT = Fingerprint({"tensorrt_llm": "1.2.1", "torch": "2.9.0"})
FP8 = "tensorrt-llm/llama-3.1-8b/modelopt-fp8/tp1/"
OURS, OTHER, NEW = FP8 + "max-throughput-128-128", FP8 + "max-throughput-2048-128", FP8 + "max-throughput-1000-1000"
ASKED = Asked("a faster kernel")

FILE = f"""\
# What we promise.   Kept as it is, trailing blanks too.  \n
schema: 1
references:
  overview: "perf-overview.md, \u00fc \U0001f680"   # one
  post: a post

promises:
  # by lengths
  {OURS}:   # ours
    output_throughput: {{ value: 100.00, unit: tok/s,  tolerance: 0.1, source: measured,
      recorded: {{date: '2026-01-02', version: "1.1.0", restarts: 3, commit: "3f9c1e7"}},   # of May
      note: 'kept: "as it is"'}}
    ttft_median:
      value: 0.5     # seconds
      unit: s
      tolerance: 0.05
      source: measured
      recorded:
        date: "2026-01-02"
        version: 1.1.0
        restarts: 3
        commit: 3f9c1e7   # the first

  {OTHER}:
    output_throughput: {{value: 200, unit: tok/s, tolerance: 0.1, source: published, reference: post}}
  tensorrt-llm/llama-3.1-8b/bf16/tp1/max-throughput-128-128:
    output_throughput: {{value: 50, unit: tok/s, tolerance: 0.1, source: published, reference: overview}}
# the end
"""


def judged(
    book: BaselineBook, key: str, summary: Summary, *, hardware: str = "h200", nodeid: str = "a.py::test_a"
) -> Result:
    it = case(key, hardware)
    return Result.of_verdict(nodeid, judge(it, summary, book.find(it, summary.metric), (), FINGERPRINT))


def run_of(*results: Result, **changes: Any) -> Run:
    named = [dataclasses.replace(each, nodeid=f"{each.nodeid}[{n}]") for n, each in enumerate(results)]
    tests = tuple(dataclasses.replace(record(each), **changes) for each in named)
    return Run(HEADER, tests, decide(tests))


@dataclasses.dataclass
class Place:
    """A folder of baselines with the file of one model, and what a run of it gives."""

    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / "h200" / "llama-3.1-8b.yaml"

    @property
    def book(self) -> BaselineBook:
        return read_baselines(self.folder, "h200")

    def result(self, key: str, *values: float, metric: Metric = OUTPUT_THROUGHPUT) -> Result:
        return judged(self.book, key, measured(*values, metric=metric))

    def proposed(self, *results: Result, asked: Asked = ASKED) -> tuple[NewText, ...]:
        return new_texts(review(run_of(*results), self.folder, asked).promises, self.folder)

    def accept(self, *results: Result, asked: Asked = ASKED) -> str:
        """The lines that were changed, as a diff without the lines around them."""
        before = self.path.read_text() if self.path.exists() else ""
        write(self.proposed(*results, asked=asked), self.folder)
        return changed_lines(before, self.path.read_text())

    def left_out(self, *results: Result, asked: Asked = ASKED, **changes: Any) -> str:
        found = review(run_of(*results, **changes), self.folder, asked)
        assert found.promises == ()
        (why,) = found.left_out
        return why


def lines(*several: str) -> str:
    return "\n".join(several)


def changed_lines(before: str, after: str) -> str:
    from difflib import unified_diff

    shown = list(unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0))[2:]
    return lines(*(line for line in shown if not line.startswith("@@")))


@pytest.fixture(autouse=True)
def own_locks(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """None in the cache of whoever runs the tests."""
    monkeypatch.setenv("LLAMAPERF_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    found = Place(tmp_path / "baselines")
    found.path.parent.mkdir(parents=True)
    found.path.write_text(FILE)
    return found


def test_a_value_and_its_record_are_all_that_changes(place: Place) -> None:
    assert place.accept(place.result(OURS, 110, 112)) == lines(
        "-    output_throughput: { value: 100.00, unit: tok/s,  tolerance: 0.1, source: measured,",
        '-      recorded: {date: \'2026-01-02\', version: "1.1.0", restarts: 3, commit: "3f9c1e7"},   # of May',
        "+    output_throughput: { value: 111, unit: tok/s,  tolerance: 0.1, source: measured,",
        '+      recorded: {date: "2026-11-22", version: "1.2.1", restarts: 2, commit: "none",',
        '+        reason: "a faster kernel"},   # of May',
    )


def test_an_entry_of_lines_stays_one_of_lines(place: Place) -> None:
    changes = place.accept(place.result(OURS, 0.4, 0.4, 0.4, metric=TTFT_MEDIAN))

    assert changes == lines(
        "-      value: 0.5     # seconds",
        "+      value: 0.4     # seconds",
        '-        date: "2026-01-02"',
        "-        version: 1.1.0",
        '+        date: "2026-11-22"',
        '+        version: "1.2.1"',
        "-        commit: 3f9c1e7   # the first",
        '+        commit: "none"   # the first',
        '+        reason: "a faster kernel"',
    )


def test_a_published_figure_is_replaced_only_if_asked_and_its_reference_goes_with_it(place: Place) -> None:
    result = place.result(OTHER, 210, 210)

    assert "published by others; --replace-published" in place.left_out(result)
    assert place.accept(result, asked=Asked("ours", replace_published=True)) == lines(
        "-  post: a post",
        "-    output_throughput: {value: 200, unit: tok/s, tolerance: 0.1, source: published, reference: post}",
        "+    output_throughput: {value: 210, unit: tok/s, tolerance: 0.1, source: measured,",
        '+      recorded: {date: "2026-11-22", version: "1.2.1", restarts: 2, commit: "none",',
        '+        reason: "ours"}}',
    )


def test_the_last_published_figure_takes_the_references_along(place: Place) -> None:
    results = [place.result(key, 300, 300) for key in (OTHER, OTHER.replace("modelopt-fp8", "bf16"))]
    bf16 = place.result("tensorrt-llm/llama-3.1-8b/bf16/tp1/max-throughput-128-128", 300, 300)

    place.accept(results[0], bf16, asked=Asked("ours", replace_published=True))

    assert "references" not in place.path.read_text()
    assert {each.source for each in place.book} == {Source.MEASURED}


def test_a_new_metric_stands_with_its_case_and_a_new_case_behind_shorter_requests(place: Place) -> None:
    metric = place.result(OTHER, 0.25, 0.25, metric=TTFT_MEDIAN)

    assert place.accept(metric, place.result(NEW, 150, 150)) == lines(
        f"+  {NEW}:",
        "+    output_throughput:",
        "+      {value: 150, unit: tok/s, tolerance: 0.05, source: measured,",
        '+       recorded: {date: "2026-11-22", version: "1.2.1", restarts: 2, commit: "none",',
        '+         reason: "a faster kernel"}}',
        "+    ttft_median:",
        "+      {value: 0.25, unit: s, tolerance: 0.05, source: measured,",
        '+       recorded: {date: "2026-11-22", version: "1.2.1", restarts: 2, commit: "none",',
        '+         reason: "a faster kernel"}}',
    )
    keys = [line.strip().partition(":")[0] for line in place.path.read_text().splitlines() if "/tp1/" in line]
    assert keys[:3] == [OURS, NEW, OTHER]


def test_the_first_promise_of_a_model_begins_its_file(tmp_path: Path) -> None:
    place = Place(tmp_path)

    place.accept(place.result(OURS, 110, 110))

    (it,) = place.book
    assert (it.value, it.recorded["reason"], it.recorded["restarts"]) == (110, "a faster kernel", "2")
    assert place.path.read_text().startswith("# Promises for llama-3.1-8b on h200.")


def test_tolerance_of_a_new_promise_comes_from_the_spread_of_all_restarts_of_the_run(place: Place) -> None:
    quiet, noisy = place.result(NEW, 150, 150), place.result(FP8 + "min-latency-128-128", 90, 110)

    files = place.proposed(quiet, noisy, asked=Asked("why", cases=[NEW]))

    # The noisy case is not asked for, but it says how noisy the machine is: 4 times sqrt((0.1414 ** 2 + 0) / 2).
    assert re.findall(r"value: 150, unit: tok/s, tolerance: (\S+),", files[0].new) == ["0.4"]


def test_what_was_accepted_is_not_accepted_again(place: Place) -> None:
    result = place.result(OURS, 110, 112)
    place.accept(result)

    found = review(run_of(result), place.folder, ASKED)

    assert (found.promises, found.left_out) == ((), {})
    assert found.unchanged == (f"h200/{OURS} output_throughput",)


def test_a_worse_value_is_accepted_only_as_such(place: Place) -> None:
    passed, lost = place.result(OURS, 95, 95), place.result(OURS, 50, 50)
    assert (passed.outcome, lost.outcome) == ("pass", "regression")

    assert place.left_out(passed) == "worse than promised, -5.0 % from 100.0 tok/s; if that is wanted, --even-worse"
    assert "-50.0 % from 100.0 tok/s" in place.left_out(lost)
    assert "+    output_throughput: { value: 50," in place.accept(lost, asked=Asked("fp32 by wish", even_worse=True))


def test_of_times_more_is_worse(place: Place) -> None:
    assert "worse than promised, +4.0 %" in place.left_out(place.result(OURS, 0.52, 0.52, metric=TTFT_MEDIAN))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"source": "predicted"}, "predicted, not measured"),
        ({"health": {"blind": "GPU is lost"}}, "measured on GPUs that nobody watched"),
        ({"source": "published"}, "published, not measured"),
        ({"source": None}, "of unknown source, not measured"),
        ({"outcome": "inconclusive"}, "inconclusive: measure it again"),
        ({"outcome": "suspect"}, "suspect: measure it again"),
        ({"outcome": "something new"}, "something new: measure it again"),
        ({"outcome": "error"}, "an error, no value"),
        ({"values": (110.0,), "value": 110.0}, "one restart does not show"),
        ({"values": (0.0, 0.0), "value": 0.0}, "a promise is above zero"),
        ({"metric": "speed"}, "unknown metric 'speed'"),
        ({"case": {**case().to_dict(), "task": "mmlu"}}, "compared with a reference, not promised"),
        ({"case": {"id": f"../{OURS}"}}, "unknown hardware '..'"),
        ({"case": {"id": "h200/tensorrt-llm/llama-9/bf16/tp1/max-throughput-1-1"}}, "unknown model 'llama-9'"),
        ({"case": {"id": "h200"}}, "a case is written engine/model/recipe/layout/workload"),
    ],
)
@pytest.mark.parametrize("worse", [False, True])
def test_what_is_no_measured_pass_is_left_out_with_why(
    place: Place, change: dict[str, Any], why: str, worse: bool
) -> None:
    result = dataclasses.replace(place.result(OURS, 110, 112), **change)

    assert why in place.left_out(result, asked=Asked("why", even_worse=worse, replace_published=worse))


def test_a_pass_picked_from_several_attempts_is_left_out(place: Place) -> None:
    assert "passed at attempt 2 only" in place.left_out(place.result(OURS, 110, 112), attempts=2)


def test_a_promise_that_was_changed_since_is_left_alone(place: Place) -> None:
    result = place.result(OURS, 110, 112)
    place.path.write_text(FILE.replace("value: 100.00", "value: 105.00"))

    assert "judged against another promise than the one that stands now, 105.0 tok/s" in place.left_out(result)


def test_a_promise_that_was_removed_since_is_not_made_anew(place: Place) -> None:
    result = place.result(OURS, 0.4, 0.4, metric=TTFT_MEDIAN)
    before, _, after = FILE.partition("    ttft_median:\n")
    place.path.write_text(before + "\n  " + after[after.index(OTHER) :])

    assert "a promise that does not stand here: see --baselines, or measure it again" in place.left_out(result)


def test_what_was_judged_against_another_build_or_by_one_machine_can_be_accepted(place: Place) -> None:
    result = place.result(OURS, 110, 112)
    against = {"value": 109.0, "tolerance": 0.01, "source": "measured", "reference": "1.1, measured in turn"}
    assert "value: 111" in place.accept(dataclasses.replace(result, baseline=against))

    here = promise(140).to_dict() | {"file": "baselines/local/h200-a-machine.yaml"}
    assert NEW in place.accept(dataclasses.replace(place.result(NEW, 150, 150), baseline=here))


def test_what_regressed_against_another_build_is_worse_where_nothing_is_promised(place: Place) -> None:
    other = {"value": 200.0, "tolerance": 0.005, "source": "measured", "reference": "release 1.1"}
    lost = dataclasses.replace(place.result(NEW, 150, 151), baseline=other, outcome="regression")

    assert place.left_out(lost).startswith("worse than promised")


def test_trtllm_bench_gets_a_promise_of_its_own_beside_the_published_one(place: Place) -> None:
    key = OTHER.replace("tensorrt-llm", "trtllm-bench")
    assert "worse than promised" in place.left_out(place.result(key, 199, 199))

    place.accept(place.result(key, 210, 210))

    values = {each.case.key: each.value for each in place.book}
    assert (values[OTHER], values[key]) == (200, 210)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"unit": "s"}, f"h200/{OURS} output_throughput: is in s in this run, and output_throughput is in tok/s"),
        ({"value": 999.0}, "its value is not the mean of its restarts: was the run edited"),
    ],
)
def test_a_run_that_contradicts_itself_is_refused(place: Place, change: dict[str, Any], problem: str) -> None:
    result = dataclasses.replace(place.result(OURS, 110, 112), **change)

    with pytest.raises(UsageError, match=re.escape(problem)):
        place.proposed(result)


def test_only_what_is_asked_for_is_accepted(place: Place) -> None:
    results = [place.result(OURS, 110, 112), place.result(OURS, 0.4, 0.4, metric=TTFT_MEDIAN), place.result(NEW, 1, 1)]

    def names(**asked: Any) -> set[tuple[str, str]]:
        found = review(run_of(*results), place.folder, Asked("why", **asked)).promises
        return {(each.case.key, each.metric.name) for each in found}

    assert names(cases=[OURS], metrics=["ttft_median"]) == {(OURS, "ttft_median")}
    assert names(cases=["h200/*-1000-1000"]) == {(NEW, "output_throughput")}
    assert names(cases=[NEW, "*/max-throughput-128-128"]) == {
        (OURS, "output_throughput"), (OURS, "ttft_median"), (NEW, "output_throughput")
    }  # fmt: skip
    assert len(names()) == 3


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"cases": ["h200/" + OURS.replace("3.1", "3.2")]}, f"no case of this run is called so; nearest: h200/{OURS}"),
        ({"cases": ["x"]}, f"no case of this run is called so; it has h200/{NEW}, for example"),
        ({"metrics": ["output_througput"]}, "did you mean 'output_throughput'?"),
        ({"cases": [NEW], "metrics": ["ttft_median"]}, f"no case of --case {NEW} has ttft_median in this run"),
    ],
)
def test_nothing_that_matches_is_an_error_with_the_nearest(place: Place, asked: dict[str, Any], problem: str) -> None:
    results = [place.result(OURS, 110, 112), place.result(OURS, 1, 1, metric=TTFT_MEDIAN), place.result(NEW, 1, 1)]

    with pytest.raises(UsageError, match=re.escape(problem)):
        review(run_of(*results), place.folder, Asked("why", **asked))


@pytest.mark.parametrize(("reason", "problem"), [(" ", "needs a reason"), ("a\x1b[31m", "plain text")])
def test_a_reason_is_a_sentence(reason: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        Asked(reason)


def test_a_file_that_would_say_something_else_is_not_written(place: Place) -> None:
    """A literal block ends where the next line begins, which no edit by positions sees."""
    odd = FILE.replace("        commit: 3f9c1e7   # the first\n", "        commit: |-\n          3f9c1e7\n")
    place.path.write_text(odd)

    with pytest.raises(UsageError, match="write them by hand"):
        place.proposed(place.result(OURS, 0.4, 0.4, metric=TTFT_MEDIAN))
    assert place.path.read_text() == odd


# The command

Accept = Callable[..., Ran]


@pytest.fixture
def accept(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Accept:
    """Accepts a run of these results, beside whose folder the baselines are."""
    monkeypatch.chdir(tmp_path)

    def run(*results: Result, options: tuple[str, ...] = (), color: bool = False) -> Ran:
        if results:
            whole = run_of(*results)
            assert whole.decision
            Path("out").mkdir(exist_ok=True)
            Path("out/run.json").write_text(to_json(run_document(HEADER, whole.tests, whole.decision)))
        arguments = ["accept", "out", "--reason", " a faster\nkernel", *options]
        return CliRunner().invoke(main, arguments, prog_name="llamaperf", color=color)

    return run


def test_the_change_is_shown_written_and_told(place: Place, accept: Accept) -> None:
    ran = accept(place.result(OURS, 110, 112), place.result(NEW, 150))

    assert ran.exit_code == 0, ran.output
    assert "--- baselines/h200/llama-3.1-8b.yaml\n+++ baselines/h200/llama-3.1-8b.yaml\n@@" in ran.stdout
    assert '+        reason: "a faster kernel"},   # of May\n' in ran.stdout
    assert f"left out: 1 value\n  - h200/{NEW} output_throughput: one restart does not show" in ran.stdout
    assert "wrote 1 promise to baselines/h200/llama-3.1-8b.yaml" in ran.stdout
    assert place.book.find(case(OURS), OUTPUT_THROUGHPUT).value == 111  # type: ignore[union-attr]
    assert "promised so already: 1 value" in accept(place.result(OURS, 110, 112)).stdout


def test_a_terminal_shows_the_change_in_colour(place: Place, accept: Accept) -> None:
    shown = accept(place.result(OURS, 110, 112), options=("--dry-run",), color=True).stdout

    assert "\x1b[32m+    output_throughput: { value: 111," in shown
    assert "\x1b[31m-    output_throughput: { value: 100.00," in shown


def test_a_dry_run_writes_nothing(place: Place, accept: Accept) -> None:
    ran = accept(place.result(OURS, 110, 112), options=("--dry-run",))

    assert ran.exit_code == 0
    assert "would write 1 promise" in ran.stdout
    assert place.path.read_text() == FILE


def test_nothing_to_accept_is_exit_one(place: Place, accept: Accept) -> None:
    it = case(OURS)
    result = Result.of_verdict("a.py::test_a", judge(it, predicted(120), place.book.find(it, OUTPUT_THROUGHPUT)))

    ran = accept(result)

    assert ran.exit_code == 1
    assert "predicted, not measured: it never becomes a promise" in ran.stdout
    assert "nothing was accepted" in ran.stderr
    assert place.path.read_text() == FILE


def test_a_read_only_file_stays_as_it_is(place: Place, accept: Accept) -> None:
    place.path.chmod(0o444)

    ran = accept(place.result(OURS, 110, 112))

    assert ran.exit_code == 2
    assert "baselines/h200/llama-3.1-8b.yaml: is read-only; nothing was written" in ran.stderr
    assert place.path.read_text() == FILE


def test_a_file_that_somebody_edits_meanwhile_keeps_what_they_wrote(place: Place) -> None:
    (file,) = place.proposed(place.result(OURS, 110, 112))
    place.path.write_text(FILE + "# mine\n")

    with pytest.raises(UsageError, match="somebody else changed it meanwhile"):
        write([file], place.folder)
    assert place.path.read_text() == FILE + "# mine\n"


def test_a_promise_that_somebody_changes_after_the_review_is_left_alone(place: Place) -> None:
    promises = review(run_of(place.result(OURS, 110, 112)), place.folder, ASKED).promises
    place.accept(place.result(OURS, 104, 106))

    with pytest.raises(UsageError, match="somebody else changed it meanwhile"):
        new_texts(promises, place.folder)


def test_of_two_who_accept_at_once_one_is_told_and_no_promise_is_lost(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = (place.proposed(place.result(OURS, *values)) for values in ((110, 112), (120, 122)))
    begun, other_tried = threading.Event(), threading.Event()

    def slowly(path: Path, text: str) -> None:
        begun.set()
        other_tried.wait(0.5)
        write_atomically(path, text)

    monkeypatch.setattr(rewriting, "write_atomically", slowly)
    first = threading.Thread(target=write, args=(ours, place.folder))
    first.start()
    assert begun.wait(10)
    with pytest.raises(UsageError, match="somebody else changed it meanwhile"):
        write(theirs, place.folder)
    other_tried.set()
    first.join()
    assert place.path.read_text() == ours[0].new


def test_a_lock_that_is_not_given_back_is_an_error_and_not_waited_for_forever(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewriting, "_LONGEST_WAIT", 0.05)
    files = place.proposed(place.result(OURS, 110, 112))

    with rewriting._alone(place.folder), pytest.raises(UsageError, match="another process is writing promises"):
        write(files, place.folder)
    assert place.path.read_text() == FILE


def test_of_several_files_none_is_written_where_one_may_not_be(place: Place, accept: Accept) -> None:
    other = place.path.with_name("llama-3.3-70b.yaml")
    key = "tensorrt-llm/llama-3.3-70b/modelopt-fp8/tp1/max-throughput-128-128"
    place.accept(place.result(key, 10, 10.1))
    before = other.read_text()
    other.chmod(0o444)

    ran = accept(place.result(OURS, 110, 112), place.result(key, 12, 12.1))

    assert ran.exit_code == 2
    assert "llama-3.3-70b.yaml: is read-only" in ran.stderr
    assert (place.path.read_text(), other.read_text()) == (FILE, before)


def test_a_disk_that_fills_up_between_two_files_is_told_with_what_was_written(
    place: Place, accept: Accept, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        if path.name != place.path.name:
            raise OSError(28, "No space left on device")
        write_atomically(path, text)

    monkeypatch.setattr(rewriting, "write_atomically", full)

    ran = accept(
        place.result(OURS, 110, 112),
        place.result("tensorrt-llm/llama-3.3-70b/modelopt-fp8/tp1/max-throughput-128-128", 12, 12.1),
    )

    assert ran.exit_code == 2
    assert "llama-3.3-70b.yaml: cannot be written: No space left on device; written before it: baselines/" in ran.stderr


def test_a_file_that_somebody_begins_meanwhile_is_kept(tmp_path: Path) -> None:
    place = Place(tmp_path)
    (file,) = place.proposed(place.result(OURS, 110, 112))
    place.path.parent.mkdir()
    place.path.write_text(FILE)

    with pytest.raises(UsageError, match="somebody else changed it meanwhile"):
        write([file], place.folder)


def truncated(text: str) -> str:
    return text[: len(text) // 2]


def newer(text: str) -> str:
    return text.replace('"schema": 1', '"schema": 9', 1)


def edited(document: dict[str, Any], **parts: object) -> str:
    """As a run is that has no checksum."""
    del document["checksum"]
    return json.dumps({**document, **parts})


def without_results(text: str) -> str:
    document = json.loads(text)
    tests = [dataclasses.asdict(TestRecord("a.py::test_a", "skipped", 0.0))]
    for test in tests:
        del test["results"]
    return edited(document, results=[], tests=tests)


def of_no_case(text: str) -> str:
    document = json.loads(text)
    return edited(document, results=[{**document["results"][0], "case": None}])


def of_words(text: str) -> str:
    document = json.loads(text)
    return edited(document, results=[{**document["results"][0], "value": "fast"}])


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (truncated, "was it cut off?"),
        (newer, "a newer version of pytest-llamaperf wrote it"),
        (without_results, "nothing was judged in this run"),
        (of_no_case, "case of a.py::test_a[0] is no object"),
        (of_words, "a value of a.py::test_a[0] is no number"),
    ],
)
def test_a_damaged_run_is_refused(
    place: Place, accept: Accept, damage: Callable[[str], str], problem: str, tmp_path: Path
) -> None:
    accept(place.result(OURS, 110, 112), options=("--dry-run",))
    path = tmp_path / "out" / "run.json"
    path.write_text(damage(path.read_text()))

    ran = accept()

    assert ran.exit_code == 2
    assert problem in ran.stderr
    assert place.path.read_text() == FILE


def test_a_baseline_file_that_cannot_be_read_is_named(place: Place, accept: Accept) -> None:
    result = place.result(OURS, 110, 112)
    place.path.write_text(FILE.replace("unit: s\n", "unit: ms\n"))

    ran = accept(result)

    assert ran.exit_code == 2
    assert "baselines/h200/llama-3.1-8b.yaml:16: " in ran.stderr
    assert "ttft_median is in s, not 'ms'" in ran.stderr


def test_the_shipped_files_can_be_edited(tmp_path: Path) -> None:
    shutil.copytree(SHIPPED / "h200", tmp_path / "h200")
    book = read_baselines(tmp_path, "h200")
    results = [judged(book, each.case.key, measured(*[each.value * 1.01] * 2, metric=each.metric)) for each in book]

    found = review(run_of(*results), tmp_path, Asked("all of it", even_worse=True, replace_published=True))
    write(new_texts(found.promises, tmp_path), tmp_path)

    assert len(found.promises) == len(results)
    after = read_baselines(tmp_path, "h200")
    assert {each.source for each in after} == {Source.MEASURED}
    for path in (SHIPPED / "h200").glob("*.yaml"):
        comments = [line for line in path.read_text().splitlines() if "#" in line]
        assert [line for line in (tmp_path / "h200" / path.name).read_text().splitlines() if "#" in line] == comments


# Whatever the file looks like

KEYS = [
    f"{FP8}{scenario}-{shape}" for scenario in ("max-throughput", "min-latency") for shape in ("128-128", "500-500")
]
METRICS = (OUTPUT_THROUGHPUT, TTFT_MEDIAN)
BLANKS = st.sampled_from(["", " ", "   "])
COMMENTS = st.sampled_from(["", "  # why\u00fc \U0001f680", " #: {value: 1}"])


@st.composite
def entries(draw: st.DrawFn, metric: Metric, indent: str) -> str:
    """A promise of 100, in one of the many ways to write it, from what follows its name on."""
    published = draw(st.booleans())
    mark = draw(st.sampled_from(["'", '"']))
    version = draw(st.sampled_from(["1.1.0", '"1.1"', "'1.2.1'"]))
    told = [("date", f"{mark}2026-01-02{mark}"), ("version", version), ("restarts", "3"), ("commit", "abcdef1")]
    if draw(st.booleans()):
        told.append(("reason", '"an older one, with {braces}: and # more"'))
    told = draw(st.permutations(told))
    kept = [("unit", metric.unit), ("tolerance", "0.10"), ("value", draw(st.sampled_from(["100", "100.0", "1_00"])))]
    kept.append(("source", "published" if published else "measured"))
    if draw(st.booleans()):
        kept.append(("note", '"as it is: \u00fc, # too"'))
    kept = draw(st.permutations(kept))
    place = draw(st.integers(0, len(kept)))
    if draw(st.booleans()):  # in lines
        lines = [f"{indent}  {name}: {value}{draw(COMMENTS)}" for name, value in kept]
        within = [f"{indent}    {name}: {value}{draw(COMMENTS)}" for name, value in told]
        evidence = [f"{indent}  reference: a{draw(COMMENTS)}"] if published else [f"{indent}  recorded:", *within]
        return "\n".join([draw(COMMENTS), *lines[:place], *evidence, *lines[place:]])
    gap = st.sampled_from([" ", "  ", f"\n{indent}    ", f"   # of it\n{indent}  "])
    record = "{" + ", ".join(f"{name}: {value}" for name, value in told) + draw(st.sampled_from(["", ",", " "])) + "}"
    evidence = (
        ["reference: a"]
        if published
        else [f"recorded:{draw(st.sampled_from([' ', f'{chr(10)}{indent}     ']))}{record}"]
    )
    parts = [f"{name}: {value}" for name, value in kept]
    parts[place:place] = evidence
    first, *rest = parts
    braces = f"{{{draw(BLANKS)}{first}{''.join(f',{draw(gap)}{part}' for part in rest)}{draw(st.sampled_from(['', ',', ' ']))}}}"
    return f"{draw(st.sampled_from([' ', f'{chr(10)}{indent}  ']))}{braces}{draw(COMMENTS)}"


@st.composite
def files(draw: st.DrawFn) -> list[tuple[str, tuple[str, Metric] | None]]:
    """The parts of a file, each of whole lines, with the promise that it is, if it is one."""
    parts: list[tuple[str, tuple[str, Metric] | None]] = []
    lines = [f"schema: 1{draw(COMMENTS)}", "references:", f"  a: an overview{draw(COMMENTS)}", "promises:"]
    for key in draw(st.lists(st.sampled_from(KEYS), min_size=1, unique=True)):
        lines += draw(st.lists(st.sampled_from(["", "  # a group", "# another"]), max_size=2))
        lines.append(f"  {key}:{draw(COMMENTS)}")
        for metric in draw(st.lists(st.sampled_from(METRICS), min_size=1, unique=True)):
            parts += [("\n".join(lines), None)] if lines else []
            parts.append((f"    {metric}:{draw(entries(metric, '    '))}", (key, metric)))
            lines = []
    # The references are of use to somebody.
    lines.append("  tensorrt-llm/llama-3.1-8b/bf16/tp1/max-throughput-1-1:\n    output_throughput: "
                 "{value: 1, unit: tok/s, tolerance: 0.1, source: published, reference: a}")  # fmt: skip
    return [*parts, ("\n".join(lines) + draw(st.sampled_from(["", "\n", "\n# the end\n"])), None)]


@settings(max_examples=300)
@given(files(), st.data())
def test_nothing_but_what_was_accepted_changes_however_the_file_is_written(
    tmp_path_factory: pytest.TempPathFactory,
    parts: list[tuple[str, tuple[str, Metric] | None]],
    data: st.DataObject,
) -> None:
    newline, mark = data.draw(st.sampled_from(["\n", "\r\n"])), data.draw(st.sampled_from(["", "\ufeff"]))
    place = Place(tmp_path_factory.mktemp("baselines"))
    place.path.parent.mkdir()
    place.path.write_bytes((mark + "\n".join(text for text, _ in parts).replace("\n", newline)).encode())
    before = said(place)
    names = st.tuples(st.sampled_from([*KEYS, NEW]), st.sampled_from(METRICS))
    wanted = {name: data.draw(st.floats(1, 99)) for name in data.draw(st.lists(names, min_size=1, unique=True))}
    results = [place.result(key, value, value, metric=metric) for (key, metric), value in wanted.items()]

    place.accept(*results, asked=Asked("why not", even_worse=True, replace_published=True))

    after = said(place)
    assert {name: told for name, told in after.items() if name not in wanted} == {
        name: told for name, told in before.items() if name not in wanted
    }
    for name, value in wanted.items():
        told, was = after[name], before.get(name)
        assert (told.value, told.source, told.recorded["reason"]) == (float(f"{value:.6g}"), "measured", "why not")
        assert was is None or (told.tolerance, told.note) == (was.tolerance, was.note)
    content = place.path.read_bytes().decode()
    assert content.startswith(mark)
    assert "\r" not in content.replace("\r\n", "") if newline == "\r\n" else "\r" not in content
    changed = content.removeprefix(mark).replace("\r\n", "\n")
    for text, entry in parts:  # in their order, as they were
        if entry not in wanted:
            position = changed.index(text)
            changed = changed[:position] + changed[position + len(text) :]
    assert changed.count("# why\u00fc") == sum(text.count("# why\u00fc") for text, name in parts if name in wanted)
    assert changed.count("# of it") == sum(text.count("# of it") for text, name in parts if name in wanted)


def said(place: Place) -> dict[tuple[str, Metric], Baseline]:
    """All that is promised, wherever it stands."""
    return {(each.case.key, each.metric): dataclasses.replace(each, line=0) for each in place.book}
