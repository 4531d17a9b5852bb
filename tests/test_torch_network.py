"""The reference engine on one rank against transformers: checkpoints as they are published, and quantized ones.

Everything is computed in FP32, where a wrong formula cannot pass for rounding; BF16 has a test of its own.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from networks import (
    BF16,
    FP32,
    LLAMA3_ROPE,
    PROMPTS,
    expected_scores,
    expected_tokens,
    llama,
    reference,
    settings,
)
from safetensors.torch import load_file, save_file

from pytest_llamaperf.children.torch_llama import linears
from pytest_llamaperf.children.torch_llama.cut import cut_for
from pytest_llamaperf.children.torch_llama.network import Network
from pytest_llamaperf.children.torch_llama.rank import Rank, Settings
from pytest_llamaperf.children.torch_llama.stages import DecodeStep, JudgeStep, PromptStep, Stage
from pytest_llamaperf.children.torch_llama.weights import CheckpointWeights, RandomWeights, shape_of_config

CPU = torch.device("cpu")
E4M3 = torch.float8_e4m3fn
TOKENS = 12  # generated after each prompt


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    yield
    torch.set_grad_enabled(True)  # a rank is a process of its own elsewhere, and switches this off for good


def opened(checkpoint: Path | None, **changes: Any) -> Rank:
    return Rank(Settings(**settings(checkpoint, **changes)), 0, Path("nowhere"), lambda text, done, total: None)


# Checkpoints as transformers writes them.

KINDS: Mapping[str, dict[str, Any]] = {
    "plain": {"seed": 4},
    "llama3-rope": {"rope": LLAMA3_ROPE, "seed": 1},
    "tied": {"tied": True, "seed": 2, "vocabulary": 509},
    "one-kv-head-each": {"kv_heads": 8, "layers": 2, "seed": 3},
    "wide-heads": {"hidden": 96, "heads": 6, "kv_heads": 2, "layers": 3, "seed": 6},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def of_kind(kind: str) -> Path:
        if kind not in made:
            made[kind] = llama(tmp_path_factory.mktemp("networks") / kind, **KINDS[kind])
        return made[kind]

    return of_kind


@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_answers_are_those_of_transformers(kind: str, checkpoint: Callable[[str], Path]) -> None:
    network, rank = reference(checkpoint(kind)), opened(checkpoint(kind))
    answers = [expected_tokens(network, prompt, TOKENS) for prompt in PROMPTS]
    sequences = [prompt + answer for prompt, answer in zip(PROMPTS, answers, strict=True)]

    assert rank.generate(PROMPTS, TOKENS, None) == answers
    scores = rank.score(sequences, 0.0)
    for sequence, logprobs, likely in zip(sequences, scores["logprobs"], scores["likely"], strict=True):
        expected, best = expected_scores(network, sequence)
        assert logprobs == pytest.approx(expected, abs=1e-4)
        assert likely == best


@pytest.mark.skipif(not linears._ONEDNN, reason="this processor, or this torch, has no oneDNN for BF16")
def test_every_weight_of_a_bf16_network_lies_as_onednn_reads_it(checkpoint: Callable[[str], Path]) -> None:
    network = opened(checkpoint("llama3-rope"), recipe=BF16)._stage.network

    parts = [
        part for layer in network._layers for part in (layer.query_key_value, layer.output, layer.gate_up, layer.down)
    ]
    assert all(isinstance(part, linears.Plain) and part.weight.is_mkldnn for part in parts)
    assert network._head.is_mkldnn


def test_bf16_differs_from_fp32_by_rounding_only(checkpoint: Callable[[str], Path]) -> None:
    network, rank = reference(checkpoint("llama3-rope")), opened(checkpoint("llama3-rope"), recipe=BF16)
    sequences = [prompt for prompt in PROMPTS if len(prompt) > 1]
    expected = torch.cat([torch.tensor(expected_scores(network, sequence)[0]) for sequence in sequences])
    found = torch.cat([torch.tensor(logprobs) for logprobs in rank.score(sequences, 0.0)["logprobs"]])
    error = (found - expected).abs()

    # Some 4 layers of 8 significant bits: transformers in BF16 is 0.012 off in the mean, 0.06 at most.
    assert 1e-4 < error.mean() < 0.03
    assert error.max() < 0.2


def test_generating_chooses_what_scoring_calls_most_likely(checkpoint: Callable[[str], Path]) -> None:
    """Prompt and decode steps compute the same network in different ways."""
    rank = opened(checkpoint("llama3-rope"), positions=48)
    answers = rank.generate(PROMPTS, 28, None)
    likely = rank.score([prompt + answer for prompt, answer in zip(PROMPTS, answers, strict=True)], 0.0)["likely"]

    assert [found[len(prompt) - 1 :] for prompt, found in zip(PROMPTS, likely, strict=True)] == answers


def test_a_score_does_not_depend_on_what_it_is_computed_with(checkpoint: Callable[[str], Path]) -> None:
    """Padding of short sequences, and how many fit into one step."""
    together = opened(checkpoint("plain"), most_prompt_tokens=500).score(PROMPTS, 0.0)
    few = opened(checkpoint("plain"), most_prompt_tokens=24)
    alone = [few.score([prompt], 0.0) for prompt in PROMPTS]

    for number, one in enumerate(alone):
        assert one["logprobs"][0] == pytest.approx(together["logprobs"][number], abs=1e-5)
        assert one["likely"][0] == together["likely"][number]
    assert few.score(PROMPTS, 0.0)["likely"] == together["likely"]


def test_a_single_token_has_no_score_and_no_sequences_have_none(checkpoint: Callable[[str], Path]) -> None:
    rank = opened(checkpoint("plain"))

    assert rank.score([[7]], 0.0) == {"logprobs": [[]], "likely": [[]]}
    assert rank.score([], 0.0) == {"logprobs": [], "likely": []}


def test_long_sequences_are_judged_in_pieces(checkpoint: Callable[[str], Path]) -> None:
    """More tokens in a step than are judged at a time, and not a multiple of it."""
    rank = opened(checkpoint("plain"), positions=250, most_prompt_tokens=1000)
    sequences = [[(7 * i * i + number) % 500 for i in range(length)] for number, length in enumerate((250, 201, 90))]
    network = reference(checkpoint("plain"))
    found = rank.score(sequences, 0.0)["logprobs"]

    for sequence, logprobs in zip(sequences, found, strict=True):
        assert logprobs == pytest.approx(expected_scores(network, sequence)[0], abs=1e-4)


def test_noise_moves_scores_a_little_and_the_same_way_each_time(checkpoint: Callable[[str], Path]) -> None:
    rank = opened(checkpoint("plain"))
    exact, noisy, again = (torch.tensor(rank.score([PROMPTS[3]], noise)["logprobs"]) for noise in (0.0, 1e-4, 1e-4))

    assert torch.equal(noisy, again)
    assert 1e-6 < (noisy - exact).abs().max() < 0.02


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        ([], "sequence 1 has 0 tokens; from 1 to 64 fit"),
        ([1] * 65, "sequence 1 has 65 tokens; from 1 to 64 fit"),
        ([512], "sequence 1 has a token outside the vocabulary of 512"),
        ([-1], "sequence 1 has a token outside the vocabulary of 512"),
    ],
)
def test_sequences_that_cannot_be_read_are_refused(
    sequence: list[int], message: str, checkpoint: Callable[[str], Path]
) -> None:
    rank = opened(checkpoint("plain"))

    with pytest.raises(ValueError, match=message):
        rank.score([[1], sequence], 0.0)
    with pytest.raises(ValueError, match=message):
        rank.generate([[1], sequence], 1, None)


def test_the_last_position_of_a_slot_can_be_scored_and_filled(checkpoint: Callable[[str], Path]) -> None:
    rank = opened(checkpoint("plain"), positions=20)
    (answer,) = rank.generate([PROMPTS[3][:8]], 12, None)

    assert len(rank.score([PROMPTS[3][:8] + answer], 0.0)["logprobs"][0]) == 19


# The same checkpoint written otherwise.


def with_config(source: Path, target: Path, **changes: Any) -> Path:
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    config.update(changes)
    config = {key: value for key, value in config.items() if value != "gone"}
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return target


def test_a_checkpoint_in_many_files_is_the_same_network(tmp_path: Path, checkpoint: Callable[[str], Path]) -> None:
    many = llama(tmp_path / "many", **KINDS["llama3-rope"], shard="50KB")

    assert len(list(many.glob("model-*.safetensors"))) > 3
    assert opened(many).score(PROMPTS, 0.0) == opened(checkpoint("llama3-rope")).score(PROMPTS, 0.0)


def test_the_older_spelling_of_rope_is_the_same_network(tmp_path: Path, checkpoint: Callable[[str], Path]) -> None:
    scaling = {key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"}
    older = {"rope_theta": LLAMA3_ROPE["rope_theta"], "rope_scaling": scaling}
    expected = opened(checkpoint("llama3-rope")).score(PROMPTS, 0.0)
    only_older = with_config(checkpoint("llama3-rope"), tmp_path / "older", **older, rope_parameters="gone")
    both = with_config(checkpoint("llama3-rope"), tmp_path / "both", **older)

    assert opened(only_older).score(PROMPTS, 0.0) == expected
    assert opened(both).score(PROMPTS, 0.0) == expected
    # And rope_scaling is what made it so.
    without = with_config(checkpoint("llama3-rope"), tmp_path / "none", rope_theta=10000.0, rope_parameters="gone")
    assert opened(without).score(PROMPTS, 0.0) != expected


def test_spellings_of_rope_that_disagree_do_not_open(tmp_path: Path, checkpoint: Callable[[str], Path]) -> None:
    wrong = with_config(checkpoint("llama3-rope"), tmp_path / "wrong", rope_theta=500000.0)

    with pytest.raises(ValueError, match="says two things of rope_theta"):
        opened(wrong)


def test_a_checkpoint_without_a_tensor_does_not_open(tmp_path: Path, checkpoint: Callable[[str], Path]) -> None:
    broken = with_config(checkpoint("plain"), tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, broken / "model.safetensors")

    with pytest.raises(ValueError, match=r"the checkpoint has no tensor model\.layers\.3\.mlp\.up_proj\.weight"):
        opened(broken)


def test_an_untied_network_needs_a_head_of_its_own(tmp_path: Path, checkpoint: Callable[[str], Path]) -> None:
    broken = with_config(checkpoint("tied"), tmp_path / "broken", tie_word_embeddings=False)

    with pytest.raises(ValueError, match=r"the checkpoint has no tensor lm_head\.weight"):
        opened(broken)


def test_a_format_nobody_knows_does_not_open(tmp_path: Path, checkpoint: Callable[[str], Path]) -> None:
    broken = with_config(checkpoint("plain"), tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = tensors[name].to(torch.int16)
    save_file(tensors, broken / "model.safetensors")

    with pytest.raises(ValueError, match=r"q_proj\.weight is I16, which this engine does not know"):
        opened(broken)


# Quantized checkpoints, by hand in the format ModelOpt exports. The reference is transformers with the formulas of the
# format in the place of its linear layers.

LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
           "mlp.up_proj", "mlp.down_proj")  # fmt: skip
LAYERS = 4
Layer = Callable[[torch.Tensor], torch.Tensor]


def e4m3(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(-448.0, 448.0).to(E4M3).float()


def modelopt_fp8(name: str, weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], Layer]:
    # Inputs of one place share a scale; of places with outliers it is smaller than they would like.
    x_scale = torch.tensor(
        {"self_attn.q_proj": 3.0, "self_attn.k_proj": 3.0, "self_attn.v_proj": 3.0}.get(name, 6.0) / 448
    )
    scale = weight.abs().max() / 448
    kept = (weight / scale).to(E4M3)
    tensors = {"weight": kept, "weight_scale": scale, "input_scale": x_scale}
    return tensors, lambda x: F.linear(e4m3(x / x_scale) * x_scale, kept.float() * scale)


def llama_fp8(name: str, weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], Layer]:
    scale = weight.abs().amax(1) / 448
    kept = (weight / scale[:, None]).to(E4M3)

    def product(x: torch.Tensor) -> torch.Tensor:
        x_scale = x.abs().amax(-1, keepdim=True) / 448
        return F.linear(e4m3(x / x_scale) * x_scale, kept.float() * scale[:, None])

    return {"weight": kept, "weight_scale": scale}, product


def modelopt_int8_sq(name: str, weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], Layer]:
    # 1 / largest input of each channel: q, k and v share theirs, and so do gate and up.
    seed = {"self_attn.o_proj": 1, "mlp.gate_proj": 2, "mlp.up_proj": 2, "mlp.down_proj": 3}.get(name, 0)
    drawn = torch.rand(weight.shape[1], generator=torch.Generator().manual_seed(seed))
    smoothing = (1 / (1.5 + 6 * drawn)).bfloat16().float()
    evened = weight / smoothing
    scale = evened.abs().amax(1) / 127
    kept = (evened / scale[:, None]).round().to(torch.int8)
    x_scale = torch.tensor(1 / 127)
    tensors = {"weight": kept, "weight_scale": scale, "input_scale": x_scale, "pre_quant_scale": smoothing.bfloat16()}

    def product(x: torch.Tensor) -> torch.Tensor:
        whole = (x * smoothing / x_scale).round().clamp(-128, 127)
        return F.linear(whole * x_scale, kept.float() * scale[:, None])

    return tensors, product


def modelopt_int4_awq(name: str, weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], Layer]:
    smoothing = None
    if name in ("self_attn.o_proj", "mlp.down_proj"):
        drawn = torch.rand(weight.shape[1], generator=torch.Generator().manual_seed(0))
        smoothing = (0.5 + drawn).bfloat16()
        weight = weight / smoothing.float()
    blocks = weight.unflatten(1, (-1, 128))
    # Of so few bits that the engine, which keeps them in the type it computes in, has nothing to round.
    scale = (blocks.abs().amax(2) / 7).bfloat16().float()
    whole = (blocks / scale[..., None]).round().clamp(-8, 7).flatten(1)
    pairs = whole.to(torch.int8).unflatten(0, (-1, 2))
    tensors = {
        "weight": ((pairs[:, 0] & 15) | ((pairs[:, 1] & 15) << 4)).contiguous().view(torch.uint8), "weight_scale": scale
    }  # fmt: skip
    if smoothing is not None:
        tensors["pre_quant_scale"] = smoothing
    kept = whole * scale.repeat_interleave(128, dim=1)
    return tensors, lambda x: F.linear(x if smoothing is None else x * smoothing.float(), kept)


FORMATS = {
    "modelopt-fp8": modelopt_fp8,
    "llama-fp8": llama_fp8,
    "modelopt-int8-sq": modelopt_int8_sq,
    "modelopt-int4-awq": modelopt_int4_awq,
}


def is_quantized(recipe: str, layer: int, name: str) -> bool:
    return recipe != "llama-fp8" or (name.startswith("mlp") and 0 < layer < LAYERS - 1)


def kv_scales(layer: int) -> tuple[float, float]:
    """Keys and values are kept in quite different scales, and in each layer in others."""
    return 0.04 + 0.01 * layer, 0.002 + 0.003 * layer


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """(checkpoint, transformers' network with the formulas of the format) of a recipe."""
    folder = tmp_path_factory.mktemp("quantized")
    source = llama(folder / "bf16", hidden=128, heads=8, kv_heads=4, feed_forward=384, rope=LLAMA3_ROPE, seed=6)
    made: dict[str, tuple[Path, Any]] = {}

    def of_recipe(recipe: str) -> tuple[Path, Any]:
        if recipe not in made:
            made[recipe] = quantized_from(source, folder / recipe, recipe)
        return made[recipe]

    return of_recipe


def quantized_from(source: Path, target: Path, recipe: str) -> tuple[Path, Any]:
    fp8_kv = recipe == "modelopt-fp8"
    scheme = {"kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"}} if fp8_kv else {}
    with_config(source, target, quantization_config={"quant_algo": "whatever", "quant_method": "modelopt", **scheme})
    tensors, network = load_file(source / "model.safetensors"), reference(source)
    for number, layer in enumerate(network.model.layers):
        for name in LINEARS:
            if not is_quantized(recipe, number, name):
                continue
            path = f"model.layers.{number}.{name}"
            parts, formula = FORMATS[recipe](name, tensors.pop(f"{path}.weight").float())
            tensors.update({f"{path}.{part}": tensor for part, tensor in parts.items()})
            layer.get_submodule(name).forward = formula
        if fp8_kv:
            for part, scale in zip(("k_proj.k_scale", "v_proj.v_scale"), kv_scales(number), strict=True):
                tensors[f"model.layers.{number}.self_attn.{part}"] = torch.tensor(scale)
    save_file(tensors, target / "model.safetensors")
    if fp8_kv:
        from transformers import AttentionInterface

        AttentionInterface.register("fp8-kv", attention_over_fp8)
        network.set_attn_implementation("fp8-kv")
    return target, network


