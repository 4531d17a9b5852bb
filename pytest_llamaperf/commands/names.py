"""Names as command-line values: checked with the nearest known name, completed by the shell, separable by commas."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from pytest_llamaperf.errors import UsageError


class Names(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.5 only
    """One or more names separated by commas; each is checked by `check`, which raises UsageError.

    `known` lists the names for completion. The value is a list of what `check` returns.
    """

    def __init__(self, name: str, known: Callable[[], Iterable[str]], check: Callable[[str], object]) -> None:
        self.name = name
        self._known, self._check = known, check

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return [self._check(part.strip()) for part in value.split(",")]
        except UsageError as problem:
            self.fail(str(problem), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        done, comma, last = incomplete.rpartition(",")
        return [CompletionItem(f"{done}{comma}{name}") for name in self._known() if name.startswith(last)]


def flat(values: Iterable[Sequence[Any]]) -> list[Any]:
    """All values of an option that may be repeated and may hold lists, each once, in order."""
    return list(dict.fromkeys(value for several in values for value in several))
