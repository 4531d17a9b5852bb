"""Linear layers of the reference engine in every number format, against the formulas of the formats written out."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import product

from pytest_llamaperf.children.torch_llama import linears
from pytest_llamaperf.children.torch_llama.linears import (
    Fp8Row,
    Fp8Tensor,
    Int4Awq,
    Int8Smooth,
    Linear,
    Plain,
    SideBySide,
    blocked,
    joined,
    laid_out,
    unpacked_int4,
)

E4M3 = torch.float8_e4m3fn
INS, OUTS = 32, 48  # multiples of 16, as the FP8 product of the hardware wants them
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def normal(*size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def e4m3(x: torch.Tensor) -> torch.Tensor:
    """The nearest value of the format, in FP32; beyond its largest, the largest."""
    return x.float().clamp(-448.0, 448.0).to(E4M3).float()


def fp8_tensor(
    seed: int = 1, dtype: torch.dtype = torch.float32, *, scale: float = 0.01, x_scale: float = 0.005
) -> Fp8Tensor:
    weight = e4m3(normal(OUTS, INS, seed=seed) / scale)
    return Fp8Tensor(weight.to(dtype), torch.tensor(scale), torch.tensor(x_scale))


def fp8_row(seed: int = 1, dtype: torch.dtype = torch.float32) -> Fp8Row:
    whole = normal(OUTS, INS, seed=seed) * torch.linspace(0.1, 3.0, OUTS)[:, None]
    scale = whole.abs().amax(1) / 448
    return Fp8Row(e4m3(whole / scale[:, None]).to(dtype), scale)


def int8_smooth(
    seed: int = 1, dtype: torch.dtype = torch.float32, *, x_scale: float = 0.02, smoothing: torch.Tensor | None = None
) -> Int8Smooth:
    whole = normal(OUTS, INS, seed=seed) * torch.linspace(0.1, 3.0, OUTS)[:, None]
    scale = whole.abs().amax(1) / 127
    return Int8Smooth((whole / scale[:, None]).round().to(dtype), scale, torch.tensor(x_scale), smoothing)


def even(seed: int = 7, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A smoothing: some channels are divided by up to 20."""
    return (1 / (1 + 19 * torch.rand(INS, generator=torch.Generator().manual_seed(seed)))).to(dtype)


