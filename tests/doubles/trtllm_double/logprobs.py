"""Log-probabilities in the layout of TensorRT-LLM: entry i of prompt_logprobs is about the token at i + 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Logprob:
    """`rank` counts from 1, the most likely token."""

    logprob: float
    rank: int | None = None


def told(logits: torch.Tensor, most: int, tokens: list[int] | None = None) -> list[dict[int, Logprob]]:
    """For each row of logits [N, vocabulary] the `most` likely tokens and, where `tokens` are given, that one too."""
    logprobs = logits.float().log_softmax(-1)
    best = logprobs.topk(most, dim=-1)
    rows: list[dict[int, Logprob]] = []
    for number, (values, indices) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
        row = {
            token: Logprob(value, place + 1) for place, (token, value) in enumerate(zip(indices, values, strict=True))
        }
        if tokens is not None and tokens[number] not in row:
            own = logprobs[number, tokens[number]]
            row[tokens[number]] = Logprob(float(own), 1 + int((logprobs[number] > own).sum()))
        rows.append(row)
    return rows
