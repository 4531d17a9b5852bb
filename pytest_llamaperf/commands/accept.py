"""`llamaperf accept`: values of a run become promises, after a look at what would change."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pytest_llamaperf.accepting.reviewing import Review
    from pytest_llamaperf.accepting.rewriting import NewText

NO = 1


@click.command(short_help="Promise what a run measured, with a reason, in the baseline files.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--case", "cases", multiple=True, metavar="PATTERN", help="only these: an id, `*` is any text; repeatable"
)
@click.option("--metric", "metrics", multiple=True, metavar="METRIC", help="only this metric; repeatable")
@click.option("--reason", required=True, metavar="TEXT", help="why these values are right; kept beside them")
@click.option("--even-worse", is_flag=True, help="also what is worse than promised: lowers a promise")
@click.option("--replace-published", is_flag=True, help="also in the place of a published figure")
@click.option(
    "--baselines", type=click.Path(path_type=Path), default=Path("baselines"), show_default=True, metavar="DIR"
)
@click.option("--dry-run", is_flag=True, help="show the changes, write nothing")
def accept(
    run: Path,
    cases: tuple[str, ...],
    metrics: tuple[str, ...],
    reason: str,
    even_worse: bool,
    replace_published: bool,
    baselines: Path,
    dry_run: bool,
) -> None:
    """Write what RUN measured into baselines/<gpu>/<model>.yaml, show the change, and leave the rest of the files alone.

    RUN is a folder that --results wrote. Accepted is what was measured in two restarts or more, passed or had no promise,
    and is no worse than promised. Predictions never are. What is left out is listed with why.

    \b
      llamaperf accept out --reason "TensorRT-LLM 1.2 on our nodes" --dry-run
      llamaperf accept out --case '*/max-throughput-*' --metric output_throughput --reason "faster prefill in 1.2"

    Exit status: 0 accepted, or promised so already; 1 nothing of what was asked for may be accepted; 2 wrong usage.
    """
    from pytest_llamaperf.accepting.reviewing import Asked, review
    from pytest_llamaperf.accepting.rewriting import new_texts, write
    from pytest_llamaperf.runs import read_run

    asked = Asked(" ".join(reason.split()), cases, metrics, even_worse, replace_published)
    found = review(read_run(run), baselines, asked)
    files = new_texts(found.promises, baselines)
    for file in files:
        for line in _diff(file):
            names_file = line.startswith(("--- ", "+++ "))
            click.secho(line, bold=names_file or None, fg=None if names_file else _COLOURS.get(line[:1]))
    for line in _told(found):
        click.echo(line)
    if not dry_run:
        write(files, baselines)
    for file in files:
        click.echo(_wrote(file, dry_run))
    if not files and not found.unchanged:
        click.echo("nothing was accepted", err=True)
        sys.exit(NO)


_COLOURS = {"-": "red", "+": "green", "@": "cyan"}


def _diff(file: NewText) -> Iterator[str]:
    from difflib import unified_diff

    from pytest_llamaperf.wording import shown_path

    name = shown_path(file.path)
    old = [] if file.old is None else file.old.splitlines()
    return unified_diff(old, file.new.splitlines(), "/dev/null" if file.old is None else name, name, lineterm="")


def _told(found: Review) -> Iterator[str]:
    from pytest_llamaperf.wording import counted, printable

    if found.unchanged:
        yield f"promised so already: {counted(len(found.unchanged), 'value')}"
    if found.left_out:
        yield f"left out: {counted(sum(map(len, found.left_out.values())), 'value')}"
    for why, names in found.left_out.items():
        others = f" and {counted(len(names) - 1, 'other')}" if len(names) > 1 else ""
        yield printable(f"  - {names[0]}{others}: {why}")


def _wrote(file: NewText, dry_run: bool) -> str:
    from pytest_llamaperf.wording import counted, shown_path

    return f"{'would write' if dry_run else 'wrote'} {counted(file.count, 'promise')} to {shown_path(file.path)}"
