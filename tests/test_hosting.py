"""Drivers in processes of their own, really started and really ended, with every way to misbehave."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.hosting import host as host_module
from pytest_llamaperf.hosting import processes
from pytest_llamaperf.hosting.channel import Channel, Cut, Expired
from pytest_llamaperf.hosting.failures import EngineFailure, FailureKind
from pytest_llamaperf.hosting.host import PROGRAM, Host, Progress
from pytest_llamaperf.hosting.phases import Deadlines, Phase

PATIENCE = 20.0  # seconds, on a machine that does other things too
PATIENT = Deadlines(PATIENCE, PATIENCE, PATIENCE)
SOON = 8.0  # seconds for what takes well below one, and for nothing that waits for a deadline

DRIVER = """
import errno, json, os, resource, signal, subprocess, sys, time
{top}

def open_driver(report):
{opening}
    return Driver(report)

class Driver:
    def __init__(self, report):
        self.report = report
        self.events = report.__self__._descriptor  # for those who break the protocol

    def handle(self, command, arguments):
{handle}

    def close(self):
{close}
"""

# A process that ignores SIGTERM and writes its number to the file that is its argument, when it does.
STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open(sys.argv[1] + '.part', 'w') as file:
    file.write(str(os.getpid()))
os.rename(sys.argv[1] + '.part', sys.argv[1])
time.sleep(120)
"""

WriteDriver = Callable[..., Path]
StartHost = Callable[..., Host]


@pytest.fixture
def write_driver(tmp_path: Path) -> WriteDriver:
    """Writes a driver from the bodies of its functions."""

    def write(handle: str = "pass", *, close: str = "pass", opening: str = "pass", top: str = "") -> Path:
        body = {"handle": (handle, 8), "close": (close, 8), "opening": (opening, 4), "top": (top, 0)}
        path = tmp_path / "driver.py"
        path.write_text(
            DRIVER.format(**{
                name: textwrap.indent(textwrap.dedent(text).strip(), " " * depth) for name, (text, depth) in body.items()
            })
        )  # fmt: skip
        return path

    return write


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartHost]:
    """Starts hosts; after the test none of their processes may be alive."""
    started: list[Host] = []

    def start(driver: str | Path, **options: Any) -> Host:
        host = Host(driver, **{"log": tmp_path / "engine.log", "deadlines": PATIENT, **options})
        started.append(host)
        return host

    yield start
    for host in started:
        host.kill()
        assert host.left_over() == []


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE", 0.3)


def is_alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - pathlib would open them


# Calls


def test_a_call_comes_back_with_the_drivers_answer(start: StartHost, write_driver: WriteDriver) -> None:
    host = start(write_driver("return {'asked': command, 'with': arguments, 'pid': os.getpid()}"))

    answer = host.call("generate", {"text": "größer\n", "number": 0.1, "none": None}, Phase.RUN)

    assert answer == {
        "asked": "generate",
        "with": {"text": "größer\n", "number": 0.1, "none": None},
        "pid": host.pid,
    }
    assert [host.call("again", {}, Phase.RUN)["asked"] for _ in range(3)] == ["again"] * 3


def test_progress_is_told_with_its_phase_and_the_last_one_always(start: StartHost, write_driver: WriteDriver) -> None:
    told: list[Progress] = []
    driver = write_driver(
        """
        until, count = time.monotonic() + 0.5, 0
        while time.monotonic() < until:
            count += 1
            self.report("layers", count)
        self.report("layers", count, count)
        return count
        """,
        opening="report('opening', 1, 1)",
    )

    count = start(driver, on_progress=told.append).call("load", {}, Phase.RUN)

    assert told[0] == Progress(Phase.LOAD, "opening", 1, 1)
    assert told[1].total is None
    assert told[-1] == Progress(Phase.RUN, "layers", count, count)
    assert 3 <= len(told) <= 9
    assert count > 100


