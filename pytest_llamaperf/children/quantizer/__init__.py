"""Makes checkpoints: the embedded model's out of its GGUF, and quantized ones with NVIDIA ModelOpt.

embedded   a GGUF becomes a Hugging Face checkpoint      rope   config.json in the words of transformers 4 and 5
ptq        a checkpoint becomes a quantized one          hub    a checkpoint is fetched from Hugging Face

Every command writes into a folder that the caller gives, fills and puts in place; what is written is checked there, by
`checkpoints/verify.py`. Libraries are imported by the command that needs them.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

Report = Callable[..., None]


def open_driver(report: Report) -> Quantizer:
    return Quantizer(report)


class Quantizer:
    def __init__(self, report: Report) -> None:
        self._report = report

    def handle(self, command: str, arguments: dict[str, Any]) -> Any:
        """Each answers with the versions of what did the work.

        materialize   gguf, destination
        quantize      source, destination, recipe, calibration: {text, windows, tokens} or None
        fetch         repository (an id on Hugging Face)
        """
        match command:
            case "materialize":
                from .embedded import write_checkpoint

                write_checkpoint(Path(arguments["gguf"]), Path(arguments["destination"]), self._report)
                return {"versions": _versions("gguf", "torch", "safetensors")}
            case "quantize":
                from .ptq import write_quantized

                done = write_quantized(
                    Path(arguments["source"]),
                    Path(arguments["destination"]),
                    arguments["recipe"],
                    arguments["calibration"],
                    self._report,
                )
                return {"versions": _versions("torch", "transformers", "nvidia-modelopt"), **done}
            case "fetch":
                from .hub import fetched

                path = fetched(arguments["repository"], self._report)
                return {"versions": _versions("huggingface_hub"), "path": str(path)}
        raise ValueError(f"unknown command {command!r}")

    def close(self) -> None:
        """Nothing is held between commands."""


def _versions(*distributions: str) -> dict[str, str]:
    """As loaded: where a module says its version it counts, and its distribution's where it says none."""
    import sys

    found = {"python": platform.python_version()}
    for name in distributions:
        module = sys.modules.get({"nvidia-modelopt": "modelopt"}.get(name, name))
        found[name] = str(getattr(module, "__version__", None) or version(name))
    return found
