"""Of two measurements, what may not differ, what may, and what one of them could not tell."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from nvml_driver import H200, Driver

from pytest_llamaperf import fingerprints
from pytest_llamaperf.comparing import likeness
from pytest_llamaperf.comparing.likeness import Difference, differences, other_versions
from pytest_llamaperf.hardware import find_machine
from pytest_llamaperf.observations import Observation

CASE = "h200/tensorrt-llm/llama-3.1-8b/modelopt-fp8/tp1/max-throughput-128-128"
SETTINGS = {"max_batch_size": 64, "checkpoint": "ab12", "dataset": "cd34"}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """As run.json has it."""
    Driver(monkeypatch, H200, H200)
    found: dict[str, Any] = json.loads(json.dumps(find_machine().to_dict()))
    return {**found, "container": "docker", "kernel": "6.8.0"}


def observed(machine: dict[str, Any], **other: Any) -> Observation:
    fields: dict[str, Any] = {
        "case": CASE, "metric": "output_throughput", "unit": "tok/s", "better": "higher", "source": "measured",
        "value": 100.0, "run": "a", "harness": "pytest-llamaperf/tensorrt-llm", "settings": SETTINGS, "machine": machine,
    }  # fmt: skip
    return Observation(**{**fields, **other})


def changed(machine: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy in which one field is another, of its second GPU where it is of GPUs."""
    copy = json.loads(json.dumps(machine))
    place, *names = path.split(".")
    here = copy
    if place == "gpus":
        here = copy["gpus"][1]
        *into, place = names
        for name in into:
            here = here[name]
    here[place] = value
    return copy  # type: ignore[no-any-return]


def of_format_1(machine: dict[str, Any]) -> dict[str, Any]:
    """What a run told before there was a format."""
    known = {name: machine[name] for name in ("driver", "processor", "problem", "cores")}
    return {
        **known,
        "gpus": [{name: value for name, value in gpu.items() if name != "board"} for gpu in machine["gpus"]],
    }


FIELDS = [
    ("GPUs", "gpus.product", "NVIDIA H20", "2 x NVIDIA H200", "1 x NVIDIA H20, 1 x NVIDIA H200"),
    ("GPU boards", "gpus.uuid", "GPU-9", "GPU-0, GPU-1", "GPU-0, GPU-9"),
    ("GPU board part", "gpus.board.part_number", "X", "692-2G520-0200-000", "1 x 692-2G520-0200-000, 1 x X"),
    ("GPU brand", "gpus.board.brand", "TESLA", "NVIDIA", "1 x NVIDIA, 1 x TESLA"),
    ("GPU memory", "gpus.memory", 1, "150754820096 B", "1 x 1 B, 1 x 150754820096 B"),
    ("GPU power limit", "gpus.board.power_limit", 500.0, "700 W", "1 x 500 W, 1 x 700 W"),
    ("GPU default power limit", "gpus.board.power_limit_default", 600.0, "700 W", "1 x 600 W, 1 x 700 W"),
    ("GPU clock asked", "gpus.board.clock_asked", 1_500_000_000, "1980 MHz", "1 x 1500 MHz, 1 x 1980 MHz"),
    ("GPU memory clock asked", "gpus.board.memory_clock_asked", None, "3201 MHz", "1 x 3201 MHz, 1 x not told"),
    ("GPU clock at most", "gpus.board.clock_most", 1_755_000_000, "1980 MHz", "1 x 1755 MHz, 1 x 1980 MHz"),
    ("GPU memory clock at most", "gpus.board.memory_clock_most", 1_000_000, "3201 MHz", "1 x 1 MHz, 1 x 3201 MHz"),
    ("GPU ECC", "gpus.board.ecc", False, "on", "1 x off, 1 x on"),
    ("GPU MIG", "gpus.board.mig", True, "off", "1 x off, 1 x on"),
    ("GPU NVLinks", "gpus.board.nvlinks", 12, "18", "1 x 12, 1 x 18"),
    ("GPU NVLink ends", "gpus.board.nvlink_ends", "GPUs", "switches", "1 x GPUs, 1 x switches"),
    ("GPU fabric", "gpus.board.fabric", "in progress", "completed", "1 x completed, 1 x in progress"),
    ("GPU connections", "topology", {"0-1": "between NUMA nodes"}, "1 x NVLink", "1 x between NUMA nodes"),
    ("driver", "driver", "580.1", "570.133.20", "580.1"),
    ("processor", "processor", "another", None, "another"),
    ("cores", "cores", 1024, None, 1024),
]
TOLD = [
    ("GPU persistence", "gpus.board.persistence", False, "on", "1 x off, 1 x on"),
    ("CUDA of the driver", "cuda", "13.0", "12.8", "13.0"),
    ("kernel", "kernel", "6.17.0", "6.8.0", "6.17.0"),
    ("container", "container", None, "docker", None),
]


