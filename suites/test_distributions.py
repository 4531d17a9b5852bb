"""Does a quantized model expect nearly what BF16 does, of every next token of a fixed text?

Far fewer tokens than task scores need find a broken quantization: one scale of one layer, or a lost rope. What nearly is was
measured from healthy and from broken checkpoints: benchmarks/accuracy/README.md.
"""

import pytest

from pytest_llamaperf.accuracy.companions import compare
from pytest_llamaperf.catalog.companions import companion_limits


@pytest.mark.cases(
    model="smollm2-135m", recipe=["modelopt-fp8", "llama-fp8"], layout="tp1", task="text", hardware="cpu"
)
@pytest.mark.versus(recipe="bf16")
def test_a_recipe_expects_nearly_what_bf16_does(case, other, look):
    found = compare(look(case), look(other))

    assert found.problems(companion_limits(case.model, case.recipe)) == (), found
