"""Damaged files of every kind: never a traceback, and never a yes that the file does not say. `damage` makes them.

What a file says is told by a plain reading of it, by other means than the strict loaders. How many inputs there are is in
docs/reliability.md.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import io
import json
import math
import os
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from builders import case, measured, record
from click.testing import CliRunner
from damage import damaged, fuzzed, json_of, yaml_of
from hypothesis import example, given
from hypothesis import strategies as st
from test_importing import BENCHMARK, EVALUATION, ROW
from test_reading_runs import DECISION, HEADER, JUDGED, TESTS
from test_requirements import text as gate_text
from test_trtllm_report import GOLDEN
from test_waivers import TODAY, regression, says_so
from test_waivers import text as waiver_text
from tiny_checkpoints import write_safetensors

from pytest_llamaperf import cache
from pytest_llamaperf.accuracy.references import read_reference
from pytest_llamaperf.baselines import read_baselines
from pytest_llamaperf.catalog import case_of_key, model_named
from pytest_llamaperf.checkpoints import entries
from pytest_llamaperf.checkpoints.configs import older_rope, read_json, rope
from pytest_llamaperf.checkpoints.quantization import quantization_of
from pytest_llamaperf.checkpoints.safetensors_files import ONE_FILE, BadCheckpoint, tensors_of_file, values
from pytest_llamaperf.commands import main
from pytest_llamaperf.errors import DocumentError, LlamaperfError, UsageError
from pytest_llamaperf.files import checksum
from pytest_llamaperf.gates import decide
from pytest_llamaperf.history import History, open_history
from pytest_llamaperf.history.database import Database, connect, in_memory
from pytest_llamaperf.history.documents import document
from pytest_llamaperf.history.telling import tables
from pytest_llamaperf.importing import read_observations
from pytest_llamaperf.journal import Journal
from pytest_llamaperf.measurements import Fingerprint, Measurement, Source
from pytest_llamaperf.metrics import OUTPUT_THROUGHPUT
from pytest_llamaperf.records import Result
from pytest_llamaperf.requirements import read_requirements
from pytest_llamaperf.runs import Run, read_run, run_document, to_json
from pytest_llamaperf.runtimes import runtime_named
from pytest_llamaperf.verdicts import judge
from pytest_llamaperf.waivers import read_waivers

pytestmark = pytest.mark.faults

CASE = case()
KEY = CASE.key


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all inputs of this module: each writes its file anew."""
    return tmp_path_factory.mktemp("damaged")


def plain_yaml(content: bytes) -> Any:
    """What another reader makes of it, where the last of two keys counts and aliases do."""
    return yaml.load(content.decode(), Loader=yaml.CSafeLoader)


def check_place(problem: DocumentError, path: Path) -> None:
    assert str(problem).startswith(f"{path}:{problem.line}: ")


def command(*arguments: object) -> tuple[int, str]:
    """Exit status and output of `llamaperf`; a traceback fails the test."""
    ran = CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="llamaperf")
    if ran.exception is not None and not isinstance(ran.exception, SystemExit):
        raise ran.exception
    assert ran.exit_code in (0, 1, 2, 3)
    assert "\x1b" not in ran.output
    return ran.exit_code, ran.output


# --- files that people write ---------------------------------------------------------------------------------------

BASELINE = f"""\
schema: 1
references:
  overview: perf-overview.md@1
promises:
  {KEY}:
    output_throughput: {{value: 27911.0, unit: tok/s, tolerance: 0.10, source: published, reference: overview}}
    ttft_p99:
      value: 0.25
      unit: s
      tolerance: 0.05
      source: measured
      recorded: {{date: "2026-11-20", version: "1.2.1", restarts: 3, commit: "3f9c1e7"}}
      note: on eight nodes
"""


