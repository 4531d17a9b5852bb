"""Checkpoints of models in recipes, each made once and kept in the cache; what ModelOpt printed stands in its `logs`."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pytest_llamaperf.cache import FULL, SETTING, Cache, default_root, read_manifest
from pytest_llamaperf.cases import Model, Number, Recipe
from pytest_llamaperf.checkpoints.calibration import Calibration
from pytest_llamaperf.checkpoints.configs import TOKENIZERS, refuse_code, tokenizer_file
from pytest_llamaperf.checkpoints.digests import file_digest, folder_digest
from pytest_llamaperf.checkpoints.entries import problem_of
from pytest_llamaperf.checkpoints.intended import (
    check_can_be_quantized,
    keeps_everything,
    kept_layers,
    needs_calibration,
)
from pytest_llamaperf.checkpoints.making import Maker, OnProgress, in_a_child, program_digest
from pytest_llamaperf.checkpoints.quantization import quantization_of
from pytest_llamaperf.checkpoints.safetensors_files import BadCheckpoint
from pytest_llamaperf.checkpoints.sources import Folder, Gguf, Repository, source_of
from pytest_llamaperf.checkpoints.verify import check_source, checked, checked_as_given
from pytest_llamaperf.errors import EngineError
from pytest_llamaperf.hosting.failures import EngineFailure, FailureKind
from pytest_llamaperf.hosting.host import DEFAULT_DEADLINES, Progress
from pytest_llamaperf.hosting.phases import Deadlines, Phase
from pytest_llamaperf.wording import amount, shown_path

AS_PUBLISHED = Recipe("bf16", Number.BF16, Number.BF16, Number.BF16, 0, "the checkpoint as published")

_ROOM = 1.02  # of the weights' size: what stands beside them is small


class CheckpointWarning(UserWarning):
    """An entry of the store was damaged, and is made again."""


@dataclass(frozen=True)
class Checkpoint:
    """A model in a recipe, on disk and checked.

    `digest` names the content: it is made of everything that decides it. `versions` are of the libraries that wrote
    it, as they said when loaded; of one that came quantized, as it says itself; empty where the writer is unknown.
    """

    path: Path
    model: str
    recipe: str
    digest: str
    versions: Mapping[str, str] = field(hash=False)


class CheckpointStore:
    """Gives checkpoints, and makes those that are not there.

    `root` defaults to $LLAMAPERF_CACHE, then to pytest-llamaperf in the user's cache. Progress of what takes long goes
    to `on_progress`; what ModelOpt prints to a file in `logs`. `deadlines.run` bounds one quantization.
    """

    def __init__(
        self,
        root: Path | None = None,
        *,
        deadlines: Deadlines = DEFAULT_DEADLINES,
        on_progress: OnProgress | None = None,
        logs: Path | None = None,
        maker: Maker | None = None,
        calibration: Calibration = Calibration(),  # noqa: B008 - frozen
    ) -> None:
        self.root = (root or default_root()).absolute()
        self._cache = Cache(self.root, tell=self._note, warn=self._warn)
        self._logs = logs or self.root / "logs"
        self._on_progress = on_progress
        self._maker = maker or in_a_child(deadlines, on_progress)
        self._calibration = calibration

    def get(self, model: Model, recipe: Recipe) -> Checkpoint:
        """The model's checkpoint in that recipe; for bf16 and fp32 the one that was published.

        One that comes quantized is taken as it is, and never quantized again. Raises UsageError for a recipe this model
        cannot have; BadCheckpoint for one that is damaged, not what the recipe says, or of a kind that is not read;
        EngineError for weights that are nowhere, or a full disk.
        """
        if not keeps_everything(recipe):
            check_can_be_quantized(model, recipe)
        found = self._published(model, recipe)
        if keeps_everything(recipe) or quantization_of(found.path):
            return dataclasses.replace(found, recipe=recipe.name)
        return self._quantized(found, model, recipe)

    def _published(self, model: Model, recipe: Recipe) -> Checkpoint:
        """In BF16, or quantized as the recipe says."""
        match source_of(model, recipe):
            case Gguf(file):
                return self._materialized(file, model)
            case Repository(repository):
                answer = self._maker(
                    "fetch", {"repository": repository}, self._logs / f"{_plain(model.name)}-fetch.log"
                )
                path = Path(answer["path"])
            case Folder(path):
                pass
        refuse_code(path)
        if said := quantization_of(path):
            checked_as_given(path, model, recipe)
            return Checkpoint(path, model.name, recipe.name, folder_digest(path), said.versions)
        check_source(path, model)
        return Checkpoint(path, model.name, AS_PUBLISHED.name, folder_digest(path), {})

    def _materialized(self, gguf: Path, model: Model) -> Checkpoint:
        def found(folder: Path) -> Mapping[str, Any]:
            check_source(folder, model)
            return {}

        identity = {"gguf": file_digest(gguf), "versions": _installed("gguf", "torch", "safetensors")}
        return self._entry(model, AS_PUBLISHED, identity, "materialize", {"gguf": str(gguf)}, found)

    def _quantized(self, source: Checkpoint, model: Model, recipe: Recipe) -> Checkpoint:
        if tokenizer_file(source.path) is None:
            raise BadCheckpoint(
                source.path,
                f"has no tokenizer ({' or '.join(TOKENIZERS)}), which calibration and engines need; put the model's "
                "beside its weights",
            )
        numbers = {
            "attention": recipe.attention,
            "feed_forward": recipe.feed_forward,
            "kv_cache": recipe.kv_cache,
            "kept_layers": list(kept_layers(model, recipe)),
        }
        calibration = self._calibration if needs_calibration(recipe) else None
        identity = {
            "source": source.digest,
            "recipe": numbers,
            "calibration": calibration.digest if calibration else None,
            "versions": _installed("nvidia-modelopt", "transformers", "torch"),
        }
        arguments = {
            "source": str(source.path),
            "recipe": numbers,
            "calibration": calibration.to_dict() if calibration else None,
        }

        def found(folder: Path) -> Mapping[str, Any]:
            findings = checked(folder, model, recipe, source.path)
            return {"quantized_modules": len(findings.quantized_modules), "scales": dict(findings.scales)}

        return self._entry(model, recipe, identity, "quantize", arguments, found)

    def _entry(
        self,
        model: Model,
        recipe: Recipe,
        identity: Mapping[str, Any],
        command: str,
        arguments: Mapping[str, Any],
        found: Callable[[Path], Mapping[str, Any]],
    ) -> Checkpoint:
        """What `command` makes, of the store or now; `found` checks what it wrote, and says what is worth keeping."""
        written = json.dumps({**identity, "command": command, "program": program_digest()}, sort_keys=True)
        key = hashlib.sha256(written.encode()).hexdigest()
        name = f"{_plain(model.name)}-{_plain(recipe.name)}-{key[:16]}"

        def make(folder: Path) -> Mapping[str, Any]:
            self._check_room(model, recipe)
            answer = self._maker(command, {**arguments, "destination": str(folder)}, self._logs / f"{name}.log")
            self._note(f"checking {name}")
            made = datetime.now(UTC).isoformat(timespec="seconds")
            return {"key": key, **identity, **answer, "found": found(folder), "made": made}

        with self._explained(model, recipe):
            entry = self._cache.get(name, make, lambda entry: problem_of(entry, key))
            versions = read_manifest(entry)["versions"]
        return Checkpoint(entry, model.name, recipe.name, key, versions)

    def _check_room(self, model: Model, recipe: Recipe) -> None:
        needed = _ROOM * recipe.weight_bytes(model)
        if shutil.disk_usage(self.root).free < needed:
            raise self._full(model, recipe, "not started")

    @contextlib.contextmanager
    def _explained(self, model: Model, recipe: Recipe) -> Iterator[None]:
        """What the operating system says becomes a sentence about this folder."""
        try:
            yield
        except EngineFailure as failure:
            if failure.kind != FailureKind.DISK_FULL:
                raise
            raise self._full(model, recipe, failure.problem) from None
        except OSError as problem:
            if problem.errno in FULL:
                raise self._full(model, recipe, str(problem)) from None
            where = shown_path(Path(problem.filename)) if isinstance(problem.filename, str) else shown_path(self.root)
            raise EngineError(
                f"{where}: {problem.strerror or problem}; checkpoints are kept in {shown_path(self.root)}: "
                f"make that writable, or set {SETTING} to another folder"
            ) from None

    def _full(self, model: Model, recipe: Recipe, problem: str) -> EngineError:
        """After everything unfinished was removed."""
        free = amount(shutil.disk_usage(self.root).free, "B")
        needed = amount(_ROOM * recipe.weight_bytes(model), "B")
        return EngineError(
            f"{shown_path(self.root)}: no room for {model} in the recipe {recipe}: {free} free, about {needed} needed "
            f"({problem}); free some space, or set {SETTING} to a folder on another disk"
        )

    def _note(self, text: str) -> None:
        if self._on_progress:
            self._on_progress(Progress(Phase.RUN, text, 0, None))

    def _warn(self, text: str) -> None:
        self._note(text)
        if not self._on_progress:
            warnings.warn(text, CheckpointWarning, stacklevel=6)


def _installed(*distributions: str) -> dict[str, str]:
    """Their versions, without importing them. Raises EngineError for what is not installed."""
    try:
        return {name: version(name) for name in distributions}
    except PackageNotFoundError as missing:
        raise EngineError(
            f"making checkpoints needs {missing.name}, which is not installed; pip install 'pytest-llamaperf[torch]'"
        ) from None


def _plain(name: str) -> str:
    """As part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._@=-]+", "_", name).strip(".")[:80]
