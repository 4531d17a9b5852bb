"""Which variables of the environment may be told, and what must never be, wherever it stands."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pytest_llamaperf.cache import SETTING
from pytest_llamaperf.catalog.tasks import evaluations
from pytest_llamaperf.engines.trtllm.nodes import GPUS_PER_NODE, JOB, NODES

# Variables that decide what a test finds, measures or asks. Everything else stays where it is: an environment is where
# people keep their passwords.
TOLD = (
    "CUDA_DEVICE_ORDER",
    "CUDA_MODULE_LOADING",
    "CUDA_VISIBLE_DEVICES",
    "HF_DATASETS_OFFLINE",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "LD_LIBRARY_PATH",
    SETTING,
    NODES,
    GPUS_PER_NODE,
    JOB,
    "NCCL_ALGO",
    "NCCL_IB_DISABLE",
    "NCCL_NVLS_ENABLE",
    "NCCL_P2P_DISABLE",
    "NCCL_SOCKET_IFNAME",
    "OMP_NUM_THREADS",
    "PATH",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD",
    "PYTHONPATH",
    "TRANSFORMERS_OFFLINE",
)

_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|AUTH", re.IGNORECASE)
_SHORTEST = 8  # characters; a shorter value, as `1` or `true`, is part of too many other words
_IN_A_URL = re.compile(r"(?<=://)[^/\s@'\"]+(?=@)")
HIDDEN = "HIDDEN"  # means nothing to a shell, quoted or not


def told(environment: Mapping[str, str]) -> dict[str, str | None]:
    """Every variable that may be told, None where it is not set."""
    names = {*TOLD, *(each.data for each in evaluations().values() if each.data)}
    return {name: environment.get(name) for name in sorted(names)}


def without_secrets(text: str, environment: Mapping[str, str]) -> str:
    """Without values of variables that are called like secrets, and without what stands before the host of a URL."""
    secrets = {value for name, value in environment.items() if _SECRET.search(name) and len(value) >= _SHORTEST} - {
        value for value in told(environment).values() if value
    }
    for secret in sorted(secrets, key=len, reverse=True):  # one may be a part of another
        text = text.replace(secret, HIDDEN)
    return _IN_A_URL.sub(HIDDEN, text)
