"""Who does the work: the driver `children/quantizer`, in a process of its own.

The store hands it a folder to write into and asks nothing else of it; tests put something quicker in its place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from pytest_llamaperf import children
from pytest_llamaperf.hosting.host import Host, Progress
from pytest_llamaperf.hosting.phases import Deadlines, Phase

DRIVER = "quantizer"
OnProgress = Callable[[Progress], None]


class Maker(Protocol):
    def __call__(self, command: str, arguments: Mapping[str, Any], log: Path) -> Mapping[str, Any]:
        """The answer of one command. Raises EngineError, or OSError where the disk is full."""


def in_a_child(deadlines: Deadlines, on_progress: OnProgress | None) -> Maker:
    """One process for each command: ModelOpt changes classes of its process, and leaves memory behind."""

    def make(command: str, arguments: Mapping[str, Any], log: Path) -> Mapping[str, Any]:
        environment = {
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # of transformers too; progress is reported, the log is for errors
            # On a machine shared with others, threads that wait actively for each other take ten times as long.
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        asked = command == "fetch"  # for everything else what is needed lies in a folder
        with Host(
            DRIVER, log=log, deadlines=deadlines, environment=environment, network=asked, on_progress=on_progress
        ) as host:
            answer: Mapping[str, Any] = host.call(command, arguments, Phase.RUN)
        return answer

    return make


def program_digest() -> str:
    """Of the driver's source: what another version of it writes is another checkpoint."""
    folder = Path(children.__file__).parent / DRIVER
    total = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        total.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()
