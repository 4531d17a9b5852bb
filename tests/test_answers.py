"""What engines say: which questions they get, and how far two of them agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

# pytester forgets what a session it runs imports first, and numpy refuses to be loaded twice.
import pytest
import scipy.special  # noqa: F401
from engine_sessions import fake_engine
from hypothesis import given
from hypothesis import strategies as st

from pytest_llamaperf.answers import (
    ALONE,
    NOISE,
    PROMPTS,
    TEXTS,
    TIMES,
    TOKENS,
    Agreement,
    Answers,
    answers_of,
    repeats_of,
)
from pytest_llamaperf.cases import Task, Workload
from pytest_llamaperf.catalog import case_of_key, model_named
from pytest_llamaperf.engines import Run, Scored
from pytest_llamaperf.errors import Unsupported, UsageError
from pytest_llamaperf.measurements import Source

pytest_plugins = ["pytester"]

CASE = dataclasses.replace(case_of_key("cpu", "torch/smollm2-135m/bf16/tp1/min-latency-16-8"), work=Task("answers"))
RANDOM = dataclasses.replace(CASE, model=model_named("smollm2-135m@random@layers=2"))

Tokens = tuple[tuple[int, ...], ...]


def answers(
    together: Tokens = ((1, 2), (3, 4)),
    scored: Sequence[tuple[Sequence[float], Sequence[int]]] = (((-1.0, -2.0), (7, 8)),),
    noisy: Sequence[tuple[Sequence[float], Sequence[int]]] | None = None,
) -> Answers:
    judged, disturbed = (
        tuple(Scored(tuple(logprobs), tuple(likely)) for logprobs, likely in given)
        for given in (scored, scored if noisy is None else noisy)
    )
    return Answers(CASE, together, together, together[:1], judged, disturbed)


class Listener:
    """An engine that writes down what it is asked."""

    source = Source.MEASURED

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[list[int]], object]] = []
        self.encoded: list[str] = []

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        self.encoded += texts
        return [list(text.encode()) for text in texts]

    def decode(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        return [bytes(sequence).decode() for sequence in sequences]

    def generate(
        self, prompts: Sequence[Sequence[int]], tokens: int, *, until=None, concurrency: int | None = None
    ) -> list[list[int]]:
        self.asked.append(("generate", [list(prompt) for prompt in prompts], concurrency))
        return [[len(prompt)] * tokens for prompt in prompts]

    def score(self, sequences: Sequence[Sequence[int]], *, noise: float = 0.0) -> list[Scored]:
        self.asked.append(("score", [list(sequence) for sequence in sequences], noise))
        return [Scored((-1.0 - noise,) * (len(s) - 1), (1,) * (len(s) - 1)) for s in sequences]

    def run(self, workload: Workload) -> Run:
        raise NotImplementedError

    def close(self) -> None: ...


# --- agreement -------------------------------------------------------------------------------------------------------


def test_equal_answers_agree_in_everything() -> None:
    assert answers().agreement(answers()) == Agreement(tokens=1.0, likely=1.0, logprob=0.0)


def test_generated_tokens_agree_by_place() -> None:
    """A continuation that differs once and goes on alike is not counted as lost from there on."""
    ours = answers(together=((1, 2, 3), (4, 5, 6)))
    theirs = answers(together=((1, 9, 3), (5, 4, 6)))

    assert ours.agreement(theirs).tokens == pytest.approx(3 / 6)


def test_most_likely_tokens_agree_over_all_texts_together() -> None:
    ours = answers(scored=[((-1.0,), (7,)), ((-1.0, -1.0, -1.0), (1, 2, 3))])
    theirs = answers(scored=[((-1.0,), (8,)), ((-1.0, -1.0, -1.0), (1, 2, 3))])

    assert ours.agreement(theirs).likely == pytest.approx(3 / 4)


def test_log_probabilities_differ_by_the_mean_of_absolute_differences_over_all_tokens() -> None:
    ours = answers(scored=[((-1.0,), (7,)), ((-1.0, -2.0, -3.0), (1, 2, 3))])
    theirs = answers(scored=[((-1.5,), (7,)), ((-1.0, -1.5, -4.0), (1, 2, 3))])

    assert ours.agreement(theirs).logprob == pytest.approx((0.5 + 0.0 + 0.5 + 1.0) / 4)


def test_sensitivity_compares_with_the_same_under_noise() -> None:
    found = answers(scored=[((-1.0, -2.0), (7, 8))], noisy=[((-1.25, -2.25), (7, 9))]).sensitivity()

    assert found == Agreement(tokens=1.0, likely=0.5, logprob=0.25)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20).flatmap(
    lambda one: st.tuples(st.just(one), st.lists(st.integers(0, 3), min_size=len(one), max_size=len(one)))
))  # fmt: skip
def test_agreement_is_the_same_from_either_side(pair: tuple[list[int], list[int]]) -> None:
    ours, theirs = (
        answers(together=(tuple(tokens),), scored=[([-float(t) for t in tokens], tokens)]) for tokens in pair
    )

    found = ours.agreement(theirs)

    assert found == theirs.agreement(ours)
    assert 0.0 <= found.tokens == found.likely <= 1.0


@pytest.mark.parametrize(
    "other",
    [answers(together=((1, 2), (3,))), answers(scored=[((-1.0,), (7,))]), answers(together=((), ()))],
)
def test_answers_of_other_lengths_cannot_be_compared(other: Answers) -> None:
    with pytest.raises(UsageError, match=r"answers of \d and \d tokens cannot be compared"):
        answers().agreement(other)


def test_nothing_agrees_with_nothing() -> None:
    nothing = answers(together=((), ()))

    with pytest.raises(UsageError, match="answers of 0 and 0 tokens cannot be compared"):
        nothing.agreement(nothing)


def test_agreement_is_told_in_percent_and_nats() -> None:
    assert str(Agreement(tokens=0.984375, likely=0.95, logprob=0.0321)) == (
        "98.4 % of generated tokens and 95.0 % of most likely tokens agree, log-probabilities differ by 0.032 nats"
    )


# --- questions -------------------------------------------------------------------------------------------------------


def test_an_engine_gets_the_fixed_texts_twice_in_a_batch_and_some_alone_and_scores_with_and_without_noise() -> None:
    engine = Listener()

    found = answers_of(CASE, engine)

    prompts, texts = ([list(text.encode()) for text in given] for given in (PROMPTS, TEXTS))
    assert engine.encoded == [*PROMPTS, *TEXTS]
    assert engine.asked == [
        ("generate", prompts, None), ("generate", prompts, None), ("generate", prompts[:ALONE], 1),
        ("score", texts, 0.0), ("score", texts, NOISE),
    ]  # fmt: skip
    assert found.together == found.again == tuple((len(prompt),) * TOKENS for prompt in prompts)
    assert found.alone == found.together[:ALONE]
    assert [len(scored.likely) for scored in found.scored] == [len(text) - 1 for text in texts]
    assert found.sensitivity().logprob == pytest.approx(NOISE)


def test_a_network_of_random_weights_gets_questions_drawn_from_its_vocabulary_without_a_tokenizer() -> None:
    first, second = Listener(), Listener()

    answers_of(RANDOM, first)
    answers_of(RANDOM, second)

    assert first.encoded == []
    assert first.asked == second.asked
    prompts, texts = first.asked[0][1], first.asked[3][1]
    assert len(prompts) == len(PROMPTS)
    assert len({len(prompt) for prompt in prompts}) == len(PROMPTS)  # slots of different lengths show more
    assert {len(text) for text in texts} == {48}
    tokens = [token for sequence in (*prompts, *texts) for token in sequence]
    assert all(0 <= token < RANDOM.model.vocabulary for token in tokens)
    assert max(tokens) > 0.9 * RANDOM.model.vocabulary


def test_questions_fit_what_the_smallest_engine_can_read() -> None:
    """Limits give a slot 512 tokens at least; a token is a byte at worst, and as many again are generated."""
    assert max(len(text.encode()) for text in (*PROMPTS, *TEXTS)) + TOKENS <= 512


def test_an_engine_without_answers_says_so_and_names_the_case() -> None:
    class Mute:
        source = Source.MEASURED

        def run(self, workload: Workload) -> Run:
            raise NotImplementedError

        def close(self) -> None: ...

    with pytest.raises(Unsupported, match="cpu/torch/smollm2-135m/bf16/tp1/answers: torch runs workloads and"):
        answers_of(CASE, Mute())


class Wavering(Listener):
    """Says another sixth token to every eighth request, which it holds for a little less likely."""

    def generate(
        self, prompts: Sequence[Sequence[int]], tokens: int, *, until=None, concurrency: int | None = None
    ) -> list[list[int]]:
        common, other = list(b"answered"), list(b"answeXed")
        return [other if number % 8 == 7 else common for number in range(len(prompts))]

    def score(
        self, sequences: Sequence[Sequence[int]], *, tails: Sequence[int] = (), noise: float = 0.0
    ) -> list[Scored]:
        self.asked.append(("score", [list(sequence) for sequence in sequences], tails))
        return [
            Scored(tuple(-1.5 if token == ord("X") else -1.25 for token in sequence[-tail:]), (1,) * tail)
            for sequence, tail in zip(sequences, tails, strict=True)
        ]


def test_one_prompt_asked_often_and_answered_alike_needs_no_scores() -> None:
    engine = Listener()

    found = repeats_of(CASE, engine)

    assert [(what, len(sequences)) for what, sequences, _ in engine.asked] == [("generate", TIMES)]
    assert (found.answers, found.apart) == (((chr(len(PROMPTS[0])) * TOKENS, TIMES),), 0.0)


def test_answers_that_part_are_told_with_how_likely_either_was_where_they_part() -> None:
    engine = Wavering()

    found = repeats_of(CASE, engine)

    assert (found.answers, found.apart) == ((("answered", 175), ("answeXed", 25)), 0.25)
    assert engine.asked[-1][1:] == (
        [list(f"{PROMPTS[0]}{answer}".encode()) for answer in ("answered", "answeXed")],
        [TOKENS, TOKENS],
    )
    assert str(found) == "2 answers to one prompt, 0.25 nats apart: 175 times 'answered', 25 times 'answeXed'"


def test_a_network_of_random_weights_is_asked_often_without_a_tokenizer() -> None:
    found = repeats_of(RANDOM, Listener())

    assert found.answers == ((str((5,) * TOKENS), TIMES),)


# --- in a session ----------------------------------------------------------------------------------------------------

SUITE = """
import pytest

