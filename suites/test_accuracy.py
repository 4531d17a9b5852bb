"""Is a quantized model as right as the one it was made from? Both answer the same documents of lm-eval, one by one compared.

What may be lost, and why that much, stands in pytest_llamaperf/catalog/tasks.yaml; what the comparison can tell, in
docs/accuracy.md. The tasks for the embedded model are in the package; those for models on GPUs need their data sets.
"""

import pytest

EMBEDDED = {"model": "smollm2-135m", "hardware": "cpu"}
QUANTIZED = ["modelopt-fp8", "llama-fp8"]
KNOWLEDGE_AND_REASONING = ["mmlu", "gsm8k", "arc-challenge"]

pytestmark = pytest.mark.accuracy


@pytest.mark.cases(
    **EMBEDDED, recipe="modelopt-fp8", layout="tp1", task=["agreement", "facts", "copying", "short-answers"]
)
@pytest.mark.cases(**EMBEDDED, recipe="llama-fp8", layout="tp1", task="agreement")
@pytest.mark.cases(model="llama-3.1-8b", recipe=QUANTIZED, layout="tp1", task=KNOWLEDGE_AND_REASONING, hardware="h200")
@pytest.mark.cases(model="llama-3.3-70b", recipe=QUANTIZED, layout="tp4", task=KNOWLEDGE_AND_REASONING, hardware="h200")
@pytest.mark.cases(
    model="llama-3.1-405b", recipe=QUANTIZED, layout="tp8", task=KNOWLEDGE_AND_REASONING, hardware="h200"
)
@pytest.mark.versus(recipe="bf16")
def test_a_recipe_is_as_right_as_bf16(case, other, evaluate, accuracy):
    accuracy.check(evaluate(case), other)


@pytest.mark.cases(**EMBEDDED, recipe="modelopt-fp8", layout="tp1", task="agreement")
@pytest.mark.cases(model="llama-3.1-8b", recipe="modelopt-fp8", layout="tp1", task="gsm8k", hardware="h200")
@pytest.mark.versus(recipe="modelopt-fp8-bf16kv")
def test_an_fp8_kv_cache_loses_nothing(case, other, evaluate, accuracy):
    accuracy.check(evaluate(case), other)


@pytest.mark.cases(**EMBEDDED, recipe="bf16", layout="pp2", task="agreement")
@pytest.mark.cases(model="llama-3.1-8b", recipe="modelopt-fp8", layout=["tp2", "pp2"], task="gsm8k", hardware="h200")
@pytest.mark.versus(layout="tp1")
def test_a_layout_is_as_right_as_one_rank(case, other, evaluate, accuracy):
    accuracy.check(evaluate(case), other)
