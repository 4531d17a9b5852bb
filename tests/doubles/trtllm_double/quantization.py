"""What a checkpoint says of its number formats, and what a user may add to that."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Any

from .strict import Strict
from .versions import Version


class QuantAlgo(StrEnum):
    W8A16 = "W8A16"
    W4A16 = "W4A16"
    W4A16_AWQ = "W4A16_AWQ"
    W4A8_AWQ = "W4A8_AWQ"
    W8A8_SQ_PER_CHANNEL = "W8A8_SQ_PER_CHANNEL"
    FP8 = "FP8"
    FP8_PER_CHANNEL_PER_TOKEN = "FP8_PER_CHANNEL_PER_TOKEN"
    FP8_BLOCK_SCALES = "FP8_BLOCK_SCALES"
    INT8 = "INT8"
    MIXED_PRECISION = "MIXED_PRECISION"
    NVFP4 = "NVFP4"


class QuantConfig(Strict):
    quant_algo: QuantAlgo | None = None
    kv_cache_quant_algo: QuantAlgo | None = None
    group_size: int | None = 128
    smoothquant_val: float = 0.5
    clamp_val: list[float] | None = None
    use_meta_recipe: bool = False
    has_zero_point: bool = False
    pre_quant_scale: bool = False
    exclude_modules: list[str] | None = None


# The methods of config.json that are understood where there is no hf_quant_config.json.
_INLINE = ("modelopt", "fp8", "mxfp4", "mxfp8", "compressed-tensors", "nvfp4")


def effective(folder: Path, config: dict[str, Any], version: Version, asked: Any, kv_cache: str) -> QuantConfig:
    """The quantization an LLM of this checkpoint runs with.

    `asked` is the user's QuantConfig or None; `kv_cache` is KvCacheConfig.dtype. Raises ValueError where the user
    contradicts the checkpoint, NotImplementedError for a format that is not known.
    """
    found = _declared(folder, config, version)
    if asked is not None and asked.quant_algo not in (None, found.quant_algo):
        raise ValueError(
            f"Specified quant_algo {asked.quant_algo}, conflicting with the quant_algo {found.quant_algo} of the "
            "checkpoint"
        )
    if kv_cache in ("fp8", "nvfp4"):
        found.kv_cache_quant_algo = QuantAlgo(kv_cache.upper())
    return found


def _declared(folder: Path, config: dict[str, Any], version: Version) -> QuantConfig:
    path = folder / "hf_quant_config.json"
    if path.exists():
        said = json.loads(path.read_text(encoding="utf-8"))
        said = said if version.flat_quant_config and "quantization" not in said else said["quantization"]
    else:
        said = dict(config.get("quantization_config") or {})
        if said and said.get("quant_method") not in _INLINE:
            raise NotImplementedError(f"Unsupported quantization_config: {said}.")
        if said.get("quant_method") == "fp8":
            said["quant_algo"] = "FP8_BLOCK_SCALES" if "weight_block_size" in said else "FP8"
    return QuantConfig(
        quant_algo=said.get("quant_algo"),
        kv_cache_quant_algo=said.get("kv_cache_quant_algo"),
        group_size=said.get("group_size", 128),
        exclude_modules=said.get("exclude_modules", said.get("ignore")),
    )
