"""Collects what finished tests report, in the one process that sees them all, and tells it to everybody."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pytest_llamaperf.acceptance import Acceptance
from pytest_llamaperf.checking import case_of_report, measures_of_report, results_of, waived_by
from pytest_llamaperf.collecting import DESELECTED, REFUSAL, deselected_cases, only_looks
from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.files import write_atomically
from pytest_llamaperf.gates import Decision, decide
from pytest_llamaperf.records import UNFINISHED, WAIVED, TestRecord
from pytest_llamaperf.requirements import Requirement
from pytest_llamaperf.runs import Run, RunHeader, RunLog, run_document, to_json
from pytest_llamaperf.runtimes import installed_versions
from pytest_llamaperf.scaling.contract import RUN
from pytest_llamaperf.summaries.markdown import markdown_of
from pytest_llamaperf.wording import counted, shown_path

# Ends of a session in which all tests ran that should.
_ORDERLY_ENDS = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)


class Reporter:
    """A plugin object of the controlling process; workers of pytest-xdist have none."""

    def __init__(self, config: pytest.Config, acceptance: Acceptance) -> None:
        self._acceptance = acceptance
        self._silent = only_looks(config)
        self._tests: dict[str, TestRecord] = {}
        self._files: _Files | None = None
        self._refusal: str | None = None
        self._not_run = 0
        self._deselected: list[str] = []
        self._promised: Sequence[Requirement] = ()
        self._broken: list[str] = []
        self._recorded = ""
        self._recording_failed = False

    def pytest_sessionstart(self) -> None:
        if self._silent:
            return
        if self._decides:
            try:
                _ = self._acceptance.required, self._acceptance.waivers
            except UsageError as problem:
                raise pytest.UsageError(str(problem)) from None
        if self._acceptance.settings.results:
            self._files = _Files(self._acceptance.settings.results, self._acceptance)

    @property
    def _decides(self) -> bool:
        """run.json tells a decision with and without --gate; on a part of a run there is none to make."""
        settings = self._acceptance.settings
        if settings.shard:
            return False
        return settings.gate or settings.results is not None or settings.waivers is not None

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.passed:
            self._broken.append(f"not collected: {report.nodeid}: {_reason(report)}")

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        self._deselected += deselected_cases(items)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        before = self._tests.get(report.nodeid, TestRecord(report.nodeid, UNFINISHED, 0.0))
        part = hasattr(report, "context")  # a subtest: what becomes of it holds for its test, but for a pass
        record = dataclasses.replace(before, duration=before.duration + (0.0 if part else report.duration))
        if report.when == "setup":
            record = dataclasses.replace(
                record,
                outcome=UNFINISHED,
                case=case_of_report(report),
                attempts=record.attempts + 1,
                measures=measures_of_report(report),
            )
        if report.when != "setup" or report.failed:  # what a fixture judges after the test counts as well
            record = dataclasses.replace(record, results=results_of(report))
        if report.failed:
            outcome = "failed" if report.when == "call" else "error"
            record = dataclasses.replace(record, outcome=outcome, reason=_reason(report))
        elif waived := waived_by(report):
            if record.outcome in (UNFINISHED, "passed"):  # and not a test that failed before its teardown
                record = dataclasses.replace(record, outcome=WAIVED, reason=waived)
        elif report.skipped:
            record = dataclasses.replace(record, outcome="skipped", reason=_reason(report))
        elif report.when == "call" and report.passed and not part and record.outcome == UNFINISHED:
            record = dataclasses.replace(record, outcome="passed", reason="")
        self._tests[report.nodeid] = record
        # The report of a crashed worker of pytest-xdist is of no phase, and the last of its test.
        if report.when not in ("setup", "call") and self._files:
            self._files.add(record)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A worker of pytest-xdist ended; it may have refused to run anything."""
        output = getattr(node, "workeroutput", {})
        if REFUSAL in output:
            self._refusal = str(output[REFUSAL])
        # Every worker collects, and deselects, the same.
        self._deselected = max(self._deselected, output.get(DESELECTED, []), key=len)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._refusal:
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
        if session.exitstatus == pytest.ExitCode.USAGE_ERROR:
            self._silent = True
        if self._silent:
            return
        self._not_run = max(0, session.testscollected - len(self._tests))
        if session.exitstatus not in _ORDERLY_ENDS:
            self._broken.append(f"the session ended early, with exit status {int(session.exitstatus)}")
        elif not self._not_run and (against := self._acceptance.begun_against):
            against.end()
        if self._decides:
            try:
                self._promised = self._acceptance.promised()
            except UsageError as problem:  # a baseline file that no test of this run had read
                self._broken.append(str(problem))
        if self._acceptance.settings.record:
            self._record()
        if self._files:
            self._files.finish(list(self._tests.values()), self._decision())
        decides = self._acceptance.settings.gate and not self._acceptance.settings.shard
        closed = decides and not self._decision().releasable
        lost = self._recording_failed or (self._files is not None and self._files.problem is not None)
        if (closed or lost) and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._refusal:
            terminalreporter.write_line(f"ERROR: {self._refusal}", red=True)
        results = [result for test in self._tests.values() for result in test.results]
        gate = self._acceptance.settings.gate
        if self._silent or not (results or gate or self._files or self._recorded):
            return
        from pytest_llamaperf.reporting.tables import decision_text, summary_text

        width, color = terminalreporter._tw.fullwidth, terminalreporter._tw.hasmarkup
        terminalreporter.section("llamaperf")
        terminalreporter.write(summary_text(results, width=width, color=color))
        if gate and not self._acceptance.settings.shard:
            terminalreporter.section("release gate")
            terminalreporter.write(decision_text(self._decision(), width=width, color=color))
        against = self._acceptance.begun_against
        if against and against.summary:
            terminalreporter.write_line(against.summary)
        if self._recorded:
            terminalreporter.write_line(self._recorded, red=self._recording_failed)
        if self._files:
            problem = self._files.problem
            terminalreporter.write_line(problem or f"results: {self._files.path}", red=problem is not None)

    def _record(self) -> None:
        """A promise for every value that has none in git. A disk that fails is told at the end."""
        from pytest_llamaperf.recording import record

        acceptance = self._acceptance
        try:
            path, count = record(acceptance.book(acceptance.gpu), acceptance.judged, acceptance.machine)
        except (OSError, UsageError) as problem:
            self._recorded = f"ERROR: nothing was recorded: {problem}"
            self._recording_failed = True
            return
        self._recorded = f"recorded: {counted(count, 'promise')} for this machine in {shown_path(path)}"
        if not count:
            self._recorded = (
                "recorded: nothing; a promise is of a model of the catalog, measured in two restarts or more, "
                "and not in git already"
            )

    def _decision(self) -> Decision:
        """Of the tests, and of what kept them from being run or their results from being kept."""
        if shard := self._acceptance.settings.shard:
            return Decision((f"a part of a run, {shard}: `llamaperf merge` decides over all", *self._broken))
        decision = decide(
            list(self._tests.values()),
            not_run=self._not_run,
            deselected=self._deselected,
            required=self._acceptance.required,
            promised=self._promised,
            waivers=self._acceptance.waivers,
        )
        unkept = [self._files.problem] if self._files and self._files.problem else []
        return dataclasses.replace(decision, reasons=(*decision.reasons, *self._lost(), *self._broken, *unkept))

    def _lost(self) -> list[str]:
        """What the comparison with another build found beyond what tests asked: no `blocked` beside a release."""
        against = self._acceptance.begun_against
        if against is None:
            return []
        judged = {(result.case["id"], result.metric) for test in self._tests.values() for result in test.results}
        lost = [f"{case} {metric}" for case, metric in against.lost() if (case, metric) not in judged]
        if not lost:
            return []
        more = f" and {counted(len(lost) - 1, 'other')}" if len(lost) > 1 else ""
        return [f"lost against {against.runtime} and not judged: {lost[0]}{more}"]


class _Files:
    """run.jsonl, run.json and summary.md of one session. A disk that fails later on is told at the end, and tests go on.

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
            versions=installed_versions(),
            fingerprint=acceptance.machine.to_dict(),
            shard=_shard(acceptance),
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
            write_atomically(self.path.with_name("summary.md"), markdown_of(Run(header, tuple(tests), decision)))

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


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """The first line a person would read of why it did not pass, after the name of the case, which they know."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        text = str(crash.message).removeprefix("Failed: ")
    elif isinstance(report.longrepr, tuple):
        text = str(report.longrepr[2]).removeprefix("Skipped: ")
    else:
        text = report.longreprtext
    lines = text.strip().splitlines() or [""]
    known = case_of_report(report) if isinstance(report, pytest.TestReport) else None
    return lines[1].strip() if lines[0] == known and len(lines) > 1 else lines[0]
