"""Losses that somebody answers for, for a while, in a reviewed YAML file: the build is released with them, and they say so.

`waivers.yaml`:

    schema: 1
    waivers:
      h200/tensorrt-llm/llama-3.1-8b/modelopt-fp8/tp1/max-throughput-128-128:
        output_throughput:
          outcome: regression
          loss: 0.08                 # at most, relative to what was promised
          reason: the fused kernel is off since 1.2, NVIDIA knows of it
          owner: inference@example.com
          expires: "2027-01-31"      # the last day it counts
          newest_version: "1.2.1"    # of TensorRT-LLM, that loses this

Only a regression that was measured can be waived: its size is known, so that somebody can accept it. An error, a prediction,
an inconclusive or a missing result could hide a loss of any size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from pytest_llamaperf.cases import CPU, ENGINES, Layout, Task, Workload
from pytest_llamaperf.catalog import gpus, recipe_named, workload_named
from pytest_llamaperf.catalog.tasks import FIXED, evaluations, task_named
from pytest_llamaperf.documents import Section, read_document
from pytest_llamaperf.errors import DocumentError, UsageError, nearest
from pytest_llamaperf.files import is_absent
from pytest_llamaperf.measurements import Source
from pytest_llamaperf.metrics import Better
from pytest_llamaperf.records import Result
from pytest_llamaperf.requirements import check_judged
from pytest_llamaperf.verdicts import Outcome
from pytest_llamaperf.wording import shown_path

# 1: waivers.
SCHEMA = 1

# Which of a result's versions a waiver is about, by the engine of the case.
_RUNTIME = {"tensorrt-llm": "tensorrt_llm", "trtllm-bench": "tensorrt_llm", "torch": "torch"}


@dataclass(frozen=True)
class Waiver:
    """One loss accepted. `case` is an id; `loss` at most, relative to the promise, on the worse side, interval included.

    It counts up to and including the day `expires` (UTC), and up to `newest_version` of what runs the case.
    """

    case: str
    metric: str
    loss: float
    reason: str
    owner: str
    expires: date
    newest_version: Version
    path: Path
    line: int

    @property
    def place(self) -> str:
        return f"{shown_path(self.path)}:{self.line}"

    def objection(self, result: Result, today: date) -> str | None:
        """Why it does not cover a result for its case and metric, or None where it does."""
        if expired := self.expired(today):
            return expired
        if result.outcome == Outcome.PASS:
            return "not used, for the promise was kept; remove it"
        if result.outcome != Outcome.REGRESSION:
            return f"found {result.outcome or 'no outcome'}, and only a regression can be waived: its size is known"
        if result.source != Source.MEASURED:
            return (
                f"found a regression that was {result.source or 'had somehow'}, and only a measured one can be waived"
            )
        return self._other_version(result) or self._larger(result)

    def expired(self, today: date) -> str | None:
        return f"expired on {self.expires}; {self.owner} renews or removes it" if today > self.expires else None

    def _other_version(self, result: Result) -> str | None:
        runtime = _RUNTIME[result.case["engine"]]
        found = result.fingerprint.get("versions", {}).get(runtime)
        try:
            running = Version(Version(str(found)).public)  # a local build of 1.2.1 is still 1.2.1
        except InvalidVersion:
            return f"is about {runtime} up to {self.newest_version}, and the result does not tell its version"
        if running > self.newest_version:
            return f"is about {runtime} up to {self.newest_version}, and {found} ran: look at it again, or remove it"
        return None

    def _larger(self, result: Result) -> str | None:
        lost = _loss(result)
        if lost is None:
            return "cannot tell how large the loss is: nothing was promised"
        if not lost <= self.loss:  # nor what is no number
            return f"accepts a loss of {self.loss:.1%}, and it may be {lost:.1%}"
        return None

    def to_dict(self) -> dict[str, Any]:
        """The `waiver` object of a result in run.json."""
        return {
            "loss": self.loss,
            "reason": self.reason,
            "owner": self.owner,
            "expires": self.expires.isoformat(),
            "newest_version": str(self.newest_version),
            "file": shown_path(self.path),
            "line": self.line,
        }


class Waivers:
    """The waivers of a run, as of a day."""

    def __init__(self, entries: Iterable[Waiver] = (), today: date = date.max) -> None:
        self._entries = {(entry.case, entry.metric): entry for entry in entries}
        self._today = today

    def __iter__(self) -> Iterator[Waiver]:
        return iter(self._entries.values())

    def about(self, hardware: str, engine: str) -> Waivers:
        """Those of a run's cases: what other runs may lose is not used by this one, and need not be."""
        return Waivers((e for e in self if e.case.startswith(f"{hardware}/{engine}/")), self._today)

    def covering(self, result: Result) -> Waiver | None:
        """The waiver under which a result is released, if there is one."""
        found = self._find(result)
        return found if found and found.objection(result, self._today) is None else None

    def objection(self, result: Result) -> str | None:
        """Why the waiver for a result's case and metric does not cover it; None also where there is no such waiver."""
        found = self._find(result)
        problem = found.objection(result, self._today) if found else None
        return f"waiver in {found.place}: {problem}" if found and problem else None

    def objections(self, results: Sequence[Result]) -> list[str]:
        """A sentence for each waiver that covers nothing."""
        told = []
        for waiver in self:
            found = [r for r in results if (r.case["id"], r.metric) == (waiver.case, waiver.metric)]
            problems = [
                waiver.objection(result, self._today)
                for result in sorted(found, key=lambda result: result.outcome != Outcome.REGRESSION)
            ] or [waiver.expired(self._today) or "not used, for no test judged it; judge it, or remove it"]
            if None not in problems:
                told.append(f"waiver in {waiver.place}: {waiver.case} {waiver.metric}: {problems[0]}")
        return told

    def _find(self, result: Result) -> Waiver | None:
        return self._entries.get((result.case["id"], str(result.metric)))


