"""What lies in the cache of Hugging Face, by the rules of huggingface_hub and without importing it."""

from __future__ import annotations

import os
from pathlib import Path


def hub_cache() -> Path:
    """Where huggingface_hub keeps what it downloads."""
    said = os.environ
    if own := said.get("HF_HUB_CACHE") or said.get("HUGGINGFACE_HUB_CACHE"):
        return Path(own).expanduser()
    if home := said.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    return Path(said.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"


def snapshot_of(repository: str) -> Path | None:
    """The folder of the version that `main` was when it was last looked up; its weights may be missing."""
    place = hub_cache() / f"models--{repository.replace('/', '--')}"
    try:
        folder = place / "snapshots" / (place / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):  # never looked up, or no text
        return None
    return folder if (folder / "config.json").is_file() else None
