"""What one collection found: the tests with the engines they need, which `llamaperf plan` makes shards of.

Written by pytest under `--llamaperf-inventory FILE`, in a process of its own, and read by nobody else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pytest_llamaperf.files import write_atomically


@dataclass(frozen=True)
class NeededEngine:
    """`devices`: GPUs, or CPU slots; `load`: seconds of one start, guessed; `checkpoint`: what has to be quantized first,
    as `llama-3.1-8b/modelopt-fp8`, None where nothing has."""

    devices: int
    load: float
    checkpoint: str | None = None


@dataclass(frozen=True)
class Work:
    """What an engine does for a case: `seconds`, guessed, in all its restarts; `loads` counts those.

    `measured`: others on its node would disturb it, which is true of no prediction.
    """

    engine: str
    case: str
    loads: int
    seconds: float
    measured: bool


@dataclass(frozen=True)
class NeededTest:
    """`engines` are keys: of its case, and of those it compares with; `work` is what they are asked through the bench."""

    nodeid: str
    engines: tuple[str, ...]
    work: tuple[Work, ...] = ()


@dataclass(frozen=True)
class Inventory:
    """`about` is what all shards of a run have in common: see `manifest.About`. `deselected` are ids of cases, one for each
    test that the user left out."""

    about: Mapping[str, Any]
    tests: tuple[NeededTest, ...]
    engines: Mapping[str, NeededEngine]
    deselected: tuple[str, ...] = field(default=())

    def write(self, path: Path) -> None:
        write_atomically(path, json.dumps(asdict(self), allow_nan=False))

    @classmethod
    def read(cls, path: Path) -> Inventory:
        found = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            found["about"],
            tuple(
                NeededTest(each["nodeid"], tuple(each["engines"]), tuple(Work(**work) for work in each["work"]))
                for each in found["tests"]
            ),
            {key: NeededEngine(**each) for key, each in found["engines"].items()},
            tuple(found["deselected"]),
        )
