"""Reports of trtllm-bench: used when everything in them is as asked, and refused as a whole for anything that is not."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llamaperf import metrics
from pytest_llamaperf.engines.trtllm.report import Asked, BadReport, Reported, read_report, read_requests
from pytest_llamaperf.traces import Trace, summarize

Report = dict[str, Any]
Place = tuple[str, ...]

# One request of 64 tokens that is answered with 16 in 4.7435 s, the first of them after 4.5331 s: figures that were seen
# on 1.3.0rc12. 16 / 4.7435 = 3.37 tok/s, 80 / 4.7435 = 16.87 tok/s, 4533.1 + 15 * 14.03 = 4743.5 ms.
ELAPSED, TTFT, TPOT = 4743.5, 4533.1, 14.03


def percentiles(value: float) -> dict[str, float]:
    """Of one request all are the same."""
    return dict.fromkeys(("p50", "p90", "p95", "p99", "minimum", "maximum", "average"), value)


GOLDEN: Report = {
    "engine": {
        "model": "llama-3.1-8b",
        "model_path": "/models/llama",
        "engine_dir": "None",
        "version": "1.3.0rc12",
        "backend": "Pytorch",
        "dtype": "bfloat16",
        "kv_cache_dtype": "FP8",
        "quantization": "NVFP4",
    },
    "machine": {"name": "NVIDIA H200", "memory.total": 139.8, "clocks.mem": 3.201},
    "world_info": {
        "tp_size": 2,
        "pp_size": 1,
        "ep_size": None,
        "world_size": 2,
        "max_batch_size": 64,
        "max_num_tokens": 2048,
        "scheduling_policy": "GUARANTEED_NO_EVICT",
        "kv_cache_percentage": 0.95,
        "issue_rate": 0.0,
    },
    "request_info": {
        "num_requests": 1,
        "avg_num_concurrent_requests": 1.0,
        "avg_input_length": 64.0,
        "avg_output_length": 16.0,
    },
    "performance": {
        "total_latency_ms": ELAPSED,
        "avg_request_latency_ms": ELAPSED,
        "request_throughput_req_s": 0.2108,
        "system_output_throughput_tok_s": 3.373,
        "system_total_throughput_tok_s": 16.865,
        "output_throughput_per_user_tok_s": 3.373,
        "output_throughput_per_gpu_tok_s": 1.6865,
        "request_latency_percentiles_ms": percentiles(ELAPSED),
    },
    "streaming_metrics": {
        "token_output_speed_tok_s": 71.29,
        "avg_ttft_ms": TTFT,
        "avg_tpot_ms": TPOT,
        "tpot_percentiles": percentiles(TPOT),
        "ttft_percentiles": percentiles(TTFT),
        "gen_tps_percentiles": percentiles(71.29),
    },
    "energy": {"total_energy_j": 56.1, "output_tps_per_w": 0.285, "average_gpu_power": 11.8},
    "dataset": {
        "isl_stats": percentiles(64.0),
        "osl_stats": percentiles(16.0),
        "seq_len_stats": percentiles(80.0),
        "num_requests": 1,
        "dataset_path": "/cache/d.jsonl",
        "max_isl": 64,
        "max_osl": 16,
        "max_sequence_length": 80,
        "avg_isl": 64,
        "avg_osl": 16,
        "avg_sequence_length": 80,
    },
}
ASKED = Asked(
    lengths=[(64, 16)],
    tp=2,
    pp=1,
    max_batch_size=64,
    max_num_tokens=2048,
    quantization="NVFP4",
    kv_cache="FP8",
    gpu="h200",
    version="1.3.0rc12",
)
# Version, and which blocks its reports do not have.
GENERATIONS = {"1.0.0": ("machine", "energy"), "1.2.0rc3": ("energy",), "1.3.0rc12": ()}

MISSING = object()
FIGURES = {
    metrics.OUTPUT_THROUGHPUT: ("performance", "system_output_throughput_tok_s"),
    metrics.OUTPUT_THROUGHPUT_PER_GPU: ("performance", "output_throughput_per_gpu_tok_s"),
    metrics.OUTPUT_SPEED_PER_USER: ("performance", "output_throughput_per_user_tok_s"),
    metrics.REQUEST_LATENCY_MEDIAN: ("performance", "request_latency_percentiles_ms", "p50"),
    metrics.TTFT_MEDIAN: ("streaming_metrics", "ttft_percentiles", "p50"),
    metrics.TTFT_P99: ("streaming_metrics", "ttft_percentiles", "p99"),
    metrics.TPOT_MEDIAN: ("streaming_metrics", "tpot_percentiles", "p50"),
    metrics.TPOT_P99: ("streaming_metrics", "tpot_percentiles", "p99"),
}
NEEDED = {metrics.OUTPUT_THROUGHPUT}  # without it nothing can be checked


def changed(report: Report, place: Place, value: object) -> Report:
    """A copy with another value at a place, or without it."""
    report = copy.deepcopy(report)
    inner = report
    for name in place[:-1]:
        inner = inner[name]
    if value is MISSING:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return report


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Reported]:
    def write_and_read(report: object, asked: Asked = ASKED) -> Reported:
        path = tmp_path / "report.json"
        path.write_text(json.dumps(report))
        return read_report(path, asked)

    return write_and_read


@pytest.fixture
def refused(read: Callable[..., Reported]) -> Callable[..., list[str]]:
    """What is wrong with a report, a line each."""

    def lines(report: object, asked: Asked = ASKED) -> list[str]:
        with pytest.raises(BadReport) as caught:
            read(report, asked)
        return str(caught.value).splitlines()

    return lines


# --- good reports -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", GENERATIONS)
def test_a_report_of_every_generation_gives_all_figures_in_base_units(
    version: str, read: Callable[..., Reported]
) -> None:
    report = changed(GOLDEN, ("engine", "version"), version)
    for block in GENERATIONS[version]:
        del report[block]

    reported = read(report, dataclasses.replace(ASKED, version=version))

    assert reported.version == version
    assert reported.elapsed == pytest.approx(4.7435)
    assert reported.figures == pytest.approx(
        {
            metrics.OUTPUT_THROUGHPUT: 3.373,
            metrics.OUTPUT_THROUGHPUT_PER_GPU: 1.6865,
            metrics.OUTPUT_SPEED_PER_USER: 3.373,
            metrics.REQUEST_LATENCY_MEDIAN: 4.7435,
            metrics.TTFT_MEDIAN: 4.5331,
            metrics.TTFT_P99: 4.5331,
            metrics.TPOT_MEDIAN: 0.01403,
            metrics.TPOT_P99: 0.01403,
        }
    )


def test_settings_are_those_that_decide_speed(read: Callable[..., Reported]) -> None:
    assert read(GOLDEN).settings == {
        "scheduling_policy": "GUARANTEED_NO_EVICT",
        "kv_cache_percentage": 0.95,
        "max_batch_size": 64,
        "max_num_tokens": 2048,
    }


def test_a_share_of_memory_that_nobody_knows_is_no_setting(read: Callable[..., Reported]) -> None:
    report = changed(GOLDEN, ("world_info", "kv_cache_percentage"), None)

    assert "kv_cache_percentage" not in read(report).settings


@pytest.mark.parametrize("metric", sorted(FIGURES.keys() - NEEDED), ids=str)
@pytest.mark.parametrize("value", [MISSING, None, "None"], ids=["missing", "null", "the word"])
def test_a_figure_that_is_not_there_is_no_metric_and_no_zero(
    metric: metrics.Metric, value: object, read: Callable[..., Reported]
) -> None:
    figures = read(changed(GOLDEN, FIGURES[metric], value)).figures

    assert set(figures) == FIGURES.keys() - {metric}
    assert all(figures.values())


@pytest.mark.parametrize("block", ["tpot_percentiles", "ttft_percentiles", "gen_tps_percentiles"])
def test_a_block_of_percentiles_may_be_missing(block: str, read: Callable[..., Reported]) -> None:
    figures = read(changed(GOLDEN, ("streaming_metrics", block), MISSING)).figures

    assert set(figures) == {metric for metric, place in FIGURES.items() if block not in place}


def test_keys_that_nobody_knows_yet_change_nothing(read: Callable[..., Reported]) -> None:
    report = {**GOLDEN, "carbon": {"grams": 0}, "decoding_stats": None}

    assert read(report) == read(GOLDEN)


@pytest.mark.parametrize("value", [None, "None"], ids=["null", "the word"])
def test_the_word_none_is_no_quantization(value: str | None, read: Callable[..., Reported]) -> None:
    report = changed(changed(GOLDEN, ("engine", "quantization"), value), ("engine", "kv_cache_dtype"), value)

    assert read(report, dataclasses.replace(ASKED, quantization=None, kv_cache=None)).figures


def test_a_gpu_that_is_not_under_test_is_not_looked_at(read: Callable[..., Reported]) -> None:
    assert read({**GOLDEN, "machine": None}, dataclasses.replace(ASKED, gpu=None)).figures


def test_limits_that_were_not_ours_to_choose_may_be_any(read: Callable[..., Reported]) -> None:
    report = changed(changed(GOLDEN, ("world_info", "max_batch_size"), 1), ("world_info", "max_num_tokens"), 31)

    found = read(report, dataclasses.replace(ASKED, max_batch_size=None, max_num_tokens=None)).settings

    assert (found["max_batch_size"], found["max_num_tokens"]) == (1, 31)


def test_any_version_may_have_written_it_where_none_is_known(read: Callable[..., Reported]) -> None:
    assert read(GOLDEN, dataclasses.replace(ASKED, version=None)).version == "1.3.0rc12"


def test_figures_that_follow_from_one_another_may_be_a_percent_apart(read: Callable[..., Reported]) -> None:
    assert read(changed(GOLDEN, FIGURES[metrics.OUTPUT_THROUGHPUT], 3.3731 * 1.0099)).figures


def of_one_token() -> Report:
    report = copy.deepcopy(GOLDEN)
    report["request_info"]["avg_output_length"] = 1.0
    for name, share in (("system_output", 1), ("output", 1), ("output", 2)):
        suffix = "_per_gpu" if share == 2 else "_per_user" if name == "output" else ""
        report["performance"][f"{name}_throughput{suffix}_tok_s"] = 1 / 4.7435 / share
    report["streaming_metrics"] |= {
        "token_output_speed_tok_s": 0.0,
        "avg_tpot_ms": 0.0,
        "tpot_percentiles": percentiles(0.0),
        "gen_tps_percentiles": percentiles(0.0),
    }
    return report


def test_where_no_token_follows_the_first_there_is_no_time_for_one(read: Callable[..., Reported]) -> None:
    figures = read(of_one_token(), dataclasses.replace(ASKED, lengths=[(64, 1)])).figures

    assert set(figures) == FIGURES.keys() - {metrics.TPOT_MEDIAN, metrics.TPOT_P99}


def test_zeros_of_requests_with_one_token_are_in_no_percentile_that_is_used(read: Callable[..., Reported]) -> None:
    report = of_one_token()
    for block in ("request_info", "dataset"):
        report[block]["num_requests"] = 2
    report["request_info"]["avg_output_length"] = 8.5
    for name, value in (("system_output_throughput", 17 / 4.7435), ("output_throughput_per_gpu", 8.5 / 4.7435)):
        report["performance"][f"{name}_tok_s"] = value

    figures = read(report, dataclasses.replace(ASKED, lengths=[(64, 1), (64, 16)])).figures

    assert not {metrics.TPOT_MEDIAN, metrics.TPOT_P99} & set(figures)


# --- bad reports ------------------------------------------------------------------------------------------------

# Where, what stands there instead, and the line that says so.
BROKEN: dict[str, tuple[Place, object, str]] = {
    "requests": (("request_info", "num_requests"), 2, "request_info.num_requests is 2, asked for 1"),
    "requests of the dataset": (("dataset", "num_requests"), 0, "dataset.num_requests is 0, asked for 1"),
    "tp": (("world_info", "tp_size"), 4, "world_info.tp_size is 4, asked for 2"),
    "pp": (("world_info", "pp_size"), 2, "world_info.pp_size is 2, asked for 1"),
    "batch": (("world_info", "max_batch_size"), 32, "world_info.max_batch_size is 32, asked for 64"),
    "tokens": (("world_info", "max_num_tokens"), 8192, "world_info.max_num_tokens is 8192, asked for 2048"),
    "another quantization": (("engine", "quantization"), "FP8", "engine.quantization is 'FP8', asked for 'NVFP4'"),
    "no quantization": (("engine", "quantization"), "None", "engine.quantization is 'None', asked for 'NVFP4'"),
    "cache": (("engine", "kv_cache_dtype"), None, "engine.kv_cache_dtype is None, asked for 'FP8'"),
    "version": (("engine", "version"), "1.2.1", "engine.version is '1.2.1', asked for '1.3.0rc12'"),
    "GPU": (("machine", "name"), "NVIDIA H100 80GB HBM3", "machine.name is 'NVIDIA H100 80GB HBM3', asked for H200"),
    "GPU that is not told": (("machine",), None, "machine.name is None, asked for H200"),
    "answers": (
        ("request_info", "avg_output_length"),
        15.0,
        "request_info.avg_output_length is 15.0, asked for 16: answers were cut short",
    ),
    "prompts": (
        ("request_info", "avg_input_length"),
        63.0,
        "request_info.avg_input_length is 63, asked for 64: prompts were changed",
    ),
    "throughput": (
        ("performance", "system_output_throughput_tok_s"),
        3.41,
        "performance.system_output_throughput_tok_s is 3.41, and 16 tokens in 4743.5 ms are 3.37304",
    ),
    "throughput per GPU": (
        ("performance", "output_throughput_per_gpu_tok_s"),
        3.373,
        "performance.output_throughput_per_gpu_tok_s is 3.373, and 3.373 tok/s on 2 are 1.6865",
    ),
    "throughput as text": (
        ("performance", "output_throughput_per_user_tok_s"),
        "3.373",
        "performance.output_throughput_per_user_tok_s is '3.373', which is no number",
    ),
    "truth for a time": (
        ("streaming_metrics", "ttft_percentiles", "p50"),
        True,
        "streaming_metrics.ttft_percentiles.p50 is True, which is no number",
    ),
    "first token at once": (
        ("streaming_metrics", "ttft_percentiles", "p50"),
        0,
        "streaming_metrics.ttft_percentiles.p50 is 0",
    ),
    "tokens at once": (
        ("streaming_metrics", "tpot_percentiles", "p50"),
        0.0,
        "streaming_metrics.tpot_percentiles.p50 is 0",
    ),
    "time that runs back": (("streaming_metrics", "avg_tpot_ms"), -14.03, "streaming_metrics.avg_tpot_ms is -14.03"),
    "more than a float": (
        ("performance", "request_latency_percentiles_ms", "p50"),
        10**400,
        "performance.request_latency_percentiles_ms.p50 is inf",
    ),
    "no streaming": (("streaming_metrics",), MISSING, "streaming_metrics is missing, though the run was streamed"),
    "streaming that is null": (
        ("streaming_metrics",),
        None,
        "streaming_metrics is missing, though the run was streamed",
    ),
    "no version": (("engine", "version"), MISSING, "engine.version is None, asked for '1.3.0rc12'"),
    "no engine": (("engine",), MISSING, "engine.quantization is None, asked for 'NVFP4'"),
    "no count": (("request_info", "num_requests"), MISSING, "request_info.num_requests is None, asked for 1"),
    "no answers": (
        ("request_info", "avg_output_length"),
        MISSING,
        "request_info.avg_output_length is None, asked for 16: answers were cut short",
    ),
    "no throughput": (
        ("performance", "system_output_throughput_tok_s"),
        MISSING,
        "performance.total_latency_ms and performance.system_output_throughput_tok_s are not both there",
    ),
    "no time": (
        ("performance", "total_latency_ms"),
        None,
        "performance.total_latency_ms and performance.system_output_throughput_tok_s are not both there",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_whatever_is_wrong_is_named(what: str, refused: Callable[..., list[str]]) -> None:
    place, value, line = BROKEN[what]

    assert line in refused(changed(GOLDEN, place, value))


SINGLE = [what for what in BROKEN if what not in ("no version", "no engine")]  # which lack more than one thing


@pytest.mark.parametrize("what", SINGLE)
def test_nothing_else_is_blamed(what: str, refused: Callable[..., list[str]]) -> None:
    place, value, line = BROKEN[what]

    assert refused(changed(GOLDEN, place, value)) == [line]


def test_everything_that_is_wrong_is_named_at_once(refused: Callable[..., list[str]]) -> None:
    report = GOLDEN
    wrong = ("requests", "tp", "batch", "cache", "version", "GPU", "answers", "throughput as text", "tokens at once")
    for what in wrong:
        report = changed(report, *BROKEN[what][:2])

    assert sorted(refused(report)) == sorted(BROKEN[what][2] for what in wrong)


def test_a_version_that_nobody_asked_for_has_to_be_told_all_the_same(refused: Callable[..., list[str]]) -> None:
    report = changed(GOLDEN, ("engine", "version"), 1.2)

    assert refused(report, dataclasses.replace(ASKED, version=None)) == ["engine.version is missing"]


def test_a_report_from_the_time_before_machines_still_has_to_be_right(refused: Callable[..., list[str]]) -> None:
    report = changed(changed(GOLDEN, ("machine",), MISSING), *BROKEN["pp"][:2])

    assert refused(report) == [BROKEN["pp"][2]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [("performance", "total_latency_ms"), ("energy", "total_energy_j")])
def test_a_report_with_a_number_that_is_none_is_refused_wherever_it_stands(
    place: Place, value: float, refused: Callable[..., list[str]]
) -> None:
    assert refused(changed(GOLDEN, place, value)) == [f"report.json holds {json.dumps(value)}"]


def test_a_number_too_large_for_json_is_infinite(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(GOLDEN).replace(str(TTFT), "1e999"))

    with pytest.raises(BadReport, match=r"streaming_metrics\.avg_ttft_ms is inf"):
        read_report(path, ASKED)


@pytest.mark.parametrize("value", [None, [], [GOLDEN], "report", 1.0], ids=str.__call__)
def test_what_is_no_mapping_is_no_report(value: object, refused: Callable[..., list[str]]) -> None:
    assert refused(value) == ["the report is no mapping"]


@pytest.mark.parametrize("reader", ["report", "requests"])
def test_a_file_that_was_not_written_is_named(reader: str, tmp_path: Path) -> None:
    path = tmp_path / f"{reader}.json"

    with pytest.raises(BadReport, match=f"^{reader}.json was not written$"):
        read_report(path, ASKED) if reader == "report" else read_requests(path, ASKED, REPORTED)


@pytest.mark.parametrize("end", [0, 1, 500, -1])
def test_a_report_that_ends_in_its_middle_is_refused(end: int, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(GOLDEN)[:end])

    with pytest.raises(BadReport, match=r"report\.json is no JSON"):
        read_report(path, ASKED)


def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadReport, match="is no JSON"):
        read_report(tmp_path, ASKED)


# --- every request ----------------------------------------------------------------------------------------------

# Four requests on one GPU, two at a time: (submitted, first token, last token) in seconds, and their lengths.
TRACES = (
    Trace(100.0, 100.25, 101.0, 8, 4),
    Trace(100.0, 100.5, 102.0, 16, 2),
    Trace(101.0, 101.25, 103.0, 8, 4),
    Trace(102.0, 102.25, 104.0, 16, 2),
)
ASKED_FOUR = dataclasses.replace(ASKED, lengths=[(8, 4), (16, 2)] * 2, tp=1)
REPORTED = Reported("1.3.0rc12", summarize(TRACES, 1), 4.0, {})


def as_json(traces: Sequence[Trace]) -> list[dict[str, Any]]:
    """As --request_json has it: nanoseconds."""
    return [
        {
            "id": number,
            "num_input_tokens": trace.input_tokens,
            "error_tokens": 0,
            "start_timestamp": round(trace.submitted * 1e9),
            "first_token_timestamp": round(trace.first_token * 1e9),
            "end_timestamp": round(trace.last_token * 1e9),
            "decode_iteration": trace.output_tokens - 1,
            "num_total_output_tokens": trace.output_tokens,
            "num_generated_tokens": trace.output_tokens - 1,
            "intertoken_latency": (trace.last_token - trace.first_token) / max(trace.output_tokens - 1, 1) * 1e9,
            "output": "",
            "output_tokens": trace.output_tokens,
        }
        for number, trace in enumerate(traces)
    ]


@pytest.fixture
def traces_of(tmp_path: Path) -> Callable[..., tuple[Trace, ...]]:
    def write_and_read(records: object, reported: Reported = REPORTED) -> tuple[Trace, ...]:
        path = tmp_path / "requests.json"
        path.write_text(json.dumps(records))
        return read_requests(path, ASKED_FOUR, reported)

    return write_and_read


def test_requests_are_read_as_seconds_in_their_order(traces_of: Callable[..., tuple[Trace, ...]]) -> None:
    assert traces_of(as_json(TRACES)) == TRACES


def test_requests_may_end_in_any_order(traces_of: Callable[..., tuple[Trace, ...]]) -> None:
    assert traces_of(as_json(TRACES[::-1])) == TRACES[::-1]


def test_a_figure_that_the_report_lacks_is_not_compared(traces_of: Callable[..., tuple[Trace, ...]]) -> None:
    reported = dataclasses.replace(REPORTED, figures={metrics.OUTPUT_THROUGHPUT: 3.0})

    assert traces_of(as_json(TRACES), reported) == TRACES


@pytest.mark.parametrize(
    ("records", "told"),
    [
        ([], "the requests are , asked for 2 of ISL 8 and OSL 4, 2 of ISL 16 and OSL 2"),
        (as_json(TRACES[:3]), "the requests are 2 of ISL 8 and OSL 4, 1 of ISL 16 and OSL 2, asked for 2 of ISL 8"),
        (as_json([*TRACES, TRACES[0]]), "the requests are 3 of ISL 8 and OSL 4, 2 of ISL 16 and OSL 2, asked for 2 of"),
        (
            as_json([*TRACES[:3], dataclasses.replace(TRACES[3], output_tokens=1)]),
            "2 of ISL 8 and OSL 4, 1 of ISL 16 and OSL 2, 1 of ISL 16 and OSL 1, asked for",
        ),
        (
            as_json([*TRACES[:3], dataclasses.replace(TRACES[3], input_tokens=15)]),
            "2 of ISL 8 and OSL 4, 1 of ISL 16 and OSL 2, 1 of ISL 15 and OSL 2, asked for",
        ),
    ],
    ids=["none", "too few", "too many", "a short answer", "a short prompt"],
)
def test_requests_that_were_not_asked_for_are_refused_with_both_counts(
    records: object, told: str, traces_of: Callable[..., tuple[Trace, ...]]
) -> None:
    with pytest.raises(BadReport) as caught:
        traces_of(records)

    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("end_timestamp", 100_100_000_000, "clock readings out of order"),
        ("first_token_timestamp", 100_000_000_000, "clock readings out of order"),
        ("first_token_timestamp", -1, "clock readings out of order"),
        ("start_timestamp", 200_000_000_000, "clock readings out of order"),
        ("start_timestamp", None, "NoneType"),
        ("start_timestamp", "100", "str"),
        ("end_timestamp", 10**400, "too large"),
        ("num_total_output_tokens", 0, "at least one token in and one out"),
        ("num_input_tokens", [8], "list"),
    ],
    ids=str,
)
def test_a_request_that_cannot_have_been_is_refused(
    name: str, value: object, told: str, traces_of: Callable[..., tuple[Trace, ...]]
) -> None:
    records = as_json(TRACES)
    records[0][name] = value

    with pytest.raises(BadReport, match="the requests cannot be used: ") as caught:
        traces_of(records)

    assert told in str(caught.value)


def test_a_request_without_a_time_is_refused_by_the_name_of_the_key(
    traces_of: Callable[..., tuple[Trace, ...]],
) -> None:
    records = as_json(TRACES)
    del records[2]["first_token_timestamp"]

    with pytest.raises(BadReport, match="the requests cannot be used: 'first_token_timestamp'"):
        traces_of(records)


@pytest.mark.parametrize("records", [None, {}, {"0": {}}, [None], [as_json(TRACES)]], ids=repr)
def test_what_is_no_list_of_mappings_is_no_list_of_requests(
    records: object, traces_of: Callable[..., tuple[Trace, ...]]
) -> None:
    with pytest.raises(BadReport, match="the requests are no list of mappings"):
        traces_of(records)


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        (metrics.OUTPUT_THROUGHPUT, "output_throughput of the requests is 3 tok/s, of the report 3.06 tok/s"),
        (metrics.TTFT_MEDIAN, "ttft_median of the requests is 0.25 s, of the report 0.255 s"),
    ],
    ids=str,
)
def test_requests_that_disagree_with_the_report_are_refused(
    metric: metrics.Metric, told: str, traces_of: Callable[..., tuple[Trace, ...]]
) -> None:
    figures = {**REPORTED.figures, metric: REPORTED.figures[metric] * 1.02}

    with pytest.raises(BadReport) as caught:
        traces_of(as_json(TRACES), dataclasses.replace(REPORTED, figures=figures))

    assert str(caught.value) == told


# --- whatever may stand in a file -------------------------------------------------------------------------------


def places(value: object, place: Place = ()) -> list[Place]:
    """Of everything in a report, mappings and what is in them."""
    inner = [each for name, value in value.items() for each in places(value, (*place, name))] if isinstance(
        value, dict
    ) else []  # fmt: skip
    return [place, *inner] if place else inner


LEAVES = (
    st.none()
    | st.booleans()
    | st.sampled_from(
        [0, 0.0, 1, 2, 15, 16, 17, 64, "None", "16", "H200", math.nan, math.inf, 10**400, -(10**400), 1e308]
    )
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
)
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
MUTATIONS = st.lists(st.tuples(st.sampled_from(places(GOLDEN)), ANYTHING | st.just(MISSING)), min_size=1, max_size=3)


def mutated(report: Report, mutations: Sequence[tuple[Place, object]]) -> Report:
    for place, value in mutations:
        try:
            report = changed(report, place, copy.deepcopy(value) if value is not MISSING else MISSING)
        except (KeyError, TypeError):  # what an earlier one has taken away
            continue
    return report


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report") / "file.json"


@settings(max_examples=500)
@given(mutations=MUTATIONS)
def test_a_changed_report_is_right_in_all_that_counts_or_refused(
    scratch: Path, mutations: Sequence[tuple[Place, object]]
) -> None:
    report = mutated(GOLDEN, mutations)
    scratch.write_text(json.dumps(report))
    try:
        reported = read_report(scratch, ASKED)
    except BadReport:
        return

    requests, world, engine = report["request_info"], report["world_info"], report["engine"]
    assert (requests["num_requests"], report["dataset"]["num_requests"]) == (1, 1)
    assert requests["avg_output_length"] == pytest.approx(16)
    assert (world["tp_size"], world["pp_size"], world["max_batch_size"], world["max_num_tokens"]) == (2, 1, 64, 2048)
    assert (engine["quantization"], engine["kv_cache_dtype"], engine["version"]) == ("NVFP4", "FP8", "1.3.0rc12")
    assert reported.figures[metrics.OUTPUT_THROUGHPUT] == pytest.approx(16 / reported.elapsed, rel=0.0101)
    assert all(type(value) is float and 0 < value < math.inf for value in reported.figures.values())


REQUESTS = as_json(TRACES)
REQUEST_MUTATIONS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(sorted(REQUESTS[0])), ANYTHING), min_size=1, max_size=3
)


@settings(max_examples=300)
@given(mutations=REQUEST_MUTATIONS)
def test_changed_requests_are_those_that_were_asked_for_or_refused(
    scratch: Path, mutations: Sequence[tuple[int, str, object]]
) -> None:
    records = copy.deepcopy(REQUESTS)
    for number, name, value in mutations:
        records[number][name] = value
    scratch.write_text(json.dumps(records))
    try:
        traces = read_requests(scratch, ASKED_FOUR, REPORTED)
    except BadReport:
        return

    assert sorted((trace.input_tokens, trace.output_tokens) for trace in traces) == sorted(ASKED_FOUR.lengths)
    ours = summarize(traces, 1)
    for metric in (metrics.OUTPUT_THROUGHPUT, metrics.TTFT_MEDIAN):
        assert ours[metric] == pytest.approx(REPORTED.figures[metric], rel=0.0101)


@given(content=st.binary(max_size=50) | ANYTHING.map(lambda value: json.dumps(value).encode()))
def test_a_file_of_anything_is_refused(scratch: Path, content: bytes) -> None:
    scratch.write_bytes(content)

    with pytest.raises(BadReport):
        read_report(scratch, ASKED)


LENGTHS = st.lists(st.tuples(st.integers(1, 50), st.integers(2, 50)), min_size=1, max_size=8)


@given(lengths=LENGTHS, claimed=st.integers(-3, 20))
def test_no_count_but_the_right_one_is_ever_taken(scratch: Path, lengths: list[tuple[int, int]], claimed: int) -> None:
    asked = dataclasses.replace(ASKED, lengths=lengths)
    tokens = sum(osl for _, osl in lengths)
    report = copy.deepcopy(GOLDEN)
    report["request_info"] |= {
        "num_requests": claimed,
        "avg_input_length": sum(isl for isl, _ in lengths) / len(lengths),
        "avg_output_length": tokens / len(lengths),
    }
    report["dataset"]["num_requests"] = claimed
    report["performance"] |= {
        "system_output_throughput_tok_s": tokens / 4.7435,
        "output_throughput_per_gpu_tok_s": tokens / 4.7435 / 2,
    }
    scratch.write_text(json.dumps(report))

    if claimed == len(lengths):
        assert read_report(scratch, asked).figures
    else:
        with pytest.raises(BadReport, match=r"request_info\.num_requests"):
            read_report(scratch, asked)
