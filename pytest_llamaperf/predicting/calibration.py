"""From operators timed alone to an engine running for minutes: two numbers for everything, and their evidence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Calibration:
    """`scale` multiplies the operator time of every iteration; `request_seconds` is added for each request that joins.

    The first stands for what isolated operators do not show (clocks under the power limit, gaps between kernels),
    the second for the host's work on a request, which a small model with short requests spends a tenth of its time on.
    `provenance` says what both were fitted to and tested on.
    """

    scale: float
    request_seconds: float
    provenance: str


# What operators alone would give: for the physical limit, and for fitting.
UNCALIBRATED = Calibration(1.0, 0.0, "nothing fitted")


# Fitted and tested by benchmarks/prediction/accuracy.py, whose output stands in benchmarks/README.md. The same
# for all models, GPUs and shapes on purpose: a factor of its own for each would explain away the very losses this
# project is there to find. docs/decisions/0004-one-calibration.md tells what else was tried.
CALIBRATION = Calibration(
    scale=1.075,
    request_seconds=0.55e-3,
    provenance="fitted to 107 published throughputs of TensorRT-LLM 0.20.0, tested on 30 of 1.0",
)
