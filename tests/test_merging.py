"""Merging fails closed: every way in which a shard can be no evidence is named, and blocks."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from builders import record
from builders import result as judged_result
from click.testing import CliRunner, Result
from shard_builders import MACHINE, campaign, edited, junit, leave_results, shard

from pytest_llamaperf.commands import main
from pytest_llamaperf.records import TestRecord
from pytest_llamaperf.runs import read_run
from pytest_llamaperf.scaling.contract import JUNIT, Campaign

A, B = shard("a", "suite.py::test_a", "suite.py::test_a2"), shard("b")


@pytest.fixture
def whole(tmp_path: Path) -> Campaign:
    """Two shards with all their results."""
    found = campaign(tmp_path / "out", A, B)
    for each in (A, B):
        leave_results(found, each)
    return found


def merge(of: Campaign) -> Result:
    return CliRunner().invoke(main, ["merge", str(of.path)], prog_name="llamaperf")


def test_whole_shards_become_one_run_that_everybody_reads(whole: Campaign) -> None:
    result = merge(whole)

    assert result.exit_code == 0, result.output
    assert "3 passed, in 2 shards" in result.output
    run = read_run(whole.path)
    assert run.header.id == whole.manifest.id
    assert [test.nodeid for test in run.tests] == ["suite.py::test_a", "suite.py::test_a2", "suite.py::test_b"]
    assert run.header.shard == {}
    assert len(run.results) == 3
    assert (whole.path / "summary.md").exists()


def test_the_junit_has_a_suite_for_each_shard(whole: Campaign) -> None:
    merge(whole)

    suites = ElementTree.parse(whole.path / JUNIT).getroot().findall("testsuite")
    assert [suite.get("name") for suite in suites] == ["a", "b"]
    assert [len(suite.findall("testcase")) for suite in suites] == [2, 1]


def test_why_a_shard_has_no_results_is_told_where_somebody_noted_it(whole: Campaign) -> None:
    cut_off(whole)
    whole.note(A, "it was ended by SIGKILL on n1")
    whole.note(B, "of an earlier try")

    result = merge(whole)

    assert result.exit_code == 3
    assert "missing: a: cut off after 2 tests" in result.output
    assert "; it was ended by SIGKILL on n1\n" in result.output
    assert "of an earlier try" not in result.output


def test_a_session_that_was_told_to_end_has_a_report_and_goes_on_later(whole: Campaign) -> None:
    fewer_tests(whole)

    assert whole.has_report(A)
    assert whole.remaining() == [A]


def test_what_merging_takes_for_no_evidence_is_run_again(whole: Campaign) -> None:
    for fault in (unsealed, other_version, fewer_tests, interrupted, truncated):
        leave_results(whole, A)
        assert whole.remaining() == []

        fault(whole)

        assert whole.remaining() == [A], fault.__name__


def cut_off(of: Campaign) -> None:
    (of.folder(A) / "run.json").unlink()


def gone(of: Campaign) -> None:
    shutil.rmtree(of.folder(A))


def truncated(of: Campaign) -> None:
    path = of.folder(A) / "run.json"
    path.write_text(path.read_text()[:-20])


def changed(of: Campaign) -> None:
    edited(of.folder(A) / "run.json", results=[])


def unsealed(of: Campaign) -> None:
    path = of.folder(A) / "run.json"
    document = json.loads(path.read_text())
    del document["checksum"]
    path.write_text(json.dumps(document))


def stale(of: Campaign) -> None:
    leave_results(of, A, shard={"run": "run-0", "key": "a"})


def no_shard(of: Campaign) -> None:
    leave_results(of, A, shard={})


def copied(of: Campaign) -> None:
    shutil.rmtree(of.folder(A))
    shutil.copytree(of.folder(B), of.folder(A))


def other_version(of: Campaign) -> None:
    leave_results(of, A, versions={**of.manifest.about.versions, "tensorrt_llm": "1.3"})


def other_machine(of: Campaign) -> None:
    leave_results(of, A, fingerprint={**MACHINE, "processor": "another CPU"})


def other_tests(of: Campaign) -> None:
    leave_results(of, A, *(record(nodeid=f"suite.py::test_{name}") for name in ("a", "a2", "a3")))


def fewer_tests(of: Campaign) -> None:
    leave_results(of, A, record(nodeid="suite.py::test_a"))


def unfinished(of: Campaign) -> None:
    leave_results(of, A, record(nodeid="suite.py::test_a"), record(nodeid="suite.py::test_a2", outcome="unfinished"))


def interrupted(of: Campaign) -> None:
    leave_results(of, A, interrupted="SIGTERM")


def no_junit(of: Campaign) -> None:
    (of.folder(A) / JUNIT).unlink()


def truncated_junit(of: Campaign) -> None:
    path = of.folder(A) / JUNIT
    path.write_text(path.read_text()[:-5])


def junit_with_entities(of: Campaign) -> None:
    path = of.folder(A) / JUNIT
    path.write_text('<!DOCTYPE lolz [<!ENTITY a "a"><!ENTITY b "&a;&a;&a;">]>' + path.read_text().partition("?>")[2])


def junit_of_fewer(of: Campaign) -> None:
    (of.folder(A) / JUNIT).write_text(junit(record(nodeid="suite.py::test_a")))


def junit_that_hides_a_failure(of: Campaign) -> None:
    tests = [record(nodeid="suite.py::test_a", outcome="skipped"), record(nodeid="suite.py::test_a2")]
    leave_results(of, A, *tests)
    (of.folder(A) / JUNIT).write_text(junit(*(record(nodeid=test.nodeid) for test in tests)))


def stray_folder(of: Campaign) -> None:
    shutil.copytree(of.folder(A), of.folder(A).with_name("0009-a"))


FAULTS: dict[Callable[[Campaign], None], str] = {
    cut_off: "missing: a: cut off after 2 tests, in ",
    gone: "missing: a: there are no results in ",
    truncated: "damaged: a: ",
    changed: "was changed after it was written",
    unsealed: "was changed after it was written",
    stale: "is of the run run-0, not of run-1",
    no_shard: "is of a pytest session that was no shard",
    copied: "duplicate: a: ",
    other_version: "was run with tensorrt_llm 1.3 and not none",
    other_tests: "has tests that were not planned, as suite.py::test_a3",
    fewer_tests: "missing: a: 1 test of 2 did not run, as suite.py::test_a2",
    unfinished: "missing: a: 1 test of 2 did not run, as suite.py::test_a2",
    interrupted: "missing: a: ended early (SIGTERM), in ",
    no_junit: "junit.xml: cannot be read",
    truncated_junit: "junit.xml: is no XML",
    junit_with_entities: "junit.xml: has a DOCTYPE",
    junit_of_fewer: "junit.xml: tells of 1 test otherwise than run.json, as suite.py::test_a2",
    junit_that_hides_a_failure: "otherwise than run.json, as suite.py::test_a",
    stray_folder: "0009-a is no shard of this run",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_shard_that_is_no_evidence_is_named_and_blocks(whole: Campaign, fault: Callable[[Campaign], None]) -> None:
    fault(whole)

    result = merge(whole)

    assert result.exit_code == 3, result.output
    assert FAULTS[fault] in result.output.replace("\n", " ")
    run = read_run(whole.path)
    assert run.decision is not None
    assert any(FAULTS[fault] in reason for reason in run.decision.reasons)
    goes_on = any("`llamaperf run`" in remedy for remedy in run.decision.remedies)
    assert goes_on == FAULTS[fault].startswith("missing")
    assert "suite.py::test_b" in [test.nodeid for test in run.tests]  # what there is, is shown


@pytest.mark.parametrize("fault", [cut_off, changed, stale, copied, fewer_tests], ids=lambda fault: fault.__name__)
def test_what_is_no_evidence_is_an_error_of_junit_and_not_merged(
    whole: Campaign, fault: Callable[[Campaign], None]
) -> None:
    fault(whole)

    merge(whole)

    run = read_run(whole.path)
    assert [test.nodeid for test in run.tests] == ["suite.py::test_b"]
    assert run.decision is not None
    assert "not run: 2 tests" in run.decision.reasons
    suites = {suite.get("name"): suite for suite in ElementTree.parse(whole.path / JUNIT).getroot()}
    assert suites["a"].find("testcase/error") is not None


def test_a_shard_of_another_kind_of_machine_is_foreign(tmp_path: Path) -> None:
    three = campaign(tmp_path / "out", A, B, shard("c"))
    for each in three.manifest.shards:
        leave_results(three, each)
    other_machine(three)

    result = merge(three)

    assert result.exit_code == 3
    assert (
        "foreign: a: was run on another machine than most shards: processor another CPU and not a CPU" in result.output
    )


def on_gpus(*numbers: int, **board: Any) -> dict[str, Any]:
    """A machine of which a shard was given some GPUs, and as many cores."""
    boards = {"power_limit": 700.0, "ecc": True, "clock_asked": 1_980_000_000, **board}
    gpus = [
        {"name": "h200", "product": "NVIDIA H200", "memory": 1, "uuid": f"GPU-{n}", "board": boards} for n in numbers
    ]
    ways = {f"{one}-{other}": "NVLink" for one in numbers for other in numbers if one < other}
    return {**MACHINE, "format": 2, "driver": "570", "gpus": gpus, "topology": ways, "cores": len(numbers)}


@pytest.mark.parametrize(
    ("board", "told"),
    [
        ({"power_limit": 500.0}, "GPU power limit 500 W and not 700 W"),
        ({"ecc": False}, "GPU ECC off and not on"),
        ({"clock_asked": 1_500_000_000}, "GPU clock asked 1500 MHz and not 1980 MHz"),
    ],
)
def test_gpus_that_are_set_in_another_way_are_of_another_machine(
    tmp_path: Path, board: dict[str, Any], told: str
) -> None:
    three = campaign(tmp_path / "out", A, B, shard("c"))
    for number, each in enumerate(three.manifest.shards):
        leave_results(three, each, fingerprint=on_gpus(number))
    leave_results(three, A, fingerprint=on_gpus(0, **board))

    result = merge(three)

    assert result.exit_code == 3
    assert f"foreign: a: was run on another machine than most shards: {told}" in result.output


def test_which_gpus_a_shard_had_and_how_many_makes_no_other_machine(tmp_path: Path) -> None:
    three = campaign(tmp_path / "out", A, B, shard("c"))
    for numbers, each in zip(((3,), (0, 1), (0, 1, 2, 3)), three.manifest.shards, strict=True):
        leave_results(three, each, fingerprint=on_gpus(*numbers))

    assert merge(three).exit_code == 0

    machine = read_run(three.path).header.fingerprint
    assert machine["topology"] == on_gpus(0, 1, 2, 3)["topology"]
    assert {gpu["uuid"] for gpu in machine["gpus"]} == {"GPU-0", "GPU-1", "GPU-2", "GPU-3"}


def measured_by(nodeid: str, **loaded: str) -> TestRecord:
    """A pass, with the versions that its engine loaded."""
    made = dataclasses.replace(judged_result(nodeid=nodeid), fingerprint={"versions": loaded, "settings": {}})
    return dataclasses.replace(record(made), attempts=1)


def test_no_build_is_released_of_which_shards_measured_two(tmp_path: Path) -> None:
    """The same version installed, and nodes whose engines load other libraries."""
    whole = campaign(tmp_path / "out", A, B, gate=True)
    leave_results(whole, A, *(measured_by(nodeid, tensorrt_llm="1.2.1", cublas="12.8") for nodeid in A.tests))
    leave_results(whole, B, *(measured_by(nodeid, tensorrt_llm="1.2.1", cublas="12.9") for nodeid in B.tests))

    result = merge(whole)

    assert result.exit_code == 1
    assert "shards of this run measured other builds: tensorrt-llm loaded cublas 12.8 in a, 12.9 in b" in result.output


def test_versions_that_every_shard_loaded_are_one_build(tmp_path: Path) -> None:
    """Of a kind of engine there may be several processes, as where lm-eval has an environment of its own."""
    whole = campaign(tmp_path / "out", A, shard("b", "suite.py::test_b", "suite.py::test_b2"), gate=True)
    for each in whole.manifest.shards:
        first, second = each.tests
        leave_results(whole, each, measured_by(first, torch="2.9"), measured_by(second, torch="2.13"))

    result = merge(whole)

    assert result.exit_code == 0, result.output


PROMISE = """schema: 1
references: {{here: made up for this test}}
promises:
  tensorrt-llm/{key}:
    output_throughput: {{value: {value}, unit: tok/s, tolerance: {tolerance}, source: published, reference: here}}
