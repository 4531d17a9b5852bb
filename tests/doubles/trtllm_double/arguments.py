"""What LLM takes. `TorchLlmArgs` of each version is one of these, or adds to it in its own folder."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Literal

from .configs import CudaGraphConfig, KvCacheConfig, MoeConfig, SchedulerConfig, TorchCompileConfig
from .quantization import QuantConfig
from .strict import Strict


class CommonArgs(Strict):
    """What all versions take. After LLM is made, `quant_config` and `max_seq_len` are those in effect."""

    # stable
    model: str = ""
    tokenizer: Any = None
    tokenizer_mode: Literal["auto", "slow"] = "auto"
    skip_tokenizer_init: bool = False
    trust_remote_code: bool = False
    tensor_parallel_size: int = 1
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    revision: str | None = None
    tokenizer_revision: str | None = None
    pipeline_parallel_size: int = 1
    context_parallel_size: int = 1
    moe_tensor_parallel_size: int | None = None
    moe_expert_parallel_size: int | None = None
    enable_lora: bool = False
    lora_config: Any = None
    batched_logits_processor: Any = None
    guided_decoding_backend: str | None = None
    speculative_config: Any = None
    max_batch_size: int | None = 2048
    max_input_len: int | None = 1024
    max_seq_len: int | None = None
    max_beam_width: int | None = 1
    max_num_tokens: int | None = 8192
    load_format: Any = "auto"
    enable_chunked_prefill: bool = False
    kv_cache_config: KvCacheConfig = KvCacheConfig()
    stream_interval: int = 1
    # beta and prototype
    gpus_per_node: int | None = None
    backend: Literal["pytorch"] | None = "pytorch"
    build_config: Any = None
    quant_config: QuantConfig | None = None
    cuda_graph_config: CudaGraphConfig | None = CudaGraphConfig()
    attn_backend: str = "TRTLLM"
    disable_overlap_scheduler: bool = False
    enable_iter_perf_stats: bool = False
    enable_iter_req_stats: bool = False
    print_iter_log: bool = False
    iter_stats_max_iterations: int | None = None
    request_stats_max_iterations: int | None = None
    enable_autotuner: bool = True
    allreduce_strategy: str | None = "AUTO"
    scheduler_config: SchedulerConfig = SchedulerConfig()
    moe_config: MoeConfig = MoeConfig()
    torch_compile_config: TorchCompileConfig | None = None
    gather_generation_logits: bool = False
    num_postprocess_workers: int = 0
    garbage_collection_gen0_threshold: int = 20000

    @property
    def parallel_config(self) -> SimpleNamespace:
        tp, pp = self.tensor_parallel_size, self.pipeline_parallel_size
        return SimpleNamespace(tp_size=tp, pp_size=pp, world_size=tp * pp)


class LaterArgs(CommonArgs):
    """What has been added from 1.1 on."""

    sampler_type: str = "auto"
    return_perf_metrics: bool = False
    perf_metrics_max_requests: int = 0
    orchestrator_type: Literal["rpc", "ray"] | None = None
    force_dynamic_quantization: bool = False
    checkpoint_format: str | None = None
    batch_wait_timeout_ms: float = 0.0
    batch_wait_timeout_iters: int = 0
    batch_wait_max_tokens_ratio: float = 0.0
    fail_fast_on_attention_window_too_large: bool = False
