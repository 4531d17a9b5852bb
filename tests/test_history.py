"""The history keeps what it was given once and whole, in SQLite and in PostgreSQL alike, whoever else writes."""

from __future__ import annotations

import dataclasses
import gc
import importlib
import itertools
import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import postgresql
import pytest
import sqlalchemy
from builders import record, result
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llamaperf.commands import main
from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.gates import Decision
from pytest_llamaperf.history import History, finding, open_history
from pytest_llamaperf.history.lines import differing, lines_of
from pytest_llamaperf.history.versions import same_version, version_order
from pytest_llamaperf.observations import Observation
from pytest_llamaperf.runs import RunHeader, RunLog, read_run, run_document, to_json

CASE = "h200/tensorrt-llm/llama-3.1-8b/modelopt-fp8/tp1/max-throughput-128-128"
PUBLISHED = "h200/tensorrt-llm/llama-3.1-405b/modelopt-fp8/tp8/max-throughput-128-2048"


def observed(value: float = 100.0, **changes: Any) -> Observation:
    given = Observation(
        CASE, "output_throughput", "tok/s", "higher", "measured", value, "run-1", "pytest-llamaperf/tensorrt-llm",
        version="1.2.1", when="2026-11-22T10:00:00Z", values=(99.0, 101.1), low=98.2, high=101.8,
        versions={"tensorrt_llm": "1.2.1"}, settings={"max_batch_size": 64}, machine={"gpus": [{"product": "NVIDIA H200"}]},
        operators={"decode": {"gemm": 0.1}}, outcome="pass",
    )  # fmt: skip
    return dataclasses.replace(given, **changes)


