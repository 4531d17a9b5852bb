"""What can carry out a workload. Each kind of engine is a module of this folder, imported when it is opened.

The predictor stands here too: it answers no request, but it runs a workload and yields traces like any other, in
virtual time and with its own source, so that everything after it exists once.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from pytest_llamaperf.cases import ENGINES, Case, Layout, Model, Recipe, Runtime, Workload
from pytest_llamaperf.errors import UsageError, nearest
from pytest_llamaperf.hosting.durations import Durations
from pytest_llamaperf.hosting.phases import Deadlines
from pytest_llamaperf.limits import Limits, default_limits
from pytest_llamaperf.measurements import Fingerprint, Source
from pytest_llamaperf.metrics import Metric
from pytest_llamaperf.operator_tables import INSTALLED, Tables
from pytest_llamaperf.traces import Trace

PREDICTED = "predicted"
TEMPORARY = "llamaperf-engine"  # what names of temporary folders of engines and sessions begin with
KINDS = (*ENGINES, PREDICTED)


@dataclass(frozen=True)
class EngineSpec:
    """Everything an engine is opened with: cases that agree in it share an engine. `kind` is tensorrt-llm, torch ...

    `runtime` is another environment to start it in, None for this one.
    """

    hardware: str
    kind: str
    model: Model
    recipe: Recipe
    layout: Layout
    limits: Limits
    runtime: Runtime | None = None

    @classmethod
    def of(cls, case: Case) -> EngineSpec:
        """The engine that serves a case. Raises UsageError where no limits can be chosen for it."""
        return cls(case.hardware, case.engine, case.model, case.recipe, case.layout, default_limits(case), case.runtime)

    def __str__(self) -> str:
        told = f"{self.hardware}/{self.kind}/{self.model}/{self.recipe}/{self.layout}"
        return told if self.runtime is None else f"{told} under {self.runtime}"

    @property
    def key(self) -> str:
        """The same, with what decides how long its work takes: how much it may batch, and how long requests may be."""
        limits = self.limits
        length = limits.max_seq_len or self.model.context
        return f"{self}: {limits.max_batch_size} requests of {length} tokens, {limits.max_num_tokens} at once"


@dataclass(frozen=True)
class Untraced:
    """Of a run whose requests only the engine timed: their (ISL, OSL), and seconds from the first to the last."""

    lengths: tuple[tuple[int, int], ...]
    elapsed: float


@dataclass(frozen=True)
class Run:
    """One run of a workload: a trace for each request, and what else was read.

    readings   values that the engine reports itself, in the metric's unit; they go before those made of traces
    reproduce  the command that repeats the run by hand, without this project, where there is one
    untraced   in the place of traces, where there are none
    operators  of a prediction: seconds by kind of operator in a typical iteration, as in Result
    """

    traces: tuple[Trace, ...]
    readings: Mapping[Metric, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    fingerprint: Fingerprint = field(default_factory=Fingerprint)
    reproduce: str | None = None
    untraced: Untraced | None = None
    operators: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def elapsed(self) -> float:
        """Seconds from the first submission to the last token."""
        if self.untraced is not None:
            return self.untraced.elapsed
        return max(t.last_token for t in self.traces) - min(t.submitted for t in self.traces)

    @property
    def lengths(self) -> tuple[tuple[int, int], ...]:
        """(ISL, OSL) of every request that was answered."""
        if self.untraced is not None:
            return self.untraced.lengths
        return tuple((trace.input_tokens, trace.output_tokens) for trace in self.traces)


class Engine(Protocol):
    """An open engine. Whoever opened it closes it; `close` may be called twice."""

    @property
    def source(self) -> Source: ...

    def run(self, workload: Workload) -> Run:
        """Raises EngineError when the work could not be done."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class FreshEngine(Engine, Protocol):
    """An engine that loads its model for every run, and warms it up itself: each run is a restart."""

    starts_with_every_run: Literal[True]


@runtime_checkable
class Fingerprinted(Protocol):
    """An engine that says what it is before it has run anything: results of accuracy tasks take it from there."""

    @property
    def fingerprint(self) -> Fingerprint: ...


@dataclass(frozen=True)
class Scored:
    """Of every token of a sequence after the first: its log-probability (nats), and the token most likely there.

    Or of those of its tail only, where that is what was asked.
    """

    logprobs: tuple[float, ...]
    likely: tuple[int, ...]


@dataclass(frozen=True)
class Distributions:
    """Of every token of a sequence after the first, what was expected in its place.

    logprobs   of the token that is there (nats)
    likeliest  the tokens most likely there, best first, with their log-probabilities (nats)
    """

    logprobs: tuple[float, ...]
    likeliest: tuple[Mapping[int, float], ...]


@dataclass(frozen=True)
class Until:
    """Where an answer may end early: at the token that ends a text, or where one of `texts` stands.

    It saves time and nothing else: an engine may miss the end, and what ends an answer may be part of it or not.
    """

    token: int
    texts: tuple[str, ...] = ()


