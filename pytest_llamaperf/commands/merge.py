"""`llamaperf merge`: what shards left, put together into one run, with one decision."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pytest_llamaperf.scaling.contract import Campaign

NO, NOT_ENOUGH = 1, 3


@click.command(short_help="Put the results of all shards together into one run, with one decision.")
@click.argument("manifest", type=click.Path(path_type=Path))
def merge(manifest: Path) -> None:
    """Read every shard of MANIFEST, a file of `llamaperf plan` or its folder, and write run.json, summary.md and junit.xml there.

    A shard that is missing, cut off, edited, from another run or from another kind of machine is named, and blocks. The
    decision is made over all tests, as one pytest would make it. report, compare, gate and history read the result.

    Exit status: 0 nothing failed, and with --gate in the plan it may be released; 1 a test failed, or the gate is closed;
    2 wrong usage; 3 a shard is no evidence, and nothing failed in the others.
    """
    from pytest_llamaperf.scaling.contract import campaign_of

    merge_and_tell(campaign_of(manifest))


def merge_and_tell(campaign: Campaign) -> None:
    """Exits with the status that says what came of it, unless that is 0."""
    from collections import Counter

    from pytest_llamaperf.errors import UsageError
    from pytest_llamaperf.files import write_atomically
    from pytest_llamaperf.gates import told_beside
    from pytest_llamaperf.runs import run_document, to_json
    from pytest_llamaperf.scaling.contract import JUNIT
    from pytest_llamaperf.scaling.merging import merge as merged
    from pytest_llamaperf.summaries.markdown import markdown_of
    from pytest_llamaperf.wording import counted, printable, shown_path

    found = merged(campaign)
    run, gate = found.run, campaign.manifest.about.gate
    assert run.decision is not None  # by merge
    document = run_document(run.header, run.tests, run.decision, not_run=run.not_run, engines=run.engines)
    try:
        write_atomically(campaign.path / "run.json", to_json(document, indent=1) + "\n")
        write_atomically(campaign.path / "summary.md", markdown_of(run))
        write_atomically(campaign.path / JUNIT, found.junit)
    except OSError as problem:
        raise UsageError(f"{shown_path(campaign.path)}: cannot be written: {problem.strerror}") from None
    for test in found.failed:
        click.echo(f"{test.outcome}: {test.nodeid}: {printable(test.reason)}")
    for told in found.problems:
        click.echo(printable(told))
    shards = len(campaign.manifest.shards)
    counts = Counter(test.outcome for test in run.tests)
    tests = ", ".join(f"{number:,} {outcome}" for outcome, number in counts.most_common()) or "no tests"
    click.echo(f"{tests}, in {counted(shards, 'shard')}{_without(len(found.problems))}")
    if gate:
        click.echo(run.decision.headline)
        for reason in run.decision.reasons:
            click.echo(f"  - {printable(reason)}")
        for waived in run.decision.waived:
            click.echo(f"  - waived: {printable(waived)}")
        for told in told_beside(run.decision, run.header.gpu, run.header.engine):
            click.echo(told)
    click.echo(f"results: {shown_path(campaign.path / 'run.json')}")
    if found.failed:
        sys.exit(NO)
    if found.problems:
        sys.exit(NOT_ENOUGH)
    if gate and not run.decision.releasable:
        sys.exit(NO)


def _without(problems: int) -> str:
    return f", {problems} of which {'is' if problems == 1 else 'are'} no evidence" if problems else ""
