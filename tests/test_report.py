"""The page of a run says what the run says, whatever strings are in it, and is whole in a browser without a network."""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from builders import case, measured, predicted, promise, record
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llamaperf.accuracy.paired import compare, pair_scores
from pytest_llamaperf.commands import main
from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.gates import Decision, decide
from pytest_llamaperf.history import open_history
from pytest_llamaperf.measurements import Fingerprint
from pytest_llamaperf.metrics import OUTPUT_THROUGHPUT
from pytest_llamaperf.observations import Observation, observations_of
from pytest_llamaperf.records import Result, TestRecord
from pytest_llamaperf.report.page import page
from pytest_llamaperf.report.visible import visible_text
from pytest_llamaperf.runs import Run, RunHeader, run_document, to_json
from pytest_llamaperf.verdicts import judge

HEADER = RunHeader(
    "8a1c", "2026-11-22T10:00:00Z", "h200", "tensorrt-llm", {"pytest_llamaperf": "9"}, {"driver": "570.1"},
    "2026-11-22T12:30:00Z",
)  # fmt: skip
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>'\"&\x1b[31m\u202egpj.exe\x00"
FINGERPRINT = Fingerprint({"tensorrt_llm": "1.2.1"}, {"max_batch_size": 64})


def result(*values: float, promised: float | None = 463.1, name: str = "a", **changes: Any) -> Result:
    verdict = judge(
        case(), measured(*values), None if promised is None else promise(promised, 0.1), ("a note",), FINGERPRINT,
        "trtllm-bench --model llama",
    )  # fmt: skip
    return dataclasses.replace(Result.of_verdict(f"a.py::test_{name}", verdict), **changes)


def ratio(layout: str, lengths: tuple[int, int], value: float, published: float, source: str = "measured") -> Result:
    metric = OUTPUT_THROUGHPUT.versus("llama-fp8")
    work = f"max-throughput-{lengths[0]}-{lengths[1]}"
    judged = judge(
        case(f"tensorrt-llm/llama-3.1-405b/modelopt-fp8/{layout}/{work}"),
        measured(value, value * 1.01, metric=metric) if source == "measured" else predicted(value, metric),
        dataclasses.replace(promise(published, 0.1), metric=metric),
    )
    return Result.of_verdict(f"a.py::test_{layout}_{work}", judged)


def accuracy(lost: int, gained: int) -> Result:
    right = {f"d{n}": float(n >= lost) for n in range(400)}
    reference = {name: 0.0 if n >= 400 - gained else 1.0 for n, name in enumerate(right)}
    found = compare(pair_scores(right, reference), margin=0.05)
    return dataclasses.replace(
        result(0.9, 0.9, name="accuracy"), metric="accuracy", unit="fraction", value=found.candidate, low=None,
        high=None, baseline={**promise(found.reference).to_dict(), "reference": "bf16"}, outcome=found.outcome.value, paired=found.counts,
        case={**case().to_dict(), "task": "agreement", "workload": None},
    )  # fmt: skip


def run_of(*results: Result, tests: tuple[TestRecord, ...] = (), header: RunHeader = HEADER) -> Run:
    records = tuple(record(r, outcome="passed" if r.outcome == "pass" else "failed") for r in results) + tests
    return Run(header, records, decide(records))


