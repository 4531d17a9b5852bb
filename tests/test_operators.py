"""The adapter on the real aiconfigurator-core: its tables, its facade, and nothing of the network."""

from __future__ import annotations

import dataclasses
import json
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiconfigurator_core
import pyarrow.parquet  # type: ignore[import-untyped]
import pytest
from aiconfigurator_core.sdk.perf_database import load_system_spec

from pytest_llamaperf.cases import Layout, Number, Recipe
from pytest_llamaperf.catalog import gpu_named, gpus, model_named, recipe_named
from pytest_llamaperf.errors import EngineError, UsageError
from pytest_llamaperf.predicting import operators
from pytest_llamaperf.predicting.operators import Deployment, OperatorTimes, View, device_memory, operator_times

GIB = 2.0**30
BF16_8B = Deployment(model_named("llama-3.1-8b"), recipe_named("bf16"), Layout(), "h200_sxm")


def deployment(model: str, recipe: str, layout: str, tables: str = "h200_sxm") -> Deployment:
    return Deployment(model_named(model), recipe_named(recipe), Layout.parse(layout), tables)


FP8_405B = deployment("llama-3.1-405b", "modelopt-fp8", "tp8")
META_405B = deployment("llama-3.1-405b", "llama-fp8", "tp8")
SEVERAL = pytest.mark.parametrize(
    "deployed",
    [BF16_8B, FP8_405B, META_405B, deployment("llama-3.1-70b", "modelopt-fp8", "tp2")],
    ids=lambda d: f"{d.model}-{d.recipe}-{d.layout}",
)


# What was measured.


def largest(tables: str, table: str, column: str) -> int:
    _, version = operators.tables_version("h200_sxm")
    (package,) = aiconfigurator_core.__path__
    operator = "gemm" if table == "gemm" else "attention"
    path = Path(package) / "systems" / "data" / tables / operator / "trtllm" / version / f"{table}_perf.parquet"
    return int(max(pyarrow.parquet.read_table(path, columns=[column])[column].to_pylist()))


@pytest.mark.parametrize("tables", [gpu.operator_tables for gpu in gpus().values()])
def test_the_measured_range_is_that_of_the_tables(tables: str) -> None:
    in_tables = {
        "prompt": largest(tables, "context_attention", "isl"),
        # `step` tokens before the one that is computed.
        "cached": largest(tables, "generation_attention", "step") + 1,
        "batch": largest(tables, "generation_attention", "batch_size"),
        "rows": largest(tables, "gemm", "m"),
    }

    assert in_tables == {
        "prompt": operators.MEASURED.prompt,
        "cached": operators.MEASURED.kv,
        "batch": operators.MEASURED.batch,
        "rows": operators.MEASURED.gemm_rows,
    }


def test_the_versions_of_package_and_tables_are_known() -> None:
    assert operators.tables_version("h200_sxm") == ("0.12.0", "1.3.0rc20")


# Times.


@SEVERAL
def test_a_decode_iteration_is_what_the_facade_says_in_one_piece(deployed: Deployment) -> None:
    """Attention interpolated between lengths, plus the rest: 99 of 100 within 0.2 %, as the docstring says."""
    times = operator_times(deployed)
    source = random.Random(2026)
    errors = []
    for _ in range(300):
        batch, kv = round(2 ** source.uniform(0, 11)), round(2 ** source.uniform(1, 17))
        whole = times._handle.decode_step_latency(batch, kv - 1, 1) * 1e-3
        errors.append(abs(times.decode(batch, kv) / whole - 1))

    assert sorted(errors)[int(0.99 * len(errors)) - 1] < 0.002
    assert max(errors) < 0.02


def test_decode_attention_is_exact_at_the_lengths_it_interpolates_between() -> None:
    times = operator_times(BF16_8B)

    # 1,024 to 2,048 tokens in steps of 32; up to 63 every length is asked for.
    for kv in (1, 2, 37, 63, 64, 1024, 1056, 2016):
        assert times.decode_attention(8, kv) == times._handle.mixed_step_breakdown(0, 8, max(1, kv - 1), 0)[3] * 1e-3