def waivers_for(hardware: str, engine: str, *, root: Path, given: Path | None, today: date) -> Waivers:
    """Those about cases of that hardware and engine, by the file `given` or `root`/waivers.yaml, where there is one.

    Raises DocumentError.
    """
    path = given or root / "waivers.yaml"
    if given is None and is_absent(path):
        return Waivers()
    return read_waivers(path, today).about(hardware, engine)


def read_waivers(path: Path, today: date) -> Waivers:
    """All waivers of a file.

    Raises DocumentError naming file, line, case and metric for anything that could be misread.
    """
    document = read_document(path)
    document.only("schema", "waivers")
    document.expect_schema(SCHEMA)
    entries: dict[tuple[str, str], Waiver] = {}
    cases = document.section("waivers")
    for name, metrics in cases.sections():
        try:
            case, work = _case_of(name)
        except UsageError as problem:
            raise DocumentError(path, cases.line_of(name), str(problem), where=name) from None
        for metric, entry in metrics.sections():
            entry.where = f"{case}, {metric}"
            if (case, metric) in entries:
                raise entry.error(f"waived already in {entries[case, metric].place}; remove one")
            try:
                check_judged(work, metric)
            except UsageError as problem:
                raise metrics.error(str(problem), key=metric) from None
            entries[case, metric] = _waiver(case, metric, entry, metrics.line_of(metric))
    return Waivers(entries.values(), today)


def _case_of(text: str) -> tuple[str, Workload | Task]:
    """The id as results write it. The model may be one that is a folder, which only a run can tell."""
    parts = text.split("/")
    if len(parts) != 6 or not text.isprintable():
        raise UsageError(f"a case is written hardware/engine/model/recipe/layout/work, not {text!r}")
    hardware, engine, model, recipe, layout, work = parts
    if hardware not in (CPU, *gpus()):
        raise UsageError(f"unknown hardware {hardware!r}; {nearest(hardware, (CPU, *gpus()))}")
    if engine not in ENGINES:
        raise UsageError(f"unknown engine {engine!r}; {nearest(engine, ENGINES)}")
    named = task_named(work) if work in (*FIXED, *evaluations()) else workload_named(work)
    return f"{hardware}/{engine}/{model}/{recipe_named(recipe)}/{Layout.parse(layout)}/{named}", named


def _waiver(case: str, metric: str, entry: Section, line: int) -> Waiver:
    entry.only("outcome", "loss", "reason", "owner", "expires", "newest_version")
    outcome = entry.text("outcome")
    if outcome != Outcome.REGRESSION:
        raise entry.error(
            f"outcome is {outcome!r}, and only a regression can be waived: whatever else is no pass has no known size",
            key="outcome",
        )
    loss = entry.number("loss")
    if not 0 < loss < 1:
        raise entry.error(f"loss is relative (0.05 for 5 %), above 0 and below 1, found {loss:g}", key="loss")
    return Waiver(
        case, metric, loss, _line(entry, "reason"), _line(entry, "owner"), _day(entry), _version(entry), entry.path, line
    )  # fmt: skip


def _line(entry: Section, key: str) -> str:
    """What is shown in terminals and reports."""
    text = entry.text(key).strip()
    if not text.isprintable():
        raise entry.error(f"{key!r} must be one line of printable text", key=key)
    return text


def _day(entry: Section) -> date:
    text = entry.text("expires")
    try:
        if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise entry.error(f"'expires' is the last day it counts, written like 2027-01-31, not {text!r}", key="expires")


def _version(entry: Section) -> Version:
    text = entry.text("newest_version")
    try:
        version = Version(text)
    except InvalidVersion:
        raise entry.error(f"'newest_version' is a version such as 1.2.1, not {text!r}", key="newest_version") from None
    if version.local is not None:
        raise entry.error(
            f"'newest_version' is a release, without its local part: {version.public}", key="newest_version"
        )
    return version


def _loss(result: Result) -> float | None:
    """By how much a result may have missed what was promised, relative to it; the bad end of the interval counts."""
    promised: Mapping[str, Any] = result.baseline or {}
    value = promised.get("value")
    if not isinstance(value, (int, float)) or value <= 0 or result.value is None:
        return None
    low = result.value if result.low is None else min(result.low, result.value)
    high = result.value if result.high is None else max(result.high, result.value)
    match result.better:
        case Better.HIGHER.value:
            return 1 - low / value
        case Better.LOWER.value:
            return high / value - 1
        case _:  # a target with two sides
            return max(1 - low / value, high / value - 1)
