"""What a double does wrong when asked to: TRTLLM_DOUBLE_FAULT=<name of a fault below>.

With TRTLLM_DOUBLE_FAULT_ONCE=<path> only the first process that gets to its fault does it: it leaves the file as a mark.
A fault belongs to a place in the life of a double, where it may raise, never return, or change the value it is given.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn

from .errors import RequestError


class Place(StrEnum):
    """Where doubles look for a fault, and what value is at stake there."""

    VERSION = "importing tensorrt_llm: its __version__"
    CONSTRUCTION = "making an LLM, before its network is loaded: how many GPUs were asked for"
    GRAPHS = "making an LLM, after its network is loaded"
    ARGUMENTS = "LLM.args"
    SUBMISSION = "submitting a request: its number, from 1"
    ENDING = "how a request ends, or None; and the request"
    STEP = "the number of a step of the network, from 1"
    METRICS = "metrics_dict, with its names as strings"
    LOGPROBS = "prompt_logprobs, and the tokens they are about"
    LOGITS = "context_logits"
    SHUTDOWN = "LLM.shutdown"
    BENCHMARK = "trtllm-bench, before its measured requests"
    REQUESTS = "the list of --request_json"
    REPORT = "the object of --report_json"
    WRITING = "the text of --report_json"


Act = Callable[..., Any]
CATALOGUE: dict[str, dict[Place, Act]] = {}
MIDDLE = 3  # the step in which something breaks: a few tokens are there already


def at(place: Place, value: Any = None, *more: Any) -> Any:
    """The value, as the fault that is asked for leaves it. `more` is what it may look at."""
    name, once = os.environ.get("TRTLLM_DOUBLE_FAULT"), os.environ.get("TRTLLM_DOUBLE_FAULT_ONCE")
    if not name:
        return value
    if name not in CATALOGUE:
        raise ValueError(
            f"TRTLLM_DOUBLE_FAULT={name}: there is no such fault; known are {', '.join(sorted(CATALOGUE))}"
        )
    act = CATALOGUE[name].get(place)
    if act is None or (once and not _is_ours(Path(once))):
        return value
    return act(value, *more)


def _is_ours(mark: Path) -> bool:
    """The mark bears the number of the process that does the fault; the first one there writes it."""
    if not mark.exists():
        mark.write_text(str(os.getpid()), encoding="utf-8")
    return mark.read_text(encoding="utf-8") == str(os.getpid())


def fault(name: str, place: Place) -> Callable[[Act], Act]:
    def entered(act: Act) -> Act:
        CATALOGUE.setdefault(name, {})[place] = act
        return act

    return entered


def in_the_middle(act: Act) -> Act:
    """The act, once the network has made its first steps."""

    @functools.wraps(act)
    def later(number: int) -> Any:
        return act(number) if number >= MIDDLE else None

    return later


def for_ever(_: Any = None) -> NoReturn:
    while True:
        time.sleep(3600)


def out_of_memory() -> NoReturn:
    from torch import OutOfMemoryError

    raise OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.81 GiB of which 1.12 GiB is "
        "free. Process 4242 has 138.68 GiB memory in use."
    )


# Making an LLM.


@fault("oom_init", Place.CONSTRUCTION)
def _(_: Any) -> NoReturn:
    """The executor cannot be created: GPU memory does not suffice."""
    raise RuntimeError(
        "Executor creation failed due to insufficient GPU memory.\n\nThe following component could not be created: "
        "Initial KV cache (temporary for KV cache size estimation)\nTotal GPU memory (GiB): 139.81\n"
        "Free GPU memory before component creation attempt (GiB):\nModel: 1.12"
    )


@fault("oom_graphs", Place.GRAPHS)
def _(_: Any) -> NoReturn:
    """torch runs out of memory while CUDA graphs are captured."""
    out_of_memory()


@fault("worker_died_init", Place.CONSTRUCTION)
def _(_: Any) -> NoReturn:
    """A worker is gone before the LLM is ready."""
    raise RuntimeError("Executor worker died during initialization")


@fault("gpu_count", Place.CONSTRUCTION)
def _(gpus: int) -> NoReturn:
    """One GPU is missing."""
    raise RuntimeError(f"Only {gpus - 1} GPUs are available, but {gpus} are required.")


@fault("hang_init", Place.CONSTRUCTION)
def _(_: Any) -> NoReturn:
    """The LLM is never ready."""
    for_ever()


# What an LLM says of itself.


@fault("wrong_config", Place.ARGUMENTS)
def _(args: Any) -> Any:
    """It runs with half the batch size it was asked for, and says so only in LLM.args."""
    args.max_batch_size = max(1, (args.max_batch_size or 2048) // 2)
    return args


@fault("wrong_quant", Place.ARGUMENTS)
def _(args: Any) -> Any:
    """A quantized checkpoint is taken for one that is not."""
    args.quant_config.quant_algo = None
    return args


@fault("wrong_version", Place.VERSION)
def _(version: str) -> str:
    """The module says another version than its metadata."""
    return f"{version}.post1"


@fault("wrong_version", Place.REPORT)
def _(report: dict[str, Any]) -> dict[str, Any]:
    """The report says another version than the package."""
    report["engine"]["version"] += ".post1"
    return report


# Running.


@fault("oom_run", Place.STEP)
@in_the_middle
def _(_: Any) -> NoReturn:
    """torch runs out of memory in the middle of a run."""
    out_of_memory()


@fault("worker_killed", Place.STEP)
@in_the_middle
def _(_: Any) -> None:
    """The process is killed in the middle of a run, as by the kernel when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


