"""How much an engine may batch: the limits a case is run with, and trtllm-bench's way to choose them.

They are chosen here, for every engine and for the predictor. Left to trtllm-bench, they come from a heuristic that
changes between releases, and the change looks like one of speed.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from pytest_llamaperf.cases import CPU, Case, Layout, Model, Recipe, Workload
from pytest_llamaperf.catalog import gpu_named
from pytest_llamaperf.lengths import total_lengths

# Batch sizes for which the performance overview captures CUDA graphs; a decode step is padded up to the next one.
CUDA_GRAPH_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 384, 512, 1024, 2048, 4096, 8192)

# Where requests differ in length the batch wanders, and padding 540 up to 1,024 would waste half of every iteration.
FINE_GRAPH_BATCH_SIZES = (1, 2, 4, 8, 16, 32, *range(64, 2049, 64))

# Share of the free memory for the KV cache: what the performance overview uses "in most cases".
KV_FRACTION = 0.95

# A prompt too long for one iteration is worked off in chunks of at least this many tokens: the LLM API's default for
# max_num_tokens. trtllm-bench's heuristic would go down to 2,048, and every chunk reads the weights again.
LEAST_CHUNK = 8192


# Where answers are looked at and no lengths are known: a server of short requests. Without chunks, because log-likelihoods
# of a prompt in pieces have not been shown to be right.
TASK_BATCH, TASK_LENGTH = 64, 8192

# The torch engine: requests in flight for each pipeline stage, and tokens a slot can hold at least.
CPU_SLOTS = 8
GPU_SLOTS = 64
LEAST_SLOT = 512


@dataclass(frozen=True)
class Limits:
    """max_batch_size in requests, max_num_tokens in tokens of one iteration, both of one pipeline stage.

    max_seq_len is the longest request in tokens, prompt and answer; None: what the model was trained for.
    kv_fraction is the share of the memory left after loading that the KV cache may take. Without
    chunked_prefill a prompt is worked off in one iteration, so max_num_tokens is at least the longest prompt.
    """

    max_batch_size: int
    max_num_tokens: int
    kv_fraction: float = KV_FRACTION
    chunked_prefill: bool = True
    cuda_graph_batch_sizes: tuple[int, ...] = CUDA_GRAPH_BATCH_SIZES
    max_seq_len: int | None = None


def default_limits(case: Case, *, kv_fraction: float = KV_FRACTION, chunked_prefill: bool = True) -> Limits:
    """The limits for a case on its GPU, which every engine and the predictor use.

    The longest request is that of the workload, as trtllm-bench has it. Raises UsageError for hardware that is not in the
    catalog.
    """
    if case.engine == "torch" or case.hardware == CPU:
        return _reference_limits(case)
    if not isinstance(case.work, Workload):
        length = min(TASK_LENGTH, case.model.context)
        return Limits(TASK_BATCH, length, kv_fraction, chunked_prefill=False, max_seq_len=length)
    total = total_lengths(case.work)
    limits = bench_limits(
        case.model,
        case.recipe,
        case.layout,
        gpu_memory=gpu_named(case.hardware).memory,
        isl=total.input / total.requests,
        osl=total.output / total.requests,
        longest_prompt=total.longest_prompt,
        kv_fraction=kv_fraction,
        chunked_prefill=chunked_prefill,
    )
    return dataclasses.replace(limits, max_seq_len=total.longest)


def _reference_limits(case: Case) -> Limits:
    """Of the torch engine, whose cache is a slot of fixed length for each request, and of anything on a CPU.

    The length is that of the workload rounded up to a power of two, so that one engine serves all short workloads.
    """
    longest = total_lengths(case.work).longest if isinstance(case.work, Workload) else 1
    length = min(max(LEAST_SLOT, 1 << (longest - 1).bit_length()), case.model.context)
    slots = CPU_SLOTS if case.hardware == CPU else GPU_SLOTS
    return Limits(slots, LEAST_CHUNK, chunked_prefill=False, max_seq_len=length)


def bench_limits(
    model: Model,
    recipe: Recipe,
    layout: Layout,
    *,
    gpu_memory: float,
    isl: float,
    osl: float,
    longest_prompt: int,
    kv_fraction: float = KV_FRACTION,
    chunked_prefill: bool = True,
) -> Limits:
    """The limits trtllm-bench chooses for a model on GPUs of `gpu_memory` bytes and requests of mean isl and osl.

    Source: tensorrt_llm/bench/build/tuning.py of TensorRT-LLM 1.0 and 1.2, restated: as many requests as the KV
    cache could hold, at most 4,096, shared among the pipeline stages; tokens in proportion to prompts joining
    while others decode, at most 32,768; both rounded up, more coarsely the larger they are. Chunks of long prompts
    are ours: see LEAST_CHUNK.
    """
    weights = (
        model.attention_weights * recipe.attention.bytes
        + (model.feed_forward_weights + model.embedding_weights) * recipe.feed_forward.bytes
    )
    kv_bytes = 2 * model.layers * max(layout.tp, model.kv_heads) * model.head_dim * recipe.kv_cache.bytes
    free = max(gpu_memory * layout.tp * layout.pp - weights, 0.0) * kv_fraction
    batch = min(free / (kv_bytes * (isl + osl)), 4096) / layout.pp
    tokens = min(batch * (1 + isl / osl), 32768)

    max_batch_size = max(64, _up(batch, 32 if batch < 256 else 128 if batch < 1024 else 256))
    max_num_tokens = max(2048, _up(tokens, 256 if tokens < 4096 else 512 if tokens < 8192 else 1024))
    if not chunked_prefill:
        max_num_tokens = max(max_num_tokens, longest_prompt + max_batch_size)
    elif longest_prompt > max_num_tokens:
        max_num_tokens = max(max_num_tokens, LEAST_CHUNK)
    graphs = CUDA_GRAPH_BATCH_SIZES if longest_prompt == isl else FINE_GRAPH_BATCH_SIZES
    return Limits(max_batch_size, max_num_tokens, kv_fraction, chunked_prefill, graphs)


def _up(value: float, step: int) -> int:
    return step * math.ceil(value / step)
