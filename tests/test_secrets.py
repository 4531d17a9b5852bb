"""A credential in the environment is in nothing that a session leaves, with an engine that really was given it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from engine_sessions import Folder

from pytest_llamaperf.commands import main
from pytest_llamaperf.environment import WITHHELD

PLANTED = "Qz7PlantedSecretOfThisTest"
ENVIRONMENT = {
    "HF_TOKEN": f"hf_{PLANTED}",
    "NGC_API_KEY": PLANTED,
    "TLLM_SPAWN_PROXY_PROCESS_IPC_HMAC_KEY": PLANTED,  # of trtllm-llmapi-launch
    "TRTLLM_SERVER_TOKEN": PLANTED,
    "NCCL_NET_PLUGIN": f"https://me:{PLANTED}@registry.example/plugin",
    "LLAMAPERF_IMAGE": f"https://me:{PLANTED}@registry.example/image",
    "NCCL_ALGO": "Ring",
}
SUITE = """
import pytest
from pytest_llamaperf import OUTPUT_THROUGHPUT

CASES = dict(model="smollm2-135m@random@layers=1", recipe="bf16", hardware="cpu", engine="torch", workload="max-throughput-16-8")

@pytest.mark.cases(**CASES, layout="tp1")
def test_speed(case, measure, baseline):
    measured = measure(case)
    baseline.check(measured, OUTPUT_THROUGHPUT)

@pytest.mark.cases(**CASES, layout="tp1")
def test_that_fails(case, measure):
    raise ValueError(measure(case))

@pytest.mark.cases(**{**CASES, "workload": "rate-1-16-8"}, layout="tp1")
def test_error(case, measure):
    measure(case)
"""


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LLAMAPERF_HISTORY", str(tmp_path / "history.sqlite"))
    return Folder(tmp_path)


def test_a_session_leaves_no_secret_in_its_files_or_its_output(folder: Folder) -> None:
    folder.write(test_suite=SUITE)

    result = folder.run(
        "--gpu=cpu", "--restarts=1", "--rounds=1", "--results=out", "--junitxml=out/junit.xml", "-o", "junit_family=xunit1",
        "-ra", "--tb=long", "--showlocals", "-vv", "--gate",
    )  # fmt: skip
    out = str(folder.path / "out")
    for command in (["report", out], ["history", "import", out], ["summary", out], ["doctor"]):
        assert PLANTED not in CliRunner().invoke(main, command).output

    files = everything(folder.path)
    assert {"out/run.json", "out/run.jsonl", "out/junit.xml", "history.sqlite"} <= files.keys()
    assert any(name.endswith(".html") for name in files)
    assert any(name.startswith("out/engines/") for name in files)
    assert [name for name, content in files.items() if PLANTED.encode() in content] == []
    assert PLANTED not in result.stdout.str()
    speed = next(each for each in folder.run_json()["results"] if each["metric"] == "output_throughput")
    settings = speed["fingerprint"]["settings"]
    kept = {name: value for name, value in settings.items() if name.startswith(("env NCCL", "env T"))}
    assert kept == {"env NCCL_ALGO": "Ring", "env NCCL_NET_PLUGIN": WITHHELD}
