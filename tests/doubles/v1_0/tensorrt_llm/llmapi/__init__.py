"""Configuration objects, by the names that users import."""

from trtllm_double.configs import (
    CapacitySchedulerPolicy,
    CudaGraphConfig,
    MoeConfig,
    SchedulerConfig,
    TorchCompileConfig,
)
from trtllm_double.errors import RequestError
from trtllm_double.quantization import QuantAlgo, QuantConfig
from trtllm_double.sampling import SamplingParams

from .llm_args import KvCacheConfig, TorchLlmArgs

__all__ = [
    "CapacitySchedulerPolicy",
    "CudaGraphConfig",
    "KvCacheConfig",
    "MoeConfig",
    "QuantAlgo",
    "QuantConfig",
    "RequestError",
    "SamplingParams",
    "SchedulerConfig",
    "TorchCompileConfig",
    "TorchLlmArgs",
]
