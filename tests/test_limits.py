"""How much an engine may batch, as trtllm-bench would choose it."""

from __future__ import annotations

import pytest

from pytest_llamaperf.cases import Layout
from pytest_llamaperf.catalog import model_named, recipe_named
from pytest_llamaperf.limits import CUDA_GRAPH_BATCH_SIZES, FINE_GRAPH_BATCH_SIZES, KV_FRACTION, Limits, bench_limits

H200 = 141 * 2**30  # what the driver reports for an H200, in bytes


def limits(
    model: str = "llama-3.1-405b",
    recipe: str = "modelopt-fp8",
    layout: str = "tp8",
    *,
    isl: int = 2048,
    osl: int = 128,
    longest_prompt: int | None = None,
    kv_fraction: float = 0.95,
    chunked_prefill: bool = False,
    gpu_memory: float = H200,
) -> Limits:
    return bench_limits(
        model_named(model),
        recipe_named(recipe),
        Layout.parse(layout),
        gpu_memory=gpu_memory,
        isl=isl,
        osl=osl,
        longest_prompt=longest_prompt or isl,
        kv_fraction=kv_fraction,
        chunked_prefill=chunked_prefill,
    )


# The 30 rows of TensorRT-LLM 1.0's performance overview on H200; limits by the prototype that restated tuning.py
# (research/prediction.md, columns max_bs and max_tok): KV fraction 0.95, no chunked prefill.
@pytest.mark.parametrize(
    ("model", "tp", "isl", "osl", "batch", "tokens"),
    [
        ("llama-3.3-70b", 1, 128, 128, 2048, 3840),
        ("llama-3.3-70b", 1, 128, 2048, 224, 2048),
        ("llama-3.3-70b", 1, 128, 4096, 128, 2048),
        ("llama-3.3-70b", 1, 500, 2000, 192, 2048),
        ("llama-3.3-70b", 1, 1000, 1000, 256, 2048),
        ("llama-3.3-70b", 1, 1000, 2000, 160, 2048),
        ("llama-3.3-70b", 1, 2048, 128, 224, 3840),
        ("llama-3.3-70b", 1, 2048, 2048, 128, 2176),
        ("llama-3.3-70b", 1, 5000, 500, 96, 5096),
        ("llama-3.3-70b", 1, 20000, 2000, 64, 20064),
        ("llama-3.1-405b", 8, 128, 128, 4096, 8192),
        ("llama-3.1-405b", 8, 128, 2048, 1536, 2048),
        ("llama-3.1-405b", 8, 128, 4096, 768, 2048),
        ("llama-3.1-405b", 8, 500, 2000, 1280, 2048),
        ("llama-3.1-405b", 8, 1000, 1000, 1536, 3072),
        ("llama-3.1-405b", 8, 1000, 2000, 1024, 2048),
        ("llama-3.1-405b", 8, 2048, 128, 1536, 23552),
        ("llama-3.1-405b", 8, 2048, 2048, 768, 2816),
        ("llama-3.1-405b", 8, 5000, 500, 640, 6144),
        ("llama-3.1-405b", 8, 20000, 2000, 160, 20160),
        ("llama-3.1-8b", 1, 128, 128, 4096, 8192),
        ("llama-3.1-8b", 1, 128, 2048, 1024, 2048),
        ("llama-3.1-8b", 1, 128, 4096, 512, 2048),
        ("llama-3.1-8b", 1, 500, 2000, 896, 2048),
        ("llama-3.1-8b", 1, 1000, 1000, 1280, 2304),
        ("llama-3.1-8b", 1, 1000, 2000, 768, 2048),
        ("llama-3.1-8b", 1, 2048, 128, 1024, 16384),
        ("llama-3.1-8b", 1, 2048, 2048, 512, 2560),
        ("llama-3.1-8b", 1, 5000, 500, 384, 5384),
        ("llama-3.1-8b", 1, 20000, 2000, 96, 20096),
    ],
)
def test_limits_of_the_published_cases(model: str, tp: int, isl: int, osl: int, batch: int, tokens: int) -> None:
    got = limits(model, layout=f"tp{tp}", isl=isl, osl=osl)

    assert (got.max_batch_size, got.max_num_tokens) == (batch, tokens)


