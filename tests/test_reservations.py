"""One session at a time measures on a GPU or a CPU: with real processes, ended in every way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engine_sessions import wait_for

from pytest_llamaperf.reservations import SUFFIX, Taken, folder, reserve

HOLD = """
import sys
from pathlib import Path
from pytest_llamaperf.reservations import Taken, reserve
try:
    held = reserve(sys.argv[2:], Path(sys.argv[1]))
except Taken as taken:
    print("refused:", taken, flush=True)
else:
    print("reserved", held.alone, flush=True)
    input()
    held.release()
"""

Hold = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Hold]:
    """Starts a process that reserves names; through a shell that ends at once it is nobody's child."""
    started: list[subprocess.Popen[str]] = []

    def start(*names: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path / "locks"), *names],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "locks").iterdir())


def test_who_comes_second_is_refused_and_told_who_measures_since_when(hold: Hold, tmp_path: Path) -> None:
    first = hold("GPU-0", "GPU-1")
    assert said(first) == "reserved True"

    told = said(hold("GPU-1", "GPU-2"))

    assert re.fullmatch(
        rf"refused: GPU-1 is measured on by process {first.pid} \(.*GPU-0 GPU-1\) since 20\d\d-\d\d-\d\dT[\d:]+Z", told
    )
    assert len(files(tmp_path)) == 2  # of the first: the second has reserved nothing of what was free
    assert said(hold("GPU-2", "cpu")) == "reserved True"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_however_a_session_ends_the_next_one_measures_and_nothing_stays(
    hold: Hold, tmp_path: Path, number: signal.Signals
) -> None:
    first = hold("cpu")
    said(first)
    first.send_signal(number)
    first.wait()

    second = hold("cpu")

    assert said(second) == "reserved True"
    assert len(files(tmp_path)) == 1
    second.communicate("\n")
    assert files(tmp_path) == []


def test_of_many_that_come_at_once_one_measures(hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes its time between looking who is there and saying that it is there itself."""
    slow = """
import time
from pytest_llamaperf import reservations
holders = reservations._holders
def slowly(root, name):
    found = [*holders(root, name)]
    time.sleep(0.5)
    return found
reservations._holders = slowly
"""
    monkeypatch.setattr("test_reservations.HOLD", slow + HOLD)
    processes = [hold("cpu") for _ in range(4)]

    assert sorted(said(process).split()[0] for process in processes) == [*["refused:"] * 3, "reserved"]


def test_who_waits_measures_when_the_other_has_ended(hold: Hold, tmp_path: Path) -> None:
    first = hold("cpu")
    said(first)
    told: list[str] = []
    threading.Timer(0.7, first.kill).start()

    reserve(["cpu"], tmp_path / "locks", patience=60, tell=told.append).release()

    assert re.match(rf"waiting: cpu is measured on by process {first.pid} ", told[0])
    assert first.wait() == -signal.SIGKILL


def test_who_waits_does_not_wait_for_ever(hold: Hold, tmp_path: Path) -> None:
    said(hold("cpu"))
    began = time.monotonic()

    with pytest.raises(Taken):
        reserve(["cpu"], tmp_path / "locks", patience=0.8)

    assert time.monotonic() - began >= 0.8


def test_a_session_that_a_test_of_another_one_runs_is_part_of_that(hold: Hold, tmp_path: Path) -> None:
    ours = reserve(["cpu"], tmp_path / "locks")
    again = reserve(["cpu"], tmp_path / "locks")  # within this process, as pytester runs sessions
    assert not again.alone
    again.release()

    assert said(hold("cpu")) == "reserved False"
    ours.release()
    with pytest.raises(Taken):  # we do not descend from it
        reserve(["cpu"], tmp_path / "locks")


def test_the_number_of_a_process_in_another_container_is_no_ancestor(hold: Hold, tmp_path: Path) -> None:
    said(hold("cpu"))
    (path,) = (tmp_path / "locks").iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), "pid": os.getpid(), "namespace": "pid:[1]"}))

    with pytest.raises(Taken):
        reserve(["cpu"], tmp_path / "locks")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', "null", "\udcff"])
def test_who_does_not_say_who_it_is_measures_all_the_same(hold: Hold, tmp_path: Path, text: str) -> None:
    said(hold("cpu"))
    (path,) = (tmp_path / "locks").iterdir()
    path.write_bytes(text.encode(errors="surrogateescape"))

    with pytest.raises(Taken, match="cpu is measured on by a process that does not say who it is"):
        reserve(["cpu"], tmp_path / "locks")


def test_a_file_of_another_user_that_nobody_locks_shuts_nobody_out(tmp_path: Path) -> None:
    root = tmp_path / "locks"
    root.mkdir()
    (root / f"cpu.0{SUFFIX}").write_text("left")

    reserve(["cpu"], root).release()

    assert list(root.iterdir()) == []


def test_a_folder_that_is_made_is_for_all_users(tmp_path: Path) -> None:
    reserve(["cpu"], tmp_path / "a" / "b").release()

    assert (tmp_path / "a" / "b").stat().st_mode & 0o7777 == 0o1777


def test_the_folder_is_of_the_machine_and_not_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/somewhere")
    monkeypatch.delenv("LLAMAPERF_LOCKS")
    assert folder() == Path("/tmp/llamaperf-locks")

    monkeypatch.setenv("LLAMAPERF_LOCKS", "/shared/locks")
    assert folder() == Path("/shared/locks")


def test_children_do_not_hold_what_their_parent_has_reserved(hold: Hold, tmp_path: Path) -> None:
    """An engine may outlive a pytest that was killed by a moment."""
    program = HOLD.replace(
        "input()", "import subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True); input()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "locks"), "cpu"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    said(parent)
    child = int(said(parent))
    parent.kill()
    parent.wait()

    try:
        assert wait_for(lambda: said(hold("cpu")) == "reserved True")
    finally:
        os.kill(child, signal.SIGKILL)
        for stream in (parent.stdin, parent.stdout):
            assert stream is not None
            stream.close()


def test_shards_of_one_run_measure_side_by_side(hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever started them shares the machine out."""
    monkeypatch.setenv("LLAMAPERF_RUN", "run-1")
    assert said(hold("cpu")) == "reserved True"
    assert said(hold("cpu")) == "reserved False"

    monkeypatch.setenv("LLAMAPERF_RUN", "run-2")
    assert said(hold("cpu")).startswith("refused: cpu is measured on by process")

    monkeypatch.delenv("LLAMAPERF_RUN")
    assert said(hold("cpu")).startswith("refused: cpu is measured on by process")
