"""trtllm-bench for a case: the words of its line, chosen by what its help says that it takes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import psutil
import pytest
from builders import case
from engine_sessions import wait_for
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from pytest_llamaperf.cases import Workload
from pytest_llamaperf.catalog import model_named, models, workload_named
from pytest_llamaperf.children.trtllm.command import run
from pytest_llamaperf.engines import EngineSpec
from pytest_llamaperf.engines.trtllm.command import (
    LATENCY,
    OF_1_2,
    THROUGHPUT,
    Paths,
    Takes,
    kind_of,
    known,
    options,
    told_in_a_file,
    words,
)
from pytest_llamaperf.errors import Unsupported
from pytest_llamaperf.limits import Limits

# As click and its groups of options write it, 80 columns wide.
GROUP = """\
Usage: trtllm-bench [OPTIONS] COMMAND [ARGS]...

Options:
  -m, --model TEXT                The Huggingface name of the model to
                                  benchmark.  [required]
  --model_path PATH               Path to a Huggingface checkpoint directory for
                                  loading model components.
  -w, --workspace PATH            The directory to store benchmarking
                                  intermediate files.  [default: /tmp]
  --log_level [internal_error|error|warning|info|verbose|debug|trace]
                                  The logging level.  [default: info]
  --revision TEXT                 The revision to use for the HuggingFace model
                                  (branch name, tag name, or commit id).
{more}  --help                          Show this message and exit.

Commands:
  latency     Run a latency test on a TRT-LLM engine.
  throughput  Run a throughput test on a TRT-LLM engine.
"""
TELEMETRY = """\
  --telemetry / --no-telemetry    Whether usage is told to NVIDIA; see also
                                  --log_level and --no-such-thing.  [default:
                                  telemetry]
"""

_ENGINE = """\
  Engine run configuration:       Runtime settings for executing a TensorRT-LLM
                                  engine.
    --engine_dir PATH             Path to a serialized TRT-LLM engine.
    --backend [pytorch|_autodeploy|tensorrt]
                                  The backend to use for benchmark. Default is
                                  pytorch backend.  [default: pytorch]
{file}    --max_seq_len INTEGER         Maximum sequence length.
    --kv_cache_free_gpu_mem_fraction FLOAT RANGE
                                  The percentage of memory to use for KV Cache
                                  after model load.  [default: 0.9; 0.0<=x<=1.0]
"""
_INPUT = """\
  Engine Input Configuration:     Input configuration for driving the engine.
    --dataset PATH                Pass in a dataset file for parsing instead of
                                  stdin.
    --num_requests INTEGER        Number of requests to cap benchmark run at. If
                                  not specified or set to 0, it will be the
                                  length of dataset.  [default: 0]
    --warmup INTEGER              Number of requests warm up benchmark.
                                  [default: 2]
  World Configuration:            Options for configuring the backend
                                  multi-GPU world.
    --tp INTEGER                  tensor parallelism size  [default: 1]
    --pp INTEGER                  pipeline parallelism size  [default: 1]
    --ep INTEGER                  expert parallelism size
"""
THROUGHPUT_TEXT = f"""\
Usage: trtllm-bench throughput [OPTIONS]

  Run a throughput test on a TRT-LLM engine.

Options:
{_ENGINE}    --max_batch_size INTEGER      Maximum runtime batch size to run the engine
                                  with.
    --max_num_tokens INTEGER      Maximum runtime tokens that an engine can
                                  accept.
    --beam_width INTEGER          Number of search beams.  [default: 1]
{{chunking}}    --scheduler_policy [guaranteed_no_evict|max_utilization]
                                  KV cache scheduler policy.  [default:
                                  guaranteed_no_evict]
{_INPUT}    --eos_id INTEGER              Set the end-of-sequence token for the
                                  benchmark. Set to -1 to disable EOS.
                                  [default: -1]
  Request Load Control Options:   [all]
                                  Limits how requests are loaded.
    --concurrency INTEGER         Desired concurrency rate (number of requests
                                  processing at the same time), <=0 for no
                                  concurrency limit.  [default: -1]
    --streaming                   Enable streaming mode for requests.
  Reporting Options:              [all]
                                  Options for reporting benchmark results.
    --report_json PATH            Path where report should be written to.
    --iteration_log PATH          Path where iteration logging is written to.
    --output_json PATH            Path where output should be written to.
    --request_json PATH           Path where per request information is written
                                  to.
  --help                          Show this message and exit.
"""
LATENCY_TEXT = f"""\
Usage: trtllm-bench latency [OPTIONS]

  Run a latency test on a TRT-LLM engine. Unlike throughput it always streams
  (--streaming) and takes neither --max_batch_size nor --request_json.

