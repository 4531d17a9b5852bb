"""The double of TensorRT-LLM 1.2.1: see tests/doubles/README.md."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # where trtllm_double is

from trtllm_double import faults
from trtllm_double.llm import DoubleLLM
from trtllm_double.sampling import SamplingParams
from trtllm_double.versions import V1_2

from .llmapi.llm_args import TorchLlmArgs
from .version import __version__

__version__ = faults.at(faults.Place.VERSION, __version__)


class LLM(DoubleLLM):
    VERSION = V1_2
    ARGS = TorchLlmArgs


__all__ = ["LLM", "SamplingParams", "__version__"]

print(f"[TensorRT-LLM] TensorRT LLM version: {__version__}", flush=True)
