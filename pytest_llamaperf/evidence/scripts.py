"""Shell scripts of a bundle: the test again, NVIDIA's tool without this project, either under a profiler.

Every word that comes from outside is quoted; what comes into a comment is on one line.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_llamaperf.cases import CPU
from pytest_llamaperf.engines.trtllm.plan import CHECKPOINT
from pytest_llamaperf.wording import printable

REPRODUCE, BY_HAND, PROFILE = "reproduce.sh", "by-hand.sh", "profile.sh"

_HERE = 'here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd -P)'

# Iterations of TensorRT-LLM, and what it marks in them; see its docs/source/developer-guide/perf-analysis.md.
_ITERATIONS = "TLLM_PROFILE_START_STOP"
_MARKS = "TLLM_PROFILE_RECORD_GC=1,TLLM_LLMAPI_ENABLE_NVTX=1"
_LAUNCHER = "trtllm-llmapi-launch"


@dataclass(frozen=True)
class Rerun:
    """How the tests of a session are run: `python -m pytest` in `root` with `options`, in `environment`.

    Variables that are None are not set.
    """

    python: str
    root: str
    options: Sequence[str]
    environment: Mapping[str, str | None]


def reproduce(rerun: Rerun, nodeid: str) -> str:
    """Runs exactly one test again. Further options of pytest may be given to the script."""
    return _script(
        f"Runs this test again: {nodeid}",
        "With the options of its run but --gate, --record and --resume, which are about a whole suite; results are written",
        "to the folder `again` beside this script. Options given to this script are added, as in: --restarts 6",
        lines=[
            _HERE,
            f"cd -- {shlex.quote(rerun.root)}",
            *(
                f"unset {name}" if value is None else f"export {name}={shlex.quote(value)}"
                for name, value in rerun.environment.items()
            ),
            f'exec {shlex.join([rerun.python, "-m", "pytest", nodeid, *rerun.options])} --results "$here/again" "$@"',
        ],
    )


def by_hand(lines: str, rerun: Rerun) -> str:
    """What repeats the measurement with NVIDIA's own tool, from commands of `engines.trtllm.reproducing`."""
    return _script(
        "Repeats the measurement with NVIDIA's own tool, without this project. It reads prompts and options that the run wrote.",
        lines=[_HERE, *_environment_for(lines, rerun), 'cd -- "$here"', *_with_checkpoint(lines).splitlines()],
    )


def profile(lines: str | None, *, engine: str, hardware: str, rerun: Rerun) -> str:
    """What would trace the work with Nsight Systems. Nothing runs it but a person, and nothing is judged by it."""
    trtllm = engine != "torch"
    kinds = "cuda,nvtx,python-gil" if trtllm else "nvtx,osrt" if hardware == CPU else "cuda,nvtx,osrt"
    nsys = ["nsys", "profile", "--force-overwrite=true", f"--trace={kinds}", "--trace-fork-before-exec=true"]
    if hardware != CPU:
        nsys.append("--cuda-graph-trace=node")
    if trtllm:
        nsys += ["--capture-range=cudaProfilerApi", f"--env-var={_MARKS}"]
    first = _with_checkpoint(lines).splitlines()[0] if lines else ""
    launch, launcher, command = first.partition(_LAUNCHER)
    if launcher:  # several nodes: a profiler within each process, not around what starts them
        work = [f'{launch}{shlex.join(nsys)} --output="$here/profile.%q{{SLURM_PROCID}}" {launcher}{command}']
    elif first:
        work = [f'{shlex.join(nsys)} --output="$here/profile" {first}']
    else:
        work = [f'{shlex.join(nsys)} --output="$here/profile" sh "$here/{REPRODUCE}" --results "$here/profiled" "$@"']
    iterations = [f': "${{{_ITERATIONS}:=100-150}}"  # of the engine; others may be set', f"export {_ITERATIONS}"]
    return _script(
        "Traces the work with Nsight Systems. It was prepared and not run; times under a profiler are no measurement.",
        lines=[
            "command -v nsys >/dev/null || { echo 'nsys is not on the PATH: it comes with Nsight Systems' >&2; exit 127; }",
            _HERE,
            *(_environment_for(lines, rerun) if lines else []),
            'cd -- "$here"',
            *(iterations if trtllm else []),
            *work,
        ],
    )


def _script(*comments: str, lines: Sequence[str]) -> str:
    told = "".join(f"# {printable(comment)}\n" for comment in comments)
    return f"#!/bin/sh\n{told}set -eu\n" + "".join(f"{line}\n" for line in lines)


def _environment_for(lines: str | None, rerun: Rerun) -> list[str]:
    """Of a command without this project: variables that are set, and a checkpoint to be named where nobody knows it."""
    found = [f"export {name}={shlex.quote(value)}" for name, value in rerun.environment.items() if value is not None]
    if lines and CHECKPOINT in lines:
        found.append(': "${CHECKPOINT:?set it to the folder of the checkpoint, which the engine had not named}"')
    return found


def _with_checkpoint(lines: str) -> str:
    """In single quotes it would be a folder of that name."""
    return lines.replace(f"'{CHECKPOINT}'", f'"{CHECKPOINT}"')
