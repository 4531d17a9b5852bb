"""Recording: which values become promises for a machine, how tolerant those are, and what the file keeps."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# pytester forgets what a session it runs imports first, and numpy refuses to be loaded twice.
import pytest
import scipy.special  # noqa: F401
from engine_sessions import fake_engine
from hypothesis import given
from hypothesis import strategies as st

from pytest_llamaperf import recording
from pytest_llamaperf.baselines import Baseline, BaselineBook, read_baselines
from pytest_llamaperf.cases import Case
from pytest_llamaperf.catalog import case_of_key, model_named
from pytest_llamaperf.errors import DocumentError
from pytest_llamaperf.hardware import Machine, find_machine
from pytest_llamaperf.measurements import Fingerprint, Source, summarize_values
from pytest_llamaperf.metrics import OUTPUT_THROUGHPUT, PERPLEXITY, TTFT_MEDIAN, Metric
from pytest_llamaperf.verdicts import Outcome, Verdict, judge

pytest_plugins = ["pytester"]

MACHINE = Machine((), None, "A Processor @ 2.0 GHz", cores=4)
FILE = Path("local/cpu-a-processor-2-0-ghz-4-cores.yaml")
KEY = "torch/smollm2-135m/bf16/tp1/min-latency-32-16"
OTHER = "torch/smollm2-135m/modelopt-fp8/tp1/min-latency-32-16"
RATIO = OUTPUT_THROUGHPUT.versus("bf16")


def verdict(
    *values: float,
    key: str = KEY,
    metric: Metric = OUTPUT_THROUGHPUT,
    source: Source = Source.MEASURED,
    baseline: Baseline | None = None,
    hardware: str = "cpu",
    versions: Mapping[str, str] | None = None,
) -> Verdict:
    fingerprint = Fingerprint({"torch": "2.13.0+cpu"} if versions is None else versions)
    case: Case = case_of_key(hardware, key)
    return judge(case, summarize_values(metric, source, values), baseline, fingerprint=fingerprint)


def recorded(folder: Path, *verdicts: Verdict, hardware: str = "cpu", machine: Machine = MACHINE) -> BaselineBook:
    """What is promised after a recording."""
    recording.record(read_baselines(folder, hardware, machine.slug), verdicts, machine)
    return read_baselines(folder, hardware, machine.slug)


def promises(book: Iterable[Baseline]) -> dict[tuple[str, str], float]:
    return {(entry.case.key, entry.metric.name): entry.value for entry in book}


def tolerance(folder: Path, *verdicts: Verdict, hardware: str = "cpu") -> float:
    """Of the first verdict's promise, after all of them were recorded."""
    found = recorded(folder, *verdicts, hardware=hardware).find(verdicts[0].case, verdicts[0].summary.metric)
    assert found is not None
    return found.tolerance


# --- what is written -------------------------------------------------------------------------------------------------


def test_a_measured_value_becomes_a_promise_for_this_machine_that_says_how_it_was_measured(tmp_path: Path) -> None:
    path, count = recording.record(read_baselines(tmp_path, "cpu", MACHINE.slug), [verdict(100.0, 101.0)], MACHINE)

    assert (path, count) == (tmp_path / FILE, 1)
    assert path.read_text().startswith("# Measured on A Processor @ 2.0 GHz, 4 cores, by pytest --record;")
    (promise,) = read_baselines(tmp_path, "cpu", MACHINE.slug)
    assert (promise.case.key, promise.metric, promise.value) == (KEY, OUTPUT_THROUGHPUT, 100.5)
    assert (promise.source, promise.path) == (Source.MEASURED, path)
    assert promise.recorded == {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"), "version": "2.13.0+cpu", "restarts": "2", "commit": "none",
    }  # fmt: skip


