"""`llamaperf compare` as typed: what it reads, what it shows and writes, and its exit status."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from builders import case
from click.testing import CliRunner, Result
from nvml_driver import H200, Driver

from pytest_llamaperf.commands import main
from pytest_llamaperf.gates import Decision
from pytest_llamaperf.hardware import find_machine
from pytest_llamaperf.history import SEED, open_history
from pytest_llamaperf.measurements import Fingerprint, Source, summarize_values
from pytest_llamaperf.metrics import OUTPUT_THROUGHPUT, TPOT_MEDIAN, Metric
from pytest_llamaperf.observations import observations_of
from pytest_llamaperf.records import Result as Judged
from pytest_llamaperf.records import TestRecord
from pytest_llamaperf.runs import RunHeader, read_run, run_document, to_json
from pytest_llamaperf.verdicts import judge

KEY = "tensorrt-llm/llama-3.1-8b/modelopt-fp8/tp1/max-throughput"
GEMM = {"GEMM": 0.012, "attention": 0.003}


@pytest.fixture
def llamaperf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("LLAMAPERF_HISTORY", str(tmp_path / "none.sqlite"))

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(main, ["compare", *map(str, arguments)], prog_name="llamaperf")

    return run


def told(result: Result) -> str:
    """Without the blanks that only align."""
    return " ".join(result.stdout.split())


def judged(
    values: tuple[float, ...],
    *,
    metric: Metric = OUTPUT_THROUGHPUT,
    source: Source = Source.MEASURED,
    work: str = "128-128",
    settings: Mapping[str, Any] | None = None,
    operators: Mapping[str, Mapping[str, float]] | None = None,
) -> Judged:
    fingerprint = Fingerprint({"tensorrt_llm": "1.1"}, settings or {})
    verdict = judge(case(f"{KEY}-{work}"), summarize_values(metric, source, values), None, (), fingerprint)
    return dataclasses.replace(Judged.of_verdict(f"a.py::{work}-{metric}", verdict), operators=operators or {})


def write(folder: Path, *results: Judged, **machine: object) -> Path:
    header = RunHeader(folder.name, "2026-11-22T10:00:00Z", "h200", "tensorrt-llm", {}, machine)
    tests = [TestRecord(each.nodeid, "passed", 1.0, results=(each,), case=each.case["id"]) for each in results]
    folder.mkdir()
    (folder / "run.json").write_text(to_json(run_document(header, tests, Decision(()))), encoding="utf-8")
    return folder


def predictions(factor: float) -> list[Judged]:
    operators = {name: {**GEMM, "GEMM": 0.012 * factor} for name in ("decode", "prompt")}
    slower = 1 + 0.8 * (factor - 1)
    return [
        judged((100 / slower,), source=Source.PREDICTED, operators=operators),
        judged((0.015 * slower,), metric=TPOT_MEDIAN, source=Source.PREDICTED, operators=operators),
    ]


def test_a_planted_gemm_is_found_and_blamed(llamaperf: Any, tmp_path: Path) -> None:
    before, after = write(tmp_path / "rc3", *predictions(1.0)), write(tmp_path / "rc5", *predictions(1.1))

    result = llamaperf(before, after)

    assert result.exit_code == 1
    for expected in (
        "tpot_median 15.0 ms 16.2 ms 8.0 % worse regression",
        "output_throughput 100.0 tok/s 92.59 tok/s 7.4 % worse regression",
        "decode 8.0 % slower: GEMM +10.0 %, all else equal",
        "GEMM moved most in 1 of 1 case that got slower (+10.0 % in the middle one)",
        "2 regression",
    ):
        assert expected in told(result)
    assert result.stdout.index("tpot_median") < result.stdout.index("output_throughput")
    gained = llamaperf(after, before)
    assert (gained.exit_code, "7.4 % better" in gained.stdout) == (0, True)


def test_measured_runs_are_screened_and_leave_it_open(llamaperf: Any, tmp_path: Path) -> None:
    before = write(tmp_path / "a", judged((100.0, 101.0, 99.0)), judged((50.0,), work="128-2048"))
    after = write(tmp_path / "b", judged((80.0, 81.0, 79.0)), judged((50.0,), work="128-2048"))

    result = llamaperf(before, after)

    assert result.exit_code == 3
    assert "suspect: fresh restarts of both will tell (1 value)" in result.stdout
    assert "1 restart before and 1 after, and 3 and 2 are needed" in result.stdout
    assert "pytest SUITES --against RUNTIME settles them" in result.stdout
    assert llamaperf(before, after, "--fail-on", "regression").exit_code == 0
    assert llamaperf(before, after, "--fail-on", "nothing").exit_code == 0
    assert llamaperf(before, after, "--fail-on", "regression,suspect", "--case", "2048").exit_code == 0


@pytest.mark.parametrize("sides", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("name", ["run.json", "kept.json"])
def test_what_nobody_watched_is_compared_with_nothing(
    llamaperf: Any, tmp_path: Path, sides: tuple[bool, bool], name: str
) -> None:
    """GPUs may have been slowed down, on whichever side it was."""
    folders = []
    for side, is_blind in zip("ab", sides, strict=True):
        health = {"blind": "Driver Not Loaded"} if is_blind else {"blind": None}
        folder = write(tmp_path / side, dataclasses.replace(judged((100.0, 101.0, 99.0)), health=health))
        folders.append((folder / "run.json").rename(folder / name))

    refused = llamaperf(*folders)
    allowed = llamaperf(*folders, "--allow-difference", "GPUs watched")

    assert refused.exit_code == 3
    assert "nothing could be compared: 1 unlike" in told(refused)
    assert "GPUs watched" in told(refused)
    assert "no: Driver Not Loaded" in told(refused)
    assert (allowed.exit_code, "passed" in allowed.stdout) == (0, True)


def test_what_differs_is_named_and_compared_when_allowed(llamaperf: Any, tmp_path: Path) -> None:
    before = write(tmp_path / "a", judged((100.0, 101.0, 99.0)), driver="570")
    after = write(tmp_path / "b", judged((100.0, 101.0, 99.0)), driver="580")

    refused = llamaperf(before, after)
    allowed = llamaperf(before, after, "--allow-difference", "driver", "--allow-difference", "clock")

    assert refused.exit_code == 3
    assert "driver is '570' before and '580' after" in refused.stdout
    assert "nothing could be compared: 1 unlike" in refused.stdout
    assert allowed.exit_code == 0
    assert "driver 570 -> 580" in allowed.stdout
    assert "--allow-difference clock: nothing differs in that" in allowed.stderr


def test_a_run_of_an_earlier_version_is_compared_and_what_it_did_not_tell_is_said(
    llamaperf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Driver(monkeypatch, H200)
    machine = find_machine().to_dict()
    gpus = [
        {name: value for name, value in dataclasses.asdict(gpu).items() if name != "board"}
        for gpu in find_machine().gpus
    ]
    old = {"gpus": gpus, **{name: machine[name] for name in ("driver", "processor", "problem", "cores")}}
    before = write(tmp_path / "a", judged((100.0, 101.0, 99.0)), **old)
    after = write(tmp_path / "b", judged((100.0, 101.0, 99.0)), **machine)

    result = llamaperf(before, after)

    assert result.exit_code == 0
    assert "fields not told CUDA of the driver" not in result.stdout
    assert "fields not told GPU ECC, GPU MIG, GPU NVLink ends" in told(result)


def test_what_only_b_has_fails_when_asked_and_what_only_a_has_unless_asked(llamaperf: Any, tmp_path: Path) -> None:
    one, two = (judged((100.0,), source=Source.PREDICTED, work=work) for work in ("128-128", "128-2048"))
    some, more = write(tmp_path / "a", one), write(tmp_path / "b", one, two)

    assert llamaperf(some, more).exit_code == 0
    assert llamaperf(some, more, "--fail-on", "added").exit_code == 3
    assert llamaperf(more, some).exit_code == 3
    assert llamaperf(more, some, "--fail-on", "regression").exit_code == 0


def test_nothing_fails_where_nothing_was_compared_either(llamaperf: Any, tmp_path: Path) -> None:
    before, after = write(tmp_path / "a", judged((1.0,))), write(tmp_path / "b", judged((1.0,), work="128-2048"))

    assert llamaperf(before, after, "--fail-on", "nothing").exit_code == 0


def test_two_documents_do_not_fit_in_standard_output(llamaperf: Any, tmp_path: Path) -> None:
    before, after = write(tmp_path / "a", *predictions(1.0)), write(tmp_path / "b", *predictions(1.0))

    result = llamaperf(before, after, "--json", "-", "--markdown", "-")

    assert (result.exit_code, result.stdout) == (2, "")
    assert "--json and --markdown cannot both be -" in result.stderr


def test_a_case_that_broke_is_missing_with_its_error(llamaperf: Any, tmp_path: Path) -> None:
    broken = Judged.of_error("a.py::x", case(f"{KEY}-128-128").to_dict(), "out of memory")
    before, after = write(tmp_path / "a", judged((100.0,))), write(tmp_path / "b", broken)

    result = llamaperf(before, after)

    assert result.exit_code == 3
    assert "only before: 1 value of 1 case" in result.stdout
    assert "(error: out of memory)" in result.stdout
    assert llamaperf(after, before, "--fail-on", "regression").exit_code == 3  # nothing was compared


def test_an_error_of_two_lines_is_told_on_one(llamaperf: Any, tmp_path: Path) -> None:
    broken = Judged.of_error("a.py::x", case(f"{KEY}-128-128").to_dict(), "hang (load)\nsee the log")
    before, after = write(tmp_path / "a", judged((100.0,))), write(tmp_path / "b", broken)

    assert "(error: hang (load); see the log)" in llamaperf(before, after).stdout


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (
            "0.20.0-prerelease",
            "0.20.0",
            "note is 'CUDA graphs unintentionally off; superseded' before and not told after",
        ),
        ("0.17", "0.20.0", "TensorRT engine"),
    ],
)
def test_published_versions_are_not_compared_across_a_break(llamaperf: Any, before: str, after: str, why: str) -> None:
    result = llamaperf(before, after)

    assert result.exit_code == 3
    assert why in result.stdout
    assert "nothing could be compared" in result.stdout


def test_published_versions_of_one_harness_are_shown_without_a_verdict(llamaperf: Any) -> None:
    result = llamaperf("0.20.0", "1.0", "--case", "h200/*/llama-3.1-405b", "--metric", "output_throughput")

    assert result.exit_code == 3
    assert "443.1 tok/s 456.0 tok/s 2.9 % better inconclusive" in told(result)
    assert "both are single published values" in result.stdout
    assert "regression:" not in result.stdout


def test_a_file_of_another_tool_is_compared_with_a_version(llamaperf: Any, tmp_path: Path) -> None:
    header, *rows = SEED.read_text(encoding="utf-8").splitlines()
    ours = [row.replace(",1.0,", ",1.0.1,") for row in rows if ",1.0,Llama 3.1 405B,H200" in row]
    (tmp_path / "ours.csv").write_text("\n".join([header, *ours, ""]), encoding="utf-8")

    result = llamaperf("1.0", tmp_path / "ours.csv", "--case", "405b", "--fail-on", "missing")

    assert len(ours) == 10
    assert result.exit_code == 0
    assert "TensorRT-LLM 1.0 -> 1.0.1" in result.stdout
    assert told(result).count("tok/s same inconclusive") == 10


def test_versions_are_looked_up_in_the_history_that_is_named(llamaperf: Any, tmp_path: Path) -> None:
    run = read_run(write(tmp_path / "a", *predictions(1.0)))
    newer = [dataclasses.replace(one, version="1.2.7", run="newer") for one in observations_of(run)]
    with open_history(str(tmp_path / "own.sqlite"), create=True) as history:
        history.add(newer)

    result = llamaperf(tmp_path / "a", "1.2.7", "--db", tmp_path / "own.sqlite")

    assert result.exit_code == 0
    assert "TensorRT-LLM 1.1 -> 1.2.7" in result.stdout
    assert llamaperf(tmp_path / "a", "1.2.7", "--db", tmp_path / "gone.sqlite").exit_code == 2


def test_everything_is_written_as_json_and_markdown(llamaperf: Any, tmp_path: Path) -> None:
    before, after = write(tmp_path / "a", *predictions(1.0)), write(tmp_path / "b", *predictions(1.1))

    result = llamaperf(before, after, "--json", tmp_path / "out.json", "--markdown", tmp_path / "out.md")

    assert "2 regression" in result.stdout
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["schema"] == 1
    assert written["counts"] == {"regression": 2}
    first = written["compared"][0]
    assert (first["metric"], first["outcome"]) == ("tpot_median", "regression")
    assert first["loss"] == pytest.approx(0.08)
    assert first["change"] == pytest.approx(0.08)
    assert first["operators"][0]["moved"][0]["kind"] == "GEMM"
    assert first["reason"] == "added 8.0 % to tpot_median; the predictions are exact, and allowed is 0.5 %"
    assert "| tpot_median | 15.0 ms | 16.2 ms | 8.0 % worse | **regression**" in (tmp_path / "out.md").read_text()
    assert json.loads(llamaperf(before, after, "--json", "-").stdout) == written


def test_only_the_worst_are_shown_and_all_when_asked(llamaperf: Any, tmp_path: Path) -> None:
    before = write(tmp_path / "a", *(judged((100.0,), source=Source.PREDICTED, work=f"128-{n}") for n in range(1, 61)))
    after = write(
        tmp_path / "b", *(judged((100.0 - n / 10,), source=Source.PREDICTED, work=f"128-{n}") for n in range(1, 61))
    )

    some, everything = llamaperf(before, after), llamaperf(before, after, "--all")

    assert some.stdout.count("% worse") == 40
    assert "... and 20 values more: --all" in some.stdout
    assert everything.stdout.count("% worse") == 60


def test_hostile_names_reach_neither_terminal_nor_markdown(llamaperf: Any, tmp_path: Path) -> None:
    hostile = "[red]x\x1b[2J\u202e|<script>@all`"
    before, after = (
        write(
            tmp_path / name,
            *(
                dataclasses.replace(each, metric=f"{each.metric}{hostile}", case={**each.case, "id": f"{KEY}{hostile}"})
                for each in predictions(factor)
            ),
        )
        for name, factor in (("a", 1.0), ("b", 1.1))
    )

    result = llamaperf(before, after, "--markdown", tmp_path / "out.md")

    assert result.exit_code == 1
    assert "[red]x\\x1b[2J\\u202e|<script>@all`" in result.stdout
    text = (tmp_path / "out.md").read_text()
    assert not set("\x1b\u202e<@`[") & set(text)
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {7}


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda text: text[:200], "was it cut off?"),
        (lambda text: text.replace('"schema": 1', '"schema": 99'), "a newer version of pytest-llamaperf wrote it"),
        (lambda text: "", "is no JSON"),
        (lambda text: "[]", "is no run"),
    ],
)
def test_a_damaged_run_is_wrong_usage(llamaperf: Any, tmp_path: Path, damage: Any, why: str) -> None:
    before, after = write(tmp_path / "a", *predictions(1.0)), write(tmp_path / "b", *predictions(1.1))
    (after / "run.json").write_text(damage((after / "run.json").read_text()))

    result = llamaperf(before, after)

    assert result.exit_code == 2
    assert why in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("a", "a"), "are the same (a): there is nothing to compare"),
        (("a", "b/none"), "is not there; name a folder that --results wrote, a file, or a version"),
        (("a", "0.20.1"), "did you mean '0.20.0'"),
        (("a", "b", "--metric", "output_thruput"), "did you mean 'output_throughput'?"),
        (("a", "b", "--case", "405b"), "neither side has a case with '405b' in its id"),
        (("a", "b", "--fail-on", "regresion"), "did you mean 'regression'?"),
        (("a", "b", "--allow-difference", "unit"), "unit cannot be allowed to differ"),
        (("a", "b", "--json", "a/run.json/x"), "--json a/run.json/x: cannot be written"),
        (("a",), "Missing argument 'B'"),
    ],
)
def test_wrong_usage_says_what_would_be_right(
    llamaperf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], why: str
) -> None:
    write(tmp_path / "a", *predictions(1.0))
    write(tmp_path / "b", *predictions(1.0))
    monkeypatch.chdir(tmp_path)

    result = llamaperf(*arguments)

    assert result.exit_code == 2
    assert why in result.stderr
    assert "Traceback" not in result.stderr


def test_help_teaches_by_examples(llamaperf: Any) -> None:
    result = llamaperf("--help")

    assert result.exit_code == 0
    for expected in ("llamaperf compare out/1.1 out/1.2", "llamaperf compare 0.20.0 1.0", "3 not enough evidence"):
        assert expected in told(result)
