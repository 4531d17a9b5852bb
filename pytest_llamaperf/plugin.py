"""Table of contents of the pytest plugin: options, hooks and fixtures. The work is done where they point."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import pytest

from pytest_llamaperf import hookspec
from pytest_llamaperf.acceptance import Acceptance
from pytest_llamaperf.accuracy.companions import Look
from pytest_llamaperf.accuracy.scores import Scores
from pytest_llamaperf.answers import Answers, Repeats
from pytest_llamaperf.benchmarking import prepare, seen_as_benchmarks
from pytest_llamaperf.cases import Case, Task, Workload
from pytest_llamaperf.checking import (
    AccuracyCheck,
    Ask,
    BaselineCheck,
    Measure,
    Predict,
    checkpoint_of,
    end_as_waived,
    evaluating,
    opened_engine,
    other_of,
    start_over,
    tell,
)
from pytest_llamaperf.collecting import (
    case_of,
    expect,
    narrow,
    note_deselected,
    only_looks,
    parametrize_cases,
    plan_of,
    refuse_distributed_plan,
    refuse_other_tests,
    refuse_to_look_and_decide,
    refuse_unusable_distribution,
    told_after_collection,
)
from pytest_llamaperf.engines import Engine, Opener, Surroundings, built_in_openers, opened_by
from pytest_llamaperf.errors import LlamaperfError, UsageError
from pytest_llamaperf.refusals import check_options, check_plan
from pytest_llamaperf.resuming import RESUMED, RESUMPTION, Resumption, is_kept, kept_from, tell_again
from pytest_llamaperf.selection import MARKERS
from pytest_llamaperf.settings import Settings, add_options
from pytest_llamaperf.sharding import check_inventory, narrow_to_shard, write_inventory
from pytest_llamaperf.surroundings import surroundings_of

if TYPE_CHECKING:
    from pytest_llamaperf.checkpoints import Checkpoint

# What pytest makes of a report: category, letter and word, which may have a colour.
TestStatus = tuple[str, str, str | tuple[str, Mapping[str, bool]]]

ACCEPTANCE = pytest.StashKey[Acceptance]()
SURROUNDINGS = pytest.StashKey[Surroundings]()
REPORTER = "llamaperf-reporter"


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hookspec)


def pytest_llamaperf_engines(config: pytest.Config) -> dict[str, Opener]:
    return built_in_openers(config.stash[SURROUNDINGS])


@pytest.hookimpl(trylast=True)  # after the conftests, which may bring engines
def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    try:
        settings = Settings.from_config(config)
        surroundings = config.stash[SURROUNDINGS] = surroundings_of(config, settings)
        openers = opened_by(config.hook.pytest_llamaperf_engines(config=config))
        acceptance = Acceptance(settings, openers, surroundings)
        config.stash[ACCEPTANCE] = acceptance
        config.add_cleanup(acceptance.close)
        if hasattr(config, "workerinput"):
            config.stash[RESUMPTION] = Resumption.from_json(config.workerinput.get(RESUMED, Resumption().to_json()))
            return
        if settings.plan:
            check_plan(acceptance)
            refuse_distributed_plan(config)
        check_inventory(config)
        refuse_to_look_and_decide(config)
        if not only_looks(config):
            check_options(acceptance)
        refuse_unusable_distribution(config)
    except UsageError as problem:
        raise pytest.UsageError(str(problem)) from None
    from pytest_llamaperf.reporting.reporter import Reporter

    if config.pluginmanager.register(Reporter(config, acceptance), REPORTER) is None and settings.gate:
        raise pytest.UsageError(f"--gate with -p no:{REPORTER}: that is what decides; leave it out")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize_cases(metafunc, metafunc.config.stash[ACCEPTANCE])


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Generator[None]:
    acceptance = config.stash[ACCEPTANCE]
    narrow(config, items, acceptance)
    if acceptance.measures:
        prepare(items, "measure")
    with seen_as_benchmarks(items):
        yield
    narrow_to_shard(config, items, acceptance)
    refuse_other_tests(config, items)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """A test that an earlier session of the run has settled is told again."""
    if not is_kept(item, item.config.stash[ACCEPTANCE]):
        return None
    tell_again(item, nextitem)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_report_teststatus(
    report: pytest.TestReport | pytest.CollectReport,
) -> Generator[None, TestStatus, TestStatus]:
    category, letter, word = yield
    if word and kept_from(report):
        word = f"{word} (kept)" if isinstance(word, str) else (f"{word[0]} (kept)", word[1])
    return category, letter, word


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """What a test meets of ours by itself, as when it compares what an engine could not say, is told as shortly."""
    __tracebackhide__ = True
    case = case_of(pyfuncitem)
    try:
        return (yield)
    except LlamaperfError as problem:
        if case is None:
            raise
        found = problem
    tell(pyfuncitem, case, found)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # the last word on a report
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    return end_as_waived(item, report)


def pytest_collection_finish(session: pytest.Session) -> None:
    acceptance = session.config.stash[ACCEPTANCE]
    expect(session.config, session.items, acceptance)
    write_inventory(session.config, session.items, acceptance)


def pytest_deselected(items: list[pytest.Item]) -> None:
    note_deselected(items)


def pytest_report_collectionfinish(config: pytest.Config, items: Sequence[pytest.Item]) -> list[str]:
    acceptance = config.stash[ACCEPTANCE]
    plan = plan_of(items) if acceptance.settings.plan else []
    return [*told_after_collection(config, acceptance), *plan]


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """A plan is all there is to do."""
    return True if session.config.stash[ACCEPTANCE].settings.plan else None


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    """The case of this test: hardware, engine, model, recipe, layout, work. Set by the markers of the test."""
    found = getattr(request, "param", None)
    if not isinstance(found, Case):
        pytest.fail("the fixture `case` needs @pytest.mark.cases(...) or @pytest.mark.promised(...)", pytrace=False)
    start_over(request.node)
    return found


@pytest.fixture
def other(case: Case, request: pytest.FixtureRequest) -> Case:
    """The case this one is compared with, by the marker `versus`."""
    return other_of(request.node, case)


@pytest.fixture
def workload(case: Case) -> Workload | Task:
    """What the case does: requests and their arrival, or an accuracy task."""
    return case.work


@pytest.fixture
def engine(case: Case, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An open engine for the case, closed after the test. To compare with a promise, use `measure`."""
    with opened_engine(request.config.stash[ACCEPTANCE], request.node, case) as engine:
        yield engine