def test_another_machine_reads_nothing_of_it(tmp_path: Path) -> None:
    recorded(tmp_path, verdict(100.0, 101.0))

    assert not list(read_baselines(tmp_path, "cpu", "a-processor-2-0-ghz-8-cores"))
    assert not list(read_baselines(tmp_path, "h200", MACHINE.slug))
    assert not list(read_baselines(tmp_path, "cpu"))


def test_the_commit_of_the_repository_is_written_down(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=b"]
        ran = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return ran.stdout.strip()

    git("init")
    git("commit", "--allow-empty", "-m", "first")
    folder = tmp_path / "baselines"  # is not there yet

    (promise,) = recorded(folder, verdict(100.0, 101.0))

    assert promise.recorded["commit"] == git("rev-parse", "--short=10", "HEAD")


def test_a_version_nobody_knows_is_told_as_such(tmp_path: Path) -> None:
    (promise,) = recorded(tmp_path, verdict(100.0, 101.0, versions={}))

    assert promise.recorded["version"] == "unknown"


@pytest.mark.parametrize(("metric", "value"), [(TTFT_MEDIAN, 1.23456789e-7), (PERPLEXITY, 12.5), (RATIO, 0.87)])
def test_every_unit_and_size_can_be_read_again(tmp_path: Path, metric: Metric, value: float) -> None:
    key = OTHER if metric is RATIO else KEY

    (promise,) = recorded(tmp_path, verdict(value, value, key=key, metric=metric))

    assert promise.metric == metric
    assert promise.value == pytest.approx(value, rel=1e-5)


def test_networks_of_random_weights_are_promised_by_their_name(tmp_path: Path) -> None:
    key = "torch/llama-3.2-1b@random@layers=1/bf16/tp2/max-throughput-32-16"

    assert promises(recorded(tmp_path, verdict(100.0, 101.0, key=key))) == {(key, "output_throughput"): 100.5}


@pytest.mark.parametrize(
    ("verdicts", "why"),
    [
        ([verdict(100.0)], "one restart does not show how much they differ"),
        ([verdict(100.0, 100.0, source=Source.PREDICTED)], "a prediction never becomes a promise"),
        ([verdict(0.0, 0.0)], "nothing can be relative to zero"),
        ([], "nothing was judged"),
    ],
)
def test_what_may_not_be_promised_is_not_written(tmp_path: Path, verdicts: list[Verdict], why: str) -> None:
    path, count = recording.record(read_baselines(tmp_path, "cpu", MACHINE.slug), verdicts, MACHINE)

    assert (count, path.exists()) == (0, False), why


def test_a_checkpoint_known_by_its_path_alone_is_not_written(tmp_path: Path) -> None:
    """A key of the file could not say where the folder is, and every later run would stumble over it."""
    (tmp_path / "tiny").mkdir()
    config = {
        "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128,
        "num_attention_heads": 4, "vocab_size": 512, "max_position_embeddings": 256,
    }  # fmt: skip
    (tmp_path / "tiny" / "config.json").write_text(str(config).replace("'", '"'))
    unnamed = verdict(100.0, 101.0)
    by_path = Case("cpu", "torch", model_named(str(tmp_path / "tiny")), unnamed.case.recipe, unnamed.case.layout,
                   unnamed.case.work)  # fmt: skip
    folder = tmp_path / "baselines"

    book = recorded(folder, judge(by_path, unnamed.summary, None), verdict(90.0, 91.0))

    assert promises(book) == {(KEY, "output_throughput"): 90.5}


# --- what stays ------------------------------------------------------------------------------------------------------


def test_entries_of_other_cases_and_metrics_stay_as_they_are(tmp_path: Path) -> None:
    recorded(tmp_path, verdict(100.0, 101.0), verdict(2.0, 2.0, metric=TTFT_MEDIAN), verdict(50.0, 52.0, key=OTHER))
    before = (tmp_path / FILE).read_text()
    changed = before.replace("tolerance: 0.25, source", "tolerance: 0.125, source").replace(
        'commit: "none"}}', 'commit: "abc1234"}, note: "before \\"the\\" fix: it\'s größer"}'
    )
    (tmp_path / FILE).write_text(changed)

    book = recorded(tmp_path, verdict(110.0, 112.0))

    assert promises(book) == {
        (KEY, "output_throughput"): 111.0, (KEY, "ttft_median"): 2.0, (OTHER, "output_throughput"): 51.0,
    }  # fmt: skip
    kept = [entry for entry in book if (entry.case.key, entry.metric) != (KEY, OUTPUT_THROUGHPUT)]
    for entry in kept:
        assert (entry.tolerance, entry.recorded["commit"]) == (0.125, "abc1234")
        assert entry.note == 'before "the" fix: it\'s größer'


def test_recording_the_same_again_changes_nothing_of_what_is_kept(tmp_path: Path) -> None:
    recorded(tmp_path, verdict(1 / 3, 1 / 3), verdict(2 / 3, 2 / 3, key=OTHER))
    first = (tmp_path / FILE).read_text()

    for _ in range(3):
        recorded(tmp_path, verdict(1 / 3, 1 / 3))

    assert (tmp_path / FILE).read_text() == first


def test_a_recorded_promise_is_recorded_anew(tmp_path: Path) -> None:
    recorded(tmp_path, verdict(100.0, 101.0))
    (old,) = read_baselines(tmp_path, "cpu", MACHINE.slug)

    (new,) = recorded(tmp_path, verdict(50.0, 51.0, baseline=old))

    assert new.value == 50.5


def test_a_promise_in_git_wins_and_is_not_recorded(tmp_path: Path) -> None:
    recorded(tmp_path, verdict(100.0, 101.0))
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "smollm2-135m.yaml").write_text(
        f"schema: 1\npromises:\n  {KEY}:\n    output_throughput: {{value: 70.0, unit: tok/s, tolerance: 0.1, "
        'source: measured, recorded: {date: "2026-11-01", version: "0.1", restarts: 3, commit: "abc1234"}}\n'
    )
    book = read_baselines(tmp_path, "cpu", MACHINE.slug)
    reviewed = book.find(case_of_key("cpu", KEY), OUTPUT_THROUGHPUT)
    assert reviewed is not None
    before = (tmp_path / FILE).read_text()

    _, count = recording.record(book, [verdict(100.0, 101.0, baseline=reviewed)], MACHINE)

    assert (reviewed.value, count) == (70.0, 0)
    assert (tmp_path / FILE).read_text() == before


