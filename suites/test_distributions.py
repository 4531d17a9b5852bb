"""Does a quantized model expect nearly what BF16 does, of every next token of a fixed text?

Far fewer tokens than task scores need find a broken quantization: one scale of one layer, or a lost rope. What nearly is was
measured from healthy and from broken checkpoints: benchmarks/accuracy/README.md.
"""

import pytest

from pytest_llamaperf.accuracy.companions import compare
from pytest_llamaperf.catalog.companions import companion_limits

TEXT = {"task": "text"}
EMBEDDED = {**TEXT, "model": "smollm2-135m", "hardware": "cpu"}

pytestmark = pytest.mark.accuracy


@pytest.mark.cases(**EMBEDDED, recipe=["modelopt-fp8", "llama-fp8"], layout="tp1")
@pytest.mark.cases(**TEXT, model="llama-3.1-8b", recipe=["modelopt-fp8", "llama-fp8"], layout="tp1", hardware="h200")
@pytest.mark.cases(**TEXT, model="llama-3.1-405b", recipe=["modelopt-fp8", "llama-fp8"], layout="tp8", hardware="h200")
@pytest.mark.versus(recipe="bf16")
def test_a_recipe_expects_nearly_what_bf16_does(case, other, look):
    found = compare(look(case), look(other))

    problems = found.problems(companion_limits(other.model, case.recipe))
    assert not problems, f"{'; '.join(problems)} ({found})"


@pytest.mark.cases(**EMBEDDED, recipe="bf16", layout="tp2", engine="torch")
@pytest.mark.cases(**TEXT, model="llama-3.1-8b", recipe="bf16", layout=["tp2", "pp2"], hardware="h200")
@pytest.mark.versus(layout="tp1")
def test_a_layout_expects_nearly_what_one_rank_does(case, other, look):
    found = compare(look(case), look(other))

    problems = found.problems(companion_limits(other.model, case.recipe))
    assert not problems, f"{'; '.join(problems)} ({found})"
