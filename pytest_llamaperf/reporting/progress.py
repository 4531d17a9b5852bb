"""A line below pytest's own that says what long work is at; nothing where nobody watches."""

from __future__ import annotations

import time

import pytest

_INTERVAL = 0.2  # seconds between two changes of the line
_BAR = 24  # characters


class ProgressBar:
    """Written past pytest's capture, one line below the dots, and removed before pytest goes on.

    A plugin of pytest: it hears when a test ends.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._shown = False
        self._last = 0.0

    def show(self, text: str, done: int, total: int | None) -> None:
        """`done` of `total` things, or of unknown many."""
        now = time.monotonic()
        if now - self._last >= _INTERVAL:
            self._last = now
            self._shown = self._below(f"{_bar(done, total)}{text}") or self._shown

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self) -> None:
        self.clear()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """A test that was interrupted has not ended."""
        self.clear()

    def clear(self) -> None:
        if self._shown:
            self._below("")
            self._shown = False

    def _below(self, text: str) -> bool:
        """Whether there is a terminal on which the line below the cursor now reads so."""
        reporter = self._config.pluginmanager.getplugin("terminalreporter")
        capture = self._config.pluginmanager.getplugin("capturemanager")
        if reporter is None or capture is None or not reporter.isatty:
            return False
        terminal = reporter._tw
        with capture.global_and_fixture_disabled():  # where pytest captures, the width of the terminal is unknown
            column = terminal.width_of_current_line % terminal.fullwidth  # names of tests may fill several lines
            if terminal.width_of_current_line and not column:
                return False  # where the cursor waits behind a full line there is no way back to
            # Down, which makes a line where the screen ends; up again, to the column where pytest stopped.
            shown = f"\n\x1b[K{text[: terminal.fullwidth - 1]}\x1b[A\x1b[{column + 1}G"
            terminal._file.write(shown)
            terminal._file.flush()
        return True


def _bar(done: int, total: int | None) -> str:
    if not total:
        return ""
    filled = min(_BAR, _BAR * done // total)
    return f"{'#' * filled}{'.' * (_BAR - filled)} {done}/{total} "
