"""What is known of TensorRT-LLM's versions, each limit from both sides."""

from __future__ import annotations

import pytest
from builders import case
from packaging.version import Version

from pytest_llamaperf.catalog import recipes
from pytest_llamaperf.engines import EngineSpec
from pytest_llamaperf.engines.trtllm.contract import OLDEST, PLANNED_FOR, Scoring, known_at, scoring_of, version_of
from pytest_llamaperf.engines.trtllm.opening import Quantization
from pytest_llamaperf.errors import EngineError, Unsupported


def test_candidates_of_a_release_come_before_it_and_in_the_order_of_their_numbers() -> None:
    texts = ["1.0.0rc4", "1.0.0", "1.1.0rc2", "1.2.1", "1.3.0rc2", "1.3.0rc10", "1.3.0rc26", "1.3.0"]

    assert sorted(map(version_of, reversed(texts))) == [Version(text) for text in texts]


@pytest.mark.parametrize("text", ["1.0.0rc0", "1.0.0rc4", "1.2.1", "1.3.0rc12", "1.3.0rc12+cu130", "2.0"])
def test_a_version_from_the_first_candidate_of_1_0_on_is_taken(text: str) -> None:
    assert version_of(text) == Version(text)


@pytest.mark.parametrize("text", ["0.0.1", "0.21.0", "1.0.0.dev2025063000", "1.0.0b1"])
def test_an_older_version_cannot_be_driven_and_is_named(text: str) -> None:
    with pytest.raises(Unsupported, match=rf"TensorRT-LLM {text} is older than 1\.0\.0, the first"):
        version_of(text)


@pytest.mark.parametrize("text", ["", None, "main", "1.2-", "1.2.1 (abc1234)"])
def test_what_is_no_version_is_an_error_of_the_engine_and_nothing_to_skip_for(text: str | None) -> None:
    with pytest.raises(EngineError, match="which is none") as caught:
        version_of(text)

    assert not isinstance(caught.value, Unsupported)


def test_the_version_that_plans_are_made_for_can_be_driven() -> None:
    assert version_of(str(PLANNED_FOR)) == PLANNED_FOR


@pytest.mark.parametrize(
    ("name", "version", "known"),
    [
        ("kv_cache_dtype", "1.0.0", True),
        ("kv_cache_dtype", "1.1.0rc0", False),
        ("kv_cache_config.dtype", "1.0.0", False),
        ("kv_cache_config.dtype", "1.1.0rc0", True),
        ("return_perf_metrics", "1.0.0rc4", False),
        ("return_perf_metrics", "1.2.1", True),
        ("max_batch_size", str(OLDEST), True),
        ("kv_cache_config.enable_block_reuse", "1.3.0", True),
    ],
)
def test_an_argument_is_known_between_the_versions_that_have_it(name: str, version: str, known: bool) -> None:
    assert known_at(Version(version), name) is known


@pytest.mark.parametrize("version", ["1.0.0rc4", "1.0.0", "1.1.0rc1", "1.1.0rc2", "1.2.1", "1.3.0rc12"])
def test_the_type_of_the_cache_has_exactly_one_name_in_every_version(version: str) -> None:
    names = ("kv_cache_dtype", "kv_cache_config.dtype")

    assert sum(known_at(Version(version), name) for name in names) == 1


@pytest.mark.parametrize(
    ("version", "scoring"),
    [
        ("1.1.0rc2", Scoring.CONTEXT_LOGITS),
        ("1.1.0", Scoring.CONTEXT_LOGITS),
        ("1.2.1", Scoring.CONTEXT_LOGITS),
        ("1.3.0rc10", Scoring.CONTEXT_LOGITS),
        ("1.3.0rc11", Scoring.PROMPT_LOGPROBS),
        ("1.3.0rc26", Scoring.PROMPT_LOGPROBS),
        ("1.3.0", Scoring.PROMPT_LOGPROBS),
    ],
)
def test_log_likelihoods_are_asked_for_in_the_way_that_is_right_in_a_version(version: str, scoring: Scoring) -> None:
    assert scoring_of(Version(version)) is scoring


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0rc1"])
def test_there_is_no_way_to_log_likelihoods_before_1_1(version: str) -> None:
    with pytest.raises(Unsupported, match=f"need TensorRT-LLM 1.1 or newer, found {version}"):
        scoring_of(Version(version))


NAMES = {
    "bf16": (None, None),
    "modelopt-fp8": ("FP8", "FP8"),
    "modelopt-fp8-bf16kv": ("FP8", None),
    "llama-fp8": ("FP8_PER_CHANNEL_PER_TOKEN", None),
    "modelopt-int8-sq": ("W8A8_SQ_PER_CHANNEL", None),
    "modelopt-int4-awq": ("W4A16_AWQ", None),
}


@pytest.mark.parametrize("recipe", NAMES)
def test_a_recipe_is_called_as_tensorrt_llm_calls_it(recipe: str) -> None:
    spec = EngineSpec.of(case(f"tensorrt-llm/llama-3.1-8b/{recipe}/tp1/max-throughput-128-128"))

    quantization = Quantization.of(spec)

    assert (quantization.weights, quantization.kv_cache) == NAMES[recipe]


def test_every_recipe_that_tensorrt_llm_serves_has_a_name() -> None:
    assert set(NAMES) | {"fp32"} == set(recipes())
