"""`llamaperf run`: the shards of a plan, started where there are devices, and merged."""

from __future__ import annotations

import sys
from pathlib import Path

import click

NOT_ENOUGH = 3


@click.command(short_help="Run the shards of a plan on this node, and merge them.")
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option(
    "--on", "place", type=click.Choice(["local"]), default="local", show_default=True, help="where shards run"
)
@click.option(
    "--slots",
    type=click.IntRange(min=1),
    metavar="N",
    help="without GPUs: devices to share out (default: as many as there are cores, or as the largest shard needs)",
)
@click.option(
    "--share",
    is_flag=True,
    help="let shards that measure run beside others: faster, and what they measure is disturbed",
)
def run(manifest: Path, place: str, slots: int | None, share: bool) -> None:
    """Run every shard of MANIFEST, a file of `llamaperf plan` or its folder, that has no results yet; then merge.

    Each gets its GPUs for itself, all at once, the largest first. One that measures has the node to itself. After
    Ctrl-C, `llamaperf run` goes on with what is left. A shard that was killed is tried once more.

    Exit status: as of `llamaperf merge`; 3 when it was interrupted.
    """
    from rich.console import Console

    from pytest_llamaperf.commands.merge import merge_and_tell
    from pytest_llamaperf.hardware import find_machine
    from pytest_llamaperf.scaling.contract import campaign_of
    from pytest_llamaperf.scaling.devices import devices_of
    from pytest_llamaperf.scaling.local import Node
    from pytest_llamaperf.scaling.watching import watcher
    from pytest_llamaperf.wording import counted

    campaign = campaign_of(manifest)
    campaign.check()
    machine = find_machine()
    devices = devices_of(machine, campaign.manifest.about, campaign.manifest.shards, slots)
    watching = watcher(Console())
    try:
        outcome = Node(campaign, devices, machine.slug, watching, alone=not share).run()
    finally:
        watching.close()
    if outcome.interrupted:
        click.echo(
            f"interrupted; {counted(len(outcome.left), 'shard')} left: `llamaperf run {manifest}` goes on with them"
        )
        sys.exit(NOT_ENOUGH)
    merge_and_tell(campaign)
