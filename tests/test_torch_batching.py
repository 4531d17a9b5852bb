"""In-flight batching of the reference engine on one rank: who shares a step changes nothing but when answers come.

How the batches of several pipeline stages go together is tested in test_torch_layouts.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from networks import LLAMA3_ROPE, PROMPTS, expected_tokens, llama, reference, settings

from pytest_llamaperf.children.torch_llama import graphs
from pytest_llamaperf.children.torch_llama.batching import Batcher, Request
from pytest_llamaperf.children.torch_llama.graphs import GraphedDecode
from pytest_llamaperf.children.torch_llama.network import Network
from pytest_llamaperf.children.torch_llama.rank import Rank, Settings
from pytest_llamaperf.children.torch_llama.stages import DecodeStep, PromptStep, Stage

LONGEST = 12  # tokens of an answer
SLOTS = 5
POSITIONS = max(map(len, PROMPTS)) + LONGEST  # the longest request fills its slot to the last position


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    yield
    torch.set_grad_enabled(True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("networks") / "two-layers", layers=2, rope=LLAMA3_ROPE, seed=1)


@pytest.fixture(scope="module")
def answers(checkpoint: Path) -> list[list[int]]:
    """What transformers answers to each prompt alone; none of it is a near tie."""
    network = reference(checkpoint)
    return [expected_tokens(network, prompt, LONGEST) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def network(checkpoint: Path) -> Network:
    opened = settings(checkpoint, slots=SLOTS, positions=POSITIONS)
    return Rank(Settings(**opened), 0, Path("nowhere"), lambda text, done, total: None)._stage.network


class Watched(Stage):
    """A stage that remembers the steps it made."""

    steps: list[PromptStep | DecodeStep]

    def choose(self, step: PromptStep | DecodeStep, told: bool = False) -> torch.Tensor | None:
        self.steps = [*getattr(self, "steps", []), step]
        return super().choose(step, told)


class EagerGraph(GraphedDecode):
    """Graphed decoding where there are no graphs: all that is done around them, and what they do one by one."""

    def _capture(self, start: int, batch: int, reach: int) -> graphs._Captured:
        network = self._network
        x = torch.zeros(batch, 1, network.shape.hidden, dtype=network.dtype)
        positions = torch.full((batch,), reach - 1, dtype=torch.long)
        out = network.decode(x, start, positions, reach)

        def replay() -> None:
            out.copy_(network.decode(x, start, positions, reach))

        made = graphs._Captured(SimpleNamespace(replay=replay), x, positions, out)  # type: ignore[arg-type]
        self._captured[start, batch, reach] = made
        return made


def graphed(network: Network, slots: int, monkeypatch: pytest.MonkeyPatch) -> EagerGraph:
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(graphs, "LEAST_REACH", 4)  # several reaches within a few tokens
    return EagerGraph(network, slots)


def run(
    network: Network,
    asked: Sequence[tuple[int, int]],
    *,
    slots: int = SLOTS,
    most_tokens: int = 1000,
    concurrency: int | None = None,
    stops: Sequence[tuple[int, ...]] = (),
) -> tuple[list[Request], list[PromptStep | DecodeStep]]:
    """(requests, steps) of prompts by number with the count of tokens wanted."""
    stage = Watched(network)
    stage.steps = []
    requests = [Request(list(PROMPTS[prompt]), wanted) for prompt, wanted in asked]
    Batcher(stage, slots=slots, most_tokens=most_tokens).run(requests, concurrency, stops)
    return requests, stage.steps


ASKED = st.lists(st.tuples(st.integers(0, len(PROMPTS) - 1), st.integers(1, LONGEST)), min_size=1, max_size=9)
CONCURRENCY = st.none() | st.integers(1, 7)
# A network is quick, but not as quick as arithmetic.
invariant = hypothesis_settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@invariant
@given(ASKED, st.integers(1, SLOTS), st.integers(1, 70), CONCURRENCY)
def test_every_request_gets_the_answer_it_would_get_alone(
    network: Network,
    answers: list[list[int]],
    asked: list[tuple[int, int]],
    slots: int,
    most_tokens: int,
    concurrency: int | None,
) -> None:
    requests, _ = run(network, asked, slots=slots, most_tokens=most_tokens, concurrency=concurrency)

    assert [request.tokens for request in requests] == [answers[prompt][:wanted] for prompt, wanted in asked]


@invariant
@given(ASKED, st.data(), CONCURRENCY)
def test_an_answer_ends_with_the_first_run_of_tokens_that_ends_it(
    network: Network,
    answers: list[list[int]],
    asked: list[tuple[int, int]],
    data: st.DataObject,
    concurrency: int | None,
) -> None:
    # Runs that do come in some answer, and one that never does.
    places = st.tuples(st.integers(0, len(PROMPTS) - 1), st.integers(0, LONGEST - 1), st.integers(1, 3))
    runs = [tuple(answers[p][at : at + size]) for p, at, size in data.draw(st.lists(places, min_size=1, max_size=4))]
    stops = [*runs, (1, 1, 1, 1)]

    requests, _ = run(network, asked, slots=2, concurrency=concurrency, stops=stops)

    for request, (prompt, wanted) in zip(requests, asked, strict=True):
        ends = [
            end
            for end in range(1, wanted + 1)
            if any(tuple(answers[prompt][:end][-len(stop) :]) == stop for stop in stops)
        ]
        assert request.tokens == answers[prompt][: min([*ends, wanted])]


@invariant
@given(ASKED, st.integers(1, SLOTS), CONCURRENCY)
def test_padding_a_step_for_a_graph_changes_no_answer(
    network: Network,
    answers: list[list[int]],
    asked: list[tuple[int, int]],
    slots: int,
    concurrency: int | None,
) -> None:
    with pytest.MonkeyPatch.context() as patching:
        stage = Stage(network, decode=graphed(network, slots, patching))
        requests = [Request(list(PROMPTS[prompt]), wanted) for prompt, wanted in asked]
        Batcher(stage, slots=slots, most_tokens=1000).run(requests, concurrency)

    assert [request.tokens for request in requests] == [answers[prompt][:wanted] for prompt, wanted in asked]


@invariant
@given(ASKED, st.integers(1, SLOTS), st.integers(1, 70), CONCURRENCY)
def test_no_step_is_larger_than_allowed(
    network: Network, asked: list[tuple[int, int]], slots: int, most_tokens: int, concurrency: int | None
) -> None:
    _, steps = run(network, asked, slots=slots, most_tokens=most_tokens, concurrency=concurrency)
    prompts = [step for step in steps if isinstance(step, PromptStep)]
    decodes = [step for step in steps if isinstance(step, DecodeStep)]
    most = min(slots, concurrency or slots)

    for prompt in prompts:
        rows, longest = prompt.tokens.shape
        assert rows <= most
        assert rows == 1 or rows * longest <= most_tokens
        assert longest == prompt.lengths.max()
        assert len(set(prompt.slots.tolist())) == rows
        assert max(prompt.slots.tolist()) < slots
    for decode in decodes:
        assert decode.start == 0
        assert len(decode.tokens) == len(decode.positions) <= slots
        assert decode.positions.max() < decode.length <= POSITIONS
    assert sum(len(prompt.tokens) for prompt in prompts) == len(asked)
    # One at a time every token after the first takes a step, together never more.
    assert len(decodes) <= sum(wanted - 1 for _, wanted in asked)
    if most == 1:
        assert len(decodes) == sum(wanted - 1 for _, wanted in asked)


@invariant
@given(ASKED, st.integers(1, SLOTS), CONCURRENCY)
def test_times_are_in_order_and_never_too_many_are_in_flight(
    network: Network, asked: list[tuple[int, int]], slots: int, concurrency: int | None
) -> None:
    requests, _ = run(network, asked, slots=slots, concurrency=concurrency)

    for request in requests:
        assert request.submitted < request.first_token <= request.last_token
        assert (request.first_token == request.last_token) == (request.wanted == 1)
    firsts = [request.first_token for request in requests]
    assert firsts == sorted(firsts)
    starts = [request.submitted for request in requests]
    if concurrency is None:
        assert len(set(starts)) == 1
    else:
        for now in starts:
            assert sum(request.submitted <= now < request.last_token for request in requests) <= concurrency
        # Whoever was not among the first was submitted when another one ended.
        assert set(starts[concurrency:]) <= {request.last_token for request in requests}
    for now in firsts:
        assert sum(request.first_token <= now < request.last_token for request in requests) <= slots


def test_one_at_a_time_is_submitted_when_the_one_before_ended(network: Network) -> None:
    requests, _ = run(network, [(3, 4), (0, 1), (5, 6)], concurrency=1)

    assert [after.submitted for after in requests[1:]] == [before.last_token for before in requests[:-1]]


def test_requests_leave_and_join_in_the_middle_of_a_batch(network: Network, answers: list[list[int]]) -> None:
    """Slots 0 to 2. The one in the middle ends first and a longer prompt takes its place, then the first, then the
    last; at the end a short one is alone in the slot the longest request had."""
    asked = [(3, 7), (1, 2), (5, 9), (6, 12), (0, 12), (2, 3), (4, 12)]
    requests, steps = run(network, asked, slots=3)
    taken = [step.slots.tolist() for step in steps if isinstance(step, PromptStep)]

    assert taken == [[0, 1, 2], [1], [0], [2], [2]]
    assert [request.tokens for request in requests] == [answers[prompt][:wanted] for prompt, wanted in asked]


def test_a_slot_between_others_stays_empty_until_somebody_comes(network: Network, answers: list[list[int]]) -> None:
    """Two may be in flight of three; the one in slot 1 runs on alone."""
    asked = [(1, 1), (3, 12), (0, 1), (6, 3), (2, 12)]
    requests, steps = run(network, asked, slots=3, concurrency=2)
    decodes = [step for step in steps if isinstance(step, DecodeStep)]

    assert max(len(step.tokens) for step in decodes) == 2
    assert [request.tokens for request in requests] == [answers[prompt][:wanted] for prompt, wanted in asked]


@pytest.mark.parametrize(
    ("most_tokens", "expected"),
    [
        (100, [3, 2]),  # 3 prompts of up to 9, 2 of up to 20; slots are the limit of the first step
        (27, [3, 1, 1]),
        (26, [2, 1, 1, 1]),
        (8, [2, 1, 1, 1]),
        (1, [1, 1, 1, 1, 1]),  # whoever is longer than allowed goes alone
    ],
)
def test_prompts_join_in_as_many_steps_as_they_need(network: Network, most_tokens: int, expected: list[int]) -> None:
    """Padding counts: a short prompt beside a long one takes as much."""
    _, steps = run(network, [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1)], slots=3, most_tokens=most_tokens)

    assert [len(step.tokens) for step in steps] == expected
    assert all(isinstance(step, PromptStep) for step in steps)


def test_a_request_that_fills_its_slot_is_answered_and_a_longer_one_refused(
    network: Network, answers: list[list[int]]
) -> None:
    (longest,), _ = run(network, [(3, LONGEST)])
    assert longest.tokens == answers[3]

    with pytest.raises(
        ValueError, match=r"a request of 20 \+ 13 tokens is longer than the 32 the engine was opened for"
    ):
        run(network, [(0, 1), (3, LONGEST + 1)])


def test_nothing_starts_when_one_of_many_requests_is_too_long(network: Network) -> None:
    stage = Watched(network)
    stage.steps = []
    with pytest.raises(ValueError, match="is longer than"):
        Batcher(stage, slots=2, most_tokens=100).run([Request([1], 1), Request([1], POSITIONS)])

    assert stage.steps == []


@pytest.mark.parametrize(("prompt", "wanted"), [([1], 0), ([1], -1), ([], 1)])
def test_a_request_for_nothing_or_of_nothing_is_refused(network: Network, prompt: list[int], wanted: int) -> None:
    """It would run on to the end of its slot and beyond."""
    with pytest.raises(ValueError, match="has at least one token of prompt and wants at least one"):
        Batcher(Stage(network), slots=2, most_tokens=100).run([Request(prompt, wanted)])


def test_no_requests_are_no_work(network: Network) -> None:
    assert run(network, []) == ([], [])


def test_a_graph_is_made_once_for_batches_and_reaches_of_similar_size(
    network: Network, answers: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = graphed(network, 3, monkeypatch)
    requests = [Request(list(PROMPTS[prompt]), LONGEST) for prompt in (3, 1, 5)]
    Batcher(Stage(network, decode=decode), slots=3, most_tokens=100).run(requests)

    # Three requests in step: 21 to 31 positions, rounded up to 32, and as many slots as there are.
    assert set(decode._captured) == {(0, 3, 32)}
    assert [request.tokens for request in requests] == [answers[prompt] for prompt in (3, 1, 5)]
