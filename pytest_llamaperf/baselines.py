"""Promises: what was published or measured before, in reviewed YAML files that judging never writes.

`baselines/<hardware>/<model>.yaml`:

    schema: 1
    references:                       # long sources, named once
      perf-overview-1.0: NVIDIA/TensorRT-LLM docs/source/performance/perf-overview.md@00f37686
    promises:
      tensorrt-llm/llama-3.1-8b/modelopt-fp8/tp1/max-throughput-128-128:
        output_throughput: {value: 27911.0, unit: tok/s, tolerance: 0.10, source: published, reference: perf-overview-1.0}
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from pytest_llamaperf.cases import ENGINES, Case, Layout
from pytest_llamaperf.catalog import case_of_key, check_weights, gpus, models, recipes
from pytest_llamaperf.documents import Section, document_of, read_text
from pytest_llamaperf.errors import DocumentError, UsageError, nearest
from pytest_llamaperf.measurements import Source, Summary
from pytest_llamaperf.metrics import Better, Metric, metric_named
from pytest_llamaperf.wording import shown_path

# 1: references and promises; `reason` in a record is optional.
SCHEMA = 1

# The folder of promises for one machine each.
LOCAL = "local"

_RECORDED = ("date", "version", "restarts", "commit")
# Why a measured value was accepted as a promise.
REASON = "reason"
# What is filled in by hand must not be left as the hint wrote it.
_RECORD_FORMS = (
    ("date", r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])", "2026-11-20"),
    ("version", r"[^<>\s]+", "1.2.1"),
    ("commit", r"[0-9a-f]{7,40}|none", "3f9c1e7"),
)


@dataclass(frozen=True)
class Baseline:
    """One promise. `tolerance` is relative, on the worse side; `path` and `line` are where it stands.

    reference is the publication of a published value; recorded holds date, version, restarts and commit of a
    measured one, and the reason where it was accepted.
    """

    case: Case
    metric: Metric
    value: float
    tolerance: float
    source: Source
    reference: str
    path: Path
    line: int
    recorded: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    @property
    def limit(self) -> float:
        """The worst value that still keeps the promise, in the metric's unit."""
        worse = -1 if self.metric.better is Better.HIGHER else 1
        return self.value * (1 + worse * self.tolerance)

    @property
    def place(self) -> str:
        return f"{shown_path(self.path)}:{self.line}"

    def to_dict(self) -> dict[str, object]:
        """The `baseline` object of run.json."""
        return {
            "value": self.value,
            "tolerance": self.tolerance,
            "source": self.source.value,
            "reference": self.reference,
            "recorded": dict(self.recorded),
            "file": shown_path(self.path),
            "line": self.line,
        }


class BaselineBook:
    """The promises for one GPU, or for one CPU machine."""

    def __init__(
        self, folder: Path, hardware: str, baselines: Iterable[Baseline], local: Iterable[Baseline] = ()
    ) -> None:
        """`local` are promises for this machine alone, which count where nobody reviewed any."""
        self.folder, self.hardware = folder, hardware
        self._entries: dict[tuple[str, Metric], Baseline] = {}
        for entry in baselines:
            key = (entry.case.key, entry.metric)
            if key in self._entries:
                first = self._entries[key].place
                raise DocumentError(
                    entry.path, entry.line, f"promised already in {first}; remove one", where=_where(*key)
                )
            self._entries[key] = entry
        self.local: tuple[Baseline, ...] = tuple(local)
        for entry in self.local:
            self._entries.setdefault((entry.case.key, entry.metric), entry)

    def __iter__(self) -> Iterator[Baseline]:
        return iter(self._entries.values())

    def find(self, case: Case, metric: Metric) -> Baseline | None:
        """The promise for this case, or None.

        What NVIDIA published for TensorRT-LLM holds whichever of the two engines measures it: the LLM API and
        trtllm-bench drive the same runtime. A measured promise holds for its own engine only.
        """
        own = self._entries.get((case.key, metric))
        if own or case.engine != "trtllm-bench":
            return own
        shared = self._entries.get((case.key.replace("trtllm-bench/", "tensorrt-llm/", 1), metric))
        return shared if shared and shared.source is Source.PUBLISHED else None

    def has(self, case: Case) -> bool:
        """Whether anything at all is promised for this case."""
        return any(key == case.key for key, _ in self._entries)

    def path_for(self, case: Case) -> Path:
        """The file in which a promise for this case belongs."""
        return self.folder / self.hardware / f"{case.model}.yaml"


def read_baselines(folder: Path, hardware: str, machine: str | None = None) -> BaselineBook:
    """All promises of `folder/<hardware>/*.yaml`, none if there is no such folder, and those of `local_path`.

    Raises DocumentError naming file, line, case and metric for anything that could be misread.
    """
    paths = sorted((folder / hardware).glob("*.yaml"))
    entries = [entry for path in paths for entry in read_promises(path, hardware)]
    own = local_path(folder, hardware, machine) if machine else None
    return BaselineBook(folder, hardware, entries, read_promises(own, hardware) if own and own.exists() else ())


def local_path(folder: Path, hardware: str, machine: str) -> Path:
    """Where promises for one machine stand: measured there, for it alone, and in nobody's git."""
    return folder / LOCAL / f"{hardware}-{machine}.yaml"


def can_be_promised(case: Case) -> bool:
    """Whether a key of a baseline file names the case: a folder's name says nothing about where it is."""
    return case.model.random or case.model.name in models()


