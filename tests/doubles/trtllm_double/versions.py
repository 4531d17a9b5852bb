"""The versions that are doubled, side by side: all that their behaviour differs in, besides what they accept.

What each accepts as arguments of LLM and its configs stands in its own folder: v1_2/tensorrt_llm/llmapi.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class PromptLogprobs(StrEnum):
    """What `SamplingParams(prompt_logprobs=k)` gives for a position of the prompt."""

    REFUSED = "refused"
    TOP = "the k most likely tokens, whether the prompt's is among them or not"
    WITH_ITS_TOKEN = "the k most likely tokens, and the one that really follows"


@dataclass(frozen=True)
class Version:
    """First the LLM API, then trtllm-bench. `metric_names` are the members of MetricNames.

    `arguments_by_pydantic`: an unknown argument is met by pydantic, not by LLM itself. `sums_up_failures`: a benchmark
    of which requests failed is an error; else they are only missing from what it counts.
    """

    number: str
    arguments_by_pydantic: bool
    prompt_logprobs: PromptLogprobs
    context_logits: bool
    flat_quant_config: bool
    metric_names: tuple[str, ...]
    machine_in_report: bool
    energy_in_report: bool
    sums_up_failures: bool
    chunks_unless_told: bool
    config_alias: bool
    telemetry: bool
    options_of_1_1: bool
    eos_id: int | None


_METRICS = ("TTFT", "TPOT", "E2E", "REQUEST_QUEUE_TIME")
_LATER_METRICS = (
    "ARRIVAL_TIMESTAMP",
    "PREFILL_TIME",
    "DECODE_TIME",
    "INFERENCE_TIME",
    "PROMPT_TOKENS",
    "GENERATION_TOKENS",
)

V1_0 = Version(
    number="1.0.0",
    arguments_by_pydantic=True,
    prompt_logprobs=PromptLogprobs.REFUSED,
    context_logits=False,
    flat_quant_config=False,
    metric_names=_METRICS,
    machine_in_report=False,
    energy_in_report=False,
    sums_up_failures=False,
    chunks_unless_told=False,
    config_alias=False,
    telemetry=False,
    options_of_1_1=False,
    eos_id=-1,
)
V1_2 = Version(
    number="1.2.1",
    arguments_by_pydantic=False,
    prompt_logprobs=PromptLogprobs.TOP,
    context_logits=True,
    flat_quant_config=False,
    metric_names=_METRICS,
    machine_in_report=True,
    energy_in_report=False,
    sums_up_failures=False,
    chunks_unless_told=True,
    config_alias=False,
    telemetry=False,
    options_of_1_1=True,
    eos_id=-1,
)
V1_3RC = Version(
    number="1.3.0rc12",
    arguments_by_pydantic=False,
    prompt_logprobs=PromptLogprobs.WITH_ITS_TOKEN,
    context_logits=True,
    flat_quant_config=True,
    metric_names=(*_METRICS, *_LATER_METRICS),
    machine_in_report=True,
    energy_in_report=True,
    sums_up_failures=True,
    chunks_unless_told=True,
    config_alias=True,
    telemetry=True,
    options_of_1_1=True,
    eos_id=None,
)
