"""What one iteration of TensorRT-LLM costs, from the operator times NVIDIA measured (`aiconfigurator-core`).

The only module that knows that package. It uses the stable facade (`EngineHandle`, `estimate_kv_cache`); only a
recipe that mixes number formats, and the physical limit, are built from the op list one layer below it. Models are
always handed over as a local directory with a config.json: any other name would make the package ask a hub.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llamaperf.cases import Layout, Model, Number, Recipe
from pytest_llamaperf.errors import EngineError, UsageError
from pytest_llamaperf.operator_tables import INSTALLED, Tables
from pytest_llamaperf.wording import shown_path

if TYPE_CHECKING:
    from aiconfigurator_core.sdk import EngineHandle


class View(StrEnum):
    """Whose times: measured kernels, or what arithmetic and bandwidth of the GPU allow at best."""

    SILICON = "SILICON"
    PHYSICAL_LIMIT = "SOL"


@dataclass(frozen=True)
class Deployment:
    """What operator times depend on. `system` is the GPU's name in aiconfigurator-core, such as h200_sxm."""

    model: Model
    recipe: Recipe
    layout: Layout
    system: str
    tables: Tables = INSTALLED


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes on one GPU; kv_per_token is what one token of one sequence takes in all layers, divided by tp."""

    capacity: float
    weights: float
    other: float
    kv_per_token: float


@dataclass(frozen=True)
class Measured:
    """How far the tables go; beyond that aiconfigurator-core extrapolates without a word.

    prompt        tokens of one prompt
    prompt_heads  attention heads on one GPU, of prompts
    gemm_rows     tokens of one iteration
    gemm_side     rows and columns of a weight matrix
    kv            tokens of one decoding sequence
    batch         decoding sequences
    """

    prompt: int
    prompt_heads: int
    gemm_rows: int
    gemm_side: int
    kv: int
    batch: int


# Of the trtllm tables of aiconfigurator-core 0.12.0 for h100_sxm, h200_sxm and b200_sxm; tests/test_operators.py compares
# this with them.
MEASURED = Measured(prompt=16384, prompt_heads=96, gemm_rows=32768, gemm_side=65536, kv=131072, batch=2048)

# aiconfigurator's names. fp8_static is its measured dynamic FP8 less the measured cost of finding the scales.
_MODES = {
    Number.BF16: "bfloat16",
    Number.FP8: "fp8",
    Number.FP8_TENSOR: "fp8_static",
    Number.FP8_ROW: "fp8",
}
_KINDS = {"attention": ("attention",), "all-reduce": ("_ar",), "GEMM": ("gemm",), "pipeline": ("p2p",)}


def check_recipe(recipe: Recipe) -> None:
    """Refuse a recipe whose products were not measured; raises UsageError."""
    for number in (recipe.attention, recipe.feed_forward, recipe.kv_cache):
        if number not in _MODES:
            raise UsageError(
                f"{recipe}: there are no operator times for {number}; these were measured: {', '.join(_MODES)}"
            )


class OperatorTimes:
    """Seconds of one iteration, by what is in it. One object for each deployment and view."""

    def __init__(self, deployment: Deployment, view: View = View.SILICON) -> None:
        self.deployment = deployment
        self._handle = _handle(deployment, view)
        self._prompt_attention = functools.cache(self._time_prompt_attention)
        self._decode_attention = functools.cache(self._time_decode_attention)
        self._decode_rest = functools.cache(self._time_decode_rest)
        self._output_head = functools.cache(self._time_output_head)

    def decode(self, batch: int, kv: int) -> float:
        """One token for each of `batch` sequences that hold `kv` tokens on average."""
        return self._decode_rest(batch) + self.decode_attention(batch, kv)

    def shared(self, prompt_tokens: int, batch: int, joining: int) -> float:
        """All but attention of an iteration with `prompt_tokens` of prompts and `batch` decoding sequences.

        The package charges the output head for one row; every decoding sequence needs one, and every prompt that
        is complete with this iteration (`joining`).
        """
        body = self._breakdown(prompt_tokens, batch, prompt_tokens)[1]
        return body + self._output_head(max(1, batch + joining)) - self._output_head(1)

    def prompt_attention(self, prompts: int, tokens: int) -> float:
        """Attention of `prompts` whole prompts of `tokens` each."""
        return self._prompt_attention(prompts, tokens)

    def decode_attention(self, batch: int, kv: int) -> float:
        """Attention of `batch` decoding sequences that hold `kv` tokens on average.

        Interpolated between lengths at most 1/32 apart, for asking takes ten times as long as all the rest of a
        simulated iteration. The time grows in proportion to the length: 99 of 100 are within 0.2 %.
        """
        step = 1 << max(0, kv.bit_length() - 6)
        below = kv - kv % step
        if below == kv:
            return self._decode_attention(batch, kv)
        low, high = self._decode_attention(batch, below), self._decode_attention(batch, below + step)
        return low + (high - low) * (kv - below) / step

    def decode_by_kind(self, batch: int, kv: int) -> Mapping[str, float]:
        """Seconds of a decode iteration by kind of operator: GEMM, attention, all-reduce, pipeline, other."""
        return _by_kind(self._ask("decode_step_per_op", batch, max(1, kv - 1), 1))

    def prompt_by_kind(self, tokens: int) -> Mapping[str, float]:
        """Seconds of an iteration over one whole prompt, by kind of operator."""
        parts = self._ask("mixed_step_breakdown_per_op", tokens, 0, tokens, 0)
        return _by_kind([op for part in parts for op in part])

    def _ask(self, question: str, *shape: int) -> Any:
        """A method of the handle, refusals in our words: a shape without any table is refused only when asked for."""
        try:
            return getattr(self._handle, question)(*shape)
        except _REFUSALS as problem:
            raise _refusal(_described(self.deployment), problem) from problem

    def _breakdown(self, prompt_tokens: int, batch: int, length: int) -> tuple[float, ...]:
        """Seconds of a mixed iteration: all of it, all but attention, attention of prompts, attention of decoding."""
        parts = self._ask("mixed_step_breakdown", prompt_tokens, batch, length, 0)
        return tuple(milliseconds * 1e-3 for milliseconds in parts)

    def _time_prompt_attention(self, prompts: int, tokens: int) -> float:
        return self._breakdown(prompts * tokens, 0, tokens)[2]

    def _time_decode_attention(self, batch: int, kv: int) -> float:
        return self._breakdown(0, batch, max(1, kv - 1))[3]

    def _time_decode_rest(self, batch: int) -> float:
        """All of a decode iteration but attention, which alone depends on the lengths."""
        whole = float(self._ask("decode_step_latency", batch, 1, 1)) * 1e-3
        return whole - self._time_decode_attention(batch, 2)

    def _time_output_head(self, rows: int) -> float:
        operators = self._ask("decode_step_per_op", rows, 1, 1)
        return sum(float(milliseconds) for name, milliseconds, *_ in operators if "logits" in name) * 1e-3


@functools.lru_cache(maxsize=64)
def operator_times(deployment: Deployment, view: View = View.SILICON) -> OperatorTimes:
    """Raises UsageError without aiconfigurator-core, EngineError where its tables lack what is needed."""
    return OperatorTimes(deployment, view)


@functools.cache
def tables_version(system: str, tables: Tables = INSTALLED) -> tuple[str, str]:
    """(version of aiconfigurator-core, version of TensorRT-LLM the operator times of a GPU were measured on)."""
    from importlib.metadata import version

    with _translated_errors("reading its version"):
        from aiconfigurator_core.sdk.perf_database import get_database_view

        database: Any = get_database_view(
            system, "trtllm", tables.timed, systems_paths=tables.systems_path, database_mode="SILICON"
        )
    return version("aiconfigurator-core"), str(database.version)


@functools.cache
def gpu_memory(system: str, tables: Tables = INSTALLED) -> float:
    """Bytes of one GPU by aiconfigurator-core: 80, 141 and 180 GiB, up to 0.6 % more than the driver reports.

    For its model of memory only, whose reserve for the runtime was set beside these sizes.
    """
    with _translated_errors(f"reading the GPU {system}"):
        from aiconfigurator_core.sdk.perf_database import load_system_spec

        return float(load_system_spec(system, tables.systems_path)["gpu"]["mem_capacity"])


@functools.cache
def measured(system: str, tables: Tables) -> Measured:
    """How far tables go: those in a folder say so themselves. Raises EngineError for one that cannot be read."""
    if tables.folder is None:
        return MEASURED
    from pyarrow import ArrowInvalid, parquet

    data = tables.folder / "data" / system

    def largest(family: str, table: str, column: str) -> int:
        path = data / family / "trtllm" / tables.timed / f"{table}.parquet"
        try:
            return int(max(parquet.read_table(path, columns=[column])[column].to_pylist()))
        except (OSError, ArrowInvalid, KeyError, ValueError) as problem:
            raise EngineError(f"{shown_path(path)}: is no table of operator times: {problem}") from None

    return Measured(
        prompt=largest("attention", "context_attention_perf", "isl"),
        prompt_heads=largest("attention", "context_attention_perf", "num_heads"),
        gemm_rows=largest("gemm", "gemm_perf", "m"),
        gemm_side=largest("gemm", "gemm_perf", "n"),
        kv=largest("attention", "generation_attention_perf", "step") + 1,  # tokens before the one that is computed
        batch=largest("attention", "generation_attention_perf", "batch_size"),
    )


def device_memory(deployment: Deployment, max_num_tokens: int) -> DeviceMemory:
    """Memory of one GPU by aiconfigurator's model of TensorRT-LLM: activations, communication, runtime, KV cache.

    Weights are ours: the package knows one number format for all linear layers, and counts tied embeddings twice.
    """
    recipe, layout = deployment.recipe, deployment.layout
    with _translated_errors(_described(deployment)), _model_directory(deployment.model) as directory:
        from aiconfigurator_core.sdk import estimate_kv_cache

        estimate = estimate_kv_cache(
            directory,
            deployment.system,
            "trtllm",
            deployment.tables.timed,
            systems_path=deployment.tables.systems_path,
            max_num_tokens=max_num_tokens,
            max_batch_size=1,
            memory_fraction_kind="of_free",
            memory_fraction_value=1e-6,
            tp_size=layout.tp,
            pp_size=layout.pp,
            # Room for anything: whether it fits is decided where sizes can be told.
            gpu_memory_capacity_bytes_override=1 << 50,
            **_modes(recipe),
        )
    parts = estimate["memory_breakdown"]
    return DeviceMemory(
        capacity=gpu_memory(deployment.system, deployment.tables),
        weights=recipe.weight_bytes(deployment.model) / (layout.tp * layout.pp),
        other=parts["activations_bytes"] + parts["runtime_overhead_bytes"] + parts["comm_overhead_bytes"],
        kv_per_token=estimate["kv_size_per_token_bytes"],
    )


def beyond_measured(
    deployment: Deployment, *, prompt: int, iteration: int, sequence: int, batch: int, cached: int
) -> list[str]:
    """In what respects a run left what was measured. All in tokens but `batch`, the most sequences decoding at once.

    `iteration` is the most tokens of one iteration, `cached` the most that all decoding sequences held at once.
    """
    model, tp = deployment.model, deployment.layout.tp
    reach = measured(deployment.system, deployment.tables)
    heads = model.heads // tp
    widest = max(2 * model.feed_forward // tp, model.vocabulary // tp, model.hidden)
    # Decode attention was measured up to a product of heads, sequences and tokens that depends on the sequences.
    measured_attention = 1 << 23 if batch > 128 else min(batch << 21, 1 << 24)
    found = {
        f"prompts beyond {reach.prompt:,} tokens": prompt > reach.prompt,
        f"prompts with over {reach.prompt_heads} heads on a GPU": heads > reach.prompt_heads,
        f"iterations beyond {reach.gemm_rows:,} tokens": iteration > reach.gemm_rows,
        f"weight matrices beyond {reach.gemm_side:,} columns": widest > reach.gemm_side,
        f"sequences beyond {reach.kv:,} tokens": sequence > reach.kv,
        f"decode batches beyond {reach.batch:,} sequences": batch > reach.batch,
        "decode attention over more tokens at once": heads * cached > measured_attention,
    }
    return [f"extrapolated, not measured: {what}" for what, is_so in found.items() if is_so]


def _handle(deployment: Deployment, view: View) -> EngineHandle:
    recipe, layout, tables = deployment.recipe, deployment.layout, deployment.tables
    uniform = recipe.attention is recipe.feed_forward and not recipe.bf16_layers
    with _translated_errors(_described(deployment)), _model_directory(deployment.model) as directory:
        from aiconfigurator_core.sdk import EngineHandle

        if uniform and view is View.SILICON:
            return EngineHandle.compile(
                directory,
                deployment.system,
                "trtllm",
                backend_version=tables.timed,
                systems_path=tables.systems_path,
                tp_size=layout.tp,
                pp_size=layout.pp,
                **_modes(recipe),
            )
        return EngineHandle(_mixed_spec(deployment, view, directory), systems_path=tables.systems_path)


def _mixed_spec(deployment: Deployment, view: View, directory: str) -> bytes:
    """The op list of the deployment with each GEMM in the number format the recipe gives it."""
    import aiconfigurator_core
    from aiconfigurator_core.sdk.config_builders import build_model_config
    from aiconfigurator_core.sdk.engine import build_engine_spec_json
    from aiconfigurator_core.sdk.models import get_model
    from aiconfigurator_core.sdk.perf_database import get_database_view

    database: Any = get_database_view(
        deployment.system,
        "trtllm",
        deployment.tables.timed,
        systems_paths=deployment.tables.systems_path,
        database_mode=view.value,
        allow_missing_data=view is not View.SILICON,
    )
    layout = deployment.layout
    config = build_model_config(layout.tp, layout.pp, 1, 1, 1, **_modes(deployment.recipe))
    spec = json.loads(
        build_engine_spec_json(
            get_model(directory, config, "trtllm"),
            model_path=directory,
            system=deployment.system,
            backend="trtllm",
            nextn=0,
            backend_version=database.version,
            kv_block_size=None,
            systems_path=deployment.tables.systems_path,
            database=database,
        )
    )
    for phase in ("context_ops", "generation_ops"):
        spec[phase] = [part for op in spec[phase] for part in _by_recipe(op, deployment)]
    return bytes(aiconfigurator_core.engine_spec_bincode_from_json(json.dumps(spec)))


def _by_recipe(op: dict[str, Any], deployment: Deployment) -> Iterator[dict[str, Any]]:
    """One operator of the list in the recipe's number format; a feed-forward GEMM splits in two where layers differ."""
    recipe = deployment.recipe
    ((kind, body),) = op.items()
    if kind != "Gemm" or "logits" in body["name"]:
        yield op
    elif "qkv" in body["name"] or "proj" in body["name"]:
        yield {kind: {**body, "quant_mode": _MODES[recipe.attention]}}
    else:
        kept = recipe.bf16_layers / deployment.model.layers
        for mode, share in ((recipe.feed_forward, 1 - kept), (Number.BF16, kept)):
            if share:
                yield {kind: {**body, "quant_mode": _MODES[mode], "scale_factor": body["scale_factor"] * share}}


