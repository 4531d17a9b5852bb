"""The embedded model: a GGUF, as llama.cpp reads it, becomes the Hugging Face checkpoint it once was.

transformers can load a GGUF as well, and is not used: it takes 25 seconds, and its tokenizer is not the model's. It leaves
out that SmolLM reads numbers digit by digit, so "\\n\\n1" becomes other tokens, and ends answers at the wrong token.

Weights are dequantized: "BF16" is the grid of Q4_1, 16 values for every 32 weights, written as BF16.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import save_file

from .rope import both_spellings

Report = Callable[..., None]

# llama.cpp's names of a layer's tensors, in the words of Hugging Face.
_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTSIDE_LAYERS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_CONTROL = 3  # token_type of GGUF: a token that no text is tokenized to


def write_checkpoint(gguf: Path, folder: Path, report: Report) -> None:
    """config.json, model.safetensors and the tokenizer's files in `folder`, which exists.

    Raises ValueError for a GGUF that holds something this cannot translate.
    """
    report("reading the embedded model")
    reader = GGUFReader(gguf)
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    _refuse_unknown(fields)
    config = _config(fields, tied=all(tensor.name != "output.weight" for tensor in reader.tensors))
    tensors = {}
    for number, tensor in enumerate(reader.tensors, start=1):
        name = _hugging_face_name(tensor.name)
        weights = torch.tensor(dequantize(tensor.data, tensor.tensor_type))
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weights = _halves_together(weights, config["head_dim"])
        tensors[name] = weights.to(torch.bfloat16).contiguous()
        report("dequantizing weights", number, len(reader.tensors))
    report("writing the checkpoint")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokens = {kind: config[f"{kind}_token_id"] for kind in ("bos", "eos", "pad")}
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {f"{kind}_token_id": number for kind, number in tokens.items()})
    _write_tokenizer(folder, fields, config)


def _refuse_unknown(fields: dict[str, Any]) -> None:
    wanted = {"general.architecture": "llama", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm"}
    said = {name: fields[name].contents() if name in fields else None for name in wanted}
    wrong = {name: found for name, found in said.items() if found != wanted[name]}
    wrong |= {name: field.contents() for name, field in fields.items() if "rope.scaling" in name}
    if wrong:
        told = ", ".join(f"{name} {found}" for name, found in wrong.items())
        raise ValueError(f"this GGUF says {told}; only a llama with SmolLM's tokenizer and plain rope is read")


def _config(fields: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    def of_llama(name: str) -> Any:
        return fields[f"llama.{name}"].contents()

    # GGUF keeps float32: 1e-5 is 9.999999747378752e-06 there, and its shortest name in float32 is 1e-05.
    epsilon = float(str(fields["llama.attention.layer_norm_rms_epsilon"].parts[-1][0]))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": of_llama("embedding_length"),
        "intermediate_size": of_llama("feed_forward_length"),
        "num_hidden_layers": of_llama("block_count"),
        "num_attention_heads": of_llama("attention.head_count"),
        "num_key_value_heads": of_llama("attention.head_count_kv"),
        "head_dim": of_llama("rope.dimension_count"),
        "vocab_size": of_llama("vocab_size"),
        "max_position_embeddings": of_llama("context_length"),
        "rms_norm_eps": epsilon,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"].contents(),
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"].contents(),
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"].contents(),
        "dtype": "bfloat16",
        **both_spellings({"rope_theta": of_llama("rope.freq_base")}),
    }


def _hugging_face_name(name: str) -> str:
    if name in _OUTSIDE_LAYERS:
        return _OUTSIDE_LAYERS[name]
    found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if found is None or found[2] not in _NAMES:
        raise ValueError(f"this GGUF holds {name}, which is no part of a llama with plain rope")
    return f"model.layers.{found[1]}.{_NAMES[found[2]]}.weight"


def _halves_together(weights: torch.Tensor, head_dim: int) -> torch.Tensor:
    """llama.cpp keeps the two rows that rope turns together as neighbours, Hugging Face keeps them half a head apart."""
    heads = weights.shape[0] // head_dim
    return weights.view(heads, head_dim // 2, 2, -1).transpose(1, 2).reshape(weights.shape)


def _write_tokenizer(folder: Path, fields: dict[str, Any], config: dict[str, Any]) -> None:
    words: list[str] = fields["tokenizer.ggml.tokens"].contents()
    kinds: list[int] = fields["tokenizer.ggml.token_type"].contents()
    control = [
        {
            "id": number,
            "content": word,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for number, (word, kind) in enumerate(zip(words, kinds, strict=True))
        if kind == _CONTROL
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    _write_json(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": control,
            "normalizer": None,
            # llama.cpp's pre-tokenizer `smollm`: each digit alone, then GPT-2's words.
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
            },
            "post_processor": None,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {word: number for number, word in enumerate(words)},
                "merges": fields["tokenizer.ggml.merges"].contents(),
            },
        },
    )
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",  # the one name that transformers 4 and 5 both know
            "bos_token": words[config["bos_token_id"]],
            "eos_token": words[config["eos_token_id"]],
            "pad_token": words[config["pad_token_id"]],
            "unk_token": words[fields["tokenizer.ggml.unknown_token_id"].contents()],
            "model_max_length": config["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
            "chat_template": fields["tokenizer.chat_template"].contents(),
        },
    )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
