"""One build against another in whole sessions, with engines that are as fast as a test says under either."""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from builders import case
from engine_sessions import Folder
from hypothesis import given
from hypothesis import strategies as st

from pytest_llamaperf import OUTPUT_THROUGHPUT
from pytest_llamaperf.against import Against, Rivalry, _difference, _meant, _without_what_is_shared
from pytest_llamaperf.cases import Case, Runtime
from pytest_llamaperf.detection.readings import Cell
from pytest_llamaperf.fingerprints import matching
from pytest_llamaperf.gpu_health import Health
from pytest_llamaperf.hardware import find_machine
from pytest_llamaperf.measurements import Fingerprint, Measurement, Source

SUITE = """
import pytest
from pytest_llamaperf import OUTPUT_THROUGHPUT, TPOT_MEDIAN

CASES = dict(model="smollm2-135m", recipe=["bf16", "modelopt-fp8"], layout="tp1", hardware="cpu")

@pytest.mark.cases(**CASES, workload=["max-throughput-16-8", "concurrency-4-16-8"])
def test_speed(case, measure, baseline):
    baseline.check(measure(case), OUTPUT_THROUGHPUT)
"""

# Requests are answered one after the other. Restarts differ by up to half a percent, in an order that repeats.
# Whether the machine is fit to measure on is not what these tests are about.
CONFTEST = """
from pytest_llamaperf import sentinel
from pytest_llamaperf.engines import Run
from pytest_llamaperf.errors import EngineError
from pytest_llamaperf.lengths import request_lengths
from pytest_llamaperf.measurements import Fingerprint, Source
from pytest_llamaperf.traces import Trace

SLOWER, SETTING, FAILS_AFTER = GIVEN
JITTER = (0.0, 0.004, -0.003, 0.002, -0.005, 0.003, -0.001)
opened = {}
sentinel.cpu_probe = lambda: {"a loop": 0.01}

class Engine:
    source = Source.MEASURED

    def __init__(self, spec):
        side = "theirs" if spec.runtime else "ours"
        number = opened[side] = opened.get(side, 0) + 1
        with open("engines.log", "a") as log:
            print(side, spec.recipe, file=log)
        if FAILS_AFTER and (side, number) >= FAILS_AFTER and side == FAILS_AFTER[0]:
            raise EngineError(f"restart {number} of {side} is out of memory")
        slow = 1 + SLOWER if side == "ours" and str(spec.recipe) == "modelopt-fp8" else 1
        self.seconds = 0.1 * slow * (1 + JITTER[(number + (side == "ours")) % len(JITTER)])
        self.settings = {"batch": 8 if side == "ours" else SETTING}

    def run(self, workload):
        traces, now = [], 0.0
        for isl, osl in request_lengths(workload):
            traces.append(Trace(now, now + self.seconds, now + osl * self.seconds, isl, osl))
            now += osl * self.seconds
        return Run(tuple(traces), fingerprint=Fingerprint({"runtime": "1.2"}, self.settings))

    def close(self):
        pass

def pytest_llamaperf_engines():
    return {"torch": Engine}
"""

Session = Callable[..., pytest.RunResult]


@pytest.mark.parametrize(("blind", "outcome"), [(None, "regression"), ("GPU is lost", "inconclusive")])
def test_restarts_that_nobody_watched_settle_nothing(blind: str | None, outcome: str) -> None:
    tested = case("tensorrt-llm/llama-3.1-8b/modelopt-fp8/tp1/max-throughput-128-128")
    first, number = True, 0

    def measure(cases: Sequence[Case], restarts: int) -> dict[Case, Measurement]:
        nonlocal first, number
        found = {}
        for each in cases:
            number += 1
            values = [(100 if each.runtime else 70) * (1 + 0.001 * ((number + n) % 5)) for n in range(restarts)]
            health = Health(None if first else blind)
            found[each] = Measurement(each, Source.MEASURED, {OUTPUT_THROUGHPUT: tuple(values)}, health=health)
        first = False
        return found

    against = Against(Runtime("old", Path(sys.executable)), measure, restarts=3, side_by_side=False)
    against.expect([tested])

    verdict = against.verdict(tested, OUTPUT_THROUGHPUT)

    assert (verdict.outcome, verdict.blind) == (outcome, None)


