"""`pytest --plan`: everything TensorRT-LLM would be given, on paper, while nothing runs."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from textwrap import dedent

import pytest
import yaml
from builders import case

from pytest_llamaperf.cases import Case, Task, Workload
from pytest_llamaperf.engines import EngineSpec
from pytest_llamaperf.engines.trtllm import inputs
from pytest_llamaperf.engines.trtllm.command import OF_1_2, Paths, kind_of, options, words
from pytest_llamaperf.engines.trtllm.plan import planned

pytest_plugins = ["pytester"]

DOUBLES = Path(__file__).parent / "doubles"

SUITE = """
import pytest
from pytest_llamaperf import OUTPUT_THROUGHPUT

@pytest.mark.cases(
    model="llama-3.1-405b", recipe="modelopt-fp8", layout={layouts}, workload={workloads}
)
def test_speed(case, measure, baseline):
    print("a test has run")
    baseline.check(measure(case), OUTPUT_THROUGHPUT)
"""

Plan = Callable[..., pytest.RunResult]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAMAPERF_CACHE", str(tmp_path / "cache"))
    for name in ("LLAMAPERF_NODES", "LLAMAPERF_GPUS_PER_NODE", "LLAMAPERF_JOB"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def plan(pytester: pytest.Pytester) -> Plan:
    def run(
        *arguments: str,
        engine: str = "tensorrt-llm",
        layouts: Iterable[str] = ("tp8",),
        workloads: Iterable[str] = ("max-throughput-128-128",),
    ) -> pytest.RunResult:
        pytester.makepyfile(SUITE.format(layouts=list(layouts), workloads=list(workloads)))
        return pytester.runpytest("--plan", "--gpu=h200", f"--engine={engine}", *arguments)

    return run


# --- a session --------------------------------------------------------------------------------------------------


def test_a_plan_shows_the_arguments_of_an_engine_and_the_command_of_a_workload(plan: Plan, cache: Path) -> None:
    result = plan()

    assert result.ret == pytest.ExitCode.OK
    found = "\n".join(result.stdout.lines)
    start, end = found.index("plan for"), found.index("stream_interval: 50\n") + len("stream_interval: 50\n")
    graphs = "[1, 2, 4, 8, 16, 32, 64, 128, 256, 384, 512, 1024, 2048, 4096]"
    file = re.search(r"options/([0-9a-f]{16})\.yaml", found)
    assert file is not None
    assert found[start:end] == dedent(f"""\
        plan for TensorRT-LLM 1.2.1 (none is installed here: by docs/tensorrt-llm.md): 1 engine, 1 case

        h200/tensorrt-llm/llama-3.1-405b/modelopt-fp8/tp8
          $CHECKPOINT: llama-3.1-405b in the recipe modelopt-fp8; quant_algo FP8, kv_cache_quant_algo FP8
          LLM(
            model='$CHECKPOINT',
            tokenizer='$CHECKPOINT',
            tensor_parallel_size=8,
            pipeline_parallel_size=1,
            max_batch_size=4096,
            max_num_tokens=8192,
            max_seq_len=256,
            enable_chunked_prefill=True,
            kv_cache_config=KvCacheConfig(free_gpu_memory_fraction=0.95, enable_block_reuse=False, dtype='auto'),
            cuda_graph_config=CudaGraphConfig(batch_sizes={graphs}, enable_padding=True),
            stream_interval=50,
            return_perf_metrics=True,
          )
          max-throughput-128-128: 30,000 requests
            generate_async(streaming=True), SamplingParams(max_tokens=128, ignore_eos=True, temperature=0.0, detokenize=False)
            by hand:
            trtllm-bench \\
              --model llama-3.1-405b \\
              --model_path "$CHECKPOINT" \\
              --workspace /tmp throughput \\
              --dataset {cache}/datasets/drawn1-128-128-30000-of-128256.jsonl \\
              --backend pytorch \\
              --tp 8 \\
              --pp 1 \\
              --kv_cache_free_gpu_mem_fraction 0.95 \\
              --num_requests 30000 \\
              --concurrency -1 \\
              --warmup 2 \\
              --report_json report.json \\
              --max_batch_size 4096 \\
              --max_num_tokens 8192 \\
              --max_seq_len 256 \\
              --request_json requests.json \\
              --streaming \\
              --enable_chunked_context \\
              --extra_llm_api_options {cache}/options/{file[1]}.yaml
            where {cache}/options/{file[1]}.yaml is
              cuda_graph_config:
                batch_sizes: {graphs}
                enable_padding: true
              stream_interval: 50
        """)


def test_a_plan_runs_no_test_and_writes_nothing(plan: Plan, cache: Path) -> None:
    result = plan(layouts=("tp8", "tp8-pp2"))

    result.assert_outcomes()
    result.stdout.no_fnmatch_line("*a test has run*")
    assert not cache.exists()


def test_trtllm_bench_is_given_its_command_and_no_llm(plan: Plan) -> None:
    result = plan(engine="trtllm-bench")

    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["h200/trtllm-bench/llama-3.1-405b/modelopt-fp8/tp8", "    trtllm-bench \\"])
    for line in ("*LLM(*", "*by hand*", "*generate_async*"):
        result.stdout.no_fnmatch_line(line)


def test_workloads_that_share_an_engine_stand_below_it(plan: Plan) -> None:
    result = plan(workloads=("max-throughput-128-128", "concurrency-64-128-128"))

    result.stdout.fnmatch_lines(["plan for *: 1 engine, 2 cases"])


def test_tests_that_are_left_out_are_not_planned(plan: Plan) -> None:
    result = plan("-k", "tp4-pp2", layouts=("tp8", "tp4-pp2"))

    result.stdout.fnmatch_lines(["plan for *: 1 engine, 1 case", "*/tp4-pp2", "    pipeline_parallel_size=2,"])


@pytest.mark.parametrize("engine", ["torch", "predicted"])
def test_what_is_given_no_arguments_cannot_be_planned(engine: str, plan: Plan) -> None:
    result = plan(engine=engine)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: --plan with --engine {engine}: *; add --engine tensorrt-llm or *"])


LOOKING = """
import sys, pytest
status = pytest.main(sys.argv[1:])
print("imported:", sorted({"torch", "tensorrt_llm", "transformers", "modelopt"} & set(sys.modules)))
sys.exit(status)
"""


@pytest.mark.parametrize(
    ("installed", "line"),
    [
        (None, "plan for TensorRT-LLM 1.2.1 (none is installed here"),
        ("v1_3rc", "plan for TensorRT-LLM 1.3.0rc12 (installed here)"),
    ],
    ids=["not installed", "installed"],
)
def test_neither_torch_nor_tensorrt_llm_is_imported(installed: str | None, line: str, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(SUITE.format(layouts=["tp8"], workloads=["min-latency-128-128"]))
    environment = dict(os.environ, PYTHONPATH=str(DOUBLES / installed) if installed else "")

    done = subprocess.run(
        [sys.executable, "-c", LOOKING, "--plan", "--gpu=h200", "--engine=tensorrt-llm", "-p", "no:cacheprovider", "."],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    assert line in done.stdout
    assert done.stdout.splitlines()[-1] == "imported: []"


def test_what_the_installed_version_does_not_accept_is_noted(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOUBLES / "v1_0")

    result = plan()

    result.stdout.fnmatch_lines(
        ["plan for TensorRT-LLM 1.0.0 (installed here)*", "  note: return_perf_metrics is not accepted: *"]
    )
    result.stdout.fnmatch_lines(["    kv_cache_dtype='auto',"])
    result.stdout.no_fnmatch_line("*    return_perf_metrics=*")


# --- the commands -----------------------------------------------------------------------------------------------


def commands_in(lines: Iterable[str]) -> list[list[str]]:
    """Words of every command, as a shell would see them with CHECKPOINT='$CHECKPOINT'."""
    text = "\n".join(lines).replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.lstrip().startswith(("trtllm-bench ", "srun "))]


def expected(of: Case) -> list[str]:
    assert isinstance(of.work, Workload)
    spec, file = EngineSpec.of(of), options(EngineSpec.of(of), kind_of(of.work))
    paths = Paths(
        checkpoint="$CHECKPOINT",
        dataset=str(inputs.dataset_path(of.work, of.model.vocabulary)),
        options=str(inputs.options_path(file)),
        workspace="/tmp",
        report="report.json",
        requests="requests.json",
    )
    return words(spec, of.work, paths, OF_1_2)


KEYS = [
    f"{engine}/llama-3.1-70b/{rest}"
    for engine in ("tensorrt-llm", "trtllm-bench")
    for rest in (
        "modelopt-fp8/tp8/max-throughput-128-128",
        "bf16/tp4-pp2/min-latency-2048-128",
        "llama-fp8/pp8/concurrency-64-20000-2000",
        "bf16/tp2/max-throughput-openorca",
    )
]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("folder", ["cache", "my cache", "it's a --cache $HOME"])
def test_a_command_is_read_by_a_shell_as_it_is_run(
    key: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMAPERF_CACHE", str(tmp_path / folder))
    planned_case = case(key)

    assert commands_in(planned([planned_case])) == [expected(planned_case)]


def test_a_shell_puts_the_checkpoint_in_its_place(tmp_path: Path) -> None:
    lines = [line.removeprefix("    ") for line in planned([case(KEYS[0])])]
    start = lines.index("trtllm-bench \\")
    end = next(number for number, line in enumerate(lines) if line.startswith("where "))
    bench = tmp_path / "trtllm-bench"
    bench.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    bench.chmod(0o755)

    done = subprocess.run(
        ["/bin/sh", "-c", "\n".join(lines[start:end])],
        env={"CHECKPOINT": "/a b/c", "PATH": str(tmp_path)}, capture_output=True, text=True, check=True,
    )  # fmt: skip

    said = done.stdout.splitlines()
    assert said[said.index("--model_path") + 1] == "/a b/c"
    assert ["trtllm-bench", *said] == [word.replace("$CHECKPOINT", "/a b/c") for word in expected(case(KEYS[0]))]


def test_over_several_nodes_the_command_is_launched_as_the_session_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMAPERF_NODES", "2")
    monkeypatch.setenv("LLAMAPERF_GPUS_PER_NODE", "8")
    of = case("tensorrt-llm/llama-3.1-405b/modelopt-fp8/tp8-pp2/max-throughput-128-128")

    lines = list(planned([of]))

    launch = ["srun", "-N", "2", "--ntasks-per-node=8", "--mpi=pmix", "trtllm-llmapi-launch"]
    assert commands_in(lines) == [[*launch, *expected(of)]]
    assert "    gpus_per_node=8," in lines


def test_the_options_shown_are_those_of_the_file_that_is_named() -> None:
    lines = list(planned([case(KEYS[0])]))
    start = next(number for number, line in enumerate(lines) if line.startswith("    where "))

    shown = yaml.safe_load("\n".join(lines[start + 1 :]))

    assert f"    where {inputs.options_path(shown)} is" == lines[start]


# --- what cannot be ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("tensorrt-llm/llama-3.1-8b/bf16/dp8/max-throughput-128-128", "one engine serves no copies side by side"),
        ("trtllm-bench/llama-3.1-8b@random/bf16/tp1/max-throughput-128-128", "random weights are drawn by the torch engine"),
        ("tensorrt-llm/llama-3.1-8b/fp32/tp1/max-throughput-128-128", "TensorRT-LLM serves no Llama in FP32"),
    ],
    ids=["dp", "random", "fp32"],
)  # fmt: skip
def test_an_engine_that_cannot_be_says_why_in_its_place(key: str, problem: str) -> None:
    lines = list(planned([case(key)]))

    assert len(lines) == 4
    assert lines[3].startswith("  not supported: ")
    assert problem in lines[3]


def test_another_size_than_was_launched_is_not_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMAPERF_NODES", "2")
    monkeypatch.setenv("LLAMAPERF_GPUS_PER_NODE", "8")

    lines = list(planned([case(KEYS[0])]))

    assert lines[3].endswith("launched for 16 GPUs, and tp8 uses 8")


@pytest.mark.parametrize("engine", ["tensorrt-llm", "trtllm-bench"])
def test_an_open_loop_has_no_command(engine: str) -> None:
    lines = list(planned([case(f"{engine}/llama-3.1-8b/bf16/tp1/rate-2-128-128")]))

    assert lines[-1] == "    no command of trtllm-bench does this"
    assert not commands_in(lines)


def test_answers_are_planned_without_a_command() -> None:
    lines = list(planned([dataclasses.replace(case(), work=Task("answers"))]))

    assert lines[-1] == "  answers: greedy answers and log-likelihoods of given tokens"


def test_no_case_is_a_plan_of_nothing() -> None:
    assert [line.rpartition(": ")[2] for line in planned([])] == ["0 engines, 0 cases"]


def test_a_plan_is_for_one_process(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    pytester.makepyfile("def test_a(): pass")

    result = pytester.runpytest("--plan", "--gpu=h200", "-n2")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --plan with -n: *"])
