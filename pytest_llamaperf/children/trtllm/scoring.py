"""How likely given tokens are: there are two ways to ask, and which one tells the truth depends on the version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class WrongLogprobs(Exception):
    """What came back is not one distribution for each token asked about."""


@dataclass(frozen=True)
class Expected:
    """Of every token after the first: its log-probability (nats), the most likely tokens there, best first, and theirs."""

    logprobs: list[float]
    tokens: list[list[int]]
    token_logprobs: list[list[float]]


def asking(method: str, top: int) -> Mapping[str, Any]:
    """Fields of SamplingParams for each way."""
    return {"prompt_logprobs": top} if method == "prompt_logprobs" else {"return_context_logits": True}


def read(method: str, tokens: Sequence[int], output: Any, top: int) -> Expected:
    """What was expected in the place of every token after the first. Raises WrongLogprobs."""
    return (_of_prompt_logprobs if method == "prompt_logprobs" else _of_context_logits)(tokens, output, top)


def _of_prompt_logprobs(tokens: Sequence[int], output: Any, top: int) -> Expected:
    """Entry i is the distribution that predicts token i+1; the last one predicts what was generated.

    It holds the `top` most likely tokens, and the token that is there if that is none of them.
    """
    entries = output.outputs[0].prompt_logprobs or []
    # Fewer come back where a prefix was found in the cache and not computed again.
    if len(entries) not in (len(tokens) - 1, len(tokens)):
        raise WrongLogprobs(f"{len(entries)} prompt logprobs for {len(tokens)} tokens")
    expected = Expected([], [], [])
    for place, (entry, token) in enumerate(zip(entries, tokens[1:], strict=False)):
        if token not in entry:
            raise WrongLogprobs(f"token {token} at place {place + 1} is not among the prompt logprobs {sorted(entry)}")
        if len(entry) < top:
            raise WrongLogprobs(f"{len(entry)} prompt logprobs at place {place + 1}, asked for {top}")
        best = sorted(entry, key=lambda candidate: -entry[candidate].logprob)[:top]
        expected.logprobs.append(float(entry[token].logprob))
        expected.tokens.append([int(candidate) for candidate in best])
        expected.token_logprobs.append([float(entry[candidate].logprob) for candidate in best])
    return expected


def _of_context_logits(tokens: Sequence[int], output: Any, top: int) -> Expected:
    """Row i is the distribution that predicts token i+1."""
    import torch

    logits = output.context_logits
    if logits is None or logits.shape[0] != len(tokens):
        rows = "none" if logits is None else f"{logits.shape[0]} rows"
        raise WrongLogprobs(f"{rows} of context logits for {len(tokens)} tokens")
    distribution = torch.log_softmax(logits[:-1].float(), dim=-1)
    wanted = torch.tensor(list(tokens[1:]), device=distribution.device)
    logprobs = distribution.gather(1, wanted[:, None])[:, 0]
    best = distribution.topk(top, dim=-1)
    return Expected(logprobs.tolist(), best.indices.tolist(), best.values.tolist())
