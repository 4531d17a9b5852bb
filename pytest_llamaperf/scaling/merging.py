"""The only reader of shards: what they left becomes one run, and what they did not leave is named and blocks.

Evidence that is missing, cut off, edited, from another run or of another kind of machine is no evidence. Such a shard's tests
count as not run; the rest is merged all the same, so that a person sees what there is.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pytest_llamaperf.baselines import BaselineBook, read_baselines
from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.fingerprints import matching_parts
from pytest_llamaperf.gates import Decision, decide, other_builds
from pytest_llamaperf.records import TestRecord
from pytest_llamaperf.requirements import promised_by, required_for
from pytest_llamaperf.runs import Run, RunHeader, read_run
from pytest_llamaperf.scaling.contract import JUNIT, SHARDS, Campaign, apart, lacking
from pytest_llamaperf.scaling.junit import Suites, read_suites
from pytest_llamaperf.scaling.manifest import Shard
from pytest_llamaperf.waivers import waivers_for
from pytest_llamaperf.wording import counted, shown_path


@dataclass(frozen=True)
class Merged:
    """`problems` are shards without evidence, each as a sentence. `run` has all of the others, and its decision the problems as
    reasons; `junit` is text."""

    run: Run
    problems: tuple[str, ...]
    junit: str

    @property
    def failed(self) -> list[TestRecord]:
        return [test for test in self.run.tests if test.outcome in ("failed", "error")]


def merge(campaign: Campaign) -> Merged:
    """Reads every shard of a run. Raises UsageError where the files that say what a release needs cannot be read."""
    runs: dict[str, Run] = {}
    problems: dict[str, str] = {}
    suites = Suites()
    for shard in campaign.manifest.shards:
        try:
            runs[shard.key] = _read(campaign, shard)
        except _Unusable as problem:
            problems[shard.key] = "; ".join(filter(None, (str(problem), campaign.reason(shard))))
    for key, why in _of_other_machines({key: run.header for key, run in runs.items()}).items():
        del runs[key]
        problems[key] = why
    for shard in campaign.manifest.shards:
        if shard.key in runs:
            try:
                suites.add(shard.key, read_suites(campaign.folder(shard) / JUNIT, runs[shard.key].tests))
            except UsageError as problem:
                problems[shard.key] = f"damaged: {shard}: {problem}"
        if shard.key in problems:
            suites.add_problem(shard.key, problems[shard.key])
    told = (*problems.values(), *_foreign_folders(campaign))
    tests = [test for shard in campaign.manifest.shards if shard.key in runs for test in _tests(campaign, shard, runs)]
    headers = [run.header for run in runs.values()]
    ran = {test.nodeid for test in tests}
    not_run = tuple(test for shard in campaign.manifest.shards for test in shard.tests if test not in ran)
    whole = Run(
        _header(campaign, headers),
        tuple(tests),
        _decision(campaign, runs, tests, len(not_run), told),
        not_run,
        tuple(use for run in runs.values() for use in run.engines),
    )
    return Merged(whole, told, suites.text())


class _Unusable(Exception):
    """Why a shard is no evidence."""


def _read(campaign: Campaign, shard: Shard) -> Run:
    """Raises _Unusable with the word for what is wrong."""
    folder = campaign.folder(shard)
    if not (folder / "run.json").exists():
        raise _Unusable(f"missing: {shard}: {_how_far(folder)}")
    try:
        run = read_run(folder / "run.json", sealed=True)
    except UsageError as problem:
        raise _Unusable(f"damaged: {shard}: {problem}") from None
    where, told, manifest = shown_path(folder), run.header.shard, campaign.manifest
    if not told.get("run"):
        raise _Unusable(f"foreign: {shard}: {where} is of a pytest session that was no shard of a planned run")
    if told.get("run") != manifest.id:
        raise _Unusable(f"stale: {shard}: {where} is of the run {told.get('run')}, not of {manifest.id}")
    if told.get("key") != shard.key:
        raise _Unusable(f"duplicate: {shard}: {where} has the results of {told.get('key')} instead")
    if other := apart(run.header, manifest.about):
        raise _Unusable(f"foreign: {shard}: {where} was run with {other}")
    if strange := {test.nodeid for test in run.tests} - set(shard.tests):
        raise _Unusable(f"foreign: {shard}: {where} has tests that were not planned, as {min(strange)}")
    if run.header.interrupted:
        raise _Unusable(f"missing: {shard}: ended early ({run.header.interrupted}), in {where}")
    if absent := lacking(run, shard):
        raise _Unusable(
            f"missing: {shard}: {counted(len(absent), 'test')} of {len(shard.tests)} did not run, as {absent[0]}"
        )
    return run


def _tests(campaign: Campaign, shard: Shard, runs: Mapping[str, Run]) -> Iterator[TestRecord]:
    """With evidence where it is, seen from the folder of the whole run."""
    place = campaign.folder(shard).relative_to(campaign.path)
    for test in runs[shard.key].tests:
        yield dataclasses.replace(test, evidence=str(place / test.evidence)) if test.evidence else test


def _how_far(folder: Path) -> str:
    try:
        begun = read_run(folder / "run.jsonl")
    except UsageError:
        return f"there are no results in {shown_path(folder)}"
    return f"cut off after {counted(len(begun.tests), 'test')}, in {shown_path(folder)}"


def _of_other_machines(headers: Mapping[str, RunHeader]) -> dict[str, str]:
    """Shards whose machine is of another kind than that of most: their values and the others' are not of one run."""
    kinds = {key: matching_parts(header.fingerprint) for key, header in headers.items()}
    texts = {key: json.dumps(kind, sort_keys=True) for key, kind in kinds.items()}  # of a run.json, so they are JSON
    most = Counter(texts.values()).most_common(1)
    usual = json.loads(most[0][0]) if most else {}
    return {
        key: f"foreign: {key}: was run on another machine than most shards: {_differences(kind, usual)}"
        for key, kind in kinds.items()
        if kind != usual
    }


