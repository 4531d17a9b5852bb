"""How many nodes this process may use: what a launcher of TensorRT-LLM was started with.

`trtllm-llmapi-launch` takes the variables of Slurm and MPI out of the environment before it starts what it launches, so
`llamaperf launch` copies what is needed of them to names of our own first.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from pytest_llamaperf.errors import UsageError

NODES, GPUS_PER_NODE, JOB = "LLAMAPERF_NODES", "LLAMAPERF_GPUS_PER_NODE", "LLAMAPERF_JOB"


@dataclass(frozen=True)
class Nodes:
    """`gpus` of one node; None where no launcher was used, and TensorRT-LLM starts its own processes."""

    count: int = 1
    gpus: int | None = None

    @property
    def launched(self) -> int | None:
        """Ranks that were started together and wait for one engine of exactly that many GPUs; None: no launcher."""
        return None if self.gpus is None else self.count * self.gpus


def found_nodes(environment: Mapping[str, str] = os.environ) -> Nodes:
    """What `llamaperf launch` left. Raises UsageError for what is no number."""
    if NODES not in environment and GPUS_PER_NODE not in environment:
        return Nodes()
    return Nodes(_number(environment, NODES), _number(environment, GPUS_PER_NODE))


def copied(environment: Mapping[str, str]) -> dict[str, str]:
    """What of a launcher's environment is copied, by its own names: of Slurm's srun, or of Open MPI's mpirun.

    Raises UsageError where neither says how many processes it started.
    """
    said = environment
    if "OMPI_COMM_WORLD_SIZE" in said:  # first: mpirun may have been typed in an allocation of Slurm
        tasks = said["OMPI_COMM_WORLD_SIZE"]
        here = said.get("OMPI_COMM_WORLD_LOCAL_SIZE") or tasks
        nodes = str(int(tasks) // int(here)) if tasks.isdecimal() and here.isdecimal() and int(here) else "unknown"
        job = said.get("OMPI_MCA_ess_base_jobid", "")
    elif "SLURM_NTASKS" in said:
        nodes = said.get("SLURM_STEP_NUM_NODES") or said.get("SLURM_NNODES") or said.get("SLURM_JOB_NUM_NODES") or "1"
        tasks, job = said["SLURM_NTASKS"], said.get("SLURM_JOB_ID", "")
    else:
        raise UsageError(
            "llamaperf launch: neither srun nor mpirun started this; write\n"
            "  srun -N 2 --ntasks-per-node=8 --mpi=pmix llamaperf launch pytest suites/ --gpu h200"
        )
    if not (tasks.isdecimal() and nodes.isdecimal() and int(tasks) and int(nodes) and int(tasks) % int(nodes) == 0):
        raise UsageError(f"llamaperf launch: {tasks} processes on {nodes} nodes; each node needs one for each GPU")
    return {NODES: nodes, GPUS_PER_NODE: str(int(tasks) // int(nodes)), JOB: job}


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not text.isdecimal() or not int(text):
        raise UsageError(f"{name} is {text!r}; it is set by `llamaperf launch`, to a number from 1 up")
    return int(text)
