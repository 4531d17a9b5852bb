"""Failures of engines by what gives them away, and as people are told of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_llamaperf.errors import EngineError
from pytest_llamaperf.hosting.failures import EngineFailure, FailureKind, classify, classify_output
from pytest_llamaperf.hosting.phases import Phase

OUT_OF_MEMORY = [
    ("MemoryError", ""),
    ("_ArrayMemoryError", "Unable to allocate 1.00 TiB for an array with shape (137438953472,)"),
    ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 896.00 MiB. GPU 0 has a total capacity of 139.81 GiB"),
    (
        "RuntimeError",
        "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried",
    ),
    ("RuntimeError", "[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: not enough memory: you tried to"),
    ("RuntimeError", "Executor creation failed due to insufficient GPU memory.\nThe following component could not be"),
    ("RuntimeError", "CUDA error: out of memory"),
    ("AcceleratorError", "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    ("RuntimeError", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ("RuntimeError", "std::bad_alloc"),
    ("OSError", "[Errno 12] Cannot allocate memory"),
]
DISK_FULL = [
    ("OSError", "[Errno 28] No space left on device: '/cache/x'"),
    ("SafetensorError", "Error while serializing: I/O error: No space left on device (os error 28)"),
    ("RuntimeError", "unable to write to file </torch_3_1>: No space left on device (28)"),
    ("OSError", "[Errno 122] Disk quota exceeded"),
]
NOT_INSTALLED = [
    ("ModuleNotFoundError", "No module named 'tensorrt_llm'"),
    ("ImportError", "libcudart.so.12: cannot open shared object file: No such file or directory"),
]
CRASHED = [
    ("RuntimeError", "the shapes do not fit"),
    ("ValueError", ""),
    ("KeyError", "'MemoryError'"),
    ("RuntimeError", "set `OutOfMemoryError` handling; No module named 'x'"),
]

# Of TensorRT-LLM 1.0 to 1.3rc, and of what it stands on.
TENSORRT_LLM = [
    (FailureKind.USAGE, "ValueError", "LLM got invalid argument: kv_cache_dtype"),
    (
        FailureKind.USAGE,
        "ValidationError",
        "1 validation error for TorchLlmArgs\nx\n  Extra inputs are not permitted [...",
    ),
    (FailureKind.USAGE, "TypeError", "LLM.__init__() got an unexpected keyword argument 'stream_interval'"),
    (FailureKind.CHECKPOINT, "NotImplementedError", "Unsupported quantization_config: {'quant_method': 'fbgemm_fp8'}"),
    (FailureKind.CHECKPOINT, "ValueError", "Specified quant_algo 'FP8' conflicting with 'NVFP4' of the checkpoint"),
    (FailureKind.CHECKPOINT, "FileNotFoundError", "[Errno 2] No such file or directory: '/ckpt/hf_quant_config.json'"),
    (FailureKind.CHECKPOINT, "FileNotFoundError", "hf_quant_config.json not found in /ckpt"),
    (FailureKind.CHECKPOINT, "OSError", "Can't load tokenizer for '/ckpt'. If you were trying to load it from"),
    (FailureKind.CHECKPOINT, "FileNotFoundError", "[Errno 2] No such file or directory: '/ckpt/tokenizer.json'"),
    (FailureKind.CHECKPOINT, "RuntimeError", "/ckpt/tokenizer.model was not found"),
    (FailureKind.GPU_COUNT, "RuntimeError", "Only 4 GPUs are available, but 8 are required."),
    (FailureKind.DIED, "RuntimeError", "Executor worker died during initialization"),
    (FailureKind.DIED, "RuntimeError", "MPI_ABORT was invoked on rank 0 in communicator MPI_COMM_WORLD"),
    (FailureKind.GPU_FAULT, "RuntimeError", "CUDA error: an illegal memory access was encountered"),
    (FailureKind.GPU_FAULT, "AcceleratorError", "CUDA error: unspecified launch failure\nCUDA kernel errors might be"),
    (FailureKind.GPU_FAULT, "DistBackendError", "NCCL error in: ProcessGroupNCCL.cpp:94, unhandled cuda error"),
    (
        FailureKind.GPU_FAULT,
        "RuntimeError",
        "WorkNCCL(SeqNum=9, OpType=ALLREDUCE) ran for 600000 ms before timing out.",
    ),
    (FailureKind.GPU_FAULT, "RuntimeError", "NCCL operation timed out after 600 s"),
    (FailureKind.REQUEST, "RequestError", "the input is empty"),
    (FailureKind.REQUEST, "ValueError", "Requests failed: the input is empty (3 requests)"),
    (
        FailureKind.REQUEST,
        "ValueError",
        "The sum of prompt length (9000) and query length should not exceed max_num_tokens",
    ),
    (FailureKind.REQUEST, "ValueError", "prompt of 9000 tokens exceeds the engine's max_num_tokens (8192)"),
    (FailureKind.REQUEST, "WrongOutput", "request 3: asked for 128 tokens, got 127, finished by 'stop'"),
    (FailureKind.BAD_REPORT, "WrongLogprobs", "0 prompt logprobs for 5 tokens"),
    # A request is lost with what its worker died of.
    (FailureKind.OUT_OF_MEMORY, "RequestError", "CUDA out of memory. Tried to allocate 2.00 GiB"),
    (FailureKind.GPU_FAULT, "RequestError", "CUDA error: an illegal memory access was encountered"),
    # What is written where all is well.
    (FailureKind.CRASHED, "RuntimeError", "Found /ckpt/hf_quant_config.json, pre-quantized checkpoint is used."),
    (FailureKind.CRASHED, "RuntimeError", "Loading tokenizer.json"),
]


@pytest.mark.parametrize(
    ("kind", "type_name", "message"),
    [
        *((FailureKind.OUT_OF_MEMORY, *signs) for signs in OUT_OF_MEMORY),
        *((FailureKind.DISK_FULL, *signs) for signs in DISK_FULL),
        *((FailureKind.NOT_INSTALLED, *signs) for signs in NOT_INSTALLED),
        *((FailureKind.CRASHED, *signs) for signs in CRASHED),
        *TENSORRT_LLM,
        (FailureKind.PROTOCOL, "NotJson", "the result cannot be written as JSON: nan"),
        (FailureKind.DIED, "RuntimeError", "rank 3 died by signal 11 (SIGSEGV)"),
    ],
)
def test_an_exception_is_known_by_its_type_or_text(kind: FailureKind, type_name: str, message: str) -> None:
    failure = classify(Phase.RUN, type_name, message)

    assert (failure.kind, failure.phase) == (kind, Phase.RUN)
    assert failure.problem.startswith(f"{type_name}: {message[:20]}".removesuffix(": "))


def test_a_failure_says_what_happened_when_what_to_do_and_where_more_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    failure = classify(Phase.LOAD, "MemoryError", "", log=tmp_path / "engine.log")

    assert str(failure) == (
        "the engine ran out of memory (load): MemoryError\n"
        "use fewer slots, shorter requests or a smaller model, or spread it over more GPUs\n"
        "log: engine.log"
    )


def test_a_hang_names_the_word_of_the_deadline_to_raise() -> None:
    failure = EngineFailure(FailureKind.HANG, Phase.CLOSE, "'close' took longer than 60 s")

    assert str(failure).splitlines() == [
        "the engine hangs (close): 'close' took longer than 60 s",
        "if it is only slow, raise close= in llamaperf_deadlines",
    ]


def test_a_failure_quotes_the_log_and_names_processes_that_would_not_end() -> None:
    failure = EngineFailure(
        FailureKind.DIED, Phase.RUN, "signal 9", log=Path("/x/log"), last_lines=["one", "two"], remains=[12, 13]
    )

    assert str(failure).splitlines()[2:] == [
        "could not be ended: process 12, process 13",
        "log: /x/log, which ends with",
        "    one",
        "    two",
    ]


@pytest.mark.parametrize("kind", FailureKind)
def test_every_kind_is_told_in_two_lines_and_is_an_engine_error(kind: FailureKind) -> None:
    failure = EngineFailure(kind, Phase.RUN, "a problem")

    happened, advice = str(failure).splitlines()
    assert happened.endswith(" (run): a problem")
    assert advice
    assert "{" not in advice
    assert isinstance(failure, EngineError)


def test_a_message_without_end_is_cut_but_searched_to_its_end() -> None:
    frames = "\n".join(f"frame #{number}" for number in range(50))

    failure = classify(Phase.RUN, "RuntimeError", f"{frames}\nCUDA out of memory")

    assert failure.kind is FailureKind.OUT_OF_MEMORY
    assert failure.problem.splitlines()[-2:] == ["frame #7", "..."]


@pytest.mark.parametrize(("kind", "type_name", "message"), TENSORRT_LLM)
def test_the_same_is_known_by_the_last_line_of_a_traceback(kind: FailureKind, type_name: str, message: str) -> None:
    traceback = [
        "Traceback (most recent call last):",
        '  File "/llm.py", line 7, in __init__',
        f"    raise {type_name}()",
    ]

    failure = classify_output(Phase.RUN, 1, [*traceback, *f"{type_name}: {message}".splitlines()])

    assert failure.kind is kind


@pytest.mark.parametrize("module", ["torch", "torch.cuda", "tensorrt_llm.executor.utils", "a.b"])
@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (FailureKind.OUT_OF_MEMORY, "OutOfMemoryError: no room"),
        (FailureKind.REQUEST, "RequestError: the input is empty"),
        (FailureKind.NOT_INSTALLED, "ModuleNotFoundError: No module named 'tensorrt_llm'"),
        (FailureKind.CRASHED, "RuntimeError: the shapes do not fit"),
    ],
    ids=str,
)
def test_an_exception_in_a_traceback_may_stand_with_its_module(module: str, kind: FailureKind, line: str) -> None:
    failure = classify_output(Phase.RUN, 1, ["Traceback (most recent call last):", f"{module}.{line}"])

    assert failure.kind is kind
    assert failure.problem == f"exit status 1: {module}.{line}"


SHUTTING_DOWN = ["[TRT-LLM] [I] shutting down", "Exception ignored in: <function LLM.__del__>", ""]


def test_the_line_that_tells_need_not_be_the_last() -> None:
    lines = ["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 896.00 MiB.", *SHUTTING_DOWN]

    failure = classify_output(Phase.RUN, 1, lines)

    assert failure.kind is FailureKind.OUT_OF_MEMORY
    assert failure.problem == f"exit status 1: {lines[0]}"


def test_of_several_lines_that_tell_the_last_counts() -> None:
    lines = ["OSError: [Errno 28] No space left on device: '/x'", "RuntimeError: CUDA error: out of memory"]

    assert classify_output(Phase.RUN, 1, lines).kind is FailureKind.OUT_OF_MEMORY
    assert classify_output(Phase.RUN, 1, lines[::-1]).kind is FailureKind.DISK_FULL


@pytest.mark.parametrize(
    "consequence",
    [
        "RuntimeError: Executor worker died during initialization",
        "MPI_ABORT was invoked on rank 0 in communicator MPI_COMM_WORLD",
        "ValueError: Requests failed: the executor has shut down (12 requests)",
        "tensorrt_llm.executor.utils.RequestError: the executor has shut down",
    ],
)
@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        (FailureKind.OUT_OF_MEMORY, "torch.OutOfMemoryError: CUDA out of memory."),
        (FailureKind.GPU_FAULT, "RuntimeError: CUDA error: an illegal memory access was encountered"),
        (FailureKind.CHECKPOINT, "NotImplementedError: Unsupported quantization_config: {}"),
    ],
    ids=str,
)
def test_what_a_worker_died_of_counts_before_its_death(kind: FailureKind, cause: str, consequence: str) -> None:
    failure = classify_output(Phase.RUN, 1, [cause, consequence, *SHUTTING_DOWN])

    assert failure.kind is kind
    assert failure.problem == f"exit status 1: {cause}"


def test_that_a_checkpoint_was_found_is_no_failure_of_it() -> None:
    lines = [
        "[TRT-LLM] [I] Found /ckpt/hf_quant_config.json, pre-quantized checkpoint is used.",
        "RuntimeError: the shapes do not fit",
    ]

    failure = classify_output(Phase.RUN, 1, lines)

    assert failure.kind is FailureKind.CRASHED
    assert failure.problem == "exit status 1: RuntimeError: the shapes do not fit"


@pytest.mark.parametrize(
    "line",
    [
        "RuntimeError: Executor creation failed due to insufficient GPU memory.",
        "RuntimeError: Executor worker died during initialization",
        "RuntimeError: Only 4 GPUs are available, but 8 are required.",
        "NotImplementedError: Unsupported quantization_config: {}",
    ],
)
def test_what_only_a_start_can_say_happened_while_it_loaded(line: str) -> None:
    assert classify_output(Phase.RUN, 1, [line]).phase is Phase.LOAD


def test_a_worker_that_died_of_memory_while_it_started_ran_out_while_it_loaded() -> None:
    lines = ["torch.OutOfMemoryError: CUDA out of memory.", "RuntimeError: Executor worker died during initialization"]

    failure = classify_output(Phase.RUN, 1, lines)

    assert (failure.kind, failure.phase) == (FailureKind.OUT_OF_MEMORY, Phase.LOAD)


def test_memory_that_ran_out_later_ran_out_in_the_run() -> None:
    assert classify_output(Phase.RUN, 1, ["torch.OutOfMemoryError: CUDA out of memory."]).phase is Phase.RUN


@pytest.mark.parametrize(("status", "signal"), [(-9, 9), (137, 9), (-6, 6), (134, 6), (-11, 11)])
def test_an_end_by_a_signal_is_a_death_however_a_shell_tells_it(status: int, signal: int) -> None:
    failure = classify_output(Phase.RUN, status, ["[TRT-LLM] [I] request 100 of 3000"])

    assert failure.kind is FailureKind.DIED
    assert failure.problem == f"died by signal {signal} after: [TRT-LLM] [I] request 100 of 3000"


@pytest.mark.parametrize("status", [-9, 137, -6, 134])
def test_a_signal_after_a_line_that_tells_is_of_that_kind(status: int) -> None:
    failure = classify_output(Phase.RUN, status, ["RuntimeError: CUDA error: an illegal memory access was encountered"])

    assert failure.kind is FailureKind.GPU_FAULT
    assert failure.problem.startswith("died by signal ")


@pytest.mark.parametrize("lines", [[], [""], ["", "  "]])
def test_a_death_without_a_word_is_told_without_one(lines: list[str]) -> None:
    assert classify_output(Phase.RUN, -9, lines).problem == "died by signal 9"
    assert classify_output(Phase.RUN, 1, lines).problem == "exit status 1: "


@pytest.mark.parametrize(
    "error",
    [
        "Error: No such option: --request_jsn Did you mean --request_json?",
        "Error: Missing option '--model' / '-m'.",
        "Error: Invalid value for '--dataset': Path '/x' does not exist.",
        "Error: something that click says in its next version",
    ],
)
def test_status_2_is_a_line_that_was_not_understood(error: str) -> None:
    usage = ["Usage: trtllm-bench throughput [OPTIONS]", "Try 'trtllm-bench throughput --help' for help.", ""]

    failure = classify_output(Phase.RUN, 2, [*usage[1:], error])

    assert failure.kind is FailureKind.USAGE
    assert failure.problem == f"exit status 2: {error}"


def test_what_was_not_understood_is_told_before_how_it_is_used() -> None:
    lines = ["Usage: trtllm-bench [OPTIONS] COMMAND [ARGS]...", "", "Error: Missing option '--model' / '-m'."]

    assert classify_output(Phase.RUN, 2, lines).problem == f"exit status 2: {lines[-1]}"


def test_status_2_of_something_else_is_that() -> None:
    assert classify_output(Phase.RUN, 2, ["MemoryError"]).kind is FailureKind.OUT_OF_MEMORY


def test_status_1_with_nothing_known_is_a_crash_told_by_its_exception() -> None:
    lines = ["Traceback (most recent call last):", "KeyError: 'x'", "some.module.StrangeError: odd", *SHUTTING_DOWN]

    failure = classify_output(Phase.RUN, 1, lines, log=Path("/x/log"))

    assert failure.kind is FailureKind.CRASHED
    assert failure.problem == "exit status 1: some.module.StrangeError: odd"
    assert failure.log == Path("/x/log")


def test_an_end_that_nothing_explains_is_told_by_its_last_words() -> None:
    assert classify_output(Phase.RUN, 1, ["one", "two", ""]).problem == "exit status 1: two"


@pytest.mark.parametrize(
    ("kind", "phase", "remains", "expected"),
    [
        (FailureKind.HANG, Phase.CLOSE, (), True),
        (FailureKind.HANG, Phase.CLOSE, (12,), False),
        (FailureKind.HANG, Phase.RUN, (), False),
        (FailureKind.HANG, Phase.LOAD, (), False),
        (FailureKind.DIED, Phase.CLOSE, (), False),
        (FailureKind.CRASHED, Phase.CLOSE, (), False),
    ],
)
def test_only_an_engine_that_would_not_end_and_is_gone_has_done_its_work(
    kind: FailureKind, phase: Phase, remains: tuple[int, ...], expected: bool
) -> None:
    assert EngineFailure(kind, phase, "a problem", remains=remains).after_the_work is expected