def yaml_to_add(book: BaselineBook, case: Case, summary: Summary) -> str:
    """What to write where, so that a measured value becomes a promise: no more than is missing, ready for review."""
    path = book.path_for(case)
    unit = summary.metric.unit if summary.metric.unit != "1" else '"1"'
    metric = (
        f"    {summary.metric}: {{value: {decimal(summary.value)}, unit: {unit}, tolerance: 0.05, source: measured,\n"
        '      recorded: {date: "<today>", version: "<engine version>", '
        f'restarts: {len(summary.values)}, commit: "<commit>"}}}}'
    )
    if not can_be_promised(case):
        return f"to promise it, first add {case.model} to the catalog of models, then ask again"
    if book.has(case):
        return f"to promise it, add under `{case.key}:` in {shown_path(path)}:\n{metric}"
    if path.exists():
        return f"to promise it, add under `promises:` in {shown_path(path)}:\n  {case.key}:\n{metric}"
    return f"to promise it, write {shown_path(path)}:\nschema: {SCHEMA}\npromises:\n  {case.key}:\n{metric}"


def read_promises(path: Path, hardware: str) -> list[Baseline]:
    """Of one file. Raises DocumentError."""
    return promises_of(path, hardware, read_text(path))


def promises_of(path: Path, hardware: str, text: str) -> list[Baseline]:
    """Of what stands, or is going to stand, in a file. Raises DocumentError."""
    return list(_promises(document_of(path, text), path, hardware))


def _promises(document: Section, path: Path, hardware: str) -> Iterator[Baseline]:
    document.only("schema", "references", "promises")
    document.expect_schema(SCHEMA)
    references = document.section("references") if "references" in document else None
    promises = document.section("promises")
    used: set[str] = set()
    for key, promise in promises.sections():
        try:
            case = case_of_key(hardware, key)
            check_weights(case)
        except UsageError as problem:
            raise DocumentError(path, promises.line_of(key), str(problem), where=key) from None
        if case.model.name != path.stem and path.parent.name != LOCAL:
            home = path.with_stem(case.model.name).name
            raise DocumentError(path, promises.line_of(key), f"is about {case.model}; move it to {home}", where=key)
        for name, entry in promise.sections():
            yield _baseline(case, name, promise, entry, references, used)
    if references:
        for name in references:
            if name not in used:
                raise references.error(f"reference {name!r} is not used by any promise; remove it", key=name)


def _baseline(
    case: Case, name: str, promise: Section, entry: Section, references: Section | None, used: set[str]
) -> Baseline:
    entry.where = _where(case.key, name)
    entry.only("value", "unit", "tolerance", "source", "reference", "recorded", "note")
    try:
        metric = metric_named(name)
        check_ratio(name)
    except UsageError as problem:
        raise promise.error(str(problem), key=name) from None
    unit = entry.text("unit")
    if unit != metric.unit:
        raise entry.error(
            f"{name} is in {metric.unit}, not {unit!r}; convert the value and write unit: {metric.unit}", key="unit"
        )
    value = entry.number("value")
    if value <= 0:
        raise entry.error(f"a promise is above zero, found {value:g}", key="value")
    tolerance = entry.number("tolerance", least=0)
    if tolerance >= 1:
        raise entry.error(f"tolerance is relative (0.05 for 5 %) and below 1, found {tolerance:g}", key="tolerance")
    source = entry.text("source")
    if source not in (Source.MEASURED, Source.PUBLISHED):
        raise entry.error(
            f"source is {source!r}; a promise is measured or published, a prediction never becomes one", key="source"
        )
    if source != Source.MEASURED and entry.path.parent.name == LOCAL:
        raise entry.error(f"promises for one machine are measured there, this one is {source}", key="source")
    reference, recorded = _evidence(entry, Source(source), references, used)
    return Baseline(
        case, metric, value, tolerance, Source(source), reference, entry.path, promise.line_of(name),
        recorded=recorded, note=entry.text("note", default=" ").strip(),
    )  # fmt: skip


def check_ratio(name: str) -> None:
    """What a ratio compares with is the name of a part of a case; a misspelt one would never be found.

    Raises UsageError.
    """
    _, versus, other = name.partition(" vs ")
    known = (*recipes(), *models(), *gpus(), *ENGINES)
    if versus and other not in known:
        try:
            Layout.parse(other)
        except UsageError:
            raise UsageError(f"{other!r} after vs is no part of a case; {nearest(other, known)}, or a layout") from None


def _evidence(
    entry: Section, source: Source, references: Section | None, used: set[str]
) -> tuple[str, Mapping[str, str]]:
    """(reference, recorded): where a published value was published, or how a measured one was measured."""
    if source is Source.PUBLISHED:
        if "recorded" in entry:
            raise entry.error("a published value has a reference, not a record", key="recorded")
        name = entry.text("reference")
        if references is None or name not in references:
            known = tuple(references or ())
            raise entry.error(f"reference {name!r} is not under `references`; {nearest(name, known)}", key="reference")
        used.add(name)
        return references.text(name), {}
    if "reference" in entry:
        raise entry.error("a measured value has a record (recorded: ...), not a reference", key="reference")
    record = entry.section("recorded", where=f"{entry.where}, recorded")
    record.only(*_RECORDED, REASON)
    for name, form, example in _RECORD_FORMS:
        if not re.fullmatch(form, record.text(name)):
            raise record.error(f"{name} is written like {example}, not {record.text(name)!r}", key=name)
    restarts = str(record.whole("restarts", least=2))  # one restart is never conclusive
    told = {name: restarts if name == "restarts" else record.text(name) for name in _RECORDED}
    return "", {**told, REASON: record.text(REASON)} if REASON in record else told


def decimal(value: float) -> str:
    """Six significant digits without an exponent, which YAML 1.1 would read as text."""
    return f"{Decimal(f'{value:.6g}'):f}"


def _where(key: str, metric: str | Metric) -> str:
    return f"{key}, {metric}"
