"""Is a checkpoint what its model and recipe say? Asked of the files that were written, before anybody uses them.

A layer left out, a scale of one or a lost rope_theta raise no error in an engine: it answers, faster or slower, and
worse. So the files are compared with the recipe and with the checkpoint they were made from, tensor by tensor; where
that is not known, because others quantized it, with what the recipe and the model alone say.
"""

from __future__ import annotations

import fnmatch
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_llamaperf.cases import INT4_BLOCK, Model, Number, Recipe
from pytest_llamaperf.catalog import recipes
from pytest_llamaperf.checkpoints.configs import (
    CONFIG,
    QUANTIZATION,
    TOKENIZERS,
    Rope,
    catalog_rope,
    older_rope,
    read_json,
    rope,
    tokenizer_file,
)
from pytest_llamaperf.checkpoints.intended import (
    ALGORITHMS,
    Part,
    intended_modules,
    intended_parts,
    keeps_everything,
    weight_format,
)
from pytest_llamaperf.checkpoints.quantization import Quantization, read_quantization
from pytest_llamaperf.checkpoints.safetensors_files import FLOATS, BadCheckpoint, Tensor, tensors, values
from pytest_llamaperf.wording import counted

_CACHE_SCALES = ("k_scale", "v_scale")
SCALES = ("weight_scale", "input_scale", "pre_quant_scale", *_CACHE_SCALES)
_QUANTIZED_TYPES = ("F8_E4M3", "I8", "U8")
_NAMED = 3  # of many things that are wrong alike

# Of config.json, besides rotary embedding: what changes the answers, or where they end.
_KEPT_FIELDS = (
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps", "hidden_act", "attention_bias", "mlp_bias",
    "tie_word_embeddings", "bos_token_id", "eos_token_id",
)  # fmt: skip
# Left out by older versions of transformers where it is this.
_FIELD_DEFAULTS = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False}

_SHAPE_FIELDS = {
    "num_hidden_layers": "layers",
    "hidden_size": "hidden",
    "intermediate_size": "feed_forward",
    "num_attention_heads": "heads",
    "vocab_size": "vocabulary",
}

_NO_TOKENIZER = f"there is no tokenizer ({' or '.join(TOKENIZERS)})"
_BOTH_SPELLINGS = (
    "Write rope_theta and rope_scaling beside rope_parameters, as in checkpoints that are quantized here, "
    "or export it again under the transformers of the runtime"
)


@dataclass(frozen=True)
class Findings:
    """What stands in a checkpoint, after nothing was found wrong. Scales are (lowest, highest) of each kind."""

    quantized_modules: frozenset[str]
    scales: Mapping[str, tuple[float, float]]
    quant_algo: str | None
    kv_cache_quant_algo: str | None
    rope: Rope


def checked(path: Path, model: Model, recipe: Recipe, source: Path) -> Findings:
    """What the quantized checkpoint in `path` holds; `source` is the one it was made from.

    Raises BadCheckpoint that names everything that is not as the recipe says.
    """
    try:
        found = tensors(path)
        config, original = read_json(path / CONFIG), read_json(source / CONFIG)
        said = read_quantization(path)
        scale_values = _scales(found)
    except BadCheckpoint as problem:
        raise _refusal(path, model, recipe, [str(problem)]) from None
    problems = [
        *_wrong_parts(found, intended_parts(model, recipe)),
        *_wrong_scales(scale_values, SCALES),
        *_wrong_quantization(said, model, recipe),
        *_wrong_inline(config, recipe),
        *_wrong_rope(config, rope(original), "the source has"),
        *_wrong_fields(config, original),
        *_wrong_tokenizer(path, source),
    ]
    if problems:
        raise _refusal(path, model, recipe, problems)
    return _findings(found, scale_values, said, config)