def test_of_two_builds_either_may_have_been_measured_blind() -> None:
    tested = case("tensorrt-llm/llama-3.1-8b/modelopt-fp8/tp1/max-throughput-128-128")
    seen, unseen = (
        Measurement(tested, Source.MEASURED, {OUTPUT_THROUGHPUT: (1.0,)}, health=Health(why))
        for why in (None, "no driver")
    )

    for ours, theirs in ((seen, unseen), (unseen, seen)):
        assert Rivalry(None, ours, theirs, OUTPUT_THROUGHPUT).blind == "no driver"  # type: ignore[arg-type]
        assert ours.health is not None
        assert ours.health.beside(theirs.health).blind == "no driver"
    assert Rivalry(None, seen, seen, OUTPUT_THROUGHPUT).blind is None  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def session(folder: Folder) -> Session:
    (folder.path / "old.yaml").write_text(f"name: release 1.1\npython: {sys.executable}\n")

    def run(
        *options: str, slower: float = 0.0, setting: int = 8, fails_after: tuple[str, int] | None = None
    ) -> pytest.RunResult:
        given = f"GIVEN = {(slower, setting, fails_after)!r}\n"
        folder.write(test_suite=SUITE, conftest=given + CONFTEST)
        return folder.run("--gpu=cpu", "--against=old.yaml", "--results=out", "--rounds=1", "-rs", *options)

    return run


def results(folder: Folder) -> dict[tuple[str, str], dict[str, Any]]:
    return {(each["case"]["recipe"], each["case"]["id"]): each for each in folder.run_json()["results"]}


def test_a_build_like_the_other_passes_and_is_not_started_again(session: Session, folder: Folder) -> None:
    result = session()

    result.assert_outcomes(passed=4)
    assert sorted(folder.words()) == sorted(
        [f"{s} {r}" for s in ("ours", "theirs") for r in ("bf16", "modelopt-fp8")] * 3
    )
    result.stdout.fnmatch_lines(["against release 1.1: no regression is proven: * passed*; 0 restarts on top*"])


def test_a_loss_is_confirmed_on_fresh_restarts_and_told_in_a_sentence(session: Session, folder: Folder) -> None:
    result = session(slower=0.06)

    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(
        [
            "cpu/torch/smollm2-135m/modelopt-fp8/tp1/*",
            "  output_throughput: regression",
            "    found      lost 5.* % (*) of output_throughput in * pairs of fresh restarts with release 1.1; allowed is *",
            "    this build * tok/s in 3 restarts: runtime 1.2",
            "    the other  * tok/s in 3 restarts: runtime 1.2",
            "    to do      find the change between the two builds that cost this*",
            "against release 1.1: blocked: * lost more than is allowed, most of all *",
        ]
    )
    for (recipe, _), found in results(folder).items():
        assert found["outcome"] == ("regression" if recipe == "modelopt-fp8" else "pass")
        assert found["baseline"]["source"] == "measured"
        assert found["baseline"]["reference"].endswith(" under release 1.1, measured in turn")
    again = folder.words()[12:]
    assert {word.split()[1] for word in again} == {"modelopt-fp8"}
    pairs = [word.split()[0] for word in again if again.count(word)]
    assert pairs.count("ours") >= pairs.count("theirs") >= 3


def test_builds_that_are_not_run_alike_are_an_error_that_names_the_setting(session: Session, folder: Folder) -> None:
    result = session(setting=16)

    result.assert_outcomes(failed=4)
    assert {found["outcome"] for found in results(folder).values()} == {"error"}
    result.stdout.fnmatch_lines(
        ["*the two builds were not run alike: batch is 8 here and 16 there; if that is meant, --allow-difference batch"]
    )

    session("--allow-difference=batch", setting=16).assert_outcomes(passed=4)


