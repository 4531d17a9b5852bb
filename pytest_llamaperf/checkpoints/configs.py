"""What a checkpoint's JSON files say: its network, its rotary embedding, what ModelOpt did to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_llamaperf.checkpoints.safetensors_files import BadCheckpoint

CONFIG = "config.json"
QUANTIZATION = "hf_quant_config.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model")  # one of them is there

# The catalog's words for rotary embedding, and config.json's.
_ROPE_WORDS = {"theta": "rope_theta", "type": "rope_type", "original_context": "original_max_position_embeddings"}

Rope = dict[str, float | str]


def read_json(path: Path) -> dict[str, Any]:
    """Raises BadCheckpoint for a file that is missing or holds no JSON mapping."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadCheckpoint(path, "is missing") from None
    except OSError as problem:
        raise BadCheckpoint(path, f"cannot be read: {problem.strerror}") from None
    except (ValueError, RecursionError):
        raise BadCheckpoint(path, "is not JSON") from None
    if not isinstance(value, dict):
        raise BadCheckpoint(path, "is JSON, and no mapping")
    return value


def refuse_code(folder: Path) -> None:
    """Refuse a checkpoint that brings classes of its own: tools that read it, as trtllm-bench, would run them.

    Raises BadCheckpoint.
    """
    for path in sorted({folder / CONFIG, *folder.glob("*_config.json")}):
        if read_json(path).get("auto_map"):
            raise BadCheckpoint(
                path,
                "names code that comes with the checkpoint (auto_map), and such code is never run here; a plain Llama needs "
                "none: take auto_map out, in a copy of the folder",
            )


def tokenizer_file(folder: Path) -> Path | None:
    """The file with the tokenizer's vocabulary."""
    return next((folder / name for name in TOKENIZERS if (folder / name).exists()), None)


def rope(config: Mapping[str, Any]) -> Rope:
    """Rotary embedding as transformers 5 reads it: rope_parameters, and rope_theta and rope_scaling where that lacks."""
    older = _named(config.get("rope_scaling"))
    return _completed({"rope_theta": config.get("rope_theta"), **older, **_named(config.get("rope_parameters"))})


def older_rope(config: Mapping[str, Any]) -> Rope:
    """Rotary embedding as transformers 4 reads it, which TensorRT-LLM pins: rope_theta and rope_scaling alone."""
    return _completed({**_named(config.get("rope_scaling")), "rope_theta": config.get("rope_theta")})


def catalog_rope(words: Mapping[str, float | str]) -> Rope:
    """Rotary embedding of the catalog, in config.json's words."""
    return _completed({_ROPE_WORDS.get(key, key): value for key, value in words.items()})


def _named(fields: object) -> dict[str, Any]:
    if not isinstance(fields, dict):
        return {}
    known = dict(fields)
    if "type" in known:  # what `rope_type` was called before transformers 4.43
        known.setdefault("rope_type", known.pop("type"))
    return {key: value for key, value in known.items() if value is not None}


def _completed(fields: Mapping[str, Any]) -> Rope:
    """With what is meant where nothing is said, and numbers alike however they are written; what is none as it stands."""
    said = {"rope_type": "default", **fields}
    said["rope_theta"] = said.get("rope_theta") or 10000.0
    return {key: float(value) if _is_number(value) else str(value) for key, value in said.items()}


def _is_number(value: object) -> bool:
    """And not an int of JSON that no float holds."""
    return isinstance(value, int | float) and abs(value) < 1e300