Options:
{_ENGINE}{_INPUT}    --medusa_choices PATH         Path to a YAML file that defines the Medusa
                                  tree.
    --concurrency INTEGER         Desired concurrency rate (number of requests
                                  processing at the same time), <=0 for no
                                  concurrency limit.  [default: 1]
    --report_json PATH            Path where report should be written to.
    --iteration_log PATH          Path where iteration logging is written to.
  --help                          Show this message and exit.
"""

OLD_FILE = """\
    --extra_llm_api_options TEXT  Path to a YAML file that overwrites the
                                  parameters specified by trtllm-bench.
"""
NEW_FILE = """\
    --config, --extra_llm_api_options TEXT
                                  Path to a YAML file that overwrites the
                                  parameters specified by trtllm-bench.
"""
# The words at the margin of the explanations are those a search of the whole text would find.
NO_FILE = """\
    --beam_width INTEGER          Number of search beams; what throughput has
                                  --extra_llm_api_options for is not told here.
"""
ON_ONLY = """\
    --enable_chunked_context      Enable chunking in prefill stage for enhanced
                                  throughput benchmark.
"""
ON_AND_OFF = """\
    --enable_chunked_context / --disable_chunked_context
                                  Enable/disable chunking in prefill stage for
                                  enhanced throughput benchmark.  [default:
                                  enable_chunked_context]
