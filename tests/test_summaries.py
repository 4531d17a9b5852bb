"""A run as CI and dashboards take it: whole, within limits, and with nothing in it that could be taken for Markdown."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from builders import case, measured, predicted, promise, record
from click.testing import CliRunner
from click.testing import Result as Ran
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from pytest_llamaperf.commands import main
from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.gates import Decision, decide
from pytest_llamaperf.markdown import escaped
from pytest_llamaperf.measurements import Fingerprint
from pytest_llamaperf.metrics import TTFT_MEDIAN, Better
from pytest_llamaperf.records import Result, TestRecord
from pytest_llamaperf.runs import Run, RunHeader, run_document, to_json
from pytest_llamaperf.summaries.benchmarks import bencher, github_action_benchmark
from pytest_llamaperf.summaries.markdown import MOST_BYTES, markdown_of
from pytest_llamaperf.verdicts import judge

HEADER = RunHeader("8a1c", "2026-11-22T10:00:00Z", "h200", "tensorrt-llm", {"tensorrt_llm": "1.2.1"})
FINGERPRINT = Fingerprint({"tensorrt_llm": "1.2.1"})
ID = case().id


def result(value: float = 464.0, number: int = 0, **changes: Any) -> Result:
    verdict = judge(case(), measured(value, value + 2), promise(463.1), (), FINGERPRINT, "trtllm-bench --model x")
    return dataclasses.replace(Result.of_verdict(f"suites/test_a.py::test_b[{number}]", verdict), **changes)


def run_of(*results: Result, broken: tuple[TestRecord, ...] = ()) -> Run:
    outcomes = {"pass": "passed", "no-baseline": "skipped"}
    tests = (*(record(each, outcome=outcomes.get(each.outcome, "failed")) for each in results), *broken)
    return Run(HEADER, tests, decide(tests))


def parsed(text: str) -> list[Token]:
    """As GitHub reads it: CommonMark with tables."""
    return MarkdownIt("commonmark").enable("table").parse(text)


def headings(text: str) -> list[str]:
    tokens = parsed(text)
    return [tokens[n + 1].content for n, token in enumerate(tokens) if token.type == "heading_open"]


def cells(text: str) -> list[list[str]]:
    """Of all rows below the heading of the table, as text."""
    rows: list[list[str]] = []
    for token in parsed(text):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and token.level == 4 and rows and token.children is not None:
            rows[-1].append("".join(child.content for child in token.children))
    return rows[1:]


def code(text: str) -> list[str]:
    return [token.content for token in parsed(text) if token.type == "fence"]


def test_the_decision_comes_first_then_what_failed_then_every_value() -> None:
    error = Result.of_error("suites/test_a.py::test_c", case().to_dict(), "worker died: signal 9")
    unfinished = TestRecord("suites/test_a.py::test_d", "unfinished", 0.0)

    text = markdown_of(run_of(result(), error, result(100.0, 1), broken=(unfinished,)))

    assert headings(text) == [
        "Not releasable: 3 reasons",
        "Failures",
        f"regression: {ID} output_throughput",
        f"error: {ID}",
        "unfinished: suites/test_a.py::test_d",
        "Values",
    ]
    assert f"- regression: {ID} output_throughput\n- error: {ID}\n- unfinished: suites/test_a.py::test_d\n" in text
    assert "1 pass, 1 error, 1 regression." in text
    assert "Promise in baselines/h200/llama-3.1-8b.yaml:7.\n" in text
    again = "pytest 'suites/test_a.py::test_b[1]' --gpu h200 --engine tensorrt-llm\n"
    assert code(text)[0] == f"{again}# by hand\ntrtllm-bench --model x\n"
    assert cells(text)[0] == [
        ID, "output_throughput", "463.1 tok/s", "465.0 tok/s (458.7 tok/s to 471.3 tok/s)", "measured", "+0.4 %", "pass"
    ]  # fmt: skip
    assert [row[-1] for row in cells(text)] == ["pass", "error", "regression"]


@pytest.mark.parametrize("outcome", ["pass", "no-baseline", "regression"])
def test_what_broke_after_the_values_of_a_test_is_a_failure_of_its_own(outcome: str) -> None:
    broken = record(result(outcome=outcome), outcome="error", reason="4.1 GiB of GPU memory are still held")

    assert "\n4.1 GiB of GPU memory are still held\n" in markdown_of(run_of(broken=(broken,)))


def test_a_failure_names_the_folder_with_its_evidence() -> None:
    lost, broken = record(result(100.0), outcome="failed"), TestRecord("a.py::test_c", "error", 0.0, "left over")
    tests = (dataclasses.replace(lost, evidence="evidence/a-1"), dataclasses.replace(broken, evidence="evidence/b-2"))

    text = markdown_of(Run(HEADER, tests, decide(tests)))

    assert re.findall("Evidence in the folder of the run: (.*)", text) == ["evidence/a-1", "evidence/b-2"]


def test_a_release_is_told_in_the_first_line() -> None:
    text = markdown_of(run_of(result()))

    assert text.startswith("## Releasable: every test is a measured pass\n")
    assert "Failures" not in text


def test_what_to_do_and_what_a_decision_is_not_about_stand_with_it() -> None:
    skipped = markdown_of(run_of(broken=(record(outcome="skipped", reason="no GPU"),)))
    on_cpu = markdown_of(dataclasses.replace(run_of(result()), header=dataclasses.replace(HEADER, gpu="cpu")))

    assert "\nskipped: give the tests what they lack; a test that did not run shows nothing\n" in skipped
    assert "on a CPU and nothing else: no GPU was asked, so no build is released for one" in on_cpu
    assert "no file of the gate says what has to be judged" in on_cpu


def test_a_run_that_was_cut_off_has_no_decision() -> None:
    run = dataclasses.replace(run_of(result(100.0)), decision=None)

    assert markdown_of(run).startswith("## Cut off before its end: no decision\n")


def test_predictions_are_named_as_such() -> None:
    it = Result.of_verdict("a.py::test_a", judge(case(), predicted(465.0), promise(463.1)))

    text = markdown_of(run_of(it))

    assert "**1 value predicted, not measured.**" in text
    assert cells(text)[0][3:5] == ["465.0 tok/s", "predicted"]


def test_nothing_judged_is_said() -> None:
    assert "\nnothing was judged.\n" in markdown_of(Run(HEADER, (), Decision(("nothing was judged",))))


def test_notes_stand_once_with_how_many_results_they_qualify() -> None:
    text = markdown_of(run_of(result(notes=("extrapolated",)), result(number=1, notes=("extrapolated",))))

    assert text.count("extrapolated") == 1
    assert "- extrapolated (2 results)\n" in text


HOSTILE = [
    "<script>alert(1)</script>",
    "a | b",
    "`code` ``` fence",
    "```\n# heading\n",
    "**bold** _it_ ~~no~~ [a](b) ![c](d)",
    "# heading",
    "1. list",
    "- list",
    "\\| \\`",
    "&lt;",
    "a\n\nb\r\n| c",
    "\x1b[31mred\x00\u202e",
    "\ud800",
    "https://x.de www.x.de @someone",
    "$math$",
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_is_text(hostile: str) -> None:
    check_hostile(hostile)


@given(st.text())
def test_whatever_stands_in_a_run_is_text(text: str) -> None:
    check_hostile(text)


def check_hostile(hostile: str) -> None:
    it = result(
        100.0,
        metric=f"m{hostile}",
        message=hostile,
        notes=(hostile,),
        reproduce=hostile,
        case={**case().to_dict(), "id": hostile},
        outcome=f"o{hostile}",
        baseline={"value": 463.1, "tolerance": 0.1, "source": hostile, "file": hostile, "line": hostile},
        waiver=dict.fromkeys(("reason", "owner", "expires", "file", "line"), hostile),
    )
    broken = TestRecord(hostile, "error", 0.0, hostile, evidence=hostile)

    text = markdown_of(run_of(it, broken=(broken,)))

    tokens = [child for token in parsed(text) for child in (token, *(token.children or ()))]
    assert {token.type for token in tokens} <= {
        "heading_open", "heading_close", "paragraph_open", "paragraph_close", "inline", "text", "text_special", "softbreak",
        "bullet_list_open", "bullet_list_close", "list_item_open", "list_item_close", "fence", "strong_open", "strong_close",
        "table_open", "table_close", "thead_open", "thead_close", "tbody_open", "tbody_close", "tr_open", "tr_close",
        "th_open", "th_close", "td_open", "td_close", "entity",
    }  # fmt: skip
    assert len(headings(text)) == 6  # with one for notes
    assert len(code(text)) == 2
    (row,) = cells(text)
    assert len(row) == 7
    assert row[1] == " ".join(seen(f"m{hostile}").split())
    assert text.replace("\n", "").isprintable()


def seen(text: str) -> str:
    """What is left of a text that may hold what cannot be shown."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)


