"""Comparisons that are cut off go on, and what an earlier run left in doubt is settled by another one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from engine_sessions import Folder
from test_against import CONFTEST as ENGINE
from test_against import SUITE

from pytest_llamaperf.files import checksum

# The engines of test_against; the process is killed when it opens the engine whose number is in `killed`, as by the kernel.
CONFTEST = """
import os, signal
from pathlib import Path
from test_against_engine import Engine as Quick

class Engine(Quick):
    def __init__(self, spec):
        super().__init__(spec)
        with open("engines.log") as log:
            if len(log.readlines()) == int(Path("killed").read_text()):
                os.kill(os.getpid(), signal.SIGKILL)

def pytest_llamaperf_engines():
    return {"torch": Engine}
"""
OPTIONS = ("--gpu=cpu", "--rounds=1", "test_suite.py")
ENGINES = 2 * 2 * 3  # of both builds and recipes, three restarts each


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path)
    (made.path / "old.yaml").write_text(f"name: release 1.1\npython: {sys.executable}\n")
    return made


def write(folder: Folder, *, slower: float = 0.06, setting: int = 8, killed: int = 0) -> None:
    (folder.path / "engines.log").unlink(missing_ok=True)
    folder.write(
        test_suite=SUITE,
        test_against_engine=f"GIVEN = {(slower, setting, None)!r}\n{ENGINE}",
        conftest=CONFTEST,
    )
    (folder.path / "killed").write_text(str(killed))


def compare(folder: Folder, *options: str) -> pytest.RunResult:
    return folder.run("--against=old.yaml", "--results=out", *OPTIONS, *options)


def judged(folder: Folder, name: str = "out") -> dict[str, tuple[str, str]]:
    return {r["nodeid"]: (r["outcome"], r["message"]) for r in folder.run_json(name)["results"]}


@pytest.mark.parametrize("killed", [3, 8, ENGINES + 1, ENGINES + 6])
def test_a_session_that_was_killed_goes_on_and_comes_to_the_same(folder: Folder, killed: int) -> None:
    write(folder)
    compare(folder).assert_outcomes(passed=2, failed=2)
    whole, opened = judged(folder), Counter(folder.words())
    shutil.rmtree(folder.path / "out")
    write(folder, killed=killed)
    assert compare(folder).ret == -9
    before = Counter(folder.words())

    # Jitter goes by how many engines a session has opened, so only a loss this large comes to the same.
    write(folder)
    result = compare(folder, "--resume")

    assert {nodeid: outcome for nodeid, (outcome, _) in judged(folder).items()} == {
        nodeid: outcome for nodeid, (outcome, _) in whole.items()
    }
    steps = len((folder.path / "out" / "against.jsonl").read_text().splitlines())
    after = Counter(folder.words())
    if killed > 7:  # the first engine's restarts were all made
        result.stdout.fnmatch_lines(["against release 1.1: blocked: *kept from before*"])
        assert after.total() < opened.total()
    assert before.total() + after.total() <= opened.total() + 2 * 3 + 4  # what was under way is measured again
    assert steps > 3


def test_a_cut_off_comparison_is_not_begun_anew_by_accident(folder: Folder) -> None:
    write(folder, killed=8)
    compare(folder)
    kept = (folder.path / "out" / "against.jsonl").read_bytes()

    result = compare(folder)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["ERROR: out/against.jsonl: a comparison was cut off here, with 1 step measured; *"])
    assert (folder.path / "out" / "against.jsonl").read_bytes() == kept


def sealed(step: dict[str, Any]) -> str:
    """A line of a journal, with the checksum of what it says now."""
    told = {name: value for name, value in step.items() if name != "checksum"}
    return json.dumps({**told, "checksum": checksum(told)})


def test_another_build_does_not_go_on_with_what_was_measured_of_this_one(folder: Folder) -> None:
    write(folder, killed=8)
    compare(folder)
    path = folder.path / "out" / "against.jsonl"
    header, *lines = path.read_text().splitlines()
    before = json.loads(header)
    before["about"]["installed"]["pytest"] = "8.0"
    path.write_text("\n".join([sealed(before), *lines, ""]))

    result = compare(folder, "--resume")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["ERROR: out/against.jsonl: is of another comparison: installed was *'8.0'*; *"])


def test_a_comparison_does_not_go_on_on_another_machine(folder: Folder) -> None:
    write(folder, killed=8)
    compare(folder)
    path = folder.path / "out" / "against.jsonl"
    header, *lines = path.read_text().splitlines()
    before = json.loads(header)
    before["about"] |= {"processor": "a processor", "GPU power limit": "500 W"}
    path.write_text("\n".join([sealed(before), *lines, ""]))

    result = compare(folder, "--resume")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(
        ["*is of another comparison: GPU power limit was '500 W' and is None; processor was 'a processor' and is *"]
    )


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--resume",), "--resume goes on with what --results keeps; add --results DIR, the folder of that run"),
        (("--resume", "--results=out", "--record"), "--record with --resume: only what one session measured *"),
    ],
    ids=["nothing kept", "recording"],
)
def test_what_cannot_go_on_is_a_usage_error(folder: Folder, options: tuple[str, ...], problem: str) -> None:
    write(folder)

    result = folder.run(*OPTIONS, *options)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines([f"ERROR: {problem}"])


def test_a_build_that_became_another_meanwhile_is_an_error(folder: Folder) -> None:
    write(folder, killed=ENGINES + 1)
    compare(folder)

    write(folder, setting=16)
    result = compare(folder, "--resume", "-rs")

    result.stdout.fnmatch_lines(
        ["*a fresh restart failed: *this restart is not of what its first ones were: batch is 16 and was 8*"]
    )
    assert "regression" not in {outcome for outcome, _ in judged(folder).values()}


def test_a_session_that_told_all_it_found_is_not_resumed_for_a_build_that_nobody_measured(folder: Folder) -> None:
    write(folder, slower=0.0)
    assert compare(folder, "--gate").ret == 0

    write(folder, slower=0.3)
    result = compare(folder, "--gate", "--resume")

    assert result.ret == 1
    assert len(folder.words()) >= ENGINES
    assert "regression" in {outcome for outcome, _ in judged(folder).values()}


# --- llamaperf confirm -----------------------------------------------------------------------------------------------


def confirm(folder: Folder, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")},
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_ADDOPTS": "-p llamaperf -p no:cacheprovider",
        "TMPDIR": str(folder.path / "tmp"),
    }
    command = [Path(sys.executable).parent / "llamaperf", "confirm", *options]
    return subprocess.run(
        command, cwd=folder.path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def earlier(folder: Folder, **outcomes: str) -> None:
    """A run in `out` with these outcomes of tests, by recipe; written as runs are, by a run."""
    folder.run("--results=out", *OPTIONS)
    document = folder.run_json()
    for result in document["results"]:
        result["outcome"] = outcomes.get(result["case"]["recipe"].replace("-", "_"), "pass")
    del document["checksum"]  # as in the first runs
    (folder.path / "out" / "run.json").write_text(json.dumps(document))


def test_the_suspects_of_a_run_are_confirmed_and_nothing_else_is_measured(folder: Folder) -> None:
    write(folder)
    earlier(folder, modelopt_fp8="regression")
    (folder.path / "engines.log").unlink()

    found = confirm(folder, "out", "--against", "old.yaml", "--rounds", "1")

    assert found.returncode == 1, found.stdout + found.stderr
    assert {word.split()[1] for word in folder.words()} == {"modelopt-fp8"}
    assert {outcome for outcome, _ in judged(folder, "out/confirmed").values()} == {"regression"}


def test_a_suspect_that_lost_nothing_is_cleared(folder: Folder) -> None:
    write(folder, slower=0.0)
    earlier(folder, modelopt_fp8="inconclusive")

    assert confirm(folder, "out/run.json", "--against", "old.yaml", "--rounds=1").returncode == 0
    assert confirm(folder, "out", "--against", "old.yaml", "--rounds=1", "--results", "again").returncode == 0
    assert judged(folder, "again") == judged(folder, "out/confirmed")


def test_a_run_without_suspects_needs_no_confirmation(folder: Folder) -> None:
    write(folder)
    earlier(folder)

    found = confirm(folder, "out", "--against", "old.yaml")

    assert (found.returncode, found.stdout) == (
        0, "nothing to confirm: out has no regression, and nothing it could not tell\n"
    )  # fmt: skip


def test_of_a_run_that_is_not_whole_it_cannot_be_told_that_nothing_got_slower(folder: Folder) -> None:
    write(folder)
    earlier(folder)
    document = folder.run_json()
    document["not_run"] = ["test_suite.py::test_more"]
    (folder.path / "out" / "run.json").write_text(json.dumps(document))

    found = confirm(folder, "out", "--against", "old.yaml")

    assert (found.returncode, found.stdout) == (
        3, "nothing to confirm in what out has, and it is not whole: 1 test never ran\n"
    )  # fmt: skip


def test_what_nobody_watched_is_in_doubt(folder: Folder) -> None:
    write(folder, slower=0.0)
    earlier(folder)
    document = folder.run_json()
    blind = next(result for result in document["results"] if result["case"]["recipe"] == "modelopt-fp8")
    blind["health"] = {"blind": "Driver Not Loaded"}
    (folder.path / "out" / "run.json").write_text(json.dumps(document))
    (folder.path / "engines.log").unlink()

    found = confirm(folder, "out", "--against", "old.yaml", "--rounds=1")

    assert found.returncode == 0, found.stdout + found.stderr
    assert {word.split()[1] for word in folder.words()} == {"modelopt-fp8"}


def test_what_cannot_be_told_has_a_status_of_its_own(folder: Folder) -> None:
    write(folder, setting=16)  # which is an error of every case
    earlier(folder, modelopt_fp8="regression")

    assert confirm(folder, "out", "--against", "old.yaml", "--rounds=1").returncode == 3


@pytest.mark.parametrize(
    ("made", "options", "problem"),
    [
        (None, ("nowhere",), "nowhere: cannot be read: No such file or directory; name a folder that --results wrote"),
        ({}, ("run.json",), "run.json: has schema None, this version reads 1; it is no run"),
        ({"schema": 2}, ("run.json",), "run.json: has schema 2, this version reads 1; a newer version of"),
        ({"schema": 1}, ("run.json",), "run.json: is no run as this version writes it: KeyError: 'results'"),
        ("{", ("run.json",), "run.json: is no JSON (line 1: "),
        ("[]", ("run.json",), "run.json: is no run"),
    ],
    ids=["nothing there", "no run", "newer", "empty", "cut off", "a list"],
)
def test_a_run_that_cannot_be_read_is_told(folder: Folder, made: Any, options: tuple[str, ...], problem: str) -> None:
    if made is not None:
        (folder.path / "run.json").write_text(made if isinstance(made, str) else json.dumps(made))

    found = confirm(folder, *options, "--against", "old.yaml")

    assert found.returncode == 2
    assert problem in found.stderr
    assert "Traceback" not in found.stderr
