"""`llamaperf doctor`: what is installed, what hardware is found and how it is set, which engines could run here, and why not."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pytest_llamaperf.hardware import Machine

_PACKAGES = {
    "pytest": "runs the suites",
    "aiconfigurator-core": "predictions: NVIDIA's operator times",
    "tensorrt-llm": "the runtime under test",
    "nvidia-modelopt": "quantization",
    "torch": "the reference engine",
    "transformers": "checkpoints",
    "lm-eval": "accuracy",
    "pytest-xdist": "predictions on several cores",
}


@click.command(short_help="What is installed and found here, and which engines can run.")
def doctor() -> None:
    """Show what this machine can test, without importing or starting anything.

    Exit status 0 if at least one engine can run here, else 1.
    """
    from importlib.metadata import PackageNotFoundError, version

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from pytest_llamaperf.engines import BUILT_IN, KINDS, PREDICTED, readiness
    from pytest_llamaperf.hardware import find_machine
    from pytest_llamaperf.wording import printable

    console = Console(highlight=False)
    console.print("packages", style="bold")
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 2))
    table.add_row("python", platform.python_version(), "")
    for package, purpose in {"pytest-llamaperf": "this plugin", **_PACKAGES}.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            found = "[dim]not installed[/]"
        table.add_row(package, found, f"[dim]{purpose}[/]")
    console.print(table)

    machine = find_machine()
    console.print("hardware", style="bold")
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 2))
    table.add_row("GPUs", str(machine))
    for gpu in machine.gpus:
        if gpu.name is None:
            table.add_row("", f"[yellow]{gpu.product} is not in the catalog: no case is about it[/]")
    table.add_row("--gpu auto", machine.hardware)
    console.print(table)

    console.print("fingerprint, as results of this machine have it", style="bold")
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 2))
    for name, value, meaning in _fingerprint(machine):
        table.add_row(name, "[dim]not told[/]" if value is None else escape(printable(value)), f"[dim]{meaning}[/]")
    console.print(table)

    console.print("engines", style="bold")
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 2))
    able = []
    for kind in KINDS:
        state = readiness(kind, BUILT_IN)
        able += [kind] if state.ready else []
        table.add_row(kind, "[green]ready[/]" if state.ready else f"[yellow]{state.detail}[/]")
    console.print(table)
    if PREDICTED in able:
        console.print("try: pytest suites/ --gpu h200 --engine predicted", style="bold")
    if not able:
        sys.exit(1)


def _fingerprint(machine: Machine) -> Iterator[tuple[str, str | None, str]]:
    """Name, value and meaning of each field of this machine, and of variables that an engine would be given."""
    from pytest_llamaperf.environment import kept
    from pytest_llamaperf.fingerprints import FIELDS, Part, field_of, told

    known = told(machine.to_dict())
    for field in FIELDS:
        of_gpus = field.where.startswith("gpus.") or field.where == "topology"
        if field.part is Part.MACHINE and field.name not in ("*", "format") and (machine.gpus or not of_gpus):
            yield field.name, str(known[field.name]) if field.name in known else None, field.meaning.value
    for setting, value in kept(os.environ).items():
        yield setting, value, field_of(Part.SETTINGS, setting).meaning.value