@fuzzed(1500)
@given(yaml_of(BASELINE))
@example(BASELINE.encode())
def test_a_damaged_baseline_promises_what_it_says_or_nothing(folder: Path, content: bytes) -> None:
    path = folder / "baselines" / "h200" / "llama-3.1-8b.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    try:
        book = read_baselines(folder / "baselines", "h200")
    except DocumentError as problem:
        check_place(problem, path)
        return
    said = plain_yaml(content)["promises"]
    # A key has several spellings, and one that names another case is a promise for that.
    promised = {(case_of_key("h200", key).key, metric): terms for key in said for metric, terms in said[key].items()}
    assert {(entry.case.key, entry.metric.name) for entry in book} == promised.keys()
    for entry in book:
        told = promised[entry.case.key, entry.metric.name]
        assert (entry.value, entry.tolerance, entry.source) == (told["value"], told["tolerance"], told["source"])
        assert 0 < entry.value < math.inf
        assert 0 <= entry.tolerance < 1
    # The least that is released is the least that it says.
    found = book.find(case(), OUTPUT_THROUGHPUT)
    for throughput in (20_000.0, 25_000.0, 25_200.0, 30_000.0):
        verdict = judge(case(), measured(throughput, throughput), found, (), (), None)  # type: ignore[arg-type]
        released = found is not None and decide([record(_judged(throughput, found))]).releasable
        least = math.inf if found is None else found.value * (1 - found.tolerance)
        assert not released or throughput >= least * (1 - 1e-9), verdict


def _judged(throughput: float, promised: Any) -> Result:
    verdict = judge(case(), measured(throughput, throughput), promised, (), Fingerprint({}, {}), None)
    return Result.of_verdict("a.py::test_b", verdict)


@fuzzed(1000)
@given(yaml_of(waiver_text()))
@example(waiver_text().encode())
def test_a_damaged_waiver_covers_what_it_says_or_nothing(folder: Path, content: bytes) -> None:
    path = folder / "waivers.yaml"
    path.write_bytes(content)
    try:
        waivers = read_waivers(path, TODAY)
    except DocumentError as problem:
        check_place(problem, path)
        return
    covering = waivers.covering(regression())
    waived = dataclasses.replace(regression(), waiver=covering.to_dict() if covering else None)
    decision = decide([record(waived, outcome="waived")], waivers=waivers)
    assert "\x1b" not in str(decision)
    assert not decision.releasable or says_so(content, regression())


@fuzzed(1000)
@given(yaml_of(gate_text()))
@example(gate_text().encode())
def test_a_damaged_gate_requires_what_it_counts_or_stops(folder: Path, content: bytes) -> None:
    path = folder / "h200.yaml"
    path.write_bytes(content)
    try:
        required = read_requirements(path, hardware="h200", engine="tensorrt-llm")
    except DocumentError as problem:
        check_place(problem, path)
        return
    said = plain_yaml(content)
    assert len(required) == said["count"] >= 1
    assert said["hardware"] == "h200"
    judged = {(JUDGED.case["id"], JUDGED.metric)}
    assert decide([record(JUDGED)], required=required).releasable == ({(r.case, r.metric) for r in required} <= judged)


RUNTIME = 'name: "1.1"\npython: env\nenvironment:\n  TLLM_LOG_LEVEL: info\n  CUDA_VISIBLE_DEVICES: "0,1"\n'


@fuzzed(800)
@given(yaml_of(RUNTIME))
@example(b"python: ~nobody-here/python\n")
@example(b"python: " + b"a" * 5000 + b"\n")
@example(b'python: env\nenvironment: {A: "\\0"}\n')
@example(b'python: env\nname: "\\e[2J"\n')
def test_a_damaged_runtime_is_what_it_says_or_nothing(folder: Path, content: bytes) -> None:
    python = folder / "env" / "bin" / "python"
    if not python.exists():
        python.parent.mkdir(parents=True)
        python.symlink_to(sys.executable)
    (folder / "runtime.yaml").write_bytes(content)
    try:
        found = runtime_named("runtime.yaml", folder)
    except UsageError:
        return
    assert os.access(found.python, os.X_OK)
    assert dict(found.environment) == plain_yaml(content).get("environment", {})
    assert all("\x00" not in value for value in found.variables().values())


# --- runs ----------------------------------------------------------------------------------------------------------

DOCUMENT = json.loads(to_json(run_document(HEADER, TESTS, DECISION)))
PASSED = json.loads(to_json(run_document(HEADER, TESTS[:1], decide(TESTS[:1]))))
LINES = [{"schema": 1, "run": dataclasses.asdict(HEADER)}, *({"test": test.to_dict()} for test in TESTS)]
RUN = Run(HEADER, TESTS, DECISION)


@fuzzed(1500)
@given(json_of(DOCUMENT))
@example(b"[" * 4_000)
def test_a_damaged_run_with_its_checksum_is_the_same_run_or_none(folder: Path, content: bytes) -> None:
    path = folder / "run.json"
    path.write_bytes(content)
    try:
        found = read_run(path)
    except UsageError:
        return
    document = json.loads(content)
    assert found == RUN or document.get("checksum") is None