def test_limits_are_as_worked_out_by_hand() -> None:
    # Llama 3.1 8B in FP8 on one H200, 2048/128:
    #   weights             8.0300e9 parameters at 1 byte
    #   for the KV cache    (151.398e9 - 8.030e9) * 0.95 = 136.199e9 bytes
    #   one token           2 * 32 layers * 8 KV heads * 128 = 65,536 bytes
    #   one request         2,176 tokens = 142.606e6 bytes, so 955.1 requests: up to the next 128 is 1,024
    #   one iteration       955.1 * (1 + 2048/128) = 16,236 tokens: up to the next 1,024 is 16,384
    assert limits("llama-3.1-8b", layout="tp1") == Limits(1024, 16384, 0.95, False, CUDA_GRAPH_BATCH_SIZES)


def test_one_iteration_never_has_more_than_32768_tokens() -> None:
    # 8B 2048/16: 136.199e9 bytes / (65,536 * 2,064) = 1,006.9 requests; times 1 + 2048/16 that is 129,887 tokens
    assert limits("llama-3.1-8b", layout="tp1", osl=16).max_num_tokens == 32768


def test_less_memory_for_the_cache_means_smaller_limits() -> None:
    # 405B 2048/128: 22 x 1,024 with 90 % of the free memory, where 95 % give 23 x 1,024.
    assert limits(kv_fraction=0.90).max_num_tokens == 22528
    assert limits(kv_fraction=0.95).max_num_tokens == 23552


def test_pipeline_stages_share_the_batch() -> None:
    # 405B over 8 GPUs holds 4,096 requests of 128/128 and more; each of 8 stages gets 512 of them.
    assert limits(layout="tp8", isl=128, osl=128).max_batch_size == 4096
    assert limits(layout="pp8", isl=128, osl=128).max_batch_size == 512


def test_kv_heads_that_must_be_copied_take_their_memory() -> None:
    # 8 KV heads on 16 GPUs are copied once, so twice the memory per token and for the same 16 GPUs half the requests.
    wide = limits(layout="tp16", isl=20000, osl=2000)
    deep = limits(layout="tp8-pp2", isl=20000, osl=2000)

    # free: 16 * 151.4e9 - 405.85e9 = 2016.5e9 * 0.95; token: 2*126*128 * 16 heads = 516,096 B; 22,000 tokens: 168.7
    assert wide.max_batch_size == 192
    # 8 heads: 337.4 requests, 168.7 for each of the two stages
    assert deep.max_batch_size == 192


def test_limits_have_a_least_value_however_little_memory_is_left() -> None:
    assert limits(isl=100_000, osl=10_000).max_batch_size == 64
    full = limits("llama-3.1-70b", "bf16", "tp1", gpu_memory=1e9, isl=16, osl=16)
    assert (full.max_batch_size, full.max_num_tokens) == (64, 2048)


def test_without_chunks_a_prompt_and_a_batch_fit_into_one_iteration() -> None:
    # heuristic: 160 requests and 2,048 tokens
    assert limits(isl=20000, osl=2000).max_num_tokens == 20000 + 160
    assert limits(isl=20000, osl=2000, longest_prompt=1888).max_num_tokens == 2048
    assert limits(isl=20000, osl=2000, longest_prompt=1889).max_num_tokens == 2049


def test_chunks_are_large_where_a_prompt_needs_several() -> None:
    def tokens(longest_prompt: int) -> int:
        return limits(isl=20000, osl=2000, longest_prompt=longest_prompt, chunked_prefill=True).max_num_tokens

    assert tokens(2048) == 2048
    assert tokens(2049) == 8192
    assert tokens(120_000) == 8192


def test_chunks_never_shrink_what_the_heuristic_allows() -> None:
    assert limits(isl=2048, osl=128, longest_prompt=100_000, chunked_prefill=True).max_num_tokens == 23552


def test_requests_of_one_length_use_the_graphs_of_the_performance_overview_others_finer_ones() -> None:
    assert limits(isl=289).cuda_graph_batch_sizes == CUDA_GRAPH_BATCH_SIZES
    assert limits(isl=289, longest_prompt=1024).cuda_graph_batch_sizes == FINE_GRAPH_BATCH_SIZES


@pytest.mark.parametrize("sizes", [CUDA_GRAPH_BATCH_SIZES, FINE_GRAPH_BATCH_SIZES])
def test_graph_sizes_rise_from_one(sizes: tuple[int, ...]) -> None:
    assert list(sizes) == sorted(set(sizes))
    assert sizes[0] == 1


def test_the_default_is_what_the_performance_overview_uses() -> None:
    default = Limits(8, 2048)

    assert (default.kv_fraction, KV_FRACTION, default.chunked_prefill) == (0.95, 0.95, True)
