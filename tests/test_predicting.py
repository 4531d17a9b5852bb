"""Whole predictions: against published figures, against another path to the same number, and against common sense."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import aiconfigurator_core
import pyarrow.parquet  # type: ignore[import-untyped]
import pytest

from pytest_llamaperf import metrics, predicting
from pytest_llamaperf.cases import Layout, Task, Workload
from pytest_llamaperf.catalog import case_of_key, model_named
from pytest_llamaperf.errors import DoesNotFit, EngineError, UsageError
from pytest_llamaperf.lengths import request_lengths
from pytest_llamaperf.limits import Limits, default_limits
from pytest_llamaperf.metrics import Better, Metric
from pytest_llamaperf.predicting import (
    Prediction,
    memory_of,
    operator_shares,
    operators,
    physical_limit,
    predict,
)
from pytest_llamaperf.predicting.calibration import CALIBRATION, UNCALIBRATED


@functools.cache
def predicted(key: str, hardware: str = "h200") -> Prediction:
    """The prediction of `model/recipe/layout/workload`."""
    return predict(case_of_key(hardware, f"tensorrt-llm/{key}"))


@functools.cache
def of_8b(scenario: str, requests: int, *, isl: int = 512, osl: int = 128, layout: str = "tp1") -> Prediction:
    """Llama 3.1 8B in FP8 under a workload of so many requests."""
    plain = case_of_key("h200", "tensorrt-llm/llama-3.1-8b/modelopt-fp8/tp1/max-throughput-512-128")
    work = Workload(scenario, isl, osl, requests)
    return predict(dataclasses.replace(plain, layout=Layout.parse(layout), work=work))


def throughput(prediction: Prediction) -> float:
    return prediction.values[metrics.OUTPUT_THROUGHPUT]


# Published figures: NVIDIA on Llama 3.1 405B, 8 x H200 (baselines/h200/llama-3.1-405b.yaml has the references).


@pytest.mark.parametrize(
    ("recipe", "scenario", "shape", "published"),
    [
        ("modelopt-fp8", "max-throughput", "2048-128", 463.1),
        ("modelopt-fp8", "max-throughput", "32768-2048", 320.1),
        ("modelopt-fp8", "max-throughput", "120000-2048", 71.5),
        ("modelopt-fp8", "min-latency", "2048-128", 49.6),
        ("modelopt-fp8", "min-latency", "32768-2048", 44.2),
        ("modelopt-fp8", "min-latency", "120000-2048", 27.2),
        ("llama-fp8", "max-throughput", "2048-128", 399.9),
        ("llama-fp8", "max-throughput", "32768-2048", 230.8),
        ("llama-fp8", "max-throughput", "120000-2048", 49.6),
        ("llama-fp8", "min-latency", "2048-128", 37.4),
        ("llama-fp8", "min-latency", "32768-2048", 33.1),
        ("llama-fp8", "min-latency", "120000-2048", 22.8),
    ],
)
def test_405b_comes_out_within_a_tenth_of_the_published_figure(
    recipe: str, scenario: str, shape: str, published: float
) -> None:
    prediction = predicted(f"llama-3.1-405b/{recipe}/tp8/{scenario}-{shape}")

    assert throughput(prediction) == pytest.approx(published, rel=0.10)


def test_tensor_parallel_answers_one_request_5_6_times_sooner_than_a_pipeline() -> None:
    tensor, pipeline = (predicted(f"llama-3.1-405b/modelopt-fp8/{n}/min-latency-2048-128") for n in ("tp8", "pp8"))

    assert throughput(tensor) / throughput(pipeline) == pytest.approx(5.6, rel=0.05)


def test_a_pipeline_has_1_5_times_the_throughput_of_tensor_parallel() -> None:
    tensor, pipeline = (predicted(f"llama-3.1-405b/modelopt-fp8/{n}/max-throughput-2048-128") for n in ("tp8", "pp8"))

    assert throughput(pipeline) / throughput(tensor) == pytest.approx(1.5, rel=0.05)


# Another path to the same number.


@pytest.mark.parametrize(
    ("model", "recipe", "tp", "modes"),
    [
        ("llama-3.1-405b", "modelopt-fp8", 8, ("fp8_static", "fp8", "fp8")),
        ("llama-3.1-70b", "modelopt-fp8", 2, ("fp8_static", "fp8", "fp8")),
        ("llama-3.1-8b", "bf16", 1, ("bfloat16", "bfloat16", "bfloat16")),
    ],
)
def test_one_request_at_a_time_takes_what_aiconfigurator_computes_for_a_batch_of_one(
    model: str, recipe: str, tp: int, modes: tuple[str, str, str], tmp_path: Path
) -> None:
    from aiconfigurator_core.sdk import EngineHandle

    shape = model_named(model)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.context,
        "torch_dtype": "bfloat16",
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    gemm, cache, attention = modes
    handle = EngineHandle.compile(
        str(tmp_path),
        "h200_sxm",
        "trtllm",
        backend_version="current",
        tp_size=tp,
        gemm_quant_mode=gemm,
        kvcache_quant_mode=cache,
        fmha_quant_mode=attention,
    )
    prompt, answer, whole = handle.run_static(batch_size=1, isl=2048, osl=128, stride=1)
    case = case_of_key("h200", f"tensorrt-llm/{model}/{recipe}/tp{tp}/min-latency-2048-128")

    values = predict(case, calibration=UNCALIBRATED).values

    assert values[metrics.TTFT_MEDIAN] == pytest.approx(prompt * 1e-3, rel=1e-6)
    assert values[metrics.TPOT_MEDIAN] == pytest.approx(answer * 1e-3 / 127, rel=1e-3)
    assert values[metrics.REQUEST_LATENCY_MEDIAN] == pytest.approx(whole * 1e-3, rel=1e-3)
    assert values[metrics.OUTPUT_THROUGHPUT] == pytest.approx(128 / (whole * 1e-3), rel=1e-3)


def test_calibration_makes_a_prediction_slower_by_its_scale() -> None:
    case = case_of_key("h200", "tensorrt-llm/llama-3.1-405b/modelopt-fp8/tp8/min-latency-2048-128")
    uncalibrated = predict(case, calibration=UNCALIBRATED).values[metrics.TPOT_MEDIAN]

    assert predict(case).values[metrics.TPOT_MEDIAN] == pytest.approx(uncalibrated * CALIBRATION.scale, rel=1e-9)


def test_a_prediction_repeats_to_the_bit_in_another_process() -> None:
    script = (
        "from pytest_llamaperf.catalog import case_of_key\n"
        "from pytest_llamaperf.predicting import predict\n"
        "key = 'tensorrt-llm/llama-2-70b/llama-fp8/tp2/concurrency-7-openorca'\n"
        "import dataclasses\n"
        "case = case_of_key('h200', key)\n"
        "prediction = predict(dataclasses.replace(case, work=dataclasses.replace(case.work, requests=60)))\n"
        "print(prediction.traces, {str(m): v.hex() for m, v in prediction.values.items()}, prediction.memory)\n"
    )

    first, second = (
        subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    )

    assert "output_throughput" in first
    assert first == second


# What a reader of the numbers is told.


# The output head of Llama 3 has 128,256 rows, on one GPU more than any matrix that was measured.
HEAD = "extrapolated, not measured: weight matrices beyond 65,536 columns"


def extrapolated(prediction: Prediction) -> list[str]:
    """What is extrapolated beside the output head."""
    return [note for note in prediction.notes if note.startswith("extrapolated") and note != HEAD]


def test_inside_of_what_was_measured_there_is_nothing_to_say() -> None:
    assert predicted("llama-3.1-405b/modelopt-fp8/tp8/min-latency-2048-128").notes == ()


@pytest.mark.parametrize(
    ("isl", "notes"), [(16384, []), (16385, ["extrapolated, not measured: prompts beyond 16,384 tokens"])]
)
def test_a_prompt_longer_than_any_measured_is_noted(isl: int, notes: list[str]) -> None:
    assert extrapolated(of_8b("min-latency", 1, isl=isl, osl=2)) == notes


def test_a_decode_batch_larger_than_any_measured_is_noted() -> None:
    prediction = of_8b("max-throughput", 2500, isl=16, osl=100)

    assert prediction.peak_batch == 2500
    assert "extrapolated, not measured: decode batches beyond 2,048 sequences" in prediction.notes


def test_more_tokens_in_an_iteration_than_measured_are_noted() -> None:
    case = of_8b("max-throughput", 100).case
    wide = Limits(max_batch_size=100, max_num_tokens=40_000)

    assert extrapolated(predict(case, limits=wide)) == ["extrapolated, not measured: iterations beyond 32,768 tokens"]
    # 60 prompts of 512 never make an iteration of more than 30,720 tokens.
    assert extrapolated(predict(of_8b("max-throughput", 60).case, limits=wide)) == []


def measured_rows(table: str, heads: int, kv_heads: int) -> list[dict[str, int]]:
    """Rows of an attention table of H200 for that many heads of 128 on one GPU and an FP8 cache."""
    _, version = operators.tables_version("h200_sxm")
    (package,) = aiconfigurator_core.__path__
    path = Path(package) / "systems/data/h200_sxm/attention/trtllm" / version / f"{table}_perf.parquet"
    wanted = {
        "num_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 128,
        "window_size": 0,
        "kv_cache_dtype": "fp8",
    }
    filters = [(column, "=", value) for column, value in wanted.items()]
    rows: list[dict[str, int]] = pyarrow.parquet.read_table(path, filters=filters).to_pylist()
    return rows


def test_a_large_batch_of_long_sequences_is_noted_where_only_each_alone_was_measured() -> None:
    """Decode attention was measured up to 2,048 sequences and up to 131,072 tokens, but never both together."""
    prediction = predicted("llama-3.1-405b/modelopt-fp8/tp8/max-throughput-2048-128")
    longest = max(
        row["step"]
        for row in measured_rows("generation_attention", 16, 1)
        if row["batch_size"] >= prediction.mean_batch
    )

    # 985 sequences of 2,099 tokens on average; batches of 1,024 were measured up to 512 tokens.
    assert prediction.mean_kv > longest
    assert extrapolated(prediction) == ["extrapolated, not measured: decode attention over more tokens at once"]


def test_the_product_of_heads_sequences_and_tokens_is_what_was_measured() -> None:
    """One sequence of 8B on one GPU, 32 heads: measured up to 65,536 tokens, though other shapes go up to 131,072."""
    longest = max(row["step"] + 1 for row in measured_rows("generation_attention", 32, 8) if row["batch_size"] == 1)
    note = "extrapolated, not measured: decode attention over more tokens at once"

    assert longest == 65_536
    assert note not in of_8b("min-latency", 1, isl=longest - 20, osl=10).notes
    assert note in of_8b("min-latency", 1, isl=longest, osl=10).notes


def test_a_matrix_wider_than_any_measured_is_noted() -> None:
    assert HEAD in of_8b("min-latency", 1).notes
    assert HEAD not in of_8b("min-latency", 1, layout="tp2").notes


def test_more_heads_on_a_gpu_than_measured_are_noted() -> None:
    """The whole 405B on every stage of a pipeline: 128 heads; prompts were measured up to 96 a GPU."""
    assert measured_rows("context_attention", 128, 8) == []
    assert measured_rows("context_attention", 16, 1) != []

    assert extrapolated(predicted("llama-3.1-405b/modelopt-fp8/pp8/min-latency-2048-128")) == [
        "extrapolated, not measured: prompts with over 96 heads on a GPU"
    ]


PIPELINE = "the pipeline is taken to be full at all times: an upper bound"
TTFT = "time to first token below saturation is known to come out too low (0.6x)"


@pytest.mark.parametrize(
    ("scenario", "layout", "notes"),
    [
        ("max-throughput", "tp1", ()),
        ("min-latency", "tp1", ()),
        ("concurrency-1", "tp1", ()),
        ("concurrency-2", "tp1", (TTFT,)),
        ("rate-5", "tp1", (TTFT,)),
        ("max-throughput", "pp2", (PIPELINE,)),
        ("min-latency", "pp2", ()),
        ("concurrency-2", "pp2", (PIPELINE, TTFT)),
    ],
)
def test_assumptions_are_noted(scenario: str, layout: str, notes: tuple[str, ...]) -> None:
    assert tuple(note for note in of_8b(scenario, 4, layout=layout).notes if note != HEAD) == notes


def test_drawn_lengths_are_noted() -> None:
    case = case_of_key("h200", "tensorrt-llm/llama-2-70b/modelopt-fp8/tp1/max-throughput-openorca")
    work = Workload("max-throughput", 289, 291, 40, lengths="openorca")

    prediction = predict(dataclasses.replace(case, work=work))

    assert prediction.notes == (
        "lengths are log-normal with OpenOrca's mean output; not the OpenOrca samples themselves",
    )
    assert [(t.input_tokens, t.output_tokens) for t in prediction.traces] == request_lengths(work)


def test_a_fingerprint_names_tables_calibration_and_limits() -> None:
    fingerprint = of_8b("max-throughput", 60).fingerprint

    assert fingerprint.versions == {"aiconfigurator-core": "0.12.0", "tensorrt-llm (operator tables)": "1.3.0rc20"}
    assert fingerprint.settings["scale"] == CALIBRATION.scale
    assert fingerprint.settings["max_batch_size"] == of_8b("max-throughput", 60).limits.max_batch_size


def test_a_fingerprint_is_the_same_after_a_trip_through_json() -> None:
    fingerprint = of_8b("max-throughput", 60).fingerprint.to_dict()

    assert json.loads(json.dumps(fingerprint)) == fingerprint


# The physical limit, and where the time goes.


@pytest.mark.parametrize(
    "key",
    [
        "llama-3.1-405b/modelopt-fp8/tp8/max-throughput-2048-128",
        "llama-3.1-405b/llama-fp8/tp8/min-latency-2048-128",
        "llama-3.1-405b/modelopt-fp8/pp8/max-throughput-2048-128",
        "llama-3.1-70b/bf16/tp4/concurrency-16-1000-1000",
        "llama-3.1-8b/bf16/tp1/min-latency-128-128",
    ],
)
@pytest.mark.parametrize("hardware", ["h100", "h200", "b200"])
def test_no_metric_beats_the_physical_limit(key: str, hardware: str) -> None:
    prediction = predicted(key, hardware)
    limit = physical_limit(prediction)

    def beats(metric: Metric) -> bool:
        ours, best = prediction.values[metric], limit.values[metric]
        return ours > best if metric.better is Better.HIGHER else ours < best

    assert limit.limits == prediction.limits
    assert [metric for metric in prediction.values if beats(metric)] == []


@pytest.mark.parametrize(
    ("key", "all_reduce", "pipeline"),
    [
        ("llama-3.1-8b/bf16/tp1/min-latency-128-128", False, False),
        ("llama-3.1-405b/modelopt-fp8/tp8/max-throughput-2048-128", True, False),
        ("llama-3.1-405b/modelopt-fp8/pp8/max-throughput-2048-128", False, True),
        ("llama-3.1-405b/llama-fp8/tp4-pp2/min-latency-2048-128", True, True),
    ],
)
@pytest.mark.parametrize("phase", ["decode", "prompt"])
def test_shares_of_the_operators_add_up(key: str, all_reduce: bool, pipeline: bool, phase: str) -> None:
    shares = operator_shares(predicted(key))[phase]

    assert sum(shares.values()) == pytest.approx(1.0)
    assert min(shares.values()) >= 0
    assert (shares["all-reduce"] > 0) == all_reduce
    assert (shares["pipeline"] > 0) == pipeline
    assert shares["GEMM"] > 0.2


# Workloads and layouts.


def test_throughput_grows_with_concurrency_and_so_does_latency() -> None:
    predictions = [of_8b(f"concurrency-{n}", 256) for n in (1, 2, 8, 32, 128)]
    throughputs = [throughput(prediction) for prediction in predictions]
    speeds = [prediction.values[metrics.OUTPUT_SPEED_PER_USER] for prediction in predictions]

    assert throughputs == sorted(set(throughputs))
    assert speeds == sorted(set(speeds), reverse=True)
    assert [prediction.peak_batch for prediction in predictions] == [1, 2, 8, 32, 128]


def test_concurrency_1_is_min_latency() -> None:
    assert of_8b("concurrency-1", 10).traces == of_8b("min-latency", 10).traces


@pytest.mark.parametrize("rate", [2, 5, 10])
def test_below_saturation_the_output_is_that_of_the_arrivals(rate: int) -> None:
    # 400 Poisson arrivals: the time they take has a standard deviation of 1 / sqrt(400) = 5 %.
    prediction = of_8b(f"rate-{rate}", 400)

    assert throughput(prediction) == pytest.approx(rate * 128, rel=0.10)
    assert prediction.mean_batch < 10


def test_beyond_saturation_the_output_is_that_of_the_engine() -> None:
    # 1,000 requests a second ask for 128,000 tok/s.
    saturated, at_once = of_8b("rate-1000", 1000), of_8b("max-throughput", 1000)

    assert throughput(saturated) == pytest.approx(throughput(at_once), rel=0.10)
    assert throughput(saturated) < 20_000


def test_four_copies_of_the_engine_do_four_times_the_work() -> None:
    one, four = of_8b("concurrency-32", 64), of_8b("concurrency-128", 256, layout="dp4")

    assert throughput(four) == pytest.approx(4 * throughput(one))
    assert four.values[metrics.OUTPUT_THROUGHPUT_PER_GPU] == pytest.approx(throughput(one))
    assert four.mean_batch == pytest.approx(4 * one.mean_batch)
    assert four.peak_batch == 4 * one.peak_batch == 128
    assert operator_shares(four) == operator_shares(one)


def test_four_copies_of_the_engine_take_about_a_quarter_of_the_time() -> None:
    # "About": each copy has a quarter of the requests, so filling and draining the batch weigh more.
    one, four = of_8b("max-throughput", 16_000), of_8b("max-throughput", 16_000, layout="dp4")

    assert throughput(four) / throughput(one) == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("layout", ["tp1", "dp4", "pp4", "pp2-dp2", "dp16"])
@pytest.mark.parametrize("scenario", ["max-throughput", "min-latency", "concurrency-3", "rate-5"])
def test_every_request_is_served_once_in_every_layout(scenario: str, layout: str) -> None:
    prediction = of_8b(scenario, 10, layout=layout)

    assert [(t.input_tokens, t.output_tokens) for t in prediction.traces] == [(512, 128)] * 10
    assert prediction.peak_batch <= 10


def test_a_pipeline_is_empty_but_for_one_request_at_a_time() -> None:
    """More stages make one request no faster."""
    whole, staged = of_8b("min-latency", 3), of_8b("min-latency", 3, layout="pp4")

    assert throughput(staged) < throughput(whole)
    assert staged.mean_batch == 1


# Limits and memory.


def test_smaller_limits_are_obeyed_and_cost_throughput() -> None:
    free = of_8b("max-throughput", 1000)
    small = dataclasses.replace(free.limits, max_batch_size=64)

    prediction = predict(free.case, limits=small)

    assert prediction.peak_batch == 64
    assert prediction.limits == physical_limit(prediction).limits == small
    assert throughput(prediction) < throughput(free)


def test_half_the_cache_holds_half_the_tokens() -> None:
    case = of_8b("max-throughput", 60).case
    limits = default_limits(case)

    whole, half = (memory_of(case, dataclasses.replace(limits, kv_fraction=share)) for share in (0.9, 0.45))

    assert half.kv_tokens == pytest.approx(whole.kv_tokens / 2, abs=1)
    assert (half.weights, half.other) == (whole.weights, whole.other)


def test_memory_adds_up() -> None:
    # 2 (keys, values) * 32 layers * 8 KV heads * 128 numbers of one byte: 65,536 bytes a token.
    case = of_8b("max-throughput", 60).case
    memory = memory_of(case)

    assert memory.kv_cache == pytest.approx(0.95 * (memory.capacity - memory.weights - memory.other))
    assert memory.kv_tokens == int(memory.kv_cache // 65_536)


def test_a_pipeline_caches_its_share_of_the_layers() -> None:
    """Each of 2 GPUs holds half of every token, so 2 GPUs of equal free memory cache as many tokens as one would of it."""
    memory = memory_of(of_8b("max-throughput", 60, layout="pp2").case)

    assert memory.kv_tokens == pytest.approx(memory.kv_cache / (65_536 / 2), rel=1e-3)


def test_a_model_too_large_for_its_gpus_does_not_fit() -> None:
    with pytest.raises(
        DoesNotFit, match=r"94\.5 GiB of weights and .* exceed the 80 GiB of one H100 SXM 80 GB; use more GPUs"
    ):
        predicted("llama-3.1-405b/bf16/tp8/max-throughput-2048-128", "h100")


def test_weights_larger_than_the_package_thinks_do_not_fit_either() -> None:
    """Meta's recipe leaves 70B with 80.2 GiB of weights; the package, which knows no mixed recipe, counts them as FP8."""
    with pytest.raises(
        DoesNotFit, match=r"80\.2 GiB of weights and .* exceed the 80 GiB of one H100 SXM 80 GB; use more GPUs"
    ):
        predicted("llama-3.1-70b/llama-fp8/tp1/max-throughput-2048-128", "h100")


