"""What LLM takes at this version."""

from typing import Any

from trtllm_double.arguments import CommonArgs
from trtllm_double.configs import KvCacheConfigWithoutType


class KvCacheConfig(KvCacheConfigWithoutType):
    pass


class TorchLlmArgs(CommonArgs):
    """All of these are gone at 1.2."""

    kv_cache_config: KvCacheConfig = KvCacheConfig()
    kv_cache_dtype: str = "auto"
    enable_trtllm_sampler: bool = False
    enable_mixed_sampler: bool = False
    batching_type: Any = None
    normalize_log_probs: bool = False
