"""`llamaperf gate`: the release decision that was kept with a run, with all that is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import click

NO, NOT_ENOUGH = 1, 3


@click.command(short_help="May the build of a run be released? Every reason, and all that is missing.")
@click.argument("run", type=click.Path(path_type=Path))
def gate(run: Path) -> None:
    """Show the decision on RUN, a folder that `pytest --results` wrote, with or without --gate.

    It is the one that was made when the tests ended: nothing is judged again, and no waiver is read again.

    Exit status: 0 releasable, 1 not releasable, 2 wrong usage, 3 the run was cut off before there was a decision.
    """
    from pytest_llamaperf.gates import told_beside
    from pytest_llamaperf.runs import read_run
    from pytest_llamaperf.wording import counted

    kept = read_run(run, sealed=True)
    if kept.decision is None:
        click.echo(f"no decision: the run was cut off after {counted(len(kept.tests), 'test')}")
        sys.exit(NOT_ENOUGH)
    decision = kept.decision
    click.echo(decision.headline)
    click.echo(f"of the run that started at {kept.header.started} on {kept.header.gpu} with {kept.header.engine}")
    for reason in decision.reasons:
        click.echo(f"  - {reason}")
    for waived in decision.waived:
        click.echo(f"  - waived: {waived}")
    for told in told_beside(decision, kept.header.gpu, kept.header.engine):
        click.echo(told)
    if decision.missing:
        click.echo("missing:")
    for each in decision.missing:
        click.echo(f"  {each}: {each.why} ({each.place})")
    if not decision.releasable:
        sys.exit(NO)
