"""What is known of TensorRT-LLM's versions, as far as it decides what may be asked of one.

Read in its sources and release notes from 1.0 to 1.3.0rc; docs/first-run-on-h200.md lists what was only inferred.
"""

from __future__ import annotations

from enum import StrEnum

from packaging.version import InvalidVersion, Version

from pytest_llamaperf.cases import Number
from pytest_llamaperf.errors import EngineError, Unsupported

OLDEST = Version("1.0.0rc0")  # before it `LLM` was the TensorRT backend, which takes other arguments
PLANNED_FOR = Version("1.2.1")  # where a plan is made without any version at hand

# Names of arguments that came later than OLDEST; as they are written in `arguments`.
_SINCE = {
    "kv_cache_config.dtype": Version("1.1.0rc0"),
    "return_perf_metrics": Version("1.1.0rc0"),
}
_UNTIL = {"kv_cache_dtype": Version("1.1.0rc0")}


class Scoring(StrEnum):
    """How the log-probabilities of given tokens are asked for: `children/trtllm/scoring.py`."""

    PROMPT_LOGPROBS = "prompt_logprobs"
    CONTEXT_LOGITS = "context_logits"


def version_of(text: str | None) -> Version:
    """Raises EngineError for what is no version, Unsupported for one that is too old."""
    try:
        version = Version(text or "")
    except InvalidVersion:
        raise EngineError(f"TensorRT-LLM says its version is {text!r}, which is none") from None
    if version < OLDEST:
        raise Unsupported(
            f"TensorRT-LLM {version} is older than {OLDEST.base_version}, the first this project can drive"
        )
    return version


def known_at(version: Version, name: str) -> bool:
    """Whether an argument exists in a version, by what was read of it. Those that are not listed always have."""
    return version >= _SINCE.get(name, OLDEST) and (name not in _UNTIL or version < _UNTIL[name])


def scoring_of(version: Version) -> Scoring:
    """The way that gives right values. Raises Unsupported below 1.1, where there is none.

    Prompt logprobs hold the token that was asked about only from 1.3.0rc11 on; before, the k likeliest alone.
    """
    if version >= Version("1.3.0rc11"):
        return Scoring.PROMPT_LOGPROBS
    if version >= Version("1.1.0rc2"):
        return Scoring.CONTEXT_LOGITS
    raise Unsupported(f"log-likelihoods need TensorRT-LLM 1.1 or newer, found {version}")


# What `quant_config.quant_algo` and `engine.quantization` call each format of weights, and what they say of the KV cache.
QUANTIZATION = {
    Number.BF16: None,
    Number.FP8_TENSOR: "FP8",
    Number.FP8_ROW: "FP8_PER_CHANNEL_PER_TOKEN",
    Number.INT8_SMOOTH: "W8A8_SQ_PER_CHANNEL",
    Number.INT4_AWQ: "W4A16_AWQ",
}
KV_CACHE = {Number.BF16: None, Number.FP8: "FP8"}