def attention_over_fp8(
    module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: object, **__: object
) -> tuple[torch.Tensor, None]:
    """Of one sequence, from whose keys (after rope) and values only what FP8 keeps is seen."""
    k_scale, v_scale = kv_scales(module.layer_idx)
    k, v = e4m3(k / k_scale) * k_scale, e4m3(v / v_scale) * v_scale
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2), None


# Long ones for positions, short ones because a single value that falls on the other side changes all after it.
LENGTHS = [40, 33, 17, *[2, 3, 4, 5, 6, 7] * 4]
SEQUENCES = [[(13 * number + 7 * i * i + 3 * i) % 500 for i in range(length)] for number, length in enumerate(LENGTHS)]


def errors(network: Any, found: Sequence[Sequence[float]]) -> torch.Tensor:
    expected = [torch.tensor(expected_scores(network, sequence)[0]) for sequence in SEQUENCES]
    return (torch.cat([torch.tensor(logprobs) for logprobs in found]) - torch.cat(expected)).abs()


@pytest.mark.parametrize("recipe", FORMATS)
def test_a_quantized_checkpoint_scores_by_the_formulas_of_its_format(
    recipe: str, quantized: Callable[[str], tuple[Path, Any]]
) -> None:
    folder, network = quantized(recipe)
    off = errors(network, opened(folder).score(SEQUENCES, 0.0)["logprobs"])

    # Where a value lies on the border of two steps of a grid, rounding of FP32 decides which one it becomes: some
    # tokens are off by more than rounding, most are not.
    assert off.median() < 1e-5
    assert off.max() < 0.4


