"""What the reference engine expects of a text, on one rank and on several, against all of transformers' vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from networks import PROMPTS, llama, reference, served, settings

from pytest_llamaperf.children.torch_llama.rank import LARGE_STEP, LITTLE_PADDING, Rank, Settings, _rows_of_a_step

TOP = 5
VOCABULARY = 509  # three ranks share it unevenly
LAYOUTS = ("tp1", "tp2", "tp3", "pp2", "tp2-pp2")
CONTEXT = [3, 141, 59]
CHOICES = ([7], [500], [7], [26, 5, 35], [26, 5, 8], [])  # three one-token ones, two that part late, none at all
TAILS = [1, 1, 2, 3, 2, 1]
MANY = 180  # more than the rows of any of three ranks


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("distributions") / "tied", tied=True, seed=2, vocabulary=VOCABULARY)


@pytest.fixture(scope="module")
def one(checkpoint: Path) -> Rank:
    return Rank(Settings(**settings(checkpoint)), 0, Path("nowhere"), lambda text, done, total: None)


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> list[torch.Tensor]:
    """For each prompt, the log-probabilities [T - 1, vocabulary] of every token after the first."""
    network = reference(checkpoint)
    with torch.no_grad():
        return [network(torch.tensor([prompt])).logits[0, :-1].float().log_softmax(-1) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def answered(checkpoint: Path) -> dict[str, list[dict[str, Any]]]:
    """Layout -> what `distributions`, `score`, `distributions` of MANY tokens and `score` of CHOICES answer; the failure
    of the last."""
    sequences = [list(prompt) for prompt in PROMPTS]
    jobs = [
        [
            ("load", settings(checkpoint, layout)),
            ("distributions", {"sequences": sequences, "top": TOP}),
            ("score", {"sequences": sequences, "noise": 0.0}),
            ("distributions", {"sequences": sequences[3:4], "top": MANY}),
            ("score", {"sequences": [[*CONTEXT, *tail] for tail in CHOICES], "noise": 0.0, "tails": TAILS}),
            ("distributions", {"sequences": sequences, "top": VOCABULARY + 1}),
        ]
        for layout in LAYOUTS
    ]
    return dict(zip(LAYOUTS, served(jobs), strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_distributions_are_those_of_transformers(
    layout: str, answered: dict[str, list[dict[str, Any]]], expected: list[torch.Tensor]
) -> None:
    found = answered[layout][1]["result"]

    for prompt, one, everything in zip(PROMPTS, found, expected, strict=True):
        own = everything.gather(-1, torch.tensor(prompt[1:])[:, None].long())[:, 0]
        assert one["logprobs"] == pytest.approx(own.tolist(), abs=1e-4)
        best = everything.topk(TOP)
        assert len(one["tokens"]) == len(prompt) - 1
        for tokens, logprobs, values in zip(one["tokens"], one["token_logprobs"], best.values.tolist(), strict=True):
            assert logprobs == pytest.approx(values, abs=1e-4)
            assert len(set(tokens)) == TOP
        # Each token with its own log-probability, also where two are so close that their order is rounding.
        if one["tokens"]:
            theirs = everything.gather(-1, torch.tensor(one["tokens"])).tolist()
            assert one["token_logprobs"] == [pytest.approx(values, abs=1e-4) for values in theirs]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_and_distributions_agree(layout: str, answered: dict[str, list[dict[str, Any]]]) -> None:
    distributions, scores = (answered[layout][number]["result"] for number in (1, 2))

    assert [one["logprobs"] for one in distributions] == [pytest.approx(own, abs=1e-6) for own in scores["logprobs"]]
    assert [[tokens[0] for tokens in one["tokens"]] for one in distributions] == scores["likely"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_more_tokens_than_a_rank_has_rows_of_are_found_on_the_others(
    layout: str, answered: dict[str, list[dict[str, Any]]], expected: list[torch.Tensor]
) -> None:
    (one,) = answered[layout][3]["result"]

    values = expected[3].topk(MANY).values.tolist()
    assert one["token_logprobs"] == [pytest.approx(each, abs=1e-4) for each in values]
    assert all(len(set(tokens)) == MANY and min(tokens) >= 0 and max(tokens) < VOCABULARY for tokens in one["tokens"])


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=12))
def test_a_sequence_is_scored_the_same_whatever_shares_its_row(one: Rank, sequences: list[list[int]]) -> None:
    """Of three tokens, so that many are the same, or begin alike, or are the beginning of others."""
    together = one.score(sequences, 0.0)

    for number, sequence in enumerate(sequences):
        alone = one.score([sequence], 0.0)
        assert together["logprobs"][number] == pytest.approx(alone["logprobs"][0], abs=1e-5)
        assert together["likely"][number] == alone["likely"][0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_choices_after_one_context_are_scored_as_if_each_were_alone(
    layout: str, answered: dict[str, list[dict[str, Any]]], checkpoint: Path
) -> None:
    found = answered[layout][4]["result"]
    network = reference(checkpoint)

    for choice, tail, logprobs, likely in zip(CHOICES, TAILS, found["logprobs"], found["likely"], strict=True):
        sequence = [*CONTEXT, *choice]
        with torch.no_grad():
            everything = network(torch.tensor([sequence])).logits[0, -tail - 1 : -1].float().log_softmax(-1)
        assert logprobs == pytest.approx([float(row[t]) for row, t in zip(everything, sequence[-tail:], strict=True)])
        assert likely == everything.argmax(-1).tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_more_tokens_than_there_are_is_refused(layout: str, answered: dict[str, list[dict[str, Any]]]) -> None:
    kind, message, *_ = answered[layout][5]["failed"]

    assert (kind, message) == ("ValueError", "510 of 509 tokens cannot be the most likely ones")


@given(st.lists(st.integers(0, 600), min_size=1, max_size=80), st.integers(1, 4000))
def test_a_step_takes_what_fits_and_ends_where_padding_would_cost(lengths: list[int], most: int) -> None:
    lengths.sort(reverse=True)

    rows = _rows_of_a_step(lengths, most)

    assert 1 <= rows <= len(lengths)
    assert rows == 1 or rows * lengths[0] <= max(most, 1)
    if (
        rows * lengths[0] > LARGE_STEP + lengths[0]
    ):  # beyond what is large enough, no row is much shorter than the first
        assert lengths[rows - 1] >= LITTLE_PADDING * lengths[0]
    if rows < len(lengths) and (rows + 1) * max(1, lengths[0]) <= most:  # it ended before it was full, for a reason
        assert rows * lengths[0] >= LARGE_STEP
        assert lengths[rows] < LITTLE_PADDING * lengths[0]
