"""Measured rounds in pytest-benchmark: in its table and its files, chosen by its options, and in nobody's way."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

# pytester forgets what a session it runs imports first, and numpy refuses to be loaded twice.
import aiconfigurator_core  # noqa: F401
import pytest
import scipy.special  # noqa: F401
from engine_sessions import fake_engine

from pytest_llamaperf.benchmarking import Playback
from pytest_llamaperf.catalog import workload_named

pytest_plugins = ["pytester"]

MARKER = """
@pytest.mark.cases(
    model="smollm2-135m", recipe=["bf16", "modelopt-fp8"], layout="tp1", workload="min-latency-32-16", hardware="cpu"
)
"""
TOP = "import pytest\nfrom pytest_llamaperf import OUTPUT_THROUGHPUT\n"
SUITE = f"""{TOP}{MARKER}
def test_speed(case, measure, baseline):
    baseline.check(measure(case), OUTPUT_THROUGHPUT)

def test_other():
    pass
"""
BF16, FP8 = (f"cpu/torch/smollm2-135m/{recipe}/tp1/min-latency-32-16" for recipe in ("bf16", "modelopt-fp8"))
# 16 tokens of each request, one after the other, at 100 and 120, and at 50 tokens a second.
SPEEDS = {"bf16_tp1": [100.0, 120.0], "every": [50.0]}
TOKENS = 16 * workload_named("min-latency-32-16").requests
BF16_SECONDS = [TOKENS / 100, TOKENS / 100, TOKENS / 120, TOKENS / 120]
FP8_SECONDS = [TOKENS / 50] * 4

Session = Callable[..., pytest.RunResult]


@pytest.fixture
def session(pytester: pytest.Pytester) -> Session:
    """Two restarts of two rounds. Warnings are errors."""

    def run(*options: str, suite: str = SUITE, speeds: dict[str, Any] = SPEEDS) -> pytest.RunResult:
        pytester.makeconftest(fake_engine(**speeds))
        pytester.makepyfile(suite)
        return pytester.runpytest("--gpu=cpu", "--restarts=2", "--rounds=2", "-W", "error", "-rs", *options)

    return run


@pytest.fixture
def benchmarks(pytester: pytest.Pytester, session: Session) -> Callable[..., dict[str, Any]]:
    """What a session writes into its JSON, by the names of tests."""

    def run(*options: str, suite: str = SUITE) -> dict[str, Any]:
        result = session("--benchmark-json=found.json", *options, suite=suite)
        result.stdout.no_fnmatch_line("*INTERNALERROR*")
        document = json.loads((pytester.path / "found.json").read_text())
        return {found["name"]: found for found in document["benchmarks"]}

    return run


def data(found: dict[str, Any]) -> Any:
    return pytest.approx(found["stats"]["data"])


def opened(pytester: pytest.Pytester) -> list[str]:
    path = pytester.path / "engines.log"
    lines = path.read_text().splitlines() if path.exists() else []
    return sorted(line.removeprefix("open ") for line in lines if line.startswith("open "))


def test_every_round_of_every_restart_is_there_with_all_metrics(
    pytester: pytest.Pytester, benchmarks: Callable[..., dict[str, Any]]
) -> None:
    found = benchmarks("--results=out")

    assert set(found) == {f"test_speed[{BF16}]", f"test_speed[{FP8}]"}
    bf16, fp8 = found[f"test_speed[{BF16}]"], found[f"test_speed[{FP8}]"]
    assert data(bf16) == BF16_SECONDS
    assert data(fp8) == FP8_SECONDS
    assert (bf16["stats"]["rounds"], bf16["stats"]["iterations"], bf16["stats"]["max"]) == (
        4,
        1,
        pytest.approx(TOKENS / 100),
    )
    assert bf16["options"]["timer"] == "time of the engine"
    assert bf16["extra_info"].keys() >= {"case", "output_throughput", "ttft_median", "tpot_p99"}
    assert (bf16["extra_info"]["case"], bf16["extra_info"]["output_throughput"]) == (BF16, pytest.approx(110.0))
    results = json.loads((pytester.path / "out" / "run.json").read_text())["results"]
    assert {result["case"]["id"]: result["value"] for result in results} == {
        each["extra_info"]["case"]: each["extra_info"]["output_throughput"] for each in found.values()
    }


def test_the_table_shows_them_in_an_ordinary_run(session: Session) -> None:
    result = session()

    result.assert_outcomes(passed=1, skipped=2)
    rows = [
        f"test_speed[[]{case}[]] *{seconds[-1]:.4f} *" for case, seconds in ((BF16, BF16_SECONDS), (FP8, FP8_SECONDS))
    ]
    result.stdout.fnmatch_lines(["*benchmark: 2 tests*", "Name (time in s) *", *rows])


def test_only_chooses_the_tests_that_measure(pytester: pytest.Pytester, session: Session) -> None:
    result = session("--benchmark-only")

    result.assert_outcomes(skipped=3)
    result.stdout.fnmatch_lines(["*benchmark: 2 tests*", "*Skipping non-benchmark (--benchmark-only active)."])
    assert opened(pytester) == ["bf16/tp1"] * 2 + ["modelopt-fp8/tp1"] * 2


def test_skip_leaves_them_out_and_opens_no_engine(pytester: pytest.Pytester, session: Session) -> None:
    result = session("--benchmark-skip")

    result.assert_outcomes(passed=1, skipped=2)
    result.stdout.fnmatch_lines(["*Skipping benchmark (--benchmark-skip active)."])
    assert opened(pytester) == []


def test_disabled_they_are_judged_all_the_same(pytester: pytest.Pytester, session: Session) -> None:
    session("--record")

    result = session("--benchmark-disable", speeds={"bf16_tp1": [110.0, 111.0], "every": [30.0]})

    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["  output_throughput: regression"])
    result.stdout.no_fnmatch_line("*benchmark: * tests*")


def test_a_later_run_is_compared_with_a_saved_one(pytester: pytest.Pytester, session: Session) -> None:
    session("--benchmark-autosave")
    assert len(list((pytester.path / ".benchmarks").rglob("0001_*.json"))) == 1

    result = session("--benchmark-compare", speeds={"every": [40.0]})

    result.assert_outcomes(passed=1, skipped=2)
    result.stdout.fnmatch_lines(
        [
            "*benchmark: 4 tests*",
            f"test_speed[[]{BF16}[]] (0001*) * {BF16_SECONDS[-1]:.4f} *",
            f"test_speed[[]{BF16}[]] (NOW) * {TOKENS / 40:.4f} *",
        ]
    )


def test_a_comparison_that_fails_the_run_leaves_its_results(pytester: pytest.Pytester, session: Session) -> None:
    session("--benchmark-autosave")

    result = session(
        "--benchmark-compare", "--benchmark-compare-fail=mean:5%", "--results=out", speeds={"every": [40.0]}
    )

    assert result.ret != 0
    (result.stdout.str() + result.stderr.str()).index("Performance has regressed")
    assert len(json.loads((pytester.path / "out" / "run.json").read_text())["results"]) == 2


def test_a_test_that_measures_twice_shows_the_first(benchmarks: Callable[..., dict[str, Any]]) -> None:
    suite = f"""{TOP}{MARKER.replace('["bf16", "modelopt-fp8"]', '"modelopt-fp8"')}
