"""`llamaperf report`: a run as one HTML page."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="A run as one HTML page.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="the page to write (default: report.html beside the run)",
)
@click.option("--db", metavar="PATH|URL", help="the history; without it the default one, which has what was published")
def report(run: Path, output: Path | None, db: str | None) -> None:
    """Write RUN as one HTML page: the decision, failures with how to repeat them, every value, and charts.

    RUN is a folder that --results wrote, a run.json, or the run.jsonl of a run that was cut off. The page needs neither
    network nor scripts, and can be printed.

    \b
      llamaperf report out -o report.html

    Exit status: 0 the page is written, whatever it says; 2 wrong usage.
    """
    from pytest_llamaperf.errors import UsageError
    from pytest_llamaperf.files import write_atomically
    from pytest_llamaperf.history import open_history
    from pytest_llamaperf.report.page import page
    from pytest_llamaperf.report.rows import rows_of
    from pytest_llamaperf.runs import read_run

    path = output or (run if run.is_dir() else run.parent) / "report.html"
    found = read_run(run)
    with open_history(db) as history:
        there = {row.id for row in rows_of(found.results)}.intersection(history.known("case"))
        text = page(found, history.find(case=sorted(there)) if there else ())
    try:
        write_atomically(path, text)
    except OSError as problem:
        raise UsageError(f"{path}: cannot be written: {problem.strerror}") from None
    click.echo(f"written: {path} ({len(text.encode('utf-8', 'replace')) / 2**10:,.0f} KiB)")
