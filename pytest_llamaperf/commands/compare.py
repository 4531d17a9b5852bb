"""`llamaperf compare`: two versions, runs or files side by side, and what follows from that."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pytest_llamaperf.commands.names import Names, flat
from pytest_llamaperf.commands.outputs import write
from pytest_llamaperf.errors import UsageError, nearest
from pytest_llamaperf.wording import shown_path

if TYPE_CHECKING:
    from pytest_llamaperf.comparing.comparison import Comparison
    from pytest_llamaperf.comparing.pairing import Build
    from pytest_llamaperf.importing.reading import Told

NO, NOT_ENOUGH = 1, 3

# What --fail-on takes: outcomes, and what could not be compared. What only the second side has was promised by nobody.
FAILURES = ("regression", "error", "suspect", "inconclusive", "unlike", "missing", "added")
BY_DEFAULT = FAILURES[:-1]
NOTHING = "nothing"

MOST = 40  # values in a table, unless all are asked for


def _failure(name: str) -> str:
    if name not in (*FAILURES, NOTHING):
        raise UsageError(f"unknown reason to fail {name!r}; {nearest(name, (*FAILURES, NOTHING))}")
    return name


@click.command(short_help="Two versions, runs or files side by side: what got worse, and how sure that is.")
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@click.option("--db", metavar="URL", help="History to look versions up in.  [default: as for llamaperf history]")
@click.option("--gpu", metavar="GPU", help="Of files that do not say on which, as h200.")
@click.option(
    "--scenario", metavar="NAME", help="How requests arrived, of files that do not say it, as concurrency-64."
)
@click.option(
    "--case", "cases", multiple=True, metavar="TEXT", help="Only cases that have TEXT in their id; * for anything."
)
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Only this metric; may be repeated.")
@click.option(
    "--allow-difference", "allowed", multiple=True, metavar="FIELD",
    help="Compare all the same what differs in FIELD, a name as the refusal shows it; may be repeated.",
)  # fmt: skip
@click.option(
    "--fail-on", type=Names("reason", lambda: (*FAILURES, NOTHING), _failure), multiple=True, metavar="WORD[,WORD...]",
    default=[",".join(BY_DEFAULT)], help=f"{', '.join(FAILURES)}; or {NOTHING}.  [default: all but added]",
)  # fmt: skip
@click.option("--all", "everything", is_flag=True, help=f"Show all values, not only the worst {MOST}.")
@click.option("--json", "json_path", metavar="FILE", help="Write everything as JSON; - for standard output.")
@click.option("--markdown", "markdown_path", metavar="FILE", help="Write the table as Markdown; - for standard output.")
def compare(
    before: str,
    after: str,
    db: str | None,
    gpu: str | None,
    scenario: str | None,
    cases: tuple[str, ...],
    metrics: tuple[str, ...],
    allowed: tuple[str, ...],
    fail_on: tuple[list[str], ...],
    everything: bool,
    json_path: str | None,
    markdown_path: str | None,
) -> None:
    """Compare B with A: every metric of every case, the biggest losses first, each with its verdict.

    A and B are folders that --results wrote, run.json or run.jsonl, files of other tools that `llamaperf history import`
    reads, or versions of TensorRT-LLM that the history has; published figures come with it.

    \b
      llamaperf compare out/1.1 out/1.2                    # two runs on the same machine
      llamaperf compare out/rc3 out/rc5                    # two predictions: exact, and which operator moved
      llamaperf compare 0.20.0 1.0 --case llama-3.3-70b    # two versions, as published
      llamaperf compare out/1.1 out/1.2 --allow-difference driver --markdown "$GITHUB_STEP_SUMMARY"

    \b
    What a verdict can be depends on the evidence:
      measured    3 restarts in A and 2 in B: pass, suspect or inconclusive. Runs of different days prove no regression;
                  `pytest --against` does, on fresh restarts of both builds in turn
      predicted   exact: pass, or a regression of the prediction, with the operator whose time moved
      published   single values: the change is shown, and nothing is concluded

    What differs in anything but versions is not compared, and the fields are named: GPU, driver, checkpoint, settings,
    harness. Measured, predicted and published never meet unless --allow-difference source says so, and then nothing follows.

    Exit status: 0 B is no worse; 1 something regressed; 2 wrong usage; 3 not enough evidence: anything else that --fail-on
    names, or nothing could be compared.
    """
    from pytest_llamaperf.catalog import gpu_named, workload_named
    from pytest_llamaperf.comparing.comparison import compare as compared
    from pytest_llamaperf.importing.reading import Told
    from pytest_llamaperf.observations import uncollected

    if json_path == markdown_path == "-":
        raise UsageError("--json and --markdown cannot both be -: name a file for one of them")
    most = None if everything else MOST
    with uncollected():
        told = Told(
            None if gpu is None else gpu_named(gpu).name,
            None if scenario is None else workload_named(f"{scenario}-1-1").scenario,
        )
        builds = [_build(text, db, told) for text in (before, after)]
        _refuse_unknown(builds, cases, metrics)
        comparison = compared(*(_filtered(build, cases, metrics) for build in builds), allowed=allowed)
        if json_path:
            _write_json(json_path, comparison)
        if markdown_path:
            _write_markdown(markdown_path, comparison, most)
        if "-" not in (json_path, markdown_path):
            _show(comparison, most)
        _tell_unused(comparison, allowed)
    sys.exit(status(comparison, flat(fail_on)))


def status(comparison: Comparison, fail_on: Sequence[str]) -> int:
    """A regression says no; whatever else is named leaves it open."""
    found = [word for word in fail_on if comparison.counts[word]]
    if "regression" in found:
        return NO
    undecided = not comparison.compared and NOTHING not in fail_on
    return NOT_ENOUGH if found or undecided else 0


def _build(text: str, db: str | None, told: Told) -> Build:
    """A path if there is one of that name, else a version. Raises UsageError."""
    path = Path(text)
    if path.exists():
        return _of_path(path, told)
    if len(path.parts) > 1 or path.suffix in (".json", ".jsonl", ".csv"):
        raise UsageError(f"{text}: is not there; name a folder that --results wrote, a file, or a version")
    return _of_version(text, db)


def _of_path(path: Path, told: Told) -> Build:
    """Of our own runs it is known why a case has no value."""
    from pytest_llamaperf.comparing.pairing import Build
    from pytest_llamaperf.importing import read_observations
    from pytest_llamaperf.observations import observations_of
    from pytest_llamaperf.runs import read_run

    name = shown_path(path)
    if not path.is_dir() and path.name not in ("run.json", "run.jsonl"):
        return Build(name, read_observations(path, told))
    run = read_run(path)
    absent = {test.case: f"{test.outcome}: {test.reason}" for test in run.tests if test.case and not test.results}
    absent |= {str(result.case["id"]): f"error: {result.message}" for result in run.results if result.value is None}
    return Build(name, observations_of(run), absent)


def _of_version(version: str, db: str | None) -> Build:
    from pytest_llamaperf.comparing.pairing import Build
    from pytest_llamaperf.history import open_history

    with open_history(db) as history:
        return Build(version, history.of_version(version))


def _refuse_unknown(builds: Sequence[Build], cases: Sequence[str], metrics: Sequence[str]) -> None:
    """What neither side has is a slip; what only one has is missing on the other."""
    known = {(one.case, one.metric) for build in builds for one in build.observations}
    for text in cases:
        if not any(_has(case, text) for case, _ in known):
            raise UsageError(f"neither side has a case with {text!r} in its id, as h200/*/llama-3.1-8b")
    for name in metrics:
        if name not in {metric for _, metric in known}:
            raise UsageError(f"neither side has the metric {name!r}; {nearest(name, {metric for _, metric in known})}")


def _filtered(build: Build, cases: Sequence[str], metrics: Sequence[str]) -> Build:
    if not cases and not metrics:
        return build
    kept = (
        one
        for one in build.observations
        if (not metrics or one.metric in metrics) and (not cases or any(_has(one.case, text) for text in cases))
    )
    return replace(build, observations=tuple(kept))


def _has(case: str, text: str) -> bool:
    return fnmatchcase(case, f"*{text}*")


def _show(comparison: Comparison, most: int | None) -> None:
    from rich.console import Console

    from pytest_llamaperf.comparing.tables import parts

    console = Console(highlight=False)
    for part in parts(comparison, most):
        console.print(part, soft_wrap=not hasattr(part, "columns"))


def _tell_unused(comparison: Comparison, allowed: Sequence[str]) -> None:
    """A misspelt field allows nothing."""
    used = {each.field for one in comparison.compared for each in one.allowed}
    used |= {each.field for one in comparison.unlike for each in one.allowed}
    for name in allowed:
        if name not in used:
            click.echo(f"--allow-difference {name}: nothing differs in that", err=True)


def _write_json(path: str, comparison: Comparison) -> None:
    from pytest_llamaperf.comparing.documents import document
    from pytest_llamaperf.runs import to_json

    write("--json", path, to_json(document(comparison), indent=1) + "\n")


def _write_markdown(path: str, comparison: Comparison, most: int | None) -> None:
    from pytest_llamaperf.comparing.markdown import page

    write("--markdown", path, page(comparison, most))