@pytest.fixture
def measure(request: pytest.FixtureRequest) -> Measure:
    """`measure(case)` runs the case in fresh engines and returns its Measurement; once a session for each case."""
    return Measure(request.config.stash[ACCEPTANCE], request)


@pytest.fixture
def answers(request: pytest.FixtureRequest) -> Ask[Answers]:
    """`answers(case)` is what the case's engine says to fixed questions, as Answers; asked once a session."""
    return Ask(request.node, request.config.stash[ACCEPTANCE].answers)


@pytest.fixture
def repeats(request: pytest.FixtureRequest) -> Ask[Repeats]:
    """`repeats(case)` is what the case's engine says to one prompt asked 200 times at once, as Repeats; once a session."""
    return Ask(request.node, request.config.stash[ACCEPTANCE].repeats)


@pytest.fixture
def look(request: pytest.FixtureRequest) -> Ask[Look]:
    """`look(case)` is what the case's engine expects of a fixed text, token by token, as a Look; once a session."""
    return Ask(request.node, request.config.stash[ACCEPTANCE].look)


@pytest.fixture
def evaluate(request: pytest.FixtureRequest) -> Ask[Scores]:
    """`evaluate(case)` is what the case's engine gets right of its accuracy task, as Scores; once a session."""
    return evaluating(request.config.stash[ACCEPTANCE], request.node)


@pytest.fixture
def accuracy(request: pytest.FixtureRequest) -> AccuracyCheck:
    """`accuracy.check(scores, other)` compares with another case, document by document, and fails or skips by it.

    `accuracy.reaches(scores)` compares means with the targets that others set for the task.
    """
    return AccuracyCheck(request.config.stash[ACCEPTANCE], request.node)


@pytest.fixture
def quantized_model(case: Case, request: pytest.FixtureRequest) -> Checkpoint:
    """The checkpoint of the case's model and recipe, quantized by ModelOpt the first time and cached by content."""
    return checkpoint_of(request.config.stash[ACCEPTANCE], request.node, case)


@pytest.fixture
def predict(request: pytest.FixtureRequest) -> Predict:
    """`predict(case)` is what the case should reach by NVIDIA's operator times, as a Measurement."""
    return Predict(request.config.stash[ACCEPTANCE], request.node)


@pytest.fixture
def baseline(request: pytest.FixtureRequest) -> BaselineCheck:
    """`baseline.check(measurement, METRIC, ...)` compares with the promise, and fails or skips the test by it."""
    return BaselineCheck(request.config.stash[ACCEPTANCE], request.node)
