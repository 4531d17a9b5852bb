"""The configuration objects of tensorrt_llm.llmapi. Most of what they ask for has no effect on a CPU; it is checked."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from .strict import Strict


class KvCacheConfigWithoutType(Strict):
    """As it was while the cache's type was an argument of LLM. Of all this, the double heeds block reuse."""

    enable_block_reuse: bool = True
    max_tokens: int | None = None
    max_attention_window: list[int] | None = None
    sink_token_length: int | None = None
    free_gpu_memory_fraction: float | None = 0.9
    host_cache_size: int | None = None
    onboard_blocks: bool = True
    event_buffer_max_size: int = 0
    enable_partial_reuse: bool = True
    copy_on_partial_reuse: bool = True


class KvCacheConfig(KvCacheConfigWithoutType):
    max_gpu_total_bytes: int = 0
    dtype: str = "auto"
    tokens_per_block: int = 32


class CudaGraphConfig(Strict):
    batch_sizes: list[int] | None = None
    max_batch_size: int = 0
    enable_padding: bool = False


class CapacitySchedulerPolicy(StrEnum):
    MAX_UTILIZATION = "MAX_UTILIZATION"
    GUARANTEED_NO_EVICT = "GUARANTEED_NO_EVICT"
    STATIC_BATCH = "STATIC_BATCH"


class SchedulerConfig(Strict):
    capacity_scheduler_policy: CapacitySchedulerPolicy = CapacitySchedulerPolicy.GUARANTEED_NO_EVICT
    context_chunking_policy: str | None = None
    dynamic_batch_config: Any = None


class MoeConfig(Strict):
    backend: str = "CUTLASS"
    max_num_tokens: int | None = None
    load_balancer: Any = None


class TorchCompileConfig(Strict):
    enable_fullgraph: bool = True
    enable_inductor: bool = False
    enable_piecewise_cuda_graph: bool = False
    capture_num_tokens: list[int] | None = None
    enable_userbuffers: bool = True
    max_num_streams: int = 1
