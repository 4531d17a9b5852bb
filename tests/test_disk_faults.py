"""Disks that are full, read-only or gone, for real: a clear error, the old file whole, and never a yes."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from builders import case, measured, record
from disks import Disk
from engine_sessions import fake_engine
from test_damaged_files import command as llamaperf

from pytest_llamaperf.baselines import read_baselines
from pytest_llamaperf.files import write_atomically
from pytest_llamaperf.gates import decide
from pytest_llamaperf.measurements import Fingerprint
from pytest_llamaperf.records import Result
from pytest_llamaperf.runs import RunHeader, read_run, run_document, to_json
from pytest_llamaperf.verdicts import judge

pytestmark = pytest.mark.faults

FULL = "No space left on device"
SUITE = """
import os, shutil, subprocess
from pathlib import Path
import pytest
from pytest_llamaperf import OUTPUT_THROUGHPUT

CASES = dict(model="smollm2-135m", layout="tp1", workload="max-throughput-16-8", hardware="cpu")

@pytest.mark.cases(**CASES, recipe=["bf16", "modelopt-fp8"])
def test_speed(case, measure, baseline):
    baseline.check(measure(case), OUTPUT_THROUGHPUT)

def test_meanwhile():
    disk = Path(os.environ["DISK"])
    match os.environ.get("MEANWHILE"):
        case "full":
            with pytest.raises(OSError), open(disk / "filler", "wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(1024))
        case "gone":
            shutil.rmtree(disk / "out")
        case "hidden":
            subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", disk / "out"], check=True)
"""
PROMISES = """schema: 1
promises:
  torch/smollm2-135m/bf16/tp1/max-throughput-16-8:
    output_throughput: {value: 100, unit: tok/s, tolerance: 0.5, source: measured,
      recorded: {date: "2026-11-01", version: "2.13", restarts: 3, commit: "abc1234"}}
  torch/smollm2-135m/modelopt-fp8/tp1/max-throughput-16-8:
    output_throughput: {value: 100, unit: tok/s, tolerance: 0.5, source: measured,
      recorded: {date: "2026-11-01", version: "2.13", restarts: 3, commit: "abc1234"}}
"""
OPTIONS = "--gpu=cpu --restarts=2 --gate -q"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A suite that is releasable where every file can be written."""
    (tmp_path / "conftest.py").write_text(fake_engine(every=[100.0, 100.1]))
    (tmp_path / "test_suite.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "baselines" / "cpu").mkdir(parents=True)
    (tmp_path / "baselines" / "cpu" / "smollm2-135m.yaml").write_text(PROMISES)
    return tmp_path


def finished(folder: Path, name: str = "run") -> str:
    """A run whose values may be accepted."""
    fingerprint = Fingerprint({"tensorrt_llm": "1.2.1"}, {})
    verdict = judge(case(), measured(30_000.0, 30_001.0, 30_002.0), None, (), fingerprint, None)
    tests = [record(Result.of_verdict("a.py::test_b", verdict))]
    header = RunHeader(name, "2026-11-22T10:00:00Z", "h200", "tensorrt-llm", finished="2026-11-22T11:00:00Z")
    (folder / name).mkdir()
    (folder / name / "run.json").write_text(to_json(run_document(header, tests, decide(tests))))
    return name


def test_with_room_for_everything_it_is_releasable(project: Path) -> None:
    ran = Disk(project).run(f'tests {OPTIONS} --results="$DISK/out"')

    assert ran.status == 0
    assert read_run(ran.disk / "out").decision is not None


# --- a session of tests --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "told"), [("fill", FULL), ("protect", "Read-only file system")], ids=["full", "read-only"]
)
def test_a_results_folder_that_takes_nothing_stops_the_run_before_it_measures(
    project: Path, before: str, told: str
) -> None:
    ran = Disk(project).run(f'{before}; tests {OPTIONS} --results="$DISK/out"')

    assert ran.status == 4
    assert f"ERROR: --results {project}/disk/out: cannot be written: {told}" in ran.output
    assert not (project / "engines.log").exists()


@pytest.mark.parametrize(
    ("meanwhile", "told"),
    [("full", FULL), ("gone", "No such file or directory"), ("hidden", "No such file or directory")],
    ids=["full", "gone", "read-only"],
)
def test_a_results_folder_lost_during_the_run_closes_the_gate(project: Path, meanwhile: str, told: str) -> None:
    ran = Disk(project).run(f'MEANWHILE={meanwhile} tests {OPTIONS} --results="$DISK/out"')

    assert ran.status == 1
    assert "3 passed" in ran.output
    assert f"ERROR: results in {project}/disk/out are not complete: {told}" in ran.output
    assert "not releasable: 1 reason" in ran.output
    for path in (ran.disk / "out").glob("*"):
        assert path.name == "run.jsonl" or "releasable: every test" not in path.read_text()
    if (ran.disk / "out" / "run.json").exists():
        decided = read_run(ran.disk / "out").decision
        assert decided is not None
        assert not decided.releasable


@pytest.mark.parametrize("before", ["fill", "protect"])
def test_recording_where_nothing_can_be_written_keeps_what_was_recorded(project: Path, before: str) -> None:
    (project / "baselines" / "cpu" / "smollm2-135m.yaml").unlink()
    record = 'tests --gpu=cpu --restarts=2 -q --record --baselines="$DISK/baselines"'
    script = f'mkdir "$DISK/baselines"; {record} >/dev/null; cp -a "$DISK/baselines" first; {before}; {record}'

    ran = Disk(project).run(script)

    assert ran.status == 1
    assert "ERROR: nothing was recorded: " in ran.output
    (old,) = (project / "first" / "local").iterdir()
    (kept,) = (ran.disk / "baselines" / "local").iterdir()
    assert kept.read_text() == old.read_text()
    assert len(list(read_baselines(ran.disk / "baselines", "cpu", old.stem.removeprefix("cpu-")))) == 2


# --- commands ------------------------------------------------------------------------------------------------------

BASELINE = """schema: 1
promises:
  tensorrt-llm/llama-3.1-8b/modelopt-fp8/tp1/min-latency-128-128:
    output_throughput: {value: 400, unit: tok/s, tolerance: 0.1, source: measured,
      recorded: {date: "2026-11-01", version: "1.2.1", restarts: 3, commit: "abc1234"}}
"""


@pytest.mark.parametrize("before", ["fill", "protect"])
def test_what_cannot_be_written_is_not_accepted_and_the_old_promises_stay(tmp_path: Path, before: str) -> None:
    run = finished(tmp_path)
    (tmp_path / "before.yaml").write_text(BASELINE)

    ran = Disk(tmp_path).run(
        'mkdir -p "$DISK/baselines/h200"; cp before.yaml "$DISK/baselines/h200/llama-3.1-8b.yaml"; '
        f'{before}; llamaperf accept {run} --reason new --baselines "$DISK/baselines"'
    )

    assert ran.status == 2
    assert "llama-3.1-8b.yaml: cannot be written: " in ran.output
    assert sorted(path.name for path in (ran.disk / "baselines" / "h200").iterdir()) == ["llama-3.1-8b.yaml"]
    assert (ran.disk / "baselines" / "h200" / "llama-3.1-8b.yaml").read_text() == BASELINE


@pytest.mark.parametrize(
    ("command", "before"),
    [
        ("summary {run} --markdown", "fill"),
        ("summary {run} --bencher", "protect"),
        ("compare {run} other --json", "fill"),
        ("report {run} -o", "fill"),
    ],
    ids=["markdown", "bencher", "compare", "report"],
)
def test_an_old_file_stays_whole_where_a_new_one_does_not_fit(tmp_path: Path, command: str, before: str) -> None:
    run = finished(tmp_path)
    finished(tmp_path, "other")

    ran = Disk(tmp_path).run(f'echo old >"$DISK/file"; {before}; llamaperf {command.format(run=run)} "$DISK/file"')

    assert ran.status == 2
    assert "cannot be written: " in ran.output
    assert {path.name: path.read_text() for path in ran.disk.iterdir()} == {"file": "old\n"}


@pytest.mark.parametrize("before", ["fill", "protect"])
def test_a_history_without_room_is_what_it_was(tmp_path: Path, before: str) -> None:
    run, _ = finished(tmp_path), finished(tmp_path, "other")

    ran = Disk(tmp_path, size=1024).run(
        f'llamaperf history import {run} --db "$DISK/history.sqlite"; {before}; '
        'llamaperf history import other --db "$DISK/history.sqlite"'
    )

    assert ran.status == 2
    assert "history.sqlite: the history cannot be used: " in ran.output
    with sqlite3.connect(ran.disk / "history.sqlite") as connection:
        assert connection.execute("SELECT name FROM runs").fetchall() == [("run",)]


STORE = """
import sys
from pathlib import Path
from pytest_llamaperf.cache import Cache, problem_of
from pytest_llamaperf.errors import LlamaperfError

def make(folder):
    (folder / "weights").write_bytes(bytes(int(sys.argv[2])))
    return {"key": "k"}

cache = Cache(Path(sys.argv[1]), tell=print, warn=print)
try:
    print("kept", cache.get(f"weights-{sys.argv[2]}", make, lambda entry: problem_of(entry, "k")).name)
except OSError as problem:
    print(problem)
    sys.exit(1)
"""


def test_a_cache_without_room_keeps_what_is_whole_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "store.py").write_text(STORE)

    ran = Disk(tmp_path).run('"$PYTHON" store.py "$DISK/cache" 20000 && "$PYTHON" store.py "$DISK/cache" 9000000')

    assert ran.status == 1
    assert FULL in ran.output
    assert [path.name for path in (ran.disk / "cache" / "entries").iterdir()] == ["weights-20000"]
    assert list((ran.disk / "cache" / "making").iterdir()) == []


def test_a_comparison_that_cannot_keep_its_journal_does_not_begin(project: Path) -> None:
    ran = Disk(project).run('mkdir "$DISK/out"; fill; tests --gpu=cpu -q --against="$PYTHON" --results="$DISK/out"')

    assert ran.status == 4
    assert f"cannot be written: {FULL}" in ran.output


# --- other ways in which a folder is not there ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "circle", "nowhere", "long"])
@pytest.mark.parametrize("command", ["gate", "summary", "compare", "report", "accept --reason x"])
def test_what_is_no_file_is_told(tmp_path: Path, kind: str, command: str) -> None:
    path = tmp_path / ("a" * 300 if kind == "long" else "run.json")
    match kind:
        case "folder":
            path.mkdir()
        case "circle":
            path.symlink_to(path)
        case "nowhere":
            path.symlink_to(tmp_path / "nothing")
    words = command.split()
    status, output = llamaperf(words[0], path, *([path] if command == "compare" else []), *words[1:])

    assert status == 2
    assert path.name in output.replace("\n", "") or "is not there" in output


def test_links_in_a_circle_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.symlink_to(path)

    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        write_atomically(path, "new")
    assert path.is_symlink()
