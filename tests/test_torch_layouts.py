"""The reference engine on several ranks: every layout computes the same network, and pipeline stages share the work.

All layouts are served once, by one process (see `networks.served`); the tests look at what came of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import (
    BF16,
    LLAMA3_ROPE,
    PROMPTS,
    expected_scores,
    expected_tokens,
    llama,
    logprobs_of,
    reference,
    served,
    settings,
)
from test_torch_network import CONFIG, FORMATS, LLAMA_FP8, MODELOPT_FP8, quantized_from

TOKENS = 6
SLOTS = 2  # of each stage
STAGES = {"tp1": 1, "pp2": 2, "pp4": 4, "tp2-pp2": 2}
KINDS: dict[str, dict[str, Any]] = {
    "llama3-rope": {"rope": LLAMA3_ROPE, "seed": 1},
    "tied": {"tied": True, "seed": 2, "vocabulary": 509},
}


# Three ranks share four KV heads and 512 or 509 rows of vocabulary unevenly; 160 feed-forward columns are 5 blocks of 32.
LAYOUTS = [
    *[("llama3-rope", layout) for layout in ("tp1", "tp2", "tp3", "tp4", "pp2", "pp4", "tp2-pp2")],
    *[("tied", layout) for layout in ("tp1", "tp3", "pp3", "tp2-pp2")],
]


def results(job: Sequence[dict[str, Any]]) -> list[Any]:
    """What came of a job's commands after `load`."""
    assert "failed" not in job[-1], job[-1]
    return [answer["result"] for answer in job[1:]]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any, list[list[int]]]]:
    """Kind -> (checkpoint, transformers' network, its answers to PROMPTS)."""
    folder = tmp_path_factory.mktemp("layouts")
    made = {}
    for kind, changes in KINDS.items():
        path = llama(folder / kind, **changes)
        network = reference(path)
        made[kind] = (path, network, [expected_tokens(network, prompt, TOKENS) for prompt in PROMPTS])
    return made


# Every layout against transformers.


def ends_of(answers: list[list[int]]) -> list[list[int]]:
    """Where some answers end early, each in another place, so that others take their slots."""
    return [answers[0][:1], answers[2][1:3], answers[5][3:4]]


@pytest.fixture(scope="module")
def answered(networks: dict[str, tuple[Path, Any, list[list[int]]]]) -> dict[tuple[str, str], list[Any]]:
    """(kind, layout) -> scores of PROMPTS with their answers, answers to all at once and to some three in flight, scores
    again, and answers that end early."""
    jobs = []
    for kind, layout in LAYOUTS:
        path, _, answers = networks[kind]
        sequences = [prompt + answer for prompt, answer in zip(PROMPTS, answers, strict=True)]
        jobs.append([
            ("load", settings(path, layout, slots=SLOTS)),
            ("score", {"sequences": sequences, "noise": 0.0}),
            ("generate", {"prompts": PROMPTS, "tokens": TOKENS, "concurrency": None}),
            ("generate", {"prompts": PROMPTS[2:6], "tokens": TOKENS, "concurrency": 3}),
            ("score", {"sequences": sequences, "noise": 0.0}),
            ("generate", {"prompts": PROMPTS, "tokens": TOKENS, "concurrency": None, "stops": ends_of(answers)}),
        ])  # fmt: skip
    return dict(zip(LAYOUTS, map(results, served(jobs)), strict=True))


@pytest.mark.parametrize(("kind", "layout"), LAYOUTS)
def test_every_layout_scores_like_transformers(
    kind: str,
    layout: str,
    networks: dict[str, tuple[Path, Any, list[list[int]]]],
    answered: dict[tuple[str, str], list[Any]],
) -> None:
    _, network, answers = networks[kind]
    scores = answered[kind, layout][0]

    for prompt, answer, logprobs, likely in zip(PROMPTS, answers, scores["logprobs"], scores["likely"], strict=True):
        expected, best = expected_scores(network, prompt + answer)
        assert logprobs == pytest.approx(expected, abs=1e-4)
        assert likely == best


@pytest.mark.parametrize(("kind", "layout"), LAYOUTS)
def test_every_layout_answers_like_transformers(
    kind: str,
    layout: str,
    networks: dict[str, tuple[Path, Any, list[list[int]]]],
    answered: dict[tuple[str, str], list[Any]],
) -> None:
    """Seven requests of prompts from 1 to 20 tokens, in two slots a stage, so that most of them wait."""
    _, together, few, _, _ = answered[kind, layout]

    assert together == networks[kind][2]
    assert few == networks[kind][2][2:6]


