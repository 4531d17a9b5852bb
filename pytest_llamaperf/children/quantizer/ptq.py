"""Quantization after training: NVIDIA ModelOpt looks at a model at work, rounds its weights, and writes the checkpoint
that TensorRT-LLM and the reference engine read.

Its configuration is made from the number formats, not from a recipe's name: a recipe is only what it does. Of each
format it is the one that NVIDIA publishes: FP8_DEFAULT_CFG with FP8_KV_CFG, FP8_PER_CHANNEL_PER_TOKEN_CFG,
INT8_SMOOTHQUANT_CFG and INT4_AWQ_CFG of ModelOpt 0.47, for the layers that the recipe names.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from .rope import keep_rope

Report = Callable[..., None]

_E4M3 = (4, 3)  # bits of exponent and mantissa
_PER_TENSOR, _PER_ROW = None, 0

# Of weights, and of the inputs they are multiplied with; None: not quantized.
_QUANTIZERS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "fp8-per-tensor": (
        {"num_bits": _E4M3, "axis": _PER_TENSOR},
        {"num_bits": _E4M3, "axis": _PER_TENSOR},
    ),
    "fp8-per-row": (
        {"num_bits": _E4M3, "axis": _PER_ROW},
        {"num_bits": _E4M3, "type": "dynamic", "block_sizes": {-1: None}},
    ),
    "int8-smoothquant": (
        {"num_bits": 8, "axis": _PER_ROW},
        {"num_bits": 8, "axis": _PER_TENSOR},
    ),
    "int4-awq": (
        {"num_bits": 4, "block_sizes": {-1: 128, "type": "static"}},
        None,
    ),
}
_ALGORITHMS: dict[str, Any] = {"int8-smoothquant": "smoothquant", "int4-awq": {"method": "awq_lite", "alpha_step": 0.1}}

_PARTS = {"attention": "self_attn", "feed_forward": "mlp"}
_TOGETHER = 4  # windows in one forward pass

# Copied as they are: what transformers 5 would write names a tokenizer class that transformers 4 does not know.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def write_quantized(
    source: Path, folder: Path, recipe: Mapping[str, Any], calibration: Mapping[str, Any] | None, report: Report
) -> dict[str, Any]:
    """Quantize the checkpoint in `source` and export it to `folder`, with its tokenizer and rotary embedding.

    `recipe` has attention, feed_forward, kv_cache (number formats) and the layers whose feed-forward part is kept
    (kept_layers); `calibration` has text (a file), windows, and tokens of a window, and is None where no scale depends
    on activations. Answers with the device that did it and the tokens that were read.
    """
    windows = _windows(source, calibration, report) if calibration else None
    report("loading ModelOpt")
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint

    report("loading the checkpoint")
    device = "auto" if torch.cuda.is_available() else "cpu"  # auto: over all GPUs, and in memory what they cannot hold
    model: Any = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.bfloat16, device_map=device, use_safetensors=True, trust_remote_code=False
    )
    passes = 0

    def look(network: Any) -> None:
        """Some algorithms come here twice, first to see the activations and then to try what to do about them."""
        nonlocal passes
        passes += 1
        assert windows is not None
        with torch.inference_mode():
            for start in range(0, len(windows), _TOGETHER):
                # The network without its head, which is not quantized: logits would double time and memory.
                network.model(windows[start : start + _TOGETHER].to(network.device), use_cache=False)
                done = min(start + _TOGETHER, len(windows))
                report(f"calibrating, pass {passes}", done, len(windows))

    report("quantizing")
    mtq.quantize(model, configuration(recipe), None if windows is None else look)
    report("writing the checkpoint")
    with torch.inference_mode():
        export_hf_checkpoint(model, export_dir=folder)
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    keep_rope(source, folder)
    return {
        "device": torch.cuda.get_device_name() if device == "auto" else "cpu",
        "calibration_tokens": 0 if windows is None else windows.numel(),
    }


def configuration(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What ModelOpt is told. In its list of rules the last one that names a quantizer counts."""
    rules: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    used = {recipe[part] for part in _PARTS} & _QUANTIZERS.keys()
    for part, module in _PARTS.items():
        if recipe[part] in used:
            weights, inputs = _QUANTIZERS[recipe[part]]
            rules.append({"quantizer_name": f"*.{module}.*_proj.weight_quantizer", "cfg": weights})
            if inputs:
                rules.append({"quantizer_name": f"*.{module}.*_proj.input_quantizer", "cfg": inputs})
    rules += [{"quantizer_name": f"*.layers.{layer}.mlp.*", "enable": False} for layer in recipe["kept_layers"]]
    if recipe["kv_cache"] == "fp8":
        rules.append(
            {"quantizer_name": "*.self_attn.[kv]_bmm_quantizer", "cfg": {"num_bits": _E4M3, "axis": _PER_TENSOR}}
        )
    algorithms = [_ALGORITHMS[number] for number in sorted(used & _ALGORITHMS.keys())]
    return {"quant_cfg": rules, "algorithm": algorithms[0] if algorithms else "max"}


def _windows(source: Path, calibration: Mapping[str, Any], report: Report) -> torch.Tensor:
    """[windows, tokens]: windows of one length, evenly spread over the text so that every kind of it is seen.

    Raises ValueError where the text fills no window, or the tokenizer is not the model's.
    """
    report("reading the calibration text")
    text = Path(calibration["text"]).read_text(encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    count = min(calibration["windows"], len(ids) // calibration["tokens"])
    if count < 1:
        raise ValueError(
            f"the calibration text is {len(ids):,} tokens, which fills no window of {calibration['tokens']:,}"
        )
    vocabulary = json.loads((source / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    if int(ids.max()) >= vocabulary:
        raise ValueError(f"the tokenizer beside the weights knows token {int(ids.max())}, the model only {vocabulary}")
    last = len(ids) - calibration["tokens"]
    starts = [last * window // max(count - 1, 1) for window in range(count)]
    return torch.stack([ids[start : start + calibration["tokens"]] for start in starts])
