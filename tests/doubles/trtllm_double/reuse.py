"""KV block reuse: how much of a prompt is found in the cache already.

The double computes the whole prompt again, so reuse costs what it saves; but as in TensorRT-LLM, nothing is known of
the logits of what was reused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

KEPT = 256  # prompts


class Prefixes:
    """Prompts that were computed. `block` is how many tokens come together; partial blocks are reused too, or not."""

    def __init__(self, block: int, partial: bool) -> None:
        self._block, self._partial = block, partial
        self._seen: deque[tuple[int, ...]] = deque(maxlen=KEPT)

    def reused(self, prompt: Sequence[int]) -> int:
        """How many of its first tokens need not be computed; the last one always is."""
        longest = max((_common(prompt, earlier) for earlier in self._seen), default=0)
        longest = min(longest, len(prompt) - 1)
        return longest if self._partial else longest // self._block * self._block

    def add(self, prompt: Sequence[int]) -> None:
        self._seen.append(tuple(prompt))


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    differing = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differing, min(len(one), len(other)))
