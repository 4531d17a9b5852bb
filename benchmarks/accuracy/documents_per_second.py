"""How many documents a second: our way through lm-eval beside lm-eval's own `hf` model, on the same checkpoint and tasks.

    python benchmarks/accuracy/documents_per_second.py [--tasks TASK ...] [--batch N ...] [--times N]

SmolLM2-135M-Instruct in BF16 on a CPU, both with all its processors. Ours is lm-eval in one process and the torch engine in
another, which takes as many tokens at once as it was opened for; `hf` gets each batch size, and its best one counts. Loading
and importing are not counted, reading the task is. The two take turns; each number is the median of `--times` turns.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # as the engine has it, or one would wait spinning while the other works

import torch
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from planted import BF16, PATIENT

from pytest_llamaperf.accuracy.evaluating import OFFLINE, Evaluator
from pytest_llamaperf.cases import Task
from pytest_llamaperf.catalog.tasks import evaluation_named
from pytest_llamaperf.checkpoints import CheckpointStore
from pytest_llamaperf.engines import EngineSpec, Surroundings
from pytest_llamaperf.engines.torch import TorchEngine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["agreement", "facts", "short-answers"])
    parser.add_argument("--batch", nargs="+", type=int, default=[8, 64])
    parser.add_argument("--times", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    checkpoint = CheckpointStore().get(BF16.model, BF16.recipe).path
    with tempfile.TemporaryDirectory(prefix="llamaperf-documents-") as scratch, contextlib.ExitStack() as closing:
        surroundings = Surroundings(PATIENT, Path(scratch), lambda text, done, total: None)
        evaluator = closing.enter_context(contextlib.closing(Evaluator(surroundings)))
        engine = closing.enter_context(contextlib.closing(TorchEngine(EngineSpec.of(BF16), surroundings)))
        manager = TaskManager(include_path=str(OFFLINE), include_defaults=False)
        theirs = {
            batch: HFLM(pretrained=str(checkpoint), dtype="bfloat16", batch_size=batch, device="cpu")
            for batch in asked.batch
        }
        evaluator.scores(dataclasses.replace(BF16, work=Task("agreement")), engine)  # starts it, and the canary
        print(f"| task | documents | ours | {' | '.join(f'hf, batch {b}' for b in asked.batch)} | ratio |")
        print("|---|---|---|" + "---|" * len(asked.batch) + "---|")
        for task in asked.tasks:
            case = dataclasses.replace(BF16, work=Task(task))
            ways: list[Callable[[], object]] = [lambda case=case: evaluator.scores(case, engine)]
            ways += [lambda lm=lm, task=task: evaluated(lm, task, manager) for lm in theirs.values()]
            seconds = taken(ways, asked.times)
            count = evaluation_named(task).count
            rates = [count / each for each in seconds]
            told = " | ".join(f"{rate:.1f} /s" for rate in rates)
            print(f"| {task} | {count} | {told} | {rates[0] / max(rates[1:]):.2f}x |", flush=True)


def evaluated(model: HFLM, task: str, manager: TaskManager) -> object:
    return simple_evaluate(
        model=model, tasks=[evaluation_named(task).lm_eval], bootstrap_iters=0, task_manager=manager, verbosity="ERROR"
    )


def taken(ways: list[Callable[[], object]], times: int) -> list[float]:
    """Seconds of each way, the median of so many turns."""
    found: list[list[float]] = [[] for _ in ways]
    for _ in range(times):
        for way, seconds in zip(ways, found, strict=True):
            began = time.perf_counter()
            way()
            seconds.append(time.perf_counter() - began)
    return [statistics.median(seconds) for seconds in found]


if __name__ == "__main__":
    main()
