"""Which variables of an engine's environment are kept, and that none of them is a credential."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llamaperf.environment import NAMES, PREFIXES, WITHHELD, compared, kept, looks_secret, names_secret

TOKEN = "hf_QzPlantedPlantedPlantedPlanted42"


def test_variables_that_decide_speed_are_kept_as_settings() -> None:
    environment = {
        "NCCL_ALGO": "Ring",
        "TRTLLM_ENABLE_PDL": "1",
        "OMP_NUM_THREADS": "8",
        "HOME": "/root",
        "PATH": "/bin",
    }

    assert kept(environment) == {"env NCCL_ALGO": "Ring", "env OMP_NUM_THREADS": "8", "env TRTLLM_ENABLE_PDL": "1"}


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "NGC_API_KEY", "PGPASSWORD", "NCCL_AUTH", "TRTLLM_API_KEY", "UCX_PASSWD",
        "TLLM_SPAWN_PROXY_PROCESS_IPC_HMAC_KEY", "TLLM_SPAWN_PROXY_PROCESS_IPC_ADDR", "nccl_algo", "XNCCL_ALGO",
    ],
)  # fmt: skip
def test_what_is_not_on_the_list_or_named_as_a_credential_is_left_out(name: str) -> None:
    assert kept({name: "anything"}) == {}


@pytest.mark.parametrize(
    "value",
    [
        TOKEN,
        "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
        "https://user:planted@registry.example/v2",
        "https://planted@registry.example",
        "password=planted",
        "api-key: planted",
        "Bearer planted",
        "-----BEGIN PRIVATE KEY-----",
        "AKIAIOSFODNN7EXAMPLE",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln",
        "0123456789abcdef0123456789abcdef0123456789abcdef",
        "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        "mlx5_0,9f86d081884c7d659a2feaa0c55ad015a3bf4f1b",
    ],
)
def test_a_value_that_looks_like_a_credential_is_withheld(value: str) -> None:
    assert kept({"NCCL_ALGO": value}) == {"env NCCL_ALGO": WITHHELD}


@pytest.mark.parametrize(
    "value",
    [
        "Ring,Tree", "^mlx5_3,mlx5_4,mlx5_5:1", "0,1,2,3,4,5,6,7", "expandable_segments:True,max_split_size_mb:128",
        "/opt/nvidia/nccl/topologies/hgx-h200-eight-gpus.xml", "GPU-0f1e2d3c", "=eth0", "4194304", ":4096:8", "",
        "rc_x,self,cuda_copy,cuda_ipc", "granularity=fine,compact,1,0",
    ],
)  # fmt: skip
def test_an_ordinary_value_is_not_taken_for_a_credential(value: str) -> None:
    assert kept({"NCCL_ALGO": value}) == {"env NCCL_ALGO": value}


def test_the_folder_of_a_shell_is_no_credential_and_a_password_is() -> None:
    assert not names_secret("PWD")
    assert not names_secret("OLDPWD")
    assert names_secret("MYSQL_PWD")


def test_a_uuid_of_a_gpu_is_no_credential() -> None:
    uuids = "GPU-8a56a4f5-0f36-21c7-5b3c-2d1a7a3f9b10,GPU-1b56a4f5-0f36-21c7-5b3c-2d1a7a3f9b11"

    assert kept({"CUDA_VISIBLE_DEVICES": uuids}) == {"env CUDA_VISIBLE_DEVICES": uuids}


def test_bytes_that_are_no_text_are_escaped() -> None:
    assert kept({"NCCL_ALGO": b"Ring\xff".decode("utf-8", "surrogateescape")}) == {"env NCCL_ALGO": "Ring\\udcff"}


@given(st.dictionaries(st.text(min_size=1), st.text()), st.sampled_from(sorted(NAMES)))
def test_only_the_list_is_kept_whatever_there_is(environment: dict[str, str], listed: str) -> None:
    for setting, value in kept({**environment, listed: "1"}).items():
        name = setting.removeprefix("env ")
        assert name in NAMES or name.startswith(PREFIXES)
        assert value == WITHHELD or not looks_secret(value)


def test_what_may_not_be_told_can_be_compared() -> None:
    first, same, other = (
        compared({"HF_TOKEN": value, "NCCL_ALGO": "Ring", "NCCL_X": f"https://me:{value}@host"})
        for value in ("planted", "planted", "another")
    )

    assert first == same
    assert first["NCCL_ALGO"] == other["NCCL_ALGO"] == "Ring"
    assert first["HF_TOKEN"] != other["HF_TOKEN"]
    assert first["NCCL_X"] != other["NCCL_X"]
    assert "planted" not in str(first)
