"""The model as lm-eval sees it: texts become tokens, tokens become questions, and replies become what lm-eval wants."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tokenizers import Tokenizer

Ask = Callable[[dict[str, Any]], Any]


class TooLong(Exception):
    """A document is longer than the engine holds; cutting it would score another document."""


class Correspondent(TemplateLM):  # type: ignore[misc]  # lm-eval is not typed
    """`longest` is prompt and answer together, in tokens; `end` is the token that ends a text, which also begins one.

    `lengths` are those of the answers that were generated, in tokens, by task and number of the document. The token that
    ends a text is not counted.
    """

    def __init__(self, ask: Ask, tokenizer: Path, *, longest: int, end: int) -> None:
        super().__init__()
        self._ask, self._longest, self._end = ask, longest, end
        self._tokens = Tokenizer.from_file(str(tokenizer))
        self._instances: Sequence[Instance] = ()
        self.lengths: dict[tuple[str, int], int] = {}

    @property
    def eot_token_id(self) -> int:
        return self._end

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Without special tokens: those that a prompt needs stand in its text."""
        return list(self._tokens.encode(string, add_special_tokens=False).ids)

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self._instances = requests
        return list(super().loglikelihood(requests, disable_tqdm=True))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """(log-probability of the continuation in nats, whether it is the likeliest) of each (text, context, continuation)."""
        sequences, tails = [], []
        for number, (_, context, continuation) in enumerate(requests):
            self._check(number, len(context) + len(continuation))
            sequences.append(context + continuation)
            tails.append(len(continuation))
        replies = self._ask({"score": {"sequences": sequences, "tails": tails}})
        return [(float(value), bool(greedy)) for value, greedy in replies]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, in windows that each begin where the one before ended."""
        windows: list[tuple[None, list[int], list[int]]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            pieces = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self._longest - 1, 1
            )
            for context, continuation in map(make_disjoint_window, pieces):
                windows.append((None, list(context), list(continuation)))
                owners.append(number)
        self._instances = [requests[owner] for owner in owners]
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += value
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy texts up to the end of text, one of `until`, or max_gen_toks tokens."""
        self._instances = requests
        texts = [""] * len(requests)
        alike: dict[tuple[int, tuple[str, ...]], list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            wanted = request.args[1]
            if wanted.get("do_sample") or float(wanted.get("temperature") or 0.0) > 0.0:
                raise ValueError(f"{request.task_name} draws its answers; only greedy ones can be compared")
            alike[int(wanted.get("max_gen_toks", 256)), _marks(wanted)].append(number)
        for (tokens, marks), numbers in sorted(alike.items()):
            prompts = [self.tok_encode(requests[number].args[0]) for number in numbers]
            for number, prompt in zip(numbers, prompts, strict=True):
                self._check(number, len(prompt) + tokens)
            until = {"token": self._end, "texts": marks}
            replies = self._ask({"generate": {"prompts": prompts, "tokens": tokens, "until": until}})
            for number, ids in zip(numbers, replies, strict=True):
                request = requests[number]
                texts[number], length = self._answer(ids, marks)
                self.lengths[request.task_name, request.doc_id] = length
        return texts

    def _answer(self, ids: list[int], marks: Sequence[str]) -> tuple[str, int]:
        """The text up to where it ends or a mark stands, and how many tokens it takes."""
        kept = ids[: ids.index(self._end)] if self._end in ids else ids
        whole: str = self._tokens.decode(kept, skip_special_tokens=True)
        text = whole
        for mark in marks:
            text = text.split(mark)[0]
        return text, len(kept) if text == whole else len(self.tok_encode(text))

    def _check(self, number: int, tokens: int) -> None:
        if tokens > self._longest:
            about = self._instances[number]
            raise TooLong(
                f"document {about.doc_id} of {about.task_name} takes {tokens:,} tokens, and the engine holds "
                f"{self._longest:,}; nothing is cut"
            )


def _marks(wanted: Mapping[str, Any]) -> tuple[str, ...]:
    """Texts before which an answer ends, as lm-eval has them in `until`: one, several or none."""
    until = wanted.get("until") or ()
    return tuple(mark for mark in ([until] if isinstance(until, str) else until) if mark)
