"""A report of trtllm-bench that somebody made without this project: `trtllm-bench ... throughput --report_json FILE`.

engines.trtllm.report judges reports of our own runs against what was asked; here nobody knows what was asked, so the
case is what the report says it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pytest_llamaperf.catalog import recipes
from pytest_llamaperf.engines.trtllm.contract import KV_CACHE, QUANTIZATION
from pytest_llamaperf.engines.trtllm.report import FIGURES
from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.importing.reading import LeftOut, Told, at, digest_of, gpu_part, model_part, needed, number, part
from pytest_llamaperf.measurements import Source
from pytest_llamaperf.observations import Observation

TOOL = "trtllm-bench"
_SETTINGS = ("max_batch_size", "max_num_tokens", "scheduling_policy", "kv_cache_percentage", "ep_size")


def observations(where: str, report: Mapping[str, Any], told: Told, left_out: LeftOut) -> Iterator[Observation]:
    case = _case(where, report, told)
    version, machine = at(report, "engine", "version"), at(report, "machine")
    backend = str(at(report, "engine", "backend")).lower()
    single_tokens = needed(where, report, "request_info", "avg_output_length") <= 1  # a time of 0 for those after it
    for metric, (place, scale) in FIGURES.items():
        value = number(where, report, *place.split("."))
        if value is None or (single_tokens and metric.name.startswith("tpot")):
            left_out[f"no {metric} in this report"] += 1
            continue
        if value <= 0:
            raise UsageError(f"{where}: {place} is {value:g}, and should be above 0: were there requests that failed?")
        yield Observation(
            case=case,
            metric=metric.name,
            unit=metric.unit,
            better=metric.better.value,
            source=Source.MEASURED.value,
            value=value * scale,
            run=f"{TOOL}-{digest_of(report)}",
            harness=f"{TOOL}/{backend}",
            version=str(version) if version else None,
            versions={"tensorrt_llm": str(version)} if version else {},
            settings={name: at(report, "world_info", name) for name in _SETTINGS if at(report, "world_info", name)},
            machine=machine if isinstance(machine, dict) else {},
        )


def _case(where: str, report: Mapping[str, Any], told: Told) -> str:
    product = at(report, "machine", "name")
    if not product and told.gpu is None:
        raise UsageError(f"{where}: does not say on which GPU (TensorRT-LLM before 1.2 does not); add it: --gpu h200")
    model, published_as = model_part(str(at(report, "engine", "model")))
    tp, pp = (int(needed(where, report, "world_info", name)) for name in ("tp_size", "pp_size"))
    layout = f"tp{tp}" + (f"-pp{pp}" if pp > 1 else "")
    hardware = gpu_part(str(product)) if product else str(told.gpu)
    recipe = published_as or _recipe(report)
    return "/".join(
        (hardware, TOOL, model, recipe, layout, f"{_scenario(where, report, told)}-{_lengths(where, report)}")
    )


def _recipe(report: Mapping[str, Any]) -> str:
    """The catalog's, where weights of all layers and the KV cache are stored alike; else the report's own words."""
    weights, cache = (_as_none(at(report, "engine", name)) for name in ("quantization", "kv_cache_dtype"))
    for recipe in recipes().values():
        alike = recipe.attention == recipe.feed_forward and recipe.feed_forward in QUANTIZATION
        if alike and QUANTIZATION[recipe.feed_forward] == weights and KV_CACHE.get(recipe.kv_cache, "") == cache:
            return recipe.name
    return part(f"{weights or 'bf16'}" + (f"-{cache}kv" if cache else ""))


def _scenario(where: str, report: Mapping[str, Any], told: Told) -> str:
    """How requests arrived, which no report says; how many were in flight on average it does.

    Where all arrive at once, half of them or more are in flight on average, whichever finish first.
    """
    if told.scenario is not None:
        return told.scenario
    flying = needed(where, report, "request_info", "avg_num_concurrent_requests")
    requests = needed(where, report, "request_info", "num_requests")
    if flying <= 1.05:
        return "min-latency"
    if flying >= 0.4 * requests:
        return "max-throughput"
    raise UsageError(
        f"{where}: had {flying:.1f} of {requests:.0f} requests in flight on average, and does not say how many there "
        f"could be; add it: --scenario concurrency-{flying:.0f}"
    )


def _lengths(where: str, report: Mapping[str, Any]) -> str:
    """ISL-OSL, or a name of their means where requests differ, so that nobody takes those for equal ones."""
    isl, osl = (needed(where, report, "request_info", f"avg_{name}_length") for name in ("input", "output"))
    spread = [
        at(report, "dataset", stats, end) for stats in ("isl_stats", "osl_stats") for end in ("minimum", "maximum")
    ]
    equal = spread[0] == spread[1] and spread[2] == spread[3]
    return f"{isl:.0f}-{osl:.0f}" if equal else f"mixed_{isl:.0f}_{osl:.0f}"


def _as_none(value: object) -> str | None:
    """trtllm-bench writes some absent values as the word."""
    return None if value in (None, "None") else re.sub(r"^QuantAlgo\.", "", str(value))