def _differences(kind: Mapping[str, object], usual: Mapping[str, object]) -> str:
    names = [name for name in sorted({*kind, *usual}) if kind.get(name) != usual.get(name)]
    return ", ".join(f"{name} {kind.get(name, 'not told')} and not {usual.get(name, 'not told')}" for name in names)


def _gpus(machine: Mapping[str, object]) -> list[Mapping[str, str]]:
    found = machine.get("gpus")
    return [gpu for gpu in found if isinstance(gpu, Mapping)] if isinstance(found, (list, tuple)) else []


def _topology(machine: Mapping[str, object]) -> Mapping[str, object]:
    found = machine.get("topology")
    return found if isinstance(found, Mapping) else {}


def _foreign_folders(campaign: Campaign) -> list[str]:
    expected = {campaign.folder(shard) for shard in campaign.manifest.shards}
    folder = campaign.path / SHARDS
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [f"foreign: {shown_path(path)} is no shard of this run" for path in found if path not in expected]


def _header(campaign: Campaign, headers: Sequence[RunHeader]) -> RunHeader:
    """Of the whole: from the first start to the last end, on all GPUs that any shard had."""
    manifest = campaign.manifest
    machine = dict(headers[0].fingerprint) if headers else {}
    if machine:
        gpus = {gpu.get("uuid"): gpu for header in headers for gpu in _gpus(header.fingerprint)}
        machine["gpus"] = list(gpus.values())
        machine["topology"] = {pair: way for header in headers for pair, way in _topology(header.fingerprint).items()}
    return RunHeader(
        id=manifest.id,
        started=min((header.started for header in headers), default=manifest.planned),
        gpu=manifest.about.gpu,
        engine=manifest.about.engine,
        versions=manifest.about.versions,
        fingerprint=machine,
        finished=max((header.finished for header in headers if header.finished), default=None),
    )


def _decision(
    campaign: Campaign, runs: Mapping[str, Run], tests: Sequence[TestRecord], not_run: int, problems: Sequence[str]
) -> Decision:
    """Over all tests, as one pytest would make it; with what each shard says went wrong beside its tests."""
    about, manifest = campaign.manifest.about, campaign.manifest
    root, given = Path(about.root), Path(about.gate_file) if about.gate_file else None
    machines = Counter(run.header.shard.get("machine", "") for run in runs.values())
    book = read_baselines(Path(about.baselines), about.gpu, machines.most_common(1)[0][0] if machines else "")
    decision = decide(
        tests,
        not_run=not_run,
        deselected=manifest.deselected,
        required=required_for(about.gpu, about.under_test, root=root, given=given),
        promised=promised_by(book, about.under_test),
        waivers=waivers_for(
            about.gpu,
            about.under_test,
            root=root,
            given=Path(about.waivers) if about.waivers else None,
            today=datetime.now(UTC).date(),
        ),
    )
    broke = [reason for run in runs.values() if run.decision for reason in run.decision.reasons[1:]]
    mixed = other_builds("shards", ((key, test) for key, run in runs.items() for test in run.tests))
    return dataclasses.replace(
        decision, reasons=(*problems, *decision.reasons, *mixed, *_of_other_promises(tests, book), *broke)
    )


def _of_other_promises(tests: Sequence[TestRecord], book: BaselineBook) -> Iterator[str]:
    """Results whose promise in the files of baselines is another one now: the shard has them since before."""
    promised = {(entry.case.id, entry.metric.name): entry for entry in book}
    for result in (result for test in tests for result in test.results):
        now, then = promised.get((result.case["id"], str(result.metric))), result.baseline
        if now is None or not then or not then.get("file"):  # of an accuracy it is what its reference scored
            continue
        if (then["value"], then["tolerance"]) != (now.value, now.tolerance):
            yield (
                f"judged by a promise that has changed: {result}: it was {_promise(then['value'], then['tolerance'])}, "
                f"and is {_promise(now.value, now.tolerance)} in {now.place}; plan and run again"
            )


def _promise(value: float, tolerance: float) -> str:
    return f"{value:g} within {tolerance * 100:g} %"
