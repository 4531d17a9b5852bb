"""Is what ModelOpt wrote what the recipe asks for? Looked at in the checkpoint that engines load, not in memory."""

import json
import math

import pytest

from pytest_llamaperf.checkpoints import intended_modules, quantized_modules, scales

RECIPES = ["modelopt-fp8", "llama-fp8", "modelopt-int8-sq"]
EMBEDDED = {"model": "smollm2-135m", "layout": "tp1", "task": "checkpoint", "hardware": "cpu"}


@pytest.mark.cases(**EMBEDDED, recipe=RECIPES)
def test_exactly_the_intended_layers_are_quantized(case, quantized_model):
    quantized = quantized_modules(quantized_model.path)

    assert quantized == intended_modules(case.model, case.recipe)
    assert not any("lm_head" in name or "embed" in name for name in quantized)


@pytest.mark.cases(**EMBEDDED, recipe=RECIPES)
def test_every_scale_is_a_positive_number_and_they_differ(case, quantized_model):
    found = scales(quantized_model.path)

    assert {name.rpartition(".")[0] for name in found} >= intended_modules(case.model, case.recipe)
    assert all(math.isfinite(scale) and scale > 0 for values in found.values() for scale in values)
    weights = {scale for name, values in found.items() if name.endswith("weight_scale") for scale in values}
    assert len(weights) > 1


@pytest.mark.cases(**EMBEDDED, recipe="modelopt-fp8")
def test_the_kv_cache_has_scales_of_its_own(quantized_model):
    found = {
        name: values[0]
        for name, values in scales(quantized_model.path).items()
        if name.endswith(("k_scale", "v_scale"))
    }

    assert len(found) == 2 * 30
    assert 1.0 not in found.values()


@pytest.mark.cases(**EMBEDDED, recipe=RECIPES)
def test_either_transformers_reads_the_same_rotary_embedding(case, quantized_model):
    """TensorRT-LLM pins transformers 4, which knows nothing of rope_parameters and would fall back to 10,000."""
    config = json.loads((quantized_model.path / "config.json").read_text())

    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == case.model.rope["theta"]
