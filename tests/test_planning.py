"""Shards and their manifest: every test in one shard, every engine in one shard, and nothing that contradicts itself."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from builders import case, record, result
from hypothesis import given
from hypothesis import strategies as st
from shard_builders import about, campaign, edited, leave_results, shard

from pytest_llamaperf.engines import EngineSpec
from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.gates import Decision
from pytest_llamaperf.hardware import FoundGpu, Machine
from pytest_llamaperf.hosting.processes import Exit
from pytest_llamaperf.runs import RunHeader, run_document, to_json
from pytest_llamaperf.scaling.contract import End, Ending
from pytest_llamaperf.scaling.devices import devices_of
from pytest_llamaperf.scaling.durations import known_durations
from pytest_llamaperf.scaling.guessing import load_seconds, work_seconds
from pytest_llamaperf.scaling.inventory import Inventory, NeededEngine, NeededTest, Work
from pytest_llamaperf.scaling.manifest import NAME, Manifest, read_manifest
from pytest_llamaperf.scaling.planning import Plan, planned
from pytest_llamaperf.scaling.shards import NO_ENGINE, engine_key, grouped, in_shard

NOW = "2026-11-26T10:00:00Z"
ENGINES = st.sampled_from("abcdefgh")
SUITES = st.dictionaries(st.integers(0, 99).map(str), st.lists(ENGINES, max_size=3, unique=True), max_size=15)


@given(SUITES)
def test_every_test_is_in_exactly_one_shard_and_every_engine_too(tests: dict[str, list[str]]) -> None:
    shards = set(grouped(tests).values())

    found = [test for keys in shards for test in in_shard(keys[0], tests)]
    assert sorted(found) == sorted(tests)
    engines = [key for keys in shards for key in keys if key != NO_ENGINE]
    assert sorted(engines) == sorted({key for needed in tests.values() for key in needed})


@given(SUITES)
def test_a_shard_is_found_by_any_of_its_engines(tests: dict[str, list[str]]) -> None:
    for key, keys in grouped(tests).items():
        assert in_shard(key, tests) == in_shard(keys[0], tests)


@given(SUITES, st.randoms(use_true_random=False))
def test_shards_do_not_depend_on_the_order_of_tests(tests: dict[str, list[str]], draws: Any) -> None:
    shuffled = list(tests.items())
    draws.shuffle(shuffled)

    assert grouped(dict(shuffled)) == grouped(tests)


def test_engines_that_no_test_compares_are_apart() -> None:
    assert grouped({"1": ["a"], "2": ["b", "c"], "3": ["c", "d"], "4": []}) == {
        "a": ("a",), "b": ("b", "c", "d"), "c": ("b", "c", "d"), "d": ("b", "c", "d"), NO_ENGINE: (NO_ENGINE,),
    }  # fmt: skip


def test_an_unknown_key_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no test here needs that engine; did you mean 'cpu/torch/a/bf16'\?"):
        in_shard("cpu/torch/a/bf61", {"1": ["cpu/torch/a/bf16"]})


def test_a_key_tells_engines_apart_by_their_limits() -> None:
    spec = EngineSpec.of(case())
    other = dataclasses.replace(spec, limits=dataclasses.replace(spec.limits, kv_fraction=0.5))

    assert engine_key(spec).startswith("h200/tensorrt-llm/llama-3.1-8b/modelopt-fp8/tp1/")
    assert engine_key(spec) != engine_key(other)


def inventory(folder: Path, *tests: NeededTest, engines: dict[str, NeededEngine] | None = None) -> Inventory:
    given = engines or {key: NeededEngine(1, 100.0) for test in tests for key in test.engines}
    return Inventory(vars(about(folder)), tests, given)


def needs(nodeid: str, *engines: str, seconds: float = 10.0, loads: int = 2, measured: bool = True) -> NeededTest:
    return NeededTest(nodeid, engines, tuple(Work(key, f"{key}/{nodeid}", loads, seconds, measured) for key in engines))


def plan(given: Inventory, **changes: Any) -> Plan:
    return planned(given, **{"id": "run-1", "now": NOW, "options": ["suites"], **changes})


def test_an_engine_is_loaded_for_all_its_tests_together(tmp_path: Path) -> None:
    found = plan(inventory(tmp_path, needs("1", "a"), needs("2", "a"), needs("3", "a", loads=1, measured=False)))

    assert (found.engines, found.bill.processes, found.bill.loads) == (1, 1, 2)
    assert (found.naive.processes, found.naive.loads) == (3, 5)
    # A process of 5 s, two loads of 100 s, 10 s for each test; and apart, one of them with a single load.
    assert found.bill.hours * 3600 == pytest.approx(5 + 2 * 100 + 30, abs=0.1)
    assert found.naive.hours * 3600 == pytest.approx(2 * (5 + 200 + 10) + (5 + 100 + 10))


def test_what_two_tests_ask_alike_is_asked_once(tmp_path: Path) -> None:
    work = (Work("a", "a/max-throughput", 2, 10.0, True),)

    found = plan(inventory(tmp_path, NeededTest("1", ("a",), work), NeededTest("2", ("a",), work)))

    assert found.manifest.shards[0].minutes * 60 == pytest.approx(5 + 200 + 10, abs=0.1)


def test_a_shard_has_the_gpus_of_its_largest_engine_and_the_larger_go_first(tmp_path: Path) -> None:
    engines = {"a": NeededEngine(2, 1.0), "b": NeededEngine(4, 1.0), "c": NeededEngine(1, 1.0)}

    found = plan(inventory(tmp_path, needs("1", "c"), needs("2", "a", "b", measured=False), engines=engines))

    assert [(each.devices, each.kind) for each in found.manifest.shards] == [(4, "accuracy"), (1, "performance")]
    assert [str(each) for each in found.manifest.shards] == ["a and 1 more", "c"]


def test_tests_about_no_case_have_a_shard_of_their_own(tmp_path: Path) -> None:
    found = plan(inventory(tmp_path, needs("1", "a"), NeededTest("2", ())))

    shards = {each.key: each for each in found.manifest.shards}
    assert shards[NO_ENGINE].tests == ("2",)
    assert (shards[NO_ENGINE].engines, shards[NO_ENGINE].devices) == ((), 1)
    assert str(shards[NO_ENGINE]) == NO_ENGINE


def test_a_checkpoint_that_several_need_is_made_by_the_shortest(tmp_path: Path) -> None:
    engines = {key: NeededEngine(1, load, "8b/fp8") for key, load in {"a": 30.0, "b": 10.0, "c": 20.0}.items()}
    engines["d"] = NeededEngine(1, 5.0)

    found = plan(inventory(tmp_path, *(needs(key, key) for key in "abcd"), engines=engines))

    assert {each.key: each.after for each in found.manifest.shards} == {
        "a": ("b",), "b": (), "c": ("b",), "d": (),
    }  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.floats(1, 100)), max_size=12))
def test_shards_never_wait_in_a_circle(given: list[tuple[str, float]]) -> None:
    folder = Path("/nowhere")
    engines = {str(n): NeededEngine(1, load, name) for n, (name, load) in enumerate(given)}
    # Each engine is compared with the next but one, so that shards need several checkpoints.
    tests = [needs(str(n), str(n), str((n + 2) % len(given))) for n in range(0, len(given), 3)]
    found = plan(inventory(folder, *tests, engines=engines)).manifest.shards

    ended: set[str] = set()
    for _ in found:
        ended |= {each.key for each in found if ended.issuperset(each.after)}
    assert ended == {each.key for each in found}


def earlier(folder: Path, *durations: tuple[str, float], outcome: str = "passed", **header: Any) -> Path:
    tests = [dataclasses.replace(record(nodeid=name, outcome=outcome), duration=took) for name, took in durations]
    given = RunHeader(**{"id": "8a1c", "started": NOW, "gpu": "cpu", "engine": "torch", **header})
    folder.mkdir()
    (folder / "run.json").write_text(to_json(run_document(given, tests, Decision(("not asked",)))))
    return folder


def test_what_earlier_runs_took_goes_before_a_guess(tmp_path: Path) -> None:
    runs = [
        earlier(tmp_path / "1", ("1", 100.0), ("2", 20.0)),
        earlier(tmp_path / "2", ("1", 200.0), ("2", 40.0)),
        earlier(tmp_path / "3", ("1", 5.0), ("2", 5.0), gpu="h200"),
        earlier(tmp_path / "4", ("1", 5.0)),  # of a part of the shard: whether it paid for loading nobody knows
        earlier(tmp_path / "5", ("1", 0.1), ("2", 0.1), outcome="skipped"),
    ]
    known = known_durations(runs, gpu="cpu", engine="torch")

    found = plan(inventory(tmp_path, needs("1", "a"), needs("2", "a"), needs("3", "b")), known=known)

    shards = {each.key: each for each in found.manifest.shards}
    assert (shards["a"].minutes, shards["a"].basis) == (3.0, "2 earlier runs")
    assert shards["b"].basis == "a guess"


def test_what_a_test_without_a_promise_took_is_known(tmp_path: Path) -> None:
    """It skips when all is measured."""
    test = dataclasses.replace(record(result("no-baseline", nodeid="1"), outcome="skipped"), duration=60.0)
    (tmp_path / "1").mkdir()
    header = RunHeader("8a1c", NOW, "cpu", "torch")
    (tmp_path / "1" / "run.json").write_text(to_json(run_document(header, [test], Decision(("no promise",)))))

    (known,) = known_durations([tmp_path / "1"], gpu="cpu", engine="torch")

    assert known.of(["1"]) == 60.0


def test_larger_models_load_and_work_longer_and_more_gpus_work_faster() -> None:
    small = case("tensorrt-llm/llama-3.1-8b/modelopt-fp8/tp8/max-throughput-128-128")
    large = case("tensorrt-llm/llama-3.3-70b/modelopt-fp8/tp8/max-throughput-128-128")
    narrow = case("tensorrt-llm/llama-3.3-70b/modelopt-fp8/tp1/max-throughput-128-128")

    assert load_seconds(EngineSpec.of(small)) < load_seconds(EngineSpec.of(large))
    assert work_seconds(small, 8, evaluated=False) < work_seconds(large, 8, evaluated=False)
    assert work_seconds(narrow, 8, evaluated=False) == pytest.approx(8 * work_seconds(large, 8, evaluated=False))


def test_a_manifest_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    given = Manifest(
        "run-1", NOW, ("suites", "-k", "a or b"), about(tmp_path), (shard("a"), shard("b", after=("a",))), ("x",)
    )

    given.write(tmp_path / NAME)

    assert read_manifest(tmp_path) == given
    assert read_manifest(tmp_path / NAME) == given


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"schema": 2}, "schema 2, this version reads 1; a newer version"),
        ({"schema": None}, "schema None"),
        ({"deselected": ["y"]}, "was changed after it was written"),
        ({"checksum": None}, "was changed after it was written"),
    ],
)
def test_a_manifest_of_another_version_or_edited_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    found = campaign(tmp_path / "out", shard("a"))
    edited(found.path / NAME, **changes)

    with pytest.raises(UsageError, match=told):
        read_manifest(found.path)


def test_the_run_of_a_session_is_no_manifest(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(to_json(run_document(RunHeader("8a1c", NOW, "h200", "predicted"), [], Decision(()))))

    with pytest.raises(UsageError, match=r"run.json: is no manifest as this version writes it: 'planned' is missing"):
        read_manifest(path)


def test_a_manifest_that_is_cut_off_or_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be read: .*; `llamaperf plan` writes one"):
        read_manifest(tmp_path)
    (tmp_path / NAME).write_text('{"schema": 1')
    with pytest.raises(UsageError, match="was it cut off"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("shards", "told"),
    [
        ((shard("a"), shard("a", "other")), "the shard a stands in it twice"),
        ((shard("a", "t"), shard("b", "t")), "the test t stands in it twice"),
        ((shard("a", after=("b",)), shard("b", after=("a",))), "waits for shards that wait for it"),
        ((shard("a", after=("gone",)),), "or are not there"),
        ((shard("a", devices=0),), "0 devices"),
        ((shard("a", minutes=-1.0),), "-1.0 minutes"),
        ((shard("a", kind="speed"),), "speed"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(tmp_path: Path, shards: tuple[Any, ...], told: str) -> None:
    found = campaign(tmp_path / "out", *shards)

    with pytest.raises(UsageError, match=told):
        read_manifest(found.path)


def test_shards_that_are_whole_and_of_this_run_are_done(tmp_path: Path) -> None:
    found = campaign(tmp_path / "out", *(shard(key) for key in "abcd"))
    a, b, c, d = found.manifest.shards
    for each in (a, b, c):
        leave_results(found, each)
    (found.folder(b) / "run.json").unlink()
    path = found.folder(c) / "run.json"
    path.write_text(path.read_text()[:-9])

    assert found.remaining() == [b, c, d]


def test_another_run_in_the_folder_is_refused_before_anything_starts(tmp_path: Path) -> None:
    found = campaign(tmp_path / "out", shard("a"))
    leave_results(found, found.manifest.shards[0], shard={"run": "run-0", "key": "a"})

    with pytest.raises(UsageError, match="is of another run, run-0; every run has a folder of its own"):
        found.check()


def test_other_versions_than_planned_are_refused_before_anything_starts(tmp_path: Path) -> None:
    versions = {**about(tmp_path).versions, "tensorrt_llm": "1.1.0", "pytest_llamaperf": "0.0.9"}
    found = campaign(tmp_path / "out", shard("a"), versions=versions)

    with pytest.raises(
        UsageError, match=r"pytest_llamaperf 0.0.9 and here .*; tensorrt_llm 1.1.0 and here not; plan again"
    ):
        found.check()


def test_how_a_shard_ended_says_whether_it_is_tried_again(tmp_path: Path) -> None:
    found = campaign(tmp_path / "out", shard("a"))
    (only,) = found.manifest.shards

    assert found.ending(only, Exit(signal=9)).end is End.LOST
    assert found.ending(only, Exit(status=0)).end is End.LOST  # and no results
    assert found.ending(only, Exit(status=4)).end is End.BROKEN
    assert found.ending(only, Exit(status=3)).end is End.BROKEN
    leave_results(found, only)
    assert found.ending(only, Exit(status=1)).end is End.DONE
    assert found.ending(only, Exit(signal=9)).end is End.LOST


def test_a_shard_that_was_asked_to_end_is_not_done_and_lost(tmp_path: Path) -> None:
    """pytest ends in order then, and writes its files."""
    found = campaign(tmp_path / "out", shard("a"))
    (only,) = found.manifest.shards
    leave_results(found, only, interrupted="SIGTERM")

    assert found.remaining() == [only]
    assert found.ending(only, Exit(status=2)) == Ending(End.LOST, "was ended by SIGTERM")


def test_what_an_attempt_left_is_set_aside(tmp_path: Path) -> None:
    found = campaign(tmp_path / "out", shard("a"))
    (only,) = found.manifest.shards
    for _ in range(2):
        found.folder(only).mkdir(parents=True)
        found.set_aside(only)

    assert not found.folder(only).exists()
    assert sorted(path.name for path in (found.path / "lost").iterdir()) == ["0001-a-1", "0001-a-2"]


def machine(*names: str | None) -> Machine:
    gpus = tuple(FoundGpu(name, f"NVIDIA {name}", 1, f"GPU-{n}") for n, name in enumerate(names))
    return Machine(gpus, "570", "a CPU", None, cores=2)


def test_devices_are_the_gpus_of_the_run_by_uuid(tmp_path: Path) -> None:
    h200 = about(tmp_path, gpu="h200", engine="tensorrt-llm")

    assert devices_of(machine("h200", None, "h200"), h200, [shard("a", devices=2)], None) == ("GPU-0", "GPU-2")


def test_slots_are_as_many_as_cores_or_as_the_largest_needs(tmp_path: Path) -> None:
    cpu = about(tmp_path)

    assert devices_of(machine(), cpu, [shard("a")], None) == ("0", "1")
    assert devices_of(machine(), cpu, [shard("a", devices=4)], None) == ("0", "1", "2", "3")
    assert devices_of(machine(), cpu, [shard("a")], 3) == ("0", "1", "2")


@pytest.mark.parametrize(
    ("gpu", "engine", "slots", "told"),
    [
        (
            "h200",
            "tensorrt-llm",
            None,
            r"a \(and 1 other shard\) needs 8 GPUs, and this node has 2; .* run on several nodes",
        ),
        (
            "h100",
            "tensorrt-llm",
            None,
            "this run is about h100, and there is none in this machine; found: 2 x NVIDIA h200",
        ),
        ("h200", "tensorrt-llm", 4, "--slots are of a CPU"),
        ("cpu", "torch", 4, "needs 8 slots, and this node has 4; .* give more --slots"),
    ],
)
def test_a_node_that_is_too_small_is_told_before_anything_starts(
    tmp_path: Path, gpu: str, engine: str, slots: int | None, told: str
) -> None:
    shards = [shard("a", devices=8), shard("b", devices=8), shard("c", devices=1)]

    with pytest.raises(UsageError, match=told):
        devices_of(machine("h200", "h200"), about(tmp_path, gpu=gpu, engine=engine), shards, slots)


def test_an_inventory_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    given = dataclasses.replace(inventory(tmp_path, needs("1", "a", "b"), NeededTest("2", ())), deselected=("x",))

    given.write(tmp_path / "inventory.json")

    assert Inventory.read(tmp_path / "inventory.json") == given
    assert json.loads((tmp_path / "inventory.json").read_text())["about"]["gpu"] == "cpu"
