"""The table of what must match, as comparisons read it and as its page shows it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nvml_driver import H200, Driver

from pytest_llamaperf.environment import NAMES, PREFIXES
from pytest_llamaperf.fingerprints import FIELDS, Meaning, Part, field_of, kind_of, matching, named, told
from pytest_llamaperf.hardware import find_machine

PAGE = (Path(__file__).parents[1] / "docs" / "fingerprint.md").read_text(encoding="utf-8")
OLD = {
    "gpus": [{"name": "h200", "product": "NVIDIA H200", "memory": 150_754_820_096, "uuid": f"GPU-{n}"} for n in (1, 0)],
    "driver": "570.133.20", "processor": "a processor", "problem": None, "cores": 96,
}  # fmt: skip


@pytest.mark.parametrize("part", list(Part))
def test_the_page_shows_the_table(part: Part) -> None:
    section = PAGE.split(f"## {part.value}\n")[1].split("\n## ")[0].split("\n### ")[0]
    shown = re.findall(r"^\| (.+?) \| (.+?) \| `(.+?)` \| (\d) \| (.+) \|$", section.replace("\\*", "*"), re.MULTILINE)

    fields = [field for field in FIELDS if field.part is part]
    assert shown == [(each.name, each.meaning.value, each.where, str(each.since), each.about) for each in fields]


def test_the_page_names_the_variables_that_are_kept() -> None:
    section = PAGE.split("### Variables of the environment")[1].split("\n## ")[0]
    prefixes, names = re.findall(r"^- (.+)$", section, re.MULTILINE)

    assert set(re.findall(r"`(\w+)\*`", prefixes)) == set(PREFIXES)
    assert set(re.findall(r"`(\w+)`", names)) == NAMES


@pytest.mark.parametrize("part", list(Part))
def test_a_name_stands_once_in_its_part(part: Part) -> None:
    names = [field.name for field in FIELDS if field.part is part]

    assert len(names) == len(set(names))


def test_everything_that_a_machine_tells_stands_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    Driver(monkeypatch, H200, H200)
    machine = json.loads(json.dumps(find_machine().to_dict()))

    assert told(machine).keys() <= {field.name for field in FIELDS if field.part is Part.MACHINE}
    kept = {f"gpus.board.{name}" for name in machine["gpus"][0]["board"]} | (machine.keys() - {"gpus"})
    assert kept <= {field.where for field in FIELDS}


def test_a_machine_is_told_by_the_names_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, H200, H200, H200)
    driver.answers["nvmlDeviceGetEnforcedPowerLimit"].update({1: 500_500, 2: None})
    driver.answers["nvmlDeviceGetMigMode"] = dict.fromkeys(range(3))

    found = told(find_machine().to_dict())

    assert found["GPUs"] == "3 x NVIDIA H200"
    assert found["GPU boards"] == "GPU-0, GPU-1, GPU-2"
    assert found["GPU power limit"] == "1 x 500.5 W, 1 x 700 W, 1 x not told"
    assert found["GPU memory"] == "150754820096 B"
    assert found["GPU clock at most"] == "1980 MHz"
    assert found["GPU ECC"] == "on"
    assert found["GPU connections"] == "3 x NVLink"
    assert "GPU MIG" not in found


def test_a_machine_of_an_earlier_version_is_told_as_far_as_it_goes() -> None:
    assert told(OLD) == {
        "GPUs": "2 x NVIDIA H200", "GPU boards": "GPU-0, GPU-1", "GPU memory": "150754820096 B",
        "driver": "570.133.20", "processor": "a processor", "cores": 96,
    }  # fmt: skip


def test_what_the_table_does_not_know_must_match() -> None:
    later = {**OLD, "cooling": "water", "gpus": [{"product": "X", "uuid": "1", "board": {"vbios": "96.00"}}]}

    assert matching(later).items() >= {"cooling": "water", "GPU vbios": "96.00"}.items()
    assert field_of(Part.MACHINE, "GPU vbios").meaning is Meaning.MATCH
    assert field_of(Part.SETTINGS, "kv_cache_config.dtype").meaning is Meaning.MATCH
    assert field_of(Part.VERSIONS, "flashinfer").meaning is Meaning.TOLD


def test_variables_must_match_but_for_the_one_that_the_boards_tell() -> None:
    assert field_of(Part.SETTINGS, "env NCCL_ALGO").meaning is Meaning.MATCH
    assert field_of(Part.SETTINGS, "env NCCL_ALGO").since == 2
    assert field_of(Part.SETTINGS, "env CUDA_VISIBLE_DEVICES").meaning is Meaning.RECORDED
    assert named(Part.VERSIONS, Meaning.MATCH) == ("aiconfigurator-core", "lm_eval")


def test_what_does_not_decide_speed_need_not_be_the_same_where_it_is_measured_on_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Driver(monkeypatch, H200)
    found = matching(find_machine().to_dict())

    assert {"GPU boards", "driver", "processor", "GPU power limit", "cores"} <= found.keys()
    assert not found.keys() & {"kernel", "container", "problem", "format", "GPU persistence"}


@pytest.mark.parametrize(
    ("answers", "told_as"),
    [
        ({}, "a processor, 1 x NVIDIA H200"),
        ({"nvmlDeviceGetEnforcedPowerLimit": 500_000}, "a processor, 1 x NVIDIA H200, power limit 500 W instead of 700 W"),
        ({"nvmlDeviceGetMigMode": [1, 1]}, "a processor, 1 x NVIDIA H200, MIG on"),
        ({"nvmlDeviceGetEccMode": [0, 0]}, "a processor, 1 x NVIDIA H200, ECC off"),
        ({"nvmlDeviceGetEccMode": None, "nvmlDeviceGetMigMode": None}, "a processor, 1 x NVIDIA H200"),
        ({"nvmlDeviceGetPowerManagementDefaultLimit": None}, "a processor, 1 x NVIDIA H200"),
    ],
)  # fmt: skip
def test_the_kind_of_a_machine_says_what_is_unusual(
    monkeypatch: pytest.MonkeyPatch, answers: dict[str, Any], told_as: str
) -> None:
    driver = Driver(monkeypatch, H200)
    for name, answer in answers.items():
        driver.answers[name][0] = answer

    assert kind_of({**find_machine().to_dict(), "processor": "a processor"}) == told_as


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda each: st.lists(each) | st.dictionaries(st.text(), each),
)
GPU = st.fixed_dictionaries({}, optional={"product": PLAIN, "uuid": PLAIN, "memory": PLAIN, "board": PLAIN}) | PLAIN


@given(
    st.dictionaries(st.sampled_from(["driver", "topology", "format", "processor", "x"]), PLAIN), st.lists(GPU) | PLAIN
)
def test_a_machine_of_any_shape_is_told(machine: dict[str, Any], gpus: Any) -> None:
    """Files may have been edited, or be of other tools."""
    found = told({**machine, "gpus": gpus})

    assert found == told({**machine, "gpus": gpus})
    assert all(isinstance(name, str) for name in found)
    assert isinstance(kind_of({**machine, "gpus": gpus}), str)
