"""How likely given tokens are: there are two ways to ask, and which one tells the truth depends on the version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class WrongLogprobs(Exception):
    """What came back is not one distribution for each token asked about."""


# Fields of SamplingParams for each way.
ASKING: Mapping[str, Mapping[str, Any]] = {
    "prompt_logprobs": {"prompt_logprobs": 1},
    "context_logits": {"return_context_logits": True},
}


def read(method: str, tokens: Sequence[int], output: Any) -> tuple[list[float], list[int]]:
    """Of every token after the first: its log-probability (nats), and the token most likely there.

    Raises WrongLogprobs.
    """
    return (_of_prompt_logprobs if method == "prompt_logprobs" else _of_context_logits)(tokens, output)


def _of_prompt_logprobs(tokens: Sequence[int], output: Any) -> tuple[list[float], list[int]]:
    """Entry i is the distribution that predicts token i+1; the last one predicts what was generated."""
    entries = output.outputs[0].prompt_logprobs or []
    # Fewer come back where a prefix was found in the cache and not computed again.
    if len(entries) not in (len(tokens) - 1, len(tokens)):
        raise WrongLogprobs(f"{len(entries)} prompt logprobs for {len(tokens)} tokens")
    logprobs, likely = [], []
    for place, (entry, token) in enumerate(zip(entries, tokens[1:], strict=False)):
        if token not in entry:
            raise WrongLogprobs(f"token {token} at place {place + 1} is not among the prompt logprobs {sorted(entry)}")
        logprobs.append(float(entry[token].logprob))
        likely.append(int(max(entry, key=lambda candidate: entry[candidate].logprob)))
    return logprobs, likely


def _of_context_logits(tokens: Sequence[int], output: Any) -> tuple[list[float], list[int]]:
    """Row i is the distribution that predicts token i+1."""
    import torch

    logits = output.context_logits
    if logits is None or logits.shape[0] != len(tokens):
        rows = "none" if logits is None else f"{logits.shape[0]} rows"
        raise WrongLogprobs(f"{rows} of context logits for {len(tokens)} tokens")
    distribution = torch.log_softmax(logits[:-1].float(), dim=-1)
    wanted = torch.tensor(list(tokens[1:]), device=distribution.device)
    logprobs = distribution.gather(1, wanted[:, None])[:, 0]
    return logprobs.tolist(), distribution.argmax(dim=-1).tolist()
