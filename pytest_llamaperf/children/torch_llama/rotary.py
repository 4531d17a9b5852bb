"""Rotary position embedding, plain and with Llama 3's stretched low frequencies."""

from __future__ import annotations

import math

import torch

from .cut import Shape


class Rotary:
    """Cosines and sines by position, computed once in FP32 for every position the cache can hold."""

    def __init__(self, shape: Shape, positions: int, device: torch.device, dtype: torch.dtype) -> None:
        angles = torch.outer(torch.arange(positions).float(), frequencies(shape))
        angles = torch.cat((angles, angles), dim=-1)
        self._cos = angles.cos().to(device, dtype)
        self._sin = angles.sin().to(device, dtype)

    def at(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(cos, sin) for positions [B, T], each [B, T, 1, head_dim]."""
        return self._cos[positions].unsqueeze(2), self._sin[positions].unsqueeze(2)


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [B, T, heads, head_dim], each pair (i, i + head_dim/2) turned by its angle."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


def frequencies(shape: Shape) -> torch.Tensor:
    """Radians a position, [head_dim / 2].

    rope_type llama3 leaves wavelengths below original_context / high_freq_factor alone, divides those above
    original_context / low_freq_factor by `factor`, and goes over smoothly between. Source: the reference code of
    Llama 3.1 (apply_scaling), which transformers' `_compute_llama3_parameters` follows. Raises ValueError for a kind
    of scaling that is neither this nor linear.
    """
    plain = 1.0 / shape.rope_theta ** (torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
    scaling = shape.rope_scaling
    kind = scaling.get("rope_type", "default")
    if kind == "default":
        return plain
    factor = float(scaling["factor"])
    if kind == "linear":
        return plain / factor
    if kind != "llama3":
        raise ValueError(f"rope_type {kind!r} is not known here; known: default, linear, llama3")
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    turns = float(scaling["original_max_position_embeddings"]) * plain / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return plain * kept + plain / factor * (1 - kept)
