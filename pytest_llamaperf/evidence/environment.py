"""Which variables a script sets to run a test again, and what must not stand in evidence, wherever it comes from."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pytest_llamaperf.cache import SETTING
from pytest_llamaperf.catalog.tasks import evaluations
from pytest_llamaperf.engines.trtllm.nodes import GPUS_PER_NODE, JOB, NODES
from pytest_llamaperf.environment import NAMES, is_kept, looks_secret, names_secret

# Variables that decide what a test finds and asks, beside those that decide what its engine does.
TOLD = (
    "HF_DATASETS_OFFLINE",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "LD_LIBRARY_PATH",
    SETTING,
    NODES,
    GPUS_PER_NODE,
    JOB,
    "PATH",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD",
    "PYTHONPATH",
    "TRANSFORMERS_OFFLINE",
)

_SHORTEST = 8  # characters; a shorter value, as `1` or `true`, is part of too many other words
_IN_A_URL = re.compile(r"(?<=://)[^/\s@'\"]+(?=@)")
HIDDEN = "HIDDEN"  # means nothing to a shell, quoted or not


def told(environment: Mapping[str, str]) -> dict[str, str | None]:
    """Every variable that may be told, None where it is not set."""
    names = {*TOLD, *NAMES, *(each.data for each in evaluations().values() if each.data)}
    names |= {name for name, value in environment.items() if is_kept(name) and not looks_secret(value)}
    return {name: environment.get(name) for name in sorted(names)}


def without_secrets(text: str, environment: Mapping[str, str]) -> str:
    """Without values of variables that are called like secrets, and without what stands before the host of a URL."""
    secrets = {value for name, value in environment.items() if names_secret(name) and len(value) >= _SHORTEST} - {
        value for value in told(environment).values() if value
    }
    for secret in sorted(secrets, key=len, reverse=True):  # one may be a part of another
        text = text.replace(secret, HIDDEN)
    return _IN_A_URL.sub(HIDDEN, text)