@pytest.mark.versus(recipe="bf16")
def test_ratio(case, other, measure):
    fp8, bf16 = measure(case), measure(other)
    assert measure(case) is fp8
    assert fp8.versus(bf16, OUTPUT_THROUGHPUT)
"""

    (found,) = benchmarks(suite=suite).values()

    assert data(found) == FP8_SECONDS
    assert found["extra_info"]["case"] == FP8


def test_what_a_fixture_measures_is_not_of_the_test(pytester: pytest.Pytester, session: Session) -> None:
    suite = f"""{TOP}
@pytest.fixture
def warm(case, measure):
    return measure(case)
{MARKER}
def test_speed(warm, case):
    assert warm.case == case
"""

    result = session(suite=suite)

    result.assert_outcomes(passed=2)
    result.stdout.no_fnmatch_line("*benchmark: * tests*")


def test_a_benchmark_of_the_tests_own_is_its_own(benchmarks: Callable[..., dict[str, Any]]) -> None:
    suite = f"""{TOP}{MARKER}
def test_speed(case, measure, benchmark):
    measure(case)
    benchmark.pedantic(lambda: None, rounds=7)
"""

    found = benchmarks(suite=suite)

    assert [each["stats"]["rounds"] for each in found.values()] == [7, 7]
    assert all(each["stats"]["min"] < 0.3 and not each["extra_info"] for each in found.values())


@pytest.mark.parametrize("place", ["module", "test"])
def test_a_group_of_the_suites_choice_is_kept(benchmarks: Callable[..., dict[str, Any]], place: str) -> None:
    group = "pytest.mark.benchmark(group='llamas')"
    suite = f"""{TOP}
{f"pytestmark = {group}" if place == "module" else f"@{group}"}{MARKER}
def test_speed(case, measure):
    measure(case)
"""

    found = benchmarks(suite=suite)

    assert {each["group"] for each in found.values()} == {"llamas"}
    assert data(found[f"test_speed[{BF16}]"]) == BF16_SECONDS


def test_without_pytest_benchmark_everything_else_works(session: Session) -> None:
    result = session("-p", "no:benchmark")

    result.assert_outcomes(passed=1, skipped=2)
    result.stdout.fnmatch_lines(["*= llamaperf =*"])


@pytest.mark.parametrize("options", [(), ("-n2",)])
def test_predictions_are_no_benchmarks_and_nobody_warns(
    pytester: pytest.Pytester, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(
        TOP
        + """
@pytest.mark.cases(model="llama-3.1-8b", recipe="bf16", layout="tp1", workload="min-latency-128-8")
def test_speed(case, measure, baseline):
    baseline.check(measure(case), OUTPUT_THROUGHPUT)
"""
    )
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)

    result = pytester.runpytest("--gpu=h200", "--engine=predicted", "-W", "error", *options)

    result.assert_outcomes(skipped=1)
    assert result.ret == 0
    for word in ("warning", "benchmark: ", "Benchmarks are", "error"):
        assert word not in result.stdout.str().replace("benchmark: 5", "") + result.stderr.str()


def test_other_projects_benchmarks_are_timed_as_ever(benchmarks: Callable[..., dict[str, Any]]) -> None:
    (found,) = benchmarks(suite="def test_theirs(benchmark): benchmark.pedantic(lambda: None, rounds=5)").values()

    assert found["options"]["timer"] == "perf_counter"
    assert 0 < found["stats"]["min"] < 0.3


def test_the_clock_moves_by_each_round_and_stands_still_between() -> None:
    clock = Playback()
    clock.load([0.5, 0.25])

    readings = [clock(), clock()]
    for _ in range(2):
        clock.play()
        readings += [clock(), clock()]

    assert readings == [0.0, 0.0, 0.5, 0.5, 0.75, 0.75]
