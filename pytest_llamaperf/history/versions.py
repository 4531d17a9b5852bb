"""Versions of TensorRT-LLM in their order, which is not that of their letters: 0.9, 0.10, 1.0rc3, 1.0, 1.0.post1."""

from __future__ import annotations

import functools
import re

from packaging.version import InvalidVersion, Version

_NONE = Version("0.dev0")


@functools.lru_cache(maxsize=10_000)
def version_order(version: str | None) -> tuple[int, Version, str]:
    """Sorts; what is no version by PEP 440 comes before all that are. `0.20-prerelease` comes before 0.20rc0."""
    try:
        return 2, Version(re.sub(r"-prerelease$", ".dev0", version or "")), ""
    except InvalidVersion:
        return (0 if version is None else 1), _NONE, version or ""


def same_version(one: str | None, other: str | None) -> bool:
    """0.17 and 0.17.0 are the same."""
    return version_order(one) == version_order(other)
