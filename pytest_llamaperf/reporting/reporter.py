"""Collects what finished tests report, in the one process that sees them all, and tells it to everybody."""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pytest_llamaperf.acceptance import Acceptance
from pytest_llamaperf.checking import results_of
from pytest_llamaperf.collecting import REFUSAL, only_looks
from pytest_llamaperf.gates import Decision, decide
from pytest_llamaperf.records import TestRecord
from pytest_llamaperf.runs import RunHeader, RunLog, run_document, to_json, write_atomically


class Reporter:
    """A plugin object of the controlling process; workers of pytest-xdist have none."""

    def __init__(self, config: pytest.Config, acceptance: Acceptance) -> None:
        self._acceptance = acceptance
        self._silent = only_looks(config)
        self._tests: dict[str, TestRecord] = {}
        self._files: _Files | None = None
        self._refusal: str | None = None
        self._not_run = 0

    def pytest_sessionstart(self) -> None:
        if self._acceptance.settings.results and not self._silent:
            self._files = _Files(self._acceptance.settings.results, self._acceptance)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        before = self._tests.get(report.nodeid, TestRecord(report.nodeid, "passed", 0.0))
        record = dataclasses.replace(before, duration=before.duration + report.duration)
        if report.when == "call" or (report.when == "setup" and report.failed):
            record = dataclasses.replace(record, results=results_of(report))
        if report.failed:
            outcome = "failed" if report.when == "call" else "error"
            record = dataclasses.replace(record, outcome=outcome, reason=_first_line(report.longreprtext))
        elif report.skipped and before.outcome == "passed":
            record = dataclasses.replace(record, outcome="skipped", reason=_skip_reason(report))
        self._tests[report.nodeid] = record
        if report.when == "teardown" and self._files:
            self._files.add(record)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A worker of pytest-xdist ended; it may have refused to run anything."""
        refusal = getattr(node, "workeroutput", {}).get(REFUSAL)
        if refusal:
            self._refusal = str(refusal)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._refusal:
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
        if self._silent or self._refusal:
            return
        self._not_run = max(0, session.testscollected - len(self._tests))
        if self._files:
            self._files.finish(list(self._tests.values()), self._decision())
        closed = self._acceptance.settings.gate and not self._decision().releasable
        lost = self._files is not None and self._files.problem is not None
        if (closed or lost) and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._refusal:
            terminalreporter.write_line(f"ERROR: {self._refusal}", red=True)
        results = [result for test in self._tests.values() for result in test.results]
        gate = self._acceptance.settings.gate
        if self._silent or self._refusal or not (results or gate or self._files):
            return
        from pytest_llamaperf.reporting.tables import decision_text, summary_text

        width, color = terminalreporter._tw.fullwidth, terminalreporter._tw.hasmarkup
        terminalreporter.section("llamaperf")
        terminalreporter.write(summary_text(results, width=width, color=color))
        if gate:
            terminalreporter.section("release gate")
            terminalreporter.write(decision_text(self._decision(), width=width, color=color))
        if self._files:
            problem = self._files.problem
            terminalreporter.write_line(problem or f"results: {self._files.path}", red=problem is not None)

    def _decision(self) -> Decision:
        """Results that could not be kept release nothing."""
        decision = decide(list(self._tests.values()), not_run=self._not_run)
        if self._files and self._files.problem:
            return Decision((*decision.reasons, self._files.problem))
        return decision


class _Files:
    """run.jsonl and run.json of one session. A disk that fails later on is told at the end, and tests go on.

    Raises pytest.UsageError when the folder cannot be written from the start.
    """

    def __init__(self, folder: Path, acceptance: Acceptance) -> None:
        self.path = folder / "run.json"
        self.problem: str | None = None
        self._header = RunHeader(
            id=str(uuid.uuid4()),
            started=_now(),
            gpu=acceptance.gpu,
            engine=acceptance.engine_kind,
            versions=_versions(),
            fingerprint=acceptance.machine.to_dict(),
        )
        try:
            self._log = RunLog(folder, self._header)
        except OSError as problem:
            raise pytest.UsageError(f"--results {folder}: cannot be written: {problem.strerror}") from None

    def add(self, test: TestRecord) -> None:
        with self._telling():
            self._log.add(test)

    def finish(self, tests: Sequence[TestRecord], decision: Decision) -> None:
        with self._telling():
            self._log.close()
        with self._telling():
            header = dataclasses.replace(self._header, finished=_now())
            write_atomically(self.path, to_json(run_document(header, tests, decision), indent=1) + "\n")

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            self.problem = f"ERROR: results in {self.path.parent} are not complete: {problem.strerror or problem}"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _versions() -> dict[str, str]:
    """Versions of what is installed, read without importing any of it."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("pytest-llamaperf", "pytest", "tensorrt-llm", "aiconfigurator-core", "torch", "nvidia-modelopt"):
        try:
            found[package.replace("-", "_")] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _skip_reason(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):
        return _first_line(str(report.longrepr[2]).removeprefix("Skipped: "))
    return _first_line(report.longreprtext)


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
