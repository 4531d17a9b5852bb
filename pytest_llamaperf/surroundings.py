"""What the engines of one pytest session have in common: deadlines, a folder for logs, a bar that shows progress."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from pytest_llamaperf.engines import Surroundings
from pytest_llamaperf.reporting.progress import ProgressBar
from pytest_llamaperf.settings import Settings


def surroundings_of(config: pytest.Config, settings: Settings) -> Surroundings:
    """Logs are kept with the results, where any are wanted; else they are gone with the session."""
    bar = ProgressBar(config)
    config.pluginmanager.register(bar, "llamaperf-progress")
    if settings.results is not None:
        logs = settings.results / "engines"
    else:
        logs = Path(tempfile.gettempdir()) / f"llamaperf-engines-{id(config):x}"
        config.add_cleanup(lambda: shutil.rmtree(logs, ignore_errors=True))
    return Surroundings(settings.deadlines, logs, bar.show)
