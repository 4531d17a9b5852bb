"""Plans, and what shards leave behind, for tests: as `llamaperf plan` and pytest write them."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from builders import record, result

from pytest_llamaperf.gates import Decision
from pytest_llamaperf.records import TestRecord
from pytest_llamaperf.runs import RunHeader, RunLog, run_document, to_json
from pytest_llamaperf.runtimes import installed_versions
from pytest_llamaperf.scaling.contract import JUNIT, Campaign
from pytest_llamaperf.scaling.manifest import NAME, About, Manifest, Shard

MACHINE = {"gpus": [], "driver": None, "processor": "a CPU", "cores": 2, "problem": None}


def about(folder: Path, **changes: Any) -> About:
    given = About(
        gpu="cpu", engine="torch", under_test="torch", versions=installed_versions(), directory=str(folder),
        root=str(folder), baselines=str(folder / "baselines"), gate=False, gate_file=None, waivers=None,
    )  # fmt: skip
    return dataclasses.replace(given, **changes)


def shard(key: str, *tests: str, **changes: Any) -> Shard:
    given = Shard(key, (key,), tests or (f"suite.py::test_{key}",), 1, "accuracy", 1.0, "a guess", 1)
    return dataclasses.replace(given, **changes)


def campaign(folder: Path, *shards: Shard, **changes: Any) -> Campaign:
    """Of a manifest that is written."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = Manifest("run-1", "2026-11-26T10:00:00Z", ("suite.py",), about(folder, **changes), shards)
    manifest.write(folder / NAME)
    return Campaign(manifest, folder)


def leave_results(of: Campaign, shard: Shard, /, *tests: TestRecord, **changes: Any) -> Path:
    """What the shard's pytest writes: run.jsonl, run.json, junit.xml. `changes` are of the header."""
    tests = tests or tuple(
        dataclasses.replace(record(result(nodeid=nodeid)), nodeid=nodeid, attempts=1) for nodeid in shard.tests
    )
    manifest, folder = of.manifest, of.folder(shard)
    header = RunHeader(
        id=f"session-{shard.key}", started="2026-11-26T10:00:01Z", finished="2026-11-26T10:00:09Z",
        gpu=manifest.about.gpu, engine=manifest.about.engine, versions=manifest.about.versions, fingerprint=MACHINE,
        shard={"run": manifest.id, "key": shard.key, "machine": "a-cpu-2-cores"},
    )  # fmt: skip
    header = dataclasses.replace(header, **changes)
    log = RunLog(folder, header)
    for test in tests:
        log.add(test)
    log.close()
    decision = Decision((f"a part of a run, {shard.key}",))
    (folder / "run.json").write_text(to_json(run_document(header, tests, decision)))
    (folder / JUNIT).write_text(junit(*tests))
    return folder


def junit(*tests: TestRecord) -> str:
    root = ET.Element("testsuites")
    suite = ET.SubElement(root, "testsuite", name="pytest", tests=str(len(tests)))
    for test in tests:
        path, _, name = test.nodeid.partition("::")
        case = ET.SubElement(suite, "testcase", classname=path.removesuffix(".py"), name=name)
        if sign := {"failed": "failure", "error": "error", "skipped": "skipped"}.get(test.outcome):
            ET.SubElement(case, sign, message=test.reason)
    return ET.tostring(root, encoding="unicode")


def edited(path: Path, **changes: Any) -> None:
    """A file of JSON with some of its top-level fields changed, and all else as it was."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