@given(st.text())
def test_what_is_escaped_is_read_as_it_was(text: str) -> None:
    tokens = MarkdownIt("commonmark").parseInline(escaped(text))

    assert "".join(child.content for child in tokens[0].children or ()) == " ".join(seen(text).split())


def test_a_summary_is_cut_off_below_the_limit_and_says_what_is_missing() -> None:
    run = run_of(*(result(100.0, n) for n in range(3000)))

    text = markdown_of(run)

    assert 0.99 * MOST_BYTES < len(text.encode()) <= MOST_BYTES < 2**20
    shown = text.count("#### regression")
    assert text.endswith(
        f"\nCut off here: {3000 - shown:,} failures and 3,000 values more; the folder of the run has all of them.\n"
    )
    assert "- and 2,980 more reasons\n" in text


def test_failures_fit_before_values() -> None:
    text = markdown_of(run_of(result(100.0), *(result(number=n) for n in range(1, 9000))))

    assert headings(text)[2] == f"regression: {ID} output_throughput"
    assert len(text.encode()) <= MOST_BYTES
    assert f"{9000 - len(cells(text)):,} values more" in text


@given(
    st.integers(0, 40),
    st.text(st.sampled_from("a|<\u00fc\U0001f680`"), max_size=9),
    st.integers(1, 3000),
    st.integers(50_000, 90_000),
)
def test_no_summary_is_longer_than_it_may_be(count: int, text: str, times: int, most: int) -> None:
    long = text * times
    run = run_of(*(result(100.0, n, message=long, notes=(long,), reproduce=long) for n in range(count)))

    assert len(markdown_of(run, most_bytes=most).encode("utf-8", "surrogatepass")) <= most


