"""Where a rank's tensors come from: a Hugging Face checkpoint as ModelOpt exports it, or drawn at random on the device."""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from .cut import Shape
from .linears import FP8, FP8_MAX, Fp8Row, Fp8Tensor, Int4Awq, Int8Smooth, Linear, Plain, unpacked_int4

Range = tuple[int, int] | None


class Weights(Protocol):
    """Tensors by their Hugging Face names, cut to the rows (outputs) and columns (inputs) a rank holds."""

    @property
    def shape(self) -> Shape: ...

    def linear(self, name: str, rows: Range = None, columns: Range = None) -> Linear: ...

    def norm(self, name: str) -> torch.Tensor:
        """[hidden]"""
        ...

    def embedding(self) -> torch.Tensor:
        """[vocabulary, hidden]"""
        ...

    def head(self, rows: Range) -> torch.Tensor:
        """[rows of the vocabulary, hidden]"""
        ...

    def kv_scales(self, layer: int) -> tuple[float, float] | None:
        """(key, value) where the KV cache is FP8."""
        ...

    def close(self) -> None: ...


class CheckpointWeights:
    """Reads only what is asked for; files are opened once.

    Raises ValueError for a checkpoint that lacks a tensor or holds one of a format unknown here.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        self._folder, self._dtype, self._device = folder, dtype, device
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.shape = shape_of_config(config)
        self._files: dict[str, Any] = {}
        self._opened = contextlib.ExitStack()
        self._place = _places(folder)

    def linear(self, name: str, rows: Range = None, columns: Range = None) -> Linear:
        dtype = self._dtype_of(f"{name}.weight")
        if dtype == "U8":
            return self._int4(name, rows, columns)
        weight = self._tensor(f"{name}.weight", rows, columns)
        if dtype in ("BF16", "F16", "F32"):
            return Plain(weight.to(self._dtype))
        if dtype not in ("F8_E4M3", "I8"):
            raise ValueError(f"{name}.weight is {dtype}, which this engine does not know")
        scale = self._tensor(f"{name}.weight_scale").float()
        scale = scale[slice(*rows)] if scale.ndim and scale.numel() > 1 and rows else scale
        if dtype == "I8":
            # int8 products run on the BF16 units here, on a GPU as well: this format is a reference, not a fast path.
            return Int8Smooth(
                weight.to(self._dtype),
                scale,
                self._tensor(f"{name}.input_scale").float(),
                self._smoothing(name, columns),
            )
        kept = weight if self._device.type == "cuda" else weight.to(self._dtype)
        if scale.numel() > 1 or not self._has(f"{name}.input_scale"):
            return Fp8Row(kept, scale.reshape(-1))
        return Fp8Tensor(kept, scale.reshape(()), self._tensor(f"{name}.input_scale").float().reshape(()))

    def norm(self, name: str) -> torch.Tensor:
        return self._tensor(f"{name}.weight").to(self._dtype)

    def embedding(self) -> torch.Tensor:
        return self._tensor("model.embed_tokens.weight").to(self._dtype)

    def head(self, rows: Range) -> torch.Tensor:
        name = "model.embed_tokens.weight" if self.shape.tied else "lm_head.weight"
        return self._tensor(name, rows).to(self._dtype)

    def kv_scales(self, layer: int) -> tuple[float, float] | None:
        """By the tensors that are there: not every checkpoint with an FP8 cache says so in config.json."""
        names = [f"model.layers.{layer}.self_attn.{part}" for part in ("k_proj.k_scale", "v_proj.v_scale")]
        if not any(name in self._place for name in names):
            return None
        key, value = (float(self._tensor(name)) for name in names)
        return key, value

    def close(self) -> None:
        self._opened.close()

    def _int4(self, name: str, rows: Range, columns: Range) -> Linear:
        halves = None if rows is None else (rows[0] // 2, rows[1] // 2)
        weight = unpacked_int4(self._tensor(f"{name}.weight", halves, columns)).to(self._dtype)
        scale = self._tensor(f"{name}.weight_scale", rows).to(self._dtype)
        block = self._slice(f"{name}.weight").get_shape()[1] // scale.shape[1]
        spread = scale.repeat_interleave(block, dim=1)
        if columns is not None:  # which need not be whole blocks
            spread = spread[:, slice(*columns)]
        return Int4Awq(weight * spread, self._smoothing(name, columns))

    def _smoothing(self, name: str, columns: Range) -> torch.Tensor | None:
        if not self._has(f"{name}.pre_quant_scale"):
            return None
        scale = self._tensor(f"{name}.pre_quant_scale").to(self._dtype)
        return scale if columns is None else scale[slice(*columns)]

    def _has(self, name: str) -> bool:
        return name in self._place

    def _dtype_of(self, name: str) -> str:
        return str(self._slice(name).get_dtype())

    def _tensor(self, name: str, rows: Range = None, columns: Range = None) -> torch.Tensor:
        part = self._slice(name)
        if rows is not None and columns is not None:
            found = part[slice(*rows), slice(*columns)]
        elif rows is not None:
            found = part[slice(*rows)]
        elif columns is not None:
            found = part[:, slice(*columns)]
        else:
            found = self._file(name).get_tensor(name)
        return torch.as_tensor(found).to(self._device).contiguous()

    def _slice(self, name: str) -> Any:
        return self._file(name).get_slice(name)

    def _file(self, name: str) -> Any:
        if name not in self._place:
            raise ValueError(f"{self._folder}: the checkpoint has no tensor {name}")
        file = self._place[name]
        if file not in self._files:
            from safetensors import safe_open

            # On the CPU: slices go to the device one by one, and whole files need not fit there.
            self._files[file] = self._opened.enter_context(safe_open(self._folder / file, "pt", device="cpu"))
        return self._files[file]


class RandomWeights:
    """A network of the given shape in a recipe's number formats. A tensor's values depend on its name and the seed
    alone, so that every layout holds the same network.

    Raises ValueError for a format that cannot be drawn.
    """

    def __init__(
        self, shape: Shape, recipe: Mapping[str, Any], dtype: torch.dtype, device: torch.device, seed: int
    ) -> None:
        self.shape = shape
        self._recipe, self._dtype, self._device, self._seed = recipe, dtype, device, seed
        kept = int(recipe["bf16_layers"])
        self._kept_layers = {0, shape.layers - 1} if kept else set()

    def linear(self, name: str, rows: Range = None, columns: Range = None) -> Linear:
        part = "attention" if "self_attn" in name else "feed_forward"
        number = str(self._recipe[part])
        if part == "feed_forward" and int(name.split(".")[2]) in self._kept_layers:
            number = "bf16"
        whole = self._normal(name, self._size(name))
        # Drawn whole and then cut, like a checkpoint; scales, too, are those of the whole.
        cut = whole[slice(*(rows or (None, None))), slice(*(columns or (None, None)))].contiguous()
        if number in ("bf16", "fp32"):
            return Plain(cut)
        if number == "fp8-per-tensor":
            scale = whole.abs().amax().float() / FP8_MAX
            # Inputs are normed, of size about one; 30 leaves room for what a real network has in outliers.
            return Fp8Tensor(self._fp8(cut, scale), scale, torch.tensor(30.0 / FP8_MAX, device=self._device))
        if number == "fp8-per-row":
            row_scale = whole.abs().amax(1).float() / FP8_MAX
            row_scale = row_scale[slice(*(rows or (None, None)))]
            return Fp8Row(self._fp8(cut, row_scale[:, None]), row_scale)
        raise ValueError(f"random weights cannot be {number}; they come as bf16, fp32, fp8-per-tensor and fp8-per-row")

    def norm(self, name: str) -> torch.Tensor:
        return torch.ones(self.shape.hidden, dtype=self._dtype, device=self._device)

    def embedding(self) -> torch.Tensor:
        return self._normal("model.embed_tokens", (self.shape.vocabulary, self.shape.hidden))

    def head(self, rows: Range) -> torch.Tensor:
        whole = (
            self.embedding() if self.shape.tied else self._normal("lm_head", (self.shape.vocabulary, self.shape.hidden))
        )
        return whole if rows is None else whole[slice(*rows)].contiguous()

    def kv_scales(self, layer: int) -> tuple[float, float] | None:
        return (30.0 / FP8_MAX, 30.0 / FP8_MAX) if self._recipe["kv_cache"] == "fp8" else None

    def close(self) -> None:
        """Nothing is held."""

    def _size(self, name: str) -> tuple[int, int]:
        shape, kind = self.shape, name.rsplit(".", 1)[-1]
        heads, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        sizes = {
            "q_proj": (heads, shape.hidden),
            "k_proj": (kv, shape.hidden),
            "v_proj": (kv, shape.hidden),
            "o_proj": (shape.hidden, heads),
            "gate_proj": (shape.feed_forward, shape.hidden),
            "up_proj": (shape.feed_forward, shape.hidden),
            "down_proj": (shape.hidden, shape.feed_forward),
        }
        return sizes[kind]

    def _normal(self, name: str, size: tuple[int, int]) -> torch.Tensor:
        # In 32 bits: the generator of a CPU looks at no more.
        source = torch.Generator(self._device).manual_seed(zlib.crc32(f"{self._seed} {name}".encode()))
        drawn = torch.empty(size, dtype=self._dtype, device=self._device)
        return drawn.normal_(0.0, 0.02, generator=source)

    def _fp8(self, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        rounded = (weight.float() / scale).clamp_(-FP8_MAX, FP8_MAX).to(FP8)
        return rounded if self._device.type == "cuda" else rounded.to(self._dtype)


def shape_of_config(config: Mapping[str, Any]) -> Shape:
    """The network a config.json describes, in either spelling of rotary embedding.

    transformers 5 writes rope_parameters, 4 wrote rope_theta and rope_scaling; where both stand they must agree.
    Raises ValueError where they do not, or for a network that is no Llama.
    """
    if config.get("model_type") != "llama":
        raise ValueError(f"model_type is {config.get('model_type')!r}; this engine runs llama")
    for name, known in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
        if config.get(name, known) != known:
            raise ValueError(f"{name} is {config[name]!r}; this engine runs networks where it is {known!r}")
    parameters = dict(config.get("rope_parameters") or {})
    older = {"rope_theta": config.get("rope_theta"), **(config.get("rope_scaling") or {})}
    if "type" in older:  # what it was called first
        older.setdefault("rope_type", older.pop("type"))
    older = {key: value for key, value in older.items() if value is not None}
    differing = sorted(key for key in parameters.keys() & older.keys() if parameters[key] != older[key])
    if differing:
        raise ValueError(f"config.json says two things of {', '.join(differing)}: {parameters} and {older}")
    rope = {**older, **parameters}
    heads = int(config["num_attention_heads"])
    return Shape(
        layers=int(config["num_hidden_layers"]),
        hidden=int(config["hidden_size"]),
        feed_forward=int(config["intermediate_size"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or int(config["hidden_size"]) // heads),
        vocabulary=int(config["vocab_size"]),
        tied=bool(config.get("tie_word_embeddings", False)),
        eps=float(config.get("rms_norm_eps", 1e-6)),
        rope_theta=float(rope.pop("rope_theta", 10000.0)),
        rope_scaling=rope,
    )


def _places(folder: Path) -> dict[str, str]:
    """Tensor name -> the file of the checkpoint that holds it."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return places
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        return dict.fromkeys(file.keys(), "model.safetensors")