def test_a_published_promise_has_no_place_among_those_of_one_machine(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / FILE).write_text(
        f"schema: 1\nreferences: {{here: a paper}}\npromises:\n  {KEY}:\n    output_throughput:\n"
        "      {value: 70.0, unit: tok/s, tolerance: 0.1, source: published, reference: here}\n"
    )

    with pytest.raises(DocumentError, match=r"cores\.yaml:6: .*promises for one machine are measured there, this one"):
        read_baselines(tmp_path, "cpu", MACHINE.slug)


# --- how tolerant ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "key", "hardware", "least"),
    [
        (OUTPUT_THROUGHPUT, KEY, "cpu", 0.25),
        (TTFT_MEDIAN, KEY, "cpu", 0.25),
        (RATIO, OTHER, "cpu", 0.10),
        (OUTPUT_THROUGHPUT, KEY.replace("torch/smollm2-135m", "tensorrt-llm/llama-3.1-8b"), "h200", 0.05),
        (RATIO, OTHER.replace("torch/smollm2-135m", "tensorrt-llm/llama-3.1-8b"), "h200", 0.05),
    ],
)
def test_restarts_that_do_not_differ_get_the_least_tolerance(
    tmp_path: Path, metric: Metric, key: str, hardware: str, least: float
) -> None:
    found = verdict(100.0, 100.0, 100.0, metric=metric, key=key, hardware=hardware)

    assert tolerance(tmp_path, found, hardware=hardware) == least


