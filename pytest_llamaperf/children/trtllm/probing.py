"""What is installed here, and what it accepts: asked, not assumed, because it changes from release to release."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# Of what decides speed and answers; the others are asked where they are loaded.
DISTRIBUTIONS = ("tensorrt_llm", "torch", "transformers", "nvidia-modelopt")

HELP_PATIENCE = 300.0  # seconds: trtllm-bench imports all of TensorRT-LLM before it prints a word


def installed() -> dict[str, str]:
    """Version of each of DISTRIBUTIONS that is installed, by its metadata."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def llm_api() -> dict[str, Any]:
    """The version as loaded, and names of accepted arguments; None where a class cannot be asked.

    Raises ImportError where there is no LLM: what the package registry holds under this name is a stub.
    """
    package = importlib.import_module("tensorrt_llm")
    if not hasattr(package, "LLM"):
        raise ImportError(
            "tensorrt_llm has no LLM: it is the placeholder of the package registry; TensorRT-LLM's wheels come from "
            "NVIDIA's index or its container"
        )
    llmapi = importlib.import_module("tensorrt_llm.llmapi")
    return {
        "version": getattr(package, "__version__", None),
        "versions": installed(),
        "arguments": _fields(_arguments_class()),
        "kv_cache_config": _fields(getattr(llmapi, "KvCacheConfig", None)),
        "cuda_graph_config": _fields(getattr(llmapi, "CudaGraphConfig", None)),
    }


def bench() -> dict[str, Any]:
    """Where trtllm-bench is, and what its help says of itself and of its two commands.

    Raises ImportError where it is not on the PATH, RuntimeError where it cannot even print its help.
    """
    found = shutil.which("trtllm-bench")
    if found is None:
        raise ImportError("there is no trtllm-bench on the PATH; it comes with TensorRT-LLM")
    path = str(Path(found).absolute())
    texts = {}
    for name, words in {"group": [], "throughput": ["throughput"], "latency": ["latency"]}.items():
        # The group wants a model before it speaks of its commands, by a name that is no path where it runs.
        given = [path, "--model", "llama", *words, "--help"] if words else [path, "--help"]
        done = subprocess.run(
            given, cwd=tempfile.gettempdir(), capture_output=True, encoding="utf-8", errors="replace",
            timeout=HELP_PATIENCE, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{' '.join(given)} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
        texts[name] = done.stdout
    return {"path": path, "versions": installed(), "help": texts}


def _arguments_class() -> Any:
    try:
        return importlib.import_module("tensorrt_llm.llmapi.llm_args").TorchLlmArgs
    except (ImportError, AttributeError):
        return None


def _fields(model: Any) -> list[str] | None:
    fields = getattr(model, "model_fields", None)
    return None if fields is None else sorted(fields)
