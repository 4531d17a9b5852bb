"""The hook with which a conftest or another plugin adds an engine of its own."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from pytest_llamaperf.engines import Opener


@pytest.hookspec
def pytest_llamaperf_engines() -> Mapping[str, Opener]:  # type: ignore[empty-body]  # a specification
    """Engines of your own for kinds that `--engine` knows (tensorrt-llm, trtllm-bench, torch), in place of the plugin's:
    each kind with the function that opens one for a case. `predicted` stays the plugin's.

    For example, in a conftest.py, to measure TensorRT-LLM through a launcher of your own:

        def pytest_llamaperf_engines():
            return {"tensorrt-llm": lambda case: OurLauncher(case.model.name, tp=case.layout.tp)}

    What it returns has `source`, `run(workload)` and `close()`; see `pytest_llamaperf.engines.Engine`.
    """