@pytest.mark.parametrize(("kind", "layout"), LAYOUTS)
def test_answers_end_early_on_every_rank_alike(
    kind: str,
    layout: str,
    networks: dict[str, tuple[Path, Any, list[list[int]]]],
    answered: dict[tuple[str, str], list[Any]],
) -> None:
    whole, found = networks[kind][2], answered[kind, layout][4]
    stops = ends_of(whole)

    for answer, early in zip(whole, found, strict=True):
        assert early == answer[: len(early)]
        ended = any(early[-len(stop) :] == stop for stop in stops)
        assert ended or len(early) == TOKENS
    assert [len(found[number]) for number in (0, 2, 5)] == [1, 3, 4]


@pytest.mark.parametrize(("kind", "layout"), LAYOUTS)
def test_what_was_served_before_changes_no_score(
    kind: str, layout: str, answered: dict[tuple[str, str], list[Any]]
) -> None:
    before, _, _, after, _ = answered[kind, layout]

    assert after == before


# Quantized checkpoints and random weights.


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], torch.Tensor]:
    """(recipe, layout) -> log-probabilities, of checkpoints and, where the recipe has no checkpoint, random weights."""
    folder = tmp_path_factory.mktemp("quantized")
    # A rank's three heads are 192 inputs of o_proj, which is no whole number of blocks of 128.
    source = llama(folder / "bf16", hidden=384, heads=6, kv_heads=2, feed_forward=384, rope=LLAMA3_ROPE, seed=6)
    opened: dict[str, dict[str, Any]] = {
        recipe: settings(quantized_from(source, folder / recipe, recipe)[0]) for recipe in FORMATS
    }
    for name, recipe in {
        "fp32": settings(None)["recipe"],
        "bf16": BF16,
        "fp8": MODELOPT_FP8,
        "fp8-row": LLAMA_FP8,
    }.items():
        opened[f"random {name}"] = settings(None, config=CONFIG, recipe=recipe)
    keys = [(name, layout) for name in opened for layout in ("tp1", "tp2", "pp2")]
    score = ("score", {"sequences": [PROMPTS[3], *PROMPTS, *[prompt[:4] for prompt in PROMPTS]], "noise": 0.0})
    jobs = [[("load", {**opened[name], "tp": 2 if layout == "tp2" else 1, "pp": 2 if layout == "pp2" else 1}), score]
            for name, layout in keys]  # fmt: skip
    return {key: logprobs_of(results(job)[0]) for key, job in zip(keys, served(jobs), strict=True)}


@pytest.mark.parametrize("recipe", [*FORMATS, "random fp32", "random bf16", "random fp8", "random fp8-row"])
def test_stages_compute_exactly_what_one_rank_does(recipe: str, quantized: dict[tuple[str, str], torch.Tensor]) -> None:
    assert torch.equal(quantized[recipe, "pp2"], quantized[recipe, "tp1"])


# The sum over ranks rounds otherwise than the whole product, in FP32 by 1e-6; where that moves a value across the border
# of two steps of a grid, all after it differ by more (see test_torch_network.py), so it is the median that tells. With
# dynamic scales each rank finds its own for the inputs of down_proj, and BF16 rounds everything, not only few values.
@pytest.mark.parametrize(
    ("recipe", "typical", "most"),
    [
        ("modelopt-fp8", 1e-5, 0.4),
        ("llama-fp8", 0.06, 0.4),
        ("modelopt-int8-sq", 1e-5, 0.4),
        ("modelopt-int4-awq", 1e-5, 1e-4),
        ("random fp32", 1e-6, 1e-5),
        ("random bf16", 0.003, 0.02),
        ("random fp8", 0.01, 0.1),
        ("random fp8-row", 0.01, 0.1),
    ],
)
def test_tensor_parallel_ranks_compute_what_one_rank_does_up_to_rounding(
    recipe: str, typical: float, most: float, quantized: dict[tuple[str, str], torch.Tensor]
) -> None:
    off = (quantized[recipe, "tp2"] - quantized[recipe, "tp1"]).abs()

    assert off.median() <= typical
    assert off.max() <= most


# Requests over stages. Traces are [submitted, first token, last token, input tokens, output tokens].

MIXED = [(9, 4), (1, 7), (20, 1), (3, 9), (14, 2), (2, 2), (5, 5), (1, 1), (7, 12)]
RUNS: dict[str, tuple[int | None, list[tuple[int, int]]]] = {
    "all at once": (None, MIXED),
    "one at a time": (1, MIXED),
    "three in flight": (3, MIXED),
    "more than there are": (50, MIXED),
    "a single one": (None, [(5, 6)]),
    "a single one of a single token": (1, [(1, 1)]),
    "of one token each": (None, [(3, 1)] * 11),
    "two at once": (None, [(5, 6)] * 2),
    "none": (None, []),
}


