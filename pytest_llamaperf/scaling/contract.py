"""What every place where shards run keeps: how a shard is started, where its results are, and whether it is done.

A place starts `command` for every shard that `remaining` names, with the variables of `environment`, in the plan's
directory, and leaves the rest to `merging`. A shard is a process that

- is started with as many GPUs in CUDA_VISIBLE_DEVICES as it needs, which nobody else has,
- writes run.jsonl, run.json and junit.xml into `folder`, which is its own,
- and exits with 0, 1 or 5 once these are whole: everything else is no result.
"""

from __future__ import annotations

import contextlib
import functools
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.files import write_atomically
from pytest_llamaperf.records import UNFINISHED
from pytest_llamaperf.reservations import RUN
from pytest_llamaperf.runs import Run, RunHeader, read_run
from pytest_llamaperf.runtimes import installed_versions
from pytest_llamaperf.scaling.manifest import About, Manifest, Shard, read_manifest
from pytest_llamaperf.wording import shown_path

if TYPE_CHECKING:
    from pytest_llamaperf.hosting.processes import Exit

# In the environment of a shard, beside RUN, which its results repeat: the name of the whole machine that its devices are a part of, by which promises for a machine are found.
MACHINE = "LLAMAPERF_MACHINE"

# ... and the devices it was given: indices of CPU slots, or what stands in CUDA_VISIBLE_DEVICES. Who has it measures beside
# the other shards of its run as far as its place lets it.
DEVICES = "LLAMAPERF_DEVICES"
# ... and a mark that all its processes inherit and nobody else has.
GRANT = "LLAMAPERF_GRANT"

SHARDS = "shards"
LOST = "lost"
JUNIT = "junit.xml"
OUTPUT = "output.log"
REASON = "no-results.txt"

# Attempts at a shard that was lost: it may do better a second time, and seldom a third.
ATTEMPTS = 2

# Exit statuses of pytest after which a shard has results: passed, failed, nothing collected.
WITH_RESULTS = (0, 1, 5)


class End(StrEnum):
    """done: it has results. lost: it was cut off, and a second try may do better. broken: it would break again."""

    DONE = "done"
    LOST = "lost"
    BROKEN = "broken"


