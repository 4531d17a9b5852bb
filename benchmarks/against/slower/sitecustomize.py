"""With this folder in PYTHONPATH, every decoding step of the torch engine takes SLOWER_DECODE (0.05: 5 %) more time."""

from __future__ import annotations

import importlib.machinery
import os
import sys
import time
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any


class SlowedDecode(MetaPathFinder):
    def __init__(self, share: float) -> None:
        self._share = share

    def find_spec(
        self, name: str, path: Any, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not name.endswith("torch_llama.stages"):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            load, share = spec.loader.exec_module, self._share

            def exec_module(module: ModuleType) -> None:
                load(module)
                slow_down(module, share)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def slow_down(module: ModuleType, share: float) -> None:
    choose = module.Stage.choose

    def slower(stage: Any, step: Any, **how: Any) -> Any:
        began = time.perf_counter()
        found = choose(stage, step, **how)
        if isinstance(step, module.DecodeStep):
            until = time.perf_counter() + share * (time.perf_counter() - began)
            while time.perf_counter() < until:  # at work, as slower code is
                pass
        return found

    module.Stage.choose = slower


if share := float(os.environ.get("SLOWER_DECODE", "0")):
    sys.meta_path.insert(0, SlowedDecode(share))
