"""What a person sees of a run under way: what runs where, what is next, how long it will take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pytest_llamaperf.scaling.manifest import Shard

# Shards that are shown: of those at work, and of the queue.
_AT_WORK, _NEXT = 20, 3


@dataclass(frozen=True)
class Busy:
    """A shard that runs at a `place`, which are devices or nodes; `seconds` since its start."""

    shard: Shard
    place: str
    seconds: float


@dataclass(frozen=True)
class Standing:
    """`left` is in seconds, None where others decide what runs when; `without` counts shards that ended without results."""

    running: tuple[Busy, ...]
    waiting: tuple[Shard, ...]
    done: int
    without: int
    left: float | None


class Watcher(Protocol):
    """Told of every start and end as a line, and again and again how things stand."""

    def tell(self, line: str) -> None: ...

    def show(self, standing: Standing) -> None: ...

    def close(self) -> None: ...


class Lines:
    """For a log: a line for each start and each end."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def tell(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def show(self, standing: Standing) -> None:
        """A log is no place for what is true for a second only."""

    def close(self) -> None:
        pass


class LiveTable:
    """For a terminal: a table that changes, below the lines."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._live.start()

    def tell(self, line: str) -> None:
        self._live.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def show(self, standing: Standing) -> None:
        self._live.update(_drawn(standing))

    def close(self) -> None:
        self._live.stop()


def watcher(console: Console) -> Watcher:
    return LiveTable(console) if console.is_terminal else Lines(console)


def _drawn(standing: Standing) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("on", "since", "of about", "shard"):
        table.add_column(heading, header_style="dim", no_wrap=True)
    for busy in standing.running[:_AT_WORK]:
        expected = duration(busy.shard.minutes * 60)
        table.add_row(busy.place, duration(busy.seconds), expected, Text(str(busy.shard)))
    if (more := len(standing.running) - _AT_WORK) > 0:
        table.add_row(f"and {more} more", style="dim")
    for shard in standing.waiting[:_NEXT]:
        table.add_row("next", "", duration(shard.minutes * 60), Text(str(shard)), style="dim")
    return Group(table, Text(summary(standing), style="bold", no_wrap=True))


def summary(standing: Standing) -> str:
    """`12 of 40 shards done, 3 running, 25 waiting; about 2 h 10 min left`."""
    total = standing.done + standing.without + len(standing.running) + len(standing.waiting)
    parts = [f"{standing.done} of {total} shards done"]
    parts += [f"{standing.without} without results"] if standing.without else []
    parts += [f"{len(standing.running)} running, {len(standing.waiting)} waiting"]
    left = "" if standing.left is None else f"; about {duration(standing.left)} left"
    return f"{', '.join(parts)}{left}"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `2 h 10 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def ranges(numbers: Sequence[int]) -> str:
    """`0-3,6` of 0, 1, 2, 3, 6."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
