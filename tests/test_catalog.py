"""Models, GPUs, recipes and workloads by name, and models by their checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llamaperf.cases import ENGINES, Case, Layout, Number, Workload, check_layout
from pytest_llamaperf.catalog import (
    case_of_key,
    check_weights,
    gpu_named,
    gpus,
    model_named,
    models,
    recipe_named,
    recipes,
    workload_named,
)
from pytest_llamaperf.errors import UsageError

# A small Llama as both major versions of transformers write it.
SHAPE = {
    "model_type": "llama",
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
LLAMA3_SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


def checkpoint(folder: Path, config: object) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama-2-70b", 68.98e9),
        ("llama-3.1-8b", 8.03e9),
        ("llama-3.1-70b", 70.6e9),
        ("llama-3.1-405b", 405.9e9),
        ("llama-3.2-1b", 1.24e9),
        ("llama-3.2-3b", 3.21e9),
        ("llama-3.3-70b", 70.6e9),
        ("smollm2-135m", 134.5e6),
    ],
)
def test_models_have_as_many_parameters_as_their_makers_say(name: str, parameters: float) -> None:
    model = model_named(name)

    counted = model.attention_weights + model.feed_forward_weights + model.embedding_weights
    assert counted == pytest.approx(parameters, rel=0.005)  # we count no norms, and the makers round


def test_no_model_goes_unchecked() -> None:
    (parametrized,) = test_models_have_as_many_parameters_as_their_makers_say.pytestmark  # type: ignore[attr-defined]

    assert {name for name, _ in parametrized.args[1]} == set(models())


@pytest.mark.parametrize("name", sorted(models()))
def test_heads_of_a_model_share_its_width_and_its_kv_heads(name: str) -> None:
    model = model_named(name)

    assert model.heads * model.head_dim == model.hidden
    assert model.heads % model.kv_heads == 0


@pytest.mark.parametrize(("recipe", "gib"), [("bf16", 94.5), ("modelopt-fp8", 47.7), ("llama-fp8", 56.7)])
def test_weights_of_405b_on_each_of_eight_gpus(recipe: str, gib: float) -> None:
    # 405.85e9 weights, of these 70.04e9 attention, 331.6e9 feed-forward, 4.2e9 embeddings; over 8 * 2**30:
    #   bf16          all at 2 bytes                                          94.49
    #   modelopt-fp8  embeddings at 2, the rest at 1                          47.74
    #   llama-fp8     feed-forward of 124 of 126 layers at 1, the rest at 2   56.71
    per_gpu = recipe_named(recipe).weight_bytes(model_named("llama-3.1-405b")) / 8

    assert per_gpu / 2**30 == pytest.approx(gib, abs=0.05)


def test_the_official_fp8_recipe_quantizes_feed_forward_layers_only() -> None:
    official = recipe_named("llama-fp8")

    assert (official.attention, official.feed_forward, official.kv_cache) == (Number.BF16, Number.FP8_ROW, Number.BF16)
    assert official.bf16_layers == 2


def test_modelopt_fp8_quantizes_all_linear_layers_and_the_cache() -> None:
    modelopt = recipe_named("modelopt-fp8")

    assert (modelopt.attention, modelopt.feed_forward) == (Number.FP8_TENSOR, Number.FP8_TENSOR)
    assert (modelopt.kv_cache, modelopt.bf16_layers) == (Number.FP8, 0)


def test_weights_that_cannot_be_loaded_are_refused_with_the_gpus_it_would_take() -> None:
    """Llama 3.3 70B in BF16: 131.4 GiB. One H200 has 140.4 GiB, one H100 79.6 GiB, two have enough."""
    key = "tensorrt-llm/llama-3.3-70b/bf16/{}/min-latency-1-1".format

    check_weights(case_of_key("h200", key("tp1")))
    check_weights(case_of_key("h100", key("tp2")))
    check_weights(case_of_key("cpu", key("tp1")))
    with pytest.raises(UsageError, match=r"131\.4 GiB of weights on each GPU.* has 79\.6 GiB; .* at least 2 GPUs"):
        check_weights(case_of_key("h100", key("tp1")))
    with pytest.raises(UsageError, match=r"131\.4 GiB of weights on each GPU"):
        check_weights(case_of_key("h100", key("dp8")))


@pytest.mark.parametrize(
    ("name", "memory", "bandwidth", "fp8", "product"),
    [
        ("h100", 81_559 * 2**20, 3.35e12, 1979e12, "NVIDIA H100 80GB HBM3"),
        ("h200", 143_771 * 2**20, 4.8e12, 1979e12, "NVIDIA H200"),
        ("b200", 180 * 2**30, 7.7e12, 4500e12, "NVIDIA B200"),
    ],
)
def test_gpus_are_as_their_datasheets_say(name: str, memory: float, bandwidth: float, fp8: float, product: str) -> None:
    gpu = gpu_named(name)

    assert (gpu.memory, gpu.memory_bandwidth, gpu.fp8_flops) == (memory, bandwidth, fp8)
    assert product in gpu.nvml_names


def test_no_product_is_two_gpus() -> None:
    products = [product for gpu in gpus().values() for product in gpu.nvml_names]

    assert len(products) == len(set(products))


@pytest.mark.parametrize(
    ("look_up", "name", "message"),
    [
        (
            model_named,
            "llama-3.1-80b",
            "unknown model 'llama-3.1-80b'; did you mean 'llama-3.1-8b'? known: llama-2-70b, ",
        ),
        (gpu_named, "h20", "unknown GPU 'h20'; did you mean 'h200'? known: b200, h100, h200"),
        (recipe_named, "modelopt_fp8", "unknown recipe 'modelopt_fp8'; did you mean 'modelopt-fp8'? known: bf16, "),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_one(look_up: Any, name: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        look_up(name)

    assert str(caught.value).startswith(message)


def test_an_unknown_model_may_be_meant_as_a_path() -> None:
    with pytest.raises(UsageError, match="or the path of a Hugging Face checkpoint"):
        model_named("/nowhere/llama")


def test_a_name_too_long_for_a_path_is_an_unknown_model() -> None:
    with pytest.raises(UsageError, match="unknown model"):
        model_named("x" * 300)


@pytest.mark.parametrize(
    ("text", "requests"),
    [
        ("max-throughput-2048-128", 3000),  # published with the performance overview
        ("max-throughput-20000-2000", 1000),
        ("max-throughput-128-128", 30000),
        ("concurrency-64-2048-128", 3000),
        ("max-throughput-32768-2048", 229),  # 8,000,000 tokens / 34,816
        ("max-throughput-120000-2048", 65),  # 8,000,000 / 122,048 = 65.5
        ("max-throughput-120000-5001", 64),  # 63.99, but at least 64
        ("max-throughput-1333-1333", 3000),  # 3,000.7, but at most 3,000
        ("max-throughput-1333-1334", 2999),
        ("min-latency-2048-128", 10),
        ("max-throughput-openorca", 73728),
        ("rate-100.35-openorca", 73728),
    ],
)
def test_a_workload_has_the_published_number_of_requests_or_as_many_as_fill_its_budget(
    text: str, requests: int
) -> None:
    workload = workload_named(text)

    assert workload.requests == requests
    assert str(workload) == text


@pytest.mark.parametrize(
    "text",
    ["", "2048-128", "max-throughput", "max-throughput-2048", "max-throughput-0-128", "max-throughput-02-128",
     "max-throughput-2048-128-1", "max-throughput-2048/128", "max-throughput-1-1\n", "concurrency-0-1-1", "rate--1-1-1"],
)  # fmt: skip
def test_what_is_no_workload_is_refused_with_examples(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        workload_named(text)

    assert str(caught.value) == (
        f"unknown workload {text!r}; write SCENARIO-ISL-OSL, as in max-throughput-2048-128, or SCENARIO-LENGTHS, "
        "as in max-throughput-openorca; scenarios: max-throughput, min-latency, concurrency-<N>, "
        "rate-<requests per second>"
    )


@pytest.mark.parametrize("text", ["rate-0-2048-128", "rate-0.0-2048-128"])
def test_an_open_loop_has_a_rate(text: str) -> None:
    with pytest.raises(UsageError, match="unknown workload"):
        workload_named(text)


@pytest.mark.parametrize("text", [f"max-throughput-{'9' * 5000}-1", f"concurrency-{'9' * 5000}-1-1"])
def test_absurd_numbers_are_refused_like_any_other_mistake(text: str) -> None:
    with pytest.raises(UsageError):
        workload_named(text).concurrency  # noqa: B018


def test_unknown_lengths_are_answered_with_the_nearest_ones() -> None:
    with pytest.raises(UsageError) as caught:
        workload_named("max-throughput-opneorca")

    assert str(caught.value) == (
        "unknown lengths 'opneorca' in workload 'max-throughput-opneorca'; did you mean 'openorca'? known: openorca"
    )


@pytest.mark.parametrize("key", ["", "a/b/c/d", "h200/tensorrt-llm/llama-3.1-8b/bf16/tp1/min-latency-1-1"])
def test_a_key_has_five_parts(key: str) -> None:
    with pytest.raises(UsageError) as caught:
        case_of_key("h200", key)

    assert str(caught.value) == f"a case is written engine/model/recipe/layout/workload, not {key!r}"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("vllm/llama-3.1-8b/bf16/tp1/min-latency-1-1", "unknown engine 'vllm'; "),
        ("torch/llama-3.1-9b/bf16/tp1/min-latency-1-1", "unknown model 'llama-3.1-9b'; did you mean 'llama-3.1-8b'?"),
        ("torch/llama-3.1-8b/fp16/tp1/min-latency-1-1", "unknown recipe 'fp16'; did you mean 'bf16'?"),
        ("torch/llama-3.1-8b/bf16/tp/min-latency-1-1", "unknown layout 'tp'; write tp8, "),
        ("torch/llama-3.1-8b/bf16/tp1/min-latency", "unknown workload 'min-latency'; "),
        (
            "tensorrt-llm/llama-3.1-8b/bf16/tp3/min-latency-1-1",
            "tp3: llama-3.1-8b has 32 attention heads and 8 KV heads",
        ),
        ("torch/llama-2-70b/bf16/tp8/min-latency-4096-1", "llama-2-70b reads at most 4,096 tokens"),
    ],
)
def test_a_wrong_part_of_a_key_is_named(key: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        case_of_key("h200", key)

    assert str(caught.value).startswith(message)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    model = draw(st.sampled_from(list(models().values())))
    engine = draw(st.sampled_from(ENGINES))

    def fits(tp: int) -> bool:
        if engine == "torch":
            return tp <= model.kv_heads
        return model.heads % tp == 0 and (model.kv_heads % tp == 0 or tp % model.kv_heads == 0)

    tps = [tp for tp in range(1, 33) if fits(tp)]
    layout = Layout(draw(st.sampled_from(tps)), draw(st.integers(1, model.layers)), draw(st.integers(1, 16)))
    isl = draw(st.integers(1, model.context - 1))
    lengths = isl, draw(st.integers(1, model.context - isl))
    scenario = draw(
        st.sampled_from(["max-throughput", "min-latency"])
        | st.integers(1, 4096).map("concurrency-{}".format)
        | st.integers(1, 10**6).map(lambda rate: f"rate-{rate / 100:g}")
    )
    drawn = st.just(Workload(scenario, 289, 291, 1, lengths="openorca"))
    work = draw(drawn | st.just(Workload(scenario, *lengths, requests=1)))
    recipe = draw(st.sampled_from(list(recipes().values())))
    return Case(draw(st.sampled_from(list(gpus()))), engine, model, recipe, layout, work)


@given(cases())
def test_every_case_is_found_again_by_its_key(case: Case) -> None:
    again = case_of_key(case.hardware, case.key)

    assert again.id == case.id
    assert (again.engine, again.model, again.recipe, again.layout) == (
        case.engine, case.model, case.recipe, case.layout,
    )  # fmt: skip
    check_layout(again.model, again.layout, again.engine)
    assert isinstance(again.work, Workload)
    assert isinstance(case.work, Workload)
    assert (again.work.scenario, again.work.isl, again.work.osl, again.work.lengths) == (
        case.work.scenario, case.work.isl, case.work.osl, case.work.lengths,
    )  # fmt: skip


def test_a_checkpoint_of_a_known_model_has_the_shape_in_the_catalog(tmp_path: Path) -> None:
    known = model_named("smollm2-135m")

    found = model_named(checkpoint(tmp_path / "SmolLM2-135M", {**SHAPE, "rope_theta": 100000.0}))

    assert found.name == "smollm2-135m"
    assert found.source == str(tmp_path / "SmolLM2-135M")
    assert {**vars(found), "source": ""} == {**vars(known), "source": ""}


def test_a_checkpoint_called_like_another_model_is_refused(tmp_path: Path) -> None:
    """It would be judged by promises made for the real one."""
    path = checkpoint(tmp_path / "llama-3.1-8b", {**SHAPE, "rope_theta": 100000.0})

    with pytest.raises(UsageError, match=r"called like the catalog's llama-3\.1-8b and has another shape; rename"):
        model_named(path)


def test_heads_that_cannot_share_their_kv_heads_are_refused(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "odd", {**SHAPE, "num_attention_heads": 9, "num_key_value_heads": 2})

    with pytest.raises(UsageError, match="9 attention heads cannot share 2 KV heads evenly"):
        model_named(path)


def test_a_scaled_rope_is_the_same_in_the_spelling_of_transformers_4_and_5(tmp_path: Path) -> None:
    of_4 = {**SHAPE, "rope_theta": 500000.0, "rope_scaling": LLAMA3_SCALING}
    of_5 = {**SHAPE, "rope_parameters": {"rope_theta": 500000.0, **LLAMA3_SCALING}}

    four = model_named(checkpoint(tmp_path / "model", of_4))
    five = model_named(checkpoint(tmp_path / "model", of_5))

    assert four == five
    assert (four.rope["theta"], four.rope["type"], four.rope["factor"]) == (500000.0, "llama3", 8.0)


def test_a_plain_rope_is_the_same_in_the_spelling_of_transformers_4_and_5(tmp_path: Path) -> None:
    of_4 = {**SHAPE, "rope_theta": 100000.0, "rope_scaling": None}
    of_5 = {**SHAPE, "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"}}

    assert model_named(checkpoint(tmp_path / "model", of_4)) == model_named(checkpoint(tmp_path / "model", of_5))


def test_the_rope_of_a_llama_3_1_checkpoint_is_the_catalogs(tmp_path: Path) -> None:
    config = {**SHAPE, "rope_theta": 500000.0, "rope_scaling": LLAMA3_SCALING}

    assert model_named(checkpoint(tmp_path / "model", config)).rope == model_named("llama-3.1-8b").rope


def test_what_a_checkpoint_leaves_out_is_what_transformers_assumes(tmp_path: Path) -> None:
    optional = ("num_key_value_heads", "head_dim", "tie_word_embeddings")
    config = {key: value for key, value in SHAPE.items() if key not in optional}

    found = model_named(checkpoint(tmp_path / "model", config))

    assert (found.kv_heads, found.head_dim, found.tied_embeddings) == (9, 64, False)
    assert found.rope["theta"] == 10000.0


@pytest.mark.parametrize("raw", [b"", b"{", b'{"model_type": "llama"', b"\xff"])
def test_a_config_that_is_no_json_is_refused_with_its_path(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "config.json").write_bytes(raw)

    with pytest.raises(UsageError) as caught:
        model_named(str(tmp_path))

    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: cannot be read as JSON: ")


@pytest.mark.parametrize(
    ("config", "found"),
    [({**SHAPE, "model_type": "mistral"}, "'mistral'"), ({}, "None"), ([], "'list'"), (None, "'NoneType'")],
)
def test_another_kind_of_model_is_refused(tmp_path: Path, config: object, found: str) -> None:
    with pytest.raises(UsageError) as caught:
        model_named(checkpoint(tmp_path, config))

    assert str(caught.value) == (
        f"{tmp_path / 'config.json'}: model_type is {found}; this project tests 'llama' checkpoints"
    )


@pytest.mark.parametrize("value", [None, 0, -1, "30", 30.0, True, [30]])
def test_a_shape_is_written_in_positive_whole_numbers(tmp_path: Path, value: object) -> None:
    config = {**SHAPE, "num_hidden_layers": value, "vocab_size": value}

    with pytest.raises(UsageError) as caught:
        model_named(checkpoint(tmp_path, config))

    assert str(caught.value) == (
        f"{tmp_path / 'config.json'}: missing, or not a positive whole number: num_hidden_layers, vocab_size"
    )


@pytest.mark.parametrize("key", ["num_key_value_heads", "head_dim"])
@pytest.mark.parametrize("value", [-3, "3", 2.5, [3]])
def test_optional_parts_of_a_shape_are_positive_whole_numbers_too(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(UsageError, match=key):
        model_named(checkpoint(tmp_path, {**SHAPE, key: value}))


@pytest.mark.parametrize("extra", [{"rope_parameters": [1]}, {"rope_parameters": "x"}, {"rope_scaling": [1]}])
def test_a_rope_that_is_no_mapping_is_refused(tmp_path: Path, extra: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="rope"):
        model_named(checkpoint(tmp_path, {**SHAPE, **extra}))
