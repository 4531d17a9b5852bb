"""What trtllm-bench says of a run: the object of --report_json, and the lines that people and other tests read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .driving import Record
from .percentiles import percentiles
from .versions import Version

MS, S = 1e-6, 1e9  # nanoseconds to milliseconds; per nanosecond to per second
WATTS = 10.0  # of a CPU second: there is no GPU whose energy could be read


@dataclass(frozen=True)
class Run:
    """`asked` are the settings of the command line, which the user's YAML may have overruled without a word."""

    model: str
    model_path: Path
    asked: dict[str, Any]
    args: Any  # LLM.args
    dtype: str
    dataset: dict[str, Any]
    records: Sequence[Record]
    streaming: bool
    cpu_seconds: float


def report(run: Run, kind: Version) -> dict[str, Any]:
    quantization, world = run.args.quant_config, run.asked["tp"] * run.asked["pp"]
    told: dict[str, Any] = {
        "engine": {
            "model": run.model,
            "model_path": str(run.model_path),
            "engine_dir": "None",
            "version": version("tensorrt_llm"),
            "backend": "Pytorch",
            "dtype": run.dtype,
            "kv_cache_dtype": quantization.kv_cache_quant_algo,
            "quantization": quantization.quant_algo,
        }
    }
    if kind.machine_in_report:
        told["machine"] = _machine()
    starts = [record.start_timestamp for record in run.records]
    told["world_info"] = {
        "tp_size": run.asked["tp"],
        "pp_size": run.asked["pp"],
        "ep_size": run.asked["ep"],
        "world_size": world,
        "max_batch_size": run.asked["max_batch_size"],
        "max_num_tokens": run.asked["max_num_tokens"],
        "scheduling_policy": run.asked["scheduler_policy"].upper(),
        "kv_cache_percentage": run.args.kv_cache_config.free_gpu_memory_fraction,
        "issue_rate": (max(starts) - min(starts)) / len(starts) * S,  # no rate, but this is how it is computed
    }
    told |= _measured(run.records, world)
    if run.streaming:
        told["streaming_metrics"] = _streaming(run.records)
    if kind.energy_in_report:
        told["energy"] = _energy(run.cpu_seconds, told["performance"])
    told["dataset"] = run.dataset
    return told


def _measured(records: Sequence[Record], world: int) -> dict[str, Any]:
    count = len(records)
    total = max(record.end_timestamp for record in records) - min(record.start_timestamp for record in records)
    said, asked = sum(record.said for record in records), sum(record.num_input_tokens for record in records)
    latencies = [record.latency for record in records]
    return {
        "request_info": {
            "num_requests": count,
            "avg_num_concurrent_requests": sum(latencies) / total,
            "avg_input_length": asked / count,
            "avg_output_length": said / count,
        },
        "performance": {
            "total_latency_ms": total * MS,
            "avg_request_latency_ms": sum(latencies) / count * MS,
            "request_throughput_req_s": count / total * S,
            "system_output_throughput_tok_s": said / total * S,
            "system_total_throughput_tok_s": (asked + said) / total * S,
            "output_throughput_per_user_tok_s": sum(record.said / record.latency for record in records) / count * S,
            "output_throughput_per_gpu_tok_s": said / total * S / world,
            "request_latency_percentiles_ms": percentiles(latencies, MS),
        },
    }


def _streaming(records: Sequence[Record]) -> dict[str, Any]:
    tpot = percentiles([record.tpot for record in records], MS)
    ttft = percentiles([record.ttft for record in records], MS)
    speed = percentiles([record.generation_speed for record in records], S)
    return {
        "token_output_speed_tok_s": speed["average"],
        "avg_ttft_ms": ttft["average"],
        "avg_tpot_ms": tpot["average"],
        "tpot_percentiles": tpot,
        "ttft_percentiles": ttft,
        "gen_tps_percentiles": speed,
    }