# Services that chart benchmarks


def test_github_action_benchmark_gets_a_list_for_each_direction() -> None:
    latency = Result.of_verdict("a.py::test_a", judge(case(), measured(0.5, 0.5, metric=TTFT_MEDIAN), None))
    run = run_of(result(), latency, Result.of_error("a.py::test_c", case().to_dict(), "died"))

    assert github_action_benchmark(run, Better.HIGHER) == [
        {
            "name": f"{ID} output_throughput",
            "unit": "tok/s",
            "value": 465.0,
            "range": "458.686 to 471.314",
            "extra": "measured in 2 restarts\npass\nTensorRT-LLM 1.2.1",
        }
    ]
    (lower,) = github_action_benchmark(run, Better.LOWER)
    assert (lower["name"], lower["value"], lower["unit"]) == (f"{ID} ttft_median", 0.5, "s")


def test_bencher_gets_its_metric_format() -> None:
    latency = Result.of_verdict("a.py::test_a", judge(case(), measured(0.5, metric=TTFT_MEDIAN), None))

    document = bencher(run_of(result(), latency))

    assert document == {
        ID: {
            "output_throughput": {"value": 465.0, "lower_value": result().low, "upper_value": result().high},
            "ttft_median": {"value": 0.5},
        }
    }


def test_what_nobody_watched_is_charted_under_another_name() -> None:
    run = run_of(result(464.0, health={"blind": "Driver Not Loaded"}))

    (entry,) = github_action_benchmark(run, Better.HIGHER)

    assert entry["name"] == f"{ID} output_throughput (measured blind)"
    assert list(bencher(run)) == [f"{ID} (measured blind)"]


