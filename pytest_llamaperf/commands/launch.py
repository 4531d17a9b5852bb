"""`llamaperf launch`: engines over several nodes, started by Slurm or MPI and used from one pytest."""

from __future__ import annotations

import os
import shutil

import click

LAUNCHER = "trtllm-llmapi-launch"


@click.command(
    short_help="Run a command on the first of several nodes, with engines over all of them.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def launch(command: tuple[str, ...]) -> None:
    """Start COMMAND through TensorRT-LLM's trtllm-llmapi-launch, under srun or mpirun with a process for each GPU.

    \b
      srun -N 2 --ntasks-per-node=8 --mpi=pmix llamaperf launch pytest suites/ --gpu h200 -k tp8-pp2

    trtllm-llmapi-launch runs COMMAND once, and lets the other processes serve its engines. It takes Slurm's variables
    out of the environment; how many nodes and GPUs there are is kept in LLAMAPERF_NODES, LLAMAPERF_GPUS_PER_NODE and
    LLAMAPERF_JOB. Only cases that use exactly as many GPUs as were started can run; others skip, and say so.
    """
    from pytest_llamaperf.engines.trtllm.nodes import copied
    from pytest_llamaperf.errors import UsageError

    kept = copied(os.environ)
    if shutil.which(LAUNCHER) is None:
        raise UsageError(f"{LAUNCHER} is not on the PATH; it comes with TensorRT-LLM")
    os.execvpe(LAUNCHER, [LAUNCHER, *command], {**os.environ, **kept})
