"""Collection: tests get their cases, and what this run cannot be about is left out, or refused, with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import cast

import pytest

from pytest_llamaperf.acceptance import Acceptance
from pytest_llamaperf.accuracy.given import missing_documents
from pytest_llamaperf.accuracy.judging import refuse_weak
from pytest_llamaperf.cases import Case
from pytest_llamaperf.errors import DocumentError, UsageError
from pytest_llamaperf.refusals import check_engine, check_possible
from pytest_llamaperf.resuming import is_kept, problem_of_other_tests
from pytest_llamaperf.selection import other_case, selected_cases
from pytest_llamaperf.wording import counted

_PROBLEMS = pytest.StashKey[list[str]]()
_ELSEWHERE = pytest.StashKey[int]()
_LEFT_OUT = pytest.StashKey[bool]()
_ACCEPTED = pytest.StashKey[bool]()
_DESELECTED = pytest.StashKey[list[str]]()
# The key under which a worker of pytest-xdist says why it ran nothing.
REFUSAL = "llamaperf_refusal"
# ... and the case of each test that was deselected there.
DESELECTED = "llamaperf_deselected"
# The user property that says what a test is about.
CASE = "llamaperf_case"


def parametrize_cases(metafunc: pytest.Metafunc, acceptance: Acceptance) -> None:
    """Give the test a parameter `case` for each case of its markers; what is wrong is kept for `narrow` to tell."""
    markers = [m for m in metafunc.definition.iter_markers() if m.name in ("cases", "promised")]
    if not markers:  # `case` is a common word: another project's fixture or parameter is no business of ours
        return
    cases: list[Case] = []
    try:
        cases = selected_cases(
            markers, gpu=acceptance.gpu, engine=acceptance.engine_under_test, book_for=acceptance.book
        )
    except DocumentError as problem:  # says file and line by itself, and is met by every test that reads the file
        metafunc.config.stash.setdefault(_PROBLEMS, []).append(str(problem))
    except UsageError as problem:
        told = f"{metafunc.definition.nodeid}: {problem}"
        metafunc.config.stash.setdefault(_PROBLEMS, []).append(told)
    metafunc.parametrize("case", cases, ids=[case.id for case in cases], indirect=True)


def narrow(config: pytest.Config, items: list[pytest.Item], acceptance: Acceptance) -> None:
    """Refuse what is wrong, deselect cases of other hardware and engines, skip those that need more GPUs than there are.

    Raises pytest.UsageError with everything that is wrong with markers, baselines and engine at once.
    """
    problems: list[str] = config.stash.setdefault(_PROBLEMS, [])
    if problems:
        _refuse(config, items, "\n".join(dict.fromkeys(problems)))
        return
    here = [item for item in items if (case := case_of(item)) is None or acceptance.runs_here(case)]
    if len(here) < len(items):
        config.stash[_ELSEWHERE] = len(items) - len(here)
        kept = set(here)
        leave_out(config, items, [item for item in items if item not in kept])
    cases = [case for item in items if (case := note_case(item))]
    if not cases:
        return
    try:
        for hardware in sorted({case.hardware for case in cases}):
            acceptance.book(hardware)
        if not only_looks(config):
            check_possible(acceptance)
            check_engine(acceptance)
            _refuse_measuring_side_by_side(config, acceptance)
            _skip_what_lacks_something(items, acceptance)
    except UsageError as problem:
        _refuse(config, items, str(problem))
        return
    config.stash[_ACCEPTED] = True


def refuse_other_tests(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A run goes on with the tests it began with. Raises pytest.UsageError."""
    if problem := problem_of_other_tests(config, [item.nodeid for item in items]):
        _refuse(config, items, problem)


def leave_out(config: pytest.Config, items: list[pytest.Item], left_out: Sequence[pytest.Item]) -> None:
    """Deselect what this session is not about. Nobody asked for that, so no gate counts it."""
    for item in left_out:
        item.stash[_LEFT_OUT] = True
    if left_out:
        gone = set(left_out)
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in gone]