def test_tolerance_is_four_standard_deviations_rounded_up_to_a_percent(tmp_path: Path) -> None:
    # A standard deviation of 8.1 on 100, so 32.4 %, which is promised as 33 %.
    assert tolerance(tmp_path, verdict(91.9, 100.0, 108.1)) == 0.33


def test_a_quiet_case_is_as_tolerant_as_all_cases_together_are_noisy(tmp_path: Path) -> None:
    # Relative variances 0 and 0.0256, of two degrees of freedom each: 0.0128 together, a deviation of 11.3 %.
    quiet, noisy = verdict(100.0, 100.0, 100.0), verdict(42.0, 50.0, 58.0, key=OTHER)

    assert tolerance(tmp_path, quiet, noisy) == 0.46


def test_a_noisy_case_is_as_tolerant_as_it_is_noisy_itself(tmp_path: Path) -> None:
    # A deviation of 16 %, four are 64 %, whatever the other case says.
    noisy, quiet = verdict(42.0, 50.0, 58.0), verdict(100.0, 100.0, 100.0, key=OTHER)

    assert tolerance(tmp_path, noisy, quiet) == 0.64


def test_cases_with_more_restarts_count_more(tmp_path: Path) -> None:
    # Five restarts without spread, two with a relative variance of 0.02: (4 * 0 + 1 * 0.02) / 5, a deviation of 6.3 %.
    steady, spread = verdict(*[100.0] * 5), verdict(90.0, 110.0, key=OTHER)

    assert tolerance(tmp_path, steady, spread) == 0.26


def test_the_spread_of_one_metric_says_nothing_about_another(tmp_path: Path) -> None:
    noisy = verdict(0.5, 1.0, 1.5, metric=TTFT_MEDIAN)

    assert tolerance(tmp_path, verdict(100.0, 100.0, 100.0), noisy) == 0.25


def test_no_spread_makes_a_promise_that_anything_would_keep(tmp_path: Path) -> None:
    assert tolerance(tmp_path, verdict(1.0, 1000.0)) == 0.95


@given(st.lists(st.floats(1e-6, 1e9), min_size=2, max_size=6))
def test_whatever_was_measured_keeps_the_promise_it_becomes(values: list[float]) -> None:
    found = verdict(*values)
    spread = recording.pooled_spreads([found.summary])[OUTPUT_THROUGHPUT]

    tolerated = recording.tolerance_of(found.summary, spread, on_cpu=True)

    assert 0.25 <= tolerated <= 0.95
    assert round(tolerated * 100) == pytest.approx(tolerated * 100)


# --- whole sessions --------------------------------------------------------------------------------------------------

SUITE = """
import pytest
from pytest_llamaperf import OUTPUT_THROUGHPUT

EMBEDDED = {"model": "smollm2-135m", "hardware": "cpu", "layout": "tp1", "workload": "min-latency-32-16"}

@pytest.mark.cases(**EMBEDDED, recipe=["bf16", "modelopt-fp8", "llama-fp8"])
def test_speed(case, measure, baseline):
    baseline.check(measure(case), OUTPUT_THROUGHPUT)
"""
BF16, FP8, LLAMA = (
    f"torch/smollm2-135m/{recipe}/tp1/min-latency-32-16" for recipe in ("bf16", "modelopt-fp8", "llama-fp8")
)
SPEEDS: dict[str, Any] = {"bf16_tp1": [100.0, 101.0], "every": [50.0, 51.0]}

Session = Callable[..., pytest.RunResult]


@pytest.fixture
def session(pytester: pytest.Pytester) -> Session:
    """A session in which BF16 reaches 100.5 tok/s and the others 50.5."""

    def run(*options: str, speeds: Mapping[str, Any] = SPEEDS, suite: str = SUITE) -> pytest.RunResult:
        pytester.makeconftest(fake_engine(**speeds))
        pytester.makepyfile(suite)
        return pytester.runpytest("--gpu=cpu", "--restarts=2", "-rs", *options)

    return run


