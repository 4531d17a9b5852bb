"""Failures of engines by what gives them away, and as people are told of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_llamaperf.errors import EngineError
from pytest_llamaperf.hosting.failures import EngineFailure, FailureKind, classify
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


@pytest.mark.parametrize(
    ("kind", "type_name", "message"),
    [
        *((FailureKind.OUT_OF_MEMORY, *signs) for signs in OUT_OF_MEMORY),
        *((FailureKind.DISK_FULL, *signs) for signs in DISK_FULL),
        *((FailureKind.NOT_INSTALLED, *signs) for signs in NOT_INSTALLED),
        *((FailureKind.CRASHED, *signs) for signs in CRASHED),
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
