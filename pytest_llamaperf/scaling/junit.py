"""JUnit files of shards, checked against their results and put into one."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from pathlib import Path

from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.files import UNPRINTABLE
from pytest_llamaperf.records import TestRecord
from pytest_llamaperf.wording import counted, shown_path

# What a test case holds that did not pass, by the outcome of the test.
_SIGNS = {"failed": {"failure", "error"}, "error": {"error"}, "skipped": {"skipped"}}


_ILLEGAL = re.compile("[^\t\n\r\x20-\x7e\x80-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Suites:
    """One document with a suite for each shard, named by its key."""

    def __init__(self) -> None:
        self._root = ET.Element("testsuites", name="llamaperf")

    def add(self, key: str, suites: Iterable[ET.Element]) -> None:
        for suite in suites:
            suite.set("name", key)
            self._root.append(suite)

    def add_problem(self, key: str, problem: str) -> None:
        """A shard without evidence is an error, so that nobody reads a short document for a whole one."""
        suite = ET.SubElement(self._root, "testsuite", name=key, tests="1", errors="1", failures="0", skipped="0")
        case = ET.SubElement(suite, "testcase", classname="llamaperf.shard", name=key, time="0")
        ET.SubElement(case, "error", message=problem).text = problem

    def text(self) -> str:
        ET.indent(self._root, " ")
        return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(self._root, encoding="unicode") + "\n"


def read_suites(path: Path, tests: Sequence[TestRecord]) -> list[ET.Element]:
    """The suites of a shard's file. Raises UsageError for one that is not there or damaged, or tells other outcomes than
    `tests`."""
    where = shown_path(path)
    try:
        text = path.read_text(encoding="utf-8", errors=UNPRINTABLE)
        if "<!DOCTYPE" in text:  # of which pytest writes none: it could declare entities that grow without end
            raise UsageError(f"{where}: has a DOCTYPE, which no file of pytest's has; it was changed")
        root = ET.fromstring(text)
    except OSError as problem:
        raise UsageError(f"{where}: cannot be read: {problem.strerror}") from None
    except ET.ParseError as problem:
        raise UsageError(f"{where}: is no XML ({problem}); was it cut off?") from None
    told: dict[tuple[str, str], set[str]] = {}
    for case in root.iter("testcase"):
        signs = told.setdefault((case.get("classname", ""), case.get("name", "")), set())
        signs |= {sign.tag for sign in case if sign.tag in ("failure", "error", "skipped")}
    apart = [test for test in tests if not _agrees(test, told.get(_address(test.nodeid)))]
    if len(told) != len(tests) or apart:
        which = f", as {apart[0].nodeid}" if apart else ""
        raise UsageError(f"{where}: tells of {counted(len(told), 'test')} otherwise than run.json{which}")
    return [root] if root.tag == "testsuite" else root.findall("testsuite")


def _agrees(test: TestRecord, signs: set[str] | None) -> bool:
    if signs is None:
        return False
    wanted = _SIGNS.get(test.outcome)
    if wanted is None:  # a pass has no sign; a waived test is skipped, as an expected failure
        return signs <= {"skipped"} if test.outcome == "waived" else not signs
    return bool(wanted & signs)


def _address(nodeid: str) -> tuple[str, str]:
    """Class and name as pytest's junitxml makes them of a node id."""
    path, bracket, parameters = nodeid.partition("[")
    first, *names = path.split("::")
    parts = [first.replace("/", ".").removesuffix(".py"), *names]
    return ".".join(parts[:-1]), _escaped(parts[-1] + bracket + parameters)


def _escaped(name: str) -> str:
    """What XML cannot hold, as pytest's junitxml writes it in its place."""
    return _ILLEGAL.sub(lambda found: f"#x{ord(found[0]):0{2 if ord(found[0]) <= 0xFF else 4}X}", name)