def test_each_field_of_the_table_is_tried_here() -> None:
    of_machine = [
        field for field in fingerprints.FIELDS if field.part is fingerprints.Part.MACHINE and field.name != "*"
    ]
    for meaning, rows in ((fingerprints.Meaning.MATCH, FIELDS), (fingerprints.Meaning.TOLD, TOLD)):
        assert [(f.name, f.where) for f in of_machine if f.meaning is meaning] == [(n, w) for n, w, *_ in rows]


@pytest.mark.parametrize(("name", "where", "value", "before", "after"), FIELDS)
def test_what_must_match_is_a_difference_with_both_values(
    machine: dict[str, Any], name: str, where: str, value: Any, before: Any, after: Any
) -> None:
    other = changed(machine, where, value)

    assert differences(observed(machine), observed(other)) == (Difference(name, before or machine[where], after),)
    assert list(other_versions(observed(machine), observed(other))) == []
    assert differences(observed(other), observed(other)) == ()


@pytest.mark.parametrize(("name", "where", "value", "before", "after"), TOLD)
def test_what_may_differ_is_told(
    machine: dict[str, Any], name: str, where: str, value: Any, before: Any, after: Any
) -> None:
    other = changed(machine, where, value)

    assert differences(observed(machine), observed(other)) == ()
    assert list(other_versions(observed(machine), observed(other))) == [Difference(name, before, after)]


def test_what_is_only_recorded_makes_no_difference(machine: dict[str, Any]) -> None:
    ours = observed(
        {**machine, "problem": "GPU 7: GPU is lost"}, settings={**SETTINGS, "env CUDA_VISIBLE_DEVICES": "0,1"}
    )

    assert differences(ours, observed(machine)) == ()
    assert list(other_versions(ours, observed(machine))) == []


def test_a_variable_of_the_environment_is_a_difference_with_both_values(machine: dict[str, Any]) -> None:
    ours = observed(machine, settings={**SETTINGS, "env NCCL_ALGO": "Ring", "env NCCL_DEBUG": "INFO"})
    theirs = observed(machine, settings={**SETTINGS, "env NCCL_ALGO": "Tree"})

    assert differences(ours, theirs) == (
        Difference("env NCCL_ALGO", "Ring", "Tree"), Difference("env NCCL_DEBUG", "INFO", None),
    )  # fmt: skip


def test_a_run_of_format_1_is_compared_and_what_it_could_not_tell_is_told(machine: dict[str, Any]) -> None:
    old = observed(of_format_1(machine))
    new = observed(machine, settings={**SETTINGS, "env NCCL_ALGO": "Ring"})

    assert differences(old, new) == differences(new, old) == ()
    (told,) = other_versions(old, new)
    (back,) = other_versions(new, old)
    assert (told.field, told.after) == ("fields not told", None)
    assert {"GPU power limit", "GPU ECC", "GPU connections", "env NCCL_ALGO"} <= set(told.before.split(", "))
    assert (back.before, back.after) == (told.after, told.before)