EMBEDDED = {"model": "smollm2-135m", "hardware": "cpu", "task": "answers"}

@pytest.mark.cases(**EMBEDDED, recipe="bf16", layout=["tp2", "pp2"])
@pytest.mark.versus(layout="tp1")
def test_same(case, other, answers):
    assert answers(case).agreement(answers(other)).tokens == 1.0
    assert answers(case) is answers(case)
"""

Session = Callable[..., pytest.RunResult]


@pytest.fixture
def session(pytester: pytest.Pytester) -> Session:
    def run(*options: str, suite: str = SUITE, conftest: str = "") -> pytest.RunResult:
        pytester.makeconftest(conftest or fake_engine(every=[100.0]))
        pytester.makepyfile(suite)
        return pytester.runpytest("--gpu=cpu", *options)

    return run


def test_answers_are_asked_once_of_each_engine_and_need_no_promise(pytester: pytest.Pytester, session: Session) -> None:
    result = session("--restarts=3", "--results=out")

    result.assert_outcomes(passed=2)
    lines = (pytester.path / "engines.log").read_text().splitlines()
    assert sorted(line for line in lines if line.startswith("open")) == [
        "open bf16/pp2",
        "open bf16/tp1",
        "open bf16/tp2",
    ]
    assert sum(line.startswith("generate") for line in lines) == 3 * 3


def test_an_engine_that_is_measured_as_well_is_asked_at_its_first_restart_only(
    pytester: pytest.Pytester, session: Session
) -> None:
    suite = (
        SUITE
        + """
