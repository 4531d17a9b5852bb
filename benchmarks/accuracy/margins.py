"""How many points may a healthy recipe of the embedded model lose on the offline tasks, and how many does a broken one?

    python benchmarks/accuracy/margins.py [--seeds N] [NAME ...]

Every recipe with scales that are measured is calibrated anew N times, each time on half of the paragraphs of the calibration
text, drawn with a seed and in another order; recipes without such scales run once more on three ranks, which round otherwise.
Each is compared with BF16 by the test that a suite makes. The margins in pytest_llamaperf/catalog/tasks.yaml come from what this prints, which
benchmarks/accuracy/README.md keeps. Half an hour on two cores for three seeds; NAME picks some rows.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

from planted import BF16, PATIENT, Breaking, Given, changed, copied, int4

from pytest_llamaperf.accuracy.evaluating import Evaluator
from pytest_llamaperf.accuracy.judging import judged
from pytest_llamaperf.accuracy.scores import Scores
from pytest_llamaperf.cases import Layout, Task
from pytest_llamaperf.catalog import recipe_named
from pytest_llamaperf.catalog.tasks import evaluations
from pytest_llamaperf.checkpoints import CheckpointStore
from pytest_llamaperf.checkpoints.calibration import TEXT, Calibration
from pytest_llamaperf.engines import EngineSpec, Surroundings

TASKS = [name for name, found in evaluations().items() if found.offline]
BROKEN: dict[str, tuple[str, Breaking]] = {
    "int4 in blocks of 64": ("bf16", int4(64)),
    "int4 by rows": ("bf16", int4(None)),
    "modelopt-fp8, down_proj of layer 15 x2": (
        "modelopt-fp8",
        changed("layers.15.mlp.down_proj.weight_scale", by=lambda scale: 2 * scale),
    ),
}

# Its name, its recipe and layout, and what makes its folder.
Row = tuple[str, str, str, Callable[[Path], Path]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llamaperf-margins-") as scratch:
        surroundings = Surroundings(PATIENT, Path(scratch) / "logs", lambda text, done, total: None)
        with contextlib.closing(Evaluator(surroundings)) as evaluator:
            reference = scores(evaluator, surroundings, "bf16", "tp1", published("bf16")(Path()))
            print(
                "| recipe | task | BF16 | points | interval | lost | gained |\n|---|---|---|---|---|---|---|",
                flush=True,
            )
            for name, recipe, layout, folder in rows(asked.seeds):
                if asked.names and name not in asked.names:
                    continue
                place = Path(scratch) / "made"
                found = scores(evaluator, surroundings, recipe, layout, folder(place))
                for task in TASKS:
                    told(name, task, found[task], reference[task])
                shutil.rmtree(place, ignore_errors=True)


def rows(seeds: int) -> Iterator[Row]:
    yield "bf16, tp3", "bf16", "tp3", published("bf16")
    for layout in ("tp1", "tp3"):
        yield f"llama-fp8, {layout}", "llama-fp8", layout, published("llama-fp8")
    for recipe in ("modelopt-fp8", "modelopt-fp8-bf16kv"):
        yield recipe, recipe, "tp1", published(recipe)
        for seed in range(seeds):
            yield f"{recipe}, seed {seed}", recipe, "tp1", calibrated(recipe, seed)
    for name, (recipe, breaking) in BROKEN.items():
        yield name, recipe, "tp1", broken(recipe, breaking)


def published(recipe: str) -> Callable[[Path], Path]:
    """The checkpoint that a suite gets."""
    return lambda place: CheckpointStore().get(BF16.model, recipe_named(recipe)).path


def broken(recipe: str, breaking: Breaking) -> Callable[[Path], Path]:
    def made(place: Path) -> Path:
        copied(published(recipe)(place), place, breaking)
        return place

    return made


def calibrated(recipe: str, seed: int) -> Callable[[Path], Path]:
    """On half of the paragraphs, in another order."""

    def made(place: Path) -> Path:
        paragraphs = TEXT.read_text(encoding="utf-8").split("\n\n")
        place.mkdir(parents=True)
        drawn = place / "calibration.txt"
        drawn.write_text("\n\n".join(random.Random(seed).sample(paragraphs, len(paragraphs) // 2)), encoding="utf-8")
        return CheckpointStore(place, calibration=Calibration(drawn)).get(BF16.model, recipe_named(recipe)).path

    return made


def scores(
    evaluator: Evaluator, surroundings: Surroundings, recipe: str, layout: str, folder: Path
) -> dict[str, Scores]:
    case = dataclasses.replace(BF16, recipe=recipe_named(recipe), layout=Layout.parse(layout))
    with contextlib.closing(Given(EngineSpec.of(case), folder, surroundings, 0.0)) as engine:
        return {task: evaluator.scores(dataclasses.replace(case, work=Task(task)), engine) for task in TASKS}


def told(name: str, task: str, candidate: Scores, reference: Scores) -> None:
    found = judged(candidate, reference).comparison
    print(
        f"| {name} | {task} | {found.reference:.2%} | {100 * found.difference:+.2f} "
        f"| {100 * found.low:+.2f} to {100 * found.high:+.2f} | {found.lost} | {found.gained} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
