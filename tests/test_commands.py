"""The command `llamaperf` as typed: what it prints, what it writes, and its exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from nvml_driver import H200, Driver

from pytest_llamaperf.commands import main
from pytest_llamaperf.hardware import FoundGpu, Machine


@pytest.fixture
def llamaperf(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, arguments, prog_name="llamaperf")

    return run


def test_one_case_shows_metrics_limits_memory_shares_and_where_they_come_from(llamaperf: Any) -> None:
    result = llamaperf("predict", "llama-3.1-8b", "--layout", "tp1", "--workload", "min-latency")

    assert result.exit_code == 0
    for expected in (
        "h200/tensorrt-llm/llama-3.1-8b/modelopt-fp8/tp1/min-latency-2048-128, predicted",
        "output_throughput",
        "physical limit",
        "GiB weights",
        "KV cache",
        "GEMM",
        "aiconfigurator-core 0.12.0",
    ):
        assert expected in result.stdout


def test_a_sweep_is_a_table_of_every_combination(llamaperf: Any) -> None:
    result = llamaperf(
        "predict", "llama-3.1-8b", "--gpus", "2", "--workload", "min-latency", "--lengths", "128/128,2048/128",
        "--recipe", "bf16", "--recipe", "modelopt-fp8",
    )  # fmt: skip

    assert result.exit_code == 0
    rows = [line.split()[:3] for line in result.stdout.splitlines() if line.startswith(("bf16", "modelopt-fp8"))]
    assert rows == [
        [recipe, layout, shape]
        for recipe in ("bf16", "modelopt-fp8")
        for layout in ("tp2", "pp2")
        for shape in ("128/128", "2048/128")
    ]


def test_a_sweep_keeps_to_eighty_columns(llamaperf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    result = llamaperf("predict", "llama-3.1-8b", "--layout", "tp1,tp2", "--workload", "min-latency")

    assert max(len(line.rstrip()) for line in result.stdout.splitlines()) <= 80


def test_the_narrowest_terminal_keeps_the_names(llamaperf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")

    result = llamaperf("predict", "llama-3.1-8b", "--layout", "tp1,tp2", "--workload", "min-latency")

    rows = [line.split()[:3] for line in result.stdout.splitlines() if line.startswith("modelopt-fp8")]
    assert rows == [["modelopt-fp8", "tp1", "2048/128"], ["modelopt-fp8", "tp2", "2048/128"]]


def test_json_holds_everything_in_base_units(llamaperf: Any, tmp_path: Path) -> None:
    path = tmp_path / "predictions.json"

    result = llamaperf("predict", "llama-3.1-8b", "--layout", "tp1", "--workload", "min-latency", "--json", str(path))

    assert result.exit_code == 0
    (found,) = json.loads(path.read_text())["predictions"]
    assert found["source"] == "predicted"
    assert found["case"]["id"] == "h200/tensorrt-llm/llama-3.1-8b/modelopt-fp8/tp1/min-latency-2048-128"
    assert found["metrics"]["output_throughput"]["unit"] == "tok/s"
    assert 0 < found["metrics"]["tpot_median"]["value"] < 0.1
    for phase in ("decode", "prompt"):
        assert sum(found["operator_shares"][phase].values()) == pytest.approx(1)
    assert found["physical_limit"]["output_throughput"] > found["metrics"]["output_throughput"]["value"]
    assert found["memory"]["weights"] == pytest.approx(8e9, rel=0.15)
    assert found["fingerprint"]["versions"]["aiconfigurator-core"] == "0.12.0"


def test_json_to_standard_output_is_nothing_but_json(llamaperf: Any) -> None:
    result = llamaperf("predict", "llama-3.1-8b", "--layout", "tp1", "--workload", "min-latency", "--json", "-")

    assert len(json.loads(result.stdout)["predictions"]) == 1


def test_a_case_that_does_not_fit_says_so_beside_those_that_do(llamaperf: Any) -> None:
    result = llamaperf(
        "predict", "llama-3.1-405b", "--gpu", "h100,h200", "--recipe", "bf16", "--workload", "min-latency"
    )

    assert result.exit_code == 0
    assert "h100/tensorrt-llm/llama-3.1-405b/bf16/tp8/min-latency-2048-128\n  cannot be: " in result.stdout
    assert "llama-3.1-405b on h200 | min-latency, predicted" in result.stdout or "h200/" in result.stdout


def test_a_combination_that_is_no_case_does_not_end_a_sweep(llamaperf: Any) -> None:
    result = llamaperf("predict", "llama-2-70b,llama-3.3-70b", "--lengths", "8192/16", "--workload", "min-latency")

    assert result.exit_code == 0
    assert (
        "llama-3.3-70b on h200 | min-latency, predicted" in result.stdout
        or "h200/tensorrt-llm/llama-3.3" in result.stdout
    )
    assert "cannot be: llama-2-70b reads at most 4,096 tokens" in result.stdout


def test_nothing_that_fits_is_exit_two(llamaperf: Any) -> None:
    result = llamaperf("predict", "llama-3.1-405b", "--gpu", "h100", "--recipe", "bf16")

    assert result.exit_code == 2
    assert "94.5 GiB of weights" in result.stdout.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lama-3.1-8b"], "unknown model 'lama-3.1-8b'; did you mean 'llama-3.1-8b'?"),
        (["llama-3.1-8b", "--gpu", "h20"], "unknown GPU 'h20'; did you mean 'h200'?"),
        (["llama-3.1-8b", "--recipe", "modelopt-fp4"], "did you mean 'modelopt-fp8'?"),
        (["llama-3.1-8b", "--layout", "tp3"], "which tp3 does not divide; these do: tp1, tp2, tp4, tp8"),
        (["llama-3.1-8b", "--layout", "8"], "unknown layout '8'; write tp8"),
        (["llama-3.1-8b", "--lengths", "2048"], "lengths are written ISL/OSL in tokens, as in 2048/128, not '2048'"),
        (["llama-3.1-8b", "--lengths", "0/128"], "lengths are written ISL/OSL"),
        (["llama-3.1-8b", "--lengths", "131072/1"], "llama-3.1-8b reads at most 131,072 tokens"),
        (["llama-3.1-8b", "--workload", "fastest"], "unknown workload 'fastest-2048-128'"),
        (["llama-3.1-8b", "--gpus", "2", "--layout", "tp2"], "leave out --layout"),
        (["smollm2-135m", "--gpus", "64"], "cannot be laid out over 64 GPUs"),
        (["llama-3.1-8b", "--workload", "min-latency", "--json", "/dev/null/x.json"], "cannot be written"),
    ],
)
def test_wrong_names_are_exit_two_with_the_way_out(llamaperf: Any, arguments: list[str], message: str) -> None:
    result = llamaperf("predict", *arguments)

    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_without_the_predict_extra_the_message_names_it(llamaperf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytest_llamaperf.predicting import operators

    operators.operator_times.cache_clear()
    monkeypatch.setitem(sys.modules, "aiconfigurator_core.sdk", None)

    result = llamaperf("predict", "llama-3.1-8b", "--layout", "tp1")

    assert result.exit_code == 2
    assert "pip install 'pytest-llamaperf[predict]'" in result.output


def test_doctor_tells_packages_hardware_and_engines(llamaperf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = (FoundGpu("h200", "NVIDIA H200", 150, "GPU-1"), FoundGpu(None, "NVIDIA H100 PCIe", 80, "GPU-2"))
    monkeypatch.setattr("pytest_llamaperf.hardware.find_machine", lambda: Machine(gpus, "580.1", "a processor"))

    result = llamaperf("doctor")

    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "aiconfigurator-core 0.12.0 predictions: NVIDIA's operator times" in lines
    assert "GPUs 1 x NVIDIA H200, 1 x NVIDIA H100 PCIe" in lines
    assert "NVIDIA H100 PCIe is not in the catalog: no case is about it" in lines
    assert "--gpu auto h200" in lines
    assert "predicted ready" in lines


def test_doctor_shows_the_fingerprint_of_the_machine(llamaperf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, H200, H200)
    driver.answers["nvmlDeviceGetEnforcedPowerLimit"][1] = 500_000
    driver.answers["fabric"] = {0: None, 1: None}
    monkeypatch.setenv("NCCL_ALGO", "Ring [bold]")
    monkeypatch.setenv("NCCL_TOKEN", "planted")
    monkeypatch.setenv("HF_TOKEN", "planted")

    result = llamaperf("doctor")

    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    for expected in (
        "GPU boards GPU-0, GPU-1 must match",
        "GPU power limit 1 x 500 W, 1 x 700 W must match",
        "GPU memory clock asked 3201 MHz must match",
        "GPU fabric not told must match",
        "GPU connections 1 x NVLink must match",
        "CUDA of the driver 12.8 may differ, told",
        "env NCCL_ALGO Ring [bold] must match",
    ):
        assert expected in lines
    assert "planted" not in result.stdout


def test_doctor_says_why_there_is_no_gpu(llamaperf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine((), None, "a processor", "NVML Shared Library Not Found")
    monkeypatch.setattr("pytest_llamaperf.hardware.find_machine", lambda: machine)

    found = llamaperf("doctor").stdout

    assert "no NVIDIA GPU (NVML Shared Library Not Found)" in found
    assert "GPU power limit" not in found


@pytest.mark.parametrize(
    ("arguments", "incomplete", "expected"),
    [
        (["predict"], "llama-3.1", ["llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b"]),
        (["predict", "--recipe"], "bf16,modelopt-f", ["bf16,modelopt-fp8", "bf16,modelopt-fp8-bf16kv"]),
        (["predict", "--gpu"], "h2", ["h200"]),
    ],
)
def test_names_are_completed_by_the_shell(arguments: list[str], incomplete: str, expected: list[str]) -> None:
    completion = ShellComplete(main, {}, "llamaperf", "_LLAMAPERF_COMPLETE")

    found = [item.value for item in completion.get_completions(arguments, incomplete)]

    assert found == expected


def test_help_teaches_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from pytest_llamaperf.commands import main\n"
        "print(CliRunner().invoke(main, ['predict', '--help']).stdout)\n"
        "print('IMPORTED', sorted({'rich', 'scipy', 'aiconfigurator_core', 'pandas'} & set(sys.modules)))"
    )

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)

    assert "llamaperf predict llama-3.1-405b --gpus 8 --lengths 2048/128,20000/2000" in ran.stdout
    assert "IMPORTED []" in ran.stdout


def test_every_subcommand_has_help() -> None:
    for command in main.commands.values():
        assert isinstance(command, click.Command)
        assert command.get_short_help_str(limit=200).endswith(".")
