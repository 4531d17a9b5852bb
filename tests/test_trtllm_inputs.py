"""The files an engine reads: prompts and options, the same bytes wherever they are written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_llamaperf.cases import Workload
from pytest_llamaperf.engines.trtllm import inputs
from pytest_llamaperf.engines.trtllm.inputs import dataset, dataset_path, options_file, options_path
from pytest_llamaperf.errors import EngineError
from pytest_llamaperf.files import write_atomically
from pytest_llamaperf.lengths import request_lengths

SMALL = Workload("max-throughput", 12, 5, requests=7)
DIFFERENT = Workload("max-throughput", 289, 291, requests=7, lengths="openorca")
VOCABULARY = 300
OPTIONS = {"cuda_graph_config": {"batch_sizes": [1, 2, 64], "enable_padding": True}, "stream_interval": 50}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAMAPERF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def requests_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


@pytest.mark.parametrize("workload", [SMALL, DIFFERENT], ids=str)
def test_a_request_is_a_line_with_its_number_its_tokens_and_how_many_to_answer(workload: Workload) -> None:
    found = requests_in(dataset(workload, VOCABULARY).path)

    assert [list(request) for request in found] == [["task_id", "input_ids", "output_tokens"]] * 7
    assert [request["task_id"] for request in found] == list(range(7))


@pytest.mark.parametrize("workload", [SMALL, DIFFERENT], ids=str)
def test_requests_are_as_long_as_those_of_every_engine(workload: Workload) -> None:
    found = requests_in(dataset(workload, VOCABULARY).path)

    assert [(len(request["input_ids"]), request["output_tokens"]) for request in found] == request_lengths(workload)


@pytest.mark.parametrize("vocabulary", [1, 2, VOCABULARY, 128256])
def test_every_token_is_a_whole_number_of_the_vocabulary(vocabulary: int) -> None:
    tokens = [token for request in requests_in(dataset(DIFFERENT, vocabulary).path) for token in request["input_ids"]]

    assert all(type(token) is int for token in tokens)
    assert 0 <= min(tokens) <= max(tokens) < vocabulary


def test_tokens_come_from_the_whole_vocabulary() -> None:
    tokens = {token for request in requests_in(dataset(DIFFERENT, 100).path) for token in request["input_ids"]}

    assert tokens == set(range(100))


def test_no_two_prompts_are_the_same() -> None:
    found = requests_in(dataset(SMALL, VOCABULARY).path)

    assert len({tuple(request["input_ids"]) for request in found}) == 7


def test_the_same_bytes_are_written_on_every_machine() -> None:
    """Another digest is another dataset: then DRAWN_BY has to be another number, or results are compared that may not be."""
    written = dataset(SMALL, VOCABULARY)

    assert written.digest == "1a4da188a06f87b3d4beb6d5b1140081d3aa86c1bb5c8b1d06815765e9105578"
    assert inputs.DRAWN_BY == 1


def test_the_digest_is_that_of_the_file() -> None:
    written = dataset(DIFFERENT, VOCABULARY)

    assert written.digest == hashlib.sha256(written.path.read_bytes()).hexdigest()


def test_the_file_is_named_by_what_decides_its_content(cache: Path) -> None:
    assert dataset(SMALL, VOCABULARY).path == cache / "datasets" / "drawn1-12-5-7-of-300.jsonl"
    assert dataset(DIFFERENT, VOCABULARY).path == cache / "datasets" / "drawn1-openorca-7-of-300.jsonl"


def test_how_requests_arrive_is_no_part_of_the_dataset() -> None:
    together, apart = (Workload(scenario, 12, 5, requests=7) for scenario in ("max-throughput", "rate-2"))

    assert dataset_path(together, VOCABULARY) == dataset_path(apart, VOCABULARY)


@pytest.mark.parametrize(
    ("workload", "vocabulary"),
    [(Workload("max-throughput", 13, 5, 7), 300), (Workload("max-throughput", 12, 5, 8), 300), (SMALL, 301)],
    ids=["longer", "more", "of another vocabulary"],
)
def test_other_requests_are_in_another_file(workload: Workload, vocabulary: int) -> None:
    assert dataset_path(workload, vocabulary) != dataset_path(SMALL, VOCABULARY)


def test_a_dataset_is_where_it_was_said_to_be() -> None:
    path = dataset_path(SMALL, VOCABULARY)

    assert not path.exists()
    assert dataset(SMALL, VOCABULARY).path == path
    assert path.is_file()


@pytest.fixture
def written_once(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are written from now on."""
    names: list[str] = []

    def count(path: Path, text: str) -> None:
        names.append(path.name)
        write_atomically(path, text)

    monkeypatch.setattr(inputs, "write_atomically", count)
    return names


def test_a_dataset_is_written_once_and_kept(written_once: list[str]) -> None:
    first = dataset(SMALL, VOCABULARY)
    second = dataset(SMALL, VOCABULARY)

    assert first == second
    assert written_once == ["drawn1-12-5-7-of-300.jsonl", "drawn1-12-5-7-of-300.sha256"]


@pytest.mark.parametrize("lost", [".jsonl", ".sha256"])
def test_a_dataset_of_which_a_part_is_missing_is_written_anew(lost: str) -> None:
    first = dataset(SMALL, VOCABULARY)
    content = first.path.read_bytes()
    first.path.with_suffix(lost).unlink()
    if lost == ".sha256":  # so it was never finished, and may hold anything
        first.path.write_text("half a li")

    assert dataset(SMALL, VOCABULARY) == first
    assert first.path.read_bytes() == content


def test_nothing_but_the_two_files_is_left(cache: Path) -> None:
    dataset(SMALL, VOCABULARY)

    assert sorted(path.name for path in cache.rglob("*") if path.is_file()) == [
        "drawn1-12-5-7-of-300.jsonl",
        "drawn1-12-5-7-of-300.sha256",
    ]


def test_a_folder_that_cannot_be_written_is_an_error_of_the_engine_that_names_the_file(cache: Path) -> None:
    cache.write_text("no folder")

    with pytest.raises(EngineError, match=rf"{cache}/datasets/drawn1-12-5-7-of-300\.jsonl: cannot be written: "):
        dataset(SMALL, VOCABULARY)
    with pytest.raises(EngineError, match=rf"{cache}/options/[0-9a-f]{{16}}\.yaml: cannot be written: "):
        options_file(OPTIONS)


def test_options_are_yaml_in_a_file_that_is_named_by_its_content(cache: Path) -> None:
    path = options_file(OPTIONS)

    assert yaml.safe_load(path.read_text()) == OPTIONS
    assert path == options_path(OPTIONS)
    assert path == cache / "options" / f"{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}.yaml"


def test_other_options_are_in_another_file() -> None:
    assert options_path(OPTIONS) != options_path({**OPTIONS, "stream_interval": 1})


def test_options_are_written_once_and_kept(written_once: list[str]) -> None:
    assert options_file(OPTIONS) == options_file(OPTIONS)
    assert len(written_once) == 1