"""

HELP = {
    "1.0": (
        GROUP.format(more=""),
        THROUGHPUT_TEXT.format(file=OLD_FILE, chunking=ON_ONLY),
        LATENCY_TEXT.format(file=NO_FILE),
    ),
    "1.2": (
        GROUP.format(more=""),
        THROUGHPUT_TEXT.format(file=OLD_FILE, chunking=ON_AND_OFF),
        LATENCY_TEXT.format(file=OLD_FILE),
    ),
    "1.3rc": (
        GROUP.format(more=TELEMETRY),
        THROUGHPUT_TEXT.format(file=NEW_FILE, chunking=ON_AND_OFF),
        LATENCY_TEXT.format(file=NEW_FILE),
    ),
}
VERSIONS = sorted(HELP)


def throughput_of(version: str) -> Takes:
    return Takes.of_help(HELP[version][0], HELP[version][1])


def latency_of(version: str) -> Takes:
    return Takes.of_help(HELP[version][0], HELP[version][2])


PATHS = Paths("/ckpt", "/cache/d.jsonl", "/cache/o.yaml", "/w", "/w/report.json", "/w/requests.json")
MANY = Workload("max-throughput", 128, 128, requests=30000)
ONE = Workload("min-latency", 2048, 128, requests=10)
SPEC = dataclasses.replace(
    EngineSpec.of(case("trtllm-bench/llama-3.1-8b/modelopt-fp8/tp4-pp2/max-throughput-128-128")),
    limits=Limits(1024, 8192, kv_fraction=0.95, cuda_graph_batch_sizes=(1, 2), max_seq_len=256),
)
UNCHUNKED = dataclasses.replace(SPEC, limits=dataclasses.replace(SPEC.limits, chunked_prefill=False))


def value_of(line: list[str], option: str) -> str:
    return line[line.index(option) + 1]


# --- what help says ---------------------------------------------------------------------------------------------


def test_options_of_the_group_are_read_with_all_their_spellings() -> None:
    assert throughput_of("1.3rc").group == {
        "--model", "--model_path", "--workspace", "--log_level", "--revision", "--telemetry", "--no-telemetry", "--help",
    }  # fmt: skip


def test_both_names_of_one_option_are_taken() -> None:
    assert {"--config", "--extra_llm_api_options"} <= throughput_of("1.3rc").options


def test_an_option_and_its_opposite_are_two_options() -> None:
    assert {"--enable_chunked_context", "--disable_chunked_context"} <= throughput_of("1.2").options


def test_an_option_whose_explanation_begins_on_the_next_line_is_taken() -> None:
    assert {"--backend", "--kv_cache_free_gpu_mem_fraction", "--scheduler_policy"} <= throughput_of("1.2").options


def test_options_that_an_explanation_mentions_are_not_taken() -> None:
    takes = latency_of("1.0")

    assert not takes.options & {"--extra_llm_api_options", "--streaming", "--max_batch_size", "--request_json"}
    assert "--no-such-thing" not in latency_of("1.3rc").group


def test_an_option_has_to_be_spelled_to_its_end() -> None:
    takes = Takes.of_help("", "Options:\n  --tp_size INTEGER  tensor parallelism\n")

    assert takes.options == {"--tp_size"}


def test_the_built_in_list_of_1_2_is_taken_by_1_2() -> None:
    takes = throughput_of("1.2")

    assert takes.group >= OF_1_2.group
    assert takes.options >= OF_1_2.options


@pytest.mark.parametrize("text", ["", "Usage: trtllm-bench [OPTIONS]\n", "Traceback (most recent call last):\n"])
def test_of_a_text_without_options_nothing_is_taken(text: str) -> None:
    assert Takes.of_help(text, text) == Takes(frozenset(), frozenset())


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    takes = Takes.of_help(text, text)

    assert all(option.startswith("--") and option in text for option in takes.options)


# --- the line ---------------------------------------------------------------------------------------------------


def test_the_whole_line_of_throughput() -> None:
    line = words(SPEC, MANY, PATHS, throughput_of("1.3rc"))

    assert " ".join(line) == (
        "trtllm-bench --model llama-3.1-8b --model_path /ckpt --workspace /w --no-telemetry throughput "
        "--dataset /cache/d.jsonl --backend pytorch --tp 4 --pp 2 --kv_cache_free_gpu_mem_fraction 0.95 "
        "--num_requests 30000 --concurrency -1 --warmup 2 --report_json /w/report.json "
        "--max_batch_size 1024 --max_num_tokens 8192 --max_seq_len 256 --request_json /w/requests.json "
        "--streaming --enable_chunked_context --extra_llm_api_options /cache/o.yaml"
    )


def test_the_whole_line_of_latency() -> None:
    line = words(SPEC, ONE, PATHS, latency_of("1.2"))

    assert " ".join(line) == (
        "trtllm-bench --model llama-3.1-8b --model_path /ckpt --workspace /w latency "
        "--dataset /cache/d.jsonl --backend pytorch --tp 4 --pp 2 --kv_cache_free_gpu_mem_fraction 0.95 "
        "--num_requests 10 --concurrency 1 --warmup 2 --report_json /w/report.json "
        "--extra_llm_api_options /cache/o.yaml"
    )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("spec", [SPEC, UNCHUNKED], ids=["chunked", "unchunked"])
@pytest.mark.parametrize("workload", [MANY, ONE], ids=str)
def test_every_option_is_one_that_its_part_of_the_line_takes(
    version: str, spec: EngineSpec, workload: Workload
) -> None:
    takes = throughput_of(version) if kind_of(workload) == "throughput" else latency_of(version)

    line = words(spec, workload, PATHS, takes)

    command = line.index(kind_of(workload))
    assert {word for word in line[:command] if word.startswith("--")} <= takes.group
    assert {word for word in line[command:] if word.startswith("--")} <= takes.options


@pytest.mark.parametrize("version", VERSIONS)
def test_batch_and_tokens_are_never_left_to_a_heuristic(version: str) -> None:
    line = words(SPEC, MANY, PATHS, throughput_of(version))

    assert (value_of(line, "--max_batch_size"), value_of(line, "--max_num_tokens")) == ("1024", "8192")


@pytest.mark.parametrize(
    ("version", "spec", "said"),
    [
        ("1.0", SPEC, ["--enable_chunked_context"]),
        ("1.0", UNCHUNKED, []),
        ("1.2", SPEC, ["--enable_chunked_context"]),
        ("1.2", UNCHUNKED, ["--disable_chunked_context"]),
        ("1.3rc", UNCHUNKED, ["--disable_chunked_context"]),
    ],
)
def test_chunking_is_said_wherever_the_default_may_be_another(version: str, spec: EngineSpec, said: list[str]) -> None:
    line = words(spec, MANY, PATHS, throughput_of(version))

    assert [word for word in line if word.endswith("_chunked_context")] == said


@pytest.mark.parametrize(("version", "told"), [("1.0", False), ("1.2", True), ("1.3rc", True)])
def test_latency_of_1_0_is_told_nothing_in_a_file(version: str, told: bool) -> None:
    line = words(SPEC, ONE, PATHS, latency_of(version))

    assert (PATHS.options in line) is told
    assert told_in_a_file("latency", latency_of(version)) is told


def test_the_file_has_its_other_name_where_that_is_the_only_one() -> None:
    takes = throughput_of("1.3rc")
    renamed = dataclasses.replace(takes, options=takes.options - {"--extra_llm_api_options"})

    assert value_of(words(SPEC, MANY, PATHS, renamed), "--config") == PATHS.options


@pytest.mark.parametrize("version", ["1.0", "1.2"])
def test_telemetry_is_not_switched_off_where_there_is_none(version: str) -> None:
    assert "--no-telemetry" not in words(SPEC, MANY, PATHS, throughput_of(version))


def test_a_number_in_flight_is_the_concurrency() -> None:
    line = words(SPEC, workload_named("concurrency-64-128-128"), PATHS, OF_1_2)

    assert (line[7], value_of(line, "--concurrency")) == ("throughput", "64")


def test_one_in_flight_is_latency_under_either_name() -> None:
    assert kind_of(workload_named("concurrency-1-128-128")) == kind_of(ONE) == "latency"


def test_a_length_that_no_limit_names_is_what_the_model_was_trained_for() -> None:
    spec = dataclasses.replace(SPEC, limits=dataclasses.replace(SPEC.limits, max_seq_len=None))

    assert value_of(words(spec, MANY, PATHS, OF_1_2), "--max_seq_len") == "131072"


@pytest.mark.parametrize("name", models())
def test_the_name_of_a_model_is_no_path(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = dataclasses.replace(SPEC, model=models()[name])

    said = value_of(words(spec, MANY, PATHS, OF_1_2), "--model")

    assert "/" not in said
    assert not Path(said).exists()


def test_a_model_that_is_given_as_a_folder_goes_by_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "Ours"
    folder.mkdir()
    config = {
        "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "vocab_size": 256,
        "num_attention_heads": 4, "max_position_embeddings": 512,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    spec = dataclasses.replace(SPEC, model=model_named(str(folder)))

    assert value_of(words(spec, MANY, PATHS, OF_1_2), "--model") == "ours"


# --- what cannot be said ----------------------------------------------------------------------------------------


def test_an_open_loop_is_refused_with_the_engine_that_can() -> None:
    with pytest.raises(Unsupported, match="rate-2-128-128: trtllm-bench has no open loop; use --engine tensorrt-llm"):
        words(SPEC, workload_named("rate-2-128-128"), PATHS, OF_1_2)


def test_copies_side_by_side_are_refused() -> None:
    spec = EngineSpec.of(case("trtllm-bench/llama-3.1-8b/modelopt-fp8/tp2-dp4/max-throughput-128-128"))

    with pytest.raises(Unsupported, match="trtllm-bench serves no copies side by side; measure tp2-dp4 without dp"):
        words(spec, MANY, PATHS, OF_1_2)


NEEDED = [
    "--dataset", "--backend", "--tp", "--pp", "--max_batch_size", "--max_num_tokens", "--max_seq_len",
    "--kv_cache_free_gpu_mem_fraction", "--num_requests", "--concurrency", "--warmup", "--streaming", "--report_json",
    "--request_json", "--enable_chunked_context",
]  # fmt: skip


@pytest.mark.parametrize("missing", NEEDED)
def test_an_option_that_is_needed_and_not_taken_is_refused_by_name(missing: str) -> None:
    takes = dataclasses.replace(OF_1_2, options=OF_1_2.options - {missing})

    with pytest.raises(Unsupported, match=f"this trtllm-bench takes none of {missing}, which the measurement needs"):
        words(SPEC, MANY, PATHS, takes)


def test_options_in_a_file_that_throughput_does_not_take_are_refused_by_both_names() -> None:
    takes = dataclasses.replace(OF_1_2, options=OF_1_2.options - {"--extra_llm_api_options"})

    with pytest.raises(Unsupported, match="takes none of --extra_llm_api_options, --config"):
        words(SPEC, MANY, PATHS, takes)


# --- what is told in a file -------------------------------------------------------------------------------------


def test_graphs_and_streaming_are_those_of_the_other_engine() -> None:
    assert options(SPEC, "throughput") == {
        "cuda_graph_config": {"batch_sizes": [1, 2, 1024], "enable_padding": True},
        "stream_interval": 50,
    }


def test_one_request_at_a_time_needs_one_graph() -> None:
    assert options(SPEC, "latency")["cuda_graph_config"] == {"batch_sizes": [1], "enable_padding": True}


# --- its end ----------------------------------------------------------------------------------------------------


def test_workers_that_outlive_the_command_are_ended_with_it(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {pid}; echo done"

    ended = run(["/bin/sh", "-c", script], str(tmp_path), str(tmp_path / "report.json"), 1.0, lambda *told: None)

    assert ended == {"status": 0, "lines": ["done"]}
    worker = int(pid.read_text())
    # Killed, and gone as soon as the kernel has put it away.
    wait_for(lambda: not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE, 10.0)


@pytest.mark.parametrize("version", ["1.0", "1.2", "1.3rc"])
def test_what_is_known_of_a_version_is_what_its_help_says(version: str) -> None:
    """Lines by hand are made of the one, runs of the other."""
    for kind, asked in ((THROUGHPUT, throughput_of(version)), (LATENCY, latency_of(version))):
        workload = MANY if kind == THROUGHPUT else ONE
        by_hand = words(SPEC, workload, PATHS, known(Version(version), kind))

        assert by_hand == [word for word in words(SPEC, workload, PATHS, asked) if word != "--no-telemetry"]
