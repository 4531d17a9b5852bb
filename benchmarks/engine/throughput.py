"""How fast is the reference engine beside what transformers offers for the same requests?

    python benchmarks/engine/throughput.py [--rounds N] [--requests N] [--isl N] [--osl N] [--slots N]

Three ways to answer the same requests with the same BF16 weights, one CPU thread each, in turns, a round of each:
our engine (in its child process, as the suites run it), `generate` and `generate_batch` (transformers' continuous
batching), which both are given as many requests at a time as there are slots. Prints tokens per second and the
ratios, pair by pair.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pytest_llamaperf.catalog import model_named, recipe_named
from pytest_llamaperf.checkpoints import CheckpointStore
from pytest_llamaperf.hosting.host import Host
from pytest_llamaperf.hosting.phases import Phase

NUMBERS = {"attention": "bf16", "feed_forward": "bf16", "kv_cache": "bf16", "bf16_layers": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 9), ("requests", 16), ("isl", 32), ("osl", 64), ("slots", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    checkpoint = CheckpointStore().get(model_named("smollm2-135m"), recipe_named("bf16")).path
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "engine.log"
        with Host("torch_llama", log=log) as host:
            ways = {"engine": engine(host, checkpoint, asked), **transformers_ways(checkpoint, asked)}
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for way in ways.values():
                way()  # warms up
            for _ in range(asked.rounds):
                for name, way in ways.items():
                    seconds[name].append(way())
    tokens = asked.requests * asked.osl
    print(f"{asked.requests} requests, ISL {asked.isl}, OSL {asked.osl}, {asked.slots} slots, {asked.rounds} rounds")
    for name, found in seconds.items():
        speeds = sorted(tokens / value for value in found)
        ratios = sorted(value / own for value, own in zip(found, seconds["engine"], strict=True))
        print(
            f"{name:>15}  {statistics.median(speeds):7.1f} tok/s ({speeds[0]:.1f} to {speeds[-1]:.1f})"
            f"   engine is {statistics.median(ratios):.2f}x as fast ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


def engine(host: Host, checkpoint: Path, asked: argparse.Namespace) -> Callable[[], float]:
    settings = {
        "checkpoint": str(checkpoint), "config": {}, "recipe": NUMBERS, "tp": 1, "pp": 1, "slots": asked.slots,
        "positions": asked.isl + asked.osl, "most_prompt_tokens": 8192, "device": "cpu", "threads": 1,
    }  # fmt: skip
    host.call("load", settings, Phase.LOAD)

    def run() -> float:
        lengths = [[asked.isl, asked.osl]] * asked.requests
        traces = host.call("run", {"lengths": lengths, "concurrency": None}, Phase.RUN)["traces"]
        return float(max(trace[2] for trace in traces) - min(trace[0] for trace in traces))

    return run


def transformers_ways(checkpoint: Path, asked: argparse.Namespace) -> dict[str, Callable[[], float]]:
    import random

    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    torch.set_num_threads(1)
    # One each: continuous batching changes how attention is computed.
    model, paged = (AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).eval() for _ in range(2))
    source = random.Random(0)
    prompts = [[source.randrange(model.config.vocab_size) for _ in range(asked.isl)] for _ in range(asked.requests)]
    exactly = {"max_new_tokens": asked.osl, "min_new_tokens": asked.osl, "do_sample": False, "pad_token_id": 0}

    def generate() -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            for start in range(0, asked.requests, asked.slots):
                batch = torch.tensor(prompts[start : start + asked.slots])
                found = model.generate(batch, attention_mask=torch.ones_like(batch), **exactly)
                assert found.shape[1] == asked.isl + asked.osl
        return time.perf_counter() - started

    def generate_batch() -> float:
        config = GenerationConfig(max_new_tokens=asked.osl, do_sample=False, eos_token_id=-1, pad_token_id=0)
        started = time.perf_counter()
        with torch.no_grad():  # its thread updates what inference mode would freeze
            for start in range(0, asked.requests, asked.slots):
                batch = prompts[start : start + asked.slots]
                # Kept from call to call: its half minute of setting up is no part of what is compared.
                found = paged.generate_batch(batch, config, progress_bar=False, persistent_manager=True)
                assert [len(output.generated_tokens) for output in found.values()] == [asked.osl] * len(batch)
        return time.perf_counter() - started

    return {"generate": generate, "generate_batch": generate_batch}


if __name__ == "__main__":
    main()