def test_what_a_driver_and_its_children_print_goes_to_the_log(
    start: StartHost, write_driver: WriteDriver, tmp_path: Path
) -> None:
    driver = write_driver(
        """
        print('{"id": 1, "result": "printed"}')
        sys.__stdout__.write("through the old name")
        os.write(1, b'{"id": 1, "result": "written"}\\n')
        subprocess.run(["echo", "echoed"], check=True)
        return "answered"
        """,
        top="print('at import')",
    )

    with start(driver) as host:
        assert host.call("load", {}, Phase.LOAD) == "answered"

    log = (tmp_path / "engine.log").read_text()
    for text in ("at import", '"printed"', "through the old name", '"written"', "echoed"):
        assert text in log


def test_children_of_a_driver_do_not_read_its_commands(start: StartHost, write_driver: WriteDriver) -> None:
    host = start(
        write_driver("return subprocess.run(['cat'], capture_output=True, text=True).stdout + sys.stdin.read()")
    )

    assert [host.call("load", {}, Phase.LOAD) for _ in range(2)] == ["", ""]


def test_a_log_is_added_to(start: StartHost, write_driver: WriteDriver, tmp_path: Path) -> None:
    log = tmp_path / "folder" / "engine.log"

    for word in ("first", "second"):
        with start(write_driver(top=f"print('{word}')"), log=log):
            pass

    assert log.read_text() == "first\nsecond\n"


def test_a_driver_gets_the_environment_it_is_given(start: StartHost, write_driver: WriteDriver) -> None:
    host = start(
        write_driver("return [os.environ.get(name) for name in arguments['names']]"), environment={"GIVEN": "this"}
    )

    given, path, owner = host.call("load", {"names": ["GIVEN", "PATH", "LLAMAPERF_OWNER"]}, Phase.LOAD)

    assert (given, path) == ("this", os.environ["PATH"])
    assert re.fullmatch("[0-9a-f]{32}-[0-9a-f]{32}", owner)


def test_large_commands_and_answers_are_quick(start: StartHost, write_driver: WriteDriver) -> None:
    host = start(write_driver("return arguments"))
    begun = time.monotonic()

    answer = host.call("load", {"text": "x" * 50_000_000}, Phase.LOAD)

    assert len(answer["text"]) == 50_000_000
    assert time.monotonic() - begun < SOON


def test_the_program_runs_under_an_interpreter_that_has_nothing_but_its_library(
    write_driver: WriteDriver, tmp_path: Path
) -> None:
    """-I and -S: no site-packages, no PYTHONPATH, not the folder one stands in."""
    driver = write_driver("return sorted(name for name in sys.modules if '.' not in name)")
    empty = tmp_path / "empty"
    empty.mkdir()
    commands = b'{"id": 1, "command": "load", "arguments": {}}\n{"id": 2, "command": "close", "arguments": {}}\n'

    process = subprocess.Popen(
        [base_python(), "-I", "-S", PROGRAM, driver], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=empty, env={}
    )
    output, _ = process.communicate(commands, timeout=PATIENCE)
    ready, loaded, closed = map(json.loads, output.splitlines())

    assert process.returncode == 0
    assert ready["ready"]["pid"] == process.pid
    assert closed == {"id": 2, "result": None}
    assert {"json", "driver"} < set(loaded["result"])
    assert set(loaded["result"]) - sys.stdlib_module_names == {"__main__", "driver"}


def test_a_host_runs_its_driver_under_the_python_it_is_given(start: StartHost, write_driver: WriteDriver) -> None:
    host = start(write_driver("return [sys.prefix, sys.base_prefix]"), python=base_python())

    assert host.call("load", {}, Phase.LOAD) == [sys.base_prefix, sys.base_prefix]
    assert sys.prefix != sys.base_prefix, "these tests run in a virtual environment"


def base_python() -> Path:
    return Path(getattr(sys, "_base_executable", sys.executable))


