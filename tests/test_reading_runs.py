"""Runs are read as they were written, or refused with the reason; and what they say is taken out as observations."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from builders import case, measured, promise, record
from hypothesis import given
from hypothesis import strategies as st

from pytest_llamaperf.account import EngineUse
from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.gates import Decision
from pytest_llamaperf.measurements import Fingerprint
from pytest_llamaperf.observations import observations_of
from pytest_llamaperf.records import Result
from pytest_llamaperf.runs import Run, RunHeader, RunLog, read_log, read_run, run_document, to_json
from pytest_llamaperf.verdicts import judge

HEADER = RunHeader("8a1c", "2026-11-22T10:00:00Z", "h200", "tensorrt-llm", {"pytest": "9"}, {"machine": "h200-8"})
FINGERPRINT = Fingerprint({"tensorrt_llm": "1.2.1"}, {"max_batch_size": 64})
JUDGED = Result.of_verdict("a.py::test_b", judge(case(), measured(460.0, 464.0), promise(463.1), (), FINGERPRINT, None))
ERROR = Result.of_error("a.py::test_c", case().to_dict(), "worker died")
TESTS = tuple(
    dataclasses.replace(record(*results, outcome=outcome), nodeid=results[0].nodeid)
    for results, outcome in (((JUDGED, JUDGED), "passed"), ((ERROR,), "failed"))
)
DECISION = Decision(("error: a case",))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    log = RunLog(tmp_path / "out", HEADER)
    for test in TESTS:
        log.add(test)
    log.close()
    (tmp_path / "out" / "run.json").write_text(to_json(run_document(HEADER, TESTS, DECISION)))
    return tmp_path / "out"


def test_a_finished_run_is_read_from_its_folder_and_its_file(folder: Path) -> None:
    assert read_run(folder) == read_run(folder / "run.json") == Run(HEADER, TESTS, DECISION)


def test_a_run_that_was_cut_off_has_the_tests_that_were_finished(folder: Path) -> None:
    (folder / "run.json").unlink()
    assert read_run(folder) == Run(HEADER, TESTS)

    log = folder / "run.jsonl"
    log.write_text(log.read_text()[:-7])
    assert read_run(folder) == Run(HEADER, TESTS[:1])


def test_observations_are_the_values_of_a_run_each_once() -> None:
    (found,) = observations_of(Run(HEADER, TESTS, DECISION))

    assert (found.case, found.metric, found.value, found.values) == (
        case().id, "output_throughput", 462.0, (460.0, 464.0)
    )  # fmt: skip
    assert (found.version, found.harness, found.run, found.outcome) == (
        "1.2.1", "pytest-llamaperf/tensorrt-llm", "8a1c", "pass"
    )  # fmt: skip
    assert found.machine == {"machine": "h200-8"}
    assert found.settings == {"max_batch_size": 64}


def test_a_run_of_a_version_that_knew_no_waivers_is_read(folder: Path) -> None:
    path = folder / "run.json"
    document = json.loads(path.read_text())
    del document["checksum"]
    for result in document["results"]:
        del result["waiver"]
    document["decision"] = {"releasable": False, "reasons": ["error: a case"]}
    path.write_text(json.dumps(document))

    assert read_run(path) == Run(HEADER, TESTS, DECISION)


@given(st.data())
def test_a_damaged_run_is_read_or_refused_and_never_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    text = to_json(run_document(HEADER, TESTS, DECISION))
    at = data.draw(st.integers(0, len(text) - 1))
    size = data.draw(st.integers(0, 40))
    path = tmp_path_factory.getbasetemp() / "run.json"
    path.write_text(text[:at] + data.draw(st.text(max_size=5)) + text[at + size :], encoding="utf-8")

    with contextlib.suppress(UsageError):
        read_run(path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"schema": 2}, "has schema 2, this version reads 1; a newer version of pytest-llamaperf wrote it"),
        ({"decision": {"releasable": True, "reasons": ["error"]}}, "its decision contradicts its reasons"),
        ({"tests": []}, "there are results of a.py::test_b, and no such test"),
        ({"results": [{"nodeid": "x"}]}, "is no run as this version writes it: KeyError"),
        ({"decision": {"releasable": 1, "reasons": []}}, "its decision is neither yes nor no"),
        ({"decision": {"releasable": True, "reasons": {}}}, "a reason of its decision is no text"),
        ({"results": [{**JUDGED.to_dict(), "fingerprint": {"settings": None}}]}, "the settings of .* are no object"),
        ({"results": [{**JUDGED.to_dict(), "metrics": {"ttft_p99": 10**400}}]}, "a value of .* is no number"),
        ({"tests": [{**TESTS[0].to_dict(with_results=False), "duration": "1"}]}, "duration, attempts or measures of"),
        (
            {"results": [{**JUDGED.to_dict(), "waiver": {"owner": "me", "line": 1}}]},
            "a waiver without expires, file, reason",
        ),
        ({"results": [{**JUDGED.to_dict(), "fingerprint": {"settings": [1]}}]}, "the settings of .* are no object"),
    ],
    ids=[
        "newer",
        "contradicts itself",
        "of no test",
        "half a result",
        "neither yes nor no",
        "no list of reasons",
        "no settings",
        "no float",
        "no duration",
        "half a waiver",
        "settings without names",
    ],
)
def test_what_is_no_run_is_refused(folder: Path, change: dict[str, object], problem: str) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))

    with pytest.raises(UsageError, match=problem):
        read_run(path)


def test_a_run_that_was_changed_is_refused_and_one_without_a_checksum_read(folder: Path) -> None:
    path = folder / "run.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document, indent=3))  # laid out otherwise, it is the same
    assert read_run(path) == Run(HEADER, TESTS, DECISION)

    document["results"][0]["value"] += 1
    path.write_text(json.dumps(document))
    with pytest.raises(
        UsageError, match=r"run\.json: was changed after it was written, for its checksum is of other content"
    ):
        read_run(path)

    del document["checksum"]
    path.write_text(json.dumps(document))
    assert read_run(path).results[0].value == 463.0


def test_a_log_is_read_however_much_of_its_last_line_was_written(tmp_path: Path) -> None:
    """Cut within a character as well; and texts may hold what other tools take for the end of a line."""
    tests = [dataclasses.replace(test, reason="größer\u2028\x85und mehr: 日本") for test in TESTS]
    log = RunLog(tmp_path, HEADER)
    sizes = []
    for test in tests:
        log.add(test)
        sizes.append((tmp_path / "run.jsonl").stat().st_size)
    log.close()
    content = (tmp_path / "run.jsonl").read_bytes()
    assert len(content) == sizes[-1]

    for end in range(content.index(b"\n") + 1, len(content) + 1):
        (tmp_path / "run.jsonl").write_bytes(content[:end])
        found = read_log(tmp_path / "run.jsonl")
        whole = sum(size <= end for size in sizes)
        assert [kept.record for kept in found.tests.values()] == tests[:whole]
        assert found.torn is (not content[:end].endswith(b"\n"))


def test_the_same_test_of_two_sessions_is_the_later_one_and_attempts_of_one_session_belong_together(
    tmp_path: Path,
) -> None:
    log = RunLog(tmp_path, HEADER)
    first, again = (dataclasses.replace(TESTS[0], session=session) for session in (1, 2))
    for test, report in ((first, "a"), (again, "b"), (again, "c")):
        log.add(test, [{"report": report}])
    log.close()

    (found,) = read_log(tmp_path / "run.jsonl").tests.values()

    assert found.record.session == 2
    assert [told["report"] for told in found.reports] == ["b", "c"]


def test_a_run_tells_what_interrupted_it_what_never_ran_and_what_it_cost(tmp_path: Path) -> None:
    header = dataclasses.replace(HEADER, sessions=2, resumed="2026-11-22T11:00:00Z", interrupted="SIGTERM")
    use = EngineUse("h200/tensorrt-llm/llama-3.1-8b/bf16/tp1", "h200", 1, 7200.0, {"load": 3600.0})
    run = Run(header, TESTS, DECISION, ("a.py::test_z",), (use,))
    document = run_document(header, TESTS, DECISION, not_run=run.not_run, engines=run.engines)
    (tmp_path / "run.json").write_text(to_json(document))

    assert read_run(tmp_path) == run


@pytest.mark.parametrize(
    "change",
    [
        {"engines": [{}]},
        {"engines": [{"engine": "e", "hardware": "cpu", "gpus": 1, "held": "long", "spent": {}}]},
        {"engines": [{"engine": "e", "hardware": "cpu", "gpus": 1, "held": 1.0, "spent": {"asleep": 1.0}}]},
        {"not_run": 1},
        {"run": {**dataclasses.asdict(HEADER), "sessions": "2"}},
        {"run": {**dataclasses.asdict(HEADER), "interrupted": 2}},
    ],
)
def test_what_is_no_account_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    document = {**run_document(HEADER, TESTS, DECISION), **change}
    del document["checksum"]
    (tmp_path / "run.json").write_text(json.dumps(document))

    with pytest.raises(UsageError, match="is no run as this version writes it"):
        read_run(tmp_path)
