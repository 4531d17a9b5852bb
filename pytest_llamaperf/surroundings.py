"""What the engines of one pytest session have in common: deadlines, a folder for logs, a bar that shows progress."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from pathlib import Path

import pytest

from pytest_llamaperf.engines import Surroundings
from pytest_llamaperf.reporting.progress import ProgressBar
from pytest_llamaperf.settings import Settings


def surroundings_of(config: pytest.Config, settings: Settings) -> Surroundings:
    """Logs are kept with the results, where any are wanted; else only those of a session in which an engine failed."""
    bar = ProgressBar(config)
    config.pluginmanager.register(bar, "llamaperf-progress")
    if settings.results is not None:
        logs = settings.results / "engines"
    else:
        # Made when an engine starts. Nobody else can have made it before, for nobody can guess its name.
        logs = Path(tempfile.gettempdir()) / f"llamaperf-engines-{secrets.token_hex(8)}"
        temporary = _TemporaryLogs(logs)
        config.pluginmanager.register(temporary, "llamaperf-logs")
        config.add_cleanup(temporary.remove)
    return Surroundings(settings.deadlines, logs, bar.show, settings.tables)


class _TemporaryLogs:
    """Logs are gone with the session, unless a failure says where they are."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mentioned = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._mentioned = self._mentioned or (report.failed and self._folder.name in report.longreprtext)

    def remove(self) -> None:
        if not self._mentioned:
            shutil.rmtree(self._folder, ignore_errors=True)