def _energy(cpu_seconds: float, performance: dict[str, Any]) -> dict[str, float]:
    joules = cpu_seconds * WATTS
    watts = joules / (performance["total_latency_ms"] / 1000)
    return {
        "total_energy_j": joules,
        "output_tps_per_w": performance["system_output_throughput_tok_s"] / watts,
        "average_gpu_power": watts,
    }


def _machine() -> dict[str, Any] | None:
    name = os.environ.get("TRTLLM_DOUBLE_GPU_NAME")
    return {"name": name, "memory.total": 139.8, "clocks.mem": 3.201} if name else None


def overview(told: dict[str, Any]) -> str:
    """The lines that NVIDIA's own tests look for, with those around them."""
    engine, world, requests, speed = (told[key] for key in ("engine", "world_info", "request_info", "performance"))
    lines = [
        *_title("PYTORCH BACKEND"),
        f"Model:\t\t\t{engine['model']}",
        f"Model Path:\t\t{engine['model_path']}",
        f"TensorRT LLM Version:\t{engine['version']}",
        f"Dtype:\t\t\t{engine['dtype']}",
        f"KV Cache Dtype:\t\t{engine['kv_cache_dtype']}",
        f"Quantization:\t\t{engine['quantization']}",
        "",
        *_title("REQUEST DETAILS"),
        f"Number of requests:             {requests['num_requests']}",
        f"Number of concurrent requests:  {requests['avg_num_concurrent_requests']:.4f}",
        f"Average Input Length (tokens):  {requests['avg_input_length']:.4f}",
        f"Average Output Length (tokens): {requests['avg_output_length']:.4f}",
        *_title("WORLD + RUNTIME INFORMATION"),
        f"TP Size:                {world['tp_size']}",
        f"PP Size:                {world['pp_size']}",
        f"EP Size:                {world['ep_size']}",
        f"Max Runtime Batch Size: {world['max_batch_size']}",
        f"Max Runtime Tokens:     {world['max_num_tokens']}",
        f"Scheduling Policy:      {world['scheduling_policy']}",
        f"KV Memory Percentage:   {100 * (world['kv_cache_percentage'] or 0):.2f}%",
        f"Issue Rate (req/sec):   {world['issue_rate']:.4E}",
        "",
        *_title("PERFORMANCE OVERVIEW"),
        f"Request Throughput (req/sec):                     {speed['request_throughput_req_s']:.4f}",
        f"Total Output Throughput (tokens/sec):             {speed['system_output_throughput_tok_s']:.4f}",
        f"Total Token Throughput (tokens/sec):              {speed['system_total_throughput_tok_s']:.4f}",
        f"Total Latency (ms):                               {speed['total_latency_ms']:.4f}",
        f"Average request latency (ms):                     {speed['avg_request_latency_ms']:.4f}",
        f"Per User Output Throughput [w/ ctx] (tps/user):   {speed['output_throughput_per_user_tok_s']:.4f}",
        f"Per GPU Output Throughput (tps/gpu):              {speed['output_throughput_per_gpu_tok_s']:.4f}",
    ]
    streaming = told.get("streaming_metrics")
    if streaming:
        lines += [
            f"Average time-to-first-token [TTFT] (ms):          {streaming['avg_ttft_ms']:.4f}",
            f"Average time-per-output-token [TPOT] (ms):        {streaming['avg_tpot_ms']:.4f}",
            f"Per User Output Speed (tps/user):                 {streaming['token_output_speed_tok_s']:.4f}",
        ]
    latencies = speed["request_latency_percentiles_ms"].items()
    lines += ["", "-- Request Latency Breakdown (ms) -----------------------", ""]
    lines += [f"[Latency] {key.upper():<7}: {value:.4f}" for key, value in latencies]
    return "\n".join(lines)


def _title(text: str) -> list[str]:
    return ["=" * 59, f"= {text}", "=" * 59]