def test_a_prediction_is_charted_under_another_name() -> None:
    run = run_of(Result.of_verdict("a.py::test_a", judge(case(), predicted(465.0), None)))

    (entry,) = github_action_benchmark(run, Better.HIGHER)
    assert (entry["name"], entry["extra"]) == (f"{ID} output_throughput (predicted)", "predicted\nno-baseline")
    assert list(bencher(run)) == [f"{ID} (predicted)"]


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: github_action_benchmark(run_of(result()), Better.LOWER), "the action refuses an empty file"),
        (lambda: bencher(run_of()), "this run has no value"),
        (lambda: bencher(run_of(result(metric="output_throughput vs " + "x" * 60))), "Bencher takes names of 1024"),
    ],
)
def test_what_a_service_would_refuse_is_not_written(make: Any, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        make()


# The command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = run_of(result(), result(100.0, 1))
    assert run.decision
    (tmp_path / "run.json").write_text(to_json(run_document(run.header, run.tests, run.decision)))
    return tmp_path


def summary(*arguments: str | Path) -> Ran:
    return CliRunner().invoke(main, ["summary", *map(str, arguments)], prog_name="llamaperf")


def test_a_waived_regression_is_told_as_one_that_somebody_answers_for() -> None:
    waiver = {
        "reason": "known, fixed in 1.3",
        "owner": "ana",
        "expires": "2027-01-31",
        "file": "waivers.yaml",
        "line": 3,
    }
    waived = result(100.0, waiver=waiver)

    text = markdown_of(Run(HEADER, (tests := (record(waived, outcome="waived"),)), decide(tests)))

    fresh = markdown_of(run_of(waived, result(300.0, number=2)))
    assert fresh.index("test_b[2]") < fresh.index("test_b[0]")
    told = "waived until 2027-01-31 by ana: known, fixed in 1.3 (waivers.yaml:3)"
    assert headings(text)[:3] == ["Released with 1 waiver", "Failures", f"regression, waived: {ID} output_throughput"]
    assert cells(text)[-1][-1] == "regression, waived"
    assert text.count(told) == 2


def test_without_options_it_is_markdown_for_a_job_summary(folder: Path) -> None:
    ran = summary(folder)

    assert ran.exit_code == 0
    assert ran.stdout == markdown_of(run_of(result(), result(100.0, 1)))


def test_all_files_are_written_at_once(folder: Path) -> None:
    files = {name: folder / "new" / name for name in ("markdown", "bigger-is-better", "bencher")}
    ran = summary(folder, *(word for name, path in files.items() for word in (f"--{name}", path)))

    assert (ran.exit_code, ran.output) == (0, "")
    assert files["markdown"].read_text().startswith("## Not releasable: ")
    assert json.loads(files["bigger-is-better"].read_text())[0]["name"] == f"{ID} output_throughput"
    assert list(json.loads(files["bencher"].read_text())) == [ID]


def test_one_file_that_cannot_be_made_keeps_the_others_from_being_written(folder: Path) -> None:
    ran = summary(folder, "--markdown", folder / "a.md", "--smaller-is-better", folder / "a.json")

    assert ran.exit_code == 2
    assert "no value of this run is one of which lower is better" in ran.stderr
    assert not (folder / "a.md").exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"schema": 1, "run"', "was it cut off?"),
        ('{"schema": 9}', "a newer version of pytest-llamaperf wrote it"),
        (None, "cannot be read: No such file or directory; name a folder that --results wrote"),
    ],
)
def test_what_is_no_run_is_refused(folder: Path, content: str | None, problem: str) -> None:
    path = folder / "run.json"
    path.unlink() if content is None else path.write_text(content)

    ran = summary(folder)

    assert (ran.exit_code, ran.stdout) == (2, "")
    assert problem in ran.stderr


def test_a_file_that_cannot_be_written_is_named(folder: Path) -> None:
    ran = summary(folder, "--markdown", folder / "run.json" / "a.md")

    assert ran.exit_code == 2
    assert "a.md: cannot be written: " in ran.stderr
