"""A checkpoint from Hugging Face, into its cache, which other programs share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from huggingface_hub import snapshot_download

Report = Callable[..., None]

# Weights in safetensors, and what describes them; not the same weights again in formats of other programs.
_WANTED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model"]
_LEFT_OUT = ["original/*", "onnx/*"]


def fetched(repository: str, report: Report) -> Path:
    """The folder of its newest version. Raises what huggingface_hub raises, whose messages say what to do."""
    report(f"downloading {repository} from Hugging Face")
    return Path(snapshot_download(repository, allow_patterns=_WANTED, ignore_patterns=_LEFT_OUT))