@pytest.fixture(scope="module")
def server() -> Iterator[Path]:
    if postgresql.programs() is None:
        pytest.skip("no PostgreSQL server here: apt-get install postgresql")
    with postgresql.server() as folder:
        yield folder


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a history may be made, in a file or on a server."""
    if request.param == "sqlite":
        return str(tmp_path / "history.sqlite")
    folder = request.getfixturevalue("server")
    administration = sqlalchemy.create_engine(
        f"postgresql+psycopg:///postgres?host={folder}&user=postgres", isolation_level="AUTOCOMMIT"
    )
    name = f"history_{time.monotonic_ns()}"
    with administration.connect() as connection:
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
    administration.dispose()
    return f"postgresql+psycopg:///{name}?host={folder}&user=postgres"


@pytest.fixture
def history(location: str) -> Iterator[History]:
    with open_history(location, create=True) as opened:
        yield opened


@pytest.fixture
def llamaperf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("LLAMAPERF_HISTORY", str(tmp_path / "default.sqlite"))

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["history", *arguments], prog_name="llamaperf")

    return run


def test_into_a_file_no_name_is_folded(llamaperf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS")

    told = llamaperf("--model", "llama-3.1-405b", "--gpu", "h200", "--layout", "tp8").stdout

    assert "modelopt-fp8  tp8" in told
    assert "0.20-prerelease  " in told


def test_what_is_added_is_found_again_as_it_was(location: str, history: History) -> None:
    given = (observed(), observed(0.02, metric="ttft_median", unit="s", better="lower", values=(), outcome=None))
    added = history.add(given)

    assert (added.new, added.known) == ({"run-1": 2}, {})
    with open_history(location) as opened:
        assert opened.of_run("run-1") == given
        assert opened.series(CASE, "ttft_median") == given[1:]


@given(
    value=st.floats(allow_nan=False, allow_infinity=False),
    values=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=4),
    texts=st.tuples(*[st.text(st.characters(exclude_categories=["Cs"]), min_size=1)] * 4),
    shared=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.integers() | st.text("a'\";-%\\")),
)
@settings(max_examples=50)
def test_whatever_it_is_it_comes_back_unchanged(
    tmp_path_factory: pytest.TempPathFactory,
    value: float,
    values: list[float],
    texts: tuple[str, ...],
    shared: dict[str, Any],
) -> None:
    case, harness, run, version = texts
    one = observed(
        value,
        case=case,
        harness=harness,
        run=run,
        version=version,
        values=tuple(values),
        settings=shared,
        reference=case,
    )
    with open_history(str(tmp_path_factory.mktemp("any") / "h.sqlite"), create=True) as opened:
        opened.add([one])
        assert opened.of_run(run) == (one,)


@pytest.mark.parametrize("name", ["'; DROP TABLE observations; --", '"', "%s%(x)s", ":name", "\\", "ü\N{SNOWMAN}"])
def test_hostile_names_are_names(history: History, name: str) -> None:
    history.add([observed(run=name, version=name, case=f"h200/{name}"), observed(run="other")])

    assert [each.run for each in history.of_run(name)] == [name]
    assert [each.case for each in history.of_version(name)] == [f"h200/{name}"]
    assert history.forget(name) == 1
    assert len(history.of_run("other")) == 1


def test_a_run_is_added_once_and_never_another_of_its_name(history: History) -> None:
    history.add([observed(), observed(metric="m")])

    again = history.add([observed(), observed(metric="m")])
    assert (again.new, again.known) == ({}, {"run-1": 2})
    for changed in (
        [observed()],
        [observed(), observed(metric="m", value=99.0)],
        [observed(), observed(metric="m", harness="another")],
        [observed()] * 3,
    ):
        with pytest.raises(UsageError, match="run 'run-1' is in the history already, with other values"):
            history.add(changed)
    assert len(history.of_run("run-1")) == 2


def test_asking_leaves_the_collector_of_cycles_as_it_was(history: History) -> None:
    assert gc.isenabled()
    history.find()
    assert gc.isenabled()
    gc.disable()
    try:
        history.find()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_an_import_that_fails_leaves_nothing(history: History) -> None:
    def broken() -> Iterator[Observation]:
        yield from (observed(float(n), metric=f"m{n}") for n in range(1, 7_000))
        raise UsageError("the file ends here")

    with pytest.raises(UsageError, match="the file ends here"):
        history.add(broken())
    with pytest.raises(UsageError, match="is inf, which is no finite number"):
        history.add([observed(), observed(float("inf"))])

    assert "run-1" not in history.known("run")
    assert history.add([observed()]).new == {"run-1": 1}


def test_versions_are_found_however_they_are_written_and_come_in_their_order(history: History) -> None:
    for number, version in enumerate(["1.0.0", "0.9.0", "1.0.0rc3", "0.10.0", "1.0.0.post1", None, "main"]):
        history.add([observed(run=f"run-{number}", version=version)])

    assert [each.version for each in history.find(case=CASE, source="measured")] == [
        None, "main", "0.9.0", "0.10.0", "1.0.0rc3", "1.0.0", "1.0.0.post1"
    ]  # fmt: skip
    assert {each.run for each in history.of_version("1.0") if each.source == "measured"} == {"run-0"}


def test_two_spellings_of_a_version_are_one_place_in_the_order(history: History) -> None:
    spelled = ["1.0", "1.0.0", "1.0", "1.0.0"]
    for number, version in enumerate(spelled):
        history.add([observed(run=f"run-{number}", version=version, when=f"2026-11-{number + 10}")])

    assert [each.version for each in history.series(CASE, "output_throughput") if each.source == "measured"] == spelled


def test_a_prerelease_comes_before_its_candidates() -> None:
    assert (
        version_order("0.17.0") < version_order("0.20-prerelease") < version_order("0.20.0rc0") < version_order("0.20")
    )
    assert same_version("0.17", "0.17.0")
    assert not same_version(None, "0.17")


def test_unknown_names_are_told_with_the_nearest(history: History) -> None:
    history.add([observed()])

    with pytest.raises(UsageError, match=r"nothing of version '1\.2\.2' in the history; did you mean '1\.2\.1'"):
        history.of_version("1.2.2")
    with pytest.raises(
        UsageError, match=r"nothing of model 'llama-3.1-80b' in the history; did you mean 'llama-3.1-8b'"
    ):
        history.find(model="llama-3.1-80b")
    with pytest.raises(UsageError, match="unknown run 'run-2'; did you mean 'run-1'"):
        history.forget("run-2")
    assert history.find(model="llama-3.1-405b", source="measured") == ()  # there is of both, and nothing of both


def test_what_is_forgotten_is_gone_and_can_be_added_again(history: History) -> None:
    other = dataclasses.replace(observed(run="run-2", version="1.3"), case=CASE.replace("8b", "1b"))
    history.add([observed(), other])

    assert history.forget("run-2") == 1
    assert "llama-3.1-1b" not in history.known("model")
    assert "1.3" not in history.known("version")
    assert history.add([observed(run="run-2", value=1.0)]).new == {"run-2": 1}


def test_published_figures_are_there_without_any_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMAPERF_HISTORY", str(tmp_path / "none.sqlite"))
    with open_history() as opened:
        found = opened.series(PUBLISHED, "output_throughput")
        assert len(opened.find()) > 1_400
        with pytest.raises(UsageError, match="comes with this package and cannot be forgotten"):
            opened.forget("TensorRT-LLM perf-overview 0.20.0")
        with pytest.raises(UsageError, match="nothing has been imported yet"):
            opened.forget("run-1")

    assert not (tmp_path / "none.sqlite").exists()
    assert [each.version for each in found] == ["0.13.0", "0.14.0", "0.17", "0.20-prerelease", "0.20.0", "1.0"]
    assert {each.source for each in found} == {"published"}
    assert all(each.reference for each in found)
    assert [line.observations[0].version for line in lines_of(found)] == [
        "0.13.0",
        "0.20-prerelease",
    ]  # another harness


def test_what_comes_with_the_package_cannot_be_added_otherwise(history: History) -> None:
    run = "TensorRT-LLM perf-overview 1.0"
    same = history.add(history.of_run(run))
    assert (same.new, set(same.known)) == ({}, {run})

    with pytest.raises(UsageError, match="is in the history already, with other values"):
        history.add([observed(run=run)])


def test_lines_end_where_nothing_may_be_compared() -> None:
    h100 = {"gpus": [{"product": "NVIDIA H100 80GB HBM3"}]}
    several = [
        observed(run="1"), observed(run="2", version="1.3"), observed(run="3", source="predicted"),
        observed(run="4", harness="trtllm-bench"), observed(run="5", machine=h100),
        observed(run="6", machine={"gpus": [{"product": "NVIDIA H200", "uuid": "another"}], "driver": "590"}),
    ]  # fmt: skip
    lines = lines_of(several)

    assert sorted(len(line.observations) for line in lines) == [1, 1, 1, 3]
    assert {name for one, other in itertools.pairwise(lines) for name in differing(one, other)} == {
        "source", "harness", "machine"
    }  # fmt: skip


@pytest.mark.parametrize(
    "machine",
    [{"processor": "EPYC 9654"}, {"processor": "Xeon 8480", "gpus": []}, {"gpus": [{"product": "NVIDIA H200"}] * 2}],
    ids=str,
)
def test_another_processor_or_number_of_gpus_is_another_line(machine: dict[str, Any]) -> None:
    one = (
        {"processor": "Xeon 8480", "gpus": [{"product": "NVIDIA H200"}]}
        if "processor" in machine
        else observed().machine
    )

    assert len(lines_of([observed(machine=one), observed(run="2", machine=machine)])) == 2


def test_a_database_of_a_newer_version_is_left_alone(location: str) -> None:
    with open_history(location, create=True) as opened:
        opened.add([observed()])
    engine = sqlalchemy.create_engine(location if "://" in location else f"sqlite:///{location}")
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE llamaperf_history SET schema = 2, written_by = '9.1'"))
    engine.dispose()

    with pytest.raises(UsageError, match=r"has schema 2, this version reads 1; pytest-llamaperf 9\.1 made it"):
        open_history(location)


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"hello", "file is not a database"), (b"SQLite format 3\0" + b"\7" * 5000, "cannot be used")],
    ids=["text", "damaged"],
)
def test_what_is_no_database_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "h.sqlite"
    path.write_bytes(content)

    for create in (False, True):
        with pytest.raises(UsageError, match=problem):
            open_history(str(path), create=create)
    assert path.read_bytes() == content


def test_a_database_of_something_else_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "h.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE runs (a)")
    connection.close()

    with pytest.raises(UsageError, match=r"has tables of something else \(runs\)"):
        open_history(str(path), create=True)


@pytest.mark.parametrize(
    ("location", "problem"),
    [
        ("mysql://host/database", "mysql: no database that is known here; write a path, or postgresql"),
        ("sqlite://", "no database that is known here"),
        (
            "postgresql://u:secret@127.0.0.1:1/x",
            r"u:\*\*\*@127.0.0.1:1/x: the history cannot be used: connection failed",
        ),
        ("/dev/null/h.sqlite", "cannot be made|cannot be used|Not a directory"),
        ("postgresql://u:p@h:port/x", "is no URL of a database|cannot be used"),
    ],
)
def test_places_that_cannot_be_are_refused(location: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        open_history(location, create=True)


def test_a_place_that_was_named_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no history; `llamaperf history import FILES --db "):
        open_history(str(tmp_path / "h.sqlite"))


def test_a_history_that_another_process_holds_is_said_to_be_held(tmp_path: Path) -> None:
    path = tmp_path / "h.sqlite"
    open_history(str(path), create=True).close()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with open_history(f"sqlite:///{path}?timeout=0.1", create=True) as opened:
        with pytest.raises(UsageError, match="another process is writing to it for long; try again later"):
            opened.add([observed()])
        assert len(opened.find(version="0.20.0")) > 0  # reading does not wait
    holder.close()


WRITER = """
import sys
sys.path.insert(0, {tests!r})
from test_history import observed
from pytest_llamaperf.history import open_history
with open_history({location!r}, create=True) as opened:
    for number in range(15):
        opened.add([observed(float(n + 1), run=f"{{sys.argv[1]}}-{{number}}", metric=f"m{{n}}") for n in range(100)])
        opened.add([observed(float(n + 1), run=f"both-{{number}}", metric=f"m{{n}}") for n in range(100)])