def local_file(pytester: pytest.Pytester) -> Path:
    return pytester.path / "baselines" / "local" / f"cpu-{find_machine().slug}.yaml"


def promised(pytester: pytest.Pytester) -> dict[str, float]:
    book = read_baselines(pytester.path / "baselines", "cpu", find_machine().slug)
    return {entry.case.key: entry.value for entry in book}


def test_a_recording_run_skips_and_the_next_run_is_judged_by_it(pytester: pytest.Pytester, session: Session) -> None:
    first = session("--record")

    first.assert_outcomes(skipped=3)
    assert first.ret == 0
    first.stdout.fnmatch_lines(["recorded: 3 promises for this machine in baselines/local/cpu-*.yaml"])
    first.stdout.no_fnmatch_line("*run once more with --record*")
    assert promised(pytester) == {BF16: 100.5, FP8: 50.5, LLAMA: 50.5}

    session().assert_outcomes(passed=3)

    slower = session(speeds={"bf16_tp1": [70.0, 70.1], "every": [50.0, 51.0]})
    slower.assert_outcomes(passed=2, failed=1)
    slower.stdout.fnmatch_lines(["    promise in baselines/local/cpu-*.yaml:*(measured)"])


def test_without_recording_the_way_to_record_is_told_and_nothing_written(
    pytester: pytest.Pytester, session: Session
) -> None:
    result = session()

    result.stdout.fnmatch_lines(["or run once more with --record: that promises what was measured, for this machine"])
    assert not (pytester.path / "baselines").exists()


def test_a_partial_run_leaves_the_other_cases_recorded(pytester: pytest.Pytester, session: Session) -> None:
    session("--record")

    session("--record", "-k", "modelopt", speeds={"every": [80.0, 81.0]})

    assert promised(pytester) == {BF16: 100.5, FP8: 80.5, LLAMA: 50.5}


def test_a_broken_promise_for_this_machine_fails_also_while_it_is_recorded_anew(
    pytester: pytest.Pytester, session: Session
) -> None:
    session("--record")

    result = session("--record", speeds={"every": [50.0, 51.0]})

    result.assert_outcomes(passed=2, failed=1)
    assert promised(pytester)[BF16] == 50.5


def test_an_engine_that_failed_leaves_what_was_recorded_before(pytester: pytest.Pytester, session: Session) -> None:
    session("--record")

    result = session("--record", speeds={"bf16_tp1": [100.0, 0.0], "every": [60.0, 61.0]})

    result.assert_outcomes(failed=1, passed=2)
    assert promised(pytester) == {BF16: 100.5, FP8: 60.5, LLAMA: 60.5}


def test_promises_in_git_win_in_a_session_and_are_not_recorded(pytester: pytest.Pytester, session: Session) -> None:
    session("--record")
    folder = pytester.path / "baselines" / "cpu"
    folder.mkdir()
    (folder / "smollm2-135m.yaml").write_text(
        f"schema: 1\npromises:\n  {BF16}:\n    output_throughput: {{value: 200.0, unit: tok/s, tolerance: 0.05, "
        'source: measured, recorded: {date: "2026-11-01", version: "0.1", restarts: 3, commit: "abc1234"}}\n'
    )

    result = session("--record")

    result.assert_outcomes(failed=1, passed=2)
    result.stdout.fnmatch_lines(
        ["    promise in baselines/cpu/smollm2-135m.yaml:4 (measured)", "recorded: 2 promises for this machine in *"]
    )


