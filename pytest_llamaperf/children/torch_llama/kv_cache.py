"""The KV cache: a slot for each request in flight, every slot as long as the longest sequence."""

from __future__ import annotations

import torch

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0


class KvCache:
    """Keys and values of one rank's layers, each [slots, KV heads, positions, head_dim].

    With scales (one pair a layer) they are kept as FP8, as a checkpoint with an FP8 KV cache asks for.
    """

    def __init__(
        self,
        layers: int,
        slots: int,
        kv_heads: int,
        positions: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        scales: list[tuple[float, float]] | None = None,
    ) -> None:
        self.positions = positions
        self._dtype = dtype
        self._scales = scales
        size = (slots, kv_heads, positions, head_dim)
        kept = dtype if scales is None else FP8
        self._keys = [torch.zeros(size, dtype=kept, device=device) for _ in range(layers)]
        self._values = [torch.zeros(size, dtype=kept, device=device) for _ in range(layers)]

    def rounded(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What reading them back from the cache would give."""
        if self._scales is None:
            return keys, values
        key_scale, value_scale = self._scales[layer]
        return _back(_kept(keys, key_scale), key_scale, self._dtype), _back(
            _kept(values, value_scale), value_scale, self._dtype
        )

    def write(
        self, layer: int, slots: torch.Tensor, positions: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> None:
        """keys and values [B, T, KV heads, head_dim] at slots [B, 1] and positions [B, T]."""
        if self._scales is not None:
            keys, values = _kept(keys, self._scales[layer][0]), _kept(values, self._scales[layer][1])
        self._keys[layer][slots, :, positions] = keys
        self._values[layer][slots, :, positions] = values

    def read(self, layer: int, start: int, stop: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first `length` positions of the slots from start to stop, [stop - start, KV heads, length, head_dim]."""
        keys, values = self._keys[layer][start:stop, :, :length], self._values[layer][start:stop, :, :length]
        if self._scales is None:
            return keys, values
        key_scale, value_scale = self._scales[layer]
        return _back(keys, key_scale, self._dtype), _back(values, value_scale, self._dtype)


def _kept(x: torch.Tensor, scale: float) -> torch.Tensor:
    return (x.float() / scale).clamp_(-FP8_MAX, FP8_MAX).to(FP8)


def _back(x: torch.Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor:
    return x.to(dtype) * scale
