"""The same inputs make the same files whatever language, encoding and time zone a machine is set to; times are UTC."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from engine_sessions import Folder, fake_engine
from test_disk_faults import BASELINE, finished

from pytest_llamaperf.runs import read_run

pytestmark = pytest.mark.faults

# Turned off: what Python does by itself where a locale is no UTF-8.
PLAIN = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
MACHINES = {
    "C, Auckland": {"LC_ALL": "C", "TZ": "Pacific/Auckland", **PLAIN},
    "POSIX, New York": {"LC_ALL": "POSIX", "LANG": "", "TZ": "America/New_York", **PLAIN},
    "German": {"LC_ALL": "de_DE.UTF-8", "LANGUAGE": "de", "TZ": "XXX-05:30YYY,M3.2.0,M11.1.0"},
    "Latin-1": {"LC_ALL": "C", "PYTHONIOENCODING": "latin-1:strict", "TZ": "Nowhere/Nothing", **PLAIN},
}
# Everything that is made of runs, in one process; an encoding that is left to the locale is an error.
PROGRAM = r"""
import shutil, sys, warnings
warnings.filterwarnings("error", category=EncodingWarning, module="pytest_llamaperf")
from pytest_llamaperf.commands import main

def llamaperf(*arguments):
    try:
        main(arguments)
    except SystemExit as end:
        print("exit", end.code)

shutil.copytree("baselines", "made/baselines")
llamaperf("summary", "run", "--markdown", "made/job.md", "--bencher", "made/bencher.json")
llamaperf("compare", "run", "other", "--json", "made/compare.json", "--markdown", "made/compare.md")
llamaperf("history", "import", "run", "--db", "made/history.sqlite")
llamaperf("report", "run", "-o", "made/report.html", "--db", "made/history.sqlite")
llamaperf("accept", "run", "--reason", "schneller, weil gr\u00f6\u00dfer \u2026", "--baselines", "made/baselines")
llamaperf("compare", "0.17", "0.20.0", "--case", "405b")
llamaperf("gate", "run")
"""


def made(folder: Path, machine: dict[str, str]) -> tuple[dict[str, bytes], str]:
    """Files by name, and what was printed."""
    (folder / "made").mkdir(parents=True)
    (folder / "baselines" / "h200").mkdir(parents=True)
    (folder / "baselines" / "h200" / "llama-3.1-8b.yaml").write_text(BASELINE)
    for name in ("run", "other"):
        finished(folder, name)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "TZ", "PYTEST_"))}
    environment = {**kept, "COLUMNS": "100", "LANG": "C.UTF-8", "PYTHONPATH": os.pathsep.join(sys.path), **machine}
    done = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", "-c", PROGRAM], cwd=folder, env=environment, check=False,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    output = done.stdout.decode("ascii", "backslashreplace")
    assert done.returncode == 0, output
    assert "Traceback" not in output
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted((folder / "made").rglob("*"))
        if path.is_file()
    }
    return {name: content for name, content in files.items() if "sqlite" not in name}, output


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    files, output = made(tmp_path_factory.mktemp("usual") / "project", {"TZ": "UTC"})
    assert len(files) == 6, output
    return files


@pytest.mark.parametrize("machine", MACHINES)
def test_files_are_the_same_to_the_byte_on_every_machine(tmp_path: Path, usual: dict[str, bytes], machine: str) -> None:
    files, output = made(tmp_path / "project", MACHINES[machine])

    assert files == usual
    assert "gr\u00f6\u00dfer \u2026" in files["made/baselines/h200/llama-3.1-8b.yaml"].decode()
    assert output.count("exit ") == 7


SUITE = """
import os, time
import pytest
from pytest_llamaperf import OUTPUT_THROUGHPUT

@pytest.mark.cases(
    model="smollm2-135m", recipe="bf16", layout="tp1", workload="max-throughput-16-8", hardware="cpu"
)
def test_speed(case, measure, baseline):
    baseline.check(measure(case), OUTPUT_THROUGHPUT)

def test_the_clocks_are_changed():
    os.environ["TZ"] = "Pacific/Auckland"
    time.tzset()
"""


def test_times_of_a_run_are_utc_though_the_zone_changes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(tmp_path)
    folder.write(conftest=fake_engine(every=[100.0, 100.1]), test_suite=SUITE)
    monkeypatch.setenv("TZ", "America/New_York")
    before = datetime.now(UTC) - timedelta(seconds=1)

    folder.run("--gpu=cpu", "--restarts=2", "--record", "--results=out", "-q")

    header = read_run(tmp_path / "out").header
    started, ended = (datetime.fromisoformat(str(told)) for told in (header.started, header.finished))
    assert before <= started <= ended <= datetime.now(UTC)
    assert all(
        re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", str(told)) for told in (header.started, header.finished)
    )
    (recorded,) = (tmp_path / "baselines" / "local").iterdir()
    assert f'date: "{started.date()}"' in recorded.read_text()


# A waiver's last day, UTC, on machines where another day has begun or has not ended yet.
@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Pacific/Pago_Pago"])
def test_a_waiver_counts_to_the_end_of_its_day_in_utc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    folder = Folder(tmp_path)
    folder.write(conftest=fake_engine(every=[90.0, 90.1]), test_suite=SUITE)
    case = "torch/smollm2-135m/bf16/tp1/max-throughput-16-8"
    (tmp_path / "baselines" / "cpu").mkdir(parents=True)
    (tmp_path / "baselines" / "cpu" / "smollm2-135m.yaml").write_text(
        f"schema: 1\npromises:\n  {case}:\n    output_throughput: {{value: 100, unit: tok/s, tolerance: 0.05, "
        'source: measured, recorded: {date: "2026-11-01", version: "2.13", restarts: 3, commit: "abc1234"}}\n'
    )
    today = datetime.now(UTC).date()
    monkeypatch.setenv("TZ", zone)
    decided: list[Any] = []
    for last in (today + timedelta(days=1), today - timedelta(days=1)):  # a test may run at midnight
        (tmp_path / "waivers.yaml").write_text(
            f"schema: 1\nwaivers:\n  cpu/{case}:\n    output_throughput: {{outcome: regression, loss: 0.15, reason: known, "
            f'owner: us, expires: "{last}", newest_version: "2.13.0"}}\n'
        )
        folder.run("--gpu=cpu", "--restarts=2", "--gate", "--results=out", "-q")
        decided.append(json.loads((tmp_path / "out" / "run.json").read_text())["decision"]["releasable"])

    assert decided == [True, False]
