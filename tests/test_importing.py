"""Files of other tools: recognized by content, read as what they say, refused where they are damaged or say too little."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import tracemalloc
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from builders import record, result
from hypothesis import given
from hypothesis import strategies as st
from test_trtllm_report import GOLDEN, changed

from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.gates import Decision
from pytest_llamaperf.importing import observations_in, read_observations
from pytest_llamaperf.importing.published import COLUMNS
from pytest_llamaperf.importing.reading import LeftOut, Told
from pytest_llamaperf.observations import Observation
from pytest_llamaperf.runs import RunHeader, run_document, to_json

ROW = {
    "source": "TensorRT-LLM perf-overview", "source_ref": "perf-overview.md@1", "trtllm_version": "0.20.0",
    "model": "Llama 3.1 405B", "gpu": "H200", "num_gpus": "8", "tp": "8", "pp": "", "precision": "FP8",
    "recipe": "trtllm-bench throughput; PyTorch backend; ModelOpt nvidia/*-FP8 checkpoint", "isl": "128", "osl": "2048",
    "scenario": "max_throughput", "metric": "total_output_throughput", "unit": "tokens/s", "value": "6139.81",
}  # fmt: skip
BENCHMARK = {
    "machine_info": {"node": "h200-8", "processor": "x86_64", "cpu": {"count": 2}},
    "benchmarks": [
        {"name": "test_speed", "extra_info": {"case": "cpu/torch/m/bf16/tp1/min-latency-16-8", "ttft_median": 0.02}},
        {"name": "test_other", "extra_info": {}},
    ],
    "datetime": "2026-11-22T10:00:00+00:00",
    "version": "5.1.0",
}
EVALUATION = {
    "results": {
        "gsm8k": {
            "alias": "gsm8k",
            "exact_match,strict-match": 0.8,
            "exact_match_stderr,strict-match": 0.01,
            "exact_match,flexible-extract": 0.81,
            "exact_match_stderr,flexible-extract": "N/A",
        }
    },
    "configs": {"gsm8k": {}},
    "versions": {"gsm8k": 3.0},
    "n-shot": {"gsm8k": 5},
    "higher_is_better": {"gsm8k": {"exact_match": True}},
    "config": {
        "model": "hf",
        "model_args": "pretrained=nvidia/Llama-3.1-8B-Instruct-FP8,dtype=auto,tensor_parallel_size=2",
        "device": "cuda:0",
        "limit": None,
    },
    "date": 1795341600.0,
    "pretty_env_info": "PyTorch version: 2.13\nGPU models and configuration: GPU 0: NVIDIA H200\nGPU 0: NVIDIA H200\n",
    "lm_eval_version": "0.4.13",
}


def write(folder: Path, content: object, name: str = "file") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def table(folder: Path, *rows: Mapping[str, str], columns: Iterable[str] = COLUMNS) -> Path:
    path = folder / "figures"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(columns), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def published(folder: Path, **changes: str) -> Observation:
    (found,) = read_observations(table(folder, {**ROW, **changes}))
    return found


def test_a_published_row_is_a_case_with_its_harness_and_where_it_stands(tmp_path: Path) -> None:
    found = published(tmp_path)

    assert found.case == "h200/tensorrt-llm/llama-3.1-405b/modelopt-fp8/tp8/max-throughput-128-2048"
    assert (found.metric, found.value, found.unit, found.source) == ("output_throughput", 6139.81, "tok/s", "published")
    assert (found.version, found.reference) == ("0.20.0", "perf-overview.md@1")
    assert found.run == "TensorRT-LLM perf-overview 0.20.0"
    assert "PyTorch backend" in found.harness


def test_what_was_published_per_gpu_is_multiplied_and_is_of_another_harness(tmp_path: Path) -> None:
    found = published(tmp_path, unit="tokens/s/GPU", metric="output_throughput_per_gpu", value="100")

    assert (found.value, found.settings) == (800.0, {"published": "100 tokens/s/GPU"})
    assert found.harness == published(tmp_path).harness + "; published per GPU"


@pytest.mark.parametrize(
    ("changes", "case"),
    [
        ({"recipe": "Official Llama FP8 recipe"}, "llama-3.1-405b/llama-fp8/tp8/max-throughput-128-2048"),
        ({"recipe": "static batching; batch size 64"}, "llama-3.1-405b/fp8/tp8/max-throughput-128-2048"),
        ({"precision": "BF16"}, "llama-3.1-405b/bf16/tp8/max-throughput-128-2048"),
        ({"tp": "4", "pp": "2"}, "llama-3.1-405b/modelopt-fp8/tp4-pp2/max-throughput-128-2048"),
        ({"tp": ""}, "llama-3.1-405b/modelopt-fp8/tp8/max-throughput-128-2048"),
        ({"scenario": "min_latency"}, "llama-3.1-405b/modelopt-fp8/tp8/min-latency-128-2048"),
        ({"scenario": "server", "recipe": "Triton; QPS=8; FP8 KV cache"}, "llama-3.1-405b/modelopt-fp8/tp8/rate-8-128-2048"),
        ({"model": "../../etc/passwd\x1b[31m"}, "etc-passwd-31m/modelopt-fp8/tp8/max-throughput-128-2048"),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_row_says_becomes_a_case(tmp_path: Path, changes: dict[str, str], case: str) -> None:
    assert published(tmp_path, **changes).case == f"h200/tensorrt-llm/{case}"


def test_a_note_beside_a_version_is_no_part_of_it(tmp_path: Path) -> None:
    found = published(tmp_path, trtllm_version="0.20-prerelease (CUDA graphs off)")

    assert (found.version, found.settings) == ("0.20-prerelease", {"note": "CUDA graphs off"})


def test_rows_that_are_no_case_are_counted_by_reason(tmp_path: Path) -> None:
    left_out = LeftOut()
    rows = [ROW, {**ROW, "metric": "mean_ttft"}, {**ROW, "scenario": "server"}, {**ROW, "precision": ""}]

    assert len(list(observations_in(table(tmp_path, *rows), left_out=left_out))) == 1
    assert sorted(left_out) == [
        "metric 'mean_ttft', which is none of this project",
        "no precision published",
        "scenario 'server', which does not say how requests arrived",
    ]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"value": "nan"}, ":2: value is 'nan', and should be a number above 0"),
        ({"value": "-3"}, "value is '-3'"),
        ({"tp": "eight"}, "tp is 'eight', and should be a whole number above 0"),
        ({"unit": "tokens/min"}, "unknown unit 'tokens/min'"),
        ({"metric": "mean_ttft"}, "holds no value that could be kept: 1 x metric 'mean_ttft'"),
    ],
    ids=str,
)
def test_a_row_that_is_wrong_is_named(tmp_path: Path, change: dict[str, str], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        read_observations(table(tmp_path, {**ROW, **change}))


def test_columns_are_all_there_and_no_others(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="without the columns tp, value; needed: source"):
        read_observations(table(tmp_path, ROW, columns=[c for c in COLUMNS if c not in ("tp", "value")]))
    with pytest.raises(UsageError, match="unknown column 'values'; did you mean 'value'"):
        read_observations(table(tmp_path, ROW, columns=[*COLUMNS, "values"]))
    with pytest.raises(UsageError, match="the column 'tp' stands twice"):
        read_observations(table(tmp_path, ROW, columns=[*COLUMNS, "tp"]))


def test_a_table_that_was_cut_off_is_refused_at_its_end(tmp_path: Path) -> None:
    path = table(tmp_path, ROW, ROW)
    path.write_text(path.read_text()[:-40])

    with pytest.raises(UsageError, match=r"figures:3: has \d+ of 16 columns; was it cut off"):
        read_observations(path)


def test_a_large_table_is_read_row_by_row(tmp_path: Path) -> None:
    path = table(tmp_path, *itertools.repeat(ROW, 50_000))
    tracemalloc.start()
    assert sum(1 for _ in observations_in(path)) == 50_000
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert path.stat().st_size > 10_000_000
    assert most < 2_000_000


def test_a_report_of_trtllm_bench_is_the_case_that_it_says(tmp_path: Path) -> None:
    report = changed(
        changed(GOLDEN, ("engine", "quantization"), "FP8"), ("engine", "model"), "meta-llama/Llama-3.1-8B-Instruct"
    )
    found = {each.metric: each for each in read_observations(write(tmp_path, report))}
    speed = found["output_throughput"]

    assert speed.case == "h200/trtllm-bench/llama-3.1-8b/modelopt-fp8/tp2/min-latency-64-16"
    assert (speed.value, speed.version, speed.harness) == (3.373, "1.3.0rc12", "trtllm-bench/pytorch")
    assert speed.settings["max_batch_size"] == 64
    assert found["ttft_median"].value == pytest.approx(4.5331)
    assert found["ttft_median"].better == "lower"
    assert read_observations(write(tmp_path, report))[0].run == speed.run


def in_flight(requests: int, flying: float) -> dict[str, Any]:
    report = changed(GOLDEN, ("request_info", "num_requests"), requests)
    return changed(report, ("request_info", "avg_num_concurrent_requests"), flying)


def test_how_requests_arrived_is_told_by_how_many_were_in_flight_or_asked_for(tmp_path: Path) -> None:
    at_once = read_observations(write(tmp_path, in_flight(3000, 1600.0)))
    assert at_once[0].case.endswith("/max-throughput-64-16")

    path = write(tmp_path, in_flight(3000, 63.2))
    with pytest.raises(
        UsageError, match=r"63.2 of 3000 requests in flight on average.* add it: --scenario concurrency-63"
    ):
        read_observations(path)
    told = read_observations(path, Told(scenario="concurrency-64"))
    assert told[0].case.endswith("/concurrency-64-64-16")


def test_a_report_without_a_gpu_needs_to_be_told(tmp_path: Path) -> None:
    report = {name: block for name, block in GOLDEN.items() if name != "machine"}
    with pytest.raises(UsageError, match=r"does not say on which GPU .* add it: --gpu h200"):
        read_observations(write(tmp_path, report))

    assert read_observations(write(tmp_path, report), Told(gpu="h100"))[0].case.startswith("h100/trtllm-bench/")


def test_recipes_the_catalog_does_not_know_keep_the_words_of_the_report(tmp_path: Path) -> None:
    assert "/nvfp4-fp8kv/" in read_observations(write(tmp_path, GOLDEN))[0].case


def test_lengths_that_differ_are_not_taken_for_equal_ones(tmp_path: Path) -> None:
    report = changed(GOLDEN, ("dataset", "isl_stats", "maximum"), 128)

    assert read_observations(write(tmp_path, report))[0].case.endswith("/min-latency-mixed_64_16")


def test_without_streaming_there_are_no_times_to_the_first_token(tmp_path: Path) -> None:
    report = {name: block for name, block in GOLDEN.items() if name != "streaming_metrics"}

    metrics = {each.metric for each in read_observations(write(tmp_path, report))}
    assert metrics == {
        "output_throughput", "output_throughput_per_gpu", "output_speed_per_user", "request_latency_median"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        (("performance", "system_output_throughput_tok_s"), 0.0, "is 0, and should be above 0"),
        (("performance", "system_output_throughput_tok_s"), float("nan"), "it holds NaN"),
        (("performance", "system_output_throughput_tok_s"), "fast", "is 'fast', and should be a number"),
        (("world_info", "tp_size"), None, "world_info.tp_size is missing"),
    ],
    ids=str,
)
def test_impossible_reports_are_refused(tmp_path: Path, place: tuple[str, ...], value: object, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        read_observations(write(tmp_path, changed(GOLDEN, place, value)))


def test_benchmarks_that_name_a_case_are_measurements_of_it(tmp_path: Path) -> None:
    left_out = LeftOut()
    (found,) = observations_in(write(tmp_path, BENCHMARK), left_out=left_out)

    assert (found.case, found.metric, found.value) == ("cpu/torch/m/bf16/tp1/min-latency-16-8", "ttft_median", 0.02)
    assert (found.harness, found.when) == ("pytest-llamaperf/torch", "2026-11-22T10:00:00+00:00")
    assert found.machine["node"] == "h200-8"
    assert left_out == {"benchmark that names no case of this project": 1}


def test_results_of_lm_eval_are_accuracies_by_the_version_of_the_task(tmp_path: Path) -> None:
    strict, flexible = read_observations(write(tmp_path, EVALUATION))

    assert strict.case == "h200/hf/llama-3.1-8b/modelopt-fp8/tp2/gsm8k"
    assert (strict.metric, strict.value, strict.unit, strict.better) == ("accuracy", 0.8, "fraction", "higher")
    assert (strict.low, strict.high) == (pytest.approx(0.78355), pytest.approx(0.81645))
    assert strict.harness == "lm-eval gsm8k, task version 3.0, 5-shot"
    assert strict.when == "2026-11-22T10:00:00Z"
    assert (flexible.metric, flexible.low) == ("exact_match (flexible-extract)", None)


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [(("config", "limit"), 100.0, "limit 100.0"), (("n-shot", "gsm8k"), 0, "0-shot"), (("versions", "gsm8k"), 2.0, "version 2.0")],
    ids=str,
)  # fmt: skip
def test_scores_of_other_questions_are_of_another_harness(
    tmp_path: Path, place: tuple[str, str], value: float, told: str
) -> None:
    found = read_observations(write(tmp_path, changed(EVALUATION, place, value)))

    assert told in found[0].harness


def test_scores_of_which_less_is_better_say_so(tmp_path: Path) -> None:
    found = read_observations(
        write(tmp_path, changed(EVALUATION, ("higher_is_better", "gsm8k"), {"exact_match": False}))
    )

    assert {each.better for each in found} == {"lower"}


def test_our_own_runs_are_read_from_their_folder_and_their_file(tmp_path: Path) -> None:
    header = RunHeader("8a1c", "2026-11-22T10:00:00Z", "h200", "tensorrt-llm")
    write(tmp_path, to_json(run_document(header, [record(result())], Decision(()))), "run.json")

    (found,) = read_observations(tmp_path)
    assert (found.run, found.value) == ("8a1c", 472.75)
    assert read_observations(tmp_path / "run.json") == (found,)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "is nothing that is known here; what can be read is a folder that --results wrote"),
        ("hello, world", "is nothing that is known here"),
        ('{"answer": 42}', 'is JSON of an unknown kind, with "answer"; what can be read is'),
        (json.dumps(GOLDEN)[:-30], "is no JSON .*; was it cut off"),
        ("[" * 100_000, "is nothing that is known here"),
        ('{"a":' * 100_000, "is no JSON"),
    ],
    ids=["empty", "text", "other JSON", "cut off", "brackets", "deep"],
)
def test_what_is_none_of_these_is_refused_with_what_can_be_read(tmp_path: Path, content: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        read_observations(write(tmp_path, content))


def test_what_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file or directory"):
        read_observations(tmp_path / "nothing")
    (tmp_path / "binary").write_bytes(b"\x89PNG\xff\xfe\x00")
    with pytest.raises(UsageError, match="is no text"):
        read_observations(tmp_path / "binary")


@given(st.sampled_from([GOLDEN, BENCHMARK, EVALUATION]), st.data())
def test_damaged_documents_are_read_or_refused_and_never_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, document: dict[str, Any], data: st.DataObject
) -> None:
    damaged = json.loads(json.dumps(document))
    inner: Any = damaged
    while isinstance(inner, dict) and inner:
        key = data.draw(st.sampled_from(sorted(inner)))
        if not isinstance(inner[key], dict) or data.draw(st.booleans()):
            inner[key] = data.draw(st.none() | st.integers() | st.text(max_size=3) | st.lists(st.none(), max_size=1))
            break
        inner = inner[key]

    with contextlib.suppress(UsageError):
        read_observations(write(tmp_path_factory.getbasetemp(), damaged, "damaged"))
