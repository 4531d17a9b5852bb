"""A run that was cut off goes on: tests that are settled are told again as they were reported, and the others run.

run.jsonl holds the reports of every finished test, and under which conditions it was measured. Under any other ones
nothing of it is used. See docs/decisions/0023-resuming.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from pytest_llamaperf.acceptance import Acceptance
from pytest_llamaperf.environment import kept
from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.fingerprints import Meaning, Part, field_of, matching
from pytest_llamaperf.runs import Collected, Log, read_log
from pytest_llamaperf.runtimes import installed_versions
from pytest_llamaperf.wording import counted, shown_path

# The user property of a report that is told again: the session that ran the test.
KEPT = "llamaperf_kept_from_session"
# The key under which a worker of pytest-xdist is told what is kept.
RESUMED = "llamaperf_resumed"

Reports = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Resumption:
    """What is kept of a run: reports of its settled tests with the session that ran them, and what it was to run."""

    tests: Mapping[str, tuple[int, Reports]] = field(default_factory=dict)
    collected: Collected | None = None

    @classmethod
    def of(cls, log: Log) -> Resumption:
        tests = {nodeid: (kept.record.session, kept.reports) for nodeid, kept in log.tests.items()}
        return cls(tests, log.collected)

    @classmethod
    def from_json(cls, text: str) -> Resumption:
        told = json.loads(text)
        collected = told["collected"]
        return cls(told["tests"], Collected.from_dict(collected) if collected else None)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))


RESUMPTION = pytest.StashKey[Resumption]()


def conditions(acceptance: Acceptance) -> dict[str, Any]:
    """What decides about results beyond the tests themselves: where one of these differs, nothing is kept.

    Raises UsageError for a file that cannot be read.
    """
    settings = acceptance.settings
    promised = sorted(path for kind in ("*.yaml", "*.json") for path in settings.baselines.rglob(kind))
    return {
        "gpu": acceptance.gpu,
        "engine": acceptance.engine_kind,
        "installed": _installed(),
        "machine": matching(acceptance.machine.to_dict()),
        "lock_clocks": settings.lock_clocks,
        "environment": _environment(),
        "tables": str(settings.tables),
        "restarts": settings.restarts,
        "rounds": settings.rounds,
        "gate": settings.gate,
        "against": str(settings.against) if settings.against else None,
        "allowed": list(settings.allowed),
        "promises": _digests(settings.baselines, promised),
        "waivers": _digests(settings.root, [settings.waivers or settings.root / "waivers.yaml"]),
    }


def taken_up(folder: Path, asked: Mapping[str, Any]) -> Log | None:
    """What a folder holds of a run that was cut off, its settled tests only; None where there is nothing to go on with.

    Raises UsageError for a file that cannot be read, and for what was measured under other conditions.
    """
    path = folder / "run.jsonl"
    if not path.is_file():
        return None
    log = read_log(path)
    if log.ended:  # of a run that told all it found: who measures again has another build, or wants to know again
        return None
    where = shown_path(path)
    if log.asked is None:
        raise UsageError(f"{where}: does not tell under which conditions it was measured; {_ANEW}")
    if different := list(_differences(log.asked, asked)):
        raise UsageError(f"{where}: was measured under other conditions: {'; '.join(different)}; {_ANEW}")
    settled = {nodeid: kept for nodeid, kept in log.tests.items() if kept.record.settled and kept.reports}
    return dataclasses.replace(log, tests=settled)


def told_of(log: Log | None, folder: Path) -> str:
    """What is gone on with, in a line."""
    where = shown_path(folder / "run.jsonl")
    if log is None:
        return f"--resume: {where} holds nothing to go on with; everything is measured"
    torn = ", and a line that was cut off while it was written is dropped" if log.torn else ""
    return f"--resume: {where}: {counted(len(log.tests), 'test')} kept from before{torn}; the others run"


def collected_in(root: Path, nodeids: Sequence[str]) -> Collected:
    """With the files of the tests, and the conftests that may change them."""
    files = {root / nodeid.partition("::")[0] for nodeid in nodeids}
    folders = {folder for file in files for folder in file.parents if folder.is_relative_to(root)}
    return Collected(tuple(nodeids), _digests(root, sorted({*files, *(folder / "conftest.py" for folder in folders)})))


def problem_of_other_tests(config: pytest.Config, nodeids: Sequence[str]) -> str | None:
    """Why these are not the tests of the run that is to go on."""
    before = resumption_of(config).collected
    if before is None:
        return None
    now = collected_in(config.rootpath, nodeids)
    different = list(_differences(before.files, now.files))
    for name, more, less in (("gone", before.tests, now.tests), ("new", now.tests, before.tests)):
        if only := [nodeid for nodeid in more if nodeid not in set(less)]:
            different.append(f"{counted(len(only), 'test')} {'is' if len(only) == 1 else 'are'} {name}: {only[0]}")
    if not different:
        return None
    return f"--resume: the run that was cut off had other tests: {'; '.join(different)}; {_ANEW}"


def resumption_of(config: pytest.Config) -> Resumption:
    return config.stash.get(RESUMPTION, Resumption())


def is_kept(item: pytest.Item, acceptance: Acceptance) -> bool:
    """A comparison with another build is made of all its tests, from a journal of its own: those run again."""
    compared = acceptance.settings.against is not None and "measure" in getattr(item, "fixturenames", ())
    return item.nodeid in resumption_of(item.config).tests and not compared


def tell_again(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Report a kept test as the session did that ran it, and mark it."""
    session, reports = resumption_of(item.config).tests[item.nodeid]
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    # Fixtures of the tests before, which this one was the last to share, are torn down after it, as ever.
    call = pytest.CallInfo.from_call(lambda: item.session._setupstate.teardown_exact(nextitem), "teardown")
    for told in reports:
        item.ihook.pytest_runtest_logreport(report=_report(item.config, told, session))
    if call.excinfo is not None:
        item.ihook.pytest_runtest_logreport(report=item.ihook.pytest_runtest_makereport(item=item, call=call))
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)


