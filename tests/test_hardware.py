"""Which GPUs are here, with a driver that answers as recorded."""

from __future__ import annotations

from dataclasses import replace

import pynvml
import pytest
from nvml_driver import H100, H100_PCIE, H200, Driver

from pytest_llamaperf.boards import Board
from pytest_llamaperf.hardware import FoundGpu, find_machine


def test_eight_h200_are_found_by_their_catalog_name(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, *[H200] * 8)

    machine = find_machine()

    assert replace(machine.gpus[7], board=Board()) == FoundGpu("h200", "NVIDIA H200", 150_754_820_096, "GPU-7")
    assert (machine.hardware, machine.count("h200"), machine.count("h100")) == ("h200", 8, 0)
    assert (machine.driver, machine.problem) == ("570.133.20", None)
    assert str(machine) == "8 x NVIDIA H200"
    assert driver.open == 0


def test_an_h100_sxm_is_found_by_its_catalog_name(monkeypatch: pytest.MonkeyPatch) -> None:
    Driver(monkeypatch, H100)

    assert find_machine().hardware == "h100"


def test_an_h100_pcie_is_another_gpu_than_the_h100_of_the_catalog(monkeypatch: pytest.MonkeyPatch) -> None:
    Driver(monkeypatch, H100_PCIE)

    machine = find_machine()

    assert machine.gpus[0].name is None
    assert (machine.hardware, machine.count("h100")) == ("cpu", 0)
    assert str(machine) == "1 x NVIDIA H100 PCIe"


@pytest.mark.parametrize("product", ["NVIDIA H200 NVL", "H200", "nvidia h200", "NVIDIA H20"])
def test_a_name_that_only_resembles_a_known_one_is_not_it(monkeypatch: pytest.MonkeyPatch, product: str) -> None:
    Driver(monkeypatch, (product, 1))

    assert find_machine().hardware == "cpu"


def test_a_mixed_machine_is_about_its_most_numerous_known_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    Driver(monkeypatch, H100, H200, H200, H100_PCIE, H100_PCIE, H100_PCIE)

    machine = find_machine()

    assert (machine.hardware, machine.count("h200"), machine.count("h100")) == ("h200", 2, 1)
    assert str(machine) == "1 x NVIDIA H100 80GB HBM3, 2 x NVIDIA H200, 3 x NVIDIA H100 PCIe"


def test_a_driver_without_gpus_is_a_cpu_machine_without_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    Driver(monkeypatch)

    machine = find_machine()

    assert (machine.gpus, machine.hardware, machine.problem) == ((), "cpu", None)
    assert str(machine) == "no NVIDIA GPU"


def test_a_machine_without_driver_is_a_cpu_machine_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)

    machine = find_machine()

    assert (machine.gpus, machine.driver, machine.hardware) == ((), None, "cpu")
    assert str(machine) == "no NVIDIA GPU (NVML Shared Library Not Found)"
    assert machine.processor


def test_a_lost_gpu_is_told_and_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, H200, H200, H200)
    name = pynvml.nvmlDeviceGetName

    def lost(handle: int) -> str:
        if handle == 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return str(name(handle))

    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lost)

    machine = find_machine()

    assert machine.count("h200") == 2
    assert machine.problem == "GPU 1: GPU is lost"
    assert str(machine) == "2 x NVIDIA H200 (GPU 1: GPU is lost)"
    assert driver.open == 0


@pytest.mark.parametrize(
    ("visible", "count"),
    [("0", 1), ("0,2", 2), ("GPU-", 3), ("", 0), ("7", 0), (" 1 , 2 ", 2)],
)
def test_only_gpus_the_scheduler_lends_are_counted(monkeypatch: pytest.MonkeyPatch, visible: str, count: int) -> None:
    Driver(monkeypatch, H200, H200, H200)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    assert find_machine().count("h200") == count
