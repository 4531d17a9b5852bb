"""Which tests belong into one process: those that share an engine, directly or through tests that compare engines.

So every engine is in one shard, and loading it there for all its tests loads it as often as one pytest for all would.
Comparing needs both engines in one process anyway, because they are measured in turn (docs/decisions/0025-shards.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from pytest_llamaperf.engines import EngineSpec
from pytest_llamaperf.errors import UsageError, nearest

# The key of the tests that are about no case.
NO_ENGINE = "no-engine"


def engine_key(spec: EngineSpec) -> str:
    """`h200/tensorrt-llm/llama-3.1-8b/modelopt-fp8/tp1/5f0c2a9e`: what people read, and a digest of the limits."""
    return f"{spec}/{hashlib.sha256(repr(spec.limits).encode()).hexdigest()[:8]}"


def grouped(tests: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Engine key -> all keys of its shard in order, the first of which names the shard. `tests`: test -> its engines.

    A test without engines belongs to NO_ENGINE.
    """
    above: dict[str, str] = {}

    def root(key: str) -> str:
        while above.setdefault(key, key) != key:
            above[key] = above[above[key]]
            key = above[key]
        return key

    for engines in tests.values():
        first, *others = engines or (NO_ENGINE,)
        root(first)
        for other in others:
            above[root(other)] = root(first)
    members: dict[str, list[str]] = {}
    for key in sorted(above):
        members.setdefault(root(key), []).append(key)
    return {key: tuple(members[root(key)]) for key in above}


def in_shard(shard: str, tests: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """The tests in the shard of an engine key. Raises UsageError for a key that no test needs."""
    groups = grouped(tests)
    if shard not in groups:
        raise UsageError(f"--llamaperf-shard {shard}: no test here needs that engine; {nearest(shard, groups)}")
    keys = frozenset(groups[shard])
    return frozenset(test for test, engines in tests.items() if (engines[0] if engines else NO_ENGINE) in keys)

