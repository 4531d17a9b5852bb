"""`llamaperf doctor`: what is installed, what hardware is found, which engines could run here, and why not."""

from __future__ import annotations

import platform
import sys

import click

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
    from rich.table import Table

    from pytest_llamaperf.engines import BUILT_IN, KINDS, PREDICTED, readiness
    from pytest_llamaperf.hardware import find_machine

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
    table.add_row("processor", machine.processor)
    table.add_row("GPUs", str(machine))
    if machine.driver:
        table.add_row("driver", machine.driver)
    for gpu in machine.gpus:
        if gpu.name is None:
            table.add_row("", f"[yellow]{gpu.product} is not in the catalog: no case is about it[/]")
    table.add_row("--gpu auto", machine.hardware)
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
