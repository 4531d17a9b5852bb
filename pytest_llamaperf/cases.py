"""What is under test: a model quantized by a recipe, laid out over GPUs, doing some work.

A case is the identity of a result. Its id, `h200/tensorrt-llm/llama-3.1-405b/modelopt-fp8/tp8/min-latency-2048-128`,
is what baselines, reports and history are keyed by. The version of the engine is deliberately no part of it:
comparing versions is the purpose.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from pytest_llamaperf.errors import UsageError, nearest


class Number(StrEnum):
    """How numbers of a linear layer or of the KV cache are stored, and so multiplied."""

    FP32 = "fp32"  # what BF16 weights are computed in where rounding must not hide a mistake
    BF16 = "bf16"
    FP8_TENSOR = "fp8-per-tensor"  # one static scale for each weight and each activation tensor
    FP8_ROW = "fp8-per-row"  # one scale for each output row, and one for each token, found at run time
    FP8 = "fp8"  # KV cache and attention
    INT8_SMOOTH = "int8-smoothquant"  # outliers of activations moved into the weights; a scale for each output row
    INT4_AWQ = "int4-awq"  # weights only, a scale for each block of INT4_BLOCK inputs

    @property
    def bytes(self) -> float:
        """Of one weight, with its share of a block's two-byte scale."""
        match self:
            case Number.FP32:
                return 4
            case Number.BF16:
                return 2
            case Number.INT4_AWQ:
                return 0.5 + 2 / INT4_BLOCK
            case _:
                return 1


# Inputs that share one scale in int4-awq; ModelOpt's and TensorRT-LLM's block.
INT4_BLOCK = 128


@dataclass(frozen=True)
class Model:
    """A Llama by the shape of its network; `context` is the longest sequence in tokens it was trained for.

    `source` is where its weights are: an id on Hugging Face, or a folder. `published` are ids of checkpoints that are
    quantized already, by the recipe they are made in. `random` marks a network of this shape whose weights are drawn,
    for speed where values do not matter.
    """

    name: str
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    tied_embeddings: bool
    rope: Mapping[str, float | str] = field(hash=False)
    source: str
    published: Mapping[str, str] = field(default_factory=dict, hash=False)
    random: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def attention_weights(self) -> int:
        """Weights of the query, key, value and output projections of all layers."""
        return self.layers * self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)

    @property
    def feed_forward_weights(self) -> int:
        """Weights of the gate, up and down projections of all layers."""
        return self.layers * 3 * self.hidden * self.feed_forward

    @property
    def embedding_weights(self) -> int:
        """Weights of the embedding and of the output head, counted once when they are tied."""
        return (1 if self.tied_embeddings else 2) * self.vocabulary * self.hidden


@dataclass(frozen=True)
class Recipe:
    """What is quantized and how. `bf16_layers` counts first and last layers whose feed-forward part stays BF16."""

    name: str
    attention: Number
    feed_forward: Number
    kv_cache: Number
    bf16_layers: int
    source: str

    def __str__(self) -> str:
        return self.name

    def weight_bytes(self, model: Model) -> float:
        """Bytes of all weights on all GPUs together; embeddings and output head stay BF16."""
        kept = self.bf16_layers / model.layers
        feed_forward = kept * Number.BF16.bytes + (1 - kept) * self.feed_forward.bytes
        return (
            model.attention_weights * self.attention.bytes
            + model.feed_forward_weights * feed_forward
            + model.embedding_weights * Number.BF16.bytes
        )


