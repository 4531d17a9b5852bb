"""The reference engine in whole pytest sessions: a checkpoint by its path, ranks in processes, verdicts, files.

One session serves most tests here; a second one runs another part of the suite, shuffled.
"""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

# pytester forgets what a session it runs imports first, and numpy refuses to be loaded twice.
import pytest
import scipy.special  # noqa: F401
from engine_sessions import COUNTING, SHUFFLING, Folder, fake_engine, short, tiny_checkpoint

from pytest_llamaperf.baselines import read_baselines
from pytest_llamaperf.hardware import find_machine

pytest_plugins = ["pytester"]

RESTARTS, ROUNDS = 2, 2
LATENCY = "min-latency-16-8"

SUITE = """
import pytest
from pytest_llamaperf import OUTPUT_THROUGHPUT, TTFT_MEDIAN
from pytest_llamaperf.metrics import PEAK_MEMORY

TINY = {"model": CHECKPOINT, "hardware": "cpu"}
LATENCY, ALL_AT_ONCE = "min-latency-16-8", "max-throughput-16-8"

@pytest.mark.cases(**TINY, recipe="bf16", layout=["tp1", "tp2", "pp2"], workload=LATENCY)
@pytest.mark.cases(**TINY, recipe="bf16", layout="tp1", workload=ALL_AT_ONCE)
def test_speed(case, measure, baseline):
    baseline.check(measure(case), OUTPUT_THROUGHPUT, TTFT_MEDIAN)

@pytest.mark.cases(**TINY, recipe="bf16", layout=["tp2", "pp2"], workload=LATENCY)
@pytest.mark.versus(layout="tp1")
def test_ratio(case, other, measure, baseline):
    baseline.check(measure(case).versus(measure(other), OUTPUT_THROUGHPUT), OUTPUT_THROUGHPUT.versus("tp1"))

@pytest.mark.cases(**TINY, recipe="bf16", layout=["tp2", "pp2"], task="answers")
def test_again(case, answers):
    found = answers(case)
    assert found.again == found.together
    assert {len(tokens) for tokens in found.together} == {8}

@pytest.mark.cases(**TINY, recipe="fp32", layout="tp2", task="answers")
@pytest.mark.versus(layout="tp1")
def test_same_answers(case, other, answers):
    spread, one_rank = answers(case), answers(other)
    assert spread.together == one_rank.together
    assert spread.agreement(one_rank).logprob < 1e-4
    assert spread.sensitivity().logprob > 0

@pytest.mark.cases(**TINY, recipe="bf16", layout="tp1", workload=LATENCY)
def test_by_hand(engine, workload, case):
    run = engine.run(workload)
    assert len(run.traces) == workload.requests
    assert run.readings[PEAK_MEMORY] > 0
    assert engine.decode(engine.encode(["Größe"])) == ["Größe"]
    (one, two) = engine.generate([[1, 2, 3], [4]], 5)
    assert len(one) == len(two) == 5
    (scored,) = engine.score([[1, 2, 3, *one]])
    assert scored.likely[2:] == tuple(one)  # what is generated is the most likely
"""


def folder_with(path: Path, checkpoint: Path, conftest: str = COUNTING) -> Folder:
    folder = Folder(path)
    folder.write(conftest=conftest, test_tiny=SUITE.replace("CHECKPOINT", repr(str(checkpoint))))
    folder.ini("llamaperf_deadlines = load=120 run=120 close=60", "strict = true")
    return folder


class Session:
    def __init__(self, folder: Folder, *options: str) -> None:
        self.folder = folder
        self.result = folder.run("--gpu=cpu", f"--rounds={ROUNDS}", "--results=out", *options)

    @property
    def opened(self) -> Counter[str]:
        return Counter(self.folder.words("loads"))

    def results(self, test: str) -> list[dict[str, Any]]:
        return [found for found in self.folder.run_json()["results"] if short(found["nodeid"]) == test]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """What is measured, and what is asked of the same engines, in the order written."""
    folder = folder_with(tmp_path_factory.mktemp("whole"), tiny_checkpoint(tmp_path_factory))
    benchmarks = ("-p", "benchmark", "--benchmark-json=benchmarks.json")
    selection = ("-k", "not by_hand and not same_answers")
    return Session(folder, "-rs", f"--restarts={RESTARTS}", "--record", *benchmarks, *selection)


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """What is about two ranks of tensor parallelism, and an engine by hand, in another order, without restarts."""
    path = tmp_path_factory.mktemp("part")
    folder = folder_with(path, tiny_checkpoint(tmp_path_factory), f"SEED = 3\n{COUNTING}{SHUFFLING}")
    return Session(folder, "-v", "--restarts=1", "-k", "tp2 or by_hand")


