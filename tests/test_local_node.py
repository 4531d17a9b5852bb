"""Shards as real processes on the slots of a node: whose devices are whose, who is alone, who is tried again."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import psutil
import pynvml
import pytest
from nvml_driver import H200, Driver
from shard_builders import campaign, leave_results, shard

from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.scaling.contract import GRANT, Campaign, Outcome
from pytest_llamaperf.scaling.local import Node
from pytest_llamaperf.scaling.manifest import Shard
from pytest_llamaperf.scaling.watching import Lines, LiveTable, Standing, duration, ranges, summary, watcher

# A shard: says what it was given and when, does what it is told, and brings the results that were prepared for it.
PROGRAM = """
import json, os, shutil, signal, subprocess, sys, time
ready, folder, log, given = sys.argv[1:]
told = json.loads(given)
def note(verb):
    with open(log, "a") as file:
        told_devices = os.environ["LLAMAPERF_DEVICES"].split(",")
        file.write(json.dumps([verb, told["key"], told_devices, time.monotonic(), os.environ.get("CUDA_VISIBLE_DEVICES")]) + "\\n")
attempt = sum(json.loads(line)[:2] == ["start", told["key"]] for line in open(log))
note("start")
if told.get("escape") and not attempt:
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
time.sleep(told["seconds"])
note("end")
if attempt < told.get("killed", 0):
    os.kill(os.getpid(), signal.SIGKILL)
if told.get("status", 0) not in (0, 1):
    sys.exit(told["status"])
for name in os.listdir(ready):
    shutil.copy(os.path.join(ready, name), folder)
sys.exit(told.get("status", 0))
"""


@dataclasses.dataclass(frozen=True)
class Acted(Campaign):
    """A run whose shards are PROGRAM; `acts` says what each does."""

    acts: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def command(self, shard: Shard) -> list[str]:
        told = json.dumps({"key": shard.key, "seconds": 0.1, **self.acts.get(shard.key, {})})
        ready = self.path / "ready" / shard.key
        return [sys.executable, "-I", "-S", "-c", PROGRAM, str(ready), str(self.folder(shard)), str(self.log), told]

    @property
    def log(self) -> Path:
        return self.path / "log"

    def spans(self) -> list[tuple[str, tuple[str, ...], float, float]]:
        """Of every attempt: key, devices, start, end."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        found, open_ = [], {}
        for verb, key, devices, at, _ in lines:
            if verb == "start":
                open_[key] = at
            else:
                found.append((key, tuple(devices), open_.pop(key), at))
        return found


class Heard:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.shown: list[Standing] = []

    def tell(self, line: str) -> None:
        self.lines.append(line)

    def show(self, standing: Standing) -> None:
        self.shown.append(standing)

    def close(self) -> None:
        pass


def acted(folder: Path, *shards: Shard, gpu: str = "cpu", engine: str = "torch", **acts: dict[str, Any]) -> Acted:
    plain = campaign(folder / "out", *shards, gpu=gpu, engine=engine)
    found = Acted(plain.manifest, plain.path, acts)
    for each in shards:
        ready = found.path / "ready" / each.key
        ready.parent.mkdir(exist_ok=True)
        leave_results(found, each).rename(ready)
    found.log.touch()
    return found


def run(given: Acted, devices: int = 4, *, alone: bool = True) -> tuple[Outcome, Heard]:
    heard = Heard()
    names = tuple(f"GPU-{n}" for n in range(devices))
    return Node(given, names, "a-machine", heard, alone=alone).run(), heard


def overlapping(spans: list[tuple[str, tuple[str, ...], float, float]]) -> list[tuple[str, str]]:
    """Pairs that held a device at the same time."""
    return [
        (a[0], b[0])
        for n, a in enumerate(spans)
        for b in spans[n + 1 :]
        if set(a[1]) & set(b[1]) and a[2] < b[3] and b[2] < a[3]
    ]