@SEVERAL
def test_a_prompt_iteration_is_what_the_facade_says_in_one_piece(deployed: Deployment) -> None:
    times = operator_times(deployed)

    for tokens in (1, 100, 2048, 16384):
        whole = times._handle.predict_prefill_latency(1, tokens) * 1e-3

        assert times.shared(tokens, 0, 1) + times.prompt_attention(1, tokens) == pytest.approx(whole, rel=1e-9)


@SEVERAL
@pytest.mark.parametrize("batch", [1, 64, 1000])
def test_an_iteration_without_prompts_costs_the_same_either_way(deployed: Deployment, batch: int) -> None:
    """Every sequence of an iteration needs its row of the output head, prompts beside it or not."""
    times = operator_times(deployed)

    all_but_attention = times.decode(batch, 1000) - times.decode_attention(batch, 1000)

    assert times.shared(0, batch, 0) == pytest.approx(all_but_attention, rel=1e-9)


@SEVERAL
def test_times_grow_with_the_work(deployed: Deployment) -> None:
    times = operator_times(deployed)

    assert times.decode(1, 1000) < times.decode(64, 1000) < times.decode(1024, 1000)
    assert times.decode(64, 1000) < times.decode(64, 8000)
    assert times.shared(2048, 0, 1) < times.shared(2048, 512, 1) < times.shared(4096, 512, 1)
    assert times.prompt_attention(1, 2048) < times.prompt_attention(2, 2048) < times.prompt_attention(1, 16384)


@SEVERAL
def test_shares_of_an_iteration_add_up_to_it(deployed: Deployment) -> None:
    times = operator_times(deployed)
    decode, prompt = times.decode_by_kind(64, 2048), times.prompt_by_kind(2048)

    assert sum(decode.values()) == pytest.approx(times.decode(64, 2048), rel=0.002)
    assert sum(prompt.values()) == pytest.approx(times.shared(2048, 0, 1) + times.prompt_attention(1, 2048), rel=1e-9)
    for shares in (decode, prompt):
        assert set(shares) == {"GEMM", "attention", "all-reduce", "pipeline", "other"}
        assert (shares["all-reduce"] > 0) == (deployed.layout.tp > 1)
        assert shares["pipeline"] == 0


def test_a_pipeline_pays_for_passing_activations_on() -> None:
    shares = operator_times(deployment("llama-3.1-405b", "modelopt-fp8", "pp8")).decode_by_kind(64, 2048)

    assert shares["pipeline"] > 0
    assert shares["all-reduce"] == 0


@SEVERAL
def test_nothing_is_faster_than_the_physical_limit(deployed: Deployment) -> None:
    silicon, limit = operator_times(deployed), operator_times(deployed, View.PHYSICAL_LIMIT)

    for batch, kv in (
        (1, 128),
        (1, 100_000),
        (8, 2048),
        (64, 2048),
        (256, 2176),
        (512, 1000),
        (1024, 300),
        (2048, 200),
    ):
        assert 0 < limit.decode(batch, kv) < silicon.decode(batch, kv)
    for prompts, tokens in ((1, 128), (4, 2048), (1, 16384)):
        assert 0 < limit.prompt_attention(prompts, tokens) < silicon.prompt_attention(prompts, tokens)
        assert 0 < limit.shared(prompts * tokens, 64, 1) < silicon.shared(prompts * tokens, 64, 1)


def test_the_physical_limit_of_a_small_batch_is_reading_the_weights() -> None:
    # 8 B parameters in BF16 without the embedding, which a batch of 1 reads one row of: 13.98 GiB at 4.8 TB/s.
    model = BF16_8B.model
    read = 2 * (model.attention_weights + model.feed_forward_weights + model.embedding_weights / 2)

    assert operator_times(BF16_8B, View.PHYSICAL_LIMIT).decode(1, 2) == pytest.approx(read / 4.8e12, rel=0.02)