# --- one session with everything -------------------------------------------------------------------------------------


def test_measured_values_without_promises_skip_and_answers_pass(whole: Session) -> None:
    whole.result.assert_outcomes(skipped=6, passed=2, deselected=2)

    assert whole.result.ret == 0
    assert whole.result.stdout.str().count("error, not a regression") == 0


def test_every_engine_is_opened_once_a_restart(whole: Session) -> None:
    assert whole.opened == {"bf16/tp1": RESTARTS, "bf16/tp2": RESTARTS, "bf16/pp2": RESTARTS}


def test_results_hold_a_value_for_every_restart_and_where_it_came_from(whole: Session) -> None:
    results = whole.results("test_speed")

    assert len(results) == 8
    for found in results:
        assert (found["source"], found["outcome"]) == ("measured", "no-baseline")
        assert len(found["values"]) == RESTARTS
        assert all(value > 0 for value in found["values"])
        assert found["case"]["model"] == "tiny"
        assert found["fingerprint"]["versions"].keys() == {"torch", "safetensors"}
        settings = found["fingerprint"]["settings"]
        assert (settings["device"], settings["threads"]) == ("cpu", 1)
        assert re.fullmatch(r"[0-9a-f]{64}", settings["checkpoint"])
        assert settings["env OMP_WAIT_POLICY"] == "PASSIVE"
    datasets = {(each["case"]["workload"], each["fingerprint"]["settings"]["dataset"]) for each in results}
    assert len(datasets) == len({workload for workload, _ in datasets})  # layouts are asked the same
    assert len({dataset for _, dataset in datasets}) == len(datasets)


def test_ratios_pair_restarts_of_engines_measured_in_turn(whole: Session) -> None:
    speeds = {
        found["case"]["layout"]: found["values"]
        for found in whole.results("test_speed")
        if found["metric"] == "output_throughput" and found["case"]["workload"] == "min-latency"
    }

    ratios = whole.results("test_ratio")

    assert {found["case"]["layout"] for found in ratios} == {"tp2", "pp2"}
    for found in ratios:
        ours, one_rank = speeds[found["case"]["layout"]], speeds["tp1"]
        assert (found["metric"], found["unit"]) == ("output_throughput vs tp1", "x")
        assert found["values"] == pytest.approx([a / b for a, b in zip(ours, one_rank, strict=True)])


def test_rounds_in_the_benchmark_file_are_those_that_were_judged(whole: Session) -> None:
    document = json.loads((whole.folder.path / "benchmarks.json").read_text())
    benchmarks = {found["name"]: found for found in document["benchmarks"]}

    judged = whole.results("test_speed") + whole.results("test_ratio")
    assert benchmarks.keys() == {found["nodeid"].rpartition("::")[2] for found in judged}
    for found in whole.results("test_speed"):
        if found["metric"] != "output_throughput":
            continue
        benchmark = benchmarks[found["nodeid"].rpartition("::")[2]]
        seconds = benchmark["stats"]["data"]
        assert len(seconds) == RESTARTS * ROUNDS
        tokens = found["case"]["requests"] * found["case"]["osl"]
        speeds = [statistics.median(tokens / s for s in seconds[n * ROUNDS :][:ROUNDS]) for n in range(RESTARTS)]
        assert found["values"] == pytest.approx(speeds)
        assert benchmark["extra_info"]["output_throughput"] == pytest.approx(found["value"])
        assert benchmark["extra_info"].keys() >= {"peak_memory", "load_time", "ttft_median"}


def test_a_model_known_by_its_path_cannot_be_promised_and_says_so(whole: Session) -> None:
    whole.result.stdout.fnmatch_lines(["to promise it, first add tiny to the catalog of models, then ask again"])
    whole.result.stdout.no_fnmatch_line("*run once more with --record*")
    whole.result.stdout.fnmatch_lines(["recorded: nothing; a promise is of a model of the catalog, *"])
    assert not (whole.folder.path / "baselines").exists()


def test_engines_log_beside_the_results(whole: Session) -> None:
    logs = {path.name for path in (whole.folder.path / "out" / "engines").iterdir()}

    assert logs == {f"cpu_torch_tiny_{engine.replace('/', '_')}.log" for engine in whole.opened}


def test_nothing_is_left_of_a_session(whole: Session) -> None:
    assert whole.folder.left_over() == {}


# --- a part of it, in another order ----------------------------------------------------------------------------------


