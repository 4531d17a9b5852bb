"""Which recipes are healthy and which are broken, by what they expect of a fixed text?

    python benchmarks/accuracy/companions.py [NAME ...]

Compares recipes of the embedded model, and checkpoints that were broken on purpose, with its BF16 checkpoint on the
reference engine, and prints a row for each; NAME picks some of them. Broken ones are copies in a temporary folder. They
are given to the engine as they are, past the checks that a checkpoint of a suite has to pass. The table in
benchmarks/accuracy/README.md was made with it, and the limits in pytest_llamaperf/catalog/companions.yaml from that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from planted import BF16, PATIENT, Breaking, Given, changed, copied, int4, theta

from pytest_llamaperf.accuracy.companions import Look, compare, looked_at
from pytest_llamaperf.answers import NOISE
from pytest_llamaperf.cases import Layout
from pytest_llamaperf.catalog import recipe_named
from pytest_llamaperf.checkpoints import CheckpointStore
from pytest_llamaperf.engines import EngineSpec, Surroundings

# Name -> recipe, layout, and noise on what is embedded, relative: less than a rounding step of BF16, so that it shows how
# far a recipe gets from itself by chance.
HEALTHY: Mapping[str, tuple[str, str, float]] = {
    "bf16, tp3": ("bf16", "tp3", 0.0),
    "bf16, pp2": ("bf16", "pp2", 0.0),
    "bf16, noise": ("bf16", "tp1", NOISE),
    "fp32": ("fp32", "tp1", 0.0),
    "modelopt-fp8": ("modelopt-fp8", "tp1", 0.0),
    "modelopt-fp8, tp3": ("modelopt-fp8", "tp3", 0.0),
    "modelopt-fp8, noise": ("modelopt-fp8", "tp1", NOISE),
    "modelopt-fp8, half the noise": ("modelopt-fp8", "tp1", NOISE / 2),
    "modelopt-fp8, twice the noise": ("modelopt-fp8", "tp1", 2 * NOISE),
    "modelopt-fp8-bf16kv": ("modelopt-fp8-bf16kv", "tp1", 0.0),
    "llama-fp8": ("llama-fp8", "tp1", 0.0),
    "llama-fp8, tp3": ("llama-fp8", "tp3", 0.0),
    "llama-fp8, noise": ("llama-fp8", "tp1", NOISE),
    "modelopt-int8-sq": ("modelopt-int8-sq", "tp1", 0.0),
    "modelopt-int8-sq, noise": ("modelopt-int8-sq", "tp1", NOISE),
}
KV_SCALES = ("k_scale", "v_scale")
# Name -> recipe, and what is done to its checkpoint.
BROKEN: Mapping[str, tuple[str, Breaking]] = {
    "int4 in blocks of 64": ("bf16", int4(64)),
    "int4 by rows": ("bf16", int4(None)),
    **{
        f"{recipe}, {part} of layer 15 x2": (
            recipe, changed(f"layers.15.{part}.weight_scale", by=lambda scale: 2 * scale)
        )
        for recipe, part in (
            ("modelopt-fp8", "mlp.down_proj"), ("modelopt-fp8", "self_attn.q_proj"), ("modelopt-fp8", "self_attn.v_proj"),
            ("llama-fp8", "mlp.down_proj"), ("llama-fp8", "mlp.gate_proj"),
        )
    },
    "modelopt-fp8, KV scales 1": ("modelopt-fp8", changed(*KV_SCALES, by=torch.ones_like)),
    "modelopt-fp8, KV scales / 8": ("modelopt-fp8", changed(*KV_SCALES, by=lambda scale: scale / 8)),
    "modelopt-fp8, input scales / 8": ("modelopt-fp8", changed("input_scale", by=lambda scale: scale / 8)),
    "modelopt-fp8, rope theta 10,000": ("modelopt-fp8", theta(10_000.0)),
    "modelopt-fp8, rope theta 500,000": ("modelopt-fp8", theta(500_000.0)),
}  # fmt: skip


def main() -> None:
    picked = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="llamaperf-companions-") as scratch:
        surroundings = Surroundings(PATIENT, Path(scratch) / "logs", lambda text, done, total: None)
        reference = look(checkpoint("bf16"), "bf16", "tp1", surroundings)
        print(
            f"{reference.tokens} tokens in {len(reference.sequences)} paragraphs, perplexity {reference.perplexity:.3f}"
        )
        print("| | perplexity | nats a token | KL, at least | most likely token |\n|---|---|---|---|---|", flush=True)
        for name, (recipe, layout, noise) in HEALTHY.items():
            if not picked or name in picked:
                row(name, look(checkpoint(recipe), recipe, layout, surroundings, noise), reference)
        for name, (recipe, breaking) in BROKEN.items():
            if not picked or name in picked:
                folder = Path(scratch) / "broken"
                copied(checkpoint(recipe), folder, breaking)
                row(name, look(folder, recipe, "tp1", surroundings), reference)
                shutil.rmtree(folder)


def checkpoint(recipe: str) -> Path:
    return CheckpointStore().get(BF16.model, recipe_named(recipe)).path


def look(folder: Path, recipe: str, layout: str, surroundings: Surroundings, noise: float = 0.0) -> Look:
    case = dataclasses.replace(BF16, recipe=recipe_named(recipe), layout=Layout.parse(layout))
    with contextlib.closing(Given(EngineSpec.of(case), folder, surroundings, noise)) as engine:
        return looked_at(case, engine)


def row(name: str, candidate: Look, reference: Look) -> None:
    found = compare(candidate, reference)
    loss = found.loss
    print(
        f"| {name} | {found.perplexities[0]:.2f} | {loss.mean:+.4f} ({loss.low:+.4f} to {loss.high:+.4f}) "
        f"| {found.divergence:.4f} | {found.agreement:.2%} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
