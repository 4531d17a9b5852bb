"""When what happened to a request, in seconds of time.monotonic, and how TensorRT-LLM tells it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from types import SimpleNamespace

from . import faults

BLOCK = 32  # tokens of KV cache


@dataclass
class Timing:
    arrival: float = 0.0
    scheduled: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    first_step: int = 0
    last_step: int = 0
    prompt: int = 0
    reused: int = 0
    said: int = 0

    def token(self, now: float, step: int) -> None:
        self.first_token = self.first_token or now
        self.last_token, self.last_step = now, step

    def count(self, prompt: int, reused: int, said: int) -> None:
        self.prompt, self.reused, self.said = prompt, reused, said

    def native(self) -> SimpleNamespace:
        """request_perf_metrics, an object of C++ in TensorRT-LLM."""
        blocks, reused = -(-(self.prompt + self.said) // BLOCK), self.reused // BLOCK
        return SimpleNamespace(
            timing_metrics=SimpleNamespace(
                arrival_time=timedelta(seconds=self.arrival),
                first_scheduled_time=timedelta(seconds=self.scheduled),
                first_token_time=timedelta(seconds=self.first_token),
                last_token_time=timedelta(seconds=self.last_token),
            ),
            kv_cache_metrics=SimpleNamespace(
                num_total_allocated_blocks=blocks,
                num_new_allocated_blocks=blocks - reused,
                num_reused_blocks=reused,
                num_missed_blocks=-(-self.prompt // BLOCK) - reused,
            ),
            first_iter=self.first_step,
            last_iter=self.last_step,
        )

    def metrics(self, names: type[Enum]) -> dict[Enum, float]:
        """metrics_dict, in seconds; what is not positive is left out, as is TPOT of a single token."""
        told = {
            "ttft": self.first_token - self.arrival,
            "tpot": (self.last_token - self.first_token) / (self.said - 1) if self.said > 1 else 0.0,
            "e2e": self.last_token - self.arrival,
            "request_queue_time": self.scheduled - self.arrival,
            "arrival_timestamp": self.arrival,
            "prefill_time": self.first_token - self.scheduled,
            "decode_time": self.last_token - self.first_token,
            "inference_time": self.last_token - self.scheduled,
            "prompt_tokens": float(self.prompt),
            "generation_tokens": float(self.said),
        }
        told = faults.at(faults.Place.METRICS, told)
        return {name: told[name.value] for name in names if told[name.value] > 0}
