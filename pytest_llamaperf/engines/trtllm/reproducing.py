"""The line that repeats a result by hand, with NVIDIA's own tool and without this project."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from pytest_llamaperf.cases import Workload
from pytest_llamaperf.engines import EngineSpec
from pytest_llamaperf.engines.trtllm import inputs
from pytest_llamaperf.engines.trtllm.command import Paths, Takes, kind_of, options, words
from pytest_llamaperf.engines.trtllm.nodes import Nodes
from pytest_llamaperf.errors import Unsupported


def line(
    spec: EngineSpec, workload: Workload, checkpoint: str, nodes: Nodes, takes: Callable[[str], Takes]
) -> str | None:
    """For a shell, from any folder where reports may be written; None where trtllm-bench cannot do this.

    `takes` tells what a command of trtllm-bench takes. The files it reads must have been written: `inputs`.
    """
    try:
        kind = kind_of(workload)
        paths = Paths(
            checkpoint=checkpoint,
            dataset=str(inputs.dataset_path(workload, spec.model.vocabulary)),
            options=str(inputs.options_path(options(spec, kind))),
            workspace="/tmp",
            report="report.json",
            requests="requests.json",
        )
        command = words(spec, workload, paths, takes(kind))
    except Unsupported:
        return None
    if nodes.launched:
        srun = f"srun -N {nodes.count} --ntasks-per-node={nodes.gpus} --mpi=pmix trtllm-llmapi-launch"
        command = [*srun.split(), *command]
    return shlex.join(command)
