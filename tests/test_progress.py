"""The progress line on a real terminal: there while engines work, gone without a trace afterwards, and nowhere else."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from engine_sessions import PATIENCE, Folder, fake_engine

from pytest_llamaperf.reporting.progress import _bar

SUITE = """
import pytest
from pytest_llamaperf import OUTPUT_THROUGHPUT

EMBEDDED = {"model": "smollm2-135m", "hardware": "cpu", "layout": "tp1", "workload": "min-latency-16-8"}

def test_before():
    print("something that is captured")

@pytest.mark.cases(**EMBEDDED, recipe=["bf16", "modelopt-fp8"])
def test_speed(case, measure, baseline):
    baseline.check(measure(case), OUTPUT_THROUGHPUT)

def test_after():
    assert 1 == 2
"""
# As slow as it says, and with nothing that differs between two sessions.
CONFTEST = fake_engine(every=[100.0, 101.0]).replace(
    'self.tell("run")\n', 'self.tell("run")\n        time.sleep(SECONDS)\n'
)
# Nothing that is shown differs from one session to the next: no round is repeated, and it is not told what engines cost.
QUIET = """
import time
from pytest_llamaperf import measuring
from pytest_llamaperf.reporting import reporter
measuring.TOLERATED_CORES = 99
reporter.account_lines = lambda uses: []
"""
WARNING = "\ndef pytest_runtest_teardown():\n    import warnings\n    warnings.warn('what is told at the end')\n"
HIDDEN = "from pytest_llamaperf.reporting.progress import ProgressBar\nProgressBar._below = lambda self, text: False\n"


class Screen:
    """A terminal of so many lines and columns, as far as pytest and the progress line need one."""

    def __init__(self, lines: int, columns: int) -> None:
        self.columns = columns
        self.lines = [[" "] * columns for _ in range(lines)]
        self.gone: list[str] = []  # scrolled off at the top
        self.line = self.column = 0

    def feed(self, text: str) -> None:
        for found in re.finditer(r"\x1b\[([0-9;?]*)([A-Za-z])|(.)", text, re.DOTALL):
            number, command, letter = found.groups()
            if command is None:
                self._write(letter)
            elif command == "A":
                self.line = max(0, self.line - int(number or 1))
            elif command == "G":
                self.column = min(self.columns, int(number or 1)) - 1
            elif command == "K":
                assert number in ("", "0")
                self.lines[self.line][self.column :] = [" "] * (self.columns - self.column)
            else:
                assert command == "m", f"what is {found.group()!r}?"

    def shown(self) -> list[str]:
        return ["".join(line).rstrip() for line in self.lines]

    def text(self) -> str:
        """Everything, also what is gone, without empty lines at the end."""
        return "\n".join([*self.gone, *self.shown()]).rstrip("\n")

    def _write(self, letter: str) -> None:
        if letter == "\r":
            self.column = 0
        elif letter == "\n":
            self._down()
        else:
            assert letter.isprintable(), repr(letter)
            if self.column == self.columns:  # a full line waits for one letter more before it goes on
                self._down()
                self.column = 0
            self.lines[self.line][self.column] = letter
            self.column += 1

    def _down(self) -> None:
        if self.line + 1 < len(self.lines):
            self.line += 1
        else:
            self.gone.append("".join(self.lines.pop(0)).rstrip())
            self.lines.append([" "] * self.columns)
            self.column = min(self.column, self.columns - 1)


@dataclass
class Seen:
    """A session on a terminal: the screen at its end, all screens on the way, and how long it took."""

    screen: Screen
    on_the_way: list[list[str]]
    raw: str
    seconds: float
    status: int

    def text(self) -> str:
        """Up to the summaries, without how long it took."""
        text = re.sub(r"in \d+\.\d\ds", "in a while", self.screen.text())
        return re.sub(r"=+ (\d.* in a while) =+", r"\1", text)


@pytest.fixture
def on_terminal(tmp_path: Path) -> Callable[..., Seen]:
    """Runs SUITE on a terminal of its own."""

    def run(
        *options: str, lines: int = 24, columns: int = 80, seconds: float = 0.25, hidden: bool = False,
        interrupted_at: str = "", more: str = "",
    ) -> Seen:  # fmt: skip
        folder = Folder(tmp_path)
        folder.write(conftest=f"{QUIET}{HIDDEN if hidden else ''}SECONDS = {seconds}\n{CONFTEST}{more}", test_a=SUITE)
        started = time.monotonic()
        with _terminal(lines, columns) as (ours, theirs):
            process = folder.start(
                "--gpu=cpu", "--restarts=1", "--rounds=1", *options,
                stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, preexec_fn=_take_terminal,
            )  # fmt: skip
            os.close(theirs)
            seen = _watched(process, ours, Screen(lines, columns), interrupted_at)
        seen.seconds = time.monotonic() - started
        print(seen.screen.text())
        return seen

    return run


@contextlib.contextmanager
def _terminal(lines: int, columns: int) -> Iterator[tuple[int, int]]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    try:
        yield ours, theirs
    finally:
        os.close(ours)


def _take_terminal() -> None:
    """So that Ctrl-C, typed into it, becomes a signal."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _watched(process: subprocess.Popen[str], terminal: int, screen: Screen, interrupted_at: str) -> Seen:
    seen = Seen(screen, [], "", 0.0, 0)
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if not select.select([terminal], [], [], 0.1)[0]:
            continue
        try:
            text = os.read(terminal, 65536).decode()
        except OSError:  # how the end of a terminal reads
            break
        seen.raw += text
        screen.feed(text)
        seen.on_the_way.append(screen.shown())
        if interrupted_at and interrupted_at in seen.raw:
            os.write(terminal, b"\x03")
            interrupted_at = ""
    seen.status = process.wait(PATIENCE)
    return seen


