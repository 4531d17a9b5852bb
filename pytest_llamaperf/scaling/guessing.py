"""How long engines load and work, before anybody has measured it: for the order of shards and for a rough bill.

Guesses, stated as such wherever they are shown. They know the size of the weights, the tokens that are worked off and the
GPUs; a run that was measured replaces them (`durations`).
"""

from __future__ import annotations

from dataclasses import dataclass

from pytest_llamaperf.cases import CPU, Case, Workload
from pytest_llamaperf.engines import EngineSpec
from pytest_llamaperf.lengths import request_lengths


@dataclass(frozen=True)
class _Speeds:
    """start: seconds until an engine without weights is up; storage: bytes of weights read a second, for the whole
    engine; flops: of one device, as reached in batches; bandwidth: bytes of weights one device reads a second."""

    start: float
    storage: float
    flops: float
    bandwidth: float


# A node of eight Hopper GPUs: about half of what the data sheet of an H200 says of FP8 and of its memory, weights from
# local NVMe disks. A CPU: the embedded model on two cores, by watching it.
_GPU = _Speeds(start=60.0, storage=2e9, flops=7e14, bandwidth=2.4e12)
_CPU = _Speeds(start=4.0, storage=2e8, flops=4e10, bandwidth=4e9)

# Tokens an accuracy task reads (MMLU, GSM8K and the like, with their examples), and one of the fixed tasks.
_EVALUATED, _FIXED = 1e7, 2e4
# A CPU is asked the offline tasks of the package alone.
_EVALUATED_ON_A_CPU = 2e4

# Seconds to simulate a case.
PREDICTED = 2.0


def load_seconds(spec: EngineSpec) -> float:
    """Of one start of an engine: the process, and its weights from the disk."""
    speeds = _CPU if spec.hardware == CPU else _GPU
    return speeds.start + spec.recipe.weight_bytes(spec.model) * spec.layout.dp / speeds.storage


def work_seconds(case: Case, runs: int, *, evaluated: bool) -> float:
    """Of everything a case is asked in a session. `runs` counts the runs of a workload in all restarts, with those that
    warm up; `evaluated`: an accuracy task, not one of the fixed ones.

    2 FLOP for each weight and token; one request at a time reads all weights for each token.
    """
    speeds = _CPU if case.hardware == CPU else _GPU
    weights = case.model.attention_weights + case.model.feed_forward_weights
    each = 2.0 * weights / (speeds.flops * case.layout.gpus)
    if not isinstance(case.work, Workload):
        if not evaluated:
            return each * _FIXED
        return each * (_EVALUATED_ON_A_CPU if case.hardware == CPU else _EVALUATED)
    lengths = request_lengths(case.work)
    reading = each * sum(isl for isl, _ in lengths)
    step = case.recipe.weight_bytes(case.model) / (speeds.bandwidth * case.layout.gpus)
    together = case.work.concurrency or len(lengths)
    writing = sum(osl for _, osl in lengths) * max(each, step / together)
    arriving = len(lengths) / case.work.arrival_rate if case.work.arrival_rate else 0.0
    return runs * max(reading + writing, arriving)