def test_all_run_and_no_two_hold_a_device_at_the_same_time(tmp_path: Path) -> None:
    shards = [shard(f"s{n}", devices=1 + n % 3) for n in range(9)]
    given = acted(tmp_path, *shards)

    outcome, _ = run(given)

    spans = given.spans()
    assert outcome == Outcome({}, (), False)
    assert sorted(key for key, *_ in spans) == [each.key for each in shards]
    assert {key: len(devices) for key, devices, *_ in spans} == {each.key: each.devices for each in shards}
    assert overlapping(spans) == []
    assert given.remaining() == []


def test_devices_are_told_as_cuda_reads_them(tmp_path: Path) -> None:
    given = acted(tmp_path, shard("a", devices=2), gpu="h200", engine="tensorrt-llm")

    run(given)

    first = json.loads(given.log.read_text().splitlines()[0])
    assert first[4] == "GPU-0,GPU-1"


def test_a_shard_that_measures_is_alone_on_the_node(tmp_path: Path) -> None:
    shards = [shard("fast", kind="performance"), *(shard(f"s{n}") for n in range(4))]
    given = acted(tmp_path, *shards)

    run(given)

    spans = {key: (start, end) for key, _, start, end in given.spans()}
    start, end = spans.pop("fast")
    assert all(other_end <= start or other_start >= end for other_start, other_end in spans.values())


def test_shards_that_measure_may_share_the_node_where_somebody_says_so(tmp_path: Path) -> None:
    shards = [shard(f"s{n}", kind="performance") for n in range(2)]
    given = acted(tmp_path, *shards, s0={"seconds": 1.0}, s1={"seconds": 1.0})

    run(given, alone=False)

    (_, _, first, ended), (_, _, second, also_ended) = given.spans()
    assert max(first, second) < min(ended, also_ended)


def test_what_waits_for_a_checkpoint_starts_when_its_maker_has_ended(tmp_path: Path) -> None:
    given = acted(tmp_path, shard("user", devices=4, after=("maker",)), shard("maker"))

    run(given)

    assert [key for key, *_ in given.spans()] == ["maker", "user"]


def test_what_is_killed_is_tried_once_more_and_no_more(tmp_path: Path) -> None:
    given = acted(tmp_path, shard("once"), shard("always"), once={"killed": 1}, always={"killed": 9})

    outcome, heard = run(given)

    attempts = [key for key, *_ in given.spans()]
    assert (attempts.count("once"), attempts.count("always")) == (2, 2)
    assert outcome.without == {"always": "died by signal 9 (SIGKILL)"}
    assert any(line.startswith("lost     once: died by signal 9 (SIGKILL); it is tried") for line in heard.lines)
    assert sorted(path.name for path in (given.path / "lost").iterdir()) == ["0001-once-1", "0002-always-1"]


def test_what_pytest_refuses_is_not_tried_again(tmp_path: Path) -> None:
    given = acted(tmp_path, shard("a"), a={"status": 4})

    outcome, heard = run(given)

    assert len(given.spans()) == 1
    assert outcome.without == {"a": "pytest ended with exit status 4"}
    assert any("its output: " in line for line in heard.lines)


def test_a_shard_whose_tests_fail_has_results(tmp_path: Path) -> None:
    given = acted(tmp_path, shard("a"), a={"status": 1})

    outcome, _ = run(given)

    assert outcome.without == {}
    assert len(given.spans()) == 1


def test_what_escaped_is_ended_before_its_devices_are_handed_on(tmp_path: Path) -> None:
    """In a session of its own, and its parent gone: by the mark it inherited."""
    given = acted(tmp_path, shard("a", devices=4), shard("b", devices=4), a={"escape": True}, b={"seconds": 0.5})
    seen: list[list[str]] = []

    class Looking(Heard):
        def tell(self, line: str) -> None:
            if line.startswith("started  b"):
                seen.append(marked("sleep"))

    Node(given, ("0", "1", "2", "3"), "a-machine", Looking()).run()

    assert seen == [[]]
    assert marked("sleep") == []