def test_the_end_of_stdin_closes_the_driver(write_driver: WriteDriver, tmp_path: Path) -> None:
    driver = write_driver(close=f"open({str(tmp_path / 'closed')!r}, 'w').close()")
    process = subprocess.Popen([sys.executable, PROGRAM, driver], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout
    assert b"ready" in process.stdout.readline()

    process.communicate(timeout=PATIENCE)

    assert process.returncode == 0
    assert (tmp_path / "closed").exists()


# Failures


@pytest.mark.parametrize(
    ("body", "kind", "text"),
    [
        ("raise RuntimeError('the weights are odd')", "crashed", "RuntimeError: the weights are odd"),
        ("raise MemoryError", "out-of-memory", "MemoryError"),
        (
            "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)); bytearray(1 << 40)",
            "out-of-memory",
            "MemoryError",
        ),
        ("raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))", "disk-full", "No space left on device"),
        ("import an_engine_nobody_has", "not-installed", "No module named 'an_engine_nobody_has'"),
        ("raise RuntimeError('rank 1 died by signal 9 (SIGKILL)')", "died", "rank 1 died by signal 9 (SIGKILL)"),
        ("os.kill(os.getpid(), 9)", "died", "'work': died by signal 9 (SIGKILL)"),
        ("os.abort()", "died", "'work': died by signal 6 (SIGABRT)"),
        ("os.kill(os.getpid(), signal.SIGRTMIN + 1)", "died", "'work': died by signal 35"),
        ("sys.exit(3)", "crashed", "'work': exit status 3"),
        ("os._exit(0)", "interrupted", "'work': exit status 0, and no answer"),
        ("return float('nan')", "protocol", "the result cannot be written as JSON: Out of range float values"),
        ("return {1, 2}", "protocol", "Object of type set is not JSON serializable"),
        ("os.write(self.events, b'no JSON\\n')", "protocol", "wanted answer 1, got 'no JSON'"),
        ("os.write(self.events, b'[' * 100000 + b'\\n')", "protocol", "wanted answer 1, got '[[["),
        ("os.write(self.events, b'\\xff\\n')", "protocol", "wanted answer 1, got '\ufffd'"),
        ("""os.write(self.events, b'{"id": 2, "result": 1}\\n')""", "protocol", 'wanted answer 1, got \'{"id": 2'),
        ("""os.write(self.events, b'{"id": 1, "result": NaN}\\n')""", "protocol", "wanted answer 1, got"),
        ("""os.write(self.events, b'{"ready": {}}\\n')""", "protocol", "wanted answer 1, got"),
        ("""os.write(self.events, b'{"progress": {"text": 1}}\\n')""", "protocol", "wanted answer 1, got"),
        ("""os.write(self.events, b'{"id": 1, "re'); os._exit(0)""", "protocol", 'cut off after \'{"id": 1, "re\''),
        ("os.close(self.events); time.sleep(600)", "protocol", "no more events, though the process goes on"),
    ],
)
def test_a_failure_is_named_and_ends_the_driver(
    start: StartHost, write_driver: WriteDriver, body: str, kind: str, text: str
) -> None:
    host = start(write_driver(body))
    begun = time.monotonic()

    with pytest.raises(EngineFailure) as failed:
        host.call("work", {}, Phase.RUN)

    assert (failed.value.kind, failed.value.phase) == (kind, Phase.RUN)
    assert text in failed.value.problem
    assert "engine.log" in str(failed.value)
    assert not is_alive(host.pid)
    assert time.monotonic() - begun < SOON


def test_after_a_failure_every_call_fails_and_closing_is_done(start: StartHost, write_driver: WriteDriver) -> None:
    host = start(write_driver("raise MemoryError"))
    with pytest.raises(EngineFailure):
        host.call("work", {}, Phase.RUN)

    with pytest.raises(EngineFailure, match="earlier: MemoryError") as failed:
        host.call("more", {}, Phase.CLOSE)
    host.close()

    assert (failed.value.kind, failed.value.phase) == (FailureKind.OUT_OF_MEMORY, Phase.RUN)


@pytest.mark.parametrize(
    ("parts", "kind", "text"),
    [
        ({"top": "import an_engine_nobody_has"}, "not-installed", "No module named 'an_engine_nobody_has'"),
        ({"top": "this is no Python"}, "crashed", "SyntaxError"),
        ({"opening": "raise MemoryError"}, "out-of-memory", "MemoryError"),
        ({"opening": "os.kill(os.getpid(), 11)"}, "died", "died by signal 11 (SIGSEGV)"),
        ({"top": "sys.exit('I will not')"}, "crashed", "exit status 1"),
    ],
)
def test_a_driver_that_does_not_start_says_why(
    start: StartHost, write_driver: WriteDriver, parts: dict[str, str], kind: str, text: str
) -> None:
    with pytest.raises(EngineFailure) as failed:
        start(write_driver(**parts))

    assert (failed.value.kind, failed.value.phase) == (kind, Phase.LOAD)
    assert text in str(failed.value)


def test_a_driver_that_is_not_there_is_named(start: StartHost) -> None:
    with pytest.raises(EngineFailure, match="No module named 'torch_lama'"):
        start("torch_lama")


@pytest.mark.parametrize(("mode", "reason"), [(None, "No such file"), (0o600, "Permission denied")])
def test_a_python_that_cannot_be_run_is_not_installed(
    start: StartHost, write_driver: WriteDriver, tmp_path: Path, mode: int | None, reason: str
) -> None:
    python = tmp_path / "python"
    if mode is not None:
        python.touch(mode)

    with pytest.raises(EngineFailure, match=f"cannot run {python}: {reason}") as failed:
        start(write_driver(), python=python)

    assert failed.value.kind == "not-installed"


def test_a_python_that_is_no_program_is_told(start: StartHost, write_driver: WriteDriver, tmp_path: Path) -> None:
    (tmp_path / "python").touch(0o700)

    with pytest.raises(EngineFailure, match="Exec format error"):
        start(write_driver(), python=tmp_path / "python")


def test_a_log_that_cannot_be_written_is_told(start: StartHost, write_driver: WriteDriver, tmp_path: Path) -> None:
    with pytest.raises(EngineFailure, match="Is a directory"):
        start(write_driver(), log=tmp_path)


def test_the_end_of_the_log_stands_in_the_failure(start: StartHost, write_driver: WriteDriver, tmp_path: Path) -> None:
    (tmp_path / "engine.log").write_text("of an earlier engine\n")
    host = start(write_driver("[print('line', number) for number in range(1000)]; sys.exit(3)"))

    with pytest.raises(EngineFailure) as failed:
        host.call("work", {}, Phase.RUN)

    assert failed.value.last_lines == tuple(f"line {number}" for number in range(980, 1000))


def test_a_short_log_is_quoted_to_the_last_word_before_a_death_and_without_what_others_wrote(
    start: StartHost, write_driver: WriteDriver, tmp_path: Path
) -> None:
    (tmp_path / "engine.log").write_text("of an earlier engine\n")
    host = start(write_driver("print('mine'); os.kill(os.getpid(), 9)"), environment={"PYTHONUNBUFFERED": ""})

    with pytest.raises(EngineFailure) as failed:
        host.call("work", {}, Phase.RUN)

    assert failed.value.last_lines == ("mine",)


@pytest.mark.parametrize("body", ["os.kill(os.getpid(), 9)", "raise RuntimeError('rank 2 died by signal 9')"])
def test_a_sigkill_while_the_kernel_ran_out_of_memory_is_out_of_memory(
    start: StartHost, write_driver: WriteDriver, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    kills = iter([4, 5])
    monkeypatch.setattr(host_module, "memory_kills", lambda: next(kills))
    host = start(write_driver(body))

    with pytest.raises(EngineFailure, match="the kernel ended a process for want of memory meanwhile") as failed:
        host.call("work", {}, Phase.RUN)

    assert failed.value.kind == "out-of-memory"


def test_another_signal_is_not_the_kernels_want_of_memory(
    start: StartHost, write_driver: WriteDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_module, "memory_kills", iter([4, 5]).__next__)
    host = start(write_driver("os.kill(os.getpid(), 15)"))

    with pytest.raises(EngineFailure) as failed:
        host.call("work", {}, Phase.RUN)

    assert failed.value.kind == "died"


def test_the_kernel_tells_how_often_memory_ran_out() -> None:
    line = next(line for line in Path("/proc/vmstat").read_text().splitlines() if line.startswith("oom_kill "))

    assert processes.memory_kills() == int(line.split()[1])


def test_a_death_is_noticed_though_a_forked_child_holds_the_stream(start: StartHost, write_driver: WriteDriver) -> None:
    host = start(
        write_driver(
            """
            child = os.fork()
            if child == 0:
                os.setsid()
                time.sleep(600)
            with open(arguments["file"], "w") as file:
                file.write(str(child))
            os.kill(os.getpid(), 9)
            """
        )
    )
    note = host.log.with_name("child")
    begun = time.monotonic()

    with pytest.raises(EngineFailure, match=r"died by signal 9 \(SIGKILL\)"):
        host.call("work", {"file": str(note)}, Phase.RUN)

    assert time.monotonic() - begun < SOON
    assert not is_alive(int(note.read_text()))


def test_a_command_that_json_cannot_hold_is_the_callers_mistake(start: StartHost, write_driver: WriteDriver) -> None:
    host = start(write_driver("return 1"))

    with pytest.raises(ValueError, match="not JSON compliant"):
        host.call("work", {"temperature": float("inf")}, Phase.RUN)

    assert host.call("work", {}, Phase.RUN) == 1


def test_an_error_of_whoever_is_told_the_progress_ends_the_driver(start: StartHost, write_driver: WriteDriver) -> None:
    def told(progress: Progress) -> None:
        raise ZeroDivisionError

    host = start(write_driver("self.report('x'); time.sleep(600)"), on_progress=told)

    with pytest.raises(ZeroDivisionError):
        host.call("work", {}, Phase.RUN)

    assert not is_alive(host.pid)


def test_where_children_are_not_waited_for_an_end_is_noticed_all_the_same(
    start: StartHost, write_driver: WriteDriver
) -> None:
    """Some launchers leave SIGCHLD ignored, and the kernel then tells nobody how a child ended."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        host = start(write_driver("sys.exit(3)"))
        with pytest.raises(EngineFailure, match="'work': ended, and nobody was told how"):
            host.call("work", {}, Phase.RUN)
        with start(write_driver("return 1")) as host:
            assert host.call("work", {}, Phase.RUN) == 1
    finally:
        signal.signal(signal.SIGCHLD, before)


# Deadlines


@pytest.mark.parametrize("part", ["top", "opening"])
def test_a_driver_that_hangs_at_the_start_is_ended_in_time(
    start: StartHost, write_driver: WriteDriver, tmp_path: Path, part: str
) -> None:
    note = tmp_path / "pid"
    text = f"open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    begun = time.monotonic()

    with pytest.raises(EngineFailure, match=r"hangs \(load\): starting .*driver.py took longer than 1 s") as failed:
        start(write_driver(**{part: text}), deadlines=Deadlines(load=1.0))

    assert (failed.value.kind, failed.value.phase) == ("hang", Phase.LOAD)
    assert 1.0 <= time.monotonic() - begun < SOON
    assert not is_alive(int(note.read_text()))


@pytest.mark.parametrize("phase", [Phase.LOAD, Phase.RUN])
def test_a_call_that_hangs_is_ended_in_time_and_the_log_says_where(
    start: StartHost, write_driver: WriteDriver, phase: Phase
) -> None:
    deadlines = {Phase.LOAD: Deadlines(load=1.0), Phase.RUN: Deadlines(run=0.5)}[phase]
    host = start(write_driver("linger()", top="def linger(): time.sleep(600)"), deadlines=deadlines)
    begun = time.monotonic()

    with pytest.raises(EngineFailure) as failed:
        host.call("work", {}, phase)

    assert (failed.value.kind, failed.value.phase) == ("hang", phase)
    assert f"'work' took longer than {deadlines.of(phase):g} s" in failed.value.problem
    assert any("driver.py" in line and "in linger" in line for line in failed.value.last_lines)
    assert time.monotonic() - begun < SOON
    assert not is_alive(host.pid)


def test_progress_does_not_stretch_the_deadline(start: StartHost, write_driver: WriteDriver) -> None:
    host = start(write_driver("while True: self.report('x', 1, 1)"), deadlines=Deadlines(run=0.5))
    begun = time.monotonic()

    with pytest.raises(EngineFailure, match=r"'work' took longer than 0\.5 s"):
        host.call("work", {}, Phase.RUN)

    assert 0.5 <= time.monotonic() - begun < SOON


def test_a_driver_that_does_not_read_is_ended_in_time(start: StartHost, write_driver: WriteDriver) -> None:
    host = start(write_driver(), deadlines=Deadlines(run=0.5))
    os.kill(host.pid, signal.SIGSTOP)

    with pytest.raises(EngineFailure) as failed:
        host.call("work", {"text": "x" * 10_000_000}, Phase.RUN)

    assert failed.value.kind == "hang"
    assert not is_alive(host.pid)


def test_a_close_that_hangs_is_told_and_the_driver_is_ended(start: StartHost, write_driver: WriteDriver) -> None:
    host = start(write_driver(close="time.sleep(600)"), deadlines=Deadlines(close=0.5))

    with pytest.raises(EngineFailure, match=r"'close' took longer than 0\.5 s") as failed:
        host.close()

    assert (failed.value.kind, failed.value.phase) == ("hang", Phase.CLOSE)
    assert failed.value.after_the_work
    assert not is_alive(host.pid)
    host.close()


def test_what_libraries_do_at_exit_is_not_waited_for(start: StartHost, write_driver: WriteDriver) -> None:
    """MPI waits there for workers that are gone."""
    host = start(write_driver(top="import atexit; atexit.register(time.sleep, 600)"), deadlines=Deadlines(close=10))

    host.close()

    assert not is_alive(host.pid)


def test_deadlines_are_read_as_people_write_them() -> None:
    assert Deadlines.parse("load=60 run=30.5 close=5") == Deadlines(60.0, 30.5, 5.0)
    assert Deadlines.parse("run=1e3") == Deadlines(run=1000.0)
    assert Deadlines.parse(" ") == Deadlines() == Deadlines(1800.0, 1800.0, 60.0)
    assert [Deadlines(1, 2, 3).of(phase) for phase in Phase] == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("lod=60", "'lod' is no phase of an engine; did you mean 'load'? known: close, load, run"),
        ("60", "'60' is no phase of an engine; known: close, load, run"),
        ("load", "'load' is not load and its seconds; write for example load=600"),
        ("load=fast", "'load=fast' is not load and its seconds; write for example load=600"),
        ("load=1 load=2", "load is given twice"),
        ("run=0", "run is 0; it takes a positive number of seconds"),
        ("run=-1", "run is -1; it takes a positive number of seconds"),
        ("close=nan", "close is nan; it takes a positive number of seconds"),
        ("close=inf", "close is inf; it takes a positive number of seconds"),
    ],
)
def test_wrong_deadlines_are_refused_with_what_would_be_right(text: str, problem: str) -> None:
    with pytest.raises(UsageError) as refused:
        Deadlines.parse(text)

    assert str(refused.value) == f"llamaperf_deadlines: {problem}"


# Ends


def test_closing_closes_the_driver_once_and_may_be_repeated(
    start: StartHost, write_driver: WriteDriver, tmp_path: Path
) -> None:
    host = start(write_driver(close=f"open({str(tmp_path / 'closed')!r}, 'a').write('x')"))

    host.close()
    host.close()
    host.kill()

    assert (tmp_path / "closed").read_text() == "x"
    assert not psutil.pid_exists(host.pid)
    assert (host.left_over(), host.cpu_seconds()) == ([], 0.0)
    with pytest.raises(ValueError, match="call of 'work' on a host that is closed"):
        host.call("work", {}, Phase.RUN)


@pytest.mark.parametrize(
    ("close", "kind"), [("raise RuntimeError('still busy')", "crashed"), ("os.kill(os.getpid(), 9)", "died")]
)
def test_a_close_that_fails_is_an_error(start: StartHost, write_driver: WriteDriver, close: str, kind: str) -> None:
    host = start(write_driver(close=close))

    with pytest.raises(EngineFailure) as failed:
        host.close()

    assert (failed.value.kind, failed.value.phase) == (kind, Phase.CLOSE)


def test_how_a_closed_driver_exits_says_nothing_about_its_work(start: StartHost, write_driver: WriteDriver) -> None:
    with start(write_driver(top="import atexit; atexit.register(os.abort)")) as host:
        pass

    assert not psutil.pid_exists(host.pid)


def test_an_exception_in_the_with_statement_is_the_one_that_is_seen(
    start: StartHost, write_driver: WriteDriver
) -> None:
    with pytest.raises(KeyError), start(write_driver(close="time.sleep(600)")) as host:
        raise KeyError

    assert not psutil.pid_exists(host.pid)


# How a process gets away from its parent's group; in each only one trace is left of where it came from.
ESCAPES = {
    "own session, orphan": ("start_new_session=True", "os.environ", True),
    "own group, no environment, orphan": ("process_group=0", "{}", True),
    "own session, no environment": ("start_new_session=True", "{}", False),
    "same group": ("", "os.environ", False),
}


@pytest.mark.parametrize("end", [Host.kill, Host.close])
@pytest.mark.parametrize("escape", ESCAPES)
def test_processes_that_got_away_and_ignore_sigterm_are_ended(
    start: StartHost, write_driver: WriteDriver, tmp_path: Path, escape: str, end: Callable[[Host], None]
) -> None:
    how, environment, orphan = ESCAPES[escape]
    host = start(
        write_driver(
            f"""
            starting = lambda: subprocess.Popen(
                [sys.executable, '-S', '-c', {STUBBORN!r}, arguments['file']], env={environment}, {how}
            )
            if not {orphan}:
                self.child = starting()
            elif os.fork() == 0:
                starting()
                os._exit(0)
            else:
                os.wait()
            """
        )
    )
    note = tmp_path / "pid"
    host.call("work", {"file": str(note)}, Phase.RUN)
    wait_for(note.exists)
    stubborn = int(note.read_text())
    assert is_alive(stubborn)

    end(host)

    wait_for(lambda: not is_alive(stubborn))
    assert not psutil.pid_exists(host.pid)


def test_a_host_ends_only_its_own(start: StartHost, write_driver: WriteDriver) -> None:
    driver = write_driver("return 1")
    one, other = start(driver), start(driver)

    assert (one.left_over(), other.left_over()) == ([one.pid], [other.pid])
    one.kill()

    assert not is_alive(one.pid)
    assert other.call("work", {}, Phase.RUN) == 1


def test_nothing_is_left_open_after_many_hosts(start: StartHost, write_driver: WriteDriver) -> None:
    driver = write_driver("return 1")
    before = descriptors()

    for turn in range(20):
        host = start(driver)
        (Host.close if turn % 2 else Host.kill)(host)

    assert descriptors() == before
    assert [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE] == []


def test_processes_that_cannot_be_ended_are_an_error(
    start: StartHost, write_driver: WriteDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a GPU's driver may hold a process; here nothing is sent to it."""
    monkeypatch.setattr(processes, "PATIENCE", 0.1)
    host = start(write_driver("self.child = subprocess.Popen(['sleep', '600']); return self.child.pid"))
    child = host.call("work", {}, Phase.RUN)
    with monkeypatch.context() as patched:
        patched.setattr(processes.Family, "_send", lambda family, number: None)

        with pytest.raises(EngineFailure, match=f"could not be ended: process {child}\n") as failed:
            host.close()

    assert (failed.value.kind, failed.value.phase) == ("leak", Phase.CLOSE)
    os.kill(child, signal.SIGKILL)
    wait_for(lambda: not is_alive(child))


def test_the_cpu_time_is_that_of_all_its_processes(start: StartHost, write_driver: WriteDriver) -> None:
    burning = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ntime.sleep(600)"
    host = start(
        write_driver(
            f"""
            self.child = subprocess.Popen(
                [sys.executable, '-S', '-c', {burning!r}], stdout=subprocess.PIPE, start_new_session=True
            )
            self.child.stdout.readline()
            begun = time.process_time()
            while time.process_time() < begun + 0.3: pass
            """
        )
    )
    before = host.cpu_seconds()

    host.call("work", {}, Phase.RUN)

    assert 0.55 < host.cpu_seconds() - before < 2.0


# Whoever holds the host is ended itself

PARENT = """
import sys, time
from pathlib import Path
from pytest_llamaperf.hosting.host import Host, Phase

host = Host(sys.argv[1], log=Path(sys.argv[2]))
print(host.pid, flush=True)
try:
    host.call("work", {"file": sys.argv[3]}, Phase.RUN)
finally:
    print(host.left_over(), flush=True)
"""


@pytest.fixture
def parent(write_driver: WriteDriver, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """A process that waits for its driver; the numbers of the driver and of a stubborn process it started."""
    driver = write_driver(
        f"""
        subprocess.Popen([sys.executable, '-S', '-c', {STUBBORN!r}, arguments['file']], start_new_session=True)
        time.sleep(600)
        """
    )
    note = tmp_path / "pid"
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, driver, tmp_path / "engine.log", note],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    driver_pid = int(process.stdout.readline())
    wait_for(note.exists)
    stubborn = int(note.read_text())
    yield process, driver_pid, stubborn
    for pid in (process.pid, driver_pid, stubborn):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=PATIENCE)


def test_a_driver_dies_with_the_process_that_started_it(parent: tuple[subprocess.Popen[str], int, int]) -> None:
    process, driver_pid, _ = parent
    assert is_alive(driver_pid)

    process.kill()

    wait_for(lambda: not is_alive(driver_pid))


@pytest.mark.parametrize("times", [1, 3])
def test_ctrl_c_ends_the_driver_and_goes_on_as_such(parent: tuple[subprocess.Popen[str], int, int], times: int) -> None:
    """Also when pressed again while processes are being ended, which takes as long as they ignore SIGTERM."""
    process, driver_pid, stubborn = parent

    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    output, errors = process.communicate(timeout=PATIENCE)

    assert not is_alive(driver_pid)
    assert not is_alive(stubborn)
    assert "KeyboardInterrupt" in errors
    assert process.returncode == -signal.SIGINT
    assert output == "[]\n"


def test_a_driver_whose_parent_died_before_it_looked_does_not_start(write_driver: WriteDriver, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(writing)
    driver = write_driver(top=f"open({str(tmp_path / 'started')!r}, 'w').close()")

    ended = subprocess.run(
        [sys.executable, PROGRAM, driver], stdin=reading, capture_output=True, timeout=PATIENCE, check=False
    )
    os.close(reading)

    assert (ended.returncode, ended.stdout) == (1, b"")
    assert not (tmp_path / "started").exists()


# Lines


@pytest.fixture
def pipes() -> Iterator[tuple[int, int, Channel]]:
    """What the other side reads from and writes to, and the channel."""
    their_reading, writing = os.pipe()
    reading, their_writing = os.pipe()
    channel = Channel(FileIO(writing, "w"), FileIO(reading), lambda: True)
    yield their_reading, their_writing, channel
    channel.close()
    for descriptor in (their_reading, their_writing):
        with contextlib.suppress(OSError):
            os.close(descriptor)


def test_lines_are_whole_however_they_arrive(pipes: tuple[int, int, Channel]) -> None:
    _, theirs, channel = pipes
    until = time.monotonic() + PATIENCE

    os.write(theirs, b"one\ntwo\n\nthr")
    assert [channel.receive(until) for _ in range(3)] == [b"one", b"two", b""]
    with pytest.raises(Expired):
        channel.receive(time.monotonic() + 0.05)
    os.write(theirs, b"ee\nx\nrest")
    assert [channel.receive(until) for _ in range(2)] == [b"three", b"x"]
    os.close(theirs)
    with pytest.raises(Cut) as cut:
        channel.receive(until)

    assert cut.value.rest == b"rest"


def test_sending_to_nobody_is_a_cut_and_to_who_does_not_read_takes_no_longer_than_allowed(
    pipes: tuple[int, int, Channel],
) -> None:
    theirs, _, channel = pipes
    begun = time.monotonic()

    with pytest.raises(Expired):
        channel.send(b"x" * 10_000_000, time.monotonic() + 0.2)
    assert 0.2 <= time.monotonic() - begun < SOON

    os.close(theirs)
    with pytest.raises(Cut):
        channel.send(b"x", time.monotonic() + PATIENCE)