"""


def test_two_that_write_at_once_lose_nothing(location: str) -> None:
    """Even the database is made by both at once, and half of what they add is the same."""
    code = WRITER.format(tests=str(Path(__file__).parent), location=location)
    processes = [subprocess.Popen([sys.executable, "-c", code, name], stderr=subprocess.PIPE) for name in ("a", "b")]
    for process in processes:
        _, told = process.communicate(timeout=120)
        assert process.returncode == 0, told.decode()

    with open_history(location) as opened:
        found = opened.find(source="measured")
    assert len(found) == 3 * 15 * 100
    for run in [f"{name}-{number}" for name in ("a", "b", "both") for number in range(15)]:
        assert sorted(each.value for each in found if each.run == run) == [float(n + 1) for n in range(100)]


def test_a_process_that_dies_while_it_writes_leaves_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "h.sqlite")
    open_history(path, create=True).close()
    code = (
        "import os, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_history import observed\n"
        "from pytest_llamaperf.history import open_history\n"
        "def dying():\n"
        "    yield from (observed(float(n + 1), metric=f'm{n}') for n in range(20_000))\n"
        "    os.kill(os.getpid(), 9)\n"
        f"open_history({path!r}, create=True).add(dying())\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9

    with open_history(path, create=True) as opened:
        assert "run-1" not in opened.known("run")
        assert opened.add([observed()]).new == {"run-1": 1}


def test_those_who_read_see_all_of_a_run_or_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "h.sqlite")
    much = 1_000 * "r"  # in all more than SQLite keeps in memory before it writes, when readers wait without its log
    halfway, go_on = threading.Event(), threading.Event()

    def slow() -> Iterator[Observation]:
        yield from (observed(float(n + 1), metric=f"m{n}", reference=much) for n in range(6_000))
        halfway.set()
        go_on.wait(60)

    def write() -> None:
        with open_history(path, create=True) as opened:
            opened.add(slow())

    open_history(path, create=True).close()
    writer = threading.Thread(target=write)
    writer.start()
    halfway.wait(60)
    with open_history(path) as opened:
        before = len(opened.find(source="published", run="TensorRT-LLM perf-overview 1.0")), opened.known("run")
        go_on.set()
        writer.join()
        assert len(opened.of_run("run-1")) == 6_000
    assert before[0] == 30
    assert "run-1" not in before[1]


def test_a_question_sees_one_moment_whoever_writes_meanwhile(
    location: str, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    history.add([observed()])
    asked = finding._origin

    def interrupted(row: Any) -> Any:
        if row.source == "measured":
            monkeypatch.setattr(finding, "_origin", asked)
            with open_history(location) as other:
                other.add([observed(run="run-2", case=CASE.replace("8b", "1b"), harness="another")])
        return asked(row)

    monkeypatch.setattr(finding, "_origin", interrupted)
    assert [each.run for each in history.find(source="measured")] == ["run-1"]
    assert {each.run for each in history.find(source="measured")} == {"run-1", "run-2"}


def run_folder(folder: Path, name: str = "8a1c") -> Path:
    header = RunHeader(name, "2026-11-22T10:00:00Z", "h200", "tensorrt-llm")
    folder.mkdir()
    (folder / "run.json").write_text(to_json(run_document(header, [record(result())], Decision(()))))
    return folder


def test_the_command_imports_a_run_shows_it_beside_others_and_forgets_it(llamaperf: Any, tmp_path: Path) -> None:
    folder = str(run_folder(tmp_path / "out"))

    assert "out: added 1 value of 8a1c" in llamaperf("import", folder).output
    assert "8a1c in the history already, and not added again" in llamaperf("import", folder).output
    shown = llamaperf("--model", "llama-3.1-8b", "--gpu", "h200", "--workload", "max-throughput-128-128").output
    assert "llama-3.1-8b on h200 | max-throughput | output_throughput, tok/s" in shown
    assert "472.8" in shown
    assert "break" in shown
    assert "other source, harness" in shown
    assert "forgotten: 8a1c, 1 value" in llamaperf("forget", "8a1c").output
    assert llamaperf("--run", "8a1c").exit_code == 2


def test_what_nobody_watched_is_no_history_and_a_run_that_was_cut_off_is_told(llamaperf: Any, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "out")
    blind = dataclasses.replace(
        result(nodeid="a.py::test_blind"), metric="ttft_median", health={"blind": "Driver Not Loaded"}
    )
    run = read_run(folder)
    header = dataclasses.replace(run.header, interrupted="SIGTERM")
    document = run_document(header, [*run.tests, record(blind)], Decision(("cut off",)), not_run=["a.py::test_c"])
    (folder / "run.json").write_text(to_json(document))

    added = llamaperf("import", str(folder)).output

    assert "out: added 1 value of 8a1c" in added
    assert "left out 1 value: measured on GPUs that nobody watched" in added
    assert "not whole: it was cut off by SIGTERM, 1 test never ran" in added
    assert [each["metric"] for each in json.loads(llamaperf("--run", "8a1c", "--json").output)["lines"]] == [
        "output_throughput"
    ]


@pytest.mark.parametrize("name", ["run.json", "run.jsonl"])
def test_a_run_of_which_tests_are_missing_is_told_when_it_is_imported(
    llamaperf: Any, tmp_path: Path, name: str
) -> None:
    """Stopped by --maxfail, or killed."""
    folder = run_folder(tmp_path / "out")
    run = read_run(folder)
    if name == "run.jsonl":
        (folder / "run.json").unlink()
        log = RunLog(folder, run.header)
        log.add(run.tests[0])
        log.close()
    else:
        document = run_document(run.header, run.tests, Decision(("not run: 2 tests",)), not_run=["a", "b"])
        (folder / name).write_text(to_json(document))

    added = llamaperf("import", str(folder)).output

    told = {"run.json": "not whole: 2 tests never ran", "run.jsonl": "not whole: it was cut off before its end"}
    assert told[name] in added
    assert "not whole" not in llamaperf("import", str(run_folder(tmp_path / "whole", "9b2d"))).output


def test_the_command_shows_what_was_published_on_day_one(llamaperf: Any) -> None:
    overview, shown = llamaperf(), llamaperf("--model", "llama-3.1-405b", "--gpu", "h200")

    assert overview.exit_code == shown.exit_code == 0
    assert "llama-3.1-405b  h200   published" in overview.output
    rows = [line.split() for line in shown.output.splitlines()]
    assert ["0.20-prerelease", "6,139.8", "1", "c", "*"] in rows
    assert ["0.20.0", "5,567.9", "-9.3", "%", "1", "c"] in rows
    assert "0.20-prerelease: CUDA graphs unintentionally off; superseded" in shown.output
    assert "step" not in shown.output  # single values


def test_files_that_are_good_are_imported_beside_those_that_are_not(llamaperf: Any, tmp_path: Path) -> None:
    good = run_folder(tmp_path / "good")
    cut = run_folder(tmp_path / "cut", "9b2d") / "run.json"
    cut.write_text(cut.read_text()[:-20])

    found = llamaperf("import", str(cut), str(good))
    assert found.exit_code == 2
    assert "added 1 value of 8a1c" in found.output
    assert "run.json: is no JSON" in found.output
    assert "1 file of 2 not imported" in found.output
    assert "Traceback" not in found.output


def test_an_edited_run_is_refused(llamaperf: Any, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "out")
    text = (folder / "run.json").read_text()
    assert "472.75" in text
    (folder / "run.json").write_text(text.replace("472.75", "572.75"))

    found = llamaperf("import", str(folder))
    assert found.exit_code == 2
    assert "was changed after it was written" in found.output


def test_everything_is_there_as_json(llamaperf: Any, tmp_path: Path) -> None:
    llamaperf("import", str(run_folder(tmp_path / "out")))
    document = json.loads(llamaperf("--json", "--source", "measured").output)

    (line,) = document["lines"]
    assert (line["case"], line["steps"], line["alert"]) == (CASE, [], None)
    (found,) = line["observations"]
    assert found["values"] == [474.5, 471.0]
    assert found["run"] == "8a1c"
    assert "harness" in line
    assert "harness" not in found


def nights(tmp_path: Path, values: list[float]) -> str:
    path = str(tmp_path / "default.sqlite")
    with open_history(path, create=True) as opened:
        for number, value in enumerate(values):
            opened.add(
                [
                    observed(
                        value,
                        run=f"night-{number:02}",
                        version=f"1.2.0rc{number // 3}",
                        when=f"2026-10-{number + 1:02}",
                    )
                ]
            )
    return path


def test_steps_and_alerts_are_marked_and_told(llamaperf: Any, tmp_path: Path) -> None:
    nights(tmp_path, [100.0 + (-1) ** n * 0.4 - 8 * (n >= 24) for n in range(27)])
    shown = llamaperf("--source", "measured").output
    told = " ".join(shown.split())

    (row,) = (line for line in shown.splitlines() if "▼ step" in line)
    assert row.split()[:3] == ["1.2.0rc8", "92.40", "-7.2"]
    assert re.search(r"output_throughput moved by -(7\.9|8\.0|8\.1) % \(-8\.\d to -7\.\d %\) at 1\.2\.0rc8", told)
    assert "3 runs against 24 before; worse" in told
    assert "alert: h200/tensorrt-llm/llama-3.1-8b" in told
    (line,) = json.loads(llamaperf("--json", "--source", "measured").output)["lines"]
    assert line["steps"][0]["version"] == "1.2.0rc8"
    assert line["alert"]["loss"] == pytest.approx(0.08, abs=0.01)


def test_a_long_table_shows_the_last_versions_and_says_so(llamaperf: Any, tmp_path: Path) -> None:
    with open_history(str(tmp_path / "default.sqlite"), create=True) as opened:
        opened.add([observed(version=f"1.{n}", run=f"run-{n}", metric=f"m{m}") for n in range(90) for m in range(5)])
    shown = llamaperf("--source", "measured").output

    assert shown.count("... 85 before") == 5
    assert shown.count("1.89 ") == 5
    assert "the last 5 versions of each; all: name fewer cases, or --json" in shown


def test_of_very_many_values_the_first_cases_are_shown_and_the_rest_is_counted(
    llamaperf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("pytest_llamaperf.commands.history"), "MOST", 7)
    models = [CASE.replace("8b", f"{n}b") for n in range(1, 6)]
    with open_history(str(tmp_path / "default.sqlite"), create=True) as opened:
        opened.add([observed(run=f"run-{n}", case=case) for case in models for n in range(3)])
    shown = llamaperf("--source", "measured").output
    told = " ".join(shown.split())

    assert told.startswith("the first 2 of 5 cases, 6 of 15 values: name fewer by --metric, ")
    assert ("llama-3.1-2b" in shown, "llama-3.1-3b" in shown) == (True, False)
    whole = llamaperf("--source", "measured", "--all").output
    assert "the first" not in whole
    assert "llama-3.1-5b" in whole
    assert len(json.loads(llamaperf("--json", "--source", "measured").output)["lines"]) == 5
    assert "the first" not in llamaperf("--source", "measured", "--model", "llama-3.1-5b").output


def test_at_least_one_case_is_shown_however_many_values_it_has(history: History) -> None:
    history.add([observed(run=f"run-{n}") for n in range(3)])

    found = history.beginning(1, source="measured")

    assert (len(found.observations), found.cases, found.values) == (3, 1, 3)
    with pytest.raises(UsageError, match="nothing of model 'x'"):
        history.beginning(1, model="x")


def test_names_do_not_steer_the_terminal(llamaperf: Any, tmp_path: Path) -> None:
    with open_history(str(tmp_path / "default.sqlite"), create=True) as opened:
        opened.add(
            [
                observed(
                    case="h200/e/\x1b[31mred\x07/r/tp1/min-latency-1-1",
                    version="\x1b]0;title\x07",
                    harness="[b]\x1b[2J",
                )
            ]
        )
    shown = llamaperf("--source", "measured").output

    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert r"\x1b[31mred\x07" in shown
    assert r"[b]\x1b[2J" in shown


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--model", "lama-3.1-405b"], "nothing of model 'lama-3.1-405b' in the history; did you mean 'llama-3.1-405b'"),
        (["--version", "0.21"], "nothing of version '0.21' in the history; did you mean '0.17'"),
        (["--model", "llama-3.1-405b", "--layout", "tp1"], "nothing in the history is all of that"),
        (["import", "--gpu", "h20", "x"], "unknown GPU 'h20'; did you mean 'h200'"),
        (["import", "--scenario", "fast", "x"], "unknown workload 'fast-1-1'"),
        (["import", "/nowhere"], "/nowhere: cannot be read: No such file"),
        (["forget", "x"], "unknown run 'x'; nothing has been imported yet"),
        (["--db", "/nowhere/h.sqlite"], "/nowhere/h.sqlite: there is no history"),
    ],
)  # fmt: skip
def test_wrong_usage_is_exit_two_with_the_way_out(llamaperf: Any, arguments: list[str], problem: str) -> None:
    found = llamaperf(*arguments)

    assert found.exit_code == 2
    assert problem in " ".join(found.output.split())
    assert "Traceback" not in found.output


def test_help_and_other_commands_do_not_import_sqlalchemy() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from pytest_llamaperf.commands import main\n"
        "print(CliRunner().invoke(main, ['history', '--help']).exit_code, 'sqlalchemy' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)

    assert ran.stdout.split() == ["0", "False"]
