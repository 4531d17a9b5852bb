"""What an engine answers to fixed questions, so that engines can be compared by what they say and not only by speed.

Greedy continuations of PROMPTS, in one batch, once more, and some of them alone; and how likely every token of TEXTS
is. A network of random weights has no tokenizer and gets questions drawn from its vocabulary. And, of its own, one prompt
asked many times at once.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pytest_llamaperf.cases import Case, Model
from pytest_llamaperf.engines import AnsweringEngine, Engine, Scored
from pytest_llamaperf.errors import Unsupported, UsageError
from pytest_llamaperf.wording import counted

# Names of the tasks of cases that are asked instead of measured.
ANSWERS = "answers"
REPEATS = "repeats"

PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "Once upon a time, in a village by the sea, there lived",
    "To make a cup of tea, first",
    "The opposite of hot is cold, and the opposite of dark is",
    "Monday, Tuesday, Wednesday, Thursday,",
    "def add(a, b):\n    return",
    "Dear Sir or Madam, I am writing to",
)
TEXTS = (
    (
        "The sun rises in the east and sets in the west. In winter the days are short, and people light lamps early. "
        "By March the evenings are long enough again to sit outside after work."
    ),
    (
        "A train leaves the station at nine and travels at eighty kilometres an hour. After two hours it has gone one "
        "hundred and sixty kilometres, and it stops for ten minutes before it goes on."
    ),
    (
        "She put the letter back into its envelope and looked out of the window. Nobody had come up the path since "
        "the morning, and the dog had given up waiting by the gate."
    ),
    (
        "Bread needs flour, water, salt and yeast. Mix them, let the dough rest until it has doubled, shape it, and "
        "bake it in a hot oven until the crust is brown and sounds hollow when you knock on it."
    ),
)
TOKENS = 8  # of each continuation
ALONE = 2  # prompts that are also continued by themselves
TIMES = 200  # that one prompt is asked
# Relative, on embeddings: a quarter of a rounding step of BF16. What the spread of a chaotic format is measured with.
NOISE = 2**-10


@dataclass(frozen=True)
class Answers:
    """Of one engine. Continuations as token ids, one for each prompt; `noisy` is `scored` under a little noise.

    Either is an Unsupported where the engine cannot be asked that, and what needs it raises it.
    """

    case: Case
    together: tuple[tuple[int, ...], ...]
    again: tuple[tuple[int, ...], ...]
    alone: tuple[tuple[int, ...], ...]
    scored: tuple[Scored, ...] | Unsupported
    noisy: tuple[Scored, ...] | Unsupported

    def agreement(self, other: Answers) -> Agreement:
        """How far two engines agree in what they say."""
        return Agreement(
            tokens=_share(_flat(self.together), _flat(other.together)),
            likely=_share(_likely(self.scored), _likely(other.scored)),
            logprob=_distance(_given(self.scored), _given(other.scored)),
        )

    def sensitivity(self) -> Agreement:
        """How far the engine agrees with itself when its input is disturbed by NOISE."""
        return Agreement(
            tokens=1.0,
            likely=_share(_likely(self.scored), _likely(self.noisy)),
            logprob=_distance(_given(self.scored), _given(self.noisy)),
        )


@dataclass(frozen=True)
class Repeats:
    """Of one engine, to one prompt asked TIMES times at once.

    answers each as text, and how often it came, the commonest first
    apart   nats by which the token where another answer leaves the commonest is less likely than the token there, at
            most: near 0 rounding decided, as it may where a request meets other batches; else something is wrong
    """

    case: Case
    answers: tuple[tuple[str, int], ...]
    apart: float

    def __str__(self) -> str:
        often = ", ".join(f"{count} times {answer!r}" for answer, count in self.answers)
        return f"{counted(len(self.answers), 'answer')} to one prompt, {self.apart:.2f} nats apart: {often}"


@dataclass(frozen=True)
class Agreement:
    """tokens    share of tokens of greedy continuations that are the same at the same place
    likely    share of places in given texts at which the same token is the most likely
    logprob   mean absolute difference of the log-probabilities of the texts' tokens, nats
    """

    tokens: float
    likely: float
    logprob: float

    def __str__(self) -> str:
        return (
            f"{self.tokens * 100:.1f} % of generated tokens and {self.likely * 100:.1f} % of most likely tokens "
            f"agree, log-probabilities differ by {self.logprob:.2g} nats"
        )


def answers_of(case: Case, engine: Engine) -> Answers:
    """Raises Unsupported for an engine that cannot be asked."""
    engine = answering(case, engine)
    prompts, texts = _questions(case.model, engine)
    return Answers(
        case,
        together=_tuples(engine.generate(prompts, TOKENS)),
        again=_tuples(engine.generate(prompts, TOKENS)),
        alone=_tuples(engine.generate(prompts[:ALONE], TOKENS, concurrency=1)),
        scored=_scored(engine, texts, noise=0.0),
        noisy=_scored(engine, texts, noise=NOISE),
    )


def repeats_of(case: Case, engine: Engine) -> Repeats:
    """Raises Unsupported for an engine that cannot be asked, or that gave several answers and cannot weigh them."""
    engine = answering(case, engine)
    prompts, _ = _questions(case.model, engine)
    prompt = prompts[0]
    counts = Counter(_tuples(engine.generate([prompt] * TIMES, TOKENS))).most_common()
    common, *others = (answer for answer, _ in counts)
    apart = 0.0
    if others:
        scored = engine.score([[*prompt, *answer] for answer in (common, *others)], tails=[TOKENS] * len(counts))
        places = [next(n for n in range(TOKENS) if common[n] != other[n]) for other in others]
        apart = max(
            abs(scored[0].logprobs[place] - one.logprobs[place]) for place, one in zip(places, scored[1:], strict=True)
        )
    shown = [str(answer) for answer, _ in counts]
    if not case.model.random:
        shown = engine.decode([answer for answer, _ in counts])
    return Repeats(case, tuple((text, count) for text, (_, count) in zip(shown, counts, strict=True)), apart)


def answering(case: Case, engine: Engine) -> AnsweringEngine:
    """The engine, as one that can be asked. Raises Unsupported for one that cannot."""
    if not isinstance(engine, AnsweringEngine):
        raise Unsupported(f"{case}: {case.engine} runs workloads and cannot be asked for answers")
    return engine


def _scored(
    engine: AnsweringEngine, texts: Sequence[Sequence[int]], *, noise: float
) -> tuple[Scored, ...] | Unsupported:
    """What an engine cannot say need not keep it from saying the rest."""
    try:
        return tuple(engine.score(texts, noise=noise))
    except Unsupported as problem:
        return problem


def _given(scored: tuple[Scored, ...] | Unsupported) -> tuple[Scored, ...]:
    if isinstance(scored, Unsupported):
        raise scored
    return scored


def _likely(scored: tuple[Scored, ...] | Unsupported) -> list[int]:
    return _flat(each.likely for each in _given(scored))


def _questions(model: Model, engine: AnsweringEngine) -> tuple[list[list[int]], list[list[int]]]:
    if not model.random:
        return engine.encode(PROMPTS), engine.encode(TEXTS)
    source = random.Random(0)

    def drawn(length: int) -> list[int]:
        return [source.randrange(model.vocabulary) for _ in range(length)]

    return [drawn(5 + 3 * number) for number in range(len(PROMPTS))], [drawn(48) for _ in TEXTS]


def _tuples(sequences: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(sequence) for sequence in sequences)


def _flat(sequences: Iterable[Sequence[int]]) -> list[int]:
    return [token for sequence in sequences for token in sequence]


def _share(ours: Sequence[int], theirs: Sequence[int]) -> float:
    """Of places at which two sequences of one length are equal. Raises UsageError for others."""
    if len(ours) != len(theirs) or not ours:
        raise UsageError(f"answers of {len(ours)} and {len(theirs)} tokens cannot be compared")
    return sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours)


def _distance(ours: Sequence[Scored], theirs: Sequence[Scored]) -> float:
    pairs = [
        (a, b) for one, other in zip(ours, theirs, strict=True)
        for a, b in zip(one.logprobs, other.logprobs, strict=True)
    ]  # fmt: skip
    return sum(abs(a - b) for a, b in pairs) / len(pairs)