def sealed(content: bytes) -> bytes:
    """With the checksum of what it says now: a forgery, or a run of another version."""
    try:
        document = json.loads(content)
        document["checksum"] = checksum(document)
        return json.dumps(document).encode()
    except (ValueError, TypeError, RecursionError):
        return content


COMMANDS: dict[str, Callable[[Path], tuple[object, ...]]] = {
    "gate": lambda run: ("gate", run),
    "summary": lambda run: ("summary", run, "--markdown", "-", "--bencher", run.parent / "bencher.json"),
    "accept": lambda run: ("accept", run, "--reason", "new", "--baselines", run.parent / "none", "--dry-run"),
    "compare": lambda run: ("compare", run.parent / "whole", run),
    "history": lambda run: ("history", "import", run, "--db", f"sqlite:///{run.parent / 'imported.sqlite'}"),
    "report": lambda run: ("report", run, "--db", run.parent / "empty.sqlite"),
}
INPUTS = {"gate": 800, "summary": 500, "accept": 500, "compare": 300, "history": 30, "report": 100}


def releases(content: bytes) -> bool:
    """Whether the decision of a run is a yes, in the types that one has."""
    try:
        decision = json.loads(content)["decision"]
        return bool(decision["releasable"] is True and decision["reasons"] == [])
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_breaks_at_a_damaged_run(folder: Path, name: str) -> None:
    whole = folder / "whole"
    whole.mkdir(exist_ok=True)
    (whole / "run.json").write_text(json.dumps(DOCUMENT))
    with open_history(str(folder / "empty.sqlite"), create=True):
        pass
    path = folder / "damaged" / "run.json"
    path.parent.mkdir(exist_ok=True)

    @fuzzed(INPUTS[name])
    @given(st.sampled_from([DOCUMENT, PASSED]).flatmap(json_of).map(sealed))
    def no_command_breaks(content: bytes) -> None:
        path.write_bytes(content)
        (folder / "imported.sqlite").unlink(missing_ok=True)
        status, _ = command(*COMMANDS[name](path))
        assert name != "gate" or (status == 0) <= releases(content)

    no_command_breaks()


@fuzzed(800)
@given(st.data())
def test_a_damaged_log_of_a_run_is_never_a_release(folder: Path, data: st.DataObject) -> None:
    lines = [json.dumps(line).encode() for line in LINES]
    number = data.draw(st.integers(0, len(lines) - 1))
    lines[number] = data.draw(json_of(LINES[number]))
    content = b"\n".join(lines) + b"\n"
    path = folder / "log" / "run.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data.draw(st.just(content) | damaged(content)))

    status, _ = command("gate", path.parent)
    assert status in (2, 3)


# --- what a comparison measured ------------------------------------------------------------------------------------

ABOUT = {"gpu": "cpu", "rounds": 2}
MEASUREMENT = Measurement(
    CASE, Source.MEASURED, {OUTPUT_THROUGHPUT: (100.0, 101.0)}, Fingerprint({"torch": "2.13.0"}, {"slots": 8}), ("a note",),
    (0.25, 0.5),
)  # fmt: skip