def test_a_part_in_another_order_opens_what_it_needs_as_often(part: Session) -> None:
    part.result.assert_outcomes(skipped=2, passed=3, deselected=5)

    order = [short(line.partition(" ")[0]) for line in part.result.outlines if re.match(r"test_tiny\.py::\S+ \w", line)]
    assert len(order) == 5
    assert order != ["test_speed", "test_ratio", "test_again", "test_same_answers", "test_by_hand"]
    assert part.opened == {
        "bf16/tp2": 1,
        "bf16/tp1": 1 + 1,  # the fixture `engine` opens one of its own
        "fp32/tp2": 1,
        "fp32/tp1": 1,
    }


def test_nothing_is_left_of_a_part_either(part: Session) -> None:
    assert part.folder.left_over() == {}


def test_a_real_engine_of_random_weights_is_recorded_and_judged_by_it(tmp_path: Path) -> None:
    """What it comes to depends on who else is at work; that it is judged, if never conclusively, does not."""
    folder = Folder(tmp_path)
    folder.write(
        test_random="""
import pytest
from pytest_llamaperf import OUTPUT_THROUGHPUT

@pytest.mark.cases(
    model="smollm2-135m@random@layers=1", recipe="bf16", layout="tp1", workload="min-latency-16-8", hardware="cpu"
)
def test_speed(case, measure, baseline):
    baseline.check(measure(case), OUTPUT_THROUGHPUT)
"""
    )
    options = ("--gpu=cpu", "--rounds=1", "--results=out")

    folder.run(*options, "--restarts=2", "--record").assert_outcomes(skipped=1)
    folder.run(*options, "--restarts=1").assert_outcomes(skipped=1)

    (promise,) = read_baselines(folder.path / "baselines", "cpu", find_machine().slug)
    assert promise.case.key == f"torch/smollm2-135m@random@layers=1/bf16/tp1/{LATENCY}"
    assert promise.recorded["version"] == re.sub(r"\s", "", promise.recorded["version"]) != "unknown"
    (found,) = folder.run_json()["results"]
    assert found["outcome"] == "inconclusive"
    assert found["baseline"]["value"] == promise.value
    assert found["fingerprint"]["settings"]["checkpoint"] == "random weights"
    assert folder.left_over() == {}


# --- how often engines are opened, with engines that cost nothing ----------------------------------------------------

MANY = """
import pytest

EMBEDDED = {"model": "smollm2-135m", "hardware": "cpu"}
WORK = ["min-latency-16-8", "max-throughput-16-8"]

@pytest.mark.cases(**EMBEDDED, recipe=["bf16", "modelopt-fp8"], layout=["tp1", "tp2", "pp2"], workload=WORK)
def test_speed(case, measure):
    measure(case)

@pytest.mark.cases(**EMBEDDED, recipe="modelopt-fp8", layout=["tp1", "tp2"], workload=WORK)
@pytest.mark.versus(recipe="bf16")
def test_recipe(case, other, measure):
    assert measure(case).case != measure(other).case

@pytest.mark.cases(**EMBEDDED, recipe="bf16", layout=["tp2", "pp2"], task="answers")
@pytest.mark.versus(layout="tp1")
def test_answers(case, other, answers):
    answers(case), answers(other)
"""
SIX = {f"{recipe}/{layout}": 3 for recipe in ("bf16", "modelopt-fp8") for layout in ("tp1", "tp2", "pp2")}


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), SIX),
        (("-k", "test_answers"), {"bf16/tp1": 1, "bf16/tp2": 1, "bf16/pp2": 1}),
        (("-k", "test_recipe and tp2"), {"bf16/tp2": 3, "modelopt-fp8/tp2": 3}),
        (
            ("-k", "test_recipe and tp2 or test_answers"),
            {"bf16/tp2": 3, "modelopt-fp8/tp2": 3, "bf16/tp1": 1, "bf16/pp2": 1},
        ),
    ],
)
def test_engines_are_opened_once_a_restart_in_any_order_and_selection(
    pytester: pytest.Pytester, options: tuple[str, ...], expected: dict[str, int], seed: int | None
) -> None:
    pytester.makeconftest(fake_engine(every=[100.0]) + (f"SEED = {seed}\n{SHUFFLING}" if seed is not None else ""))
    pytester.makepyfile(MANY)

    result = pytester.runpytest("--gpu=cpu", "--restarts=3", "--rounds=1", "-p", "no:benchmark", *options)

    assert result.ret == 0
    words = [line.split() for line in (pytester.path / "engines.log").read_text().splitlines()]
    assert Counter(engine for verb, engine in words if verb == "open") == expected
    assert Counter(engine for verb, engine in words if verb == "close") == expected


