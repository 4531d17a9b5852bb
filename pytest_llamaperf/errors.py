"""What a user can get wrong, and how they are told.

LlamaperfError         anything whose message is meant for a person, never shown as a traceback
+-- UsageError         a name, option or file is wrong: exit 4 under pytest, 2 under `llamaperf`
|   +-- DocumentError  ... in a YAML file, with file and line
+-- EngineError        an engine or the predictor could not do its work; never a regression
    +-- DoesNotFit     weights or one request need more memory than the GPUs have
    +-- Unsupported    this kind of engine, in this version, cannot do that: the test skips, and a gate stays closed
    +-- EngineFailure  its process died, hung, ran out of memory, ...: hosting.failures
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from pytest_llamaperf.wording import shown_path


class LlamaperfError(Exception):
    """Its text says what is wrong, where, and what to do."""


class UsageError(LlamaperfError):
    """The user asked for something that cannot be."""


class DocumentError(UsageError):
    """A YAML file says something it may not say; without a line it cannot be read at all."""

    def __init__(self, path: Path, line: int | None, problem: str, *, where: str = "") -> None:
        self.path, self.line, self.problem, self.where = path, line, problem, where
        place = where if where.isprintable() else repr(where)  # a key of the file, which may try to paint the terminal
        super().__init__(
            f"{shown_path(path)}{'' if line is None else f':{line}'}: {place + ': ' if where else ''}{problem}"
        )


class EngineError(LlamaperfError):
    """The work could not be done; says nothing about how fast it would have been."""


class DoesNotFit(EngineError):
    """The model, or one request of the workload, needs more GPU memory than there is."""


class Unsupported(EngineError):
    """Nothing went wrong: what was asked is more than this engine, in the version installed here, can do."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence for an error message: the closest known name, then all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    suggestion = f"did you mean {close[0]!r}? " if close else ""
    return f"{suggestion}known: {', '.join(names)}"
