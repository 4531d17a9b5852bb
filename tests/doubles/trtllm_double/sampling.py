"""SamplingParams, and when a request has said enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .tokens import Tokenizer

NEVER = -1  # an end_id that no token has


@dataclass(kw_only=True)
class SamplingParams:
    """Raises TypeError for what it does not know, as a dataclass does."""

    end_id: int | None = None
    pad_id: int | None = None
    max_tokens: int | None = 32
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    n: int = 1
    best_of: int | None = None
    use_beam_search: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    ignore_eos: bool = False
    detokenize: bool = True
    add_special_tokens: bool = True
    skip_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    return_context_logits: bool = False
    return_generation_logits: bool = False
    return_perf_metrics: bool = False

    def check(self) -> None:
        """Raise NotImplementedError for what the double cannot do: it chooses the most likely token, always."""
        greedy = self.temperature in (None, 0) and self.top_p in (None, 0, 1) and self.top_k in (None, 0)
        if not (greedy or self.top_k == 1):
            raise NotImplementedError("this double of TensorRT-LLM samples greedily only")
        if self.n != 1 or self.best_of not in (None, 1) or self.use_beam_search or self.return_generation_logits:
            raise NotImplementedError("this double of TensorRT-LLM knows neither n, beams nor generation logits")


@dataclass(frozen=True)
class Ending:
    """`end_id` ends a request and stays in its tokens; `stops` (reason, tokens) end it and are taken off unless kept."""

    end_id: int
    least: int
    most: int
    stops: tuple[tuple[str | int, tuple[int, ...]], ...]
    keep_stops: bool

    def banned(self, said: int) -> int | None:
        """A token that may not come next, after `said` tokens."""
        return self.end_id if said < self.least and self.end_id != NEVER else None

    def of(self, tokens: Sequence[int]) -> tuple[str, str | int | None] | None:
        """(finish_reason, stop_reason), or None to go on."""
        if tokens[-1] == self.end_id:
            return "stop", None
        for reason, stop in self.stops:
            if tuple(tokens[-len(stop) :]) == stop:
                return "stop", reason
        return ("length", None) if len(tokens) >= self.most else None

    def stop_length(self, reason: Any) -> int:
        """How many tokens at the end are the stop that ended a request, and are not shown."""
        return 0 if self.keep_stops else next((len(stop) for told, stop in self.stops if told == reason), 0)


def ending(params: SamplingParams, tokenizer: Tokenizer | None, more_ends: Sequence[int], room: int) -> Ending:
    """When a request ends. `more_ends` are what generation_config.json adds; `room` is what max_seq_len leaves.

    As in TensorRT-LLM, a request that asks for more than there is room for gets less, and no error. Raises ValueError
    where nobody says which token ends a text.
    """
    end, extra = params.end_id, list(params.stop_token_ids or [])
    if end is None:
        if tokenizer is None:
            raise ValueError(
                "tokenizer is required to reset end_id if it is None, or you can explicitly specify the end_id for "
                "sampling_params"
            )
        end = NEVER if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        extra += [token for token in more_ends if token != end and not params.ignore_eos]
    texts = [params.stop] if isinstance(params.stop, str) else params.stop or []
    if texts and tokenizer is None:
        raise ValueError("tokenizer is required to tokenize stop words")
    stops: list[tuple[str | int, tuple[int, ...]]] = [(token, (token,)) for token in extra]
    stops += [(text, tuple(tokenizer.encode(text, add_special_tokens=False))) for text in texts if tokenizer]
    return Ending(
        end_id=NEVER if params.ignore_eos else end,
        least=params.min_tokens or 0,
        most=room if params.max_tokens is None else min(params.max_tokens, room),
        stops=tuple(stops),
        keep_stops=params.include_stop_str_in_output,
    )