def _skip_what_lacks_something(items: Sequence[pytest.Item], acceptance: Acceptance) -> None:
    """GPUs, or documents that a user has to bring. Raises UsageError for documents that are named and not there."""
    for item in items:
        case = case_of(item)
        if case is None:
            continue
        missing = acceptance.missing_gpus(case) or (missing_documents(case) if acceptance.measures else None)
        if missing:
            item.add_marker(pytest.mark.skip(reason=missing))


def expect(config: pytest.Config, items: Sequence[pytest.Item], acceptance: Acceptance) -> None:
    """Tell the bench what the tests will ask, so that engines are opened once. Raises pytest.UsageError."""
    # pytest calls this also after a collection that was refused.
    if only_looks(config) or not acceptance.measures or not config.stash.get(_ACCEPTED, False):
        return
    try:
        against = acceptance.against
    except UsageError as problem:
        raise pytest.UsageError(str(problem)) from None
    for item in items:
        case = case_of(item)
        if case is None or item.get_closest_marker("skip") or is_kept(item, acceptance):
            continue
        try:
            if acceptance.settings.gate:
                refuse_without_power(item)
            wanted = wanted_by(item, case, acceptance)
            measured = wanted.measured
            if against:
                against.expect(measured)
                measured = ()
            if measured or wanted.asked:
                acceptance.bench.expect(measured=measured, answered=wanted.asked)
        except UsageError as problem:
            raise pytest.UsageError(f"{item.nodeid}: {problem}") from None


@dataclass(frozen=True)
class Wanted:
    """Cases that a test needs engines for, its own first; and those of them that it has measured, and asked."""

    cases: tuple[Case, ...]
    measured: tuple[Case, ...] = ()
    asked: tuple[Case, ...] = ()


def wanted_by(item: pytest.Item, case: Case, acceptance: Acceptance) -> Wanted:
    """What its fixtures and markers say; of a reference whose scores are stored no engine is needed. Raises UsageError."""
    names = _fixtures(item)
    others = compared_with(item, case)
    if "accuracy" in names:
        others = [other for other in others if not acceptance.is_stored(other)]
    cases = (case, *others)
    asks = any(name in names for name in ("answers", "repeats", "look", "evaluate"))
    return Wanted(cases, cases if "measure" in names else (), cases if asks else ())


def refuse_without_power(item: pytest.Item) -> None:
    """Raises UsageError for a comparison of accuracies that could not tell what it is to tell: it would be no gate."""
    case = case_of(item)
    if case is not None and "accuracy" in _fixtures(item):
        for other in compared_with(item, case):
            refuse_weak(other)


def _fixtures(item: pytest.Item) -> Sequence[str]:
    return getattr(item, "fixturenames", ())


def compared_with(item: pytest.Item, case: Case) -> list[Case]:
    """What the markers `versus` of a test compare its case with. Raises UsageError."""
    return [other_case(case, marker) for marker in item.iter_markers("versus")]


def _refuse_measuring_side_by_side(config: pytest.Config, acceptance: Acceptance) -> None:
    if acceptance.measures and hasattr(config, "workerinput"):
        raise UsageError(
            f"-n with --engine {acceptance.engine_kind}: engines measured side by side slow each other down; "
            "run without -n (predictions may use it)"
        )


def _refuse(config: pytest.Config, items: list[pytest.Item], problem: str) -> None:
    """A worker of pytest-xdist that raises takes the session down with an internal error, so it runs nothing and
    tells the controlling process, which ends the session as a usage error."""
    output: dict[str, object] | None = getattr(config, "workeroutput", None)
    if output is None:
        raise pytest.UsageError(problem)
    output[REFUSAL] = problem
    items.clear()


def deselected_cases(items: Sequence[pytest.Item]) -> list[str]:
    """The case of each test about one that the user deselected (-k, -m, --deselect), but for those of other hardware."""
    return [case.id for item in items if (case := case_of(item)) and not item.stash.get(_LEFT_OUT, False)]


