"""Processor, kernel and container, from files as Linux and container engines leave them."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from pytest_llamaperf import system

CGROUPS = {
    "kubepods": "11:memory:/kubepods/burstable/pod1f/9c\n",
    "docker": "12:pids:/docker/4e5f\n",
    "libpod": "0::/machine.slice/libpod-4e5f.scope/container\n",
}


def put(root: Path, name: str, text: str = "") -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_a_machine_without_a_container_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(system.IMAGE, "somebody's leftover")
    put(tmp_path, "proc/1/cgroup", "0::/init.scope\n")

    assert system.container(tmp_path) is None


@pytest.mark.parametrize(("name", "kind"), [("run/.containerenv", "podman"), (".dockerenv", "docker")])
def test_container_engines_leave_files(tmp_path: Path, name: str, kind: str) -> None:
    put(tmp_path, name)

    assert system.container(tmp_path) == kind


@pytest.mark.parametrize("kind", sorted(CGROUPS))
def test_the_first_process_is_in_a_control_group_of_its_container(tmp_path: Path, kind: str) -> None:
    put(tmp_path, "proc/1/cgroup", CGROUPS[kind])

    assert system.container(tmp_path) == kind


def test_the_image_is_told_where_its_variable_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, ".dockerenv")
    monkeypatch.setenv("IMAGE", "another variable")
    assert system.container(tmp_path) == "docker"

    monkeypatch.setenv(system.IMAGE, "nvcr.io/nvidia/tensorrt-llm/release:1.2.1")
    assert system.container(tmp_path) == "docker, nvcr.io/nvidia/tensorrt-llm/release:1.2.1"

    monkeypatch.setenv(system.IMAGE, "https://me:planted@registry.example/image")
    assert system.container(tmp_path) == "docker"


def test_the_kernel_is_told_by_its_release() -> None:
    assert system.kernel() == platform.release()


def test_a_processor_is_told_where_there_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "_text", lambda path: "")

    assert system.processor() == platform.machine()
