"""Other environments to start engines in: how they are named, and what starts there."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pytest_llamaperf.cases import Runtime
from pytest_llamaperf.catalog import case_of_key
from pytest_llamaperf.engines import EngineSpec
from pytest_llamaperf.errors import DocumentError, UsageError
from pytest_llamaperf.runtimes import runtime_named


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A folder as `python -m venv` makes one: its interpreter is a link."""
    folder = tmp_path / "release-1.1"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    return folder


def test_an_environment_is_named_by_its_folder_or_its_interpreter(environment: Path, tmp_path: Path) -> None:
    by_folder, by_interpreter = (runtime_named(name, tmp_path) for name in ("release-1.1", "release-1.1/bin/python"))

    assert by_folder == Runtime("release-1.1", environment / "bin" / "python")
    assert by_interpreter.python == by_folder.python  # the link itself: where it points to is another environment
    assert runtime_named(str(environment), Path("/nowhere")).python == by_folder.python


def test_a_file_names_an_interpreter_beside_it_and_variables(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text("python: release-1.1\nenvironment:\n  TLLM_LOG_LEVEL: info\n")

    found = runtime_named("old.yaml", tmp_path)

    assert found == Runtime("old", environment / "bin" / "python", (("TLLM_LOG_LEVEL", "info"),))
    assert found.variables()["TLLM_LOG_LEVEL"] == "info"
    assert found.variables()["PATH"].split(os.pathsep)[0] == str(environment / "bin")


@pytest.mark.parametrize("name", ["nothing", "release-1.1/bin", "release-1.1/notes.txt"])
def test_what_is_no_environment_is_told_with_what_was_looked_for(environment: Path, tmp_path: Path, name: str) -> None:
    (environment / "notes.txt").write_text("")

    with pytest.raises(UsageError, match=f"{name}: is no environment and no interpreter: .* name the folder of"):
        runtime_named(name, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: old\n", "old.yaml:1: .*python"),
        ("python: release-1.1\npyhton: x\n", "old.yaml:2: .*pyhton"),
        ("python: release-1.1\nenvironment:\n  2X: y\n", "old.yaml:3: .*'2X' is no name of a variable"),
        ("python: [a]\n", "old.yaml:1: "),
    ],
)
def test_a_wrong_file_is_told_by_its_line(environment: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "old.yaml").write_text(text)

    with pytest.raises(DocumentError, match=message):
        runtime_named("old.yaml", tmp_path)


def test_a_case_under_another_runtime_is_another_case_with_the_same_id(environment: Path, tmp_path: Path) -> None:
    case = case_of_key("cpu", "torch/smollm2-135m/bf16/tp1/min-latency-16-8")
    other = case.under(runtime_named("release-1.1", tmp_path))

    assert (other.id, other == case, other.under(None) == case) == (case.id, False, True)
    assert str(other) == f"{case.id} under release-1.1"
    assert EngineSpec.of(other) != EngineSpec.of(case)
    assert str(EngineSpec.of(other)) == "cpu/torch/smollm2-135m/bf16/tp1 under release-1.1"
