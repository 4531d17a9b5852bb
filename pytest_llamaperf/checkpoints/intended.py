"""What a recipe means for a network: which layers are quantized, and what each consists of in the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pytest_llamaperf.cases import INT4_BLOCK, Model, Number, Recipe
from pytest_llamaperf.errors import UsageError

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
KEPT = (Number.BF16, Number.FP32)  # formats that leave the checkpoint as it is

_FLOATS = ("BF16", "F16", "F32")

# What ModelOpt calls each in hf_quant_config.json.
ALGORITHMS = {
    Number.FP8_TENSOR: "FP8",
    Number.FP8_ROW: "FP8_PER_CHANNEL_PER_TOKEN",
    Number.INT8_SMOOTH: "W8A8_SQ_PER_CHANNEL",
    Number.INT4_AWQ: "W4A16_AWQ",
}


@dataclass(frozen=True)
class Part:
    """A tensor that a checkpoint holds: which types it may have, its shape, and whether it may be left out.

    Shapes are compared without ones: a scale for each row is [out] or [out, 1].
    """

    dtypes: tuple[str, ...]
    shape: tuple[int, ...]
    optional: bool = False

    def fits(self, dtype: str, shape: tuple[int, ...]) -> bool:
        return dtype in self.dtypes and _without_ones(shape) == _without_ones(self.shape)

    def __str__(self) -> str:
        return f"{' or '.join(self.dtypes)} {list(self.shape)}"


def keeps_everything(recipe: Recipe) -> bool:
    """The recipe quantizes nothing: its checkpoint is the one that was published."""
    return all(number in KEPT for number in (recipe.attention, recipe.feed_forward, recipe.kv_cache))


def weight_format(recipe: Recipe) -> Number | None:
    """The one format in which the recipe quantizes weights; None where it quantizes the KV cache alone."""
    used = {recipe.attention, recipe.feed_forward} - set(KEPT)
    return next(iter(used)) if used else None


def needs_calibration(recipe: Recipe) -> bool:
    """Something is fixed before the run that depends on activations: all but per-row FP8, which looks at each token."""
    return weight_format(recipe) != Number.FP8_ROW or recipe.kv_cache == Number.FP8


def kept_layers(model: Model, recipe: Recipe) -> tuple[int, ...]:
    """Layers whose feed-forward part stays BF16: half of them at the start, half at the end."""
    last = recipe.bf16_layers // 2
    first = recipe.bf16_layers - last
    return tuple(layer for layer in range(model.layers) if layer < first or layer >= model.layers - last)


def intended_modules(model: Model, recipe: Recipe) -> frozenset[str]:
    """Names of the linear layers that the recipe quantizes: `model.layers.0.self_attn.q_proj`."""
    kept = kept_layers(model, recipe)
    return frozenset(
        name
        for layer, part, name in _linears(model)
        if _number(recipe, part) not in KEPT and not (part == "mlp" and layer in kept)
    )


def intended_parts(model: Model, recipe: Recipe) -> dict[str, Part]:
    """All tensors of the model's checkpoint in this recipe, by name."""
    quantized = intended_modules(model, recipe)
    vectors = Part(_FLOATS, (model.hidden,))
    whole = Part(_FLOATS, (model.vocabulary, model.hidden))
    parts = {"model.embed_tokens.weight": whole, "model.norm.weight": vectors}
    parts["lm_head.weight"] = Part(_FLOATS, whole.shape, optional=model.tied_embeddings)
    for layer in range(model.layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            parts[f"model.layers.{layer}.{norm}.weight"] = vectors
        if recipe.kv_cache == Number.FP8:
            parts[f"model.layers.{layer}.self_attn.k_proj.k_scale"] = Part(("F32",), ())
            parts[f"model.layers.{layer}.self_attn.v_proj.v_scale"] = Part(("F32",), ())
    for _, part, name in _linears(model):
        outputs, inputs = _size(model, name)
        number = _number(recipe, part) if name in quantized else Number.BF16
        parts |= {f"{name}.{tensor}": expected for tensor, expected in _stored(number, outputs, inputs)}
    return parts


def check_can_be_quantized(model: Model, recipe: Recipe) -> None:
    """Refuse what ModelOpt cannot make, before anything starts. Raises UsageError that names format and size."""
    used = {recipe.attention, recipe.feed_forward} - set(KEPT)
    if unknown := sorted(used - ALGORITHMS.keys()):
        raise UsageError(f"recipe {recipe}: {unknown[0]} is no format of weights; {', '.join(ALGORITHMS)} are")
    if len(used) > 1:
        raise UsageError(
            f"recipe {recipe} quantizes weights to {' and '.join(sorted(used))}; a checkpoint has one format"
        )
    if Number.FP32 in (recipe.attention, recipe.feed_forward, recipe.kv_cache):
        raise UsageError(f"recipe {recipe} is FP32 in one part and quantized in another; what is not quantized is BF16")
    if recipe.kv_cache not in (Number.BF16, Number.FP8):
        raise UsageError(f"recipe {recipe}: a KV cache is {Number.BF16} or {Number.FP8}, not {recipe.kv_cache}")
    if not used:
        raise UsageError(f"recipe {recipe} quantizes the KV cache and no weights, which is not made here")
    if recipe.bf16_layers >= model.layers and recipe.attention in KEPT:
        raise UsageError(f"recipe {recipe} keeps {recipe.bf16_layers} layers in BF16, and {model} has {model.layers}")
    if Number.INT4_AWQ in used:
        _check_blocks(model, recipe)


def _check_blocks(model: Model, recipe: Recipe) -> None:
    sizes = {
        "hidden size": model.hidden,
        "feed-forward size": model.feed_forward,
        "heads times head size": model.heads * model.head_dim,
    }
    wrong = [f"{name} {size:,}" for name, size in sizes.items() if size % INT4_BLOCK]
    if wrong:
        raise UsageError(
            f"recipe {recipe} cuts weights into blocks of {INT4_BLOCK} inputs, and {model} has {', '.join(wrong)}, "
            f"no multiple of {INT4_BLOCK}; use another recipe or model"
        )


def _linears(model: Model) -> Iterator[tuple[int, str, str]]:
    """(layer, self_attn or mlp, name)"""
    for layer in range(model.layers):
        for part, kinds in (("self_attn", ATTENTION), ("mlp", FEED_FORWARD)):
            for kind in kinds:
                yield layer, part, f"model.layers.{layer}.{part}.{kind}"


def _number(recipe: Recipe, part: str) -> Number:
    return recipe.attention if part == "self_attn" else recipe.feed_forward


def _size(model: Model, name: str) -> tuple[int, int]:
    """(outputs, inputs)"""
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    match name.rpartition(".")[2]:
        case "q_proj":
            return queries, model.hidden
        case "k_proj" | "v_proj":
            return keys, model.hidden
        case "o_proj":
            return model.hidden, queries
        case "down_proj":
            return model.hidden, model.feed_forward
        case _:
            return model.feed_forward, model.hidden


def _stored(number: Number, outputs: int, inputs: int) -> Iterator[tuple[str, Part]]:
    """Tensors of one linear layer, as ModelOpt 0.47 writes them."""
    row, one = Part(("F32",), (outputs,)), Part(("F32",), ())
    match number:
        case Number.FP8_TENSOR:
            yield "weight", Part(("F8_E4M3",), (outputs, inputs))
            yield "weight_scale", one
            yield "input_scale", one
        case Number.FP8_ROW:
            yield "weight", Part(("F8_E4M3",), (outputs, inputs))
            yield "weight_scale", row
        case Number.INT8_SMOOTH:
            yield "weight", Part(("I8",), (outputs, inputs))
            yield "weight_scale", row
            yield "input_scale", one
            yield "pre_quant_scale", Part(_FLOATS, (inputs,))
        case Number.INT4_AWQ:
            yield "weight", Part(("U8",), (outputs // 2, inputs))  # two rows in a byte
            yield "weight_scale", Part(("F32",), (outputs, inputs // INT4_BLOCK))
            # Folded into the layer before where there is one that can take it, which differs by version of ModelOpt.
            yield "pre_quant_scale", Part(_FLOATS, (inputs,), optional=True)
        case _:
            yield "weight", Part(_FLOATS, (outputs, inputs))


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(length for length in shape if length != 1)