@dataclass(frozen=True)
class Ending:
    """How a shard's process ended, and why it has no results, empty where it has."""

    end: End
    reason: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of a run at a place. `without` are shards that ended without results, and why; `left` those that were not
    ended; `interrupted`: somebody asked to stop."""

    without: Mapping[str, str]
    left: tuple[Shard, ...]
    interrupted: bool


@dataclass(frozen=True)
class Campaign:
    """A run under way: a manifest, and the folder it is in, which holds all results."""

    manifest: Manifest
    path: Path

    def folder(self, shard: Shard) -> Path:
        """Of one shard's results: a number, for order and uniqueness, and what of its key may stand in a name."""
        name = re.sub(r"[^A-Za-z0-9.]+", "-", shard.key)[-100:].strip("-.")
        return self.path / SHARDS / f"{self._numbers[shard.key]:04d}-{name}"

    def command(self, shard: Shard) -> list[str]:
        """To be run in `manifest.about.directory`. What the plan found of `auto` is named."""
        about, folder = self.manifest.about, self.folder(shard)
        return [
            sys.executable, "-m", "pytest", *self.manifest.options,
            f"--gpu={about.gpu}", f"--engine={about.engine}", f"--llamaperf-shard={shard.key}",
            f"--results={folder}", f"--junitxml={folder / JUNIT}",
        ]  # fmt: skip

    def environment(self) -> dict[str, str]:
        """What a shard's environment has beside that of the process that starts it, and beside its devices."""
        return {RUN: self.manifest.id}

    def remaining(self) -> list[Shard]:
        """Shards without results, in the order of the manifest."""
        return [shard for shard in self.manifest.shards if not self.is_done(shard)]

    def is_done(self, shard: Shard) -> bool:
        """Whether its results are there, whole and of this run; what they say is not looked at. Those of a session that was
        told to end are a report, and not whole."""
        found = self._results(shard)
        if found is None or found.header.interrupted:
            return False
        ours = belongs(found.header, self.manifest, shard) and not apart(found.header, self.manifest.about)
        return ours and not lacking(found, shard)

    def _results(self, shard: Shard) -> Run | None:
        path = self.folder(shard) / "run.json"
        try:
            return read_run(path, sealed=True) if path.is_file() else None
        except UsageError:
            return None

    def has_report(self, shard: Shard) -> bool:
        """Whether its pytest came to its own end, also by being told to: it wrote a run.json."""
        return (self.folder(shard) / "run.json").is_file()

    def ending(self, shard: Shard, exit: Exit) -> Ending:
        """What an ended process has come to. Killed by a signal, or unable to write: lost. What pytest itself refuses is
        refused again."""
        if exit.status in WITH_RESULTS and self.is_done(shard):
            return Ending(End.DONE)
        if exit.signal is not None:
            return Ending(End.LOST, f"died by {exit}")
        found = self._results(shard)
        if found is not None and (by := found.header.interrupted or "").startswith("SIG"):
            return Ending(End.LOST, f"was ended by {by}")
        if exit.status in WITH_RESULTS:
            return Ending(End.LOST, f"{exit}, and its results are not whole")
        return Ending(End.BROKEN, f"pytest ended with {exit}")

    def set_aside(self, shard: Shard) -> None:
        """What an attempt without results has left goes to `lost/`, so that the next one finds a folder of its own."""
        folder = self.folder(shard)
        if not folder.exists():
            return
        lost = self.path / LOST
        lost.mkdir(exist_ok=True)
        attempt = 1
        while (target := lost / f"{folder.name}-{attempt}").exists():
            attempt += 1
        folder.rename(target)

    def note(self, shard: Shard, reason: str) -> None:
        """Keep why a shard has no results, for who merges: its own files cannot say who killed it."""
        self.folder(shard).mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder(shard) / REASON, f"{reason}\n")

    def reason(self, shard: Shard) -> str:
        """What was noted, empty where nothing was."""
        try:
            return (self.folder(shard) / REASON).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Raises UsageError where another process runs the same manifest, on this machine or through a shared folder."""
        from filelock import FileLock, Timeout  # every pytest session imports this module

        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise UsageError(f"{shown_path(self.path)}: another `llamaperf run` is at work there") from None
        try:
            yield
        finally:
            lock.release()

    def check(self) -> None:
        """Refuse to start what could not be merged. Raises UsageError.

        That is a manifest of other versions than are installed here, and a folder with results of another run.
        """
        here, planned = installed_versions(), self.manifest.about.versions
        apart = [f"{name} {planned.get(name, 'not')} and here {here.get(name, 'not')}"
                 for name in sorted({*here, *planned}) if here.get(name) != planned.get(name)]  # fmt: skip
        if apart:
            raise UsageError(
                f"{shown_path(self.path)}: was planned with other versions installed: {'; '.join(apart)}; plan again here"
            )
        if not Path(self.manifest.about.directory).is_dir():
            raise UsageError(
                f"{self.manifest.about.directory}: the plan was made there, and it is not here; plan again"
            )
        for found in sorted((self.path / SHARDS).glob("*/run.json*")):
            refuse_foreign(found, self.manifest)

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {shard.key: number for number, shard in enumerate(self.manifest.shards, 1)}


def campaign_of(path: Path) -> Campaign:
    """From a manifest, or the folder it is in. Raises UsageError as `read_manifest`."""
    manifest = read_manifest(path)
    return Campaign(manifest, (path if path.is_dir() else path.parent).absolute())


def belongs(header: RunHeader, manifest: Manifest, shard: Shard) -> bool:
    return header.shard.get("run") == manifest.id and header.shard.get("key") == shard.key


def apart(header: RunHeader, about: About) -> str:
    """What is different from the plan: results of other versions are of another build."""
    pairs = {"--gpu": (header.gpu, about.gpu), "--engine": (header.engine, about.engine)}
    for name in sorted({*header.versions, *about.versions}):
        pairs[name] = (header.versions.get(name, "none"), about.versions.get(name, "none"))
    return ", ".join(f"{name} {found} and not {wanted}" for name, (found, wanted) in pairs.items() if found != wanted)


def lacking(run: Run, shard: Shard) -> list[str]:
    """Tests of the shard that did not run to their end."""
    ran = {test.nodeid for test in run.tests if test.outcome != UNFINISHED}
    return [test for test in shard.tests if test not in ran]


def refuse_foreign(found: Path, manifest: Manifest) -> None:
    """Raises UsageError for results of another run; damaged ones are no results, and are replaced."""
    try:
        header = read_run(found).header
    except UsageError:
        return
    if header.shard.get("run") != manifest.id:
        raise UsageError(
            f"{shown_path(found)}: is of another run, {header.shard.get('run', header.id)}; every run has a folder of its own: "
            "plan into another one, or remove this one"
        )


def device_name(about: About, count: int) -> str:
    """`1 GPU`, `4 slots`."""
    word = "GPU" if about.on_gpus else "slot"
    return f"{count} {word}{'' if count == 1 else 's'}"
