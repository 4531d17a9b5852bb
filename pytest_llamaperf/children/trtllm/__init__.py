"""TensorRT-LLM on its own side: the LLM API, and trtllm-bench as a subprocess.

probing     what is installed, and what it accepts
serving     an LLM: opened, asked, closed            requests   requests by the clock
scoring     log-likelihoods and distributions, by two ways of asking
command     trtllm-bench: run to its end, or to its report

It decides nothing: what is asked, and whether the answer is acceptable, is `engines/trtllm`. It imports tensorrt_llm when
a command needs it, and of the rest of pytest_llamaperf nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from . import command, probing
from .serving import Serving

Report = Callable[..., None]


def open_driver(report: Report) -> Driver:
    return Driver(report)


class Driver:
    """`probe` and `bench` at any time; `load` once, then run, generate, score, distributions, encode, decode."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._serving: Serving | None = None

    def handle(self, name: str, arguments: Mapping[str, Any]) -> Any:
        match name:
            case "probe":
                return probing.llm_api()
            case "probe_bench":
                return probing.bench()
            case "bench":
                return command.run(**arguments, report=self._report)
            case "load":
                self._serving = Serving(**arguments, report=self._report)
                return self._serving.loaded()
            case "run" | "generate" | "score" | "distributions" | "encode" | "decode" if self._serving is not None:
                return getattr(self._serving, name)(**arguments)
        raise ValueError(f"unknown command {name!r}" if self._serving else f"{name!r} before 'load'")

    def close(self) -> None:
        if self._serving is not None:
            self._serving.close()
