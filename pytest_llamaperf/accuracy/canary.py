"""Does an engine answer sanely at all? Looked at before any score counts: what fails here would be a plausible number."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pytest_llamaperf.answers import PROMPTS, TEXTS
from pytest_llamaperf.engines import AnsweringEngine, Scored
from pytest_llamaperf.hosting.failures import EngineFailure, FailureKind
from pytest_llamaperf.hosting.phases import Phase

CONTINUED = 6  # tokens
# Share of greedy tokens that must be the likeliest ones when the same text is scored: kernels for one token and for many
# round differently, so near-ties may fall either way. An answer that is read one place off agrees by chance alone.
LIKELIEST = 0.8
# Nats of difference between a text scored alone and among others: the same rounding, never another text.
ALONE = 0.25
# Nats a token that plain English may cost at most; a network whose answers are read wrongly is near log(vocabulary).
PLAIN = 6.0


def check(engine: AnsweringEngine) -> None:
    """Raises EngineFailure of the kind bad-report that says which answer cannot be."""
    texts = engine.encode(TEXTS)
    together = engine.score([*texts, *texts])
    first, second = together[: len(texts)], together[len(texts) :]
    for number, (one, other) in enumerate(zip(first, second, strict=True)):
        _expect(
            _apart(one, other) <= ALONE, f"text {number} twice in a batch has log-probabilities {_told(one, other)}"
        )
    (alone,) = engine.score(texts[:1])
    _expect(_apart(alone, first[0]) <= ALONE, f"a text has other log-probabilities alone: {_told(alone, first[0])}")
    for number, found in enumerate(first):
        _expect(len(found.logprobs) == len(texts[number]) - 1, f"text {number} is not scored whole")
        mean = -sum(found.logprobs) / len(found.logprobs)
        _expect(math.isfinite(mean) and 0 <= mean <= PLAIN, f"plain English costs {mean:.2f} nats a token")
    _expect_greedy(engine, engine.encode(PROMPTS))


def _expect_greedy(engine: AnsweringEngine, prompts: Sequence[Sequence[int]]) -> None:
    """What it says is what it holds for the likeliest, with other requests and without."""
    answers = engine.generate([*prompts, *prompts], CONTINUED)
    _expect(answers[: len(prompts)] == answers[len(prompts) :], "a prompt given twice is answered in two ways")
    scored = engine.score([[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=False)])
    pairs = [
        (token, likeliest)
        for answer, found in zip(answers, scored, strict=False)
        for token, likeliest in zip(answer, found.likely[-CONTINUED:], strict=True)
    ]
    share = sum(token == likeliest for token, likeliest in pairs) / len(pairs)
    _expect(
        share >= LIKELIEST, f"of the tokens it chose, it holds only {share:.0%} for the likeliest when it scores them"
    )


def _apart(one: Scored, other: Scored) -> float:
    return max(abs(a - b) for a, b in zip(one.logprobs, other.logprobs, strict=True))


def _told(one: Scored, other: Scored) -> str:
    return f"of {sum(one.logprobs):.2f} and {sum(other.logprobs):.2f} nats, {_apart(one, other):.2f} apart at one token"


def _expect(sound: bool, problem: str) -> None:
    if not sound:
        raise EngineFailure(FailureKind.BAD_REPORT, Phase.RUN, f"the engine's answers cannot be trusted: {problem}")
