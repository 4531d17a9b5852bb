"""The embedded model with checkpoints that were broken on purpose, or calibrated otherwise, in the reference engine."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from pytest_llamaperf.cases import Task
from pytest_llamaperf.catalog import case_of_key
from pytest_llamaperf.checkpoints import Checkpoint
from pytest_llamaperf.engines import Distributions, EngineSpec, Surroundings
from pytest_llamaperf.engines.hosted import started
from pytest_llamaperf.engines.torch import DRIVER, TorchEngine, settings_for
from pytest_llamaperf.hosting.phases import Deadlines, Phase

BF16 = dataclasses.replace(case_of_key("cpu", "torch/smollm2-135m/bf16/tp1/min-latency-16-8"), work=Task("answers"))
PATIENT = Deadlines(load=300.0, run=900.0, close=30.0)

Tensors = dict[str, torch.Tensor]
Config = dict[str, object]
Breaking = Callable[[Tensors, Config], None]


class Given(TorchEngine):
    """The reference engine on a folder, whatever is in it, with noise on what is embedded when it looks at a text."""

    def __init__(self, spec: EngineSpec, folder: Path, surroundings: Surroundings, noise: float) -> None:
        self._noise = noise
        with contextlib.ExitStack() as ending:
            self._host = started(DRIVER, spec, surroundings, ending)
            checkpoint = Checkpoint(folder, spec.model.name, spec.recipe.name, "", {})
            self._host.call("load", settings_for(spec, checkpoint), Phase.LOAD)
            self._ending = ending.pop_all()

    def distributions(self, sequences: Sequence[Sequence[int]], top: int) -> list[Distributions]:
        return self._distributions(sequences, top=top, noise=self._noise)


def int4(block: int | None) -> Breaking:
    """Weights of all linear layers rounded to the nearest of 15 steps, a scale for each block of inputs, None: each row."""

    def broken(tensors: Tensors, config: Config) -> None:
        for name, weight in tensors.items():
            if name.endswith("_proj.weight"):
                blocks = weight.float().view(len(weight), -1, block or weight.shape[1])
                scale = blocks.abs().amax(-1, keepdim=True) / 7
                tensors[name] = ((blocks / scale).round() * scale).flatten(1).to(weight.dtype)

    return broken


def changed(*endings: str, by: Callable[[torch.Tensor], torch.Tensor]) -> Breaking:
    """All tensors whose names end so."""

    def broken(tensors: Tensors, config: Config) -> None:
        names = [name for name in tensors if name.endswith(endings)]
        assert names, f"no tensor is called {endings}"
        for name in names:
            tensors[name] = by(tensors[name])

    return broken


def theta(value: float) -> Breaking:
    def broken(tensors: Tensors, config: Config) -> None:
        rope = config.get("rope_parameters")
        if isinstance(rope, dict):
            rope["rope_theta"] = value
        if "rope_theta" in config or not isinstance(rope, dict):
            config["rope_theta"] = value

    return broken


def copied(source: Path, target: Path, breaking: Breaking) -> None:
    shutil.copytree(source, target)
    tensors, config = load_file(source / "model.safetensors"), json.loads((source / "config.json").read_text())
    breaking(tensors, config)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target / "model.safetensors")
    (target / "config.json").write_text(json.dumps(config))
