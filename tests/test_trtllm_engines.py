"""TensorRT-LLM's two engines against doubles of three versions: what they measure, and every way in which they fail.

The doubles compute with a real network; `tests/doubles/README.md` says what they keep of the contract.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from engine_sessions import tiny_checkpoint, wait_for

from pytest_llamaperf import metrics
from pytest_llamaperf.cases import Case, Layout
from pytest_llamaperf.catalog import model_named, recipe_named, workload_named
from pytest_llamaperf.engines import AnsweringEngine, Engine, EngineSpec, Surroundings, Until, built_in_openers
from pytest_llamaperf.errors import EngineError, Unsupported
from pytest_llamaperf.hosting.failures import EngineFailure
from pytest_llamaperf.hosting.phases import Deadlines
from pytest_llamaperf.traces import summarize

DOUBLES = Path(__file__).parent / "doubles"
VERSIONS = ("v1_0", "v1_2", "v1_3rc")
ALL_AT_ONCE, ONE_BY_ONE = "max-throughput-16-8", "min-latency-16-8"
KINDS = ("tensorrt-llm", "trtllm-bench")
PATIENT = Deadlines(load=60.0, run=60.0, close=10.0)

Opened = Callable[..., Engine]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a double on the path, another folder beside it, and tell it what to do wrong."""
    path = os.environ["PATH"]
    monkeypatch.setenv("LLAMAPERF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def put(version: str, fault: str | None = None, beside: Path | None = None) -> None:
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, [DOUBLES / version, *([beside] if beside else [])])))
        monkeypatch.setenv(
            "PATH", f"{DOUBLES / version / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{path}"
        )
        monkeypatch.delenv("TRTLLM_DOUBLE_FAULT", raising=False)
        if fault is not None:
            monkeypatch.setenv("TRTLLM_DOUBLE_FAULT", fault)

    return put


@pytest.fixture
def opened(tmp_path: Path, tiny: Path, install: Callable[..., None]) -> Iterator[Opened]:
    """Open an engine of a kind and version on the tiny checkpoint; what is open at the end is closed."""
    with contextlib.ExitStack() as closing:

        def start(
            kind: str,
            version: str = "v1_2",
            fault: str | None = None,
            *,
            model: Path | None = None,
            recipe: str = "bf16",
            layout: str = "tp1",
            deadlines: Deadlines = PATIENT,
            beside: Path | None = None,
        ) -> Engine:
            install(version, fault, beside)
            case = Case(
                "cpu", kind, model_named(str(model or tiny)), recipe_named(recipe), Layout.parse(layout),
                workload_named(ALL_AT_ONCE),
            )  # fmt: skip
            surroundings = Surroundings(deadlines, tmp_path / "logs", lambda text, done, total: None)
            engine = built_in_openers(surroundings)[kind](EngineSpec.of(case))
            closing.callback(_closed_somehow, engine)
            return engine

        yield start


def _closed_somehow(engine: Engine) -> None:
    with contextlib.suppress(EngineError):
        engine.close()


def failure_of(work: Callable[[], object]) -> EngineFailure:
    with pytest.raises(EngineFailure) as failed:
        work()
    return failed.value


@pytest.fixture(scope="module")
def torch_version() -> str:
    code = "import torch; print(torch.__version__)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


# --- what is measured ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_the_llm_api_is_timed_by_our_clock(
    opened: Opened, version: str, monkeypatch: pytest.MonkeyPatch, torch_version: str
) -> None:
    monkeypatch.setenv("NCCL_ALGO", "Ring")
    monkeypatch.setenv("TLLM_SPAWN_PROXY_PROCESS_IPC_HMAC_KEY", "planted")
    engine = opened("tensorrt-llm", version)

    run = engine.run(workload_named(ALL_AT_ONCE))

    assert run.lengths == ((16, 8),) * 8
    assert run.readings[metrics.LOAD_TIME] > 0
    assert run.fingerprint.settings["max_batch_size"] == 8
    assert run.fingerprint.settings["kv_cache_config.enable_block_reuse"] is False
    assert (
        run.fingerprint.versions["tensorrt_llm"] == {"v1_0": "1.0.0", "v1_2": "1.2.1", "v1_3rc": "1.3.0rc12"}[version]
    )
    assert run.fingerprint.versions["torch"] == torch_version  # as loaded, which is more than its metadata says
    assert re.fullmatch("[0-9a-f]{64}", str(run.fingerprint.settings["dataset"]))
    assert run.fingerprint.settings["env NCCL_ALGO"] == "Ring"
    assert "planted" not in str(run.fingerprint)
    # 1.0 keeps no times of its own, and says nothing of the format of the KV cache in its own group.
    assert ("return_perf_metrics" in run.fingerprint.settings) == (version != "v1_0")
    assert any(note.startswith("return_perf_metrics is not accepted") for note in run.notes) == (version == "v1_0")
    assert run.fingerprint.settings["kv_cache_dtype" if version == "v1_0" else "kv_cache_config.dtype"] == "auto"


