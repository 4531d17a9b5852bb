"""`--engine tensorrt-llm`: the LLM API in a child process, timed by our clock."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from packaging.version import Version

from pytest_llamaperf.cases import Workload
from pytest_llamaperf.engines import Distributions, EngineSpec, Run, Scored, Surroundings, Until
from pytest_llamaperf.engines.hosted import Hosted, fingerprint, started
from pytest_llamaperf.engines.trtllm import command, inputs, reproducing
from pytest_llamaperf.engines.trtllm.arguments import Arguments, flat, said, wanted
from pytest_llamaperf.engines.trtllm.contract import known_at, scoring_of
from pytest_llamaperf.engines.trtllm.nodes import found_nodes
from pytest_llamaperf.engines.trtllm.opening import (
    DRIVER,
    Quantization,
    checkpoint_of,
    refuse_what_cannot_be,
    runtime_version,
)
from pytest_llamaperf.errors import EngineError, Unsupported
from pytest_llamaperf.hosting.failures import EngineFailure, FailureKind
from pytest_llamaperf.hosting.phases import Phase
from pytest_llamaperf.lengths import arrival_times
from pytest_llamaperf.measurements import Source
from pytest_llamaperf.metrics import LOAD_TIME
from pytest_llamaperf.traces import Trace, percentile
from pytest_llamaperf.wording import amount, change

# Relative: more than this between our clock and TensorRT-LLM's own is told.
DISAGREEMENT = 0.02


class ServingEngine(Hosted):
    """An open LLM: an AnsweringEngine.

    Raises EngineError when it cannot be opened, or when it is not what it was asked to be.
    """

    source = Source.MEASURED

    def __init__(self, spec: EngineSpec, surroundings: Surroundings) -> None:
        self._spec, self._nodes = spec, found_nodes()
        refuse_what_cannot_be(spec, self._nodes)
        with contextlib.ExitStack() as ending:
            self._host = started(DRIVER, spec, surroundings, ending)
            probe = self._host.call("probe", {}, Phase.LOAD)
            versions = probe["versions"]
            self._version = runtime_version(versions, probe["version"])
            self._checkpoint = checkpoint_of(spec, surroundings, versions)
            arguments = wanted(spec, str(self._checkpoint.path), self._nodes)
            spoken, self._notes = said(arguments, _accepting(probe, self._version))
            began = time.monotonic()
            loaded = self._host.call("load", {"arguments": spoken}, Phase.LOAD)
            self._load_time = time.monotonic() - began
            effective = self._checked(spoken, loaded["effective"])
            # What is installed, what is loaded of it, and the version as both say it.
            versions = {**versions, **self._host.versions(), "tensorrt_llm": str(self._version)}
            self._fingerprint = fingerprint(versions, effective, self._checkpoint, self._host.environment)
            self._ending = ending.pop_all()

    def run(self, workload: Workload) -> Run:
        spec = self._spec
        requests = inputs.dataset(workload, spec.model.vocabulary)
        arrivals = arrival_times(workload)
        found = self._host.call(
            "run",
            {
                "dataset": str(requests.path),
                "concurrency": workload.concurrency,
                "arrivals": None if arrivals is None else list(arrivals),
            },
            Phase.RUN,
        )
        traces = tuple(_trace(reading) for reading in found)
        opened = self._fingerprint
        settings = {**opened.settings, "dataset": requests.digest, "streaming": True}
        if workload.arrival_rate is None:
            inputs.options_file(command.options(spec, command.kind_of(workload)))  # which the line below names
        return Run(
            traces,
            readings={LOAD_TIME: self._load_time},
            notes=(*self._notes, *_second_opinion(traces, [reading["theirs"] for reading in found])),
            fingerprint=dataclasses.replace(opened, settings=settings),
            reproduce=reproducing.line(
                spec, workload, str(self._checkpoint.path), self._nodes, lambda kind: command.known(self._version, kind)
            ),
        )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        *,
        until: Until | None = None,
        concurrency: int | None = None,
    ) -> list[list[int]]:
        self._refuse_long(prompts, tokens)
        return super().generate(prompts, tokens, until=until, concurrency=concurrency)

    def score(
        self, sequences: Sequence[Sequence[int]], *, tails: Sequence[int] | None = None, noise: float = 0.0
    ) -> list[Scored]:
        if noise:
            raise Unsupported("TensorRT-LLM cannot be given noise on what it embeds")
        scored = self._scored(sequences, method=self._way_to_judge(sequences))
        if tails is None:
            return scored
        return [Scored(found.logprobs[-tail:], found.likely[-tail:]) for found, tail in zip(scored, tails, strict=True)]

    def distributions(self, sequences: Sequence[Sequence[int]], top: int) -> list[Distributions]:
        return self._distributions(sequences, method=self._way_to_judge(sequences), top=top)

    def _way_to_judge(self, sequences: Sequence[Sequence[int]]) -> str:
        """How log-probabilities are asked for. Raises Unsupported where there is no way, EngineError for what is too long."""
        method = scoring_of(self._version)
        if self._spec.limits.chunked_prefill:
            raise Unsupported("log-likelihoods under chunked prefill: nobody has shown that they are right")
        self._refuse_long(sequences, 1)
        return method.value

    def _refuse_long(self, sequences: Sequence[Sequence[int]], tokens: int) -> None:
        """TensorRT-LLM and what stands before it may cut what is too long; nothing is cut here."""
        limits = self._spec.limits
        longest = limits.max_seq_len or self._spec.model.context
        for number, sequence in enumerate(sequences):
            if len(sequence) + tokens > longest:
                raise EngineError(f"sequence {number} has {len(sequence)} + {tokens} tokens; {longest} fit")
            if not limits.chunked_prefill and len(sequence) > limits.max_num_tokens:
                raise EngineError(
                    f"sequence {number} has {len(sequence)} tokens; {limits.max_num_tokens} fit into one iteration"
                )

    def _checked(self, asked: Arguments, effective: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
        """What is in effect, as settings of the fingerprint. Raises EngineFailure where it is not what was asked."""
        quantization = Quantization.of(self._spec)
        expected = {
            **flat(asked),
            "quant_config.quant_algo": quantization.weights,
            "quant_config.kv_cache_quant_algo": quantization.kv_cache,
        }
        where = ("model", "tokenizer")  # paths, which differ from machine to machine; a tokenizer is read back as one
        problems = [
            f"{name} is {effective[name]!r}, asked for {value!r}"
            for name, value in expected.items()
            if name in effective and name not in where and not _same(effective[name], value)
        ]
        if problems:
            raise EngineFailure(FailureKind.BAD_REPORT, Phase.LOAD, "\n".join(problems), log=self._host.log)
        unread = [name for name in expected if name not in effective]
        if unread:
            self._notes += (f"could not be read back: {', '.join(unread)}",)
        return {name: _setting(value) for name, value in effective.items() if name not in where}


def _accepting(probe: Mapping[str, Any], version: Version) -> Any:
    """Whether an argument is accepted: by the classes that were asked, and by what is known where one could not be."""

    def accepts(path: str) -> bool:
        group, _, name = path.rpartition(".")
        accepted = probe[group or "arguments"]
        return known_at(version, path) if accepted is None else name in accepted

    return accepts


def _same(found: Any, asked: Any) -> bool:
    if isinstance(asked, float):
        return isinstance(found, (int, float)) and math.isclose(found, asked, rel_tol=1e-6)
    return bool(found == asked)


def _setting(value: Any) -> str | int | float | bool:
    return value if isinstance(value, (str, int, float, bool)) else str(value)


def _trace(reading: Mapping[str, Any]) -> Trace:
    return Trace(
        *(reading[name] for name in ("submitted", "first_token", "last_token", "input_tokens", "output_tokens"))
    )


def _second_opinion(traces: Sequence[Trace], theirs: Sequence[Mapping[str, float]]) -> Iterator[str]:
    """Where TensorRT-LLM's own times of the same requests are others than ours."""
    for name, what, ours in (
        ("ttft", "time to first token", [trace.ttft for trace in traces]),
        ("e2e", "request latency", [trace.latency for trace in traces]),
    ):
        told = [found[name] for found in theirs if name in found]
        if len(told) != len(ours):
            continue
        us, them = percentile(ours, 0.5), percentile(told, 0.5)
        if abs(us / them - 1) > DISAGREEMENT:
            yield (
                f"TensorRT-LLM's own clock disagrees: median {what} {amount(them, 's')}, by ours {amount(us, 's')} "
                f"({change(us, them)})"
            )