def checked_as_given(path: Path, model: Model, recipe: Recipe) -> Findings:
    """What a checkpoint holds that was quantized before it came here, by ModelOpt of any version.

    config.json may say nothing of quantization. Scales of the KV cache may all be 1: ModelOpt of 2025 raises lower ones
    to that when it exports (`clamp_` in export/quant_utils.py). Raises BadCheckpoint that names everything that is not
    as the recipe and the model say, or the recipe that it would be.
    """
    config, said = read_json(path / CONFIG), read_quantization(path)
    if wrong := list(_wrong_quantization(said, model, recipe)):
        raise _of_another_recipe(path, said, model, recipe, wrong)
    found = _without_buffers(tensors(path))
    scale_values = _scales(found)
    problems = [
        *_wrong_shape(config, model),
        *_wrong_rope(config, catalog_rope(model.rope), "meant is"),
        *_wrong_parts(found, intended_parts(model, recipe)),
        *_wrong_scales(scale_values, tuple(kind for kind in SCALES if kind not in _CACHE_SCALES)),
        *([] if tokenizer_file(path) else [_NO_TOKENIZER]),
    ]
    if problems:
        raise _refusal(path, model, recipe, problems)
    return _findings(found, scale_values, said, config)


def check_source(path: Path, model: Model) -> None:
    """Refuse a checkpoint in BF16 that is not whole, or not of this model. Raises BadCheckpoint."""
    config = read_json(path / CONFIG)
    wrong = list(_wrong_shape(config, model))
    if config.get("rope_parameters") and config.get("rope_theta") and rope(config) != older_rope(config):
        wrong.append(f"rotary embedding is {_shown(rope(config))} and {_shown(older_rope(config))} as well")
    elif rope(config) != catalog_rope(model.rope):
        wrong.append(f"rotary embedding is {_shown(rope(config))} and not {_shown(catalog_rope(model.rope))}")
    if wrong:
        raise BadCheckpoint(path / CONFIG, f"is not of {model}: {', '.join(wrong)}")
    plain = Recipe("bf16", Number.BF16, Number.BF16, Number.BF16, 0, "")
    if wrong := list(_wrong_parts(_without_buffers(tensors(path)), intended_parts(model, plain))):
        raise BadCheckpoint(path, "; ".join(wrong))


def check_rope(path: Path, transformers: str) -> None:
    """Refuse a checkpoint whose rotary embedding this version of transformers, a runtime's, would not see.

    Before 5 it knows no rope_parameters, and takes what they alone say for the default, without a word. Raises
    BadCheckpoint, and ValueError for what is no version.
    """
    major, _, _ = transformers.partition(".")
    config = read_json(path / CONFIG)
    meant, read = rope(config), rope(config) if int(major) >= 5 else older_rope(config)
    if read != meant:
        raise BadCheckpoint(
            path / CONFIG,
            f"transformers {transformers}, which this runtime has, reads the rotary embedding {_shown(read)} from it; "
            f"meant is {_shown(meant)}. {_BOTH_SPELLINGS}",
        )


def quantized_modules(path: Path) -> frozenset[str]:
    """Names of the linear layers whose weights are stored quantized. Raises BadCheckpoint."""
    return _quantized(tensors(path))


def scales(path: Path) -> dict[str, array[float]]:
    """Values of every scale by the tensor's name; of very large ones a part. Raises BadCheckpoint."""
    return _scales(tensors(path))


def _findings(
    found: Mapping[str, Tensor], scale_values: Mapping[str, array[float]], said: Quantization, config: Mapping[str, Any]
) -> Findings:
    kinds = {name.rpartition(".")[2] for name in scale_values}
    return Findings(
        _quantized(found),
        {kind: _range_of(kind, scale_values) for kind in sorted(kinds)},
        said.algorithm,
        said.kv_cache,
        rope(config),
    )


def _quantized(found: Mapping[str, Tensor]) -> frozenset[str]:
    return frozenset(
        name.removesuffix(".weight")
        for name, tensor in found.items()
        if name.endswith(".weight") and tensor.dtype in _QUANTIZED_TYPES
    )


