"""`llamaperf run`: the shards of a plan, run where there are devices, and merged."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pytest_llamaperf.scaling.contract import Campaign, Outcome

NOT_ENOUGH = 3


@click.command(short_help="Run the shards of a plan on this node or on a cluster, and merge them.")
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option(
    "--on", "place", type=click.Choice(["local", "slurm"]), default="local", show_default=True, help="where shards run"
)
@click.option(
    "--slots",
    type=click.IntRange(min=1),
    metavar="N",
    help="local, without GPUs: devices to share out (default: as many as there are cores, or as the largest shard needs)",
)
@click.option(
    "--share",
    is_flag=True,
    help="local: let shards that measure run beside others: faster, and what they measure is disturbed",
)
@click.option(
    "--profile",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="slurm: partition, account, time limits and more of this cluster, in YAML",
)
@click.option(
    "--detach", is_flag=True, help="slurm: submit all jobs and the one that merges, and leave them to the cluster"
)
def run(manifest: Path, place: str, slots: int | None, share: bool, profile: Path | None, detach: bool) -> None:
    """Run every shard of MANIFEST, a file of `llamaperf plan` or its folder, that has no results yet; then merge.

    Each gets its GPUs for itself, all at once, the largest first. One that measures has the node to itself. After
    Ctrl-C, `llamaperf run` goes on with what is left. A shard that was killed is tried once more.

    On Slurm every shard is a job, by a script in the folder of the run. All jobs are cancelled with this command, however it
    ends, unless it was told to --detach.

    Exit status: as of `llamaperf merge`; 3 when it was interrupted; 0 when all jobs were submitted and detached.
    """
    from pytest_llamaperf.commands.merge import merge_and_tell
    from pytest_llamaperf.scaling.contract import campaign_of
    from pytest_llamaperf.wording import counted

    _refuse_options_of_other_places(place, slots=slots, share=share, profile=profile, detach=detach)
    campaign = campaign_of(manifest)
    campaign.check()
    detach = detach and bool(campaign.remaining())  # what has all its results is merged here and now
    if place == "slurm":
        outcome = _on_slurm(campaign, profile, detach)
    else:
        outcome = _on_this_node(campaign, slots, alone=not share)
    if outcome.interrupted:
        more = f" --on slurm{f' --profile {profile}' if profile else ''}" if place == "slurm" else ""
        click.echo(
            f"interrupted; {counted(len(outcome.left), 'shard')} left: `llamaperf run {manifest}{more}` goes on with them"
        )
        sys.exit(NOT_ENOUGH)
    if detach:
        return
    merge_and_tell(campaign)


def _refuse_options_of_other_places(place: str, **given: object) -> None:
    """Raises UsageError: whoever gives them expects something of them."""
    from pytest_llamaperf.errors import UsageError

    other = {"local": ("profile", "detach"), "slurm": ("slots", "share")}[place]
    for name in other:
        if given[name]:
            instead = "; write share_nodes: true in a profile" if name == "share" else ""
            raise UsageError(f"--{name} says nothing about --on {place}{instead}")


def _on_this_node(campaign: Campaign, slots: int | None, *, alone: bool) -> Outcome:
    from rich.console import Console

    from pytest_llamaperf.hardware import find_machine
    from pytest_llamaperf.scaling.devices import devices_of
    from pytest_llamaperf.scaling.local import Node
    from pytest_llamaperf.scaling.watching import watcher

    machine = find_machine()
    devices = devices_of(machine, campaign.manifest.about, campaign.manifest.shards, slots)
    watching = watcher(Console())
    try:
        return Node(campaign, devices, machine.slug, watching, alone=alone).run()
    finally:
        watching.close()


def _on_slurm(campaign: Campaign, path: Path | None, detach: bool) -> Outcome:
    from rich.console import Console

    from pytest_llamaperf.errors import UsageError
    from pytest_llamaperf.scaling.slurm.fitting import Cluster
    from pytest_llamaperf.scaling.slurm.following import Followed
    from pytest_llamaperf.scaling.slurm.profiles import Profile, read_profile
    from pytest_llamaperf.scaling.slurm.scheduler import NoAnswer, Slurm, check_commands
    from pytest_llamaperf.scaling.slurm.scripts import folder
    from pytest_llamaperf.scaling.watching import watcher
    from pytest_llamaperf.wording import shown_path

    check_commands()
    profile = Profile() if path is None else read_profile(path)
    slurm = Slurm()
    try:
        cluster = Cluster.of(profile, slurm.nodes())
    except NoAnswer as problem:
        raise UsageError(f"--on slurm: this machine reaches no cluster: {problem}") from None
    watching = watcher(Console())
    try:
        followed = Followed(campaign, slurm, profile, cluster, watching)
        outcome = followed.run(detach=detach)
    except NoAnswer as problem:
        click.echo(f"Error: {problem}", err=True)
        sys.exit(NOT_ENOUGH)
    except OSError as problem:
        raise UsageError(f"{problem.filename or campaign.path}: cannot be written: {problem.strerror}") from None
    finally:
        watching.close()
    if detach and not outcome.interrupted:
        click.echo(
            f"submitted by the scripts in {shown_path(folder(campaign))}: squeue --name={followed.name} shows the jobs, "
            f"scancel --name={followed.name} ends them; run.json is there when all have ended"
        )
    return outcome