def _modes(recipe: Recipe) -> dict[str, Any]:
    return {
        "gemm_quant_mode": _MODES[recipe.feed_forward],
        "kvcache_quant_mode": _MODES[recipe.kv_cache],
        "fmha_quant_mode": _MODES[recipe.kv_cache],
    }


def _by_kind(operators: list[tuple[str, float, float, str]]) -> Mapping[str, float]:
    seconds = dict.fromkeys((*_KINDS, "other"), 0.0)
    for name, milliseconds, _energy, _source in operators:
        kind = next((kind for kind, marks in _KINDS.items() if any(m in name for m in marks)), "other")
        seconds[kind] += milliseconds * 1e-3
    return seconds


def _described(deployment: Deployment) -> str:
    told = f"{deployment.model} {deployment.recipe} {deployment.layout} on {deployment.system}"
    return told if deployment.tables == INSTALLED else f"{told} by operator tables of {deployment.tables.timed}"


@contextlib.contextmanager
def _model_directory(model: Model) -> Iterator[str]:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": model.hidden,
        "intermediate_size": model.feed_forward,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "vocab_size": model.vocabulary,
        "max_position_embeddings": model.context,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": model.tied_embeddings,
    }
    with tempfile.TemporaryDirectory(prefix="llamaperf-") as directory:
        (Path(directory) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        yield directory


@contextlib.contextmanager
def _translated_errors(doing: str) -> Iterator[None]:
    """Say in our words what aiconfigurator-core refuses."""
    # It also reports on standard error an attention lane of its own, and layers that pp does not divide.
    logging.getLogger("aiconfigurator_core").setLevel(logging.ERROR)
    try:
        yield
    except ImportError as problem:
        raise UsageError(
            f"predictions need the package aiconfigurator-core ({problem}): pip install 'pytest-llamaperf[predict]'"
        ) from None
    except _REFUSALS as problem:
        raise _refusal(doing, problem) from problem


# What aiconfigurator-core 0.12.0 was seen to raise.
_REFUSALS = (ValueError, RuntimeError, KeyError, AssertionError)


def _refusal(doing: str, problem: Exception) -> EngineError:
    return EngineError(f"{doing}: aiconfigurator-core refuses: {problem}")