def test_what_only_skipped_tests_compare_with_has_no_engine_opened(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(fake_engine(every=[100.0]))
    pytester.makepyfile(MANY.replace("\ndef test_recipe", '\n@pytest.mark.skip(reason="not today")\ndef test_recipe'))

    result = pytester.runpytest("--gpu=cpu", "--restarts=1", "-k", "test_recipe or test_speed and bf16")

    result.assert_outcomes(passed=6, skipped=4, deselected=8)
    lines = (pytester.path / "engines.log").read_text().splitlines()
    assert {line for line in lines if line.startswith("open")} == {"open bf16/tp1", "open bf16/tp2", "open bf16/pp2"}


# --- what a case is compared with ------------------------------------------------------------------------------------

COMPARED = """
import pytest

@pytest.mark.cases(model="smollm2-135m", hardware="cpu", recipe="bf16", layout="tp2", workload="min-latency-16-8")
VERSUS
def test_ratio(case, other, measure):
    print("compared with", other)
"""
NODE = "test_*.py::test_ratio[[]cpu/torch/smollm2-135m/bf16/tp2/min-latency-16-8[]]"

Compare = Callable[..., pytest.RunResult]


@pytest.fixture
def compared(pytester: pytest.Pytester) -> Compare:
    def run(versus: str, *options: str) -> pytest.RunResult:
        pytester.makeconftest(fake_engine(every=[100.0]))
        pytester.makepyfile(COMPARED.replace("VERSUS", versus))
        return pytester.runpytest("--gpu=cpu", *options)

    return run


@pytest.mark.parametrize(
    ("versus", "other"),
    [
        ('recipe="modelopt-fp8"', "cpu/torch/smollm2-135m/modelopt-fp8/tp2"),
        ('layout="tp1"', "cpu/torch/smollm2-135m/bf16/tp1"),
    ],
)
def test_other_is_the_same_case_but_for_one_thing(compared: Compare, versus: str, other: str) -> None:
    result = compared(f"@pytest.mark.versus({versus})", "-s")

    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([f"*compared with {other}/min-latency-16-8"])


@pytest.mark.parametrize(
    ("versus", "message"),
    [
        ('recipe="bf61"', "unknown recipe 'bf61'; did you mean 'bf16'? *"),
        ('layout="2tp"', "unknown layout '2tp'; write tp8, *"),
        ('layout="tp7"', "tp7: smollm2-135m has 9 attention heads and 3 KV heads, *"),
        (
            'layout="tp2"',
            "@pytest.mark.versus(layout='tp2'): that is cpu/torch/smollm2-135m/bf16/tp2/min-latency-16-8 itself",
        ),
        ('recipe="modelopt-fp8", layout="tp1"', "@pytest.mark.versus names one thing that is different, as in *"),
        ('"tp1"', "@pytest.mark.versus names one thing that is different, as in *"),
        ("", "@pytest.mark.versus names one thing that is different, as in *"),
        ('workload="min-latency-16-8"', "@pytest.mark.versus: unknown argument 'workload'; *known: *layout, *recipe"),
        ('model="smollm2"', "unknown model 'smollm2'; did you mean 'smollm2-135m'? *"),
        (
            'model="smollm2-135m", recipe="bf16"',
            "@pytest.mark.versus(model='smollm2-135m', recipe='bf16'): that is cpu/torch/smollm2-135m/bf16/tp2/* itself",
        ),
        ('layout=["tp1", "pp2"]', "@pytest.mark.versus: layout is one name, not ['tp1', 'pp2']"),
        ("recipe=16", "@pytest.mark.versus: recipe is one name, not 16"),
    ],
)
def test_a_wrong_comparison_is_a_usage_error_that_names_the_test(compared: Compare, versus: str, message: str) -> None:
    result = compared(f"@pytest.mark.versus({versus})")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    quoted = message.replace("[", "[[]")
    result.stderr.fnmatch_lines([f"ERROR: {NODE}: {quoted}"])
    result.stderr.no_fnmatch_line("*Traceback*")


@pytest.mark.parametrize(
    ("versus", "found"), [("", 0), ('@pytest.mark.versus(layout="tp1")\n@pytest.mark.versus(recipe="fp32")', 2)]
)
def test_other_needs_exactly_one_comparison(compared: Compare, versus: str, found: int) -> None:
    result = compared(versus)

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"the fixture `other` needs one @pytest.mark.versus(...), found {found}"])
    result.stdout.no_fnmatch_line("*Traceback*")