# Half of each was measured; it is most where inputs are rounded to a grid, whose borders BF16 crosses often.
@pytest.mark.parametrize(
    ("recipe", "most"),
    [("modelopt-fp8", 0.4), ("llama-fp8", 0.12), ("modelopt-int8-sq", 0.16), ("modelopt-int4-awq", 0.05)],
)
def test_a_quantized_checkpoint_in_bf16_differs_by_rounding_only(
    recipe: str, most: float, quantized: Callable[[str], tuple[Path, Any]]
) -> None:
    folder, network = quantized(recipe)
    off = errors(network, opened(folder, recipe=BF16).score(SEQUENCES, 0.0)["logprobs"])

    assert off.mean() < most


@pytest.mark.parametrize("recipe", FORMATS)
def test_a_quantized_checkpoint_differs_from_its_source_by_more_than_rounding(
    recipe: str, quantized: Callable[[str], tuple[Path, Any]]
) -> None:
    """Or the tests above would show nothing."""
    folder, _ = quantized(recipe)
    off = errors(reference(folder.parent / "bf16"), opened(folder).score(SEQUENCES, 0.0)["logprobs"])

    assert off.median() > 0.03


@pytest.mark.parametrize("recipe", FORMATS)
def test_a_quantized_network_generates_what_it_scores_highest(
    recipe: str, quantized: Callable[[str], tuple[Path, Any]]
) -> None:
    """Decode steps read back from the cache what prompt steps only round as if they did."""
    folder, _ = quantized(recipe)
    rank = opened(folder)
    answers = rank.generate(PROMPTS, TOKENS, None)
    likely = rank.score([prompt + answer for prompt, answer in zip(PROMPTS, answers, strict=True)], 0.0)["likely"]

    assert [found[len(prompt) - 1 :] for prompt, found in zip(PROMPTS, likely, strict=True)] == answers