@dataclass(frozen=True, order=True)
class Layout:
    """GPUs of one case: `tp` split every layer, `pp` split the stack of layers, `dp` serve copies side by side."""

    tp: int = 1
    pp: int = 1
    dp: int = 1

    def __post_init__(self) -> None:
        if min(self.tp, self.pp, self.dp) < 1:
            raise UsageError(f"a layout has at least one rank of each kind, not {self!r}")

    @property
    def gpus(self) -> int:
        return self.tp * self.pp * self.dp

    def __str__(self) -> str:
        parts = [f"{kind}{n}" for kind, n in (("tp", self.tp), ("pp", self.pp), ("dp", self.dp)) if n > 1]
        return "-".join(parts) or "tp1"

    @classmethod
    def parse(cls, text: str) -> Layout:
        """`tp8`, `tp4-pp2`, `pp8`, `tp2-dp4`. Raises UsageError for anything else."""
        sizes: dict[str, int] = {}
        for part in text.lower().split("-"):
            found = re.fullmatch(r"(tp|pp|dp)([1-9]\d{0,3})", part)
            if found is None or found[1] in sizes:
                raise UsageError(f"unknown layout {text!r}; write tp8, pp8, tp4-pp2 or tp2-dp4")
            sizes[found[1]] = int(found[2])
        return cls(**sizes)


ENGINES = ("tensorrt-llm", "trtllm-bench", "torch")

# The hardware of a case that needs no GPU.
CPU = "cpu"


@dataclass(frozen=True)
class Workload:
    """Requests and how they arrive.

    scenario   max-throughput (all at once), min-latency (one at a time), concurrency-N (N in flight),
               rate-R (an open loop: Poisson arrivals, R requests per second)
    isl, osl   input and output tokens of a request; the means where `lengths` names a distribution
    requests   how many in one run; no part of the identity
    lengths    "constant", or the name of a distribution in `lengths.py`
    """

    scenario: str
    isl: int
    osl: int
    requests: int
    lengths: str = "constant"

    def __post_init__(self) -> None:
        if not re.fullmatch(SCENARIO, self.scenario):
            raise UsageError(f"unknown workload {self.scenario!r}; {nearest(self.scenario, SCENARIOS)}")
        if self.isl < 1 or self.osl < 1 or self.requests < 1:
            raise UsageError(f"ISL, OSL and requests are at least 1, not {self!r}")

    def __str__(self) -> str:
        shape = f"{self.isl}-{self.osl}" if self.lengths == "constant" else self.lengths
        return f"{self.scenario}-{shape}"

    @property
    def concurrency(self) -> int | None:
        """Requests in flight at most; None: as many as the engine takes."""
        if self.scenario == "min-latency":
            return 1
        kind, _, number = self.scenario.partition("-")
        return int(number) if kind == "concurrency" else None

    @property
    def arrival_rate(self) -> float | None:
        """Requests per second of an open loop; None: arrivals wait for nothing but the concurrency."""
        kind, _, number = self.scenario.partition("-")
        return float(number) if kind == "rate" else None


# One spelling for each: rate-100.0 is no other rate than rate-100.
_RATE = r"(?:[1-9][0-9]{0,5}(?:\.[0-9]{0,3}[1-9])?|0\.[0-9]{0,3}[1-9])"
SCENARIO = rf"max-throughput|min-latency|concurrency-[1-9][0-9]{{0,5}}|rate-{_RATE}"
SCENARIOS = ("max-throughput", "min-latency", "concurrency-<N>", "rate-<requests per second>")


