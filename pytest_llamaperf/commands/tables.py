"""`llamaperf tables`: which operator times predictions can be made of, and how older ones get here."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from pytest_llamaperf.catalog.tables import Wheel, timed_version, timed_versions


def completed_versions(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in timed_versions() if name.startswith(incomplete)]


@click.group(invoke_without_command=True, short_help="Operator times by TensorRT-LLM version: list, fetch.")
@click.pass_context
def tables(context: click.Context) -> None:
    """List the operator times that predictions can be made of, by the TensorRT-LLM version that NVIDIA timed.

    \b
    Get older ones, and predict with them:
      llamaperf tables fetch 1.0.0rc3 1.3.0rc10
      pytest suites/ --gpu h200 --engine predicted --tables 1.0.0rc3
      llamaperf predict llama-3.1-405b --tables 1.3.0rc10
    """
    if context.invoked_subcommand is None:
        _show()


@tables.command(short_help="Get older operator times by pip.")
@click.argument("versions", nargs=-1, required=True, metavar="VERSION...", shell_complete=completed_versions)
def fetch(versions: tuple[str, ...]) -> None:
    """Download the wheels that have the tables of each VERSION, by the pip of this environment, and keep the tables.

    The wheels are checked against digests of the catalog; no code of theirs is run. What is there already is not fetched.
    """
    from pytest_llamaperf.operator_tables.fetching import fetch as fetched
    from pytest_llamaperf.operator_tables.fetching import versions_in

    wheels: dict[str, Wheel] = {}
    for version in map(timed_version, versions):  # all names first: a wrong one is told before anything is downloaded
        if version.wheel is None:
            click.echo(f"{version.name}: comes with pip install 'pytest-llamaperf[predict]'")
        else:
            wheels[version.wheel.name] = version.wheel
    for wheel in wheels.values():
        entry = fetched(wheel, lambda text: click.echo(text, err=True))
        click.echo(f"{', '.join(each.name for each in versions_in(wheel))}: in {entry}")


def _show() -> None:
    from rich.console import Console
    from rich.table import Table

    from pytest_llamaperf.operator_tables import DECODE_ATTENTION_SINCE
    from pytest_llamaperf.operator_tables.fetching import is_here

    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for heading in ("TensorRT-LLM", "GPUs", "from", ""):
        table.add_column(heading, header_style="dim")
    for version in timed_versions().values():
        wheel = version.wheel
        source = "aiconfigurator-core" if wheel is None else f"{wheel}, {wheel.bytes / 1e6:.0f} MB"
        here = "" if is_here(version) else "not "
        here += "installed" if wheel is None else "fetched"
        table.add_row(version.name, ", ".join(version.gpus), source, here)
    console.print(table)
    console.print(
        f"Decode attention was timed otherwise before {DECODE_ATTENTION_SINCE}: do not compare it across that version.",
        style="dim",
        soft_wrap=True,
    )
