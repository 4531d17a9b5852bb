"""Operator times known by the version of TensorRT-LLM they are of, and the wheels that have them."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from pathlib import Path

from pytest_llamaperf.documents import Section, read_document
from pytest_llamaperf.errors import UsageError, nearest

_FILE = Path(__file__).parent / "tables.yaml"
FORMATS = ("csv", "parquet")


@dataclass(frozen=True)
class Wheel:
    """A file on a package index: `name` is its project and version, `bytes` its size."""

    name: str
    format: str
    bytes: int
    sha256: str

    @property
    def requirement(self) -> str:
        """As pip wants it."""
        return self.name.replace(" ", "==")

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class TimedVersion:
    """A version of TensorRT-LLM whose operators were timed, on `gpus` of the catalog.

    `wheel` is None where the installed package has its tables; `quantization` is the version whose times of
    quantization stand in, empty where it has its own.
    """

    name: str
    gpus: tuple[str, ...]
    wheel: Wheel | None
    quantization: str


@functools.cache
def timed_versions() -> dict[str, TimedVersion]:
    """By name, oldest first."""
    document = read_document(_FILE)
    document.only("versions", "wheels")
    wheels = {name: _wheel(name, entry) for name, entry in document.section("wheels").sections()}
    return {name: _version(name, entry, wheels) for name, entry in document.section("versions").sections()}


def timed_version(name: str) -> TimedVersion:
    """Raises UsageError with the nearest name for an unknown one."""
    if name not in timed_versions():
        raise UsageError(f"unknown operator tables {name!r}; {nearest(name, timed_versions())}")
    return timed_versions()[name]


def _wheel(name: str, entry: Section) -> Wheel:
    entry.only(*(field.name for field in fields(Wheel)))
    if entry.text("format") not in FORMATS:
        raise entry.error(f"unknown format; {nearest(entry.text('format'), FORMATS)}", key="format")
    return Wheel(name, entry.text("format"), entry.whole("bytes", least=1), entry.text("sha256"))


def _version(name: str, entry: Section, wheels: dict[str, Wheel]) -> TimedVersion:
    entry.only(*(field.name for field in fields(TimedVersion)))
    if "wheel" in entry and entry.text("wheel") not in wheels:
        raise entry.error(f"unknown wheel; {nearest(entry.text('wheel'), wheels)}", key="wheel")
    return TimedVersion(
        name,
        gpus=tuple(entry.texts("gpus")),
        wheel=wheels[entry.text("wheel")] if "wheel" in entry else None,
        quantization=entry.text("quantization") if "quantization" in entry else "",
    )
