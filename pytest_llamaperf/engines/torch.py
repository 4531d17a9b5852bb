"""The reference engine on the parent's side: a checkpoint, a child process, and traces from what it answers."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pytest_llamaperf.cases import CPU, Model, Number, Workload
from pytest_llamaperf.checkpoints import Checkpoint
from pytest_llamaperf.engines import Distributions, EngineSpec, Run, Scored, Surroundings
from pytest_llamaperf.engines.hosted import Hosted, checkpoint_for, fingerprint, started
from pytest_llamaperf.errors import Unsupported
from pytest_llamaperf.hosting.host import Host
from pytest_llamaperf.hosting.phases import Phase
from pytest_llamaperf.lengths import request_lengths
from pytest_llamaperf.measurements import Fingerprint, Source
from pytest_llamaperf.metrics import LOAD_TIME, PEAK_MEMORY
from pytest_llamaperf.traces import Trace

# What runs in the child process: a package of `children/`.
DRIVER = "torch_llama"

# One CPU thread a rank where time is taken: with two, a busy neighbour costs four fifths of the speed, for threads of
# OpenMP wait spinning. Answers are not timed and use all, which then must not spin: beside each other two engines with
# two threads each are as fast as with one, where they would lose up to a half.
CPU_THREADS = 1
THREADS_WAIT_ASLEEP = {"OMP_WAIT_POLICY": "PASSIVE"}


class TorchEngine(Hosted):
    """An open reference engine: an AnsweringEngine.

    Raises EngineError when it cannot be opened, a checkpoint it needs being made first.
    """

    source = Source.MEASURED

    def __init__(self, spec: EngineSpec, surroundings: Surroundings) -> None:
        _refuse_what_cannot_be(spec)
        checkpoint = None if spec.model.random else checkpoint_for(spec, surroundings)
        began = time.monotonic()
        with contextlib.ExitStack() as ending:
            self._host = started(DRIVER, spec, surroundings, ending, environment=THREADS_WAIT_ASLEEP)
            settings = settings_for(spec, checkpoint)
            loaded = self._host.call("load", settings, Phase.LOAD)
            self._load_time = time.monotonic() - began
            self._fingerprint = _fingerprint(settings, loaded, checkpoint, self._host)
            self._ending = ending.pop_all()

    def run(self, workload: Workload) -> Run:
        if workload.arrival_rate is not None:
            raise Unsupported(
                f"{workload}: the torch engine has no open loop; it runs max-throughput, min-latency and concurrency-N"
            )
        lengths = request_lengths(workload)
        arguments = {"lengths": lengths, "concurrency": workload.concurrency}
        found = self._host.call("run", arguments, Phase.RUN)
        opened = self._fingerprint
        return Run(
            tuple(_trace(reading) for reading in found["traces"]),
            readings={PEAK_MEMORY: float(found["peak_memory"]), LOAD_TIME: self._load_time},
            fingerprint=replace(opened, settings={**opened.settings, "dataset": found["dataset"]}),
        )

    def score(
        self, sequences: Sequence[Sequence[int]], *, tails: Sequence[int] | None = None, noise: float = 0.0
    ) -> list[Scored]:
        return self._scored(sequences, tails=None if tails is None else list(tails), noise=noise)

    def distributions(self, sequences: Sequence[Sequence[int]], top: int) -> list[Distributions]:
        return self._distributions(sequences, top=top)


def _refuse_what_cannot_be(spec: EngineSpec) -> None:
    if spec.layout.dp > 1:
        raise Unsupported(f"{spec}: the torch engine serves no copies side by side; measure {spec.layout} without dp")
    drawn = {Number.FP32, Number.BF16, Number.FP8_TENSOR, Number.FP8_ROW}
    for number in (spec.recipe.attention, spec.recipe.feed_forward):
        if spec.model.random and number not in drawn:
            raise Unsupported(f"{spec}: random weights cannot be drawn as {number}; these can: {', '.join(drawn)}")


def settings_for(spec: EngineSpec, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """What the child is told: `children/torch_llama/rank.py`, Settings."""
    recipe = spec.recipe
    return {
        "checkpoint": None if checkpoint is None else str(checkpoint.path),
        "config": {} if checkpoint else _config(spec.model),
        "recipe": {
            "attention": recipe.attention.value,
            "feed_forward": recipe.feed_forward.value,
            "kv_cache": recipe.kv_cache.value,
            "bf16_layers": recipe.bf16_layers,
        },
        "tp": spec.layout.tp,
        "pp": spec.layout.pp,
        "slots": spec.limits.max_batch_size,
        "positions": spec.limits.max_seq_len or spec.model.context,
        "most_prompt_tokens": spec.limits.max_num_tokens,
        "device": "cpu" if spec.hardware == CPU else "cuda",
        "threads": CPU_THREADS,
        "answer_threads": max(1, len(os.sched_getaffinity(0)) // (spec.layout.tp * spec.layout.pp)),
    }


def _config(model: Model) -> dict[str, Any]:
    """The catalog's shape as the config.json of a checkpoint would say it."""
    words = {"theta": "rope_theta", "type": "rope_type", "original_context": "original_max_position_embeddings"}
    return {
        "model_type": "llama",
        "num_hidden_layers": model.layers,
        "hidden_size": model.hidden,
        "intermediate_size": model.feed_forward,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "vocab_size": model.vocabulary,
        "tie_word_embeddings": model.tied_embeddings,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {words.get(key, key): value for key, value in model.rope.items()},
    }


def _fingerprint(
    settings: Mapping[str, Any], loaded: Mapping[str, Any], checkpoint: Checkpoint | None, host: Host
) -> Fingerprint:
    """Versions and settings as the child found them."""
    kept = ("slots", "positions", "most_prompt_tokens", "device")
    effective = {**{name: settings[name] for name in kept}, "threads": loaded["threads"]}
    return fingerprint({**loaded["versions"], **host.versions()}, effective, checkpoint, host.environment)


def _trace(reading: Sequence[float]) -> Trace:
    submitted, first_token, last_token, input_tokens, output_tokens = reading
    return Trace(submitted, first_token, last_token, int(input_tokens), int(output_tokens))