def kept_from(report: pytest.TestReport | pytest.CollectReport) -> int | None:
    """The session that ran a test whose report is told again."""
    properties = report.user_properties if isinstance(report, pytest.TestReport) else ()
    return next((int(str(value)) for name, value in properties if name == KEPT), None)


def plain(config: pytest.Config, report: pytest.TestReport) -> dict[str, Any] | None:
    """A report as JSON; None for one that holds something else, with which its test can only be run again."""
    told = config.hook.pytest_report_to_serializable(config=config, report=report)
    told.pop("node", None)  # of pytest-xdist: the worker
    try:
        found: dict[str, Any] = json.loads(json.dumps(told, allow_nan=False))
    except (TypeError, ValueError):
        return None
    return found


def _report(config: pytest.Config, told: Mapping[str, Any], session: int) -> pytest.TestReport:
    """As it was, and marked. JSON has no tuples, and pytest asks for them."""
    longrepr = told["longrepr"]
    data = {
        **told,
        "longrepr": tuple(longrepr) if isinstance(longrepr, list) else longrepr,
        "location": tuple(told["location"]),
        "user_properties": [*map(tuple, told["user_properties"]), (KEPT, session)],
    }
    report: pytest.TestReport = config.hook.pytest_report_from_serializable(config=config, data=data)
    return report


_ANEW = "repeat what was asked then, or leave out --resume: everything is measured anew"


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], within: str = "") -> Iterator[str]:
    for name in sorted(before.keys() | now.keys()):
        was, is_now = before.get(name), now.get(name)
        if isinstance(was, Mapping) and isinstance(is_now, Mapping):
            yield from _differences(was, is_now, f"{within}{name} ")
        elif was != is_now:
            yield f"{within}{name} was {was!r} and is {is_now!r}"


def _environment() -> dict[str, str]:
    """Variables that an engine's results say and that must match; which GPUs they name, the machine tells."""
    return {
        name: value
        for name, value in kept(os.environ).items()
        if field_of(Part.SETTINGS, name).meaning is Meaning.MATCH
    }


def _installed() -> dict[str, str]:
    """Versions, and what they consist of: a build may change and keep its version."""
    return {
        name: f"{version}, files {_digest((distribution(name).read_text('RECORD') or '').encode())}"
        for name, version in installed_versions().items()
    }


def _digests(root: Path, paths: Iterable[Path]) -> dict[str, str]:
    """By the name of each file that is there. Raises UsageError for one that cannot be read."""
    try:
        return {
            path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path): _digest(path.read_bytes())
            for path in paths
            if path.is_file()
        }
    except OSError as problem:
        raise UsageError(f"{shown_path(Path(str(problem.filename)))}: cannot be read: {problem.strerror}") from None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