# Recipes that mix number formats.


def op_lists(deployed: Deployment, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """The (kind, fields) of every operator handed to the package, by phase."""
    handed: list[str] = []
    compiled = aiconfigurator_core.engine_spec_bincode_from_json

    def record(spec: str) -> bytes:
        handed.append(spec)
        return bytes(compiled(spec))

    with monkeypatch.context() as patch, operators._model_directory(deployed.model) as directory:
        patch.setattr(aiconfigurator_core, "engine_spec_bincode_from_json", record)
        operators._mixed_spec(deployed, View.SILICON, directory)
    spec = json.loads(handed[-1])
    return {phase: [next(iter(op.items())) for op in spec[f"{phase}_ops"]] for phase in ("context", "generation")}


@pytest.mark.parametrize("phase", ["context", "generation"])
def test_llama_fp8_quantizes_the_feed_forward_of_124_of_126_layers(phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    operators_of = op_lists(META_405B, monkeypatch)[phase]
    found = [
        (body["name"], body["quant_mode"], round(body["scale_factor"], 9))
        for kind, body in operators_of
        if kind == "Gemm"
    ]

    assert found == [
        (f"{phase}_qkv_gemm", "bfloat16", 126),
        (f"{phase}_proj_gemm", "bfloat16", 126),
        (f"{phase}_gate_ffn1_gemm", "fp8", 124),
        (f"{phase}_gate_ffn1_gemm", "bfloat16", 2),
        (f"{phase}_ffn2_gemm", "fp8", 124),
        (f"{phase}_ffn2_gemm", "bfloat16", 2),
        (f"{phase}_logits_gemm", "bfloat16", 1),
    ]
    (attention,) = [body for kind, body in operators_of if "Attention" in kind]
    assert (attention["kv_cache_dtype"], attention["scale_factor"]) == ("bfloat16", 126)


def test_splitting_an_operator_keeps_all_else_about_it() -> None:
    gemm = {"name": "context_ffn2_gemm", "scale_factor": 126.0, "n": 16384, "k": 6656, "quant_mode": "fp8"}

    pieces = list(operators._by_recipe({"Gemm": gemm}, META_405B))

    assert pieces == [
        {"Gemm": gemm | {"scale_factor": pytest.approx(124)}},
        {"Gemm": gemm | {"scale_factor": pytest.approx(2), "quant_mode": "bfloat16"}},
    ]


def test_an_operator_without_number_format_is_left_alone() -> None:
    op = {"Elementwise": {"name": "context_add_norm_1", "scale_factor": 126.0}}

    assert list(operators._by_recipe(op, META_405B)) == [op]


@pytest.mark.parametrize(
    "deployed",
    [BF16_8B, FP8_405B, deployment("llama-3.1-70b", "modelopt-fp8", "tp4-pp2", "h100_sxm")],
    ids=lambda d: f"{d.model}-{d.recipe}-{d.layout}-{d.tables}",
)
def test_a_uniform_recipe_built_from_the_op_list_is_the_one_the_facade_compiles(deployed: Deployment) -> None:
    from aiconfigurator_core.sdk import EngineHandle

    compiled = operator_times(deployed)._handle
    with operators._model_directory(deployed.model) as directory:
        built = EngineHandle(operators._mixed_spec(deployed, View.SILICON, directory))

    assert built.run_static(batch_size=4, isl=1000, osl=50) == compiled.run_static(batch_size=4, isl=1000, osl=50)
    assert built.mixed_step_breakdown(4096, 64, 2048, 128) == compiled.mixed_step_breakdown(4096, 64, 2048, 128)
    assert built.decode_step_latency(500, 2048, 128) == compiled.decode_step_latency(500, 2048, 128)


def test_a_recipe_that_leaves_every_layer_alone_is_bf16() -> None:
    layers = BF16_8B.model.layers
    untouched = Recipe("untouched", Number.BF16, Number.FP8_ROW, Number.BF16, layers, "made up")
    mixed = operator_times(dataclasses.replace(BF16_8B, recipe=untouched))
    plain = operator_times(BF16_8B)

    assert mixed.decode(64, 2048) == pytest.approx(plain.decode(64, 2048), rel=1e-9)
    assert mixed.shared(4096, 64, 2) == pytest.approx(plain.shared(4096, 64, 2), rel=1e-9)


def test_the_mixed_recipe_lies_between_the_uniform_ones() -> None:
    fp8, mixed, bf16 = (
        operator_times(deployment("llama-3.1-405b", recipe, "tp8")).shared(4096, 0, 1)
        for recipe in ("modelopt-fp8", "llama-fp8", "bf16")
    )

    assert fp8 < mixed < bf16


# Memory.


@pytest.mark.parametrize(("recipe", "gib"), [("modelopt-fp8", 47.7), ("llama-fp8", 56.7), ("bf16", 94.5)])
def test_weights_of_405b_on_one_of_eight_gpus(recipe: str, gib: float) -> None:
    memory = device_memory(deployment("llama-3.1-405b", recipe, "tp8"), 8192)

    assert memory.weights / GIB == pytest.approx(gib, rel=0.01)
    assert memory.capacity == 141 * GIB
    assert 0 < memory.other / GIB < 10


@pytest.mark.parametrize("model", ["llama-3.1-8b", "llama-3.2-1b", "llama-3.2-3b"])
def test_weights_are_those_the_recipe_leaves(model: str) -> None:
    """Embeddings tied to the output head are held once."""
    deployed = deployment(model, "bf16", "tp1")

    assert device_memory(deployed, 8192).weights == pytest.approx(
        deployed.recipe.weight_bytes(deployed.model), rel=0.01
    )


# Two (keys and values) * 126 layers * 8 KV heads * 128 numbers, over the GPUs that split a layer.
@pytest.mark.parametrize(
    ("recipe", "layout", "expected"),
    [
        ("modelopt-fp8", "tp8", 2 * 126 * 8 * 128 / 8),
        ("llama-fp8", "tp8", 2 * 126 * 8 * 128 * 2 / 8),
        ("modelopt-fp8", "tp4-pp2", 2 * 126 * 8 * 128 / 4),
        ("modelopt-fp8", "pp8", 2 * 126 * 8 * 128),
    ],
)
def test_a_cached_token_takes_its_bytes_in_all_layers(recipe: str, layout: str, expected: float) -> None:
    """Of the whole stack, pipeline or not: `predicting` counts the cache of one of the pp batches by it."""
    assert device_memory(deployment("llama-3.1-405b", recipe, layout), 8192).kv_per_token == expected


# What it refuses, and what it must not do.


def test_nothing_goes_over_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model id the package doesn't know would be looked for on a hub, with the user's token."""
    attempts: list[object] = []

    def refuse(*arguments: object, **_: object) -> None:
        attempts.append(arguments)
        raise OSError("no network in this test")

    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for deployed in (BF16_8B, META_405B):
        # A name of which nothing can be in a cache of ours or theirs.
        unseen = dataclasses.replace(deployed, model=dataclasses.replace(deployed.model, name="acme/Unseen-Llama"))
        for view in View:
            assert OperatorTimes(unseen, view).decode(1, 100) > 0
        assert device_memory(unseen, 8192).weights > 0

    assert attempts == []


def test_model_directories_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    times = OperatorTimes(META_405B)
    device_memory(META_405B, 8192)

    assert list(tmp_path.iterdir()) == []
    assert times.decode(1, 100) > 0


@pytest.mark.parametrize(("tables", "gib"), [("h100_sxm", 80), ("h200_sxm", 141), ("b200_sxm", 180)])
def test_memory_of_a_gpu(tables: str, gib: int) -> None:
    """The catalog says what the driver reports, which is within 1 % of this."""
    name = tables.partition("_")[0]

    assert operators.gpu_memory(tables) == gib * GIB
    assert gpu_named(name).memory == pytest.approx(gib * GIB, rel=0.01)


@pytest.mark.parametrize("name", ["h100", "h200", "b200"])
def test_speeds_in_the_catalog_are_those_the_physical_limit_is_computed_with(name: str) -> None:
    gpu = gpu_named(name)
    spec = load_system_spec(gpu.operator_tables)

    assert gpu.memory_bandwidth == pytest.approx(spec["gpu"]["mem_bw"], rel=0.01)
    assert gpu.bf16_flops == pytest.approx(spec["gpu"]["bfloat16_tc_flops"], rel=0.01)
    assert gpu.fp8_flops == pytest.approx(spec["gpu"]["fp8_tc_flops"], rel=0.01)
    assert gpu.link_bandwidth == pytest.approx(spec["node"]["intra_node_bw"], rel=0.01)


@pytest.mark.parametrize(
    "use",
    [
        lambda: OperatorTimes(BF16_8B),
        lambda: OperatorTimes(META_405B),
        lambda: OperatorTimes(BF16_8B, View.PHYSICAL_LIMIT),
        lambda: device_memory(BF16_8B, 8192),
        lambda: operators.gpu_memory.__wrapped__("h200_sxm"),
        lambda: operators.tables_version.__wrapped__("h200_sxm"),
    ],
    ids=["times", "mixed", "limit", "memory", "gpu", "version"],
)
def test_without_the_package_the_extra_is_named(use: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "aiconfigurator_core"]:
        monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(UsageError, match=r"need the package aiconfigurator-core .*'pytest-llamaperf\[predict\]'"):
        use()


@pytest.mark.parametrize(
    "use",
    [
        lambda unknown: OperatorTimes(unknown),
        lambda unknown: OperatorTimes(dataclasses.replace(unknown, recipe=META_405B.recipe)),
        lambda unknown: OperatorTimes(unknown, View.PHYSICAL_LIMIT),
        lambda unknown: device_memory(unknown, 8192),
        lambda unknown: operators.gpu_memory(unknown.system),
    ],
    ids=["times", "mixed", "limit", "memory", "gpu"],
)
def test_an_unknown_gpu_is_an_engine_error_that_names_it(use: Any) -> None:
    with pytest.raises(EngineError, match=r"gtx1080.*aiconfigurator-core refuses"):
        use(dataclasses.replace(BF16_8B, system="gtx1080"))


@pytest.mark.parametrize(
    "use",
    [
        lambda times: times.prompt_attention(1, 128),
        lambda times: times.decode(1, 128),
        lambda times: times.decode_attention(1, 128),
        lambda times: times.decode_by_kind(1, 128),
        lambda times: times.prompt_by_kind(128),
    ],
    ids=["prompt_attention", "decode", "decode_attention", "decode_by_kind", "prompt_by_kind"],
)
def test_a_shape_that_was_never_measured_is_an_engine_error(use: Any) -> None:
    """SmolLM2-135M has 3 KV heads of 64, which no table holds; the package says so at the first question."""
    with pytest.raises(EngineError, match=r"smollm2-135m .*aiconfigurator-core refuses"):
        use(operator_times(deployment("smollm2-135m", "bf16", "tp1")))


def test_nothing_is_said_on_stderr() -> None:
    """Nor does the package; 405B has 126 layers, which it remarks do not divide by 8."""
    script = (
        "from pytest_llamaperf.catalog import case_of_key\n"
        "from pytest_llamaperf.predicting import predict\n"
        "key = 'tensorrt-llm/llama-3.1-405b/modelopt-fp8/pp8/min-latency-2048-128'\n"
        "print(predict(case_of_key('h200', key)).iterations)\n"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)

    assert done.stderr == ""
    assert done.stdout == "1280\n"  # ten requests of 128 tokens, one at a time
