"""What is submitted: one readable script for each shard, kept beside the results, that anybody can submit again by hand."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from pytest_llamaperf.scaling.contract import OUTPUT, Campaign
from pytest_llamaperf.scaling.manifest import PERFORMANCE, Shard
from pytest_llamaperf.scaling.slurm.fitting import ENDING_SECONDS, Seat
from pytest_llamaperf.scaling.slurm.profiles import Profile

JOBS = "slurm"

# The command llamaperf, by a name that needs no PATH.
_LLAMAPERF = (sys.executable, "-m", "pytest_llamaperf.commands")

# Minutes a merge may take.
_MERGE_MINUTES = 30


def job_name(campaign: Campaign) -> str:
    """Of all jobs of a run, so that `squeue --name` and `scancel --name` find them without a list."""
    return f"llamaperf-{campaign.manifest.id[:8]}"


def shard_script(campaign: Campaign, shard: Shard, seat: Seat, profile: Profile) -> str:
    """The job of a shard. Dependencies, and nodes to keep away from, are given when it is submitted."""
    alone = shard.kind == PERFORMANCE and not profile.share_nodes
    launched = seat.nodes > 1
    options = [
        f"--comment=run {campaign.manifest.id} shard {shard.key}",
        f"--output={_literal(campaign.folder(shard) / OUTPUT)}",
        f"--time={seat.job_minutes}",
        f"--nodes={seat.nodes}",
        f"--ntasks-per-node={seat.gpus if launched else 1}",
        *([f"--gres={profile.gres}:{seat.gpus}"] if seat.gpus else []),
        *([f"--cpus-per-task={seat.slots}"] if seat.slots > 1 else []),
        *(["--exclusive"] if alone else []),
        *([f"--exclude={','.join(profile.exclude)}"] if profile.exclude else []),
        *profile.sbatch,
    ]
    start = []
    if launched:
        start = ["srun", "--mpi=pmix", *profile.srun, *_LLAMAPERF, "launch"]
    elif profile.srun:
        start = ["srun", "--ntasks=1", *profile.srun]
    # Next to pytest: srun passes no signal on, it kills what it started.
    limited = ["timeout", "--foreground", f"--kill-after={ENDING_SECONDS}", str(math.ceil(seat.minutes * 60))]
    return _script(
        campaign,
        _placed(profile, profile.partition) + options,
        f"# {shard}: {len(shard.tests)} tests, expected to take {shard.minutes:.1f} minutes ({shard.basis}).",
        f"# At its time limit the shard is told to end, and writes its report; {ENDING_SECONDS} seconds later it is killed.",
        *profile.setup,
        f"exec {shlex.join([*start, *limited])} \\\n    {shlex.join(campaign.command(shard))}",
    )


def merge_script(campaign: Campaign, profile: Profile) -> str:
    """The job that merges what there is. It is submitted to wait for the end of all others."""
    command = [*_LLAMAPERF, "merge", str(campaign.path)]
    return _script(
        campaign,
        [
            *_placed(profile, profile.merge.partition or profile.partition),
            f"--comment=run {campaign.manifest.id} merge",
            f"--output={_literal(folder(campaign) / 'merge.log')}",
            f"--time={_MERGE_MINUTES}",
            *profile.merge.sbatch,
        ],
        "# What the shards left, merged into one run.",
        *profile.setup,
        f"exec {shlex.join(command)}",
    )


def folder(campaign: Campaign) -> Path:
    """Of the scripts."""
    return campaign.path / JOBS


def _placed(profile: Profile, partition: str) -> list[str]:
    named = {"partition": partition, "account": profile.account, "qos": profile.qos}
    return [f"--{name}={value}" for name, value in named.items() if value]


def _script(campaign: Campaign, options: Sequence[str], *lines: str) -> str:
    # A node that failed may have left a shard half done: the controller knows, and starts it again elsewhere; Slurm would not.
    ours = [f"--job-name={job_name(campaign)}", "--no-requeue"]
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            *(f"#SBATCH {_quoted(option)}" for option in [*ours, *options]),
            "set -euo pipefail",
            f"cd {shlex.quote(campaign.manifest.about.directory)}",
            *(f"export {name}={shlex.quote(value)}" for name, value in campaign.environment().items()),
            *lines,
            "",
        ]
    )


def _literal(path: Path) -> str:
    """Where %j and the like would be the number of the job."""
    return str(path).replace("%", "%%")


def _quoted(option: str) -> str:
    """Within a line of #SBATCH, quotes are read as a shell does."""
    name, sign, value = option.partition("=")
    return f"{name}={shlex.quote(value)}" if sign else option