def progress_lines(seen: Seen) -> list[str]:
    """Of what was to be seen on the way, each once, in order."""
    lines = [line for screen in seen.on_the_way for line in screen if re.match(r"[#.]{24} \d+/\d+ ", line)]
    return list(dict.fromkeys(lines))


@pytest.mark.parametrize(
    ("options", "lines", "columns"),
    [
        ((), 4, 60),  # where the line below the dots is made by scrolling
        (("-v",), 24, 80),  # where names of tests take more than a line
        (("-v", "--color=yes"), 6, 40),
        (
            ("-v",),
            24,
            len("test_a.py::test_speed[cpu/torch/smollm2-135m/bf16/tp1/min-latency-16-8] "),
        ),  # a line exactly
    ],
)
def test_it_is_below_what_pytest_writes_and_leaves_no_trace(
    on_terminal: Callable[..., Seen], options: tuple[str, ...], lines: int, columns: int
) -> None:
    seen = on_terminal(*options, lines=lines, columns=columns)
    without = on_terminal(*options, lines=lines, columns=columns, hidden=True, seconds=0.0)

    shown = progress_lines(seen)
    assert len(shown) >= 2
    assert all(len(line) < columns for line in shown)
    assert seen.text() == without.text()
    assert "FAILED" in without.text() if "-v" in options else "test_a.py .ssF" in without.text()


def test_it_tells_what_is_under_way_and_how_much_is_done(on_terminal: Callable[..., Seen]) -> None:
    seen = on_terminal(columns=120)

    shown = progress_lines(seen)
    case = "cpu/torch/smollm2-135m/bf16/tp1/min-latency-16-8"
    assert f"........................ 0/2 opening {case.rpartition('/')[0]}" in shown
    assert f"############............ 1/2 measuring {case}" in shown
    done = [int(line.split()[1].partition("/")[0]) for line in shown if "/bf16/" in line]
    assert done == sorted(done)
    for screen in seen.on_the_way:  # one line, directly below the one pytest is at
        at = [number for number, line in enumerate(screen) if re.match(r"[#.]{24} \d", line)]
        assert len(at) <= 1
        if at:
            assert screen[at[0] - 1].startswith("test_a.py .")


def test_it_changes_no_more_often_than_anybody_reads(on_terminal: Callable[..., Seen]) -> None:
    seen = on_terminal(seconds=0.02)

    assert seen.raw.count("\x1b[K") <= 2 * seen.seconds / 0.2 + 2


def test_after_ctrl_c_it_is_gone(on_terminal: Callable[..., Seen]) -> None:
    # An interrupt may come between opening a file and the place that closes it, so warnings are no errors.
    seen = on_terminal("--results=out", "-W", "default", seconds=2.0, interrupted_at="measuring cpu", more=WARNING)

    assert seen.status == pytest.ExitCode.INTERRUPTED
    assert "KeyboardInterrupt" in seen.screen.text()
    assert "what is told at the end" in seen.screen.text()
    assert not re.search(r"[#.]{24} \d+/\d+ ", seen.screen.text())
    assert "measuring cpu" not in seen.screen.text()


def test_where_stdout_is_no_terminal_nothing_is_written(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write(conftest=f"{QUIET}SECONDS = 0.25\n{CONFTEST}", test_a=SUITE)

    result = folder.run("--gpu=cpu", "--restarts=1", "--rounds=1")

    result.assert_outcomes(passed=1, skipped=2, failed=1)
    assert "\x1b" not in result.stdout.str()
    assert "warming up" not in result.stdout.str()


@pytest.mark.parametrize("options", [("-p", "no:terminal"), ("-s",), ("-p", "no:capture")])
def test_sessions_of_other_kinds_run_as_ever(tmp_path: Path, options: tuple[str, ...]) -> None:
    folder = Folder(tmp_path)
    folder.write(conftest=f"{QUIET}SECONDS = 0.0\n{CONFTEST}", test_a=SUITE)

    result = folder.run("--gpu=cpu", "--restarts=1", "--rounds=1", "--results=out", *options)

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert [test["outcome"] for test in folder.run_json()["tests"]] == ["passed", "skipped", "skipped", "failed"]


@pytest.mark.parametrize(
    ("done", "total", "bar"),
    [
        (0, 8, "........................ 0/8 "),
        (3, 8, "#########............... 3/8 "),
        (8, 8, "######################## 8/8 "),
        (9, 8, "######################## 9/8 "),
        (5, None, ""),
        (0, 0, ""),
    ],
)
def test_the_bar_is_as_full_as_the_work_is_done(done: int, total: int | None, bar: str) -> None:
    assert _bar(done, total) == bar
