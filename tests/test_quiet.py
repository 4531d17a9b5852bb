"""Whether others are at work, asked of a machine on which somebody else really is."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from pytest_llamaperf.engines import Run
from pytest_llamaperf.measuring import Round
from pytest_llamaperf.quiet import TOLERATED_CORES, CpuReading
from pytest_llamaperf.traces import Trace

BUSY = "while True: pass"
# Starts a busy process that is nobody's descendant any more, and writes its number down.
STRANGER = """
import os, time
if os.fork():
    os._exit(0)
os.setsid()
print(os.getpid(), flush=True)
os.close(1)
until = time.monotonic() + 30
while time.monotonic() < until: pass
"""
TICK = 0.02  # seconds: what the kernel counts in, on both sides


def worked(pid: int, seconds: float) -> float:
    """CPU seconds that a process had when it had enough."""
    process = psutil.Process(pid)
    while (used := sum(process.cpu_times()[:2])) < seconds:
        time.sleep(0.01)
    return float(used)


@contextlib.contextmanager
def child(program: str = BUSY) -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        try:
            yield process.pid
        finally:
            process.kill()


@contextlib.contextmanager
def stranger() -> Iterator[int]:
    started = subprocess.run([sys.executable, "-c", STRANGER], stdout=subprocess.PIPE, text=True, check=True)
    process = psutil.Process(int(started.stdout))
    try:
        yield process.pid
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("machine", "ours", "cores"),
    [(3.0, 3.0, 0.0), (3.0, 1.0, 1.0), (5.0, 2.0, 1.5), (3.0, 3.2, 0.0)],  # the last: counters are read one by one
)
def test_others_use_what_the_machine_did_and_we_did_not(machine: float, ours: float, cores: float) -> None:
    earlier, later = CpuReading(10.0, 100.0, 50.0), CpuReading(12.0, 100.0 + machine, 50.0 + ours)

    assert later.other_cores(earlier) == pytest.approx(cores)


def test_two_readings_at_once_say_nothing() -> None:
    reading = CpuReading(10.0, 100.0, 50.0)

    assert reading.other_cores(reading) == 0.0


def test_what_a_stranger_does_is_others_work() -> None:
    with stranger() as pid:
        before, worked_before = CpuReading.now(), worked(pid, 0.05)
        worked_after = worked(pid, worked_before + 0.4)
        after = CpuReading.now()

    elapsed = after.clock - before.clock
    assert after.other_cores(before) * elapsed >= worked_after - worked_before - 5 * TICK
    assert after.ours - before.ours < 0.3  # mostly asleep


def test_what_our_children_do_is_ours() -> None:
    before = CpuReading.now()
    with child() as pid:
        used = worked(pid, 0.4)
        after = CpuReading.now()

    assert after.ours - before.ours >= used - 5 * TICK


def test_what_our_children_did_is_ours_also_after_they_ended() -> None:
    before = CpuReading.now()
    with child(
        "import os; os.wait() if os.fork() else [os.times() for _ in iter(lambda: os.times()[0] < 0.4, False)]"
    ) as pid:
        ended = psutil.Process(pid)
        while ended.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
    after = CpuReading.now()

    assert after.ours - before.ours >= 0.4 - 5 * TICK


def test_the_machine_did_at_least_what_we_did() -> None:
    before = CpuReading.now()
    until = os.times().user + 0.3
    while os.times().user < until:
        pass
    after = CpuReading.now()

    assert after.clock > before.clock
    assert after.machine - before.machine >= after.ours - before.ours - 5 * TICK


@pytest.mark.parametrize(
    ("cores", "disturbed"), [(0.0, False), (TOLERATED_CORES, False), (TOLERATED_CORES + 0.01, True)]
)
def test_a_round_is_disturbed_beyond_what_is_tolerated(cores: float, disturbed: bool) -> None:
    assert Round(Run((Trace(0.0, 1.0, 2.0, 1, 1),)), cores).disturbed is disturbed
