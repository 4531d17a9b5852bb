"""Tiny Llamas on disk, what transformers says of them, and a process that serves them with the reference engine.

Its ranks are forked, which a process full of tests and threads had better not do: `served` starts one that does nothing
else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

REPOSITORY = Path(__file__).parents[1]
BF16 = {"attention": "bf16", "feed_forward": "bf16", "kv_cache": "bf16", "bf16_layers": 0}
FP32 = {"attention": "fp32", "feed_forward": "fp32", "kv_cache": "fp32", "bf16_layers": 0}
# Stretches everything from the third frequency of eight on, so that even a few tokens notice.
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
# Seven prompts of very different lengths. What they are does not matter, that two of them share no prefix does.
PROMPTS = [[(31 * number + 7 * i * i + 11 * i + 5) % 500 for i in range(length)] for number, length in
           enumerate((1, 3, 9, 20, 2, 14, 5))]  # fmt: skip

# Answers jobs one after the other, each with ranks of its own: [[["load", {...}], ["score", {...}], ...], ...].
# A job ends with its first failure, and its ranks are closed in any case.
SERVER = """
import faulthandler, json, sys
from pytest_llamaperf.children import torch_llama

faulthandler.dump_traceback_later(100, exit=True)
answers = []
for job in json.load(sys.stdin):
    driver = torch_llama.open_driver(lambda text, done=0, total=None: None)
    got = []
    for command, arguments in job:
        try:
            got.append({"result": driver.handle(command, arguments)})
        except Exception as problem:
            got.append({"failed": [type(problem).__name__, str(problem), *getattr(problem, "__notes__", [])]})
            break
    driver.close()
    answers.append(got)
json.dump(answers, sys.stdout)
"""

Command = tuple[str, Mapping[str, Any]]


def llama(
    folder: Path,
    *,
    rope: Mapping[str, Any] = DEFAULT_ROPE,
    tied: bool = False,
    layers: int = 4,
    hidden: int = 64,
    heads: int = 8,
    kv_heads: int = 4,
    feed_forward: int = 160,
    vocabulary: int = 512,
    seed: int = 0,
    shard: str = "1GB",
) -> Path:
    """A checkpoint as transformers writes it, in BF16.

    Weights are so large that attention is far from even and some next token clearly the most likely; norms differ from
    one another, which those of a new network do not.
    """
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=feed_forward, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=256, rms_norm_eps=1e-5,
        tie_word_embeddings=tied, rope_parameters=dict(rope), eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    network = LlamaForCausalLM(config)
    source = torch.Generator().manual_seed(seed)
    for name, weight in network.named_parameters():
        if "norm" in name:
            weight.data.uniform_(0.5, 1.5, generator=source)
        else:
            size = 1.0 if "embed" in name and not tied else 1.5 / weight.shape[1] ** 0.5
            weight.data.normal_(0.0, size, generator=source)
    network.to(torch.bfloat16).save_pretrained(folder, max_shard_size=shard)
    return folder


def reference(folder: Path) -> Any:
    """The checkpoint as transformers computes it, in FP32."""
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@torch.no_grad()
def expected_scores(network: Any, tokens: Sequence[int]) -> tuple[list[float], list[int]]:
    """(log-probability of every token after the first, the most likely one there)."""
    if len(tokens) == 1:
        return [], []
    scores = network(torch.tensor([list(tokens)]), use_cache=False).logits[0, :-1].float()
    wanted = torch.tensor(list(tokens[1:]))[:, None]
    return scores.log_softmax(-1).gather(-1, wanted)[:, 0].tolist(), scores.argmax(-1).tolist()


@torch.no_grad()
def expected_tokens(network: Any, prompt: Sequence[int], count: int) -> list[int]:
    """The most likely tokens after a prompt, as transformers generates them.

    Asserts that none is a near tie, in which rounding would decide: a thousandth between the best two scores, where
    rounding makes a difference of a hundred thousandth at most.
    """
    found = network.generate(
        torch.tensor([list(prompt)]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
        max_new_tokens=count, pad_token_id=0, output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    best = torch.cat(found.scores).topk(2).values
    assert (best[:, 0] - best[:, 1]).min() > 1e-3
    return found.sequences[0, len(prompt) :].tolist()


def settings(checkpoint: Path | None, layout: str = "tp1", **changes: Any) -> dict[str, Any]:
    """What an engine is loaded with: few slots and little room for prompts, so that much has to wait."""
    sizes = {part[:2]: int(part[2:]) for part in layout.split("-")}
    return {
        "checkpoint": None if checkpoint is None else str(checkpoint), "config": {}, "recipe": FP32,
        "tp": sizes.get("tp", 1), "pp": sizes.get("pp", 1), "slots": 2, "positions": 64, "most_prompt_tokens": 24,
        "device": "cpu", "threads": 1, **changes,
    }  # fmt: skip


def served(jobs: Sequence[Sequence[Command]], before: str = "") -> list[list[dict[str, Any]]]:
    """For each job what came of its commands: {"result": ...}, or at last {"failed": [type, message, *notes]}.

    `before` is a program that is run first.
    """
    return json.loads(scripted(before + SERVER, json.dumps(jobs)))


def scripted(program: str, text: str = "", *arguments: str) -> str:
    """What a Python program prints that is given `text`; it must end well."""
    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        input=text, capture_output=True, text=True, cwd=REPOSITORY, timeout=120, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def logprobs_of(scores: Mapping[str, Any]) -> torch.Tensor:
    """Of all sequences one after the other."""
    return torch.cat([torch.tensor(logprobs) for logprobs in scores["logprobs"]])


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x @ weight.T summed in FP64: nothing to round."""
    return F.linear(x.double(), weight.double())
