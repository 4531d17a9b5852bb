"""Rotary embedding in config.json, in both spellings.

transformers 5 writes `rope_parameters` alone. transformers 4, which TensorRT-LLM 1.x loads configurations with, does not
know it and goes on with theta 10000 and no scaling, without a word: every answer of a Llama 3 is then wrong. So `rope_theta`
and `rope_scaling` are written beside it; transformers 5 reads those too and finds the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def both_spellings(config: dict[str, Any]) -> dict[str, Any]:
    """The rope fields of a config.json that either version understands, from one in either spelling."""
    scaling = dict(config.get("rope_scaling") or {})
    parameters = {"rope_theta": config.get("rope_theta") or 10000.0, **scaling, **(config.get("rope_parameters") or {})}
    kind = parameters.pop("type", None)  # what `rope_type` was called before transformers 4.43
    parameters.setdefault("rope_type", kind or "default")
    plain = parameters["rope_type"] == "default"
    older = None if plain else {key: value for key, value in parameters.items() if key != "rope_theta"}
    return {"rope_parameters": parameters, "rope_theta": parameters["rope_theta"], "rope_scaling": older}


def keep_rope(source: Path, destination: Path) -> None:
    """Write the source's rotary embedding into the destination's config.json."""
    path = destination / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.update(both_spellings(json.loads((source / "config.json").read_text(encoding="utf-8"))))
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
