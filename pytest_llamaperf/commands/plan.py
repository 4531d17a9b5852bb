"""`llamaperf plan`: the suites as shards, written down before anything starts."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pytest_llamaperf.scaling.inventory import Inventory
    from pytest_llamaperf.scaling.manifest import Shard
    from pytest_llamaperf.scaling.planning import Bill, Plan


# GPUs of HGX and DGX machines; and shards beyond which one of them is no place for them.
_NODE, _SIMULATED = 8, 1000


@click.command(
    short_help="Write what a run over several processes would be: shards, GPUs, minutes.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": True},
)
@click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("out"),
    show_default=True,
    help="folder of the run, a new one: manifest.json is written there, and all results later on",
)
@click.option(
    "--earlier",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="RUN",
    help="an earlier run, from which to know how long tests take; may be repeated",
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED, required=True, metavar="SUITES... [PYTEST OPTIONS]")
def plan(results: Path, earlier: tuple[Path, ...], options: tuple[str, ...]) -> None:
    """Collect SUITES as pytest would and write RESULTS/manifest.json: shards that `llamaperf run` starts, each a pytest of its own.

    A shard has all tests of an engine, and of those that are compared with it, so every engine is loaded in one place
    only. Nothing is run, and no GPU is needed. (`pytest --plan` is something else: what TensorRT-LLM would be given.)

    \b
      llamaperf plan suites/ --gpu h200 --gate --results out
      llamaperf run --on local out
    """
    import uuid
    from datetime import UTC, datetime

    from pytest_llamaperf.scaling.durations import known_durations
    from pytest_llamaperf.scaling.manifest import NAME
    from pytest_llamaperf.scaling.planning import planned

    _check_new(results)
    inventory = _collected(options)
    known = known_durations(earlier, gpu=str(inventory.about["gpu"]), engine=str(inventory.about["engine"]))
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    found = planned(inventory, id=str(uuid.uuid4()), now=now, options=options, known=known)
    _write(results / NAME, found)
    _tell(results, found)


def _check_new(results: Path) -> None:
    """Raises UsageError for a folder with results; a plan of which nothing was run is made anew."""
    from pytest_llamaperf.errors import UsageError
    from pytest_llamaperf.scaling.contract import SHARDS

    for name in (SHARDS, "run.json", "run.jsonl"):
        if (results / name).exists():
            raise UsageError(
                f"--results {results}: has results of another run ({name}); every run has a folder of its own"
            )


def _collected(options: tuple[str, ...]) -> Inventory:
    """By a pytest of its own, which alone knows its options. Raises UsageError where it does not collect."""
    from pytest_llamaperf.errors import UsageError
    from pytest_llamaperf.scaling.inventory import Inventory

    with tempfile.TemporaryDirectory(prefix="llamaperf-plan-") as folder:
        path = Path(folder) / "inventory.json"
        command = [sys.executable, "-m", "pytest", *options, "--collect-only", "-qq", f"--llamaperf-inventory={path}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not path.exists():
            said = f"{done.stdout}{done.stderr}".strip()
            raise UsageError(f"pytest collects nothing to plan (exit status {done.returncode}):\n{said[-4000:]}")
        return Inventory.read(path)


def _write(path: Path, found: Plan) -> None:
    from pytest_llamaperf.errors import UsageError

    try:
        found.manifest.write(path)
    except OSError as problem:
        raise UsageError(f"{path}: cannot be written: {problem.strerror}") from None


def _tell(results: Path, found: Plan) -> None:
    from rich.console import Console
    from rich.table import Table

    from pytest_llamaperf.scaling.contract import device_name
    from pytest_llamaperf.scaling.manifest import NAME, PERFORMANCE
    from pytest_llamaperf.wording import counted

    manifest, about = found.manifest, found.manifest.about
    console = Console(highlight=False, markup=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for heading in ("shards", "each on", "beside others", "tests", "engine starts", "expected"):
        table.add_column(heading, header_style="dim")
    alike: dict[tuple[int, str], list[Shard]] = {}
    for shard in manifest.shards:
        alike.setdefault((shard.devices, shard.kind), []).append(shard)
    for (devices, kind), shards in alike.items():
        tests, loads = (sum(counts) for counts in zip(*((len(s.tests), s.loads) for s in shards), strict=True))
        minutes = sum(shard.minutes for shard in shards)
        table.add_row(
            f"{len(shards):,}",
            device_name(about, devices),
            "no" if kind == PERFORMANCE else "yes",
            f"{tests:,}",
            f"{loads:,}",
            _minutes(minutes),
        )
    console.print(table)
    waiting = sum(bool(shard.after) for shard in manifest.shards)
    if waiting:
        console.print(f"{counted(waiting, 'shard')} wait for another to quantize a checkpoint they need too")
    guessed = sum(shard.basis == "a guess" for shard in manifest.shards)
    if guessed:
        console.print(
            f"minutes of {counted(guessed, 'shard')} are a guess by the size of the model; --earlier RUN knows better"
        )
    word = "GPU-hours" if about.on_gpus else "slot-hours"
    console.print(f"in shards:           {_bill(found.bill, word)}")
    console.print(f"a process each test: {_bill(found.naive, word)}")
    node = _NODE if about.on_gpus else _slots(found)
    if len(manifest.shards) <= _SIMULATED and (alone := found.hours_on(node, alone=True)) is not None:
        shared = found.hours_on(node, alone=False) or alone
        sharing = f", or {_minutes(shared * 60)} if shards that measure may share it (llamaperf run --share)"
        console.print(
            f"on one node of {device_name(about, node)}: about {_minutes(alone * 60)}{sharing if shared < alone else ''}"
        )
    console.print(f"{counted(found.engines, 'engine')}; written: {results / NAME}")


def _slots(found: Plan) -> int:
    """As many as `llamaperf run` shares out on this machine unless it is told otherwise."""
    from pytest_llamaperf.hardware import find_machine
    from pytest_llamaperf.scaling.devices import devices_of

    return len(devices_of(find_machine(), found.manifest.about, found.manifest.shards, None))


def _bill(bill: Bill, word: str) -> str:
    return f"{bill.processes:>6,} processes {bill.loads:>6,} engine starts {bill.hours:>10,.1f} {word}"


def _minutes(minutes: float) -> str:
    return f"{minutes / 60:,.1f} h" if minutes >= 90 else f"{minutes:,.1f} min"
