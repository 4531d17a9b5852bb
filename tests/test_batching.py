"""The simulated batcher, with costs so simple that every clock reading can be worked out by hand."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_llamaperf.errors import DoesNotFit
from pytest_llamaperf.limits import Limits
from pytest_llamaperf.predicting.batching import Request, Schedule, simulate
from pytest_llamaperf.predicting.calibration import Calibration
from pytest_llamaperf.traces import Trace


@dataclass
class Costs:
    """Seconds as a sum of simple terms; `batches` and `attended` record what was asked for.

    per_pair is paid for every pair of prompt tokens, so the attention of a prompt grows with the square of its length.
    """

    per_iteration: float = 0.0
    per_prompt_token: float = 0.0
    per_sequence: float = 0.0
    per_attending: float = 0.0
    per_cached_token: float = 0.0
    per_pair: float = 0.0
    batches: list[int] = field(default_factory=list)
    attended: list[tuple[int, int]] = field(default_factory=list)

    def decode(self, batch: int, kv: int) -> float:
        return self.shared(0, batch, 0) + self.decode_attention(batch, kv)

    def shared(self, prompt_tokens: int, batch: int, joining: int) -> float:
        self.batches.append(batch)
        return self.per_iteration + self.per_prompt_token * prompt_tokens + self.per_sequence * batch

    def prompt_attention(self, prompts: int, tokens: int) -> float:
        return self.per_pair * prompts * tokens * tokens

    def decode_attention(self, batch: int, kv: int) -> float:
        self.attended.append((batch, kv))
        return batch * (self.per_attending + self.per_cached_token * kv)


WIDE = Limits(max_batch_size=1000, max_num_tokens=100_000, cuda_graph_batch_sizes=())
PLENTY = 1_000_000


def run(
    requests: list[Request],
    costs: Costs | None = None,
    limits: Limits = WIDE,
    *,
    kv_tokens: int = PLENTY,
    concurrency: int | None = None,
    calibration: Calibration = Calibration(1.0, 0.0, "none"),  # noqa: B008 - frozen
    stride: int = 16,
) -> Schedule:
    """A simulation in which, without other costs, every iteration takes a second."""
    return simulate(
        costs or Costs(per_iteration=1.0),
        requests,
        limits,
        kv_tokens=kv_tokens,
        concurrency=concurrency,
        calibration=calibration,
        stride=stride,
    )


def firsts(schedule: Schedule) -> list[float]:
    return [trace.first_token for trace in schedule.traces]


def lasts(schedule: Schedule) -> list[float]:
    return [trace.last_token for trace in schedule.traces]


def makespan(schedule: Schedule) -> float:
    return max(lasts(schedule))


# One request, and several that fit together.


def test_one_request_takes_its_prompt_iteration_and_one_more_for_each_further_token() -> None:
    schedule = run([Request(10, 4)])

    assert schedule.traces == (Trace(0.0, 1.0, 4.0, 10, 4),)
    assert schedule.iterations == 4


def test_a_request_of_one_output_token_ends_with_its_prompt() -> None:
    assert run([Request(10, 1)]).traces == (Trace(0.0, 1.0, 1.0, 10, 1),)


def test_a_long_answer_is_counted_to_the_last_iteration() -> None:
    schedule = run([Request(10, 1000)])

    assert lasts(schedule) == [1000.0]
    assert schedule.iterations == 1000


def test_two_requests_share_every_iteration() -> None:
    # 5 prompt tokens, 5 s: both have their first token. A batch of 2, 2 s: the second is done. A batch of 1, 1 s.
    schedule = run([Request(3, 3), Request(2, 2)], Costs(per_prompt_token=1.0, per_sequence=1.0))

    assert schedule.traces == (Trace(0.0, 5.0, 8.0, 3, 3), Trace(0.0, 5.0, 7.0, 2, 2))


def test_a_prompt_iteration_carries_the_sequences_that_decode() -> None:
    # max_num_tokens 4 lets one prompt in at a time. Iteration 1: 4 prompt tokens, nobody decodes: 4 s. Iteration 2:
    # 3 prompt tokens beside 1 decoding sequence: 3 + 10 s. Iteration 3: both decode: 20 s.
    limits = dataclasses.replace(WIDE, max_num_tokens=4, chunked_prefill=False)
    schedule = run([Request(4, 3), Request(3, 2)], Costs(per_prompt_token=1.0, per_sequence=10.0), limits)

    assert firsts(schedule) == [4.0, 17.0]
    assert lasts(schedule) == [37.0, 37.0]


def test_attention_of_whole_prompts_is_asked_for_all_of_them_at_once() -> None:
    # Two prompts of 5: 2 * 5 * 5 s, then one decode iteration that costs nothing but 1 s.
    schedule = run([Request(5, 2), Request(5, 2)], Costs(per_iteration=1.0, per_pair=1.0))

    assert firsts(schedule) == [51.0, 51.0]
    assert lasts(schedule) == [52.0, 52.0]


def test_a_decode_iteration_attends_to_the_prompt_and_all_tokens_so_far() -> None:
    """As EngineHandle.run_static counts: the second output token is computed with ISL + 1 tokens cached."""
    costs = Costs(per_iteration=1.0)

    run([Request(7, 4)], costs, stride=1)

    assert costs.attended == [(1, 8), (1, 9), (1, 10)]


def test_a_finished_request_leaves_nothing_behind_in_the_cache() -> None:
    costs = Costs(per_iteration=1.0)

    run([Request(7, 4)] * 2, costs, concurrency=1, stride=1)

    assert costs.attended[:3] == costs.attended[3:]
    assert len(costs.attended) == 6


@pytest.mark.parametrize("stride", [1, 16])
def test_busy_figures_are_means_over_time(stride: int) -> None:
    # Four iterations of 1 s with 2, 2, 1, 1 sequences.
    schedule = run([Request(10, 2), Request(10, 4)], stride=stride)

    assert schedule.mean_batch == 1.5
    assert schedule.peak_batch == 2
    assert schedule.iterations == 4


@pytest.mark.parametrize("stride", [1, 16])
def test_mean_kv_is_the_mean_over_the_decode_iterations(stride: int) -> None:
    # Decoding starts with 11 tokens held, then 12, then 13.
    assert run([Request(10, 4)], stride=stride).mean_kv == 12.0


def test_nothing_decoded_has_no_mean_kv() -> None:
    assert run([Request(10, 1)]).mean_kv == 0.0


# What limits a batch.


def test_a_full_batch_makes_the_next_request_wait() -> None:
    # A batch of 2. The first ends with iteration 2, so the third has its prompt in iteration 3, beside the second.
    limits = dataclasses.replace(WIDE, max_batch_size=2)
    schedule = run([Request(10, 2), Request(10, 4), Request(10, 2)], limits=limits)

    assert firsts(schedule) == [1.0, 1.0, 3.0]
    assert lasts(schedule) == [2.0, 4.0, 4.0]
    assert schedule.peak_batch == 2


@pytest.mark.parametrize(("budget", "first"), [(12, 1.0), (11, 2.0)])
def test_a_prompt_that_exceeds_the_token_budget_waits_an_iteration(budget: int, first: float) -> None:
    limits = dataclasses.replace(WIDE, max_num_tokens=budget, chunked_prefill=False)
    schedule = run([Request(6, 3), Request(6, 3)], limits=limits)

    assert firsts(schedule) == [1.0, first]
    assert lasts(schedule) == [3.0, first + 2]


def test_a_decoding_sequence_takes_a_token_of_the_budget() -> None:
    # Of 6 tokens 5 are left while the first request decodes, so the second prompt waits until it is through.
    limits = dataclasses.replace(WIDE, max_num_tokens=6, chunked_prefill=False)
    schedule = run([Request(6, 3), Request(6, 3)], limits=limits)

    assert firsts(schedule) == [1.0, 4.0]
    assert lasts(schedule) == [3.0, 6.0]


def test_a_short_prompt_does_not_overtake_a_long_one() -> None:
    # Budget 10. Iteration 1: the 6; 8 does not fit, and 2 would. Iteration 2: the 8 beside 1 decoding sequence leaves 1.
    limits = dataclasses.replace(WIDE, max_num_tokens=10, chunked_prefill=False)

    assert firsts(run([Request(6, 9), Request(8, 9), Request(2, 9)], limits=limits)) == [1.0, 2.0, 3.0]


def test_a_long_prompt_is_worked_off_in_chunks() -> None:
    # 10 tokens by 4, 4 and 2: the first token comes with the third iteration.
    schedule = run([Request(10, 2)], limits=dataclasses.replace(WIDE, max_num_tokens=4))

    assert schedule.traces == (Trace(0.0, 3.0, 4.0, 10, 2),)


def test_attention_of_a_chunk_is_the_difference_of_two_prefixes() -> None:
    # Chunks of 4, 4, 2 cost 4^2, 8^2 - 4^2 and 10^2 - 8^2 s of attention, and a second a token. Decoding costs 1 s.
    costs = Costs(per_prompt_token=1.0, per_pair=1.0, per_sequence=1.0)
    whole = run([Request(10, 2)], costs)
    chunked = run([Request(10, 2)], costs, dataclasses.replace(WIDE, max_num_tokens=4))

    assert whole.traces == chunked.traces == (Trace(0.0, 110.0, 111.0, 10, 2),)
    assert (whole.iterations, chunked.iterations) == (2, 4)


def test_chunks_fill_what_decoding_and_other_prompts_leave() -> None:
    # Budget 4. Iteration 1: the prompt of 2, and 2 of the 6. Iteration 2: 1 decodes, so 3 of the 6. Iteration 3: 1
    # decodes, the last of the 6, and 2 are left for the third prompt.
    limits = dataclasses.replace(WIDE, max_num_tokens=4)
    schedule = run([Request(2, 5), Request(6, 1), Request(2, 2)], limits=limits)

    assert firsts(schedule) == [1.0, 3.0, 3.0]
    assert lasts(schedule) == [5.0, 3.0, 4.0]


@pytest.mark.parametrize(("kv_tokens", "first"), [(30, 1.0), (29, 6.0)])
def test_a_request_waits_until_the_cache_holds_all_of_it(kv_tokens: int, first: float) -> None:
    # Two requests of 10 + 5 tokens: 30 hold both, with 29 the second starts when the first has ended at 5 s.
    schedule = run([Request(10, 5), Request(10, 5)], kv_tokens=kv_tokens)

    assert firsts(schedule) == [1.0, first]
    assert lasts(schedule) == [5.0, first + 4]


def test_a_request_as_large_as_the_cache_just_fits() -> None:
    assert lasts(run([Request(10, 5)], kv_tokens=15)) == [5.0]


def test_a_request_larger_than_the_cache_never_fits() -> None:
    with pytest.raises(DoesNotFit, match="the KV cache holds 15 tokens, one request needs 16"):
        run([Request(2, 2), Request(10, 6)], kv_tokens=15)


def test_without_chunks_a_prompt_as_long_as_the_token_budget_just_fits() -> None:
    limits = dataclasses.replace(WIDE, max_num_tokens=10, chunked_prefill=False)

    assert firsts(run([Request(10, 2)], limits=limits)) == [1.0]


def test_without_chunks_a_prompt_longer_than_the_token_budget_never_fits() -> None:
    limits = dataclasses.replace(WIDE, max_num_tokens=10, chunked_prefill=False)

    with pytest.raises(DoesNotFit, match="a prompt of 11 tokens needs chunked prefill, or max_num_tokens above 10"):
        run([Request(2, 2), Request(11, 2)], limits=limits)


# When requests arrive.


def test_one_at_a_time_is_submitted_when_the_one_before_ends() -> None:
    schedule = run([Request(10, 3), Request(10, 3)], concurrency=1)

    assert schedule.traces == (Trace(0.0, 1.0, 3.0, 10, 3), Trace(3.0, 4.0, 6.0, 10, 3))


def test_a_closed_loop_submits_whenever_one_ends() -> None:
    # Two in flight: the third is submitted when the first ends at 2 s.
    schedule = run([Request(10, 2), Request(10, 4), Request(10, 2)], concurrency=2)

    assert [trace.submitted for trace in schedule.traces] == [0.0, 0.0, 2.0]
    assert firsts(schedule) == [1.0, 1.0, 3.0]
    assert lasts(schedule) == [2.0, 4.0, 4.0]


def test_an_idle_engine_waits_for_the_next_arrival() -> None:
    schedule = run([Request(10, 3, arrival=0.25), Request(10, 3, arrival=10.0)])

    assert schedule.traces == (Trace(0.25, 1.25, 3.25, 10, 3), Trace(10.0, 11.0, 13.0, 10, 3))
    assert schedule.mean_batch == 1.0  # of the time there was work


@pytest.mark.parametrize("stride", [1, 16, 64])
@pytest.mark.parametrize(("arrival", "first"), [(10.5, 12.0), (10.75, 12.0), (11.0, 12.0), (11.25, 13.0)])
def test_an_arrival_joins_the_next_iteration_to_start(arrival: float, first: float, stride: int) -> None:
    """However many decode iterations the simulator takes at once."""
    schedule = run([Request(10, 40, arrival=0.0), Request(10, 2, arrival=arrival)], stride=stride)

    assert firsts(schedule) == [1.0, first]
    assert lasts(schedule) == [40.0, first + 1]


# CUDA graphs.


@pytest.mark.parametrize(
    ("sizes", "max_batch_size", "batch", "paid"),
    [
        ((), 8, 3, 3),
        ((1, 2, 4), 8, 3, 4),
        ((1, 2, 4), 8, 4, 4),
        ((1, 2), 8, 3, 3),  # no graph is large enough: run without one, unpadded
        ((1, 2, 4, 8), 6, 5, 6),  # 8 can never be filled; 6 takes its place
        ((1, 2, 4), 3, 3, 3),
        ((1, 2, 4, 8), 6, 3, 4),
    ],
)
def test_a_decode_batch_is_padded_to_the_next_graph(
    sizes: tuple[int, ...], max_batch_size: int, batch: int, paid: int
) -> None:
    limits = dataclasses.replace(WIDE, max_batch_size=max_batch_size, cuda_graph_batch_sizes=sizes)
    # The prompt iteration takes 100 s, the decode iteration 100 + 1 for each sequence paid for.
    schedule = run([Request(7, 2)] * batch, Costs(per_iteration=100.0, per_sequence=1.0), limits)

    assert makespan(schedule) == 100 + 100 + paid


def test_padding_pays_no_attention() -> None:
    # 3 sequences in a graph of 4: 100 + 4, and 10 for each of the 3 that attend to something.
    limits = dataclasses.replace(WIDE, cuda_graph_batch_sizes=(1, 2, 4))
    costs = Costs(per_iteration=100.0, per_sequence=1.0, per_attending=10.0)

    assert makespan(run([Request(7, 2)] * 3, costs, limits)) == 100 + (104 + 30)


def test_a_prompt_iteration_runs_without_graph() -> None:
    # Batch 3 decodes beside the fourth prompt in iteration 2: 100 + 3. Without the prompt it would be 100 + 8.
    limits = Limits(max_batch_size=8, max_num_tokens=12, chunked_prefill=False, cuda_graph_batch_sizes=(8,))
    schedule = run([Request(4, 2)] * 4, Costs(per_iteration=100.0, per_sequence=1.0), limits)

    assert firsts(schedule) == [100.0, 100.0, 100.0, 203.0]


def test_the_token_budget_limits_the_largest_graph() -> None:
    # At most 5 tokens in an iteration: of the sizes 1, 4 and 8 the last becomes 5, which a batch of 5 fills.
    limits = Limits(max_batch_size=8, max_num_tokens=5, cuda_graph_batch_sizes=(1, 4, 8))
    schedule = run([Request(1, 2)] * 5, Costs(per_iteration=100.0, per_sequence=1.0), limits)

    assert makespan(schedule) == 100 + 105


# Calibration.


def test_calibration_scales_iterations_and_charges_each_request_once() -> None:
    # The prompt iteration: 2 * 1 s and half a second for each of 2 requests. Three more of 2 s.
    schedule = run([Request(10, 4)] * 2, calibration=Calibration(2.0, 0.5, "made up"))

    assert firsts(schedule) == [3.0, 3.0]
    assert lasts(schedule) == [9.0, 9.0]


def test_a_chunked_request_is_charged_once() -> None:
    schedule = run(
        [Request(10, 1)],
        limits=dataclasses.replace(WIDE, max_num_tokens=4),
        calibration=Calibration(1.0, 0.5, "made up"),
    )

    assert lasts(schedule) == [3.5]


# What holds for every workload.

# No deadline: the machine may be busy with other things.
invariant = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])

LENGTHS = st.tuples(st.integers(1, 40), st.integers(1, 30))
REQUESTS = st.lists(LENGTHS, min_size=1, max_size=12).map(lambda lengths: [Request(*each) for each in lengths])
GRAPHS = st.sets(st.integers(1, 8)).map(lambda sizes: tuple(sorted(sizes)))
UNCHUNKED = st.builds(
    Limits,
    max_batch_size=st.integers(1, 6),
    max_num_tokens=st.integers(40, 100),
    chunked_prefill=st.just(False),
    cuda_graph_batch_sizes=GRAPHS,
)
CHUNKED = st.builds(
    Limits, max_batch_size=st.integers(1, 6), max_num_tokens=st.integers(1, 60), cuda_graph_batch_sizes=GRAPHS
)
ANY_LIMITS = st.one_of(UNCHUNKED, CHUNKED)
KV_TOKENS = st.integers(70, 300)  # the longest request has 40 + 30 tokens
CONCURRENCY = st.none() | st.integers(1, 6)

LINEAR = Costs(per_iteration=1.0, per_prompt_token=0.01, per_sequence=0.05, per_cached_token=0.001, per_pair=1e-4)


def fresh(costs: Costs = LINEAR) -> Costs:
    return dataclasses.replace(costs, batches=[], attended=[])


@st.composite
def workloads(draw: st.DrawFn) -> tuple[list[Request], int | None]:
    """Requests all at once, in a closed loop, or arriving one after the other."""
    requests = draw(REQUESTS)
    concurrency = draw(CONCURRENCY)
    if concurrency is None and draw(st.booleans()):
        now = 0.0
        for i, request in enumerate(requests):
            now += draw(st.floats(0.0, 40.0))
            requests[i] = dataclasses.replace(request, arrival=now)
    return requests, concurrency


def holding(schedule: Schedule, moment: float) -> list[Trace]:
    """The requests whose sequence was in the iteration that ended at this moment."""
    return [trace for trace in schedule.traces if trace.first_token <= moment <= trace.last_token]


@invariant
@given(workloads(), ANY_LIMITS, KV_TOKENS)
def test_every_request_is_served_in_order_with_its_own_lengths(
    workload: tuple[list[Request], int | None], limits: Limits, kv_tokens: int
) -> None:
    requests, concurrency = workload
    schedule = run(requests, fresh(), limits, kv_tokens=kv_tokens, concurrency=concurrency)

    assert [(t.input_tokens, t.output_tokens) for t in schedule.traces] == [
        (r.input_tokens, r.output_tokens) for r in requests
    ]
    assert all(t.submitted < t.first_token <= t.last_token for t in schedule.traces)
    assert all((t.first_token == t.last_token) == (t.output_tokens == 1) for t in schedule.traces)
    assert firsts(schedule) == sorted(firsts(schedule))
    if requests[0].arrival is not None:
        assert [t.submitted for t in schedule.traces] == [r.arrival for r in requests]


@invariant
@given(workloads(), ANY_LIMITS, KV_TOKENS)
def test_no_limit_is_ever_exceeded(workload: tuple[list[Request], int | None], limits: Limits, kv_tokens: int) -> None:
    requests, concurrency = workload
    costs = fresh()
    schedule = run(requests, costs, limits, kv_tokens=kv_tokens, concurrency=concurrency)

    # A request that ended with an iteration was still in it when one that joined had its prompt there.
    for moment in firsts(schedule):
        together = holding(schedule, moment)
        assert len(together) <= limits.max_batch_size
        assert sum(trace.input_tokens + trace.output_tokens for trace in together) <= kv_tokens
    assert max(costs.batches) <= limits.max_batch_size
    assert schedule.peak_batch <= limits.max_batch_size
    assert schedule.mean_batch <= schedule.peak_batch
    if concurrency is not None:
        for moment in (trace.submitted for trace in schedule.traces):
            assert sum(t.submitted <= moment < t.last_token for t in schedule.traces) <= concurrency


@invariant
@given(REQUESTS, ANY_LIMITS, KV_TOKENS)
def test_prompt_tokens_of_an_iteration_stay_within_the_budget(
    requests: list[Request], limits: Limits, kv_tokens: int
) -> None:
    asked: list[tuple[int, int]] = []

    class Recording(Costs):
        def shared(self, prompt_tokens: int, batch: int, joining: int) -> float:
            asked.append((prompt_tokens, batch))
            return super().shared(prompt_tokens, batch, joining)

    run(requests, Recording(per_iteration=1.0), limits, kv_tokens=kv_tokens)

    assert all(prompt_tokens + batch <= limits.max_num_tokens for prompt_tokens, batch in asked)
    assert sum(prompt_tokens for prompt_tokens, _ in asked) == sum(request.input_tokens for request in requests)


LONG_PROMPTS = st.lists(st.tuples(st.integers(100, 400), st.integers(1, 60)), min_size=1, max_size=12).map(
    lambda lengths: [Request(*each) for each in lengths]
)


@invariant
@given(LONG_PROMPTS, st.integers(1, 6), st.integers(460, 2000), CONCURRENCY)
def test_strides_do_not_change_the_outcome(
    requests: list[Request], max_batch_size: int, kv_tokens: int, concurrency: int | None
) -> None:
    """The middle of a stretch stands for all of it as long as attention grows in proportion to the cache."""
    limits = Limits(max_batch_size=max_batch_size, max_num_tokens=512)
    # Attention is up to four fifths of an iteration: 1 + 6 * 460 / 500.
    costs = Costs(per_iteration=1.0, per_cached_token=0.002)
    one_by_one, at_once = (
        run(requests, costs, limits, kv_tokens=kv_tokens, concurrency=concurrency, stride=stride) for stride in (1, 16)
    )

    assert at_once.iterations == one_by_one.iterations
    assert firsts(at_once) == pytest.approx(firsts(one_by_one), rel=0.01)
    assert lasts(at_once) == pytest.approx(lasts(one_by_one), rel=0.01)


@invariant
@given(REQUESTS, ANY_LIMITS, KV_TOKENS, CONCURRENCY, st.integers(-3, 3))
def test_the_makespan_is_linear_in_the_scale(
    requests: list[Request], limits: Limits, kv_tokens: int, concurrency: int | None, power: int
) -> None:
    """Exactly so for powers of two: without arrivals by the clock the schedule does not depend on the costs."""
    scale = 2.0**power
    plain, scaled = (
        run(
            requests,
            fresh(),
            limits,
            kv_tokens=kv_tokens,
            concurrency=concurrency,
            calibration=Calibration(s, 0.0, "made up"),
        )
        for s in (1.0, scale)
    )

    assert makespan(scaled) == scale * makespan(plain)


@invariant
@given(REQUESTS, ANY_LIMITS, KV_TOKENS, st.floats(0.0, 2.0))
def test_request_seconds_add_up(
    requests: list[Request], limits: Limits, kv_tokens: int, request_seconds: float
) -> None:
    """Every request joins once, so the makespan grows by request_seconds for each."""
    plain, charged = (
        run(requests, fresh(), limits, kv_tokens=kv_tokens, calibration=Calibration(1.0, seconds, "made up"))
        for seconds in (0.0, request_seconds)
    )

    assert makespan(charged) == pytest.approx(makespan(plain) + request_seconds * len(requests), rel=1e-9)


@invariant
@given(REQUESTS, UNCHUNKED, KV_TOKENS, CONCURRENCY, st.integers(0, 200), st.integers(0, 5), st.integers(0, 60))
def test_more_room_never_delays_anyone(
    requests: list[Request],
    limits: Limits,
    kv_tokens: int,
    concurrency: int | None,
    more_kv: int,
    more_batch: int,
    more_tokens: int,
) -> None:
    """Where every iteration takes a second and prompts are not cut.

    By induction over the requests: when all before one start no later, then whoever of them is still there at the time
    it used to start was there then too, and takes as much room or less. With costs that grow with the batch, more room
    can well delay some.
    """
    roomier = dataclasses.replace(
        limits,
        max_batch_size=limits.max_batch_size + more_batch,
        max_num_tokens=limits.max_num_tokens + more_tokens,
    )
    before = run(requests, None, limits, kv_tokens=kv_tokens, concurrency=concurrency)
    after = run(requests, None, roomier, kv_tokens=kv_tokens + more_kv, concurrency=concurrency)

    assert all(late >= early for late, early in zip(firsts(before), firsts(after), strict=True))
    assert makespan(after) <= makespan(before)


@invariant
@given(REQUESTS, ANY_LIMITS, KV_TOKENS, st.floats(0.0, 100.0))
def test_a_later_start_shifts_everything(requests: list[Request], limits: Limits, kv_tokens: int, start: float) -> None:
    """All requests arriving at one moment are served as if all had been there from the beginning."""
    delayed = [dataclasses.replace(request, arrival=start) for request in requests]
    at_once = run(requests, fresh(), limits, kv_tokens=kv_tokens)
    later = run(delayed, fresh(), limits, kv_tokens=kv_tokens)

    assert lasts(later) == pytest.approx([start + last for last in lasts(at_once)], rel=1e-9)


def test_attention_of_prompts_of_different_length_costs_the_sum_of_their_squares() -> None:
    """Prompts of 1 and 7 tokens: 1 + 49 pairs, as two of 5; two of the mean length 4 would cost 32."""
    schedule = run([Request(1, 1), Request(7, 1)], Costs(per_iteration=1.0, per_pair=1.0))

    assert [trace.first_token for trace in schedule.traces] == [51.0, 51.0]
