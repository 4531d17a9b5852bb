"""What a case is, how it is written, and which cases there cannot be."""

from __future__ import annotations

import dataclasses

import pytest
from builders import case
from hypothesis import given
from hypothesis import strategies as st

from pytest_llamaperf.cases import Case, Layout, Number, Task, Workload, check_layout
from pytest_llamaperf.catalog import model_named, recipe_named
from pytest_llamaperf.errors import UsageError


@pytest.mark.parametrize(
    ("text", "layout", "gpus"),
    [
        ("tp1", Layout(), 1),
        ("tp8", Layout(tp=8), 8),
        ("pp8", Layout(pp=8), 8),
        ("dp8", Layout(dp=8), 8),
        ("tp4-pp2", Layout(tp=4, pp=2), 8),
        ("tp2-dp4", Layout(tp=2, dp=4), 8),
        ("tp2-pp3-dp4", Layout(tp=2, pp=3, dp=4), 24),
    ],
)
def test_a_layout_is_written_as_it_is_read(text: str, layout: Layout, gpus: int) -> None:
    assert Layout.parse(text) == layout
    assert str(layout) == text
    assert layout.gpus == gpus


@pytest.mark.parametrize(("text", "same"), [("pp2-tp4", "tp4-pp2"), ("TP8", "tp8"), ("tp1-pp8", "pp8")])
def test_a_layout_has_one_way_to_be_written_however_it_was_typed(text: str, same: str) -> None:
    assert str(Layout.parse(text)) == same


@given(st.builds(Layout, st.integers(1, 9999), st.integers(1, 9999), st.integers(1, 9999)))
def test_every_layout_survives_being_written(layout: Layout) -> None:
    assert Layout.parse(str(layout)) == layout