def test_a_request_longer_than_the_cache_does_not_fit() -> None:
    # 70B in FP8 leaves one H100 about 8 GB, at 160 KiB a token.
    with pytest.raises(DoesNotFit, match=r"the KV cache holds 4\d,\d{3} tokens, one request needs 60,100"):
        predicted("llama-3.1-70b/modelopt-fp8/tp1/max-throughput-60000-100", "h100")


def test_without_chunks_a_prompt_goes_into_one_iteration_or_does_not_fit() -> None:
    case = of_8b("min-latency", 1, isl=20_000, osl=100).case
    whole, pieces = default_limits(case, chunked_prefill=False), Limits(max_batch_size=64, max_num_tokens=8192)

    # A prompt iteration, or three of 8,192, 8,192 and 3,616 tokens, and 99 for the other tokens.
    assert predict(case, limits=whole).iterations == 1 + 99
    assert predict(case, limits=pieces).iterations == 3 + 99
    with pytest.raises(DoesNotFit, match="a prompt of 20,000 tokens needs chunked prefill"):
        predict(case, limits=dataclasses.replace(pieces, chunked_prefill=False))


def test_chunks_cost_a_little_more_than_the_whole_prompt() -> None:
    """Attention adds up to the same; the weights are read three times."""
    case = of_8b("min-latency", 1, isl=16_000, osl=2).case
    whole, pieces = (
        predict(case, limits=Limits(max_batch_size=64, max_num_tokens=tokens)).values[metrics.TTFT_MEDIAN]
        for tokens in (16_000, 6_000)
    )

    assert whole < pieces < 1.1 * whole


