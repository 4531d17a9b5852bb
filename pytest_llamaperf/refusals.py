"""Options that make no sense together, and runs that this machine cannot do: refused at the start, with what would work."""

from __future__ import annotations

from pytest_llamaperf.acceptance import LEAST_AGAINST, Acceptance
from pytest_llamaperf.cases import CPU
from pytest_llamaperf.engines import is_built_in, readiness
from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.gpu_watch.clocks import OPTION
from pytest_llamaperf.operator_tables import INSTALLED
from pytest_llamaperf.settings import AUTO, Settings

# The kinds that are TensorRT-LLM.
TRTLLM = ("tensorrt-llm", "trtllm-bench")


def check_options(acceptance: Acceptance) -> None:
    """Refuse at the start what the command line alone shows to be impossible. Raises UsageError."""
    settings = acceptance.settings
    if settings.record and settings.gate:
        raise UsageError(
            "--record with --gate: a gate judges promises, and a recording makes them; run one, then the other"
        )
    if settings.gate_file and not settings.gate:
        raise UsageError("--gate-file names what --gate requires; add --gate")
    if settings.record and not acceptance.measures:
        raise UsageError("--record with --engine predicted: a prediction never becomes a promise")
    if settings.tables != INSTALLED and acceptance.measures:
        raise UsageError("--tables names operator times, of which predictions are made: add --engine predicted")
    if settings.lock_clocks is not None and (not acceptance.measures or acceptance.gpu == CPU):
        raise UsageError(
            f"{OPTION} with {'--gpu cpu' if acceptance.measures else '--engine predicted'}: no GPU is measured on; leave it out"
        )
    if settings.against:
        _check_against(acceptance)
    elif settings.allowed:
        raise UsageError("--allow-difference is about the two builds of --against; add --against, or leave it out")
    if settings.resume and not settings.results:
        raise UsageError("--resume goes on with what --results keeps; add --results DIR, the folder of that run")
    if settings.resume and settings.record:
        raise UsageError("--record with --resume: only what one session measured becomes promises; leave out --resume")
    if settings.shard:
        _check_shard(settings)
    if settings.rounds and acceptance.engine_kind == "trtllm-bench":
        raise UsageError("--rounds with --engine trtllm-bench: every run of it is a restart; use --restarts")
    if settings.gpu != AUTO:
        check_possible(acceptance)


def _check_against(acceptance: Acceptance) -> None:
    settings = acceptance.settings
    if not acceptance.measures:
        raise UsageError("--against with --engine predicted: it compares builds that are measured; predictions repeat")
    if settings.record:
        raise UsageError(
            "--against with --record: one compares two builds, the other promises; run one, then the other"
        )
    if settings.restarts and settings.restarts < LEAST_AGAINST:
        raise UsageError(
            f"--against with --restarts {settings.restarts}: noise is learned from {LEAST_AGAINST} or more"
        )


def _check_shard(settings: Settings) -> None:
    """Refuse what is about a run as a whole. Raises UsageError."""
    if settings.against:
        raise UsageError(
            "--against in shards: it learns what noise is usual from all cases of one session; run pytest without shards"
        )
    if settings.record:
        raise UsageError(
            "--record in shards: they would write one file at the same time; run pytest without shards, or "
            "`llamaperf accept` afterwards"
        )


def check_plan(acceptance: Acceptance) -> None:
    """Refuse a plan of what is given no arguments. Raises UsageError."""
    if acceptance.engine_kind not in TRTLLM:
        raise UsageError(
            f"--plan with --engine {acceptance.engine_kind}: it shows what TensorRT-LLM would be given; add "
            f"--engine {' or --engine '.join(TRTLLM)}"
        )


def check_possible(acceptance: Acceptance) -> None:
    """Refuse, with what would work, a run that this machine cannot do as asked. Raises UsageError."""
    settings = acceptance.settings
    if not acceptance.measures and acceptance.gpu == CPU:
        raise UsageError("--engine predicted needs the GPU to predict: add --gpu h100, --gpu h200 or --gpu b200")
    if not acceptance.measures:
        settings.tables.check(acceptance.gpu)
    if acceptance.measures and acceptance.gpu != CPU and not acceptance.machine.count(acceptance.gpu):
        raise UsageError(
            f"--gpu {acceptance.gpu}: there is none in this machine; found: {acceptance.machine}.\n"
            f"These would work here:\n"
            f"  pytest suites/ --gpu {acceptance.gpu} --engine predicted   (NVIDIA's operator times; needs no GPU)\n"
            f"  pytest suites/ --gpu {CPU:{len(acceptance.gpu)}}                      (the embedded model; needs the torch engine)"
        )


def check_engine(acceptance: Acceptance) -> None:
    """Refuse a kind of engine that cannot work here. Raises UsageError."""
    opener = acceptance.openers.get(acceptance.engine_kind)
    if opener is not None and not is_built_in(opener):
        return
    ready = readiness(acceptance.engine_kind, tuple(acceptance.openers))
    if not ready.ready:
        raise UsageError(f"--engine {acceptance.engine_kind}: {ready.detail}; `llamaperf doctor` shows what works here")