@pytest.mark.parametrize(
    "text", ["", "8", "tp", "tp0", "tp-8", "tp08", "tp8-", "tp8-tp2", "tp8 ", "tp8\n", "ep8", "tp10000", "tp8_pp2"]
)
def test_what_is_no_layout_is_refused_with_examples(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Layout.parse(text)

    assert str(caught.value) == f"unknown layout {text!r}; write tp8, pp8, tp4-pp2 or tp2-dp4"


@pytest.mark.parametrize("kind", ["tp", "pp", "dp"])
def test_a_layout_has_at_least_one_rank_of_each_kind(kind: str) -> None:
    with pytest.raises(UsageError, match="at least one rank"):
        Layout(**{kind: 0})


@pytest.mark.parametrize(
    ("model", "fits", "does_not"),
    [
        ("llama-3.1-405b", [1, 2, 4, 8, 16, 32, 64, 128], [3, 5, 6, 7, 12, 24, 48, 256]),  # 128 heads, 8 KV heads
        ("smollm2-135m", [1, 3, 9], [2, 4, 6, 18]),  # 9 heads, 3 KV heads
        ("llama-3.2-3b", [1, 2, 4, 8, 24], [3, 6, 12, 16]),  # 24 heads, 8 KV heads: 12 would cut a KV head in two
    ],
)
def test_tensor_parallelism_needs_as_many_heads_on_every_gpu(model: str, fits: list[int], does_not: list[int]) -> None:
    for tp in fits:
        check_layout(model_named(model), Layout(tp=tp))
    for tp in does_not:
        with pytest.raises(UsageError, match=f"which tp{tp} does not divide"):
            check_layout(model_named(model), Layout(tp=tp))


def test_a_refused_layout_names_the_heads_and_the_sizes_that_work() -> None:
    with pytest.raises(UsageError) as caught:
        check_layout(model_named("smollm2-135m"), Layout(tp=2))

    assert str(caught.value) == (
        "tp2: smollm2-135m has 9 attention heads and 3 KV heads, which tp2 does not divide; these do: tp1, tp3, tp9"
    )


def test_there_are_at_most_as_many_pipeline_stages_as_layers() -> None:
    model = model_named("llama-3.1-405b")

    check_layout(model, Layout(pp=126))
    with pytest.raises(UsageError) as caught:
        check_layout(model, Layout(pp=127))

    assert str(caught.value) == "pp127: llama-3.1-405b has 126 layers, fewer than 127 pipeline stages"


@pytest.mark.parametrize(
    ("scenario", "concurrency", "rate"),
    [
        ("max-throughput", None, None),
        ("min-latency", 1, None),
        ("concurrency-64", 64, None),
        ("rate-100.35", None, 100.35),
        ("rate-7", None, 7.0),
        ("rate-0.5", None, 0.5),
    ],
)
def test_a_scenario_says_how_requests_arrive(scenario: str, concurrency: int | None, rate: float | None) -> None:
    workload = Workload(scenario, 2048, 128, requests=10)

    assert (workload.concurrency, workload.arrival_rate) == (concurrency, rate)
    assert str(workload) == f"{scenario}-2048-128"


@pytest.mark.parametrize(
    "scenario",
    [
        "",
        "max-thruput",
        "concurrency",
        "concurrency-0",
        "concurrency-1.5",
        "rate-0",
        "rate-0.0",
        "rate-x",
        "rate-100.0",
        "rate-07",
    ],
)
def test_an_unknown_scenario_is_refused_with_the_known_ones(scenario: str) -> None:
    with pytest.raises(UsageError) as caught:
        Workload(scenario, 2048, 128, requests=10)

    assert str(caught.value).startswith(f"unknown workload {scenario!r}; ")
    assert "known: concurrency-<N>, max-throughput, min-latency, rate-<requests per second>" in str(caught.value)


@pytest.mark.parametrize("lengths", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_a_workload_has_at_least_one_token_in_one_out_and_one_request(lengths: tuple[int, int, int]) -> None:
    Workload("min-latency", 1, 1, 1)
    with pytest.raises(UsageError, match="ISL, OSL and requests are at least 1"):
        Workload("min-latency", *lengths)


def test_a_workload_of_drawn_lengths_is_written_by_their_name() -> None:
    assert str(Workload("max-throughput", 289, 291, 100, lengths="openorca")) == "max-throughput-openorca"


def test_a_case_is_identified_by_all_it_consists_of() -> None:
    it = case("tensorrt-llm/llama-3.1-405b/modelopt-fp8/tp4-pp2/concurrency-64-2048-128")

    assert it.id == str(it) == "h200/tensorrt-llm/llama-3.1-405b/modelopt-fp8/tp4-pp2/concurrency-64-2048-128"
    assert it.key == "tensorrt-llm/llama-3.1-405b/modelopt-fp8/tp4-pp2/concurrency-64-2048-128"


def test_a_case_differs_by_recipe_or_layout_alone() -> None:
    it = case("tensorrt-llm/llama-3.1-405b/modelopt-fp8/tp8/min-latency-2048-128")

    assert it.with_recipe(recipe_named("bf16")).key == "tensorrt-llm/llama-3.1-405b/bf16/tp8/min-latency-2048-128"
    assert it.with_layout(Layout(pp=8)).key == "tensorrt-llm/llama-3.1-405b/modelopt-fp8/pp8/min-latency-2048-128"
    with pytest.raises(UsageError, match="tp3 does not divide"):
        it.with_layout(Layout(tp=3))


def test_the_number_of_requests_is_no_part_of_the_identity() -> None:
    it = case()
    assert isinstance(it.work, Workload)

    assert dataclasses.replace(it, work=dataclasses.replace(it.work, requests=7)).id == it.id


def test_a_sequence_may_fill_the_context_and_no_more() -> None:
    assert case("tensorrt-llm/llama-3.1-8b/bf16/tp1/min-latency-131071-1").work.isl == 131071  # type: ignore[union-attr]
    with pytest.raises(UsageError) as caught:
        case("tensorrt-llm/llama-3.1-8b/bf16/tp1/min-latency-131071-2")

    assert str(caught.value) == "llama-3.1-8b reads at most 131,072 tokens; ISL 131,071 + OSL 2 is 131,073"


def test_an_unknown_engine_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(UsageError) as caught:
        case("tensorrt_llm/llama-3.1-8b/bf16/tp1/min-latency-1-1")

    assert str(caught.value) == (
        "unknown engine 'tensorrt_llm'; did you mean 'tensorrt-llm'? known: tensorrt-llm, torch, trtllm-bench"
    )


def test_a_case_of_a_workload_becomes_plain_values() -> None:
    assert case("tensorrt-llm/llama-3.1-405b/modelopt-fp8/tp4-pp2/concurrency-64-2048-128").to_dict() == {
        "id": "h200/tensorrt-llm/llama-3.1-405b/modelopt-fp8/tp4-pp2/concurrency-64-2048-128",
        "hardware": "h200", "engine": "tensorrt-llm", "model": "llama-3.1-405b", "recipe": "modelopt-fp8",
        "layout": "tp4-pp2", "tp": 4, "pp": 2, "dp": 1, "workload": "concurrency-64", "isl": 2048, "osl": 128,
        "lengths": "constant", "requests": 3000, "task": None,
    }  # fmt: skip


def test_a_case_of_a_task_names_the_task_and_no_lengths() -> None:
    it = Case("cpu", "torch", model_named("smollm2-135m"), recipe_named("bf16"), Layout(), Task("gsm8k"))

    assert it.id == "cpu/torch/smollm2-135m/bf16/tp1/gsm8k"
    assert {name: it.to_dict()[name] for name in ("workload", "isl", "osl", "task")} == {
        "workload": None, "isl": None, "osl": None, "task": "gsm8k",
    }  # fmt: skip


@pytest.mark.parametrize(("number", "size"), [("bf16", 2), ("fp8-per-tensor", 1), ("fp8-per-row", 1), ("fp8", 1)])
def test_a_number_takes_two_bytes_or_one(number: str, size: int) -> None:
    assert Number(number).bytes == size


def test_tied_embeddings_are_counted_once() -> None:
    tied = model_named("smollm2-135m")
    untied = dataclasses.replace(tied, tied_embeddings=False)

    assert tied.embedding_weights == 49152 * 576
    assert untied.embedding_weights == 2 * 49152 * 576


def test_weights_are_counted_projection_by_projection() -> None:
    model = model_named("llama-3.1-8b")

    # query and output: 4096 x 4096; key and value: 4096 x 1024; 32 layers
    assert model.attention_weights == 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024)
    assert model.feed_forward_weights == 32 * 3 * 4096 * 14336


def test_models_are_hashable_though_their_rope_is_a_mapping() -> None:
    assert len({case(), case()}) == 1