# What cannot be predicted.


def test_accuracy_cannot_be_predicted() -> None:
    case = dataclasses.replace(of_8b("max-throughput", 60).case, work=Task("gsm8k"))

    with pytest.raises(UsageError, match="speed can be predicted, the accuracy of gsm8k cannot"):
        predict(case)


def test_a_cpu_has_no_operator_times() -> None:
    case = case_of_key("cpu", "tensorrt-llm/llama-3.1-8b/bf16/tp1/min-latency-128-128")

    for ask in (predict, memory_of):
        with pytest.raises(UsageError, match=r"unknown GPU 'cpu'.*known: b200, h100, h200"):
            ask(case)


def test_a_shape_nobody_measured_is_an_engine_error() -> None:
    """The embedded SmolLM2-135M has 3 KV heads of 64."""
    with pytest.raises(EngineError, match="smollm2-135m"):
        predicted("smollm2-135m/bf16/tp1/min-latency-128-128")


def test_requests_fewer_than_pipeline_stages_share_the_whole_cache() -> None:
    """405B on 8xH100 by pipeline: an eighth of the cache is too small for 122,048 tokens, all of it is not."""
    prediction = predict(case_of_key("h100", "tensorrt-llm/llama-3.1-405b/modelopt-fp8/pp8/min-latency-120000-2048"))

    assert prediction.memory.kv_tokens / 8 < 122_048 < prediction.memory.kv_tokens
    assert len(prediction.traces) == 10


def test_replicas_do_not_share_a_cache() -> None:
    """Two requests on two replicas of two stages: each replica has one, and its whole cache."""
    two = dataclasses.replace(of_8b("concurrency-2", 2, layout="pp2").case, layout=Layout(pp=2, dp=2))

    (lane,) = predicting._lanes(Workload("concurrency-2", 512, 64, 2), two.layout, [(512, 64)] * 2)

    assert (lane.copies, lane.sharing, lane.concurrency) == (2, 1, 1)