@dataclass(frozen=True)
class Task:
    """What is looked at where speed does not matter: `answers` (to the fixed questions of `answers.py`), `checkpoint`."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Runtime:
    """Another environment that engines are started in: an interpreter with everything that is installed for it.

    name         as people know it; the folder or file it was named by
    environment  variables its engines get beside those of this process; not shown, for they may hold credentials
    """

    name: str
    python: Path
    environment: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        return self.name

    def variables(self) -> dict[str, str]:
        """The environment of its processes, in which its commands go before others of the same name."""
        path = os.pathsep.join([str(self.python.parent), os.environ.get("PATH", os.defpath)])
        return {"PATH": path, **dict(self.environment)}


@dataclass(frozen=True)
class Case:
    """One thing that can be measured, and the key under which it is remembered.

    `runtime` is the other environment its engine is started in, None for this one; the id is that of the case in both.
    """

    hardware: str
    engine: str
    model: Model
    recipe: Recipe
    layout: Layout
    work: Workload | Task
    runtime: Runtime | None = None

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise UsageError(f"unknown engine {self.engine!r}; {nearest(self.engine, ENGINES)}")
        check_layout(self.model, self.layout, self.engine)
        if isinstance(self.work, Workload) and self.work.isl + self.work.osl > self.model.context:
            raise UsageError(
                f"{self.model} reads at most {self.model.context:,} tokens; "
                f"ISL {self.work.isl:,} + OSL {self.work.osl:,} is {self.work.isl + self.work.osl:,}"
            )

    @property
    def id(self) -> str:
        return f"{self.hardware}/{self.key}"

    @property
    def key(self) -> str:
        """The id without the hardware: the key in `baselines/<hardware>/<model>.yaml`."""
        return f"{self.engine}/{self.model}/{self.recipe}/{self.layout}/{self.work}"

    def __str__(self) -> str:
        return self.id if self.runtime is None else f"{self.id} under {self.runtime}"

    def under(self, runtime: Runtime | None) -> Case:
        return dataclasses.replace(self, runtime=runtime)

    def with_model(self, model: Model) -> Case:
        """Raises UsageError for a model that cannot be laid out so."""
        return dataclasses.replace(self, model=model)

    def with_recipe(self, recipe: Recipe) -> Case:
        return dataclasses.replace(self, recipe=recipe)

    def with_layout(self, layout: Layout) -> Case:
        return dataclasses.replace(self, layout=layout)

    def with_engine(self, engine: str) -> Case:
        """Raises UsageError for an engine that is unknown, or that cannot lay the model out so."""
        return dataclasses.replace(self, engine=engine)

    def to_dict(self) -> dict[str, object]:
        """The `case` object of run.json."""
        workload = self.work if isinstance(self.work, Workload) else None
        return {
            "id": self.id,
            "hardware": self.hardware,
            "engine": self.engine,
            "model": self.model.name,
            "recipe": self.recipe.name,
            "layout": str(self.layout),
            "tp": self.layout.tp,
            "pp": self.layout.pp,
            "dp": self.layout.dp,
            "workload": workload.scenario if workload else None,
            "isl": workload.isl if workload else None,
            "osl": workload.osl if workload else None,
            "lengths": workload.lengths if workload else None,
            "requests": workload.requests if workload else None,
            "task": None if workload else str(self.work),
        }


def check_layout(model: Model, layout: Layout, engine: str = "tensorrt-llm") -> None:
    """Refuse a layout the network cannot be cut into; raises UsageError with the sizes that would work.

    TensorRT-LLM gives every rank as many heads as the next, copying KV heads where ranks are more. The torch engine
    cuts unevenly, by whole KV heads, so that a small network can be spread over two ranks as well.
    """
    fits = _cuts_unevenly if engine == "torch" else _divides
    if not fits(model, layout.tp):
        sizes = ", ".join(f"tp{n}" for n in range(1, 33) if fits(model, n))
        raise UsageError(
            f"{layout}: {model} has {model.heads} attention heads and {model.kv_heads} KV heads, "
            f"which tp{layout.tp} does not divide; these do: {sizes}"
        )
    if layout.pp > model.layers:
        raise UsageError(f"{layout}: {model} has {model.layers} layers, fewer than {layout.pp} pipeline stages")


def _divides(model: Model, tp: int) -> bool:
    """Every rank gets as many heads as the next; KV heads are shared out, or each copied to as many ranks."""
    shares_kv = model.kv_heads % tp == 0 if tp <= model.kv_heads else tp % model.kv_heads == 0
    return model.heads % tp == 0 and shares_kv


def _cuts_unevenly(model: Model, tp: int) -> bool:
    return tp <= model.kv_heads