@pytest.mark.cases(model="smollm2-135m", hardware="cpu", recipe="bf16", layout="tp1", workload="min-latency-16-8")
def test_speed(case, measure):
    measure(case)
"""
    )

    session("--restarts=3", "--rounds=1", suite=suite).assert_outcomes(passed=3)

    lines = [line for line in (pytester.path / "engines.log").read_text().splitlines() if line.endswith("/tp1")]
    assert lines.count("open bf16/tp1") == 3
    assert lines.count("generate bf16/tp1") == 3  # twice in a batch, once alone


def test_an_engine_that_cannot_be_asked_skips_the_test_that_asks(session: Session) -> None:
    mute = fake_engine(every=[100.0]).replace("def score", "def no_score")

    result = session("-rs", conftest=mute)

    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(["SKIPPED*: cpu/torch/smollm2-135m/bf16/tp2/answers*"])
    result.stdout.fnmatch_lines(["  not supported: torch runs workloads and cannot be asked*"])


@pytest.mark.parametrize("task", ["text", "checkpoint", "agreement"])
def test_answers_of_a_case_about_something_else_are_refused_before_anything_opens(
    pytester: pytest.Pytester, session: Session, task: str
) -> None:
    result = session(suite=SUITE.replace('"task": "answers"', f'"task": "{task}"'))

    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines([f"*tp2/{task}: `answers` asks task='answers', and this case is about {task}"])
    result.stdout.no_fnmatch_line("*assert isinstance*")
    assert not (pytester.path / "engines.log").exists()


def test_measuring_a_case_about_answers_is_a_usage_error_that_names_the_test(session: Session) -> None:
    result = session(suite=SUITE.replace("case, other, answers", "case, other, measure"))

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: *::test_same[[]*tp2/answers[]]: cpu/*/answers: is about answers (answers), which have no speed *"]
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"task": "answers"',
            '"task": "answer"',
            "unknown task 'answer'; did you mean 'answers'? known: agreement, answers, *",
        ),
        ('"task": "answers"', '"task": 5', "task is a name or a list of names, not 5"),
        (
            '"task": "answers"',
            '"task": "answers", "workload": "min-latency-16-8"',
            "a case has a workload or a task, not both",
        ),
        (', "task": "answers"', "", "@pytest.mark.cases needs workload"),
    ],
)
def test_a_wrong_task_is_a_usage_error(session: Session, old: str, new: str, message: str) -> None:
    result = session(suite=SUITE.replace(old, new))

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: *::test_same: *{message}"])


def test_a_prediction_has_no_answers(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.cases(model="llama-3.1-8b", recipe="bf16", layout="tp1", task="answers")
        def test_answers(case, answers):
            answers(case)
        """
    )

    result = pytester.runpytest("--gpu=h200", "--engine=predicted", "-rs")

    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(
        ["*h200/tensorrt-llm/llama-3.1-8b/bf16/tp1/answers", "  not supported: a prediction has no answers"]
    )
    result.stdout.no_fnmatch_line("*Traceback*")
