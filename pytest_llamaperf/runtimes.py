"""Environments: names of others read, the release that a new one is compared with; what is installed in this one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from pytest_llamaperf.cases import Runtime
from pytest_llamaperf.documents import Section, read_document
from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.wording import printable, shown_path

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LONGEST = 200  # characters of a name that a message shows


def runtime_named(text: str, folder: Path) -> Runtime:
    """From an environment's folder, an interpreter, or a YAML file with `python` and, as wanted, `name` and `environment`.

    Paths are relative to `folder`, those in a file to the file. Raises UsageError, DocumentError for a file that is wrong.
    """
    path = _within(folder, text)
    if path.suffix in (".yaml", ".yml"):
        return _read(path)
    return Runtime(text, _interpreter(path, text))


def _read(path: Path) -> Runtime:
    document = read_document(path)
    document.only("name", "python", "environment")
    named, name = document.text("python"), document.text("name", path.stem)
    if not name.isprintable():
        raise document.error("'name' must be one line of printable text", key="name")
    section = document.section("environment") if "environment" in document else None
    variables = list(_variables(section)) if section is not None else []
    return Runtime(
        name,
        _interpreter(_within(path.parent, named), named),
        tuple(variables),
    )


def _variables(section: Section) -> Iterator[tuple[str, str]]:
    for name in section:
        if not _NAME.fullmatch(name):
            raise section.error(f"{name!r} is no name of a variable", key=name)
        value = section.text(name)
        if "\0" in value:  # which ends a variable, for the operating system
            raise section.error(f"the value of {name} has a NUL in it", key=name)
        yield name, value


def _within(folder: Path, text: str) -> Path:
    """Raises UsageError for the home of somebody who has none."""
    try:
        return folder / Path(text).expanduser()
    except RuntimeError:
        raise UsageError(f"{text}: there is no such home folder") from None


def _interpreter(path: Path, named: str) -> Path:
    """Not resolved: a link in an environment is what makes it one."""
    try:
        candidate = path / "bin" / "python" if path.is_dir() else path
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate.absolute()
        problem = f"{shown_path(candidate)} is not there, or cannot be run"
    except OSError as unreadable:  # a name that is too long, a link in a circle
        problem = str(unreadable.strerror)
    raise UsageError(
        f"{printable(named[:_LONGEST])}: is no environment and no interpreter: {problem}; name the folder of a virtual "
        "environment, a python in one, or a YAML file that names it"
    )


def installed_versions() -> dict[str, str]:
    """Package -> its version here, of those that make a difference; read without importing any of them."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("pytest-llamaperf", "pytest", "tensorrt-llm", "aiconfigurator-core", "torch", "nvidia-modelopt"):
        try:
            found[package.replace("-", "_")] = version(package)
        except PackageNotFoundError:
            continue
    return found