@pytest.fixture(scope="module")
def traces(networks: dict[str, tuple[Path, Any, list[list[int]]]]) -> dict[tuple[str, str], list[list[float]]]:
    path = networks["tied"][0]
    runs = [("run", {"lengths": lengths, "concurrency": concurrency}) for concurrency, lengths in RUNS.values()]
    jobs = [[("load", settings(path, layout, slots=SLOTS)), *runs] for layout in STAGES]
    return {
        (layout, name): answer["traces"]
        for layout, job in zip(STAGES, served(jobs), strict=True)
        for name, answer in zip(RUNS, results(job), strict=True)
    }


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("layout", STAGES)
def test_every_request_gets_exactly_the_tokens_it_asked_for(
    layout: str, run: str, traces: dict[tuple[str, str], list[list[float]]]
) -> None:
    assert [(isl, osl) for *_, isl, osl in traces[layout, run]] == RUNS[run][1]


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("layout", STAGES)
def test_a_request_is_submitted_then_answered_from_first_to_last_token(
    layout: str, run: str, traces: dict[tuple[str, str], list[list[float]]]
) -> None:
    for submitted, first, last, _, osl in traces[layout, run]:
        assert submitted < first <= last
        assert (first == last) == (osl == 1)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("layout", STAGES)
def test_no_more_requests_are_in_flight_than_allowed(
    layout: str, run: str, traces: dict[tuple[str, str], list[list[float]]]
) -> None:
    found, allowed = traces[layout, run], RUNS[run][0]

    for now in (trace[0] for trace in found):
        assert sum(submitted <= now < last for submitted, _, last, _, _ in found) <= (allowed or math.inf)
    for now in (trace[1] for trace in found):  # between its tokens a request holds a slot
        assert sum(first <= now < last for _, first, last, _, _ in found) <= SLOTS * STAGES[layout]


@pytest.mark.parametrize("layout", STAGES)
def test_requests_are_submitted_at_once_or_as_others_end(
    layout: str, traces: dict[tuple[str, str], list[list[float]]]
) -> None:
    at_once, one_by_one, three = (traces[layout, run] for run in ("all at once", "one at a time", "three in flight"))

    assert len({submitted for submitted, *_ in at_once}) == 1
    assert [after[0] for after in one_by_one[1:]] == [before[2] for before in one_by_one[:-1]]
    assert len({submitted for submitted, *_ in three[:3]}) == 1
    assert {submitted for submitted, *_ in three[3:]} <= {last for _, _, last, _, _ in three}


@pytest.mark.parametrize("layout", ["pp2", "pp4", "tp2-pp2"])
def test_few_requests_are_spread_over_the_stages(layout: str, traces: dict[tuple[str, str], list[list[float]]]) -> None:
    """Or one stage would wait for the other: those of a group have their tokens at the same time."""
    first, second = traces[layout, "two at once"]
    assert first[1] < second[1]
    # Three at a time are one in each of four groups; two groups have two and one.
    first, second, third, *_ = traces[layout, "three in flight"]
    assert (first[1] < second[1]) == (STAGES[layout] == 4)
    assert second[1] < third[1]


# Every layer takes a nap, which needs no processor: what two stages do at once then takes as long as one of them.
NAPPING = """
import time
from pytest_llamaperf.children.torch_llama.network import Network

through = Network._through

def napping(network, *arguments):
    time.sleep(0.01 * len(network._layers))
    return through(network, *arguments)

Network._through = napping
"""


def test_stages_work_on_different_groups_at_the_same_time(
    networks: dict[str, tuple[Path, Any, list[list[int]]]],
) -> None:
    """Four requests of eight tokens in four slots: one rank naps through eight steps of all layers. Two stages make
    sixteen steps of half the layers each; one after the other that were sixteen halves twice, and at the same time once.
    """
    path = networks["llama3-rope"][0]
    run = ("run", {"lengths": [(4, 8)] * 4, "concurrency": None})
    jobs = [[("load", settings(path, "pp2", slots=2)), run, run], [("load", settings(path, "tp1", slots=4)), run, run]]

    stages, alone = (
        max(last for _, _, last, *_ in results(job)[-1]["traces"])
        - min(submitted for submitted, *_ in results(job)[-1]["traces"])
        for job in served(jobs, before=NAPPING)
    )

    assert stages < 1.5 * alone  # two times where stages wait for each other
