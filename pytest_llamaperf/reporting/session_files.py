"""The files of one session: run.jsonl as tests finish, run.json and summary.md at the end, evidence of what failed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pytest_llamaperf.acceptance import Acceptance
from pytest_llamaperf.account import EngineUse
from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.files import write_atomically
from pytest_llamaperf.gates import Decision
from pytest_llamaperf.records import TestRecord
from pytest_llamaperf.reservations import RUN
from pytest_llamaperf.runs import Collected, Log, Run, RunHeader, RunLog, read_durations, run_document, to_json
from pytest_llamaperf.runtimes import installed_versions
from pytest_llamaperf.summaries.markdown import markdown_of
from pytest_llamaperf.wording import counted, shown_path


class SessionFiles:
    """What one session writes. A disk that fails later on is told at the end, and tests go on.

    `unkept` is why evidence of a failure could not be kept, which changes nothing else.

    Raises pytest.UsageError when the folder cannot be written from the start.
    """

    def __init__(
        self,
        folder: Path,
        config: pytest.Config,
        acceptance: Acceptance,
        asked: Mapping[str, Any],
        before: Log | None,
    ) -> None:
        self.path = folder / "run.json"
        self.problem: str | None = None
        self.unkept: str | None = None
        self.kept = before is not None and bool(before.tests)
        self.earlier: tuple[EngineUse, ...] = before.engines if before else ()
        self._acceptance = acceptance
        if before:
            self._header = dataclasses.replace(
                before.header, finished=None, interrupted=None, sessions=before.header.sessions + 1, resumed=_now()
            )
        else:
            self._header = RunHeader(
                id=str(uuid.uuid4()),
                started=_now(),
                gpu=acceptance.gpu,
                engine=acceptance.engine_kind,
                versions=installed_versions(),
                fingerprint=acceptance.machine.to_dict(),
                shard=_shard(acceptance),
            )
        durations = acceptance.surroundings.durations
        try:
            durations.learn(*read_durations(folder, acceptance.machine.to_dict()))
        except (UsageError, AttributeError, TypeError, ValueError):
            # Of what somebody changed, or another version wrote: deadlines are the defaults then, and say so.
            durations.learn({}, "")
        self._before = before or Log(self._header, asked=asked, durations=durations.to_dict())
        self._log: RunLog | None = None
        from pytest_llamaperf.evidence.bundles import Bundles
        from pytest_llamaperf.evidence.earlier import Earlier
        from pytest_llamaperf.recording import commit_of
        from pytest_llamaperf.reporting.rerunning import rerun_of

        commit = commit_of(acceptance.settings.baselines)
        earlier = Earlier(folder)  # before this run takes its place
        self._evidence = Bundles(folder, self._header, rerun_of(config, acceptance), commit, earlier)
        if not before:
            self._begin()

    def _begin(self) -> None:
        try:
            self._opened()
        except OSError as problem:
            raise pytest.UsageError(f"--results {self.path.parent}: cannot be written: {problem.strerror}") from None

    def _opened(self) -> RunLog:
        """Begun when it is known that the session has the tests of the one it goes on with; till then nothing is changed."""
        if self._log is None:
            self._log = RunLog(self.path.parent, self._header, self._before)
            if self.session == 1:
                self._evidence.clear()
        return self._log

    @property
    def session(self) -> int:
        return self._header.sessions

    def settled(self, nodeid: str) -> TestRecord | None:
        """What an earlier session of this run found in a test."""
        found = self._before.tests.get(nodeid)
        return found.record if found else None

    def collected(self, collected: Collected) -> None:
        """Written once in a run: a session that goes on has the same tests, or is refused."""
        self._begin()
        if self._before.collected is None:
            with self._telling():
                self._opened().collected(collected)

    def add(self, test: TestRecord, reports: Sequence[Mapping[str, Any]]) -> None:
        with self._telling():
            self._opened().add(test, reports)

    def add_engine(self, use: EngineUse) -> None:
        with self._telling():
            self._opened().add_engine(use)

    def told(self, tests: Sequence[TestRecord]) -> str:
        """Which results are of earlier sessions."""
        kept = sum(test.session < self.session for test in tests)
        return (
            f"kept: {counted(kept, 'test')} of {len(tests)} ran in an earlier session of this run, which started at "
            f"{self._header.started}; this is session {self.session}"
        )

    def check_log(self) -> None:
        with self._telling():
            self._opened().check()

    def finish(
        self,
        tests: Sequence[TestRecord],
        decision: Decision,
        not_run: Sequence[str],
        *,
        interrupted: str | None,
        whole: bool,
    ) -> None:
        """run.json and summary.md or, so that none of them says yes for a run that ends with no, neither."""
        engines = (*self.earlier, *self._acceptance.ledger.uses)
        header = dataclasses.replace(self._header, finished=_now(), interrupted=interrupted)
        document = run_document(
            header,
            tests,
            decision,
            not_run=not_run,
            engines=engines,
            durations=self._acceptance.surroundings.durations.to_dict(),
        )
        summary = self.path.with_name("summary.md")
        with self._telling():
            try:
                write_atomically(self.path, to_json(document, indent=1) + "\n")
                write_atomically(summary, markdown_of(Run(header, tuple(tests), decision, tuple(not_run), engines)))
            except OSError:
                for path in (self.path, summary):
                    with contextlib.suppress(OSError):
                        path.unlink(missing_ok=True)
                raise
        with self._telling():
            if whole and self.problem is None:
                self._opened().end()
            self._opened().close()

    def keep_evidence(self, test: TestRecord) -> str | None:
        """Where it is, None where it could not be kept: whatever goes wrong with it, a result stays what it is."""
        try:
            return self._evidence.write(test)
        except Exception as problem:  # noqa: BLE001 - told, and no other failure beside the test's own
            told = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
            self.unkept = f"{test.nodeid}: {type(problem).__name__}: {told}"
            return None

    def told_of(self, test: TestRecord) -> str:
        """Of the evidence of a failure."""
        if test.evidence is None:
            return f"could not be kept: {self.unkept}"
        return f"{shown_path(self.path.parent / test.evidence)}: reproduce.sh there runs this test again"

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            self.problem = f"ERROR: results in {self.path.parent} are not complete: {problem.strerror or problem}"


def _shard(acceptance: Acceptance) -> dict[str, str]:
    """What part of a planned run this session is; the run is named by whoever started it."""
    key = acceptance.settings.shard
    if key is None:
        return {}
    return {"run": os.environ.get(RUN, ""), "key": key, "machine": acceptance.machine_slug}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
