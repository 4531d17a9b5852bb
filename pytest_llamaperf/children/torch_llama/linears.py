"""Linear layers in the number formats that ModelOpt exports.

On a CPU a quantized product is computed in BF16 on the grid of the format, which is exact up to rounding of the sum; on
a GPU the FP8 ones are real FP8 products (`torch._scaled_mm`). Both read the same checkpoint.

Layers that read the same input are laid side by side into one product where their scales allow (`joined`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
INT8_MAX = 127.0

# Operators without a public name, of a library that not every build of torch has, for processors that know BF16.
_ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class Linear(Protocol):
    """From [..., in] to [..., out]."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True)
class Plain:
    """Weights [out, in] in the type the network computes in."""

    weight: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return product(x, self.weight)


@dataclass(frozen=True)
class Fp8Tensor:
    """One scale for the weight, one for the input, both known before the run. Of several joined, whose weights have
    scales of their own, `weight_scale` has one for each output, [out].

    `weight` holds the values of the FP8 grid: as FP8 on a GPU, as BF16, which holds them exactly, on a CPU.
    """

    weight: torch.Tensor
    weight_scale: torch.Tensor
    input_scale: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        quantized = _to_fp8(x, self.input_scale)
        if self.weight.dtype is not FP8:
            return _rescaled(product(quantized.to(x.dtype), self.weight), self.input_scale * self.weight_scale)
        if not self.weight_scale.ndim:
            return _scaled_product(quantized, self.weight, self.input_scale, self.weight_scale, x.dtype)
        # The hardware takes one scale for all of both sides, or one for each row of both.
        x_scale = self.input_scale.repeat(quantized.numel() // quantized.shape[-1], 1)
        return _scaled_product(quantized, self.weight, x_scale, self.weight_scale[None], x.dtype)


@dataclass(frozen=True)
class Fp8Row:
    """One scale for each output row of the weight, [out]; one for each token of the input, found as it comes."""

    weight: torch.Tensor
    weight_scale: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        scale = rows.abs().amax(-1, keepdim=True).float().clamp_min(1e-12) / FP8_MAX
        quantized = _to_fp8(rows, scale)
        if self.weight.dtype is FP8:
            y = _scaled_product(quantized, self.weight, scale, self.weight_scale[None], x.dtype)
        else:
            y = _rescaled(product(quantized.to(x.dtype), self.weight), scale, self.weight_scale)
        return y.view(*x.shape[:-1], -1)


@dataclass(frozen=True)
class Int8Smooth:
    """SmoothQuant: weights have a scale a row, the input has one for all, after its channels were evened out by
    `smoothing`, [in]; None where the layer before does that already.
    """

    weight: torch.Tensor
    weight_scale: torch.Tensor
    input_scale: torch.Tensor
    smoothing: torch.Tensor | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        smooth = (x if self.smoothing is None else x * self.smoothing).float()
        # Whole numbers up to 128 are exact in BF16, and their products are summed in FP32.
        quantized = (smooth / self.input_scale).round_().clamp_(-INT8_MAX - 1, INT8_MAX).to(x.dtype)
        return _rescaled(product(quantized, self.weight), self.input_scale * self.weight_scale)


@dataclass(frozen=True)
class Int4Awq:
    """Weights only: four bits with a scale for each block of inputs, unpacked once; `smoothing` as above."""

    weight: torch.Tensor
    smoothing: torch.Tensor | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return product(x if self.smoothing is None else x * self.smoothing, self.weight)


@dataclass(frozen=True)
class SideBySide:
    """Layers of the same input that cannot be one product: their scales differ."""

    layers: tuple[Linear, ...]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([layer(x) for layer in self.layers], dim=-1)


def joined(layers: Sequence[Linear]) -> Linear:
    """One layer whose output is those of `layers` one after the other."""
    kinds = {type(layer) for layer in layers}
    if kinds == {Plain}:
        return Plain(_stacked(layers, "weight"))
    if kinds == {Fp8Row}:
        return Fp8Row(_stacked(layers, "weight"), _stacked(layers, "weight_scale"))
    if kinds == {Fp8Tensor} and _equal(layers, "input_scale"):
        first = layers[0]
        assert isinstance(first, Fp8Tensor)
        if _equal(layers, "weight_scale"):
            return Fp8Tensor(_stacked(layers, "weight"), first.weight_scale, first.input_scale)
        scales = [layer.weight_scale.expand(layer.weight.shape[0]) for layer in layers if isinstance(layer, Fp8Tensor)]
        return Fp8Tensor(_stacked(layers, "weight"), torch.cat(scales), first.input_scale)
    if kinds == {Int8Smooth} and _equal(layers, "input_scale") and _equal(layers, "smoothing"):
        first = layers[0]
        assert isinstance(first, Int8Smooth)
        return Int8Smooth(
            _stacked(layers, "weight"), _stacked(layers, "weight_scale"), first.input_scale, first.smoothing
        )
    if kinds == {Int4Awq} and _equal(layers, "smoothing"):
        first = layers[0]
        assert isinstance(first, Int4Awq)
        return Int4Awq(_stacked(layers, "weight"), first.smoothing)
    return SideBySide(tuple(layers))


def laid_out(layer: Linear) -> Linear:
    """The layer with its weight as the processor reads it best; nothing else can be done with it then."""
    if isinstance(layer, SideBySide):
        return SideBySide(tuple(laid_out(part) for part in layer.layers))
    if not isinstance(layer, Plain | Fp8Tensor | Fp8Row | Int8Smooth | Int4Awq):
        return layer
    return dataclasses.replace(layer, weight=blocked(layer.weight))


def blocked(weight: torch.Tensor) -> torch.Tensor:
    """A BF16 weight [out, in] on a CPU in oneDNN's own order, which `product` takes; others as they are.

    Products are the same to the bit and sooner done, for few tokens above all (benchmarks/engine/weights.py): F.linear
    brings a weight into that order anew at every call. torch.compile does it to weights that never change.
    """
    if weight.device.type != "cpu" or weight.dtype is not torch.bfloat16 or not _ONEDNN:
        return weight
    found: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    return found


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[..., in] times a weight [out, in], blocked or not."""
    if not weight.is_mkldnn:
        return F.linear(x, weight)
    y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return y


def unpacked_int4(packed: torch.Tensor) -> torch.Tensor:
    """[out / 2, in] bytes -> [out, in] whole numbers from -8 to 7: two neighbouring rows share a byte, the even row
    in its low half. Source: ModelOpt's `pack_int4_in_uint8`.
    """
    low, high = packed & 0x0F, packed >> 4
    rows = torch.stack((low, high), dim=1).flatten(0, 1).to(torch.int8)
    return torch.where(rows > 7, rows - 16, rows)


def _stacked(layers: Sequence[Linear], name: str) -> torch.Tensor:
    tensors = [getattr(layer, name) for layer in layers]
    if tensors[0].dtype is FP8:  # torch.cat knows no FP8 on some devices; bytes are bytes
        return torch.cat([tensor.view(torch.uint8) for tensor in tensors]).view(FP8)
    return torch.cat(tensors)


def _equal(layers: Sequence[Linear], name: str) -> bool:
    first, *others = (getattr(layer, name) for layer in layers)
    if first is None:
        return all(other is None for other in others)
    return all(other is not None and torch.equal(other, first) for other in others)


def _to_fp8(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (x.float() / scale).clamp_(-FP8_MAX, FP8_MAX).to(FP8)


def _rescaled(y: torch.Tensor, *scales: torch.Tensor) -> torch.Tensor:
    """y times FP32 scales that fit its shape, rounded once. By a single number torch does that without an FP32 copy."""
    if len(scales) == 1 and not scales[0].ndim:
        return y * scales[0]
    exact = y.float()
    for scale in scales:
        exact.mul_(scale)
    return exact.to(y.dtype)


def _scaled_product(
    x: torch.Tensor, weight: torch.Tensor, x_scale: torch.Tensor, weight_scale: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """The FP8 product of the hardware: scales are one number each, or [rows, 1] and [1, out]."""
    rows = x.reshape(-1, x.shape[-1])
    y = torch._scaled_mm(
        rows, weight.t(), scale_a=x_scale, scale_b=weight_scale, out_dtype=dtype, use_fast_accum=x.is_cuda
    )
    return y.view(*x.shape[:-1], -1)
