"""The queue: never more devices than there are, nobody starves, everything runs, and little of a node stands idle."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llamaperf.scaling.queueing import Placed, Running, Waiting, seconds_left, simulated, startable

NODE = 8


@st.composite
def queues(draw: st.DrawFn) -> tuple[list[Waiting], dict[str, float]]:
    """Shards that may wait for earlier ones, with what they are expected to take and what they take."""
    shards, actual = [], {}
    for number in range(draw(st.integers(0, 25))):
        key = str(number)
        after = draw(st.sets(st.sampled_from([each.key for each in shards]), max_size=2)) if shards else set()
        demand = draw(st.sampled_from([1, 1, 2, 4, NODE]))
        shards.append(Waiting(key, demand, draw(st.floats(0.5, 100)), tuple(after)))
        actual[key] = draw(st.floats(0.5, 100))
    return draw(st.permutations(shards)), actual


def in_use(placed: list[Placed], at: float) -> int:
    return sum(each.demand for each in placed if each.start <= at < each.end)


@given(queues())
def test_all_run_once_on_devices_that_are_there(given: tuple[list[Waiting], dict[str, float]]) -> None:
    waiting, actual = given

    placed = simulated(waiting, devices=NODE, actual=actual)

    assert sorted(each.key for each in placed) == sorted(each.key for each in waiting)
    assert all(in_use(placed, each.start) <= NODE for each in placed)
    ends = {each.key: each.end for each in placed}
    assert all(each.start >= ends[key] for each in placed for w in waiting if w.key == each.key for key in w.after)


@given(queues())
def test_the_head_waits_for_nobody_who_came_later_where_times_are_as_expected(
    given: tuple[list[Waiting], dict[str, float]],
) -> None:
    """Its start is that of a queue of which nobody is let pass."""
    waiting = [Waiting(each.key, each.demand, each.seconds) for each in given[0]]
    if not waiting:
        return
    running = [Running("running", NODE - 1, 50.0)]

    placed = simulated(waiting, running, devices=NODE)
    fits = next((n for n, each in enumerate(waiting) if each.demand > 1), None)
    if fits is None:
        return
    head = waiting[fits]
    alone = simulated(waiting[: fits + 1], running, devices=NODE)

    start = {each.key: each.start for each in placed}
    assert start[head.key] <= {each.key: each.start for each in alone}[head.key]


@given(queues())
def test_the_head_waits_for_no_more_than_what_ran_or_passed_it_when_it_came(
    given: tuple[list[Waiting], dict[str, float]],
) -> None:
    """However wrong expectations are: a shard is passed only until what it waited for is over."""
    waiting = [Waiting(each.key, each.demand, each.seconds) for each in given[0]]
    actual = given[1]
    if not waiting:
        return
    big = Waiting("big", NODE, 1.0)
    running = [Running("running", 1, 3.0)]

    placed = simulated([big, *waiting], running, devices=NODE, actual={**actual, "big": 1.0})

    start = {each.key: each.start for each in placed}["big"]
    passed = [each for each in placed if each.start < start and each.key != "running"]
    assert all(each.start < 3.0 for each in passed)  # by then a node of its own was due
    assert start == max([3.0, *(each.end for each in passed)])


def test_eight_gpus_come_free_for_the_one_who_needs_them() -> None:
    small = [Waiting(f"small{n}", 1, 10.0) for n in range(20)]

    placed = simulated([Waiting("big", 8, 10.0), *small], [Running("first", 1, 10.0)], devices=NODE)

    # Seven pass it, for they end when the first does; no more.
    assert next(each.start for each in placed if each.key == "big") == 10.0
    assert sum(each.start < 10.0 for each in placed) == 8


def test_what_runs_longer_than_expected_lets_nobody_in_beside_it() -> None:
    waiting = [Waiting("big", 8, 10.0), Waiting("small", 1, 1.0)]

    assert startable(waiting, [Running("late", 1, 5.0)], devices=NODE, now=60.0) == []


def test_devices_that_the_head_does_not_need_may_be_used_for_long() -> None:
    waiting = [Waiting("half", 4, 10.0), Waiting("long", 2, 1000.0), Waiting("longer", 1, 2000.0)]

    started = startable(waiting, [Running("first", 5, 10.0)], devices=NODE, now=0.0)

    # Of the eight, half takes four at 10; four are spare, three free.
    assert [each.key for each in started] == ["long", "longer"]


def test_nobody_starts_before_what_it_waits_for_has_ended() -> None:
    maker = Waiting("maker", 1, 5.0)
    user = Waiting("user", 8, 5.0, ("maker",))

    assert startable([user, maker], [], devices=NODE, now=0.0) == [maker]
    assert startable([user], [Running("maker", 1, 5.0)], devices=NODE, now=9.0) == []
    assert startable([user], [], devices=NODE, now=9.0) == [user]


def test_what_needs_more_than_there_is_is_never_started_and_stops_nobody() -> None:
    placed = simulated([Waiting("huge", 16, 5.0), Waiting("b", 1, 5.0, ("huge",))], devices=NODE)

    assert [each.key for each in placed] == ["b"]


def realistic(seed: int, alone: float) -> list[Waiting]:
    """200 shards as of a gate of 8B, 70B and 405B: most are small, the large ones take longest; `alone` is the share
    of them that measures and wants the node for itself."""
    draws = random.Random(seed)
    shards = []
    for number in range(200):
        gpus = draws.choices([1, 2, 4, 8], weights=[45, 25, 18, 12])[0]
        seconds = draws.lognormvariate(6.5 + 0.1 * gpus, 0.7)
        shards.append(Waiting(str(number), NODE if draws.random() < alone else gpus, seconds))
    return sorted(shards, key=lambda each: (-each.demand, -each.seconds))


def least(shards: list[Waiting]) -> float:
    """No order of these takes less: all devices busy to the end, or the longest alone."""
    return max(sum(each.demand * each.seconds for each in shards) / NODE, *(each.seconds for each in shards))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("alone", [0.0, 0.3])
def test_200_shards_take_little_longer_than_the_least_possible(seed: int, alone: float) -> None:
    shards = realistic(seed, alone)

    end = max(each.end for each in simulated(shards, devices=NODE))

    assert end <= 1.1 * least(shards)


@pytest.mark.parametrize("seed", range(5))
def test_200_shards_whose_times_are_off_by_half_take_little_longer(seed: int) -> None:
    shards, draws = realistic(seed, 0.0), random.Random(seed)
    actual = {each.key: each.seconds * draws.uniform(0.67, 1.5) for each in shards}

    end = max(each.end for each in simulated(shards, devices=NODE, actual=actual))

    took = [Waiting(each.key, each.demand, actual[each.key]) for each in shards]
    assert end <= 1.1 * least(took)


def test_the_time_left_counts_what_runs_and_what_waits() -> None:
    left = seconds_left([Waiting("b", 8, 30.0)], [Running("a", 1, 100.0)], devices=NODE, now=90.0)

    assert left == 40.0
    assert seconds_left([], [], devices=NODE, now=90.0) == 0.0
