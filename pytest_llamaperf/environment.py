"""Which variables of an engine's environment are kept with its results: named ones alone, and never a credential."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from pytest_llamaperf.fingerprints import ENVIRONMENT

# They decide how fast an engine is, what it answers, or on which GPUs.
NAMES = frozenset(
    {
        "CUBLAS_WORKSPACE_CONFIG",
        "CUDA_DEVICE_MAX_CONNECTIONS",
        "CUDA_DEVICE_ORDER",
        "CUDA_LAUNCH_BLOCKING",
        "CUDA_MODULE_LOADING",
        "CUDA_VISIBLE_DEVICES",
        "FORCE_ALL_REDUCE_DETERMINISTIC",
        "FORCE_DETERMINISTIC",
        "GOMP_CPU_AFFINITY",
        "KMP_AFFINITY",
        "KMP_BLOCKTIME",
        "MKL_NUM_THREADS",
        "NVIDIA_TF32_OVERRIDE",
        "OMP_NUM_THREADS",
        "OMP_PLACES",
        "OMP_PROC_BIND",
        "OMP_WAIT_POLICY",
        "OPENBLAS_NUM_THREADS",
        "PYTORCH_ALLOC_CONF",
        "PYTORCH_CUDA_ALLOC_CONF",
    }
)
PREFIXES = ("NCCL_", "TRTLLM_", "TRT_LLM_", "TLLM_", "UCX_")

# What a launcher makes up anew for every process, addresses and the key of a channel; and what stays the same: nothing is sent home.
MADE_UP = ("TLLM_SPAWN_", "TRTLLM_NO_USAGE_STATS")

# In the place of a value that may be a credential.
WITHHELD = "(withheld: it looks like a credential)"

# PWD and OLDPWD are folders.
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASS|_PWD|CREDENTIAL|AUTH|COOKIE|SIGNATURE", re.IGNORECASE)
_SECRET_VALUE = re.compile(
    r"""
      :// [^/\s@]* @                                       # who one is, in an address
    | \b (hf_ | gh[a-z]_ | github_pat_ | glpat- | sk- | nvapi- | xox[a-z]- | AKIA | ASIA | eyJ)  # how keys begin
    | -----BEGIN
    | \b (password | passwd | secret | token | api[-_]?key) \s* [=:]
    | \b Bearer \s
    | (?<![\w+/=.-]) (?= [\w+/=]*\d) (?= [\w+/=]*[A-Za-z]) [\w+=] [\w+/=]{31,} (?![\w+/=.-])      # long, no path, no UUID
    """,
    re.VERBOSE | re.IGNORECASE,
)


def kept(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables as settings of a fingerprint, `env NCCL_ALGO`; one whose name says that it is a credential is left out."""
    return {
        f"{ENVIRONMENT}{name}": WITHHELD if looks_secret(value) else _printable(value)
        for name, value in sorted(environment.items())
        if is_kept(name)
    }


def compared(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables in a form that tells whether two are the same: values that may be kept, and digests of the others.

    A digest takes a tenth of a second, so that short values are not found out by trying.
    """
    shown = kept(environment)
    found = {}
    for name, value in sorted(environment.items()):
        told = shown.get(f"{ENVIRONMENT}{name}", WITHHELD)
        found[name] = told if told != WITHHELD else f"digest {_digest(name, value)}"
    return found


def is_kept(name: str) -> bool:
    """Whether a variable is one of the list."""
    if names_secret(name) or name.startswith(MADE_UP):
        return False
    return name in NAMES or name.startswith(PREFIXES)


def names_secret(name: str) -> bool:
    """Whether a variable is called like a credential. It errs towards yes."""
    return _SECRET_NAME.search(name) is not None


def looks_secret(value: str) -> bool:
    """Whether a text may be a credential, or hold one. It errs towards yes."""
    return _SECRET_VALUE.search(value) is not None


def _printable(value: str) -> str:
    """Files and databases take no bytes that are no UTF-8, of which an environment may have some."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8")


def _digest(name: str, value: str) -> str:
    digest = hashlib.pbkdf2_hmac("sha256", value.encode("utf-8", "surrogateescape"), name.encode(), 200_000)
    return digest.hex()[:16]
