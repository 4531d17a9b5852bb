"""A session that is one shard of a run, or the collection that a run is planned from."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pytest_llamaperf.acceptance import Acceptance
from pytest_llamaperf.cases import CPU, Case
from pytest_llamaperf.catalog.tasks import evaluations
from pytest_llamaperf.checkpoints.intended import keeps_everything
from pytest_llamaperf.collecting import Wanted, case_of, deselected_of, leave_out, wanted_by
from pytest_llamaperf.engines import EngineSpec
from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.runtimes import installed_versions
from pytest_llamaperf.scaling.guessing import PREDICTED, load_seconds, work_seconds
from pytest_llamaperf.scaling.inventory import Inventory, NeededEngine, NeededTest, Work
from pytest_llamaperf.scaling.manifest import About
from pytest_llamaperf.scaling.shards import engine_key, in_shard

# Options of one session, which every shard has its own of, or which are about a run as a whole.
_OF_ONE_SESSION = {
    "results": "--results",
    "xmlpath": "--junitxml",
    "llamaperf_shard": "--llamaperf-shard",
    "plan": "--plan",
    "record": "--record",
    "against": "--against",
    "resume": "--resume",
    "maxfail": "--maxfail, -x",
    "lf": "--last-failed",
    "stepwise": "--stepwise",
}


def narrow_to_shard(config: pytest.Config, items: list[pytest.Item], acceptance: Acceptance) -> None:
    """Keep the tests of the shard that was asked for. After all other deselection, as when it was planned.

    Raises pytest.UsageError for a shard of which there are no tests.
    """
    if acceptance.settings.shard is None:
        return
    try:
        needed = {item.nodeid: _engines(_wanted(item, acceptance)) for item in items}
        kept = in_shard(acceptance.settings.shard, needed)
    except UsageError as problem:
        raise pytest.UsageError(str(problem)) from None
    leave_out(config, items, [item for item in items if item.nodeid not in kept])


def check_inventory(config: pytest.Config) -> None:
    """Refuse options that no shard can be given. Raises UsageError."""
    if config.getoption("llamaperf_inventory") is None:
        return
    if not config.getoption("collectonly"):
        raise UsageError("--llamaperf-inventory runs nothing: add --collect-only")
    for name, option in _OF_ONE_SESSION.items():
        if config.getoption(name, None):
            raise UsageError(
                f"{option} cannot be planned: every shard is a session of its own, and has results of its own"
            )
    if config.pluginmanager.hasplugin("xdist") and config.getoption("tx", None):
        raise UsageError("-n cannot be planned: shards are what runs side by side")


def write_inventory(config: pytest.Config, items: Sequence[pytest.Item], acceptance: Acceptance) -> None:
    """What `llamaperf plan` needs to know. Raises pytest.UsageError where it cannot be written."""
    path = acceptance.settings.inventory
    if path is None:
        return
    specs: dict[str, EngineSpec] = {}
    tests = []
    try:
        for item in items:
            wanted = _wanted(item, acceptance)
            specs |= {engine_key(spec): spec for spec in map(EngineSpec.of, wanted.cases)}
            work = () if item.get_closest_marker("skip") else _work(wanted, acceptance)
            tests.append(NeededTest(item.nodeid, _engines(wanted), work))
        engines = {key: _needed(spec, acceptance) for key, spec in specs.items()}
        Inventory(_about(acceptance), tuple(tests), engines, tuple(deselected_of(config))).write(path)
    except UsageError as problem:
        raise pytest.UsageError(str(problem)) from None
    except OSError as problem:
        raise pytest.UsageError(f"--llamaperf-inventory {path}: cannot be written: {problem.strerror}") from None


def _about(acceptance: Acceptance) -> dict[str, object]:
    settings = acceptance.settings
    return vars(
        About(
            gpu=acceptance.gpu,
            engine=acceptance.engine_kind,
            under_test=acceptance.engine_under_test,
            versions=installed_versions(),
            directory=str(settings.directory),
            root=str(settings.root),
            baselines=str(settings.baselines),
            gate=settings.gate,
            gate_file=str(settings.gate_file) if settings.gate_file else None,
            waivers=str(settings.waivers) if settings.waivers else None,
        )
    )


def _wanted(item: pytest.Item, acceptance: Acceptance) -> Wanted:
    case = case_of(item)
    return Wanted(()) if case is None else wanted_by(item, case, acceptance)


def _engines(wanted: Wanted) -> tuple[str, ...]:
    return tuple(dict.fromkeys(engine_key(EngineSpec.of(case)) for case in wanted.cases))


def _work(wanted: Wanted, acceptance: Acceptance) -> tuple[Work, ...]:
    restarts = acceptance.restarts if acceptance.measures else 1
    return (
        *(_of(case, restarts, acceptance, measured=True) for case in wanted.measured),
        *(_of(case, 1, acceptance, measured=False) for case in wanted.asked),
    )


def _of(case: Case, loads: int, acceptance: Acceptance, *, measured: bool) -> Work:
    if acceptance.measures:
        runs = loads * (acceptance.rounds + 1)
        seconds = work_seconds(case, runs, evaluated=str(case.work) in evaluations())
    else:
        seconds = PREDICTED
    return Work(engine_key(EngineSpec.of(case)), case.id, loads, seconds, measured and acceptance.measures)


def _needed(spec: EngineSpec, acceptance: Acceptance) -> NeededEngine:
    """A prediction loads no weights, and takes one slot of a CPU whatever it is about."""
    if not acceptance.measures:
        return NeededEngine(1, 0.0)
    made = not keeps_everything(spec.recipe) and not spec.model.random
    published = spec.hardware != CPU and spec.recipe.name in spec.model.published
    checkpoint = f"{spec.model}/{spec.recipe}" if made and not published else None
    return NeededEngine(spec.layout.gpus, load_seconds(spec), checkpoint)