def test_a_run_with_nothing_to_record_says_so_and_breaks_no_later_run(
    pytester: pytest.Pytester, session: Session
) -> None:
    result = session("--record", "--restarts=1")

    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["recorded: nothing; a promise is of a model of the catalog, measured in two restarts*"]
    )
    assert not local_file(pytester).exists()
    session().assert_outcomes(skipped=3)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            "unit: tok/s",
            "unit: tokens",
            ":6: *bf16/tp1/min-latency-32-16, output_throughput: *is in tok/s, not 'tokens'*",
        ),
        ("schema: 1", "schema: 9", ":2: schema 9 is not known here*"),
        ("promises:", "promises: {", ":[45]: is not YAML: *"),
        ("smollm2-135m", "smollm3", ":4: torch/smollm3/bf16/*: unknown model 'smollm3'*"),
    ],
)
@pytest.mark.parametrize("option", ["--record", "--gate"])
def test_a_damaged_file_is_a_usage_error_with_file_and_line_and_stays_as_it_is(
    pytester: pytest.Pytester, session: Session, old: str, new: str, problem: str, option: str
) -> None:
    session("--record")
    damaged = local_file(pytester).read_text().replace(old, new, 1)
    local_file(pytester).write_text(damaged)

    result = session(option)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: baselines/local/{local_file(pytester).name}{problem}"])
    assert local_file(pytester).read_text() == damaged


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--gpu=cpu", "--gate"), "--record with --gate: a gate judges promises, and a recording makes them; *"),
        (
            ("--gpu=h200", "--engine=predicted"),
            "--record with --engine predicted: a prediction never becomes a promise",
        ),
    ],
)
def test_what_cannot_be_recorded_is_refused_at_the_start(
    pytester: pytest.Pytester, options: tuple[str, ...], message: str
) -> None:
    pytester.makepyfile("def test_nothing(): raise AssertionError('ran')")

    result = pytester.runpytest("--record", *options)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {message}"])
    result.stdout.no_fnmatch_line("*1 failed*")


def test_a_folder_that_cannot_be_written_is_told_and_fails_the_run(pytester: pytest.Pytester, session: Session) -> None:
    pytester.mkdir("baselines")
    (pytester.path / "baselines" / "local").write_text("a file is in the way, for root may write anywhere")

    result = session("--record", "--results=out")

    result.assert_outcomes(skipped=3)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.re_match_lines([r"ERROR: nothing was recorded: \[Errno \d+\] .*baselines/local"])
    assert (pytester.path / "out" / "run.json").exists()


def test_ratios_are_recorded_with_their_own_tolerance(pytester: pytest.Pytester, session: Session) -> None:
    ratios = SUITE.replace("recipe=[", 'recipe=["modelopt-fp8", "llama-fp8"])\n@pytest.mark.versus(recipe="bf16")  #')
    ratios = ratios.replace("test_speed(case,", "test_speed(case, other,").replace(
        "measure(case), OUTPUT_THROUGHPUT)",
        "measure(case).versus(measure(other), OUTPUT_THROUGHPUT), OUTPUT_THROUGHPUT.versus('bf16'))",
    )

    session("--record", suite=ratios)
    book = list(read_baselines(pytester.path / "baselines", "cpu", find_machine().slug))

    assert {entry.case.key for entry in book} == {FP8, LLAMA}
    for entry in book:
        assert (entry.metric, entry.tolerance) == (RATIO, 0.10)
        assert entry.value == pytest.approx((50 / 100 + 51 / 101) / 2, rel=1e-5)
    session(suite=ratios).assert_outcomes(passed=2)


def test_the_date_is_of_today_in_utc(tmp_path: Path) -> None:
    (promise,) = recorded(tmp_path, verdict(1.0, 1.0))

    assert re.fullmatch(r"\d{4}-\d\d-\d\d", promise.recorded["date"])
    assert promise.recorded["date"] == datetime.now(UTC).date().isoformat()
    assert judge(promise.case, summarize_values(OUTPUT_THROUGHPUT, Source.MEASURED, (1.0, 1.0)), promise).outcome is (
        Outcome.PASS
    )