def note_deselected(items: Sequence[pytest.Item]) -> None:
    """For this process, and from a worker of pytest-xdist to the one that decides."""
    if not items:
        return
    config = items[0].config
    config.stash.setdefault(_DESELECTED, []).extend(deselected_cases(items))
    output: dict[str, object] | None = getattr(config, "workeroutput", None)
    if output is not None:
        output[DESELECTED] = [*cast("list[str]", output.get(DESELECTED, [])), *deselected_cases(items)]


def deselected_of(config: pytest.Config) -> Sequence[str]:
    """The cases of all tests that the user deselected here, as `deselected_cases` tells them."""
    return config.stash.get(_DESELECTED, [])


def only_looks(config: pytest.Config) -> bool:
    """Whether this session runs no test: what it shows is true on any machine."""
    shows = ("collectonly", "plan", "help", "version", "markers", "showfixtures", "show_fixtures_per_test")
    return any(config.getoption(name, False) for name in shows)


def plan_of(items: Sequence[pytest.Item]) -> list[str]:
    """What the engines of all cases would be given, those included that tests compare with. Raises UsageError."""
    from pytest_llamaperf.engines.trtllm.plan import planned

    about = [(item, case) for item in items if (case := case_of(item)) is not None]
    cases = [each for item, case in about for each in (case, *compared_with(item, case))]
    return list(planned(list(dict.fromkeys(cases))))


def refuse_to_look_and_decide(config: pytest.Config) -> None:
    """Raises UsageError: whoever reads the exit status of a gate would take a list of tests for a release."""
    for option, name in (("--collect-only", "collectonly"), ("--plan", "plan")):
        if config.getoption("gate") and config.getoption(name) and not config.getoption("llamaperf_inventory"):
            raise UsageError(
                f"--gate with {option}: it runs no test, so nothing can be released; leave one of them out"
            )


def refuse_distributed_plan(config: pytest.Config) -> None:
    """Raises UsageError: with pytest-xdist the process that prints collects nothing."""
    if config.pluginmanager.hasplugin("xdist") and config.getoption("tx", None):
        raise UsageError("--plan with -n: a plan is printed by the one process that collects; leave out -n")


def told_after_collection(config: pytest.Config, acceptance: Acceptance) -> list[str]:
    """What became of the cases this run is not about, so that nobody takes a short run for a whole one."""
    elsewhere = config.stash.get(_ELSEWHERE, 0)
    if not elsewhere:
        return []
    left_out = f"{counted(elsewhere, 'case')} of other hardware or engines left out"
    hint = " (--gpu h200 --engine predicted predicts those of GPUs without one)" if acceptance.measures else ""
    return [f"llamaperf: this run is about {acceptance.gpu} and {acceptance.engine_kind}; {left_out}{hint}"]


def note_case(item: pytest.Item) -> Case | None:
    """Say what the test is about, also if it never comes to a result."""
    case = case_of(item)
    if case:
        item.user_properties.append((CASE, case.id))
    return case


def case_of(item: pytest.Item) -> Case | None:
    """The case a test was collected for, if it has one."""
    call = getattr(item, "callspec", None)
    case = call.params.get("case") if call else None
    return case if isinstance(case, Case) else None


def refuse_unusable_distribution(config: pytest.Config) -> None:
    """Refuse ways of pytest-xdist that would give wrong results without a word. Raises UsageError.

    pytest 9.2 no longer reads the attribute in which pytest-xdist 3.8 leaves a test's group, so that
    `--dist loadgroup` scatters the tests it should keep together.
    """
    if not config.pluginmanager.hasplugin("xdist") or not config.getoption("tx", None):
        return
    reads_group = any("_nodeid" in vars(cls).get("__slots__", ()) for cls in pytest.Item.__mro__)
    xdist = version("pytest-xdist")
    if config.getoption("dist") == "loadgroup" and not reads_group and xdist.startswith(("2.", "3.")):
        raise UsageError(
            f"--dist loadgroup groups nothing with pytest {pytest.__version__} and pytest-xdist {xdist}; "
            "use --dist loadfile, which keeps the tests of a file together"
        )