@runtime_checkable
class AnsweringEngine(Engine, Protocol):
    """An engine whose answers can be looked at.

    All methods raise EngineError when the work could not be done, Unsupported for what this engine cannot be asked.
    """

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, without special tokens."""
        ...

    def decode(self, sequences: Sequence[Sequence[int]]) -> list[str]: ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        *,
        until: Until | None = None,
        concurrency: int | None = None,
    ) -> list[list[int]]:
        """The `tokens` most likely tokens after each prompt, or fewer with `until`; at most `concurrency` in flight."""
        ...

    def score(
        self, sequences: Sequence[Sequence[int]], *, tails: Sequence[int] | None = None, noise: float = 0.0
    ) -> list[Scored]:
        """How likely each sequence is, or its last so many tokens (`tails`, one for each sequence).

        `noise` disturbs what is embedded by that much, relatively.
        """
        ...


@runtime_checkable
class LookingEngine(AnsweringEngine, Protocol):
    """An answering engine that also tells what else it held likely."""

    def distributions(self, sequences: Sequence[Sequence[int]], top: int) -> list[Distributions]:
        """What was expected in each place, by the `top` most likely tokens there, of equally likely ones any."""
        ...


# From a specification to an open engine; raises EngineError when it cannot be opened.
Opener = Callable[[EngineSpec], Engine]


@dataclass(frozen=True)
class Surroundings:
    """What the engines of a session have in common: their deadlines, where they log, and who watches progress.

    on_progress is told what is under way, how much of it is done, and of how much (None: nobody knows). Predictions are
    made of `tables`. `durations` are how long engines took, in earlier runs and in this one.
    """

    deadlines: Deadlines
    logs: Path
    on_progress: Callable[[str, int, int | None], None]
    tables: Tables = INSTALLED
    durations: Durations = field(default_factory=Durations)

    def deadlines_of(self, spec: EngineSpec) -> Deadlines:
        """What somebody asked for, else what earlier runs of this engine teach, else the defaults."""
        return self.durations.deadlines(spec.key, self.deadlines)


@dataclass(frozen=True)
class Readiness:
    """Whether a kind of engine can work here, why not, and what would help."""

    ready: bool
    detail: str


# The kinds this version of the plugin brings.
BUILT_IN = KINDS


def built_in_openers(surroundings: Surroundings) -> dict[str, Opener]:
    """How to open each kind of BUILT_IN."""

    def predicted(spec: EngineSpec) -> Engine:
        from pytest_llamaperf.engines.predicted import PredictedEngine

        return PredictedEngine(spec, surroundings.tables)

    def torch(spec: EngineSpec) -> Engine:
        from pytest_llamaperf.engines.torch import TorchEngine

        return TorchEngine(spec, surroundings)

    def tensorrt_llm(spec: EngineSpec) -> Engine:
        from pytest_llamaperf.engines.trtllm.serving import ServingEngine

        return ServingEngine(spec, surroundings)

    def trtllm_bench(spec: EngineSpec) -> Engine:
        from pytest_llamaperf.engines.trtllm.benchmarking import BenchEngine

        return BenchEngine(spec, surroundings)

    return {PREDICTED: predicted, "torch": torch, "tensorrt-llm": tensorrt_llm, "trtllm-bench": trtllm_bench}


def opened_by(brought: Sequence[Mapping[str, Opener]]) -> dict[str, Opener]:
    """All openers by kind, of answers to the hook; the first to name a kind opens it.

    Raises UsageError for an unknown kind, and for an opener of `predicted`, whose results must never be measured.
    """
    openers: dict[str, Opener] = {}
    for answer in reversed(brought):
        if not isinstance(answer, Mapping):
            raise UsageError(f"pytest_llamaperf_engines: returns a mapping from kind to opener, not {answer!r}")
        openers |= answer
    for kind in openers:
        if kind not in KINDS:
            raise UsageError(f"pytest_llamaperf_engines: unknown kind {kind!r}; {nearest(kind, ENGINES)}")
    if sum(PREDICTED in answer for answer in brought) > 1:
        raise UsageError(
            f"pytest_llamaperf_engines: {PREDICTED!r} is the plugin's own; open one of {', '.join(ENGINES)}"
        )
    return openers


def is_built_in(opener: Opener) -> bool:
    """Whether an opener is one of ours, whose needs are known, or was brought by a conftest."""
    return opener.__module__ == __name__


# Packages each of our engines needs, and how to get them.
_NEEDS = {
    PREDICTED: (("aiconfigurator_core",), "pip install 'pytest-llamaperf[predict]'"),
    "torch": (("torch", "safetensors", "tokenizers"), "pip install 'pytest-llamaperf[torch]'"),
    "tensorrt-llm": (("tensorrt_llm",), "use NVIDIA's TensorRT-LLM container, or its wheels from NVIDIA's index"),
}


def readiness(kind: str, kinds: Sequence[str]) -> Readiness:
    """What stands between this machine and an engine of this kind, where `kinds` can be opened."""
    if kind not in kinds:
        return Readiness(False, f"this version of pytest-llamaperf brings no {kind} engine yet")
    packages, advice = _NEEDS.get(kind, ((), ""))
    missing = [package.replace("_", "-") for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        return Readiness(False, f"{', '.join(missing)} is missing: {advice}")
    if kind == "trtllm-bench" and shutil.which("trtllm-bench") is None:
        return Readiness(False, "there is no trtllm-bench on the PATH; it comes with TensorRT-LLM")
    return Readiness(True, "ready")
