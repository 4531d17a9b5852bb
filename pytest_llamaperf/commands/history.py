"""`llamaperf history`: what was measured, predicted and published by version, with breaks and steps; files into it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.wording import counted, printable, shown_path

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pytest_llamaperf.importing.reading import LeftOut
    from pytest_llamaperf.observations import Observation

_DB = click.option(
    "--db", metavar="URL", help="A path or URL.  [default: $LLAMAPERF_HISTORY, or a file of the user's data]"
)
MOST = 5_000  # values, some fifty lines of a hundred runs: nobody reads more, and they are there in a second
_FEW = 3  # names in a line
_IN_A_FILE = 120  # columns, where no terminal says how many: names and versions are not folded
# Options by the part of an observation that they choose.
_FILTERS = {
    "model": "llama-3.1-405b",
    "hardware": "h200",
    "recipe": "modelopt-fp8",
    "layout": "tp8",
    "work": "max-throughput-2048-128",
    "metric": "output_throughput",
    "engine": "tensorrt-llm",
    "source": "measured, predicted or published",
    "version": "1.2.1; however it is written: 0.17 is 0.17.0",
    "run": "the id of a run, or a publication",
    "case": "the whole id of a case",
}
_OPTION = {"hardware": "--gpu", "work": "--workload"}


def _filters(command: Any) -> Any:
    for part, example in reversed(_FILTERS.items()):
        command = click.option(_OPTION.get(part, f"--{part}"), part, multiple=True, metavar="NAME", help=example)(
            command
        )
    return command


@click.group(invoke_without_command=True, short_help="What is known of every version: measured, predicted, published.")
@_filters
@_DB
@click.option("--all", "whole", is_flag=True, help=f"Also of more than {MOST:,} values each case.")
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON on standard output.")
@click.pass_context
def history(ctx: click.Context, /, db: str | None, whole: bool, as_json: bool, **wanted: tuple[str, ...]) -> None:
    """Show values by version, where they are not comparable (break), and where a level moved (step).

    \b
      llamaperf history                                        # what there is
      llamaperf history --model llama-3.1-405b --gpu h200
      llamaperf history --model llama-3.3-70b --layout tp4 --workload max-throughput-2048-128

    An option may be repeated, and takes several names separated by commas. The figures NVIDIA published come with this
    project; `llamaperf history import` adds what you have measured. Between two single values there is a change and no
    step, for nobody knows how much such values differ by themselves.
    """
    if ctx.invoked_subcommand is not None:
        ctx.obj = db
        return
    from pytest_llamaperf.history import open_history, telling

    chosen = {
        part: [name.strip() for text in texts for name in text.split(",")] for part, texts in wanted.items() if texts
    }
    with open_history(db) as opened:
        if not chosen and not as_json and not whole:
            _print(telling.overview(opened.groups()))
            return
        found = opened.beginning(sys.maxsize if whole or as_json else MOST, **chosen)
    if as_json:
        from pytest_llamaperf.history.documents import document
        from pytest_llamaperf.runs import to_json

        click.echo(to_json(document(found.observations)))
    elif not found.observations:
        raise UsageError("nothing in the history is all of that; leave out one of the options")
    else:
        _print(telling.excerpt(found))


@history.command("import", short_help="Add runs, reports and published figures.")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@_DB
@click.option("--gpu", metavar="GPU", help="Of files that do not say it, as h200.")
@click.option(
    "--scenario", metavar="NAME", help="How requests arrived, of files that do not say it, as concurrency-64."
)
@click.pass_obj
def import_(outer: str | None, files: Sequence[Path], db: str | None, gpu: str | None, scenario: str | None) -> None:
    """Add FILES to the history: each as a whole or, where something is wrong, not at all.

    Folders that --results wrote, run.json, run.jsonl; reports of trtllm-bench (--report_json); JSON of pytest-benchmark;
    results of lm-eval; CSV of published figures (docs/history.md). What is there already is not added again.
    """
    from pytest_llamaperf.catalog import gpu_named
    from pytest_llamaperf.history import open_history
    from pytest_llamaperf.importing import observations_in, why_not_whole
    from pytest_llamaperf.importing.reading import LeftOut, Told

    told = Told(None if gpu is None else gpu_named(gpu).name, None if scenario is None else _scenario(scenario))
    problems = []
    with open_history(db or outer, create=True) as opened:
        for file in files:
            left_out = LeftOut()
            try:
                added = opened.add(_watched(observations_in(file, told, left_out), left_out), shown_path(file))
                incomplete = why_not_whole(file)
            except UsageError as problem:
                problems.append(str(problem))
                continue
            for name, number in added.new.items():
                click.echo(f"{shown_path(file)}: added {counted(number, 'value')} of {printable(name)}")
            if added.known:
                names = (
                    ", ".join(map(printable, added.known))
                    if len(added.known) <= _FEW
                    else counted(len(added.known), "run")
                )
                click.echo(f"{shown_path(file)}: {names} in the history already, and not added again")
            for reason, number in left_out.items():
                click.echo(f"  left out {counted(number, 'value')}: {reason}")
            if incomplete:
                click.echo(f"  not whole: {incomplete}")
    if problems:
        raise UsageError("\n".join([*problems, f"{counted(len(problems), 'file')} of {len(files)} not imported"]))


def _watched(observed: Iterable[Observation], left_out: LeftOut) -> Iterator[Observation]:
    """A level of values of which some were measured on slow GPUs is none."""
    for one in observed:
        if one.blind:
            left_out["measured on GPUs that nobody watched"] += 1
        else:
            yield one


@history.command(short_help="Remove a run.")
@click.argument("run")
@_DB
@click.pass_obj
def forget(outer: str | None, run: str, db: str | None) -> None:
    """Remove RUN, the id of a run or a publication, from the history; its files stay, and can be imported again."""
    from pytest_llamaperf.history import open_history

    with open_history(db or outer) as opened:
        number = opened.forget(run)
    click.echo(f"forgotten: {run}, {counted(number, 'value')}")


def _scenario(name: str) -> str:
    """Raises UsageError for what is none."""
    from pytest_llamaperf.catalog import workload_named

    return workload_named(f"{name}-1-1").scenario


def _print(parts: Iterable[RenderableType]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _IN_A_FILE
    for part in parts:
        console.print(part)
