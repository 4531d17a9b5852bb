"""How GPUs are built, set and connected, with a driver that answers as recorded, or has no answer."""

from __future__ import annotations

import json

import pynvml
import pytest
from nvml_driver import H100_PCIE, H200, SXM, Driver

from pytest_llamaperf.boards import Board
from pytest_llamaperf.hardware import find_machine


def test_an_sxm_board_tells_how_it_is_built_and_set(monkeypatch: pytest.MonkeyPatch) -> None:
    Driver(monkeypatch, H200)

    machine = find_machine()

    assert machine.cuda == "12.8"
    assert machine.gpus[0].board == Board(
        part_number="692-2G520-0200-000",
        brand="NVIDIA",
        power_limit=700.0,
        power_limit_default=700.0,
        clock_asked=1_980_000_000,
        memory_clock_asked=3_201_000_000,
        clock_most=1_980_000_000,
        memory_clock_most=3_201_000_000,
        ecc=True,
        mig=False,
        persistence=True,
        nvlinks=18,
        nvlink_ends="switches",
        fabric="completed",
    )


def test_what_a_board_does_not_support_is_none_and_nothing_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SXM:
        driver = Driver(monkeypatch, H200)
        whole = find_machine().gpus[0].board
        driver.answers[name][0] = None

        board = find_machine().gpus[0].board

        missing = {field for field, value in vars(board).items() if value != vars(whole)[field]}
        assert all(getattr(board, field) is None for field in missing)
        also = {"links": {"nvlinks", "nvlink_ends"}, "p2p": set(), "ancestor": set()}  # of pairs, or of each other
        assert len(missing) == len(also.get(name, {"one"})), name


def test_a_board_that_supports_nothing_is_found_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, H100_PCIE, H100_PCIE)
    driver.answers = {name: {0: None, 1: None} for name in SXM}

    machine = find_machine()

    assert [gpu.board for gpu in machine.gpus] == [Board(), Board()]
    assert (machine.topology, machine.problem) == ({}, None)
    assert driver.open == 0


def test_a_driver_too_old_for_a_question_has_no_answer_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    Driver(monkeypatch, H200)

    def unknown(*_: object) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetGpuFabricInfo", unknown)
    monkeypatch.setattr(pynvml, "nvmlSystemGetCudaDriverVersion_v2", unknown)

    machine = find_machine()

    assert (machine.cuda, machine.gpus[0].board.fabric, machine.gpus[0].board.nvlinks) == (None, None, 18)


def test_a_gpu_that_is_lost_while_it_is_asked_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, H200, H200)
    ecc = pynvml.nvmlDeviceGetEccMode

    def lost(handle: int) -> object:
        if handle == 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return ecc(handle)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetEccMode", lost)

    machine = find_machine()

    assert ([gpu.uuid for gpu in machine.gpus], machine.problem) == (["GPU-0"], "GPU 1: GPU is lost")
    assert driver.open == 0


def test_links_that_are_down_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, H200)
    driver.answers["links"][0] = 12

    assert find_machine().gpus[0].board.nvlinks == 12


def test_what_a_link_that_is_down_leads_to_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, H200)
    driver.answers["links"][0] = 12
    ends = (pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH, pynvml.NVML_NVLINK_DEVICE_TYPE_GPU)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetNvLinkRemoteDeviceType", lambda handle, link: ends[link >= 12])

    assert find_machine().gpus[0].board.nvlink_ends == "switches"


def test_a_mode_is_that_of_now_and_not_of_the_next_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, H200)
    driver.answers["nvmlDeviceGetEccMode"][0] = [1, 0]

    assert find_machine().gpus[0].board.ecc is True


def test_each_two_gpus_say_how_they_are_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, H100_PCIE, H100_PCIE, H100_PCIE)
    driver.answers["p2p"] = {0: pynvml.NVML_P2P_STATUS_OK, 1: pynvml.NVML_P2P_STATUS_NOT_SUPPORTED}
    driver.answers["ancestor"][1] = pynvml.NVML_TOPOLOGY_SYSTEM

    assert find_machine().topology == {"0-1": "NVLink", "0-2": "NVLink", "1-2": "between NUMA nodes"}


def test_only_gpus_the_scheduler_lends_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    Driver(monkeypatch, *[H200] * 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")

    machine = find_machine()

    assert ([gpu.uuid for gpu in machine.gpus], machine.topology) == (["GPU-1", "GPU-3"], {"1-3": "NVLink"})


def test_a_machine_is_plain_values(monkeypatch: pytest.MonkeyPatch) -> None:
    Driver(monkeypatch, H200, H200)
    told = find_machine().to_dict()

    assert json.loads(json.dumps(told, allow_nan=False)) == {**told, "gpus": list(told["gpus"])}  # type: ignore[call-overload]
    assert told["format"] == 2
