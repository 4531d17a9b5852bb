"""LLM(...) for an engine: what is wanted of it, and how a version wants that said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pytest_llamaperf.engines import EngineSpec
from pytest_llamaperf.engines.trtllm.nodes import Nodes
from pytest_llamaperf.errors import Unsupported

# Tokens between two messages about a request, beside its first and its last, which are always sent: no metric looks at
# the others, and thousands of messages a second would measure Python.
STREAM_INTERVAL = 50

# Where the first name is not accepted, the second is the same. The only renaming there is.
RENAMED = {"kv_cache_config.dtype": "kv_cache_dtype"}

# What may be left out where it is not accepted, and what that means for the result.
LEFT_OUT = {
    "return_perf_metrics": "TensorRT-LLM keeps no times of requests here: there is no second opinion on ours",
    "stream_interval": "every token is streamed by itself, which costs throughput where many requests are in flight",
    "kv_cache_config.dtype": "the KV cache has the format that the checkpoint says",
}

Arguments = dict[str, Any]


def wanted(spec: EngineSpec, checkpoint: str, nodes: Nodes) -> Arguments:
    """Everything that decides speed or answers, said explicitly: a default that changes looks like a change of speed.

    `checkpoint` is a folder with weights and tokenizer. No `backend` and no `quant_config`: the first is deprecated, the
    second may only repeat what the checkpoint says.
    """
    limits = spec.limits
    arguments: Arguments = {
        "model": checkpoint,
        "tokenizer": checkpoint,
        "tensor_parallel_size": spec.layout.tp,
        "pipeline_parallel_size": spec.layout.pp,
        "max_batch_size": limits.max_batch_size,
        "max_num_tokens": limits.max_num_tokens,
        "max_seq_len": limits.max_seq_len,
        "enable_chunked_prefill": limits.chunked_prefill,
        "kv_cache_config": {
            "free_gpu_memory_fraction": limits.kv_fraction,
            # A prompt found in the cache is not worked off: no measurement of it, and log-likelihoods are cut short.
            "enable_block_reuse": False,
            "dtype": "auto",
        },
        "cuda_graph_config": cuda_graphs(spec),
        "stream_interval": STREAM_INTERVAL,
        "return_perf_metrics": True,
    }
    if nodes.count > 1:
        arguments["gpus_per_node"] = nodes.gpus
    return arguments


def cuda_graphs(spec: EngineSpec) -> Arguments:
    """Batch sizes of decode steps that are captured, up to the largest batch; others are padded up to one of them."""
    most = spec.limits.max_batch_size
    sizes = sorted({size for size in spec.limits.cuda_graph_batch_sizes if size < most} | {most})
    return {"batch_sizes": sizes, "enable_padding": True}


def said(arguments: Arguments, accepts: Callable[[str], bool]) -> tuple[Arguments, tuple[str, ...]]:
    """The arguments as a version wants them, where `accepts` tells of `name` or `group.name`; and notes on the result.

    Raises Unsupported for what is not accepted and may not be left out.
    """
    spoken: Arguments = {}
    notes: list[str] = []

    def put(path: str, value: Any) -> None:
        group, _, name = path.rpartition(".")
        (spoken.setdefault(group, {}) if group else spoken)[name] = value

    for path, value in flat(arguments).items():
        if accepts(path):
            put(path, value)
        elif path in RENAMED and accepts(RENAMED[path]):
            put(RENAMED[path], value)
        elif path in LEFT_OUT:
            notes.append(f"{path} is not accepted: {LEFT_OUT[path]}")
        else:
            raise Unsupported(f"this TensorRT-LLM does not accept {path} for LLM(), which the measurement needs")
    return spoken, tuple(notes)


def flat(arguments: Mapping[str, Any]) -> Arguments:
    """Nested mappings as dotted names: {"kv_cache_config.dtype": "auto"}."""
    found: Arguments = {}
    for name, value in arguments.items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{inner}": each for inner, each in flat(value).items()}
        else:
            found[name] = value
    return found