@pytest.mark.parametrize(("field", "where", "value"), [("driver", "driver", "580.1"), ("GPU memory", "gpus.memory", 1)])
def test_what_a_run_of_format_1_does_tell_must_match(
    machine: dict[str, Any], field: str, where: str, value: Any
) -> None:
    old = observed(of_format_1(changed(machine, where, value)))

    assert [each.field for each in differences(old, observed(machine))] == [field]


@pytest.mark.parametrize("name", ["max_batch_size", "checkpoint", "dataset"])
def test_a_setting_that_a_run_of_format_1_could_have_told_is_a_difference(machine: dict[str, Any], name: str) -> None:
    fewer = {setting: value for setting, value in SETTINGS.items() if setting != name}
    old = observed(of_format_1(machine), settings=fewer)

    assert differences(old, observed(machine)) == (Difference(name, None, SETTINGS[name]),)


def test_what_a_run_of_format_2_does_not_tell_is_a_difference(machine: dict[str, Any]) -> None:
    silent = changed(changed(machine, "gpus.board.ecc", None), "topology", {})

    found = {each.field: each.after for each in differences(observed(machine), observed(silent))}

    assert found == {"GPU ECC": "1 x not told, 1 x on", "GPU connections": None}


def test_settings_that_accuracy_did_not_tell_before_forbid_no_comparison(machine: dict[str, Any]) -> None:
    versions = {"lm_eval": "0.4.13"}
    old = observed(of_format_1(machine), versions=versions, settings={"checkpoint": "ab12", "seed": 1})
    new = observed(of_format_1(machine), versions=versions, settings={**SETTINGS, "seed": 1})

    assert differences(old, new) == ()
    assert list(other_versions(old, new)) == [Difference("fields not told", "dataset, max_batch_size", None)]
    assert differences(old, replace(new, settings={**new.settings, "seed": 2})) == (Difference("seed", 1, 2),)
    assert differences(replace(old, machine=machine), replace(new, machine=machine)) != ()


def test_a_torch_engine_did_not_tell_its_requests_before(machine: dict[str, Any]) -> None:
    case = CASE.replace("tensorrt-llm", "torch")
    old = observed(of_format_1(machine), case=case, settings={"max_batch_size": 64, "checkpoint": "ab12"})

    assert differences(old, observed(machine, case=case)) == ()


def test_predictions_do_not_look_at_machines(machine: dict[str, Any]) -> None:
    ours, theirs = (
        observed(each, source="predicted") for each in (machine, changed(machine, "driver", "580.1"))
    )  # fmt: skip

    assert differences(ours, theirs) == ()
    assert list(other_versions(ours, theirs)) == []


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Machines that were looked at field by field."""
    looked: list[object] = []

    def told(machine: dict[str, Any]) -> dict[str, Any]:
        looked.append(machine)
        return fingerprints.told(machine)

    monkeypatch.setattr(likeness, "_told", likeness._Kept(told))
    monkeypatch.setattr(likeness, "_of_machines", likeness._Kept(likeness._compared))
    return looked


def test_machines_that_many_results_share_are_looked_at_once(machine: dict[str, Any], looks: list[object]) -> None:
    other = changed(machine, "driver", "580.1")
    ours = [observed(machine, value=float(n)) for n in range(500)]
    theirs = [observed(other, value=float(n)) for n in range(500)]

    for before, after in zip(ours, theirs, strict=True):
        assert [each.field for each in differences(before, after)] == ["driver"]
        assert list(other_versions(before, after)) == []

    assert len(looks) == 2


def test_a_machine_that_is_gone_is_not_taken_for_one_that_came_in_its_place(looks: list[object]) -> None:
    """Python gives the identity of what is gone to what comes next."""
    for driver in map(str, range(50)):
        found = differences(observed({"driver": driver}), observed({"driver": "x"}))
        assert found == (Difference("driver", driver, "x"),)


def test_what_is_kept_of_machines_does_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likeness._Kept, "MOST", 10)
    kept: likeness._Kept[dict[str, Any]] = likeness._Kept(dict)

    for number in range(35):
        assert kept({"number": number}) == {"number": number}
        assert len(kept._known) <= 10