@pytest.mark.parametrize("workload", [ALL_AT_ONCE, ONE_BY_ONE])
@pytest.mark.parametrize("version", VERSIONS)
def test_trtllm_bench_measures_by_itself(
    opened: Opened, version: str, workload: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCCL_ALGO", "Ring")
    engine = opened("trtllm-bench", version)
    asked = workload_named(workload)

    run = engine.run(asked)

    assert run.lengths == ((16, 8),) * asked.requests
    given = {m.name for m in run.readings}
    assert given >= {
        "output_throughput",
        "output_throughput_per_gpu",
        "ttft_median",
        "tpot_p99",
        "request_latency_median",
    }
    tokens = 8 * asked.requests
    assert math.isclose(run.readings[metrics.OUTPUT_THROUGHPUT], tokens / run.elapsed, rel_tol=0.01)
    assert run.fingerprint.settings["env NCCL_ALGO"] == "Ring"
    assert run.fingerprint.settings["command"] == ("throughput" if workload == ALL_AT_ONCE else "latency")
    assert bool(run.traces) == (workload == ALL_AT_ONCE)
    if run.traces:  # one definition: what traces amount to by us is what the report says
        ours = summarize(run.traces, 1)
        assert {m.name for m in ours} == given
        assert all(math.isclose(ours[metric], run.readings[metric], rel_tol=0.01) for metric in ours)
    # `latency` of 1.0 takes no file of options.
    assert bool(run.notes) == (version == "v1_0" and workload == ONE_BY_ONE)


def test_an_open_loop_submits_when_requests_arrive(opened: Opened) -> None:
    engine = opened("tensorrt-llm")

    run = engine.run(workload_named("rate-100-16-8"))

    submitted = sorted(trace.submitted for trace in run.traces)
    assert submitted[-1] - submitted[0] > 0.5 * (len(submitted) - 1) / 100
    assert run.reproduce is None


def test_at_most_as_many_requests_are_in_flight_as_the_workload_says(opened: Opened) -> None:
    engine = opened("tensorrt-llm")

    run = engine.run(workload_named("concurrency-2-16-8"))

    events = sorted([(t.submitted, 1) for t in run.traces] + [(t.last_token, -1) for t in run.traces])
    flying = [sum(step for _, step in events[: n + 1]) for n in range(len(events))]
    assert max(flying) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_line_by_hand_repeats_the_run_without_this_project(opened: Opened, tmp_path: Path, kind: str) -> None:
    run = opened(kind).run(workload_named(ALL_AT_ONCE))
    assert run.reproduce is not None

    done = subprocess.run(run.reproduce, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["request_info"]["num_requests"] == 8
    assert report["request_info"]["avg_output_length"] == 8
    assert report["world_info"]["max_batch_size"] == 8
    assert shlex.split(run.reproduce)[0] == "trtllm-bench"


# --- answers ---------------------------------------------------------------------------------------------------------


def asked(engine: Engine) -> AnsweringEngine:
    assert isinstance(engine, AnsweringEngine)
    return engine


@pytest.mark.parametrize("version", VERSIONS)
def test_answers_are_those_of_the_torch_engine(opened: Opened, version: str) -> None:
    prompts = [[1, 2, 3], [40, 5, 60, 7, 80], [9]]
    reference = asked(opened("torch"))
    ours = asked(opened("tensorrt-llm", version))

    assert ours.generate(prompts, 6) == reference.generate(prompts, 6)
    assert ours.generate(prompts, 6, concurrency=1) == ours.generate(prompts, 6)
    assert ours.decode(ours.encode(["two words"])) == ["two words"]
    (whole,) = reference.generate(prompts[:1], 6)
    for until in (Until(whole[2]), Until(0, (reference.decode([whole[2:3]])[0],))):
        for engine in (reference, ours):  # what ends an answer may be part of it or not
            (early,) = engine.generate(prompts[:1], 6, until=until)
            assert early in (whole[:2], whole[:3])
    sequences = [[1, 2, 3, 4, 5], [200, 100, 50]]
    if version == "v1_0":
        with pytest.raises(Unsupported, match=r"log-likelihoods need TensorRT-LLM 1\.1 or newer, found 1\.0\.0"):
            ours.score(sequences)
        with pytest.raises(Unsupported, match="log-likelihoods need"):
            ours.distributions(sequences, 3)
        return
    for one, other in zip(ours.score(sequences), reference.score(sequences), strict=True):
        assert one.likely == other.likely
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-2)


@pytest.mark.parametrize("version", ["v1_2", "v1_3rc"])
def test_distributions_are_those_of_transformers(opened: Opened, tiny: Path, version: str) -> None:
    """Within the rounding of BF16. Context logits of the one version, prompt log-probabilities of the other."""
    import torch
    from networks import reference

    sequences, top = [[1, 2, 3, 4, 5], [200, 100, 50], [7]], 6
    found = asked(opened("tensorrt-llm", version)).distributions(sequences, top)

    network = reference(tiny)
    for sequence, one in zip(sequences, found, strict=True):
        with torch.no_grad():
            logprobs = network(torch.tensor([sequence])).logits[0, :-1].log_softmax(-1).tolist()
        assert len(one.logprobs) == len(one.likeliest) == len(sequence) - 1
        for row, token, own, likeliest in zip(logprobs, sequence[1:], one.logprobs, one.likeliest, strict=True):
            assert own == pytest.approx(row[token], abs=0.25)
            assert len(likeliest) == top
            assert list(likeliest.values()) == sorted(likeliest.values(), reverse=True)
            assert list(likeliest.values()) == pytest.approx(sorted(row, reverse=True)[:top], abs=0.25)
            assert all(logprob == pytest.approx(row[each], abs=0.25) for each, logprob in likeliest.items())


def test_fewer_log_probabilities_than_asked_for_are_no_distribution() -> None:
    from pytest_llamaperf.children.trtllm import scoring

    entries = [{1: SimpleNamespace(logprob=-0.5), 2: SimpleNamespace(logprob=-1.5)}] * 2
    output = SimpleNamespace(outputs=[SimpleNamespace(prompt_logprobs=entries)])

    assert scoring.read("prompt_logprobs", [7, 2, 1], output, 1).tokens == [[1], [1]]
    with pytest.raises(scoring.WrongLogprobs, match="2 prompt logprobs at place 1, asked for 3"):
        scoring.read("prompt_logprobs", [7, 2, 1], output, 3)


def test_what_is_too_long_is_refused_and_never_cut(opened: Opened) -> None:
    engine = asked(opened("tensorrt-llm"))

    with pytest.raises(EngineError, match=r"sequence 0 has 512 \+ 1 tokens; 512 fit"):
        engine.score([[1] * 512])
    with pytest.raises(EngineError, match=r"sequence 1 has 510 \+ 8 tokens; 512 fit"):
        engine.generate([[1], [2] * 510], 8)


def test_noise_is_not_supported(opened: Opened) -> None:
    engine = asked(opened("tensorrt-llm"))

    with pytest.raises(Unsupported, match="noise"):
        engine.score([[1, 2]], noise=0.1)


@pytest.mark.parametrize(
    ("version", "fault", "problem"),
    [
        ("v1_3rc", "missing_logprob", "is not among the prompt logprobs"),
        ("v1_2", "truncated_logits", r"rows of context logits for 5 tokens"),
    ],
)
def test_scores_with_holes_are_a_bad_report(opened: Opened, version: str, fault: str, problem: str) -> None:
    engine = asked(opened("tensorrt-llm", version, fault))

    failure = failure_of(lambda: engine.score([[1, 2, 3, 4, 5]]))

    assert failure.kind == "bad-report"
    assert re.search(problem, failure.problem)


# --- failures --------------------------------------------------------------------------------------------------------

# Fault of the double -> kind and phase of the failure, and a part of what is told. Its `sigint` is not among them: what
# the host starts ignores that signal, and `exit_without_report` is what it would look like.
OPENING = {
    "oom_init": ("out-of-memory", "load", "Executor creation failed due to insufficient GPU memory"),
    "oom_graphs": ("out-of-memory", "load", "CUDA out of memory"),
    "worker_died_init": ("died", "load", "Executor worker died during initialization"),
    "gpu_count": ("gpu-count", "load", "Only 0 GPUs are available, but 1 are required"),
    "hang_init": ("hang", "load", "'load' took longer than"),
    "wrong_config": ("bad-report", "load", "max_batch_size is 4, asked for 8"),
    "wrong_version": ("bad-report", "load", "and 1.2.1 is installed"),
}
RUNNING = {
    "oom_run": ("out-of-memory", "run", "CUDA out of memory"),
    "worker_killed": ("died", "run", "died by signal 9"),
    "illegal_memory": ("gpu-fault", "run", "illegal memory access"),
    "nccl": ("gpu-fault", "run", "NCCL"),
    "hang_run": ("hang", "run", "'run' took longer than"),
    "request_error": ("request", "run", "RequestError"),
    "short_output": ("request", "run", "asked for 8 tokens, got 7"),
}
BENCH = {
    "oom_init": ("out-of-memory", "load", "Executor creation failed due to insufficient GPU memory"),
    "oom_run": ("out-of-memory", "run", "CUDA out of memory"),
    "worker_died_init": ("died", "load", "Executor worker died during initialization"),
    "worker_killed": ("died", "run", "died by signal 9"),
    "illegal_memory": ("gpu-fault", "run", "illegal memory access"),
    "nccl": ("gpu-fault", "run", "NCCL"),
    "gpu_count": ("gpu-count", "load", "Only 0 GPUs are available, but 1 are required"),
    "hang_init": ("hang", "run", "'bench' took longer than"),
    "hang_run": ("hang", "run", "'bench' took longer than"),
    "exit_without_report": ("interrupted", "run", "ended with status 0 and wrote no report"),
    "exit_1": ("crashed", "run", "exit status 1"),
    "requests_failed": ("request", "run", "Requests failed"),
    "nan": ("bad-report", "run", "NaN"),
    "missing_key": ("bad-report", "run", "system_output_throughput_tok_s"),
    "truncated_report": ("bad-report", "run", "is no JSON"),
    "wrong_count": ("bad-report", "run", "request_info.num_requests is 7, asked for 8"),
    "short_output": ("bad-report", "run", "answers were cut short"),
    "wrong_tp": ("bad-report", "run", "world_info.tp_size"),
    "wrong_batch": ("bad-report", "run", "world_info.max_batch_size"),
    "wrong_version": ("bad-report", "run", "engine.version"),
    "inconsistent": ("bad-report", "run", "system_output_throughput_tok_s is"),
    "bad_request_json": ("bad-report", "run", "clock readings out of order"),
}
HASTY = Deadlines(load=4.0, run=2.0, close=1.0)


def expect_failure(failure: EngineFailure, kind: str, phase: str, text: str) -> None:
    assert (failure.kind.value, failure.phase.value) == (kind, phase), failure
    assert text in failure.problem
    assert len(str(failure).splitlines()) >= 2  # what happened, and what to do


@pytest.mark.parametrize("fault", OPENING)
def test_an_llm_that_cannot_be_opened_is_told_apart(opened: Opened, fault: str) -> None:
    deadlines = HASTY if fault.startswith("hang") else PATIENT

    expect_failure(failure_of(lambda: opened("tensorrt-llm", "v1_2", fault, deadlines=deadlines)), *OPENING[fault])


@pytest.mark.parametrize("fault", RUNNING)
def test_an_llm_that_fails_while_it_runs_is_told_apart(opened: Opened, fault: str) -> None:
    deadlines = Deadlines(load=60.0, run=2.0, close=1.0) if fault.startswith("hang") else PATIENT
    engine = opened("tensorrt-llm", "v1_2", fault, deadlines=deadlines)

    expect_failure(failure_of(lambda: engine.run(workload_named(ALL_AT_ONCE))), *RUNNING[fault])


@pytest.mark.parametrize("fault", BENCH)
def test_a_trtllm_bench_that_fails_is_told_apart(opened: Opened, fault: str) -> None:
    deadlines = HASTY if fault.startswith("hang") else PATIENT
    engine = opened("trtllm-bench", "v1_3rc", fault, deadlines=deadlines)

    expect_failure(failure_of(lambda: engine.run(workload_named(ALL_AT_ONCE))), *BENCH[fault])


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_that_does_not_read_the_recipe_from_the_checkpoint_is_not_believed(
    opened: Opened, tmp_path: Path, kind: str
) -> None:
    from tiny_checkpoints import write_quantized, write_source

    recipe = recipe_named("modelopt-fp8")
    write_quantized(tmp_path / "fp8", write_source(tmp_path / "bf16"), recipe, tmp_path / "bf16")

    failure = failure_of(
        lambda: opened(kind, "v1_2", "wrong_quant", model=tmp_path / "fp8", recipe="modelopt-fp8").run(
            workload_named(ALL_AT_ONCE)
        )
    )

    assert failure.kind == "bad-report"
    assert "asked for 'FP8'" in failure.problem


def test_a_clock_of_theirs_that_differs_is_a_note(opened: Opened) -> None:
    run = opened("tensorrt-llm", "v1_2", "slow_clock").run(workload_named(ALL_AT_ONCE))

    assert any(note.startswith("TensorRT-LLM's own clock disagrees: median request latency") for note in run.notes)


@pytest.mark.parametrize("fault", ["hang_shutdown", "hang_exit"])
def test_an_llm_that_does_not_end_has_answered_all_the_same(opened: Opened, fault: str) -> None:
    engine = opened("tensorrt-llm", "v1_2", fault, deadlines=Deadlines(load=60.0, run=60.0, close=1.0))
    assert len(engine.run(workload_named(ALL_AT_ONCE)).traces) == 8

    if fault == "hang_exit":  # nobody waits for what happens at exit
        engine.close()
    else:
        assert failure_of(engine.close).after_the_work


def test_a_bench_that_does_not_end_after_its_report_is_ended_and_says_so(opened: Opened) -> None:
    engine = opened("trtllm-bench", "v1_2", "hang_exit", deadlines=Deadlines(load=60.0, run=60.0, close=1.0))

    run = engine.run(workload_named(ALL_AT_ONCE))

    assert len(run.traces) == 8
    assert run.notes == ("trtllm-bench did not end within 1 s after its report and was ended; the report is whole",)


def test_the_placeholder_of_the_registry_is_no_tensorrt_llm(opened: Opened) -> None:
    failure = failure_of(lambda: opened("tensorrt-llm", "stub"))

    assert failure.kind == "not-installed"
    assert "it is the placeholder of the package registry" in failure.problem


def test_no_trtllm_bench_is_not_installed(opened: Opened) -> None:
    failure = failure_of(lambda: opened("trtllm-bench", "stub"))

    assert failure.kind == "not-installed"


@pytest.mark.parametrize("kind", KINDS)
def test_copies_side_by_side_and_fp32_are_not_supported(opened: Opened, kind: str) -> None:
    with pytest.raises(Unsupported, match="side by side"):
        opened(kind, layout="dp2")
    with pytest.raises(Unsupported, match="FP32"):
        opened(kind, recipe="fp32")


@pytest.mark.parametrize("kind", KINDS)
def test_a_rope_the_runtime_would_lose_is_a_checkpoint_failure(
    opened: Opened, tmp_path: Path, tiny: Path, kind: str
) -> None:
    """transformers 4, which TensorRT-LLM 1.2 pins, does not read rope_parameters."""
    broken = tmp_path / "tiny"
    shutil.copytree(tiny, broken)
    config = json.loads((broken / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 500000.0}
    config.pop("rope_theta", None)
    (broken / "config.json").write_text(json.dumps(config))
    older = tmp_path / "older" / "transformers-4.57.3.dist-info"
    older.mkdir(parents=True)
    (older / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 4.57.3\n")

    failure = failure_of(lambda: opened(kind, model=broken, beside=older.parent))

    assert failure.kind == "checkpoint"
    assert "500000" in failure.problem
    assert "10000" in failure.problem


@pytest.mark.parametrize(("kind", "fault"), [("tensorrt-llm", "hang_run"), ("trtllm-bench", "hang_run")])
def test_nothing_of_a_failed_engine_is_left(opened: Opened, kind: str, fault: str, tmp_path: Path) -> None:
    engine = opened(kind, "v1_2", fault, deadlines=HASTY)
    host = engine._host  # type: ignore[attr-defined]

    failure_of(lambda: engine.run(workload_named(ALL_AT_ONCE)))

    assert wait_for(lambda: not host.left_over())
