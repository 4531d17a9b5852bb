"""How many nodes there are: copied by `llamaperf launch` from a launcher's environment, found by what it launched."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llamaperf.engines.trtllm.nodes import Nodes, copied, found_nodes
from pytest_llamaperf.errors import UsageError

SLURM = {
    "SLURM_JOB_ID": "4711", "SLURM_NTASKS": "16", "SLURM_NNODES": "2", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "3",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "16", "OMPI_COMM_WORLD_LOCAL_SIZE": "8", "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_MCA_ess_base_jobid": "815",
}  # fmt: skip


# --- what was launched ------------------------------------------------------------------------------------------


def test_without_a_launcher_there_is_one_node_and_tensorrt_llm_starts_its_own_processes() -> None:
    nodes = found_nodes({"SLURM_NTASKS": "16"})

    assert nodes == Nodes(count=1, gpus=None)
    assert nodes.launched is None


def test_what_was_launched_is_every_gpu_of_every_node() -> None:
    nodes = found_nodes({"LLAMAPERF_NODES": "2", "LLAMAPERF_GPUS_PER_NODE": "8"})

    assert nodes == Nodes(count=2, gpus=8)
    assert nodes.launched == 16


@pytest.mark.parametrize("value", ["0", "-2", "two", "", "1.5", "2 "])
def test_what_is_no_number_of_nodes_is_refused_with_who_sets_it(value: str) -> None:
    with pytest.raises(UsageError, match=r"LLAMAPERF_NODES is '.*'; it is set by `llamaperf launch`, to a number"):
        found_nodes({"LLAMAPERF_NODES": value, "LLAMAPERF_GPUS_PER_NODE": "8"})


@pytest.mark.parametrize(("given", "missing"), [("NODES", "GPUS_PER_NODE"), ("GPUS_PER_NODE", "NODES")])
def test_one_number_without_the_other_is_refused(given: str, missing: str) -> None:
    with pytest.raises(UsageError, match=f"LLAMAPERF_{missing} is ''"):
        found_nodes({f"LLAMAPERF_{given}": "2"})


# --- what is copied ---------------------------------------------------------------------------------------------


def kept(nodes: str, gpus: str, job: str = "") -> dict[str, str]:
    return {"LLAMAPERF_NODES": nodes, "LLAMAPERF_GPUS_PER_NODE": gpus, "LLAMAPERF_JOB": job}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (SLURM, kept("2", "8", "4711")),
        ({"SLURM_NTASKS": "8"}, kept("1", "8")),
        ({"SLURM_NTASKS": "8", "SLURM_NNODES": "2"}, kept("2", "4")),
        ({"SLURM_NTASKS": "8", "SLURM_JOB_NUM_NODES": "4"}, kept("4", "2")),
        (OPEN_MPI, kept("2", "8", "815")),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, kept("1", "4")),
    ],
    ids=["srun", "tasks alone", "nodes", "nodes of the job", "mpirun", "ranks alone"],
)
def test_of_a_launcher_nodes_gpus_and_job_are_kept(environment: dict[str, str], expected: dict[str, str]) -> None:
    assert copied(environment) == expected


def test_a_step_on_fewer_nodes_than_its_job_counts_its_own() -> None:
    assert copied({**SLURM, "SLURM_NTASKS": "8", "SLURM_STEP_NUM_NODES": "1"}) == kept("1", "8", "4711")


def test_mpirun_within_an_allocation_of_slurm_counts_what_it_started_itself() -> None:
    assert copied({**SLURM, "SLURM_NTASKS": "2", **OPEN_MPI}) == kept("2", "8", "815")


@given(nodes=st.integers(1, 64), gpus=st.integers(1, 16))
def test_what_is_copied_is_found_again(nodes: int, gpus: int) -> None:
    environment = {"SLURM_NTASKS": str(nodes * gpus), "SLURM_NNODES": str(nodes)}

    assert found_nodes(copied(environment)) == Nodes(nodes, gpus)


@pytest.mark.parametrize("environment", [{}, {"SLURM_JOB_ID": "4711"}, {"PMIX_RANK": "0"}], ids=repr)
def test_without_a_launcher_nothing_is_copied_and_a_line_shows_how_to_start_one(environment: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="neither srun nor mpirun started this; write\n  srun -N 2"):
        copied(environment)


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({**SLURM, "SLURM_NTASKS": "15"}, "15 processes on 2 nodes; each node needs one for each GPU"),
        ({**SLURM, "SLURM_NTASKS": "0"}, "0 processes on 2 nodes"),
        ({**SLURM, "SLURM_NTASKS": "many"}, "many processes on 2 nodes"),
        ({**SLURM, "SLURM_STEP_NUM_NODES": "0"}, "16 processes on 0 nodes"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "many"}, "many processes on unknown nodes"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "0"}, "16 processes on unknown nodes"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "12", "OMPI_COMM_WORLD_LOCAL_SIZE": "16"}, "12 processes on 0 nodes"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "11", "OMPI_COMM_WORLD_LOCAL_SIZE": "5"}, "11 processes on 2 nodes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_launcher_that_gives_nodes_unequal_shares_is_refused_with_its_numbers(
    environment: dict[str, str], told: str
) -> None:
    with pytest.raises(UsageError, match=f"^llamaperf launch: {told}"):
        copied(environment)


# --- the command ------------------------------------------------------------------------------------------------

# As TensorRT-LLM's: what a launcher set is gone before the command starts.
LAUNCHER = """#!/bin/bash
for name in $(compgen -e | grep -E '^(SLURM|PMI|PMIX|OMPI|OPAL|MPI)_'); do unset "$name"; done
echo "launched: $#"
exec "$@"
"""
SHOW = (
    "import os, sys; [print(name) for name in sorted(os.environ)]; print(sys.argv[1:], os.environ.get('LLAMAPERF_JOB'))"
)

Launch = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """`llamaperf launch` as typed under a launcher, where only this Python's and the system's commands can be found."""

    def run(*command: str, under: dict[str, str], installed: bool = True) -> subprocess.CompletedProcess[str]:
        folder = tmp_path / "bin"
        folder.mkdir()
        if installed:
            script = folder / "trtllm-llmapi-launch"
            script.write_text(LAUNCHER)
            script.chmod(0o755)
        environment = {
            "PATH": f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin",
            "HOME": str(tmp_path),
            "LC_ALL": "C.UTF-8",
        }
        return subprocess.run(
            [sys.executable, "-c", "from pytest_llamaperf.commands import main; main(prog_name='llamaperf')", "launch",
             *command],
            env={**environment, **under}, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
        )  # fmt: skip

    return run


def test_what_the_launcher_takes_out_of_the_environment_is_there_by_our_names(launch: Launch) -> None:
    done = launch(sys.executable, "-c", SHOW, under={**SLURM, "PMI_RANK": "3", "PMIX_RANK": "3"})

    assert (done.returncode, done.stderr) == (0, "")
    names = done.stdout.splitlines()
    assert {"LLAMAPERF_NODES", "LLAMAPERF_GPUS_PER_NODE", "LLAMAPERF_JOB"} <= set(names)
    assert not [name for name in names if name.startswith(("SLURM_", "PMI", "OMPI_"))]
    assert names[-1] == "[] 4711"


def test_the_launched_command_finds_its_nodes(launch: Launch) -> None:
    code = "from pytest_llamaperf.engines.trtllm.nodes import found_nodes; print(found_nodes())"

    done = launch(sys.executable, "-c", code, under=OPEN_MPI)

    assert done.stdout.splitlines()[-1] == "Nodes(count=2, gpus=8)"


def test_options_of_the_command_are_left_to_the_command(launch: Launch) -> None:
    done = launch(sys.executable, "-c", SHOW, "--gpu", "h200", "-k", "tp8 or pp8", "--help", under=SLURM)

    assert done.stdout.splitlines()[-1] == "['--gpu', 'h200', '-k', 'tp8 or pp8', '--help'] 4711"


def test_the_status_is_that_of_the_command(launch: Launch) -> None:
    assert launch(sys.executable, "-c", "raise SystemExit(3)", under=SLURM).returncode == 3


def test_a_launcher_that_is_not_there_is_named(launch: Launch) -> None:
    done = launch("true", under=SLURM, installed=False)

    assert (done.returncode, done.stdout) == (2, "")
    assert "Error: trtllm-llmapi-launch is not on the PATH; it comes with TensorRT-LLM" in done.stderr


def test_what_was_not_launched_is_wrong_usage_and_starts_nothing(launch: Launch) -> None:
    done = launch("true", under={})

    assert (done.returncode, done.stdout) == (2, "")
    assert "Error: llamaperf launch: neither srun nor mpirun started this" in done.stderr


def test_a_launch_of_nothing_is_wrong_usage(launch: Launch) -> None:
    done = launch(under=SLURM)

    assert done.returncode == 2
    assert "Missing argument 'COMMAND...'" in done.stderr
