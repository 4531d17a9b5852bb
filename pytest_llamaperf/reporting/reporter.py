"""Collects what finished tests report, in the one process that sees them all, and tells it to everybody."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_llamaperf.acceptance import Acceptance
from pytest_llamaperf.account import EngineUse, account_lines
from pytest_llamaperf.checking import case_of_report, measures_of_report, results_of, waived_by
from pytest_llamaperf.collecting import DESELECTED, REFUSAL, case_of, deselected_cases, only_looks
from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.gates import Decision, decide, other_builds, told_beside
from pytest_llamaperf.interrupts import Interrupts, uninterrupted
from pytest_llamaperf.records import UNFINISHED, WAIVED, TestRecord
from pytest_llamaperf.reporting.session_files import SessionFiles
from pytest_llamaperf.requirements import Requirement
from pytest_llamaperf.resuming import (
    RESUMED,
    RESUMPTION,
    Resumption,
    collected_in,
    conditions,
    kept_from,
    plain,
    taken_up,
    told_of,
)
from pytest_llamaperf.wording import counted, shown_path

# Ends of a session in which all tests ran that should.
_ORDERLY_ENDS = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)


class Reporter:
    """A plugin object of the controlling process; workers of pytest-xdist have none."""

    def __init__(self, config: pytest.Config, acceptance: Acceptance) -> None:
        self._config, self._acceptance = config, acceptance
        self._silent = only_looks(config)
        self._interrupts = Interrupts()
        self._tests: dict[str, TestRecord] = {}
        self._reports: dict[str, list[dict[str, Any] | None]] = {}
        self._files: SessionFiles | None = None
        self._refusal: str | None = None
        self._collected: tuple[str, ...] = ()
        self._not_run: tuple[str, ...] = ()
        self._told = ""
        self._deselected: list[str] = []
        self._promised: Sequence[Requirement] = ()
        self._broken: list[str] = []
        self._cut_off = False
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
            self._listen()
        if self._acceptance.settings.results:
            self._begin(self._acceptance.settings.results)

    def _listen(self) -> None:
        """SIGTERM ends this session as Ctrl-C does, its engines with it."""
        self._interrupts.listen()
        self._config.add_cleanup(self._interrupts.stop)

    def _begin(self, folder: Path) -> None:
        """The files of this session, which may be another one of a run that was cut off."""
        before = None
        try:
            asked = conditions(self._acceptance)
            if self._acceptance.settings.resume:
                before = taken_up(folder, asked)
                self._told = told_of(before, folder)
        except UsageError as problem:
            raise pytest.UsageError(str(problem)) from None
        if before:
            self._config.stash[RESUMPTION] = Resumption.of(before)
        self._files = SessionFiles(folder, self._config, self._acceptance, asked, before)
        self._acceptance.ledger.on_end = self._files.add_engine

    def pytest_report_collectionfinish(self) -> list[str]:
        return [self._told] if self._told else []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if any(case_of(item) for item in session.items) and not self._silent:
            self._listen()  # also where nothing is kept of what the engines did
        self._collected = tuple(item.nodeid for item in session.items)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self) -> None:
        """Not sooner: pytest finishes a collection that was refused, too, and that changes no file."""
        self._begin_tests()

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """A worker of pytest-xdist starts; it runs the tests, and so has to know which are kept."""
        node.workerinput[RESUMED] = self._config.stash.get(RESUMPTION, Resumption()).to_json()

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: Sequence[str]) -> None:
        if ids and not self._collected:  # every worker says so, and all say the same; none of one that refused
            self._collected = tuple(ids)
            self._begin_tests()

    def _begin_tests(self) -> None:
        if self._collected and self._files:
            try:
                self._files.collected(collected_in(self._config.rootpath, self._collected))
            except UsageError as problem:
                raise pytest.UsageError(str(problem)) from None

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

    @pytest.hookimpl(tryfirst=True)  # a failure says where its evidence is, and others print and keep what it says
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        kept = kept_from(report)
        session = kept or (self._files.session if self._files else 1)
        before = self._tests.get(report.nodeid, TestRecord(report.nodeid, UNFINISHED, 0.0, session=session))
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
        if kept and self._files and (found := self._files.settled(report.nodeid)):
            record = dataclasses.replace(record, evidence=found.evidence)  # which its report tells already
        elif report.failed and record.case and self._files:
            record = dataclasses.replace(record, evidence=self._files.keep_evidence(record))
            _add_to(report, self._files.told_of(record))
        self._tests[report.nodeid] = record
        if self._files is None or kept:
            return
        self._reports.setdefault(report.nodeid, []).append(plain(self._config, report))
        # The report of a crashed worker of pytest-xdist is of no phase, and the last of its test.
        if report.when not in ("setup", "call"):
            reports = self._reports.pop(report.nodeid)
            self._files.add(record, [told for told in reports if told] if all(reports) else [])

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A worker of pytest-xdist ended; it may have refused to run anything."""
        output = getattr(node, "workeroutput", {})
        if REFUSAL in output:
            self._refusal = str(output[REFUSAL])
        # Every worker collects, and deselects, the same.
        self._deselected = max(self._deselected, output.get(DESELECTED, []), key=len)

    @pytest.hookimpl(wrapper=True, trylast=True)  # after the others, and also when a second signal ends one of them
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None]:
        ended = False
        try:
            result = yield
            ended = True
            return result
        finally:
            with uninterrupted():
                self._finish(session, ended=ended)

    def _finish(self, session: pytest.Session, *, ended: bool) -> None:
        """`ended` tells whether the others have: fixtures are torn down at the end."""
        if self._refusal:
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
        if session.exitstatus == pytest.ExitCode.USAGE_ERROR:
            self._silent = True
        if self._silent:
            return
        untold = [nodeid for nodeid in self._collected if nodeid not in self._tests]
        interrupted = None
        if session.exitstatus not in _ORDERLY_ENDS or not ended:
            signal = self._interrupts.first if session.exitstatus == pytest.ExitCode.INTERRUPTED or not ended else None
            interrupted = signal or f"exit status {int(session.exitstatus)}"
            self._broken.append(f"the session ended early, {'by' if signal else 'with'} {interrupted}")
        whole = interrupted is None and not untold
        self._cut_off = interrupted is not None
        # What is settled has run, also if this session did not come to telling it again.
        self._tests |= {nodeid: kept for nodeid in untold if self._files and (kept := self._files.settled(nodeid))}
        self._not_run = tuple(nodeid for nodeid in untold if nodeid not in self._tests)
        if whole and (against := self._acceptance.begun_against):
            against.end()
        if self._decides:
            try:
                self._promised = self._acceptance.promised()
            except UsageError as problem:  # a baseline file that no test of this run had read
                self._broken.append(str(problem))
        if self._acceptance.settings.record:
            self._record()
        if self._files:
            self._files.check_log()
            self._files.finish(
                list(self._tests.values()), self._decision(), self._not_run, interrupted=interrupted, whole=whole
            )
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
            decision = self._decision()
            beside = told_beside(decision, self._acceptance.gpu, self._acceptance.engine_kind)
            terminalreporter.write(decision_text(decision, beside, width=width, color=color))
        against = self._acceptance.begun_against
        if against and against.summary:
            terminalreporter.write_line(against.summary)
        for line in account_lines(self._engines()):
            terminalreporter.write_line(line)
        if self._files and self._files.kept:
            terminalreporter.write_line(self._files.told(list(self._tests.values())))
        if self._recorded:
            terminalreporter.write_line(self._recorded, red=self._recording_failed)
        if self._files:
            problem = self._files.problem
            terminalreporter.write_line(problem or f"results: {self._files.path}", red=problem is not None)
            if self._cut_off and not problem:
                terminalreporter.write_line("cut off: the same command with --resume goes on")
            if self._files.unkept:
                terminalreporter.write_line(f"evidence is not complete: {self._files.unkept}", red=True)

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
            not_run=len(self._not_run),
            deselected=self._deselected,
            required=self._acceptance.required,
            promised=self._promised,
            waivers=self._acceptance.waivers,
        )
        unkept = [self._files.problem] if self._files and self._files.problem else []
        return dataclasses.replace(
            decision, reasons=(*decision.reasons, *self._lost(), *self._mixed(), *self._broken, *unkept)
        )

    def _engines(self) -> tuple[EngineUse, ...]:
        """Of all sessions of the run."""
        return (*(self._files.earlier if self._files else ()), *self._acceptance.ledger.uses)

    def _mixed(self) -> list[str]:
        """What was kept and what was measured now have to be of one build."""
        return other_builds("sessions", ((f"session {test.session}", test) for test in self._tests.values()))

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


def _add_to(report: pytest.TestReport, told: str) -> None:
    """Where a person reads of a failure: in the terminal, in JUnit, and wherever else it is printed."""
    failure = report.longrepr
    if add_section := getattr(failure, "addsection", None):
        add_section("evidence", told)
    else:  # of a worker of pytest-xdist that crashed
        report.longrepr = f"{failure}\nevidence: {told}"


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
