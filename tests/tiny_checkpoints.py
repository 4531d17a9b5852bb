"""Checkpoints of a few kilobytes, written by hand: no library that could be under test has a part in them."""

from __future__ import annotations

import json
import math
import random
import shutil
import struct
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_llamaperf.cases import Model, Number, Recipe
from pytest_llamaperf.catalog import model_named
from pytest_llamaperf.checkpoints.intended import ALGORITHMS, Part, intended_modules, intended_parts, weight_format

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]  # name -> dtype, shape, content

LLAMA3_ROPE = {
    "rope_theta": 500000.0,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
PLAIN_ROPE = {"rope_theta": 100000.0, "rope_type": "default"}

WIDTHS = {"U8": 1, "I8": 1, "F8_E4M3": 1, "BF16": 2, "F16": 2, "F32": 4}


def bf16(*values: float) -> bytes:
    """Cut off, not rounded."""
    wide = array("f", values).tobytes()
    narrow = bytearray(len(wide) // 2)
    narrow[0::2], narrow[1::2] = wide[2::4], wide[3::4]
    return bytes(narrow)


def write_safetensors(path: Path, tensors: Tensors) -> None:
    header, place = {}, 0
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, place + len(content)]}
        place += len(content)
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(content for _, _, content in tensors.values()))