@pytest.mark.parametrize("wrong", ["k_proj.k_scale", "v_proj.v_scale"])
def test_the_scales_of_the_kv_cache_are_needed(
    wrong: str, tmp_path: Path, quantized: Callable[[str], tuple[Path, Any]]
) -> None:
    folder, _ = quantized("modelopt-fp8")
    broken = with_config(folder, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    del tensors[f"model.layers.1.self_attn.{wrong}"]
    save_file(tensors, broken / "model.safetensors")

    with pytest.raises(ValueError, match=f"has no tensor model.layers.1.self_attn.{wrong}"):
        opened(broken)


def borders(size: int, step: int) -> st.SearchStrategy[list[int]]:
    """Where a side of `size` is cut into one to four runs, in whole steps."""
    inner = st.sets(st.integers(1, size // step - 1), max_size=3)
    return inner.map(lambda cuts: [0, *(step * cut for cut in sorted(cuts)), size])


@pytest.mark.parametrize("recipe", FORMATS)
def test_a_slice_of_outputs_is_that_part_of_the_whole_product(
    recipe: str, quantized: Callable[[str], tuple[Path, Any]]
) -> None:
    folder, _ = quantized(recipe)
    weights = CheckpointWeights(folder, torch.float32, CPU)

    @given(borders(384, 2), st.integers(0, 1000))  # four bits: two rows share a byte
    def holds(cuts: list[int], seed: int) -> None:
        x = torch.randn(3, 128, generator=torch.Generator().manual_seed(seed))
        name = "model.layers.1.mlp.gate_proj"
        parts = [weights.linear(name, rows=rows)(x) for rows in itertools.pairwise(cuts)]
        torch.testing.assert_close(torch.cat(parts, dim=1), weights.linear(name)(x), rtol=1e-5, atol=1e-5)

    holds()
    weights.close()


@pytest.mark.parametrize("recipe", FORMATS)
def test_slices_of_inputs_sum_up_to_the_whole_product(
    recipe: str, quantized: Callable[[str], tuple[Path, Any]]
) -> None:
    """Also where cuts fall within a block of 128: heads are as wide as they are."""
    folder, _ = quantized(recipe)
    weights = CheckpointWeights(folder, torch.float32, CPU)

    @given(borders(384, 16), st.integers(0, 1000))
    def holds(cuts: list[int], seed: int) -> None:
        x = torch.randn(3, 384, generator=torch.Generator().manual_seed(seed))
        name = "model.layers.1.mlp.down_proj"
        if recipe == "llama-fp8":  # each rank scales what it has of a token; so small numbers fit any scale
            x = x.sign() * 2.0 ** x.abs().floor()
        runs = list(itertools.pairwise(cuts))
        parts = [weights.linear(name, columns=run)(x[:, slice(*run)]) for run in runs]
        torch.testing.assert_close(torch.stack(parts).sum(0), weights.linear(name)(x), rtol=1e-5, atol=1e-4)

    holds()
    weights.close()


# Random weights.

CONFIG = {
    "model_type": "llama", "num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 160,
    "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 512, "rope_parameters": LLAMA3_ROPE,
}  # fmt: skip
MODELOPT_FP8 = {"attention": "fp8-per-tensor", "feed_forward": "fp8-per-tensor", "kv_cache": "fp8", "bf16_layers": 0}
LLAMA_FP8 = {"attention": "bf16", "feed_forward": "fp8-per-row", "kv_cache": "bf16", "bf16_layers": 2}


@pytest.mark.parametrize("recipe", [FP32, BF16, MODELOPT_FP8, LLAMA_FP8])
def test_random_weights_come_in_the_recipes_numbers(recipe: dict[str, Any]) -> None:
    rank, again = (opened(None, config=CONFIG, recipe=recipe) for _ in range(2))
    other = opened(None, config=CONFIG, recipe=recipe, seed=1)
    scores = rank.score(PROMPTS, 0.0)

    assert scores == again.score(PROMPTS, 0.0)
    assert scores["logprobs"] != other.score(PROMPTS, 0.0)["logprobs"]
    assert all(-20.0 < logprob < 0.0 for logprobs in scores["logprobs"] for logprob in logprobs)
    assert [len(answer) for answer in rank.generate(PROMPTS, 5, None)] == [5] * len(PROMPTS)


def test_random_weights_keep_the_layers_a_recipe_leaves_out() -> None:
    weights = RandomWeights(shape_of_config(CONFIG), LLAMA_FP8, torch.bfloat16, CPU, 0)
    kinds = [type(weights.linear(f"model.layers.{number}.mlp.up_proj")).__name__ for number in range(4)]

    assert kinds == ["Plain", "Fp8Row", "Fp8Row", "Plain"]
    assert {type(weights.linear(f"model.layers.{n}.self_attn.o_proj")).__name__ for n in range(4)} == {"Plain"}


@pytest.mark.parametrize("number", ["int8-smoothquant", "int4-awq", "fp4"])
@pytest.mark.parametrize("part", ["attention", "feed_forward"])
def test_random_weights_in_a_number_they_cannot_have_are_refused(part: str, number: str) -> None:
    with pytest.raises(ValueError, match=f"random weights cannot be {number}; they come as bf16, fp32, fp8-per-tensor"):
        opened(None, config=CONFIG, recipe={**BF16, part: number})


@pytest.mark.parametrize("recipe", [FP32, MODELOPT_FP8, LLAMA_FP8])
def test_a_part_of_random_weights_is_that_part_of_the_whole(recipe: dict[str, Any]) -> None:
    weights = RandomWeights(shape_of_config(CONFIG), recipe, torch.float32, CPU, 0)
    up, down = "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj"
    x = torch.randn(3, 160, generator=torch.Generator().manual_seed(0))

    rows = torch.cat([weights.linear(up, rows=rows)(x[:, :64]) for rows in ((0, 96), (96, 160))], dim=1)
    torch.testing.assert_close(rows, weights.linear(up)(x[:, :64]))
    whole = weights.linear(down)
    for run in ((0, 96), (96, 160)):
        assert torch.equal(weights.linear(down, columns=run).weight, whole.weight[:, slice(*run)])
    assert torch.equal(torch.cat([weights.head((0, 300)), weights.head((300, 512))]), weights.head(None))
    assert not torch.equal(weights.head(None), weights.embedding())
    tied = RandomWeights(shape_of_config({**CONFIG, "tie_word_embeddings": True}), recipe, torch.float32, CPU, 0)
    assert torch.equal(tied.head((300, 512)), tied.embedding()[300:])


# On a GPU. Nobody has one here, but a device of whose tensors nothing but the place is real shows what would meet there.


def test_a_step_computes_on_the_device_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    device, shape = torch.device("meta"), shape_of_config(CONFIG)
    monkeypatch.setattr(
        RandomWeights, "_normal", lambda self, name, size: torch.empty(size, dtype=torch.bfloat16, device=device)
    )  # nothing can be drawn there
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: torch.zeros(self.shape, dtype=self.dtype))
    network = Network(
        RandomWeights(shape, BF16, torch.bfloat16, device, 0), cut_for(shape, 0, 1, 1), slots=4, positions=32,
        dtype=torch.bfloat16, device=device, tensor_group=None, report=lambda done, total: None,
    )  # fmt: skip
    stage = Stage(network)
    tokens = torch.zeros(2, 5, dtype=torch.long)

    prompts = PromptStep(tokens, torch.tensor([5, 3]), torch.tensor([0, 2]))
    assert stage.choose(prompts).shape == (2,)
    assert stage.choose(DecodeStep(torch.tensor([1, 2, 3]), torch.tensor([5, 0, 3]), 0, 6)).shape == (3,)
    judged = stage.judge(JudgeStep(tokens, at=torch.tensor([0, 4, 7]), targets=torch.tensor([1, 2, 3])))
    assert judged.shape == (2, 3)
