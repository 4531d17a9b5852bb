"""What a checkpoint says of its own quantization, in ModelOpt's words; other libraries' are refused with advice.

`hf_quant_config.json` counts, as it does for TensorRT-LLM, which only warns where config.json differs from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_llamaperf.checkpoints.configs import CONFIG, QUANTIZATION, read_json
from pytest_llamaperf.checkpoints.safetensors_files import BadCheckpoint

_META = "fbgemm_fp8"  # the library that Meta made its FP8 checkpoints with
_PRODUCERS = {"modelopt": "nvidia-modelopt"}  # what a producer is called, and its distribution


@dataclass(frozen=True)
class Quantization:
    """`algorithm` and `kv_cache` are ModelOpt's words (FP8, W4A16_AWQ); None: not quantized. `group_size` is in inputs.

    `excluded` are patterns of modules that stay as they were. `versions` name the library that wrote the checkpoint.
    """

    algorithm: str | None
    kv_cache: str | None
    group_size: int | None
    excluded: tuple[str, ...]
    versions: Mapping[str, str]

    def __str__(self) -> str:
        """`FP8 with FP8 KV cache`"""
        return f"{self.algorithm or 'no weights'} with {self.kv_cache or 'BF16'} KV cache"


def quantization_of(folder: Path) -> Quantization | None:
    """None for a checkpoint that is not quantized.

    Raises BadCheckpoint for what another library than ModelOpt quantized, or does not say how it is.
    """
    if (folder / QUANTIZATION).exists():
        return read_quantization(folder)
    if inline := read_json(folder / CONFIG).get("quantization_config"):
        _refuse_inline(folder, inline if isinstance(inline, dict) else {})
    return None


def read_quantization(folder: Path) -> Quantization:
    """What hf_quant_config.json says. ModelOpt 0.x writes it nested, 1.x flat with other names for the same.

    Raises BadCheckpoint for a file that is missing or says neither.
    """
    path = folder / QUANTIZATION
    file = read_json(path)
    nested = file.get("quantization")
    if isinstance(nested, dict):
        said, excluded, kv_cache = nested, nested.get("exclude_modules"), nested.get("kv_cache_quant_algo")
    elif "quant_algo" in file:
        said, excluded, kv_cache = file, file.get("ignore"), _algorithm_of_scheme(file.get("kv_cache_scheme"))
    else:
        raise BadCheckpoint(path, "has no mapping called quantization, and no quant_algo")
    return Quantization(
        said.get("quant_algo"),
        kv_cache,
        said.get("group_size"),
        tuple(str(pattern) for pattern in excluded) if isinstance(excluded, list) else (),
        _versions(file.get("producer")),
    )


def _algorithm_of_scheme(scheme: object) -> str | None:
    """As TensorRT-LLM reads it, to which anything else is no quantized cache: that is shown as it stands."""
    match scheme:
        case None:
            return None
        case {"type": "float", "num_bits": 8}:
            return "FP8"
        case _:
            return f"an unknown ({scheme})"


def _versions(producer: object) -> dict[str, str]:
    if not isinstance(producer, dict) or not producer.get("name"):
        return {}
    name = str(producer["name"])
    return {_PRODUCERS.get(name, name): str(producer.get("version") or "unknown")}


def _refuse_inline(folder: Path, said: Mapping[str, Any]) -> None:
    """config.json speaks of quantization, and hf_quant_config.json is not there. Raises BadCheckpoint."""
    method = str(said.get("quant_method") or "")
    if method == _META:
        raise BadCheckpoint(
            folder,
            f"is quantized by {_META}, as Meta publishes FP8, which TensorRT-LLM does not read any more "
            '("Unsupported quantization_config"); test the BF16 checkpoint in the recipe llama-fp8 instead: of the same '
            "layers ModelOpt makes FP8 with a scale for each row. It lacks Meta's cap of 1,200 on activations, which "
            "cannot be exported",
        )
    if method.startswith("modelopt"):
        raise BadCheckpoint(
            folder / QUANTIZATION,
            f"is missing, and {CONFIG} says that ModelOpt quantized this; copy it from where the checkpoint came from",
        )
    raise BadCheckpoint(
        folder,
        f"is quantized by {method or 'something that it does not name'}, and only checkpoints of ModelOpt are taken as "
        "they are; give the BF16 checkpoint it was made from, which the recipes quantize",
    )
