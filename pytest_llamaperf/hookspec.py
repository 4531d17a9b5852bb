"""The hook with which a conftest or another plugin adds an engine of its own."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from pytest_llamaperf.engines import Opener


@pytest.hookspec
def pytest_llamaperf_engines(config: pytest.Config) -> Mapping[str, Opener]:  # type: ignore[empty-body]  # a specification
    """Engines of your own for kinds that `--engine` knows (tensorrt-llm, trtllm-bench, torch), in place of the plugin's:
    each kind with the function that opens one. `predicted` stays the plugin's.

    For example, in a conftest.py, to measure TensorRT-LLM through a launcher of your own:

        def pytest_llamaperf_engines():
            return {"tensorrt-llm": lambda spec: OurLauncher(spec.model.name, tp=spec.layout.tp)}

    `spec` is all an engine is opened with, the limits of its batches included (`pytest_llamaperf.engines.EngineSpec`).
    What is returned has `source`, `run(workload)` and `close()` (`Engine`); to be asked for answers it has `encode`,
    `decode`, `generate` and `score` as well (`AnsweringEngine`).
    """