"""


@pytest.mark.parametrize(("value", "tolerance", "status"), [(463.1, 0.25, 0), (500.0, 0.25, 1), (463.1, 0.01, 1)])
def test_what_was_judged_by_a_promise_that_has_changed_releases_nothing(
    tmp_path: Path, value: float, tolerance: float, status: int
) -> None:
    """A shard that has its results is not run again, whatever became of the promises meanwhile."""
    about = {"gpu": "h200", "engine": "tensorrt-llm", "under_test": "tensorrt-llm"}
    whole = campaign(tmp_path / "out", B, gate=True, **about)
    judged = dataclasses.replace(judged_result(nodeid=B.tests[0]), health={"blind": None})
    leave_results(whole, B, dataclasses.replace(record(judged), attempts=1), fingerprint=on_gpus(0))
    promises = Path(whole.manifest.about.baselines) / "h200" / f"{judged.case['model']}.yaml"
    promises.parent.mkdir(parents=True)
    key = judged.case["id"].removeprefix("h200/tensorrt-llm/")
    promises.write_text(PROMISE.format(key=key, value=value, tolerance=tolerance))

    found = merge(whole)

    assert found.exit_code == status, found.output
    told = f"judged by a promise that has changed: {judged}: it was 463.1 within 25 %, and is {value:g} within"
    assert (told in found.output) is bool(status)


def test_a_failure_is_a_no_also_where_evidence_is_missing(whole: Campaign) -> None:
    leave_results(whole, B, record(nodeid="suite.py::test_b", outcome="failed", reason="slower by 12 %"))
    gone(whole)

    result = merge(whole)

    assert result.exit_code == 1
    assert "failed: suite.py::test_b: slower by 12 %" in result.output
    assert "missing: a" in result.output


def test_the_decision_asks_for_what_a_release_needs(tmp_path: Path) -> None:
    """No shard by itself could know what another one judged."""
    gate = tmp_path / "gate.yaml"
    gate.write_text(
        "schema: 1\nhardware: cpu\ncount: 1\nrequired:\n  speed:\n    model: smollm2-135m\n    recipe: bf16\n"
        "    layout: tp1\n    workload: max-throughput-16-8\n    metric: output_throughput\n"
    )
    whole = campaign(tmp_path / "out", A, B, gate=True, gate_file=str(gate))
    for each in (A, B):
        leave_results(whole, each)

    result = merge(whole)

    assert result.exit_code == 1
    required = "required and not judged: cpu/torch/smollm2-135m/bf16/tp1/max-throughput-16-8 output_throughput"
    assert required in result.output


def test_with_the_gate_evidence_that_is_missing_is_no_no(tmp_path: Path) -> None:
    some = campaign(tmp_path / "out", A, B, gate=True)
    leave_results(some, B)

    assert merge(some).exit_code == 3


def test_a_whole_run_of_measured_passes_may_be_released(tmp_path: Path) -> None:
    whole = campaign(tmp_path / "out", A, B, gate=True)
    for each in (A, B):
        leave_results(whole, each)

    result = merge(whole)

    assert result.exit_code == 0, result.output
    assert "releasable: every test is a measured pass" in result.output
    assert "about torch on a CPU and nothing else" in result.output
    assert "no file of the gate says what has to be judged" in result.output


def test_what_broke_in_a_shard_beside_its_tests_is_a_reason(whole: Campaign) -> None:
    from pytest_llamaperf.gates import Decision
    from pytest_llamaperf.runs import run_document, to_json

    path = whole.folder(A) / "run.json"
    run = read_run(path)
    decision = Decision(("a part of a run", "not collected: suites/test_x.py: SyntaxError"))
    path.write_text(to_json(run_document(run.header, run.tests, decision)))

    merge(whole)

    found = read_run(whole.path).decision
    assert found is not None
    assert "not collected: suites/test_x.py: SyntaxError" in found.reasons


def test_merging_again_after_a_shard_came_in_makes_it_whole(tmp_path: Path) -> None:
    some = campaign(tmp_path / "out", A, B)
    leave_results(some, B)
    assert merge(some).exit_code == 3

    leave_results(some, A)

    assert merge(some).exit_code == 0


def test_without_any_shard_there_is_a_run_that_says_so(tmp_path: Path) -> None:
    nothing = campaign(tmp_path / "out", A, B)

    result = merge(nothing)

    assert result.exit_code == 3
    assert "no tests, in 2 shards, 2 of which are no evidence" in result.output