@pytest.fixture(scope="module")
def journal_lines(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    path = tmp_path_factory.mktemp("journal") / "against.jsonl"
    Journal(path, ABOUT, resume=False).through(lambda cases, restarts: {CASE: MEASUREMENT})([CASE], 2)
    return path.read_bytes().splitlines()


@fuzzed(1000)
@given(st.data())
def test_a_damaged_journal_answers_what_was_measured_or_nothing(
    folder: Path, journal_lines: list[bytes], data: st.DataObject
) -> None:
    path = folder / "against.jsonl"
    lines = list(journal_lines)
    number = data.draw(st.integers(0, 1))
    forged = data.draw(st.booleans())
    lines[number] = data.draw(json_of(json.loads(lines[number])).map(sealed if forged else bytes))
    content = b"\n".join(lines) + b"\n"
    path.write_bytes(content if forged else data.draw(st.just(content) | damaged(content)))
    kept = path.read_bytes()
    try:
        journal = Journal(path, ABOUT, resume=True)
    except UsageError:
        assert path.read_bytes() == kept
        return
    again = UsageError("asked again")
    found = journal.through(lambda cases, restarts: dict.fromkeys(cases, again))([CASE], 2)[CASE]
    assert forged or found in (MEASUREMENT, again)


# --- history -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    place = tmp_path_factory.mktemp("history")
    (place / "run.json").write_text(json.dumps(DOCUMENT))
    assert command("history", "import", place / "run.json", "--db", place / "history.sqlite")[0] == 0
    with contextlib.closing(sqlite3.connect(place / "history.sqlite", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA page_size = 512")
        connection.execute("VACUUM")
    return (place / "history.sqlite").read_bytes()


@functools.cache
def nothing_published() -> Database:
    """In the place of the figures that come with this project, which take longer to read."""
    return in_memory()


def asked(path: Path) -> None:
    """Everything that is asked of a history."""
    with contextlib.suppress(UsageError):
        own = connect(str(path), create=False)
        if own is None:  # an empty file is an empty database
            return
        with History(nothing_published(), own) as history:
            for ask in (
                history.groups,
                lambda: history.known("version"),
                lambda: list(tables(history.find(metric="output_throughput"))),
                lambda: to_json(document(history.of_version("1.2.1"))),
                lambda: history.forget(HEADER.id),
            ):
                with contextlib.suppress(UsageError):
                    ask()


@fuzzed(300)
@given(st.data())
def test_a_damaged_history_is_told(folder: Path, database: bytes, data: st.DataObject) -> None:
    path = folder / "history.sqlite"
    for name in ("history.sqlite-wal", "history.sqlite-shm", "history.sqlite-journal"):
        (folder / name).unlink(missing_ok=True)
    path.write_bytes(data.draw(damaged(database)))

    asked(path)


COLUMNS = {
    "llamaperf_history": ("schema", "written_by"),
    "runs": ("id", "name", "digest", "number"),
    "cases": ("id", "name", "hardware", "model"),
    "origins": ("id", "source", "harness", "version", "versions", "settings", "machine"),
    "observations": ("run", "case", "origin", "metric", "unit", "better", "value", "low", "high", "at", "restarts", "operators"),
}  # fmt: skip
CELLS = st.sampled_from(
    [
        None,
        0,
        -1,
        2,
        1e308,
        math.inf,
        math.nan,
        "",
        "x",
        "{",
        "[]",
        "null",
        "1 x",
        b"\xff",
        '{"a": NaN}',
        "[" * 4_000,
        2**62,
    ]
)


@fuzzed(200)
@given(st.data())
def test_a_history_with_other_values_in_it_is_told(folder: Path, database: bytes, data: st.DataObject) -> None:
    path = folder / "cells.sqlite"
    path.write_bytes(database)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute("UPDATE sqlite_schema SET sql = replace(sql, 'NOT NULL', '')")
    connection.commit()
    connection.close()
    connection = sqlite3.connect(path)
    table = data.draw(st.sampled_from(sorted(COLUMNS)))
    column = data.draw(st.sampled_from(COLUMNS[table]))
    try:
        connection.execute(f'UPDATE {table} SET "{column}" = ?', (data.draw(CELLS),))
        connection.commit()
    except sqlite3.Error:
        pass
    connection.close()

    asked(path)


# --- the cache -----------------------------------------------------------------------------------------------------

MANIFEST = {
    "schema": 1,
    "key": "k",
    "files": {ONE_FILE: 0},
    "versions": {"torch": "2"},
    "made": "2026-11-20T10:00:00+00:00",
}


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("entry")
    write_safetensors(place / ONE_FILE, {"a": ("F32", (2, 2), bytes(16)), "b": ("F8_E4M3", (4,), bytes(4))})
    return place


@fuzzed(1000)
@example(json.dumps(MANIFEST | {"files": {ONE_FILE: "k"}}).encode())
@example(json.dumps(MANIFEST | {"files": {ONE_FILE: None}}).encode())
@example(json.dumps(MANIFEST | {"files": {"a" * 300: 1}}).encode())
@given(json_of(MANIFEST | {"files": {ONE_FILE: 174}}))
def test_a_damaged_manifest_is_a_problem_of_its_entry(entry: Path, content: bytes) -> None:
    (entry / cache.MANIFEST).write_bytes(content)

    if entries.problem_of(entry, "k") is None:
        said = json.loads(content)
        assert (said["schema"], said["key"]) == (1, "k")
        assert all((entry / name).stat().st_size == size for name, size in said["files"].items())


@fuzzed(600)
@given(st.data())
def test_a_damaged_file_of_weights_is_a_problem_of_its_entry(folder: Path, entry: Path, data: st.DataObject) -> None:
    whole = (entry / ONE_FILE).read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = data.draw(json_of(json.loads(whole[8 : 8 + length])))
    damaged_header = len(header).to_bytes(8, "little") + header + whole[8 + length :]
    place = folder / "weights"
    place.mkdir(exist_ok=True)
    (place / ONE_FILE).write_bytes(data.draw(st.just(damaged_header) | damaged(whole)))
    try:
        for tensor in tensors_of_file(place / ONE_FILE).values():
            if tensor.dtype == "F32":
                assert len(values(tensor)) == tensor.size
    except BadCheckpoint:
        pass


CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
    "max_position_embeddings": 512, "tie_word_embeddings": True, "rope_theta": 10000.0,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
}  # fmt: skip
QUANTIZED = {
    "producer": {"name": "modelopt", "version": "0.47"},
    "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]},
}


@fuzzed(600)
@given(json_of(CONFIG), json_of(QUANTIZED) | st.none())
@example(json.dumps(CONFIG | {"rope_theta": [None]}).encode(), None)
@example(json.dumps(CONFIG | {"rope_theta": 10**400}).encode(), None)
def test_a_damaged_configuration_of_a_checkpoint_is_told(folder: Path, config: bytes, quantized: bytes | None) -> None:
    place = folder / "checkpoint"
    place.mkdir(exist_ok=True)
    (place / "config.json").write_bytes(config)
    (place / "hf_quant_config.json").unlink(missing_ok=True)
    if quantized is not None:
        (place / "hf_quant_config.json").write_bytes(quantized)
    for ask in (model_named_by(place), lambda: quantization_of(place), lambda: rope(read_json(place / "config.json")),
                lambda: older_rope(read_json(place / "config.json"))):  # fmt: skip
        with contextlib.suppress(LlamaperfError):
            ask()


def model_named_by(place: Path) -> Callable[[], object]:
    return lambda: model_named(str(place))


# --- references of accuracy ----------------------------------------------------------------------------------------

REFERENCE = {
    "schema": 1, "protocol": {"task": "facts", "shots": 0}, "fingerprint": {"versions": {"torch": "2"}, "settings": {}},
    "recorded": "2026-11-20T10:00:00+00:00", "documents": [["a", 1.0, "x"], ["b", 0.0, "y"]],
}  # fmt: skip


@fuzzed(800)
@given(json_of(REFERENCE))
@example(json.dumps(REFERENCE | {"documents": [[1, 1.0, "x"]]}).encode())
@example(json.dumps(REFERENCE | {"documents": [["a", True, "x"]]}).encode())
def test_a_damaged_reference_holds_what_it_says_or_nothing(folder: Path, content: bytes) -> None:
    path = folder / "bf16-facts.json"
    path.write_bytes(content)
    try:
        found = read_reference(path, case(), {"task": "facts", "shots": 0})
    except UsageError:
        return
    said = json.loads(content)
    assert said["protocol"] == {"task": "facts", "shots": 0}
    assert [[each.id, each.score, each.cluster] for each in found.documents.values()] == said["documents"]


# --- files of other tools ------------------------------------------------------------------------------------------


@fuzzed(1200)
@given(st.sampled_from([GOLDEN, BENCHMARK, EVALUATION]).flatmap(json_of))
def test_a_damaged_file_of_another_tool_is_read_or_told(folder: Path, content: bytes) -> None:
    path = folder / "report"
    path.write_bytes(content)
    with contextlib.suppress(UsageError):
        for found in read_observations(path):
            assert math.isfinite(found.value)


def figures() -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(ROW))
    writer.writeheader()
    writer.writerow(ROW)
    writer.writerow({**ROW, "recipe": 'a "quoted", recipe', "value": "100"})
    return file.getvalue()


@st.composite
def damaged_table(draw: st.DrawFn) -> bytes:
    rows = list(csv.reader(io.StringIO(figures())))
    row = draw(st.sampled_from(rows))
    cell = st.sampled_from(
        ["", "nan", "inf", "1e999", "-1", "0", "9" * 5000, "\x00", "\x1b[2J", "../..", '"', "a" * 200_000]
    )
    row[draw(st.integers(0, len(row) - 1))] = draw(cell | st.text(max_size=6))
    file = io.StringIO()
    csv.writer(file).writerows(rows)
    content = file.getvalue().encode("utf-8", "surrogatepass")
    return draw(st.just(content) | damaged(content))


@fuzzed(600)
@given(damaged_table())
def test_damaged_published_figures_are_read_or_told(folder: Path, content: bytes) -> None:
    path = folder / "figures.csv"
    path.write_bytes(content)
    with contextlib.suppress(UsageError):
        for found in read_observations(path):
            assert 0 < found.value < math.inf