def read_safetensors(path: Path) -> Tensors:
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    return {
        name: (entry["dtype"], tuple(entry["shape"]), data[start:][slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }


def write_source(
    folder: Path,
    *,
    layers: int = 2,
    hidden: int = 256,
    feed_forward: int = 512,
    tied: bool = False,
    rope: Mapping[str, Any] = LLAMA3_ROPE,
    **config: Any,
) -> Model:
    """A Llama with drawn weights and a tokenizer of single bytes, and the model it is.

    Of its embedding some columns are a hundred times the others: the outliers that quantization is about.
    """
    folder.mkdir(parents=True)
    heads, kv_heads, head_dim, vocabulary = 4, 2, 64, 512
    shape = {
        "hidden_size": hidden,
        "intermediate_size": feed_forward,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocabulary,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": tied,
    }
    written = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **shape,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "dtype": "bfloat16",
        "rope_parameters": dict(rope),
        **config,
    }
    _write_json(folder / "config.json", {key: value for key, value in written.items() if value is not None})
    _write_tokenizer(folder)
    model = model_named(str(folder))
    plain = Recipe("bf16", Number.BF16, Number.BF16, Number.BF16, 0, "")
    drawn = random.Random(20261124)
    tensors = {
        name: ("BF16", part.shape, _drawn(name, part, drawn))
        for name, part in intended_parts(model, plain).items()
        if not (tied and name == "lm_head.weight")
    }
    write_safetensors(folder / "model.safetensors", tensors)
    return model


def write_quantized(folder: Path, model: Model, recipe: Recipe, source: Path) -> None:
    """What ModelOpt would write, without its numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: Tensors = {}
    for name, part in intended_parts(model, recipe).items():
        dtype = "BF16" if "BF16" in part.dtypes else part.dtypes[0]
        content = array("f", [0.01] * math.prod(part.shape)).tobytes() if dtype == "F32" else b""
        if name.endswith("pre_quant_scale"):
            content = bf16(*[0.5] * math.prod(part.shape))
        tensors[name] = (dtype, part.shape, content or bytes(math.prod(part.shape) * WIDTHS[dtype]))
    write_safetensors(folder / "model.safetensors", tensors)
    number = weight_format(recipe)
    assert number is not None
    cache = "FP8" if recipe.kv_cache == "fp8" else None
    linears = {name.removesuffix(".weight") for name in tensors if name.endswith("_proj.weight")}
    said: dict[str, Any] = {
        "quant_algo": ALGORITHMS[number],
        "kv_cache_quant_algo": cache,
        "exclude_modules": ["lm_head", *sorted(linears - intended_modules(model, recipe))],
    }
    if number == "int4-awq":
        said["group_size"] = 128
    producer = {"name": "modelopt", "version": "0.37.0"}
    _write_json(folder / "hf_quant_config.json", {"producer": producer, "quantization": said})
    config = json.loads((source / "config.json").read_text())
    parameters = config["rope_parameters"]
    plain = parameters["rope_type"] == "default"
    older = {key: value for key, value in parameters.items() if key != "rope_theta"}
    config |= {"rope_theta": parameters["rope_theta"], "rope_scaling": None if plain else older}
    config["quantization_config"] = {"quant_method": "modelopt", "quant_algo": ALGORITHMS[number]}
    _write_json(folder / "config.json", config)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())


def rewrite_as_nvidia(folder: Path) -> None:
    """Make of what `write_quantized` wrote in FP8 what NVIDIA publishes, which ModelOpt of other versions wrote.

    config.json is transformers 4's and says nothing of quantization, only the head is excluded by name, scales have one
    dimension, those of the KV cache are 1, and there is more beside them than is used.
    """
    change_json(folder / "config.json", quantization_config=None, rope_parameters=None)
    said = json.loads((folder / "hf_quant_config.json").read_text())["quantization"]
    change_json(folder / "hf_quant_config.json", quantization={**said, "exclude_modules": ["lm_head"]})
    tensors = read_safetensors(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for name, (dtype, shape, content) in list(tensors.items()):
        if name.endswith(("k_scale", "v_scale")):
            tensors[name] = (dtype, (), struct.pack("<f", 1.0))
        elif shape == ():
            tensors[name] = (dtype, (1,), content)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = ("F32", (32,), bytes(128))
    names = sorted(tensors)
    files = {
        "model-00001-of-00002.safetensors": names[: len(names) // 2],
        "model-00002-of-00002.safetensors": names[len(names) // 2 :],
    }
    for file, held in files.items():
        write_safetensors(folder / file, {name: tensors[name] for name in held})
    places = {name: file for file, held in files.items() for name in held}
    _write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})
    _write_json(folder / "generation_config.json", {"eos_token_id": [257, 258], "temperature": 0.6})


def flatten_quantization(folder: Path) -> None:
    """Write hf_quant_config.json in the words of ModelOpt 1.x."""
    written = json.loads((folder / "hf_quant_config.json").read_text())
    said = written["quantization"]
    flat = {
        "producer": {"name": "modelopt", "version": "1.0.0"},
        "quant_method": "modelopt",
        "quant_algo": said["quant_algo"],
        "ignore": said["exclude_modules"],
        "config_groups": {},
    }
    if said["kv_cache_quant_algo"]:
        flat["kv_cache_scheme"] = {"dynamic": False, "num_bits": 8, "type": "float"}
    _write_json(folder / "hf_quant_config.json", flat)


def put_in_hub(hub: Path, repository: str, checkpoint: Path) -> Path:
    """Copy a checkpoint into a cache as huggingface_hub lays it out, and return its snapshot."""
    place = hub / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("8c22764a7e3675c50d4c7c9a4edb474456022b16")
    return Path(shutil.copytree(checkpoint, place / "snapshots" / "8c22764a7e3675c50d4c7c9a4edb474456022b16"))


def change_json(path: Path, **changes: Any) -> None:
    """Set, or with None remove, keys of a JSON file."""
    value = {**json.loads(path.read_text()), **changes}
    _write_json(path, {key: entry for key, entry in value.items() if entry is not None})


def _drawn(name: str, part: Part, drawn: random.Random) -> bytes:
    if "norm" in name:
        return bf16(*[1.0] * part.shape[0])
    rows, columns = part.shape
    count = rows * columns
    spread = [drawn.gauss(0.0, 0.05) for _ in range(4096)]
    start = drawn.randrange(4096)
    values = array("f", (spread[(start + place * 31 + place // 4096) % 4096] for place in range(count)))
    if name == "model.embed_tokens.weight":
        values[3::columns] = array("f", (100 * value for value in values[3::columns]))
    return bf16(*values)


def _write_tokenizer(folder: Path) -> None:
    """Bytes as GPT-2 writes them, without merges, so that any text becomes tokens below 256."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    words = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    special = {"<s>": 256, "</s>": 257}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": word, **flags, "special": True} for word, number in special.items()],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {**words, **special}, "merges": []},
    }
    _write_json(folder / "tokenizer.json", tokenizer)
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    _write_json(folder / "tokenizer_config.json", names)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
