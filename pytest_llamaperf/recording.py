"""Recording: what was measured here becomes promises for this machine, `baselines/local/<hardware>-<machine>.yaml`.

Only values that nobody promised in git; what an earlier recording says of other cases stays.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pytest_llamaperf.baselines import LOCAL, REASON, SCHEMA, BaselineBook, can_be_promised, decimal, local_path
from pytest_llamaperf.cases import CPU
from pytest_llamaperf.files import write_atomically
from pytest_llamaperf.hardware import Machine
from pytest_llamaperf.measurements import Source, Summary
from pytest_llamaperf.metrics import Metric
from pytest_llamaperf.verdicts import Verdict

# A later mean of as few restarts comes out worse than this many standard deviations of a restart, and its interval
# with it, once in a hundred times (three restarts: 1.7 for its own interval, 2 for the difference of two means).
SPREADS = 4.0

# The least tolerance worth promising. Shared CPUs drift by a quarter within hours; ratios of what was measured in turn,
# and GPUs, do not.
LEAST = 0.05
LEAST_ON_CPU = 0.25
LEAST_RATIO_ON_CPU = 0.10


def record(book: BaselineBook, verdicts: Iterable[Verdict], machine: Machine) -> tuple[Path, int]:
    """(the file, how many promises of this run it now holds). Raises OSError where it cannot be written.

    Without any promise to write it stays as it is.
    """
    path = local_path(book.folder, book.hardware, machine.slug)
    wanted = {(v.case.key, v.summary.metric): v for v in verdicts if _recordable(v)}
    if not wanted:
        return path, 0
    spreads = pooled_spreads([verdict.summary for verdict in wanted.values()])
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    commit = commit_of(book.folder)
    entries: dict[str, dict[str, str]] = defaultdict(dict)
    for old in book.local:
        entries[old.case.key][str(old.metric)] = promise_text(
            old.metric, old.value, old.tolerance, old.recorded, old.note
        )
    for (key, metric), verdict in wanted.items():
        recorded = {
            "date": today,
            "version": engine_version(verdict.case.engine, verdict.fingerprint.versions),
            "restarts": str(len(verdict.summary.values)),
            "commit": commit,
        }
        tolerance = tolerance_of(verdict.summary, spreads[metric], on_cpu=book.hardware == CPU)
        entries[key][str(metric)] = promise_text(metric, verdict.summary.value, tolerance, recorded)
    write_atomically(path, _document(machine, entries))
    return path, len(wanted)


def _recordable(verdict: Verdict) -> bool:
    """Measured more than once, something that a promise can be about, and not promised in git."""
    reviewed = verdict.baseline is not None and verdict.baseline.path.parent.name != LOCAL
    summary = verdict.summary
    measured = summary.source is Source.MEASURED and len(summary.values) > 1 and summary.value > 0
    return measured and can_be_promised(verdict.case) and not reviewed


def pooled_spreads(summaries: Sequence[Summary]) -> Mapping[Metric, float]:
    """Relative standard deviation of a restart by metric, pooled over cases: one case has too few restarts to tell."""
    squares: dict[Metric, list[tuple[float, int]]] = defaultdict(list)
    for summary in summaries:
        relative = statistics.variance(summary.values) / summary.value**2
        squares[summary.metric].append((relative, len(summary.values) - 1))
    return {
        metric: math.sqrt(sum(v * df for v, df in found) / sum(df for _, df in found))
        for metric, found in squares.items()
    }


def tolerance_of(summary: Summary, pooled: float, *, on_cpu: bool) -> float:
    """Relative, in whole percent, from the larger of this case's spread and that of all."""
    own = statistics.stdev(summary.values) / summary.value
    least = LEAST if not on_cpu else LEAST_RATIO_ON_CPU if summary.metric.unit == "x" else LEAST_ON_CPU
    return min(0.95, math.ceil(max(least, SPREADS * max(own, pooled)) * 100) / 100)


def promise_text(
    metric: Metric, value: float, tolerance: float, recorded: Mapping[str, str], note: str = "", *, column: int = 6
) -> str:
    """A measured promise as YAML, in two lines or more, the first of which begins at `column`."""
    unit = metric.unit if metric.unit != "1" else '"1"'
    begun = f"{{value: {decimal(value)}, unit: {unit}, tolerance: {decimal(tolerance)}, source: measured,"
    record = record_text(recorded, column=column + 3)
    return f"{begun}\n{' ' * (column + 1)}recorded: {record}{f', note: {quoted(note)}' if note else ''}}}"


def record_text(recorded: Mapping[str, str], *, column: int) -> str:
    """How it was measured, as YAML; a reason, which may be long, begins a line of its own at `column`."""
    reason = f",\n{' ' * column}{REASON}: {quoted(recorded[REASON])}" if REASON in recorded else ""
    return (
        f"{{date: {quoted(recorded['date'])}, version: {quoted(recorded['version'])}, "
        f"restarts: {recorded['restarts']}, commit: {quoted(recorded['commit'])}{reason}}}"
    )


def quoted(text: str) -> str:
    """As a text of JSON, which is one of YAML too where all of it is printable."""
    return json.dumps(text, ensure_ascii=False)


def engine_version(engine: str, versions: Mapping[str, str]) -> str:
    """Of the package that did the work of an engine, among the versions of a fingerprint."""
    return versions.get("torch" if engine == "torch" else "tensorrt_llm", "unknown")


def _document(machine: Machine, entries: Mapping[str, Mapping[str, str]]) -> str:
    lines = [
        f"# Measured on {machine.processor}, {machine.cores} cores, by pytest --record; for machines like it alone.",
        f"schema: {SCHEMA}",
        "promises:",
    ]
    for key in sorted(entries):
        lines.append(f"  {key}:")
        lines += [f"    {metric}:\n      {entries[key][metric]}" for metric in sorted(entries[key])]
    return "\n".join(lines) + "\n"


def commit_of(folder: Path) -> str:
    """Of the repository the baselines are in; none where they are in no repository."""
    where = folder if folder.is_dir() else folder.parent
    try:
        asked = subprocess.run(
            ["git", "-C", str(where), "rev-parse", "--short=10", "HEAD"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "none"
    return asked.stdout.strip() if asked.returncode == 0 else "none"
