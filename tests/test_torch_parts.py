"""What a rank holds, rotary embedding and the KV cache of the reference engine."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import DEFAULT_ROPE, LLAMA3_ROPE

from pytest_llamaperf.children.torch_llama.cut import Shape, cut_for, ranges
from pytest_llamaperf.children.torch_llama.kv_cache import KvCache
from pytest_llamaperf.children.torch_llama.rotary import Rotary, frequencies, rotated
from pytest_llamaperf.children.torch_llama.weights import shape_of_config

SHAPE = Shape(
    layers=4, hidden=64, feed_forward=160, heads=8, kv_heads=4, head_dim=8, vocabulary=512, tied=False, eps=1e-5,
    rope_theta=10000.0, rope_scaling={},
)  # fmt: skip
CONFIG = {
    "model_type": "llama", "num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 160,
    "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 512, "rms_norm_eps": 1e-5,
}  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# Cuts.


@given(st.integers(0, 300), st.integers(1, 40))
def test_ranges_hold_everything_once_and_differ_by_at_most_one(size: int, parts: int) -> None:
    if size < parts:
        with pytest.raises(ValueError, match=f"{size} cannot be cut into {parts} parts"):
            ranges(size, parts)
        return
    found = ranges(size, parts)
    sizes = [stop - start for start, stop in found]

    assert [i for start, stop in found for i in range(start, stop)] == list(range(size))
    assert len(found) == parts
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    kv_heads = draw(st.integers(1, 9))
    return dataclasses.replace(
        SHAPE,
        kv_heads=kv_heads,
        heads=kv_heads * draw(st.integers(1, 4)),
        layers=draw(st.integers(1, 9)),
        feed_forward=draw(st.integers(1, 6)) * draw(st.sampled_from([1, 2, 3, 16, 96, 128])),
        vocabulary=draw(st.integers(1, 600)),
    )


@given(shapes(), st.integers(1, 6), st.integers(1, 6))
def test_the_cuts_of_all_ranks_together_are_the_whole_network(shape: Shape, tp: int, pp: int) -> None:
    if tp > min(shape.kv_heads, shape.feed_forward, shape.vocabulary) or pp > shape.layers:
        with pytest.raises(ValueError, match="cannot be cut into"):
            [cut_for(shape, rank, tp, pp) for rank in range(tp * pp)]
        return
    cuts = [cut_for(shape, rank, tp, pp) for rank in range(tp * pp)]

    for stage in [cuts[start : start + tp] for start in range(0, tp * pp, tp)]:
        for part, size in [
            ("heads", shape.heads), ("kv_heads", shape.kv_heads), ("feed_forward", shape.feed_forward),
            ("vocabulary", shape.vocabulary),
        ]:  # fmt: skip
            runs = [getattr(cut, part) for cut in stage]
            assert [i for start, stop in runs for i in range(start, stop)] == list(range(size))
            assert all(start < stop for start, stop in runs)
        assert len({cut.layers for cut in stage}) == 1
        assert [cut.tp_rank for cut in stage] == list(range(tp))
    layers = [i for cut in cuts if cut.tp_rank == 0 for i in range(*cut.layers)]
    assert layers == list(range(shape.layers))
    assert [cut.first for cut in cuts] == [cut.layers[0] == 0 for cut in cuts]
    assert [cut.last for cut in cuts] == [cut.layers[1] == shape.layers for cut in cuts]


@given(shapes(), st.integers(1, 6))
def test_query_heads_go_with_the_kv_head_they_read(shape: Shape, tp: int) -> None:
    if tp > min(shape.kv_heads, shape.feed_forward, shape.vocabulary):
        return
    for rank in range(tp):
        cut = cut_for(shape, rank, tp, 1)
        read = {head // (shape.heads // shape.kv_heads) for head in range(*cut.heads)}
        assert read == set(range(*cut.kv_heads))


def test_nine_heads_on_three_kv_heads_are_cut_between_kv_heads() -> None:
    """SmolLM2-135M on two ranks: two KV heads and one."""
    shape = dataclasses.replace(SHAPE, heads=9, kv_heads=3)

    assert [cut_for(shape, rank, 2, 1).kv_heads for rank in (0, 1)] == [(0, 2), (2, 3)]
    assert [cut_for(shape, rank, 2, 1).heads for rank in (0, 1)] == [(0, 6), (6, 9)]


@pytest.mark.parametrize(
    ("columns", "tp", "expected"),
    [
        (1536, 2, [(0, 768), (768, 1536)]),  # twelve blocks of 128
        (640, 2, [(0, 384), (384, 640)]),  # five: one of them cannot be halved
        (128, 2, [(0, 64), (64, 128)]),  # one would leave nothing for the second rank
        (192, 2, [(0, 128), (128, 192)]),  # three of 64
        (7, 3, [(0, 3), (3, 5), (5, 7)]),
    ],
)
def test_feed_forward_columns_are_cut_in_whole_blocks(columns: int, tp: int, expected: list[tuple[int, int]]) -> None:
    shape = dataclasses.replace(SHAPE, feed_forward=columns)

    assert [cut_for(shape, rank, tp, 1).feed_forward for rank in range(tp)] == expected


@pytest.mark.parametrize("part", ["kv_heads", "feed_forward", "vocabulary", "layers"])
def test_what_is_too_small_to_be_cut_is_refused(part: str) -> None:
    with pytest.raises(ValueError, match="1 cannot be cut into 2 parts"):
        cut_for(dataclasses.replace(SHAPE, **{part: 1}), 0, tp=2, pp=2)


def test_the_tensor_parallel_ranks_of_a_stage_are_neighbours() -> None:
    cuts = [cut_for(SHAPE, rank, tp=2, pp=2) for rank in range(4)]

    assert [(cut.pp_rank, cut.tp_rank) for cut in cuts] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [cut.layers for cut in cuts] == [(0, 2), (0, 2), (2, 4), (2, 4)]


# What config.json says.


def test_the_shape_is_read_from_config() -> None:
    assert shape_of_config({**CONFIG, "rope_theta": 10000.0}) == SHAPE


def test_both_spellings_of_rope_mean_the_same() -> None:
    scaling = {key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"}
    newer = shape_of_config({**CONFIG, "rope_parameters": LLAMA3_ROPE})
    older = shape_of_config({**CONFIG, "rope_theta": 10000.0, "rope_scaling": scaling})
    both = shape_of_config({**CONFIG, "rope_parameters": LLAMA3_ROPE, "rope_theta": 10000.0, "rope_scaling": scaling})

    assert newer == older == both
    assert newer.rope_scaling["rope_type"] == "llama3"


def test_a_null_rope_scaling_says_nothing() -> None:
    """transformers 4 wrote it for every network without scaling."""
    both = {**CONFIG, "rope_parameters": DEFAULT_ROPE, "rope_theta": 10000.0, "rope_scaling": None}

    assert shape_of_config(both) == shape_of_config({**CONFIG, "rope_parameters": DEFAULT_ROPE})


@pytest.mark.parametrize(
    ("older", "named"),
    [
        ({"rope_theta": 500000.0}, "rope_theta"),
        ({"rope_scaling": {**LLAMA3_ROPE, "factor": 32.0}}, "factor"),
        ({"rope_theta": 1.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "factor, rope_theta, rope_type"),
        ({"rope_scaling": {"type": "linear"}}, "rope_type"),
    ],
)
def test_spellings_that_disagree_are_refused(older: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"config.json says two things of {named}: "):
        shape_of_config({**CONFIG, "rope_parameters": LLAMA3_ROPE, **older})


def test_the_first_spelling_of_the_kind_is_understood() -> None:
    """Until transformers 4.43 the kind of scaling was called `type`."""
    shape = shape_of_config({**CONFIG, "rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}})

    assert torch.equal(frequencies(shape), frequencies(SHAPE) / 4)


@pytest.mark.parametrize(
    "wrong", [{"model_type": "mistral"}, {"hidden_act": "gelu"}, {"attention_bias": True}, {"mlp_bias": True}]
)
def test_what_this_engine_does_not_compute_is_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} is "):
        shape_of_config({**CONFIG, **wrong})


# Rotary embedding.


def transformers_frequencies(rope: dict[str, Any], head_dim: int) -> torch.Tensor:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(hidden_size=head_dim * 4, num_attention_heads=4, head_dim=head_dim, rope_parameters=dict(rope))
    if rope["rope_type"] == "default":
        found, scale = LlamaRotaryEmbedding.compute_default_rope_parameters(config, CPU)
    else:
        found, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, CPU)
    assert scale == 1.0
    return found


def shape_with(rope: dict[str, Any], head_dim: int = 8) -> Shape:
    return shape_of_config({**CONFIG, "head_dim": head_dim, "rope_parameters": rope})


THETA = st.sampled_from([10000.0, 100000.0, 500000.0])
HEAD_DIM = st.sampled_from([2, 8, 64, 128])


@given(THETA, HEAD_DIM)
def test_plain_frequencies_are_those_of_transformers(theta: float, head_dim: int) -> None:
    rope = {"rope_type": "default", "rope_theta": theta}

    torch.testing.assert_close(frequencies(shape_with(rope, head_dim)), transformers_frequencies(rope, head_dim))


@given(THETA, HEAD_DIM, st.floats(1.0, 40.0))
def test_linear_frequencies_are_those_of_transformers(theta: float, head_dim: int, factor: float) -> None:
    rope = {"rope_type": "linear", "rope_theta": theta, "factor": factor}

    torch.testing.assert_close(frequencies(shape_with(rope, head_dim)), transformers_frequencies(rope, head_dim))


@given(THETA, HEAD_DIM, st.floats(1.5, 40.0), st.floats(0.5, 3.0), st.floats(0.5, 8.0), st.sampled_from([32, 8192]))
def test_llama3_frequencies_are_those_of_transformers(
    theta: float, head_dim: int, factor: float, low: float, above: float, original: int
) -> None:
    rope = {
        "rope_type": "llama3", "rope_theta": theta, "factor": factor, "low_freq_factor": low,
        "high_freq_factor": low + above, "original_max_position_embeddings": original,
    }  # fmt: skip

    # Exactly at a border transformers takes the other branch, where both give the same up to rounding.
    torch.testing.assert_close(
        frequencies(shape_with(rope, head_dim)), transformers_frequencies(rope, head_dim), rtol=1e-5, atol=0.0
    )


def test_llama3_leaves_high_frequencies_alone_and_divides_low_ones() -> None:
    shape = shape_with({**LLAMA3_ROPE, "original_max_position_embeddings": 8192}, head_dim=128)
    plain = frequencies(shape_with(DEFAULT_ROPE, head_dim=128))
    wavelengths = 2 * math.pi / plain
    ratio = plain / frequencies(shape)

    assert torch.all(ratio[wavelengths < 8192 / 4] == 1.0)
    torch.testing.assert_close(ratio[wavelengths > 8192], torch.full_like(ratio[wavelengths > 8192], 8.0))
    between = ratio[(wavelengths > 8192 / 4) & (wavelengths < 8192)]
    assert len(between) > 2
    assert torch.all((between > 1.0) & (between < 8.0))


@pytest.mark.parametrize("kind", ["dynamic", "yarn", "longrope"])
def test_an_unknown_kind_of_rope_is_refused(kind: str) -> None:
    shape = shape_with({"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0})

    with pytest.raises(ValueError, match=f"rope_type '{kind}' is not known here; known: default, linear, llama3"):
        frequencies(shape)


def test_rotation_is_that_of_transformers() -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    torch.manual_seed(0)
    x = torch.randn(2, 5, 3, 8)
    positions = torch.tensor([[0, 1, 2, 3, 4], [7, 8, 9, 10, 30]])
    angles = positions[..., None] * torch.cat((frequencies(SHAPE), frequencies(SHAPE)))
    expected, _ = apply_rotary_pos_emb(
        x.transpose(1, 2), x.transpose(1, 2), angles.cos(), angles.sin(), unsqueeze_dim=1
    )

    cos, sin = Rotary(SHAPE, 31, CPU, torch.float32).at(positions)
    torch.testing.assert_close(rotated(x, cos, sin), expected.transpose(1, 2))


def test_products_of_rotated_vectors_depend_on_their_distance_alone() -> None:
    torch.manual_seed(1)
    q, k = torch.randn(2, 1, 1, 1, 8)
    rotary = Rotary(SHAPE, 64, CPU, torch.float32)

    def at(position: int, x: torch.Tensor) -> torch.Tensor:
        return rotated(x, *rotary.at(torch.tensor([[position]])))

    products = torch.stack([(at(position + 5, q) * at(position, k)).sum() for position in (0, 1, 20, 58)])
    torch.testing.assert_close(products, products[:1].expand(4), rtol=1e-4, atol=1e-5)


# The KV cache.


def cache(scales: list[tuple[float, float]] | None = None, dtype: torch.dtype = torch.float32) -> KvCache:
    return KvCache(2, slots=3, kv_heads=2, positions=6, head_dim=4, dtype=dtype, device=CPU, scales=scales)


def test_what_is_written_is_read_back_from_its_layer_slot_and_position() -> None:
    torch.manual_seed(2)
    kept = cache()
    keys, values = torch.randn(2, 2, 3, 2, 4)
    # Two tokens' worth of three positions: slot 2 from 1 on, slot 0 from 3 on.
    kept.write(1, torch.tensor([[2], [0]]), torch.tensor([[1, 2, 3], [3, 4, 5]]), keys, values)
    found_keys, found_values = kept.read(1, 0, 3, 6)

    for found, written in ((found_keys, keys), (found_values, values)):
        expected = torch.zeros(3, 2, 6, 4)
        expected[2, :, 1:4] = written[0].transpose(0, 1)
        expected[0, :, 3:6] = written[1].transpose(0, 1)
        assert torch.equal(found, expected)
    assert not kept.read(0, 0, 3, 6)[0].any()
    assert torch.equal(kept.read(1, 2, 3, 3)[1], found_values[2:, :, :3])


def rounded_to_e4m3(x: float) -> float:
    """By hand: four significant bits, of which one is implied; steps of 1/512 below 1/64; 448 at most."""
    if x == 0.0:
        return 0.0
    step = 2.0 ** (max(math.floor(math.log2(abs(x))), -6) - 3)
    return math.copysign(min(abs(round(x / step) * step), 448.0), x)


@given(st.lists(st.floats(-30.0, 30.0, width=32), min_size=4, max_size=4), st.sampled_from([1.0, 0.03, 0.001, 7.0]))
def test_an_fp8_cache_keeps_values_over_their_scale_in_e4m3(values: list[float], scale: float) -> None:
    kept = cache([(1.0, 1.0), (scale, 2 * scale)])
    x = torch.tensor(values).view(1, 1, 1, 4).expand(1, 1, 2, 4)
    kept.write(1, torch.tensor([[0]]), torch.tensor([[0]]), x, x)

    for found, one in zip(kept.read(1, 0, 1, 1), (scale, 2 * scale), strict=True):
        quotients = (torch.tensor(values) / one).tolist()
        assert found[0, 0, 0].tolist() == pytest.approx([rounded_to_e4m3(q) * one for q in quotients], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scales", [None, [(0.02, 0.001), (0.05, 0.03)]])
def test_reading_back_gives_what_rounded_said(dtype: torch.dtype, scales: list[tuple[float, float]] | None) -> None:
    torch.manual_seed(3)
    kept = cache(scales, dtype)
    keys, values = torch.randn(2, 3, 6, 2, 4).to(dtype) * 9
    for layer in (0, 1):
        kept.write(layer, torch.tensor([[0], [1], [2]]), torch.arange(6).expand(3, -1), keys, values)
        expected = kept.rounded(layer, keys, values)
        found = kept.read(layer, 0, 3, 6)

        assert all(torch.equal(f, e.transpose(1, 2)) for f, e in zip(found, expected, strict=True))
        assert all(f.dtype is dtype for f in found)
    assert torch.equal(expected[0], keys) == (scales is None)


def test_an_fp8_cache_takes_a_byte_a_value() -> None:
    kept = cache([(1.0, 1.0), (1.0, 1.0)], torch.bfloat16)

    assert {part.element_size() for part in (*kept._keys, *kept._values)} == {1}