def _scales(found: Mapping[str, Tensor]) -> dict[str, array[float]]:
    return {
        name: values(tensor)
        for name, tensor in found.items()
        if name.rpartition(".")[2] in SCALES and tensor.dtype in FLOATS
    }


def _range_of(kind: str, scale_values: Mapping[str, array[float]]) -> tuple[float, float]:
    of_kind = [numbers for name, numbers in scale_values.items() if name.rpartition(".")[2] == kind]
    return min(map(min, of_kind)), max(map(max, of_kind))


def _wrong_parts(found: Mapping[str, Tensor], intended: Mapping[str, Part]) -> Iterator[str]:
    missing = [name for name, part in intended.items() if name not in found and not part.optional]
    if missing:
        yield f"{_some(missing)} missing"
    if extra := sorted(found.keys() - intended.keys()):
        yield f"{_some(extra)} not intended"
    wrong = [
        name for name, part in intended.items() if name in found and not part.fits(found[name].dtype, found[name].shape)
    ]
    # Alike are those of one kind of layer with one kind of mistake.
    groups: dict[tuple[str, str], list[str]] = {}
    for name in wrong:
        told = f"{found[name].dtype} {list(found[name].shape)}, intended {intended[name]}"
        groups.setdefault((name.rpartition("layers.")[2].partition(".")[2], told), []).append(name)
    for (_, told), names in groups.items():
        yield f"{_some(names)} {told}"


def _wrong_scales(scale_values: Mapping[str, array[float]], measured: tuple[str, ...]) -> Iterator[str]:
    """`measured` are the kinds of which not all can be 1."""
    infinite = [name for name, numbers in scale_values.items() if not all(map(math.isfinite, numbers))]
    if infinite:
        yield f"{_some(infinite)} not finite"
    low = [name for name, numbers in scale_values.items() if numbers and name not in infinite and min(numbers) <= 0]
    if low:
        yield f"{_some(low)} not positive"
    for kind in measured:
        of_kind = [numbers for name, numbers in scale_values.items() if name.rpartition(".")[2] == kind]
        if of_kind and all(number == 1.0 for numbers in of_kind for number in numbers):
            yield f"every {kind} is 1: nothing was measured"


def _wrong_quantization(said: Quantization, model: Model, recipe: Recipe) -> Iterator[str]:
    number = weight_format(recipe)
    cache = "FP8" if recipe.kv_cache == Number.FP8 else None
    if said.algorithm != _algorithm(recipe):
        yield f"{QUANTIZATION} says quant_algo {said.algorithm}, intended {_algorithm(recipe)}"
    if said.kv_cache != cache:
        yield f"{QUANTIZATION} says kv_cache_quant_algo {said.kv_cache}, intended {cache}"
    if number == Number.INT4_AWQ and said.group_size != INT4_BLOCK:
        yield f"{QUANTIZATION} says group_size {said.group_size}, intended {INT4_BLOCK}"
    yield from _wrong_exclusions(said.excluded, model, recipe)


def _algorithm(recipe: Recipe) -> str | None:
    number = weight_format(recipe)
    return ALGORITHMS.get(number) if number else None


def _of_another_recipe(
    path: Path, said: Quantization, model: Model, recipe: Recipe, wrong: Iterable[str]
) -> BadCheckpoint:
    """What the checkpoint is, and what it would be called here."""
    for name, other in recipes().items():
        if not keeps_everything(other) and not list(_wrong_quantization(said, model, other)):
            return BadCheckpoint(path, f"is quantized: {said}; name the recipe {name}")
    differing = f", {recipe} neither: {'; '.join(wrong)}" if said.algorithm == _algorithm(recipe) else ""
    return BadCheckpoint(
        path,
        f"is quantized: {said}, which no recipe of the catalog describes{differing}; give the BF16 checkpoint it was made "
        "from, which the recipes quantize",
    )