@pytest.fixture(autouse=True)
def no_history(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Of whoever runs the tests; what was published is always there."""
    monkeypatch.setenv("LLAMAPERF_HISTORY", str(tmp_path_factory.getbasetemp() / "none.sqlite"))


class Read(HTMLParser):
    """The texts of a page, its tags with attributes, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def test_a_failure_stands_before_the_values_with_its_promise_and_how_to_repeat_it() -> None:
    read = Read(page(run_of(result(300.0, 301.0), result(470.0, 471.0, name="b"))))

    failures, values = read.text.index("1 failure"), read.text.index("Every judged value")
    assert "Not releasable" in read.text
    assert failures < values
    shown = read.text[failures:values]
    for part in (
        "regression of output_throughput", "463.1 tok/s, the limit is 416.8 tok/s (published)", "-35.1 %",
        "baselines/h200/llama-3.1-8b.yaml:7", "trtllm-bench --model llama",
        "pytest a.py::test_a --gpu h200 --engine tensorrt-llm",
    ):  # fmt: skip
        assert part in shown
    assert "test_b" not in shown
    assert read.open == []


def test_a_failure_names_the_folder_with_its_evidence() -> None:
    lost = result(300.0, 301.0)
    kept = dataclasses.replace(record(lost, outcome="failed"), evidence="evidence/llama-1a2b")
    broken = TestRecord("a.py::test_c", "error", 0.0, "left over", evidence="evidence/other-3c4d")

    read = Read(page(Run(HEADER, (kept, broken), decide((kept, broken)))))

    assert read.text.count("Evidence in the folder of the run: evidence/llama-1a2b") == 1
    assert read.text.count("Evidence in the folder of the run: evidence/other-3c4d") == 1


def test_a_released_build_says_so_and_shows_no_failure() -> None:
    read = Read(page(run_of(result(470.0, 471.0))))

    assert "Releasable" in read.text
    assert "failure" not in read.text
    assert "2026-11-22 10:00:00 UTC" in read.text
    assert "2 restarts" in read.text


def test_what_to_do_and_what_a_decision_is_not_about_stand_with_it() -> None:
    skipped = Read(page(run_of(tests=(record(outcome="skipped", reason="no GPU"),)))).text
    on_cpu = Read(page(run_of(result(470.0, 471.0), header=dataclasses.replace(HEADER, gpu="cpu")))).text

    assert "skipped: give the tests what they lack; a test that did not run shows nothing" in skipped
    assert "on a CPU and nothing else: no GPU was asked, so no build is released for one" in on_cpu
    assert "no file of the gate says what has to be judged" in on_cpu


def test_a_waived_regression_is_released_and_still_shown_as_what_it_is() -> None:
    waiver = {
        "reason": "known, fixed in 1.3",
        "owner": "ana",
        "expires": "2027-01-31",
        "file": "waivers.yaml",
        "line": 3,
    }
    waived = dataclasses.replace(result(300.0, 301.0), waiver=waiver)
    tests = (record(waived, outcome="waived"),)

    read = Read(page(dataclasses.replace(run_of(waived), tests=tests, decision=decide(tests))))

    assert "Released with 1 waiver" in read.text
    assert "No failure, 1 waived" in read.text
    assert read.text.count("regression , waived") == 1
    assert "a measured pass or waived" in read.text
    assert "regression of output_throughput , waived" in read.text
    assert read.text.count("waived until 2027-01-31 by ana: known, fixed in 1.3 (waivers.yaml:3)") == 2


def test_what_nobody_answers_for_comes_before_a_larger_loss_that_is_waived() -> None:
    waiver = {"reason": "known", "owner": "ana", "expires": "2027-01-31", "file": "waivers.yaml", "line": 3}

    told = Read(page(run_of(result(100.0, 101.0, waiver=waiver, name="known"), result(300.0, 301.0, name="new")))).text

    assert "1 failure, 1 waived" in told
    assert told.index("pytest a.py::test_new") < told.index("pytest a.py::test_known")


def test_a_run_that_was_cut_off_decides_nothing() -> None:
    run = dataclasses.replace(
        run_of(result(470.0, 471.0)), decision=None, header=dataclasses.replace(HEADER, finished=None)
    )

    read = Read(page(run))

    assert "Cut off: nothing is decided" in read.text
    assert "it has no end" in read.text


def test_a_run_without_any_test_is_a_page() -> None:
    assert "nothing was judged" in Read(page(Run(HEADER, (), Decision(("nothing was judged",))))).text


def test_tests_that_failed_without_a_result_are_failures_and_skips_are_counted_by_reason() -> None:
    skips = tuple(TestRecord(f"a.py::s{n}", "skipped", 0.0, "needs 8 H200, found 1") for n in range(3))
    crash = TestRecord("a.py::crash", "error", 0.0, "KeyError: 'x'", case="h200/x")

    read = Read(page(run_of(result(470.0, 471.0), tests=(crash, *skips))))

    assert "1 failure" in read.text
    assert "h200/x error KeyError: 'x'" in read.text
    assert "3 tests: needs 8 H200, found 1" in read.text


@pytest.mark.parametrize("promised", [None, 463.1, 300.0])
def test_what_broke_after_the_values_of_a_test_is_a_failure_of_its_own(promised: float | None) -> None:
    judged = result(300.0, 301.0, promised=promised, name="leaky")
    run = run_of(tests=(record(judged, outcome="error", reason="4.1 GiB of GPU memory are still held"),))

    told = Read(page(run)).text

    assert told.count("4.1 GiB of GPU memory are still held") == 1 + sum("4.1 GiB" in why for why in reasons(run))


def reasons(run: Run) -> tuple[str, ...]:
    return run.decision.reasons if run.decision else ()


def test_an_error_of_an_engine_is_told_once() -> None:
    lost = result(300.0, metric=None, value=None, source=None, unit=None, outcome="error", message="out of memory")

    assert (
        Read(page(run_of(tests=(record(lost, outcome="error", reason="out of memory"),)))).text.count("1 failure") == 1
    )


def test_what_is_not_proven_is_no_failure_and_no_pass() -> None:
    read = Read(page(run_of(result(470.0), result(470.0, 471.0, promised=None, name="b"))))

    assert "No failure, 2 not proven" in read.text
    assert "inconclusive" in read.text
    assert "no-baseline" in read.text


def test_the_largest_loss_comes_first() -> None:
    read = Read(page(run_of(result(400.0, 400.5), result(200.0, 201.0, name="worse"))))

    assert read.text.index("test_worse") < read.text.index("test_a ")


def test_measured_predicted_and_published_are_other_marks() -> None:
    text = page(run_of(ratio("tp8", (2048, 128), 1.2, 1.16), ratio("tp8", (32768, 2048), 1.38, 1.39, "predicted")))

    marks = dict(re.findall(r'<svg class="mark (\w+)"[^>]*><(\w+[^/]*)/>', text))
    assert set(marks) == {"measured", "predicted", "published"}
    assert len(set(marks.values())) == 3
    chart = next(svg for svg in re.findall(r"<svg .*?</svg>", text, re.DOTALL) if "against llama-fp8" in svg)
    drawn = {
        (kind, shape)
        for path in re.findall(r"<path [^>]*>", chart)
        for kind in re.findall(r'stroke="var\(--(measured|predicted|published)\)"', path)
        for shape in re.findall(r' d="([^"]*)"', path)
    }
    assert len(drawn) == len(dict(drawn)) == len({shape for _, shape in drawn}) == 3


def test_of_a_latency_more_is_worse_and_the_limit_is_on_the_side_of_losses() -> None:
    slower = result(500.0, 500.0, promised=400.0, better="lower", metric="ttft_median", unit="s")

    text = page(run_of(slower))

    assert "-25.0% against the promise" in text
    assert "the limit, -10.0 %" in text


def test_speedups_are_told_in_words_as_well() -> None:
    read = Read(page(run_of(ratio("tp8", (2048, 128), 1.2, 1.16))))

    told = [attributes.get("aria-label") for tag, attributes in read.tags if tag == "svg"]
    assert any("max-throughput 2048/128: 1.21x measured, 1.16x published" in str(label) for label in told)


def test_throughput_against_latency_is_drawn_where_there_are_two_cases_with_both() -> None:
    def of(layout: str, speed: float) -> Result:
        other = case(f"tensorrt-llm/llama-3.1-405b/modelopt-fp8/{layout}/max-throughput-2048-128")
        return result(
            470.0, 471.0, name=layout, case=other.to_dict(), metrics={"output_throughput": 470.0, "tpot_median": speed}
        )

    both, one = page(run_of(of("tp8", 0.02), of("pp8", 0.05))), page(run_of(of("tp8", 0.02)))

    assert "throughput against latency" in both
    assert "50.00 tok/s each user" in both
    assert "throughput against latency" not in one


def test_operators_have_shares_and_the_fraction_of_the_limit() -> None:
    operators = {"decode": {"GEMM": 0.006, "attention": 0.002}, "decode at best": {"GEMM": 0.003, "attention": 0.001}}

    read = Read(page(run_of(result(470.0, 471.0, operators=operators))))

    assert "Where the time goes" in read.text
    assert "8.00 ms 75.0% 25.0% - - - 50%" in read.text
    assert "Where the time goes" not in page(run_of(result(470.0, 471.0)))


def test_accuracy_has_paired_counts_and_its_margin() -> None:
    read = Read(page(run_of(accuracy(lost=5, gained=3))))

    row = read.text.split("Right answers, document by document")[1].split("All values")[0]
    assert "agreement pass -0.50 -1.98 to +0.88 5.00 392 5 3 400 98.75 % 99.25 % bf16" in row


def test_a_reference_and_a_history_of_zero_are_told_without_a_percentage() -> None:
    nothing_right = accuracy(5, 3)
    nothing_right = dataclasses.replace(nothing_right, baseline={**(nothing_right.baseline or {}), "value": 0.0})
    before = dataclasses.replace(known("1.0", 0.0), metric="accuracy", unit="fraction", case=nothing_right.case["id"])

    told = Read(page(run_of(nothing_right), [before])).text

    assert "1.0 to 1.2.1: 0.00 % to 98.75 %, from zero" in told
    assert told.count("from zero") == 2


def test_paired_counts_of_answers_and_of_scores() -> None:
    answers = compare(pair_scores({"a": 1.0, "b": 0.0, "c": 1.0}, {"a": 1.0, "b": 1.0, "c": 0.0}), margin=0.5).counts
    scores = compare(pair_scores({"a": 0.5, "b": 0.2}, {"a": 0.4, "b": 0.3}), margin=0.5).counts

    assert (answers["both"], answers["only_reference"], answers["only_candidate"], answers["documents"]) == (1, 1, 1, 3)
    assert "both" not in scores
    assert answers["margin"] == 50.0


def hostile_run() -> Run:
    bad = result(300.0, 301.0, message=HOSTILE, notes=(HOSTILE,), reproduce=HOSTILE, fingerprint={"versions": {HOSTILE: HOSTILE}, "settings": {HOSTILE: HOSTILE}},
                 case={**case().to_dict(), "id": HOSTILE, "model": HOSTILE, "recipe": HOSTILE, "layout": HOSTILE, "lengths": HOSTILE},
                 operators={"decode": {HOSTILE: 1.0}}, metrics={"tpot_median": 0.02, HOSTILE: 1.0})  # fmt: skip
    bad = dataclasses.replace(bad, nodeid=HOSTILE)
    other = dataclasses.replace(bad, nodeid="b", outcome=HOSTILE, metric=HOSTILE, case={**bad.case, "id": "other"})
    tests = (
        TestRecord(HOSTILE, "failed", 0.0, HOSTILE, (bad, other), HOSTILE, evidence=HOSTILE),
        TestRecord("x", "skipped", 0.0, HOSTILE),
        TestRecord("y", HOSTILE, 0.0, HOSTILE),
    )
    header = RunHeader(HOSTILE, HOSTILE, HOSTILE, HOSTILE, {HOSTILE: HOSTILE}, {HOSTILE: [HOSTILE]}, HOSTILE)
    return Run(header, tests, Decision((HOSTILE,)))


def test_hostile_strings_are_text() -> None:
    text = page(hostile_run())

    read = Read(text)
    assert [tag for tag, _ in read.tags].count("script") == 1
    assert not [tag for tag, _ in read.tags if tag == "img"]
    assert not [name for _, attributes in read.tags for name in attributes if name.startswith("on")]
    assert "<script>alert(1)" not in text
    assert not {"\x1b", "\x00", "\u202e"} & set(text)
    assert "\\x1b[31m\\u202egpj.exe\\x00" in read.text


@given(st.text())
def test_what_is_visible_can_be_seen_and_says_the_same_where_it_could_be_seen_before(text: str) -> None:
    shown = visible_text(text)

    assert all(c.isprintable() or c in "\n\t" or c.isspace() for c in shown)
    assert visible_text(shown) == shown
    assert not text.isprintable() or shown == text


def test_results_that_this_version_did_not_write_are_refused_by_name() -> None:
    for changes in ({"case": {"id": "x"}}, {"value": float("nan")}, {"source": "guessed"}, {"value": "fast"}):
        with pytest.raises(UsageError, match=r"a result of a\.py::test_a is none that this version writes"):
            page(run_of(result(470.0, 471.0, **changes)))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_run_is_a_page_or_refused_and_never_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    run = run_of(result(300.0, 301.0), accuracy(5, 3))
    text = to_json(run_document(run.header, run.tests, run.decision or Decision(())))
    at = data.draw(st.integers(0, len(text) - 1))
    size = data.draw(st.integers(0, 40))
    path = tmp_path_factory.getbasetemp() / "run.json"
    path.write_text(text[:at] + data.draw(st.text("0123456789abn,:[]{}\"'null", max_size=6)) + text[at + size :])

    told = CliRunner().invoke(main, ["report", str(path)])

    assert told.exit_code in (0, 2), told.exception


def luminance(color: str) -> float:
    parts = (int(color[n : n + 2], 16) / 255 for n in (1, 3, 5))
    red, green, blue = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, 1.4.3."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast_is_that_of_wcag_aa(scheme: int) -> None:
    style = re.findall(r"<style>(.*?)</style>", page(run_of(result(470.0, 471.0))), re.DOTALL)[0]
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    colors = dict(re.findall(r"--([\w-]+): (#\w{6})", blocks[scheme]))

    for text in ("ink", "muted", "accent", "good", "bad", "warn", "measured", "predicted", "published", "promised"):
        assert contrast(colors[text], colors["paper"]) >= 4.5, text
        assert contrast(colors[text], colors["panel"]) >= 4.5, text
    for kind in ("gemm", "attention", "all-reduce", "pipeline", "other"):
        assert contrast(colors[kind], colors["on-operator"]) >= 4.5, kind
        assert contrast(colors[kind], colors["paper"]) >= 3.0, kind


def test_tables_landmarks_and_pictures_have_names() -> None:
    operators = {"decode": {"GEMM": 0.006}}
    read = Read(
        page(run_of(result(470.0, 471.0, operators=operators), accuracy(5, 3), ratio("tp8", (2048, 128), 1.2, 1.16)))
    )

    tags = [tag for tag, _ in read.tags]
    assert {"header", "nav", "main", "footer"} <= set(tags)
    assert ("html", {"lang": "en"}) in read.tags
    assert tags.count("table") == tags.count("caption") == 3
    assert all(a.get("scope") in ("col", "row") for tag, a in read.tags if tag == "th")
    assert all(
        a.get("role") == "img" and a.get("aria-label") for tag, a in read.tags if tag == "svg" and "class" not in a
    )
    assert all(a.get("aria-hidden") == "true" for tag, a in read.tags if tag == "svg" and "class" in a)
    ids = [a["id"] for _, a in read.tags if "id" in a]
    assert len(ids) == len(set(ids))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = run_of(result(300.0, 301.0))
    (tmp_path / "run.json").write_text(to_json(run_document(run.header, run.tests, run.decision or Decision(()))))
    return tmp_path


def test_a_run_of_several_sessions_says_so() -> None:
    header = dataclasses.replace(HEADER, sessions=2, resumed="2026-11-25T08:00:00Z")
    found = run_of(result(300.0, 301.0), result(310.0, 311.0), header=header)
    first, second = found.tests
    resumed = dataclasses.replace(found, tests=(first, dataclasses.replace(second, session=2)))

    assert "Sessions 2, the last from 2026-11-25 08:00:00 UTC; 1 test of earlier ones" in Read(page(resumed)).text
    assert "<dt>Sessions</dt>" not in page(run_of(result(300.0, 301.0)))


def test_a_chart_that_leaves_promises_out_says_so() -> None:
    one = result(300.0, 301.0)
    values = [dataclasses.replace(one, case={**one.case, "workload": f"rate-{rate}"}) for rate in range(1, 11)]

    assert "Against the promises, the 8 of 10 nearest to their limits" in page(run_of(*values))
    assert "nearest to their limits" not in page(run_of(*values[:8]))


def test_a_machine_without_gpus_has_none_and_no_brackets() -> None:
    header = dataclasses.replace(HEADER, fingerprint={"gpus": [], "topology": {}, "driver": None})

    text = page(run_of(result(300.0, 301.0), header=header))

    assert all(f"<dt>{name}</dt><dd>none</dd>" in text for name in ("gpus", "topology", "driver"))


def test_the_command_writes_the_page_beside_the_run_or_where_it_is_told(folder: Path) -> None:
    beside = CliRunner().invoke(main, ["report", str(folder)])
    told = CliRunner().invoke(main, ["report", str(folder / "run.json"), "-o", str(folder / "new" / "page.html")])

    assert (beside.exit_code, told.exit_code) == (0, 0)
    assert (folder / "report.html").read_text() == (folder / "new" / "page.html").read_text()
    assert f"written: {folder / 'report.html'} (" in beside.output
    assert " KiB)" in beside.output


@pytest.mark.parametrize("package", ["jinja2", "vl_convert"])
def test_without_the_extra_the_message_names_it(folder: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)

    found = CliRunner().invoke(main, ["report", str(folder)])

    assert found.exit_code == 2
    assert f"a page needs {package}, which is not installed: pip install 'pytest-llamaperf[report]'" in found.output
    assert not (folder / "report.html").exists()


def test_wrong_usage_is_exit_two_and_changes_nothing(folder: Path) -> None:
    missing = CliRunner().invoke(main, ["report", str(folder / "nothing")])
    (folder / "file").write_text("")
    nowhere = CliRunner().invoke(main, ["report", str(folder), "-o", str(folder / "file" / "page.html")])

    assert (missing.exit_code, nowhere.exit_code) == (2, 2)
    assert "cannot be read" in missing.output
    assert "cannot be written" in nowhere.output
    assert "Traceback" not in missing.output + nowhere.output


# In a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


def pages() -> dict[str, Run]:
    operators = {"decode": {"GEMM": 0.006, "attention": 0.002}, "decode at best": {"GEMM": 0.003, "attention": 0.001}}
    failing = [result(300.0 - n, 301.0 - n, name=f"r{n}", operators=operators) for n in range(14)]
    whole = run_of(*failing, accuracy(5, 3), ratio("tp8", (2048, 128), 1.2, 1.16), result(470.0))
    return {"whole": whole, "empty": Run(HEADER, (), Decision(("nothing was judged",))), "hostile": hostile_run()}


@pytest.fixture(params=["whole", "empty", "hostile"])
def opened(request: pytest.FixtureRequest, browser: Any, tmp_path: Path) -> Iterator[Any]:
    """A page in a browser, and what it logged and asked for."""
    path = tmp_path / "report.html"
    path.write_text(page(pages()[request.param]), encoding="utf-8")
    found = browser.new_page()
    found.logged, found.asked, found.kind = [], [], request.param
    found.on("console", lambda message: found.logged.append(message.text))
    found.on("pageerror", lambda problem: found.logged.append(str(problem)))
    found.on("dialog", lambda dialog: (found.logged.append(dialog.message), dialog.dismiss()))
    found.on("request", lambda asked: found.asked.append(asked.url))
    found.goto(path.as_uri())
    yield found
    found.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_nothing_is_logged_asked_for_or_wider_than_the_window(opened: Any, scheme: str) -> None:
    opened.emulate_media(color_scheme=scheme)
    for width in (1280, 400, 320):
        opened.set_viewport_size({"width": width, "height": 900})
        assert opened.evaluate("document.documentElement.scrollWidth") <= width

    dark = opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 22, 29)"
    assert dark is (scheme == "dark")
    assert opened.logged == []
    assert opened.asked == [opened.url]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_that_is_not_accessible(opened: Any, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    opened.emulate_media(color_scheme=scheme)
    opened.evaluate("for (const folded of document.querySelectorAll('details')) folded.open = true")

    found = axe.Axe().run(opened)

    assert found.violations_count == 0, found.generate_report()


FOLDED = """() => [...document.querySelectorAll("details > :not(summary)")].map(
    (part) => part.getBoundingClientRect().height > 0 && part.checkVisibility({contentVisibilityAuto: true}))"""


def test_what_is_folded_is_printed_too_and_dark_paper_is_not(opened: Any) -> None:
    opened.emulate_media(color_scheme="dark")
    assert not any(opened.evaluate(FOLDED))

    opened.emulate_media(media="print", color_scheme="dark")

    assert all(opened.evaluate(FOLDED))
    opened.set_viewport_size({"width": 718, "height": 1000})  # of A4, less its margins
    assert opened.evaluate("document.documentElement.scrollWidth") <= 718
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert opened.pdf().startswith(b"%PDF-")


@pytest.mark.parametrize("opened", ["whole"], indirect=True)
def test_values_are_filtered_and_sorted_by_keyboard(opened: Any) -> None:
    rows = "table.cases tbody tr:not([hidden])"
    assert opened.locator(rows).count() == 17

    opened.locator("#words").press_sequentially("405B max")
    assert opened.locator(rows).count() == 1
    assert opened.locator("#shown").inner_text() == "1 of 17 shown"
    opened.locator("#words").fill("")
    opened.locator("#outcome").select_option("regression")
    assert opened.locator(rows).count() == 14

    heading = opened.locator("table.cases th[scope=col]", has_text="Value")
    values = f"{rows} td:nth-of-type(6)"
    for direction in ("ascending", "descending"):
        heading.get_by_role("button").press("Enter")
        assert heading.get_attribute("aria-sort") == direction
        shown = [float(text.split()[0]) for text in opened.locator(values).all_inner_texts()]
        assert shown == sorted(shown, reverse=direction == "descending")


@pytest.mark.parametrize("opened", ["whole"], indirect=True)
def test_a_command_is_copied_or_at_least_selected(opened: Any) -> None:
    command = opened.locator(".command").first
    command.get_by_role("button").click()

    told = command.get_by_role("button").inner_text()
    assert told in ("Copied", "Selected")
    got = opened.evaluate("getSelection().toString()") if told == "Selected" else command.locator("pre").inner_text()
    assert got.strip() == "trtllm-bench --model llama"


def test_without_scripts_the_page_is_whole(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(page(pages()["whole"]), encoding="utf-8")
    context = browser.new_context(java_script_enabled=False)
    found = context.new_page()
    found.goto((tmp_path / "report.html").as_uri())

    assert found.locator("table.cases tbody tr").count() == 17
    assert not found.locator("#controls").is_visible()
    assert found.locator("figure svg").count() > 2
    context.close()


# History


def known(
    version: str | None, value: float, source: str = "measured", harness: str = "pytest-llamaperf/tensorrt-llm"
) -> Observation:
    return Observation(
        case().id, "output_throughput", "tok/s", "higher", source, value, f"{source} {version} {value}", harness,
        version, machine={"driver": "570.1"},
    )  # fmt: skip


def test_a_history_has_its_steps_and_breaks() -> None:
    before = [known(f"1.0.{minor}", 1000.0 + 2 * (n % 3)) for minor in range(4) for n in range(3)]
    after = [known(f"1.0.{minor}", 900.0 + 2 * (n % 3)) for minor in range(4, 8) for n in range(3)]
    published = [known("1.0", 990.0, "published", "perf-overview")]

    text = page(run_of(result(900.0, 902.0)), [*before, *after, *published])

    read = Read(text)
    assert "As a table: 1 value with a history" in read.text
    assert re.search(r"-1\d\.\d% \(-1\d\.\d% to -\d+\.\d%\) at 1\.0\.4", read.text)
    assert "source measured -> published; harness pytest-llamaperf/tensorrt-llm -> perf-overview" in read.text
    assert "break: source measured" in text
    chart = next(a["aria-label"] for tag, a in read.tags if tag == "svg" and "2 lines" in str(a.get("aria-label")))
    assert "step -1" in str(chart)


def test_a_break_stands_where_a_newer_line_begins_whatever_its_source() -> None:
    text = page(run_of(result(470.0, 471.0)), [known("1.0", 480.0, "published", "perf-overview"), known("1.1", 475.0)])

    assert "source published -> measured; harness perf-overview -> pytest-llamaperf/tensorrt-llm" in Read(text).text
    assert "measured, in this run or an earlier one" in Read(text).text


def test_values_in_another_unit_are_told_and_not_drawn_beside() -> None:
    per_gpu = dataclasses.replace(known("1.0", 57.9, "published", "perf-overview"), unit="tok/s/GPU")

    text = page(run_of(result(470.0, 471.0)), [per_gpu])

    assert "1.0: 57.90 tok/s/GPU" in Read(text).text
    assert "unit tok/s/GPU -> tok/s" in Read(text).text
    assert "57.90 tok/s of" not in text


def test_a_history_with_hostile_strings_is_text() -> None:
    text = page(run_of(result(470.0, 471.0)), [known(HOSTILE, 480.0, "published", HOSTILE)])

    assert [tag for tag, _ in Read(text).tags].count("script") == 1
    assert not {"\x1b", "\x00", "\u202e"} & set(text)


def test_a_run_that_is_in_the_history_already_is_not_its_own_past() -> None:
    run = run_of(result(900.0, 902.0))

    assert "History" not in Read(page(run, observations_of(run))).text


def test_the_command_asks_the_history_that_it_is_told(folder: Path, tmp_path: Path) -> None:
    with open_history(str(tmp_path / "history.sqlite"), create=True) as history:
        history.add([known("1.1", 480.0)])

    found = CliRunner().invoke(main, ["report", str(folder), "--db", str(tmp_path / "history.sqlite")])
    missing = CliRunner().invoke(main, ["report", str(folder), "--db", str(tmp_path / "none.sqlite")])

    assert found.exit_code == 0
    assert "1.1 to 1.2.1: 480.0 tok/s to 300.5 tok/s, -37.4 %" in Read((folder / "report.html").read_text()).text
    assert missing.exit_code == 2
    assert "there is no history" in missing.output
