"""Kubernetes: a Job for each shard of a planned run that has no results yet.

    jobs.py RUN TEMPLATE > jobs    # then, line by line: kubectl create -f -

Every line is a List as JSON. The Jobs of a line may run at the same time; those of the next need what they quantize. It is run
in the image of the Jobs (`$IMAGE`), because a shard is started as it was planned, from the same folder by the same Python.
"""

from __future__ import annotations

import copy
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.scaling.contract import Campaign
from pytest_llamaperf.scaling.manifest import PERFORMANCE, Shard, read_manifest

GPUS_OF_A_NODE = 8  # <- what shards that measure are given, so that nobody else is on their node
LONGEST = 3.0  # <- a pod is ended after its expected minutes by this, and never before LEAST minutes
LEAST = 60.0  # <-

# pytest ends with 0, 1 or 5 once its results are whole.
_WITH_RESULTS = '"$@"; status=$?; case $status in 0|1|5) exit 0;; *) exit $status;; esac'


def waves(shards: Sequence[Shard]) -> Iterator[list[Shard]]:
    """Shards that may run at the same time, once those before them have ended. The manifest was checked for circles."""
    waiting = {shard.key: shard for shard in shards}
    while waiting:
        ready = [shard for shard in waiting.values() if not waiting.keys() & set(shard.after)]
        yield ready
        for shard in ready:
            del waiting[shard.key]


def job(campaign: Campaign, shard: Shard, template: dict[str, Any], image: str) -> dict[str, Any]:
    made = copy.deepcopy(template)
    labels = {"llamaperf/run": campaign.path.name, "llamaperf/part": "shard"}
    spec = made["spec"]["template"]["spec"]
    container = spec["containers"][0]
    made["metadata"]["labels"] |= labels
    made["metadata"]["annotations"] = {"llamaperf/shard": str(shard)}
    made["spec"]["template"]["metadata"]["labels"] |= labels
    # Of the pod, not of the Job: the time in which it waits for GPUs does not count.
    spec["activeDeadlineSeconds"] = math.ceil(60 * max(LEAST, LONGEST * shard.minutes))
    container["image"] = image
    container["workingDir"] = campaign.manifest.about.directory
    container["command"] = ["bash", "-c", _WITH_RESULTS, "shard", *campaign.command(shard)]
    container["env"] += [{"name": name, "value": value} for name, value in campaign.environment().items()]
    gpus = GPUS_OF_A_NODE if shard.kind == PERFORMANCE else shard.devices
    if shard.devices > GPUS_OF_A_NODE:
        sys.exit(
            f"{shard}: needs {shard.devices} GPUs and a pod has {GPUS_OF_A_NODE}; run it by `llamaperf run --on slurm`"
        )
    container["resources"]["limits"]["nvidia.com/gpu"] = gpus
    return made


def main() -> None:
    run, template = Path(sys.argv[1]), yaml.safe_load(Path(sys.argv[2]).read_text(encoding="utf-8"))
    try:
        campaign = Campaign(read_manifest(run), run)
        campaign.check()
    except UsageError as problem:
        sys.exit(f"Error: {problem}")
    for wave in waves(campaign.remaining()):
        made = [job(campaign, shard, template, os.environ["IMAGE"]) for shard in wave]
        print(json.dumps({"apiVersion": "v1", "kind": "List", "items": made}))


if __name__ == "__main__":
    main()