def marked(name: str) -> list[str]:
    """Living processes of that name with the mark of a shard."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.name() == name and GRANT in process.environ() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(str(process.pid))
        except psutil.Error:
            continue
    return found


def test_only_what_has_no_results_is_run(tmp_path: Path) -> None:
    given = acted(tmp_path, shard("a"), shard("b"))
    leave_results(given, given.manifest.shards[0])

    _, heard = run(given)

    assert [key for key, *_ in given.spans()] == ["b"]
    assert heard.shown[0].done == 1


def locked_by_the_dead(driver: Driver) -> Path:
    locks = Path(os.environ["LLAMAPERF_LOCKS"])
    locks.mkdir(parents=True)
    driver.locked = {0: 1200}
    (locks / "GPU-0.clocks").write_text('{"mhz": 1200, "pid": 1}\n')
    return locks


def test_clocks_that_a_killed_shard_locked_are_unlocked_before_others_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard itself never is alone on the node that `llamaperf run` holds, and leaves clocks as they are."""
    driver = Driver(monkeypatch, H200)
    locks = locked_by_the_dead(driver)
    made = acted(tmp_path, shard("a"), gpu="h200", engine="tensorrt-llm")

    Node(made, ("GPU-0",), "h200", Heard()).run()

    assert driver.locked == {}
    assert list(locks.iterdir()) == []


def test_on_clocks_that_stay_locked_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, H200)
    locks = locked_by_the_dead(driver)
    driver.fail("nvmlDeviceResetGpuLockedClocks", pynvml.NVML_ERROR_NO_PERMISSION)
    made = acted(tmp_path, shard("a"), gpu="h200", engine="tensorrt-llm")

    with pytest.raises(UsageError, match="the clocks of GPU 0 are locked"):
        Node(made, ("GPU-0",), "h200", Heard()).run()

    assert made.spans() == []
    assert [path.name for path in locks.iterdir()] == ["GPU-0.clocks"]


def test_how_things_stand_is_told_with_what_is_next_and_the_time_left(tmp_path: Path) -> None:
    given = acted(tmp_path, shard("a", devices=4, minutes=2.0), shard("b", devices=4, minutes=3.0), b={"seconds": 1.5})

    _, heard = run(given)

    first = heard.shown[0]
    assert [busy.shard.key for busy in first.running] == ["b"]  # the longer one goes first
    assert [each.key for each in first.waiting] == ["a"]
    assert 290 < first.left <= 300
    assert summary(first) == "0 of 2 shards done, 1 running, 1 waiting; about 5 min left"


def test_a_terminal_gets_a_table_and_a_log_gets_lines() -> None:
    from io import StringIO

    from rich.console import Console

    assert isinstance(watcher(Console(file=StringIO())), Lines)
    terminal = watcher(Console(file=(shown := StringIO()), force_terminal=True, width=120))
    assert isinstance(terminal, LiveTable)
    from pytest_llamaperf.scaling.watching import Busy

    busy = Busy(shard("[red]a[/red]", minutes=5.0), "0-1,3", 61.0)
    terminal.show(Standing((busy,), (shard("later"),), 3, 1, 7200.0))
    terminal.tell("started  [red]a[/red] on 0-1,3")
    terminal.close()
    for told in (
        "0-1,3",
        "61 s",
        "5 min",
        "[red]a[/red]",
        "next",
        "later",
        "3 of 6 shards done, 1 without results",
        "2 h 0 min",
    ):
        assert told in shown.getvalue(), told


def test_of_very_many_shards_at_work_some_are_shown_and_the_rest_is_counted() -> None:
    from io import StringIO

    from rich.console import Console

    from pytest_llamaperf.scaling.watching import Busy

    terminal = watcher(Console(file=(shown := StringIO()), force_terminal=True, width=120, height=60))
    terminal.show(Standing(tuple(Busy(shard(f"a{n}"), "n1", 1.0) for n in range(25)), (), 0, 0, None))
    terminal.close()

    assert "a19" in shown.getvalue()
    assert "a20" not in shown.getvalue()
    assert "and 5 more" in shown.getvalue()
    assert "25 running, 0 waiting" in shown.getvalue()
    assert "left" not in shown.getvalue()


@pytest.mark.parametrize(("seconds", "told"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5400, "1 h 30 min")])
def test_durations_are_told_as_people_say_them(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_devices_are_told_as_ranges() -> None:
    assert ranges([3, 0, 1, 2, 6]) == "0-3,6"
