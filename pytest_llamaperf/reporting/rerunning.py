"""How the tests of this session are run again, one at a time, by somebody else."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_llamaperf.acceptance import Acceptance
from pytest_llamaperf.catalog.tables import timed_versions
from pytest_llamaperf.evidence.environment import told
from pytest_llamaperf.evidence.scripts import Rerun


def rerun_of(config: pytest.Config, acceptance: Acceptance) -> Rerun:
    """With the options of this plugin and those that decide how tests are collected.

    Options of other plugins are not among them: nobody here knows which of them are secret, or about a whole session.
    """
    options = (*_of_pytest(config), *_of_ours(config, acceptance))
    return Rerun(sys.executable, str(config.rootpath), options, told(os.environ))


def _of_pytest(config: pytest.Config) -> Iterator[str]:
    yield "--rootdir=."  # where the tests are run; pytest would look for variables in the name of a folder
    if config.inipath is not None:
        yield f"--config-file={config.inipath}"
    if (mode := config.getoption("importmode")) != "prepend":
        yield f"--import-mode={mode}"
    if (highest := config.getoption("confcutdir")) is not None:
        yield f"--confcutdir={_absolute(config, highest)}"
    for name in dict.fromkeys(config.getoption("plugins")):
        yield from ("-p", name)
    for setting in config.getoption("override_ini") or ():
        yield from ("-o", setting)


def _of_ours(config: pytest.Config, acceptance: Acceptance) -> Iterator[str]:
    settings = acceptance.settings
    yield from ("--gpu", acceptance.gpu, "--engine", acceptance.engine_kind)
    if (tables := config.getoption("tables")) is not None:
        yield from ("--tables", tables if tables in timed_versions() else _absolute(config, tables))
    if settings.baselines_named:
        yield from ("--baselines", str(settings.baselines))
    if settings.waivers is not None:
        yield from ("--waivers", str(settings.waivers))
    for name, number in (("--restarts", settings.restarts), ("--rounds", settings.rounds)):
        if number is not None:
            yield from (name, str(number))
    if (against := config.getoption("against")) is not None:
        yield from ("--against", _absolute(config, against))
    for name in settings.allowed:
        yield from ("--allow-difference", name)


def _absolute(config: pytest.Config, path: str) -> str:
    """From wherever pytest was started; links stay links."""
    return str((config.invocation_params.dir / Path(path).expanduser()).absolute())
