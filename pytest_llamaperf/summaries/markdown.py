"""A run as Markdown, for the page that CI shows of a job: the decision, what failed, then every value."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from pytest_llamaperf.account import account_lines
from pytest_llamaperf.gates import Decision, told_beside
from pytest_llamaperf.markdown import escaped, visible
from pytest_llamaperf.measurements import Source
from pytest_llamaperf.records import Result, TestRecord
from pytest_llamaperf.runs import Run, RunHeader
from pytest_llamaperf.verdicts import Outcome
from pytest_llamaperf.wording import amount, change, counted, interval

# GitHub refuses a summary of more than 1,048,576 bytes, whole; the difference is for what else a step may say.
MOST_BYTES = 1_000_000
MOST_REASONS = 20
# Characters of one text: a failure that fills the page hides the others.
LONGEST = 4_000

_WORST_FIRST = (Outcome.REGRESSION, Outcome.ERROR, Outcome.INCONCLUSIVE, Outcome.SUSPECT)
_QUIET = (Outcome.PASS, Outcome.NO_BASELINE)


def markdown_of(run: Run, *, most_bytes: int = MOST_BYTES) -> str:
    """At most `most_bytes` of UTF-8, which are 50,000 or more: what does not fit is counted in the last sentence."""
    page = _Page(most_bytes)
    page.add(_title(run.decision))
    page.add(f"\n{_about(run.header)}\n")
    page.add("".join(f"{line}\n" for line in _reasons(run.decision)))
    page.add("".join(f"\n{escaped(line)}\n" for line in _beside(run)))
    page.add(f"\n{_counts(run.results)}\n")
    page.add(_resumed(run))
    page.add_section("\n### Failures\n", list(_failures(run)), "failure")
    page.add_section("\n### Never ran\n\n", [f"- {escaped(_clipped(nodeid))}\n" for nodeid in run.not_run], "test")
    page.add_section("\n### Notes\n\n", list(_notes(run.results)), "note")
    page.add_section(
        f"\n### Values\n\n{_row(_HEADINGS)}{_row(_RULES)}", [_row(_cells(r)) for r in run.results], "value"
    )
    page.add_section("\n### What it cost\n\n", [_cost(line) for line in account_lines(run.engines)], "line")
    return page.text()


class _Page:
    """Blocks of text, as long as they fit."""

    # For the last sentence, with a count for each section.
    _KEPT = 400

    def __init__(self, most_bytes: int) -> None:
        self._left = most_bytes - self._KEPT
        self._blocks: list[str] = []
        self._left_out: list[str] = []

    def add(self, block: str) -> bool:
        """Whether it fits."""
        size = len(block.encode("utf-8"))
        if size > self._left:
            return False
        self._left -= size
        self._blocks.append(block)
        return True

    def add_section(self, heading: str, blocks: Sequence[str], noun: str) -> None:
        """As many blocks as fit, from the first; the heading comes with the first of them."""
        for shown, block in enumerate(blocks):
            if not self.add(block if shown else heading + block):
                self._left_out.append(counted(len(blocks) - shown, noun))
                return

    def text(self) -> str:
        if self._left_out:
            self._blocks.append(
                f"\nCut off here: {' and '.join(self._left_out)} more; the folder of the run has all of them.\n"
            )
        return "".join(self._blocks)


def _title(decision: Decision | None) -> str:
    if decision is None:
        return "## Cut off before its end: no decision\n"
    return f"## {decision.headline.capitalize()}\n"


def _about(header: RunHeader) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(header.versions.items()))
    return escaped(_clipped(f"llamaperf on {header.gpu}, engine {header.engine}, {header.started}; {versions}"))


def _reasons(decision: Decision | None) -> Iterator[str]:
    reasons = (*decision.reasons, *(f"waived: {each}" for each in decision.waived)) if decision else ()
    if reasons:
        yield ""
    for reason in reasons[:MOST_REASONS]:
        yield f"- {escaped(_clipped(reason))}"
    if len(reasons) > MOST_REASONS:
        yield f"- and {counted(len(reasons) - MOST_REASONS, 'more reason')}"


def _beside(run: Run) -> Sequence[str]:
    return told_beside(run.decision, run.header.gpu, run.header.engine) if run.decision else ()


def _counts(results: Sequence[Result]) -> str:
    counts = Counter(result.outcome for result in results)
    told = [f"{count} {escaped(outcome)}" for outcome, count in counts.most_common()]
    predicted = sum(result.source == Source.PREDICTED for result in results)
    warning = f" **{counted(predicted, 'value')} predicted, not measured.**" if predicted else ""
    return f"{', '.join(told) or 'nothing was judged'}.{warning}"


def _resumed(run: Run) -> str:
    """Of a run that several sessions made, one after another."""
    kept = sum(test.session < run.header.sessions for test in run.tests)
    if run.header.sessions == 1:
        return ""
    return f"\nResumed: {counted(kept, 'test')} of {len(run.tests)} ran in an earlier session, {run.header.sessions} in all.\n"


def _cost(line: str) -> str:
    """A sum, or what one engine has of it."""
    return f"{'  ' if line.startswith(' ') else ''}- {escaped(_clipped(line.strip()))}\n"


def _failures(run: Run) -> Iterator[str]:
    """The worst first; then tests that broke without a value to show for it; then what somebody answers for."""
    failed = [result for result in run.results if result.outcome not in _QUIET]
    failed.sort(key=lambda r: _WORST_FIRST.index(r.outcome) if r.outcome in _WORST_FIRST else 0)
    kept = {test.nodeid: test.evidence for test in run.tests}
    for result in failed:
        if not result.waiver:
            yield _failure(result, run.header, kept.get(result.nodeid))
    for test in run.tests:
        if test.broke:
            yield _broken(test, run.header)
    for result in failed:
        if result.waiver:
            yield _failure(result, run.header, kept.get(result.nodeid))


def _failure(result: Result, header: RunHeader, evidence: str | None) -> str:
    what = f"{result.case['id']} {result.metric or ''}"
    promise = result.baseline or {}
    where = f"{promise.get('file')}:{promise.get('line')}"
    place = f"\nPromise in {escaped(_clipped(where))}.\n" if "file" in promise else ""
    message = f"{result.message}; {result.waived}" if result.waived else result.message
    commands = _again(result.nodeid, header) + (f"\n# by hand\n{result.reproduce}" if result.reproduce else "")
    outcome = escaped(result.outcome) + (", waived" if result.waiver else "")
    return f"\n#### {outcome}: {escaped(what)}\n\n{escaped(_clipped(message, LONGEST))}\n{place}{_kept(evidence)}\n{_block(commands)}"


def _broken(test: TestRecord, header: RunHeader) -> str:
    title = f"\n#### {escaped(test.outcome)}: {escaped(test.nodeid)}\n"
    return f"{title}\n{escaped(_clipped(test.reason or 'no reason given', LONGEST))}\n{_kept(test.evidence)}\n{_block(_again(test.nodeid, header))}"


def _kept(evidence: str | None) -> str:
    return f"\nEvidence in the folder of the run: {escaped(_clipped(str(evidence)))}\n" if evidence else ""


def _again(nodeid: str, header: RunHeader) -> str:
    return f"pytest {shlex.quote(nodeid)} --gpu {shlex.quote(header.gpu)} --engine {shlex.quote(header.engine)}"


def _block(code: str) -> str:
    """Code as it is, between fences longer than any in it."""
    lines = "\n".join(visible(line) for line in _clipped(code, LONGEST).split("\n"))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", lines)), default=0))
    return f"{fence}sh\n{lines}\n{fence}\n"


def _notes(results: Sequence[Result]) -> Iterator[str]:
    """Each once, with how many results it qualifies."""
    counts = Counter(note for result in results for note in result.notes)
    for note, count in counts.items():
        yield f"- {escaped(_clipped(note))} ({counted(count, 'result')})\n"


_HEADINGS = ("case", "metric", "promised", "value", "source", "change", "outcome")
_RULES = ("---", "---", "--:", "--:", "---", "--:", "---")


def _cells(result: Result) -> Iterable[str]:
    unit = result.unit or ""
    promised = result.baseline["value"] if result.baseline else None
    value = result.value
    yield escaped(_clipped(str(result.case["id"])))
    yield escaped(_clipped(result.metric or "-"))
    yield "-" if promised is None else escaped(_clipped(amount(promised, unit)))
    yield "-" if value is None else escaped(_clipped(amount(value, unit) + interval(result.low, result.high, unit)))
    yield escaped(_clipped(result.source or "-"))
    yield "" if value is None or promised is None else change(value, promised)
    outcome = escaped(_clipped(result.outcome)) + (", waived" if result.waiver else "")
    yield outcome if result.outcome in _QUIET else f"**{outcome}**"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _clipped(text: str, longest: int = 300) -> str:
    return text if len(text) <= longest else f"{text[:longest]} ... ({len(text):,} characters)"
