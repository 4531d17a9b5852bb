"""How far is a checkpoint above chance on the offline tasks?

    python benchmarks/accuracy/above_chance.py CHECKPOINT [--tasks TASK ...] [--threads N] [--clusters]

CHECKPOINT is a folder, such as those in the cache of this package. It is evaluated by lm-eval's own `hf` model in
float32, 16 requests at a time, without network. On a task where a model is near chance a broken quantization does not
show. `--clusters` adds the accuracy of each cluster, worst first: a template that the model does not understand may go,
but not a single document because its result is wrong.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

import torch
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

FOLDER = Path(__file__).parents[2] / "pytest_llamaperf" / "accuracy" / "offline"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tasks", nargs="+", default=["agreement", "facts", "copying", "short_answers"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clusters", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    model = HFLM(pretrained=str(asked.checkpoint), dtype="float32", batch_size=16, device="cpu")
    manager = TaskManager(include_path=FOLDER, include_defaults=False)
    print("task             documents  clusters  chance  accuracy   tokens  documents/s")
    for task in asked.tasks:
        started = time.perf_counter()
        results: Any = simple_evaluate(model, tasks=[f"llamaperf_{task}"], task_manager=manager, bootstrap_iters=0)
        seconds = time.perf_counter() - started
        samples = results["samples"][f"llamaperf_{task}"]
        hits = defaultdict(list)
        for sample in samples:
            hits[sample["doc"]["cluster"]].append(sample["exact_match" if task == "short_answers" else "acc"])
        accuracy = mean(hit for cluster in hits.values() for hit in cluster)
        guessed = mean(1 / len(sample["doc"]["choices"]) if "choices" in sample["doc"] else 0 for sample in samples)
        tokens = sum(requested_tokens(model, sample) for sample in samples)
        print(
            f"{task:<16} {len(samples):>9} {len(hits):>9} {guessed:>7.2f} {accuracy:>9.3f} {tokens:>8} "
            f"{len(samples) / seconds:>12.1f}",
            flush=True,
        )
        if asked.clusters:
            for cluster, found in sorted(hits.items(), key=lambda item: mean(item[1])):
                print(f"    {mean(found):.2f} of {len(found):>2}  {cluster}")


def requested_tokens(model: HFLM, sample: dict[str, Any]) -> int:
    """Of a prompt, or of a context with each of its choices in turn."""
    if "prompt" in sample["doc"]:
        return len(model.tok_encode(sample["doc"]["prompt"]))
    return sum(len(model.tok_encode(f"{sample['doc']['context']} {choice}")) for choice in sample["doc"]["choices"])


if __name__ == "__main__":
    main()