@fault("illegal_memory", Place.STEP)
@in_the_middle
def _(_: Any) -> NoReturn:
    """A kernel reads where it must not."""
    raise RuntimeError(
        "CUDA error: an illegal memory access was encountered\n"
        "CUDA kernel errors might be asynchronously reported at some other API call."
    )


@fault("nccl", Place.STEP)
@in_the_middle
def _(_: Any) -> NoReturn:
    """GPUs lose one another."""
    raise RuntimeError("NCCL error in: ncclUtils.cpp:88, unhandled cuda error (run with NCCL_DEBUG=INFO for details)")


@fault("hang_run", Place.STEP)
@in_the_middle
def _(_: Any) -> NoReturn:
    """No result ever comes."""
    for_ever()


@fault("request_error", Place.SUBMISSION)
def _(number: int) -> None:
    """The first request fails, and no other."""
    if number == 1:
        raise RequestError("Encountered an error in this request")


@fault("short_output", Place.ENDING)
def _(ended: tuple[str, Any] | None, request: Any) -> tuple[str, Any] | None:
    """Every request ends a token early, as if it had nothing more to say."""
    return ("stop", None) if len(request.tokens) >= max(1, request.ending.most - 1) else ended


@fault("slow_clock", Place.METRICS)
def _(metrics: dict[str, float]) -> dict[str, float]:
    """The LLM's own times are twice as long as they were."""
    times = ("ttft", "tpot", "e2e", "request_queue_time", "prefill_time", "decode_time", "inference_time")
    return {name: value * 2 if name in times else value for name, value in metrics.items()}


@fault("missing_logprob", Place.LOGPROBS)
def _(given: tuple[list[dict[int, Any]], list[int]]) -> tuple[list[dict[int, Any]], list[int]]:
    """In the middle of prompt_logprobs the prompt's own token is not among those told."""
    rows, tokens = given
    rows[len(rows) // 2].pop(tokens[len(rows) // 2], None)
    return given


@fault("truncated_logits", Place.LOGITS)
def _(logits: Any) -> Any:
    """The first rows of context_logits are missing."""
    return logits[2:]


# Ending.


@fault("hang_shutdown", Place.SHUTDOWN)
def _(_: Any) -> NoReturn:
    """shutdown() waits for workers that never end."""
    for_ever()


@fault("hang_exit", Place.GRAPHS)
def _(_: Any) -> None:
    """All is done and written, and the interpreter does not end."""
    atexit.register(for_ever)


# trtllm-bench. What goes wrong in its LLM goes wrong in it.


@fault("exit_without_report", Place.BENCHMARK)
def _(_: Any) -> NoReturn:
    """It ends with status 0 and has written nothing."""
    raise SystemExit(0)


@fault("sigint", Place.BENCHMARK)
def _(_: Any) -> None:
    """Somebody interrupts it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)


@fault("exit_1", Place.BENCHMARK)
def _(_: Any) -> NoReturn:
    """Something nobody thought of."""
    raise AssertionError("something nobody thought of")


@fault("requests_failed", Place.BENCHMARK)
def _(_: Any) -> NoReturn:
    """Some requests failed, and it says so."""
    raise ValueError("Requests failed: Encountered an error in forward function (2 requests)")


@fault("bad_request_json", Place.REQUESTS)
def _(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first request ends before it starts."""
    requests[0]["end_timestamp"] = requests[0]["start_timestamp"] - 1
    return requests


@fault("wrong_tp", Place.REPORT)
def _(report: dict[str, Any]) -> dict[str, Any]:
    """It ran on more GPUs than it was asked to."""
    report["world_info"]["tp_size"] += 1
    return report


@fault("wrong_batch", Place.REPORT)
def _(report: dict[str, Any]) -> dict[str, Any]:
    """It ran with another batch size than it was asked to."""
    report["world_info"]["max_batch_size"] += 1
    return report


@fault("wrong_count", Place.REPORT)
def _(report: dict[str, Any]) -> dict[str, Any]:
    """One request was not counted."""
    report["request_info"]["num_requests"] -= 1
    return report


@fault("nan", Place.REPORT)
def _(report: dict[str, Any]) -> dict[str, Any]:
    """A number is none."""
    report["performance"]["system_output_throughput_tok_s"] = float("nan")
    return report


@fault("missing_key", Place.REPORT)
def _(report: dict[str, Any]) -> dict[str, Any]:
    """The throughput is not in the report."""
    del report["performance"]["system_output_throughput_tok_s"]
    return report


@fault("inconsistent", Place.REPORT)
def _(report: dict[str, Any]) -> dict[str, Any]:
    """The throughput is not that of the tokens and the time beside it."""
    report["performance"]["system_output_throughput_tok_s"] *= 2
    return report


@fault("truncated_report", Place.WRITING)
def _(text: str) -> str:
    """The file ends in its middle, at a byte that ends nothing."""
    json.loads(text)  # what is cut was whole
    return text[: len(text) // 2]