def int4(seed: int = 1, dtype: torch.dtype = torch.float32, smoothing: torch.Tensor | None = None) -> Int4Awq:
    return Int4Awq(normal(OUTS, INS, seed=seed).to(dtype), smoothing)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Up to rounding: of the sum in FP32, or of what is kept as BF16, with 8 significant bits, before and after it."""
    assert found.shape == expected.shape
    error = 2.0**-7 if found.dtype is torch.bfloat16 else 1e-5
    assert (found.double() - expected).abs().max() <= error * expected.abs().max()


# Each format against its formula.


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_plain_layer_is_a_product(dtype: torch.dtype) -> None:
    x, weight = normal(3, 5, INS, dtype=dtype), normal(OUTS, INS, seed=1, dtype=dtype)

    close(Plain(weight)(x), product(x, weight))


@pytest.mark.parametrize("dtype", DTYPES)
def test_fp8_with_one_scale_rounds_inputs_over_their_scale(dtype: torch.dtype) -> None:
    layer, x = fp8_tensor(dtype=dtype), normal(3, 5, INS, dtype=dtype)

    expected = product(e4m3(x.float() / 0.005), layer.weight) * 0.005 * 0.01
    close(layer(x), expected)
    # And not the inputs as they came: the grid is coarser than anything else that rounds here.
    unrounded = product(x, layer.weight) * 0.01
    assert (layer(x) - unrounded).abs().max() > 0.01 * unrounded.abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
def test_fp8_with_scales_by_row_finds_the_scale_of_every_token(dtype: torch.dtype) -> None:
    layer = fp8_row(dtype=dtype)
    x = normal(3, 5, INS, dtype=dtype) * torch.logspace(-3, 3, 15).view(3, 5, 1).to(dtype)
    x_scale = x.float().abs().amax(-1, keepdim=True) / 448

    expected = product(e4m3(x.float() / x_scale), layer.weight) * x_scale * layer.weight_scale
    found = layer(x)
    for token in range(15):  # one by one: their sizes are far apart
        close(found.view(15, OUTS)[token], expected.view(15, OUTS)[token])


@pytest.mark.parametrize("scale", [0.0123457, 3.3e-5, 7.0e3])
def test_a_product_times_its_scale_is_rounded_once(scale: float) -> None:
    """One number takes a way without a copy in FP32, which must be that of FP32 to the bit; so must many."""
    y = normal(64, OUTS, dtype=torch.bfloat16)
    one, many = torch.tensor(scale), torch.full((OUTS,), scale)

    for scales in ((one,), (many,), (many, torch.ones(64, 1))):
        assert torch.equal(linears._rescaled(y.clone(), *scales), (y.float() * one).to(torch.bfloat16))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("smooth", [False, True])
def test_int8_rounds_evened_inputs_to_whole_numbers(dtype: torch.dtype, smooth: bool) -> None:
    smoothing = even(dtype=dtype) if smooth else None
    layer, x = int8_smooth(dtype=dtype, smoothing=smoothing), normal(3, 5, INS, dtype=dtype)

    evened = x * smoothing if smoothing is not None else x  # in the type of the network, as ModelOpt does
    whole = (evened.float() / 0.02).round().clamp(-128, 127)
    assert whole.abs().max() > 60  # the grid is used, and small steps of it make a difference
    close(layer(x), product(whole, layer.weight) * 0.02 * layer.weight_scale.double())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("smooth", [False, True])
def test_int4_multiplies_evened_inputs(dtype: torch.dtype, smooth: bool) -> None:
    smoothing = even(dtype=dtype) if smooth else None
    layer, x = int4(dtype=dtype, smoothing=smoothing), normal(3, 5, INS, dtype=dtype)

    close(layer(x), product(x if smoothing is None else x * smoothing, layer.weight))


def test_smoothing_undoes_what_was_done_to_the_weights() -> None:
    """SmoothQuant: W' = W / s on weights and x' = x * s on inputs leave the product alone."""
    weight, smoothing, x = normal(OUTS, INS, seed=1), even(), normal(4, INS)
    folded = weight / smoothing
    scale = folded.abs().amax(1) / 127
    x_scale = (x * smoothing).abs().max() / 127
    layer = Int8Smooth((folded / scale[:, None]).round(), scale, x_scale, smoothing)

    expected = product(x, weight)
    assert (layer(x) - expected).norm() < 0.05 * expected.norm()


def test_inputs_beyond_the_calibrated_range_saturate() -> None:
    x = torch.zeros(2, INS)
    x[0, 0], x[1, 0] = 1e6, -1e6
    by_tensor, by_int8 = fp8_tensor(), int8_smooth()

    close(by_tensor(x), product(torch.tensor([[448.0], [-448.0]]), by_tensor.weight[:, :1]) * 0.005 * 0.01)
    close(by_int8(x), product(torch.tensor([[127.0], [-128.0]]), by_int8.weight[:, :1]) * 0.02 * by_int8.weight_scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layer", [fp8_tensor, fp8_row, int8_smooth, int4])
def test_a_token_of_zeros_gives_zeros(layer: type, dtype: torch.dtype) -> None:
    x = torch.zeros(2, 3, INS, dtype=dtype)

    assert torch.equal(layer(dtype=dtype)(x), torch.zeros(2, 3, OUTS, dtype=dtype))


@pytest.mark.parametrize("layer", [fp8_tensor, fp8_row, int8_smooth, int4])
def test_no_token_depends_on_those_beside_it(layer: type) -> None:
    made, x = layer(), normal(6, INS) * torch.logspace(-2, 2, 6)[:, None]

    for token in range(6):
        torch.testing.assert_close(made(x[token : token + 1])[0], made(x)[token], rtol=1e-5, atol=1e-6)


# The FP8 product of the hardware, which PyTorch also has for CPUs.


def as_fp8(layer: Fp8Tensor | Fp8Row) -> Fp8Tensor | Fp8Row:
    if isinstance(layer, Fp8Row):
        return Fp8Row(layer.weight.to(E4M3), layer.weight_scale)
    return Fp8Tensor(layer.weight.to(E4M3), layer.weight_scale, layer.input_scale)


@pytest.mark.parametrize(
    "layers",
    [
        [fp8_tensor(dtype=torch.bfloat16)],
        [fp8_tensor(seed, torch.bfloat16) for seed in (1, 2, 3)],
        [fp8_tensor(seed, torch.bfloat16, scale=0.01 * seed) for seed in (1, 2, 3)],
        [fp8_row(dtype=torch.bfloat16)],
        [fp8_row(seed, torch.bfloat16) for seed in (1, 2, 3)],
    ],
    ids=["one-scale", "joined", "joined-of-different-scales", "by-row", "joined-by-row"],
)
@pytest.mark.parametrize("tokens", [(1, 1), (3, 5), (16, 1)])
def test_the_fp8_product_of_the_hardware_gives_what_the_grid_gives(
    layers: list[Fp8Tensor | Fp8Row], tokens: tuple[int, int]
) -> None:
    x = normal(*tokens, INS, dtype=torch.bfloat16)
    real = joined([as_fp8(layer) for layer in layers])

    assert real.weight.dtype is E4M3
    close(real(x), torch.cat([layer(x) for layer in layers], dim=-1).double())


# Layers side by side.


def same(found: Linear, layers: Sequence[Linear], dtype: torch.dtype) -> None:
    x = normal(3, 5, INS, dtype=dtype)
    expected = torch.cat([layer(x) for layer in layers], dim=-1)
    torch.testing.assert_close(found(x), expected, rtol=1e-6 if dtype is torch.float32 else 2.0**-7, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_of_one_format_become_one_product(dtype: torch.dtype) -> None:
    smoothing = even(dtype=dtype)
    for layers in (
        [Plain(normal(outs, INS, seed=outs, dtype=dtype)) for outs in (48, 16, 16)],
        [fp8_tensor(seed, dtype) for seed in (1, 2, 3)],
        [fp8_tensor(seed, dtype, scale=0.01 * seed) for seed in (1, 2, 3)],
        [fp8_row(seed, dtype) for seed in (1, 2, 3)],
        [int8_smooth(seed, dtype) for seed in (1, 2, 3)],
        [int8_smooth(seed, dtype, smoothing=smoothing.clone()) for seed in (1, 2, 3)],
        [int4(seed, dtype) for seed in (1, 2, 3)],
        [int4(seed, dtype, smoothing.clone()) for seed in (1, 2, 3)],
    ):
        found = joined(layers)
        assert type(found) is type(layers[0])
        same(found, layers, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_that_treat_their_inputs_differently_stay_apart(dtype: torch.dtype) -> None:
    smoothing, other = even(dtype=dtype), even(seed=8, dtype=dtype)
    for layers in (
        [fp8_tensor(1, dtype), fp8_tensor(2, dtype, x_scale=0.006)],
        [int8_smooth(1, dtype), int8_smooth(2, dtype, x_scale=0.03)],
        [int8_smooth(1, dtype, smoothing=smoothing), int8_smooth(2, dtype, smoothing=other)],
        [int8_smooth(1, dtype, smoothing=smoothing), int8_smooth(2, dtype)],
        [int8_smooth(1, dtype), int8_smooth(2, dtype, smoothing=smoothing)],
        [int4(1, dtype, smoothing), int4(2, dtype, other)],
        [int4(1, dtype), int4(2, dtype, smoothing)],
        [Plain(normal(OUTS, INS, dtype=dtype)), fp8_tensor(2, dtype), fp8_row(3, dtype)],
        [int8_smooth(1, dtype), int4(2, dtype), Plain(normal(OUTS, INS, dtype=dtype))],
    ):
        found = joined(layers)
        assert isinstance(found, SideBySide)
        same(found, layers, dtype)


def test_layers_of_different_sizes_keep_the_scale_of_each() -> None:
    """A key is shorter than a query: the scales of joined layers go with their outputs."""
    query, key = fp8_tensor(1), fp8_tensor(2, scale=0.03)
    key = Fp8Tensor(key.weight[:16], key.weight_scale, key.input_scale)

    same(joined([query, key, key]), [query, key, key], torch.float32)


@pytest.mark.parametrize("tokens", [1, 8, 130])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_order_of_a_weight_in_memory_changes_no_bit(dtype: torch.dtype, tokens: int) -> None:
    x = normal(1, tokens, INS, dtype=dtype)
    for layer in (
        Plain(normal(OUTS, INS, dtype=dtype)),
        fp8_tensor(1, dtype),
        fp8_row(1, dtype),
        int8_smooth(1, dtype, smoothing=even(dtype=dtype)),
        int4(1, dtype),
        SideBySide((fp8_tensor(1, dtype), fp8_row(2, dtype))),
    ):
        assert torch.equal(laid_out(layer)(x), layer(x))


KNOWS_BF16 = pytest.mark.skipif(not linears._ONEDNN, reason="this processor, or this torch, has no oneDNN for BF16")


@KNOWS_BF16
def test_bf16_weights_are_reordered_in_every_part_and_no_others() -> None:
    weight = normal(OUTS, INS, dtype=torch.bfloat16)
    both = laid_out(SideBySide((Plain(weight), int4(1, torch.bfloat16))))

    assert isinstance(both, SideBySide)
    assert [part.weight.is_mkldnn for part in both.layers if isinstance(part, Plain | Int4Awq)] == [True, True]
    assert blocked(weight.float()).is_mkldnn is False
    assert blocked(weight.to(E4M3)).is_mkldnn is False


def test_a_torch_without_that_order_leaves_weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linears, "_ONEDNN", False)
    weight = normal(OUTS, INS, dtype=torch.bfloat16)

    assert blocked(weight) is weight


# Four bits.


def packed(whole: torch.Tensor) -> torch.Tensor:
    """ModelOpt's `pack_int4_in_uint8` after rounding; importing ModelOpt takes seven seconds."""
    outs, ins = whole.shape
    pairs = whole.to(torch.int8).T.reshape(ins, outs // 2, 2)
    return ((pairs[..., 0] & 0x0F) | ((pairs[..., 1] & 0x0F) << 4)).T.contiguous().view(torch.uint8)


@given(st.integers(1, 6), st.integers(1, 6), st.randoms(use_true_random=False))
def test_unpacking_undoes_the_packing_of_modelopt(half: int, ins: int, source: Random) -> None:
    values = [[source.randint(-8, 7) for _ in range(ins)] for _ in range(2 * half)]

    assert unpacked_int4(packed(torch.tensor(values))).tolist() == values


def test_the_even_row_lies_in_the_low_half_of_a_byte() -> None:
    #                                      -1, 2   3, -8
    assert unpacked_int4(torch.tensor([[0x2F, 0x83]], dtype=torch.uint8)).tolist() == [[-1, 3], [2, -8]]