def _wrong_inline(config: Mapping[str, Any], recipe: Recipe) -> Iterator[str]:
    inline = config.get("quantization_config")
    found = inline.get("quant_algo") if isinstance(inline, dict) else "no quantization_config"
    if found != _algorithm(recipe):
        yield f"{CONFIG} says {found}, intended {_algorithm(recipe)}"


def _wrong_exclusions(patterns: Sequence[str], model: Model, recipe: Recipe) -> Iterator[str]:
    """TensorRT-LLM takes every linear layer as quantized that this list does not name."""
    intended = intended_modules(model, recipe)
    everything = {
        name.removesuffix(".weight") for name in intended_parts(model, recipe) if name.endswith("_proj.weight")
    }
    left_out = sorted((everything - intended) | {"lm_head"})
    if unnamed := [name for name in left_out if not _matches(name, patterns)]:
        yield f"{_some(unnamed)} not excluded in {QUANTIZATION}"
    if named := [name for name in sorted(intended) if _matches(name, patterns)]:
        yield f"{_some(named)} excluded in {QUANTIZATION}, though quantized"


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """A pattern names a module, or one that it is part of: model.layers.0.mlp excludes its three layers."""
    parts = name.split(".")
    names = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return any(fnmatch.fnmatchcase(module, pattern) for module in names for pattern in patterns)


def _wrong_shape(config: Mapping[str, Any], model: Model) -> Iterator[str]:
    for field, attribute in _SHAPE_FIELDS.items():
        if config.get(field) != getattr(model, attribute):
            yield f"{field} is {config.get(field)} and not {getattr(model, attribute)}"


def _wrong_rope(config: Mapping[str, Any], wanted: Rope, where: str) -> Iterator[str]:
    for version, found in (("5", rope(config)), ("4, as TensorRT-LLM has it,", older_rope(config))):
        if found != wanted:
            advice = f". {_BOTH_SPELLINGS}" if rope(config) == wanted else ""
            yield (
                f"{CONFIG}: transformers {version} reads the rotary embedding {_shown(found)}; "
                f"{where} {_shown(wanted)}{advice}"
            )


def _wrong_fields(config: Mapping[str, Any], original: Mapping[str, Any]) -> Iterator[str]:
    for field in _KEPT_FIELDS:
        here, there = (said.get(field, _FIELD_DEFAULTS.get(field)) for said in (config, original))
        if here != there and not (field in ("head_dim", "num_key_value_heads") and there is None):
            yield f"{CONFIG} says {field} {here}, the source {there}"


def _wrong_tokenizer(path: Path, source: Path) -> Iterator[str]:
    there = tokenizer_file(source)
    if tokenizer_file(path) is None:
        yield _NO_TOKENIZER
    elif there and not _same(path / there.name, there):
        yield f"{there.name} is not the source's"


def _same(one: Path, other: Path) -> bool:
    return one.exists() and one.read_bytes() == other.read_bytes()


def _without_buffers(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Old checkpoints of Llama 2 carry the frequencies of rope, which every reader computes."""
    return {name: tensor for name, tensor in found.items() if not name.endswith(".rotary_emb.inv_freq")}


def _some(names: list[str]) -> str:
    """`a, b, c and 25 more are`"""
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more} {'is' if len(names) == 1 else 'are'}"


def _shown(said: Rope) -> str:
    return ", ".join(f"{key} {value if isinstance(value, str) else format(value, 'g')}" for key, value in said.items())


def _refusal(path: Path, model: Model, recipe: Recipe, problems: Sequence[str]) -> BadCheckpoint:
    listed = "".join(f"\n    {problem}" for problem in problems)
    return BadCheckpoint(
        path, f"is not {model} in the recipe {recipe}; {counted(len(problems), 'thing')} wrong:{listed}"
    )
