"""What the engines of one pytest session have in common: deadlines, a folder for logs, a bar that shows progress."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import tempfile
from pathlib import Path

import pytest

from pytest_llamaperf.engines import TEMPORARY, Surroundings
from pytest_llamaperf.leftovers import OwnedFolder
from pytest_llamaperf.reporting.progress import ProgressBar
from pytest_llamaperf.settings import Settings


def surroundings_of(config: pytest.Config, settings: Settings) -> Surroundings:
    """Logs are kept with the results, where any are wanted; else only those of a session in which an engine failed."""
    bar = ProgressBar(config)
    config.pluginmanager.register(bar, "llamaperf-progress")
    if settings.results is not None:
        logs = settings.results / "engines"
    else:
        # Made when tests start. Nobody else can have made it before, for nobody can guess its name.
        logs = Path(tempfile.gettempdir()) / f"{TEMPORARY}s-{secrets.token_hex(8)}"
        temporary = _TemporaryLogs(logs)
        config.pluginmanager.register(temporary, "llamaperf-logs")
        config.add_cleanup(temporary.remove)
    return Surroundings(settings.deadlines, logs, bar.show, settings.tables)


class _TemporaryLogs:
    """Logs are gone with the session, unless a failure says where they are."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mentioned = False
        self._owned: OwnedFolder | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self) -> None:
        """Owned before anything is in it. Where that cannot be, the first engine says what is wrong with the place."""
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o700)
            self._owned = OwnedFolder(self._folder)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._mentioned = self._mentioned or (report.failed and self._folder.name in report.longreprtext)

    def remove(self) -> None:
        if self._owned is not None:
            (self._owned.keep if self._mentioned else self._owned.remove)()
        elif not self._mentioned:
            shutil.rmtree(self._folder, ignore_errors=True)