def test_a_build_that_cannot_be_started_is_an_error_of_its_cases(session: Session) -> None:
    result = session(fails_after=("theirs", 1))

    result.assert_outcomes(failed=4)
    result.stdout.fnmatch_lines(["*error, not a regression: nothing to compare with: *out of memory*"])
    result.stdout.fnmatch_lines(["against release 1.1: nothing could be compared"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_a_build_that_fails_while_it_is_confirmed_leaves_its_cases_open(session: Session, folder: Folder) -> None:
    result = session(slower=0.06, fails_after=("theirs", 7))

    result.assert_outcomes(passed=2, skipped=2)
    open_ones = [found for (recipe, _), found in results(folder).items() if recipe == "modelopt-fp8"]
    assert {found["outcome"] for found in open_ones} == {"inconclusive"}
    assert all("a fresh restart failed" in found["message"] for found in open_ones)


def test_the_gate_stays_closed_where_nothing_could_be_told(session: Session) -> None:
    result = session("--gate", slower=0.06, fails_after=("theirs", 7))

    assert result.ret == 1


def test_a_suite_that_cannot_be_read_is_told_also_beside_what_another_comparison_kept(
    session: Session, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder.path / "out").mkdir()
    (folder.path / "out" / "against.jsonl").write_text("of another one\n")
    monkeypatch.setattr(sys.modules[__name__], "SUITE", "def test_(:")

    result = session("--gate")

    result.assert_outcomes(errors=1)
    result.stdout.no_fnmatch_line("*INTERNALERROR*")
    assert folder.run_json()["decision"]["releasable"] is False


def waive_throughput(folder: Folder, monkeypatch: pytest.MonkeyPatch, loss: str, *, compared: str) -> None:
    """Of both cases that get slower; `compared` are the metrics by which builds are told apart."""
    entry = f'{{outcome: regression, loss: {loss}, reason: known, owner: us, expires: "9998-01-31", newest_version: "2.13"}}'
    cases = [
        f"cpu/torch/smollm2-135m/modelopt-fp8/tp1/{work}" for work in ("max-throughput-16-8", "concurrency-4-16-8")
    ]
    waived = "".join(f"  {case}:\n    output_throughput:\n      {entry}\n" for case in cases)
    (folder.path / "waivers.yaml").write_text(f"schema: 1\nwaivers:\n{waived}")
    conftest = CONFTEST.replace('{"runtime": "1.2"}', '{"torch": "2.13.0+cpu"}')
    conftest += f"\nfrom pytest_llamaperf import against, metrics\nagainst.COMPARED = {compared}\n"
    monkeypatch.setattr(sys.modules[__name__], "CONFTEST", conftest)


@pytest.mark.parametrize(("loss", "released"), [("0.08", True), ("0.05", False)])
def test_a_loss_against_the_other_build_is_waived_up_to_its_size(
    session: Session, folder: Folder, monkeypatch: pytest.MonkeyPatch, loss: str, released: bool
) -> None:
    waive_throughput(folder, monkeypatch, loss, compared="[metrics.OUTPUT_THROUGHPUT]")

    result = session("--gate", slower=0.06)

    result.assert_outcomes(passed=2, **{"xfailed" if released else "failed": 2})
    assert result.ret == (0 if released else 1)
    decision = folder.run_json()["decision"]
    assert (decision["releasable"], len(decision["waived"])) == (released, 2 if released else 0)
    told = "released with 2 waivers" if released else "  - waiver in *: accepts a loss of 5.0%, and it may be 6.*%"
    result.stdout.fnmatch_lines([told])


def test_a_loss_that_no_test_asked_about_closes_the_gate(
    session: Session, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    waive_throughput(folder, monkeypatch, "0.08", compared="[metrics.OUTPUT_THROUGHPUT, metrics.TTFT_MEDIAN]")

    result = session("--gate", slower=0.06)

    assert result.ret == 1
    assert folder.run_json()["decision"]["reasons"] == [
        (
            "lost against release 1.1 and not judged: cpu/torch/smollm2-135m/modelopt-fp8/tp1/concurrency-4-16-8 ttft_median "
            "and 1 other"
        )
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--record",), "--against with --record: *"),
        (("--restarts=2",), "--against with --restarts 2: noise is learned from 3 or more"),
        (("--gpu=h200", "--engine=predicted"), "--against with --engine predicted: *"),
        (("--against=nowhere",), "nowhere: is no environment and no interpreter: *"),
    ],
)
def test_what_cannot_be_compared_is_a_usage_error(session: Session, options: tuple[str, ...], message: str) -> None:
    result = session(*options)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines([f"ERROR: {message}"])


def test_a_metric_that_is_not_compared_is_told(
    session: Session, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SUITE", SUITE.replace("OUTPUT_THROUGHPUT", "OUTPUT_SPEED_PER_USER"))

    result = session()

    result.assert_outcomes(failed=4)
    result.stdout.fnmatch_lines(["*--against compares output_throughput, *; output_speed_per_user is none of them*"])
    assert json.loads((folder.path / "out" / "run.json").read_text())["results"] == []


def test_a_case_made_up_by_a_test_is_measured_for_a_ratio_and_not_compared(
    session: Session, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the suites of parallelism do: the other layout stands in the test, where nobody sees it beforehand."""
    suite = SUITE.replace("import OUTPUT_THROUGHPUT", "import Layout, OUTPUT_THROUGHPUT").replace(
        "    baseline.check(measure(case), OUTPUT_THROUGHPUT)\n",
        "    one, two = measure(case), measure(case.with_layout(Layout(tp=2)))\n"
        "    baseline.check(one.versus(two, OUTPUT_THROUGHPUT), OUTPUT_THROUGHPUT.versus('tp2'))\n"
        "    baseline.check(two, OUTPUT_THROUGHPUT)\n",
    )
    monkeypatch.setattr(
        sys.modules[__name__], "SUITE", suite.replace("'tp2'))\n    baseline", "'tp2'))\n    # baseline")
    )
    session().assert_outcomes(skipped=4)  # nothing is promised for the ratio
    assert {found["outcome"] for found in results(folder).values()} == {"no-baseline"}

    judged = suite.replace(
        "    baseline.check(one.versus(two, OUTPUT_THROUGHPUT), OUTPUT_THROUGHPUT.versus('tp2'))\n", ""
    )
    monkeypatch.setattr(sys.modules[__name__], "SUITE", judged)
    result = session()
    result.assert_outcomes(failed=4)
    result.stdout.fnmatch_lines(["*was not known before the first test ran, so it was not measured in turn; name it*"])


@given(
    st.lists(st.tuples(st.floats(50, 200), st.floats(0.9, 1.1), st.floats(0.5, 2)), min_size=2, max_size=6),
)
def test_what_restarts_share_is_taken_out_and_the_rest_keeps_its_variance(
    made: list[tuple[float, float, float]],
) -> None:
    cell = Cell("engine", "case", OUTPUT_THROUGHPUT)
    theirs = {cell: [speed * shared for speed, _, shared in made]}
    ours = {cell: [speed * ratio * shared for speed, ratio, shared in made]}

    before, after = _without_what_is_shared(theirs, ours)

    for had, has in ((theirs, before), (ours, after)):
        assert statistics.geometric_mean(has[cell]) == pytest.approx(statistics.geometric_mean(had[cell]))
    ratios = [math.log(ratio) for _, ratio, _ in made]
    spread = sum(statistics.variance(map(math.log, side[cell])) for side in (before, after))
    assert spread == pytest.approx(statistics.variance(ratios), abs=1e-12)


# --- the environment of the other build --------------------------------------------------------------------------


def test_what_a_comparison_keeps_tells_no_secret_of_the_other_build(session: Session, folder: Folder) -> None:
    old = folder.path / "old.yaml"
    old.write_text(old.read_text() + "environment:\n  HF_TOKEN: planted-one\n  NCCL_ALGO: Tree\n")

    result = session("-rA", "--tb=long", "--showlocals")

    result.assert_outcomes(passed=4)
    old.unlink()
    kept = {path.name: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    assert [name for name, content in kept.items() if b"planted-one" in content] == []
    assert "planted-one" not in result.stdout.str()
    about = json.loads(kept["against.jsonl"].splitlines()[0])["about"]
    assert about["environment"]["NCCL_ALGO"] == "Tree"
    assert about["environment"]["HF_TOKEN"].startswith("digest ")


def test_a_journal_says_on_which_machine_it_was_measured(session: Session, folder: Folder) -> None:
    session().assert_outcomes(passed=4)

    header = json.loads((folder.path / "out" / "against.jsonl").read_text().splitlines()[0])
    told = {name: header["about"].get(name) for name in matching(find_machine().to_dict())}
    assert told == matching(find_machine().to_dict())


def measured(**settings: str) -> Measurement:
    return Measurement(case(), Source.MEASURED, {OUTPUT_THROUGHPUT: (1.0,)}, Fingerprint({"runtime": "1.2"}, settings))


def test_variables_that_the_other_build_is_given_by_name_are_meant_to_differ() -> None:
    runtime = Runtime("old", Path("python"), (("NCCL_ALGO", "Tree"), ("HF_TOKEN", "planted-one")))
    ours = measured(**{"env NCCL_ALGO": "Ring", "env CUDA_VISIBLE_DEVICES": "0"})

    assert _difference(case(), ours, measured(**{"env NCCL_ALGO": "Tree"}), [*_meant(runtime)]) is None
    problem = _difference(
        case(), ours, measured(**{"env NCCL_ALGO": "Ring", "env NCCL_DEBUG": "INFO"}), [*_meant(runtime)]
    )
    assert "env NCCL_DEBUG is None here and 'INFO' there; if that is meant, --allow-difference 'env NCCL_DEBUG'" in str(
        problem
    )
    assert "planted-one" not in repr(runtime)
