"""What is kept of a run, and that it is kept whole."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from builders import case, measured, promise, record, result
from hypothesis import given
from hypothesis import strategies as st

from pytest_llamaperf.files import write_atomically
from pytest_llamaperf.gates import Decision
from pytest_llamaperf.measurements import Fingerprint
from pytest_llamaperf.records import Result
from pytest_llamaperf.runs import RunHeader, RunLog, run_document, to_json
from pytest_llamaperf.verdicts import judge

HEADER = RunHeader("8a1c", "2026-11-22T10:00:00Z", "h200", "tensorrt-llm", {"tensorrt_llm": "1.2.1"})


def full_disk(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_run_is_read_back_as_it_was_written() -> None:
    passed, failed = result(), result("regression", nodeid="suites/test_a.py::test_c")
    tests = [record(passed), record(failed, outcome="failed", reason="slower")]
    decision = Decision(("regression: a case",))

    document = json.loads(to_json(run_document(HEADER, tests, decision), indent=1))

    assert document["schema"] == 1
    assert RunHeader(**document["run"]) == HEADER
    assert [Result.from_dict(entry) for entry in document["results"]] == [passed, failed]
    assert document["tests"] == [
        {
            "nodeid": "suites/test_a.py::test_b",
            "outcome": "passed",
            "duration": 1.5,
            "reason": "",
            "case": None,
            "attempts": 0,
            "measures": False,
            "evidence": None,
            "session": 1,
        },
        {
            "nodeid": "suites/test_a.py::test_c",
            "outcome": "failed",
            "duration": 1.5,
            "reason": "slower",
            "case": None,
            "attempts": 0,
            "measures": False,
            "evidence": None,
            "session": 1,
        },
    ]
    assert document["decision"] == {
        "releasable": False, "reasons": ["regression: a case"], "waived": [], "missing": [], "required": 0
    }  # fmt: skip


def test_a_run_without_reasons_is_written_as_releasable() -> None:
    assert json.loads(to_json(run_document(HEADER, [], Decision(()))))["decision"] == {
        "releasable": True, "reasons": [], "waived": [], "missing": [], "required": 0
    }  # fmt: skip


def test_a_verdict_becomes_the_result_the_design_describes() -> None:
    fingerprint = Fingerprint({"tensorrt_llm": "1.2.1"}, {"max_batch_size": 64})
    verdict = judge(
        case(),
        measured(464.0, 464.0),
        promise(463.1, 0.1),
        ("a note",),
        fingerprint,
        "trtllm-bench --model llama-3.1-8b",
    )

    got = json.loads(to_json(Result.of_verdict("suites/test_a.py::test_b", verdict).to_dict()))

    assert got == {
        "nodeid": "suites/test_a.py::test_b",
        "case": case().to_dict(),
        "metric": "output_throughput", "unit": "tok/s", "better": "higher", "source": "measured",
        "values": [464.0, 464.0], "value": 464.0, "low": 464.0, "high": 464.0,
        "baseline": {
            "value": 463.1, "tolerance": 0.1, "source": "published", "reference": "perf-overview.md",
            "recorded": {}, "file": "baselines/h200/llama-3.1-8b.yaml", "line": 7,
        },
        "outcome": "pass",
        "message": "output_throughput measured 464.0 tok/s (464.0 tok/s to 464.0 tok/s), "
        "promised 463.1 tok/s (published): +0.2 %",
        "notes": ["a note"],
        "fingerprint": {"versions": {"tensorrt_llm": "1.2.1"}, "settings": {"max_batch_size": 64}},
        "reproduce": "trtllm-bench --model llama-3.1-8b", "operators": {}, "metrics": {}, "paired": {}, "waiver": None, "health": {},
    }  # fmt: skip


def test_an_error_has_no_value_and_is_read_back_too() -> None:
    error = Result.of_error("suites/test_a.py::test_b", case().to_dict(), "out of memory")

    assert (error.outcome, error.value, error.metric, error.baseline) == ("error", None, None, None)
    assert Result.from_dict(json.loads(to_json(error.to_dict()))) == error


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_never_written(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"results": [{"value": number}]})


def test_text_is_written_as_people_read_it() -> None:
    assert to_json({"reason": "größer"}) == '{"reason": "größer"}'


@given(st.text(st.characters(codec="utf-8")))
def test_any_reason_stays_on_one_line_and_comes_back(reason: str) -> None:
    line = to_json({"reason": reason})

    assert "\n" not in line
    assert json.loads(line) == {"reason": reason}


def test_a_whole_file_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "results" / "run.json"

    write_atomically(target, "old\n")
    write_atomically(target, "größer\n")

    assert target.read_text(encoding="utf-8") == "größer\n"
    assert [path.name for path in target.parent.iterdir()] == ["run.json"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "run.json"
    target.write_text("old\n")
    monkeypatch.setattr(os, "fsync", full_disk)

    with pytest.raises(OSError, match="No space left on device"):
        write_atomically(target, "new\n")

    assert target.read_text() == "old\n"
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_full_disk_leaves_no_half_of_a_first_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", full_disk)

    with pytest.raises(OSError, match="No space left on device"):
        write_atomically(tmp_path / "run.json", "new\n")

    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_replacement_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "run.json"
    target.write_text("old\n")

    def interrupt(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)

    with pytest.raises(KeyboardInterrupt):
        write_atomically(target, "new\n")

    assert target.read_text() == "old\n"
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_whoever_may_read_the_log_may_read_the_run(tmp_path: Path) -> None:
    RunLog(tmp_path, HEADER).close()
    write_atomically(tmp_path / "run.json", "{}\n")

    modes = {path.name: stat.filemode(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes["run.json"] == modes["run.jsonl"]


def test_the_log_is_readable_after_every_test_while_it_is_open(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tests = [record(result()), record(result("error"), outcome="failed", reason="out of memory")]
    log = RunLog(tmp_path / "results", HEADER)
    request.addfinalizer(log.close)

    assert [line.keys() for line in lines(tmp_path / "results")] == [{"schema", "run"}]
    for count, test in enumerate(tests, start=1):
        log.add(test)

        header, *rest = lines(tmp_path / "results")
        assert header["schema"] == 1
        assert RunHeader(**header["run"]) == HEADER
        assert [line["test"]["outcome"] for line in rest] == ["passed", "failed"][:count]
        last = rest[-1]["test"]
        assert (last["nodeid"], last["reason"], last["duration"]) == (test.nodeid, test.reason, 1.5)
        assert tuple(Result.from_dict(entry) for entry in last["results"]) == test.results


def test_a_new_log_starts_over(tmp_path: Path) -> None:
    for _ in range(2):
        log = RunLog(tmp_path, HEADER)
        log.add(record(result()))
        log.close()

    assert len(lines(tmp_path)) == 2


def test_a_name_that_is_no_unicode_is_logged_all_the_same(tmp_path: Path) -> None:
    # What Python makes of a file name in Latin-1, and of a byte in the middle of an engine's last words.
    with contextlib.closing(RunLog(tmp_path, HEADER)) as log:
        log.add(record(outcome="error", reason="gr\udcfc\udcdfe", nodeid="suites/test_a.py::test_b"))

    assert len(lines(tmp_path)) == 2


def test_a_link_stays_a_link_and_what_it_points_to_is_written(tmp_path: Path) -> None:
    target = tmp_path / "target.json"
    target.write_text("old")
    link = tmp_path / "link.json"
    link.symlink_to(target)

    write_atomically(link, "new")

    assert link.is_symlink()
    assert target.read_text() == "new"


def test_what_is_no_file_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    """A pipe here, and so /dev/null for whoever runs this as root."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_atomically(pipe, "new")

        assert os.read(reader, 100) == b"new"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
