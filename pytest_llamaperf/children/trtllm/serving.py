"""An LLM of the LLM API: opened with what it was decided to be given, asked, and closed."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import scoring
from .requests import check_complete, timed

Report = Callable[..., None]

FEW = 64  # sequences that are judged at once

# Arguments that are objects of classes of their own.
CONFIGS = {"kv_cache_config": "KvCacheConfig", "cuda_graph_config": "CudaGraphConfig"}


class Serving:
    """`arguments` are those of LLM(), with plain mappings for CONFIGS."""

    def __init__(self, arguments: Mapping[str, Any], report: Report) -> None:
        self._asked, self._report = dict(arguments), report
        package = importlib.import_module("tensorrt_llm")
        llmapi = importlib.import_module("tensorrt_llm.llmapi")
        self._sampling = package.SamplingParams
        report("TensorRT-LLM loads the checkpoint")
        given = {
            name: getattr(llmapi, CONFIGS[name])(**value) if name in CONFIGS else value
            for name, value in arguments.items()
        }
        self._llm = package.LLM(**given)
        # One loop for all runs: what TensorRT-LLM ties to a loop must find it again.
        self._loop = asyncio.new_event_loop()
        self._tokenizer: Any = None

    def loaded(self) -> dict[str, Any]:
        """What was opened, as it says itself: each argument that can be read back, and the quantization."""
        found = getattr(self._llm, "args", None)
        effective: dict[str, Any] = {}
        for name, value in self._asked.items():
            names = [f"{name}.{field}" for field in value] if isinstance(value, dict) else [name]
            effective |= {path: _plain(_at(found, path)) for path in names}
        for name in ("quant_algo", "kv_cache_quant_algo"):
            effective[f"quant_config.{name}"] = _plain(_at(found, f"quant_config.{name}"))
        return {"effective": {path: value for path, value in effective.items() if value is not _Absent}}

    def run(self, dataset: str, concurrency: int | None, arrivals: Sequence[float] | None) -> list[dict[str, Any]]:
        """Every request of a dataset in trtllm-bench's format; readings as `requests.timed` returns them."""
        with Path(dataset).open(encoding="utf-8") as lines:
            wanted = [json.loads(line) for line in lines]
        requests = [(each["input_ids"], self._parameters(each["output_tokens"])) for each in wanted]
        return self._loop.run_until_complete(timed(self._llm, requests, concurrency, arrivals, self._report))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        concurrency: int | None,
        until: Mapping[str, Any] | None = None,
    ) -> list[list[int]]:
        """The `tokens` most likely tokens after each prompt, or up to the token or one of the texts of `until`."""
        early = {} if until is None else {"ignore_eos": False, "end_id": until["token"], "stop": until["texts"] or None}
        answers: list[list[int]] = []
        step = concurrency or len(prompts)
        for start in range(0, len(prompts), step):
            for output in self._answered(prompts[start : start + step], self._parameters(tokens, **early)):
                check_complete(len(answers), output.outputs[0], tokens, may_end=until is not None)
                answers.append(list(output.outputs[0].token_ids))
        return answers

    def score(self, sequences: Sequence[Sequence[int]], method: str) -> dict[str, Any]:
        """For each sequence, of every token after the first: log-probability, and the token most likely there."""
        found = self._expected(sequences, method, 1)
        return {
            "logprobs": [one.logprobs for one in found],
            "likely": [[tokens[0] for tokens in one.tokens] for one in found],
        }

    def distributions(self, sequences: Sequence[Sequence[int]], method: str, top: int) -> list[dict[str, Any]]:
        """As `scoring.Expected`, for each sequence."""
        return [dataclasses.asdict(one) for one in self._expected(sequences, method, top)]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._tokens().encode(text, add_special_tokens=False).ids for text in texts]

    def decode(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        return [self._tokens().decode(list(ids), skip_special_tokens=True) for ids in sequences]

    def close(self) -> None:
        """May never return: it waits for workers without a limit. The deadline is the parent's."""
        self._llm.shutdown()

    def _expected(self, sequences: Sequence[Sequence[int]], method: str, top: int) -> list[scoring.Expected]:
        """A few at a time: context logits of a vocabulary of 128,256 are half a megabyte a token."""
        parameters = self._parameters(1, **scoring.asking(method, top))
        found: list[scoring.Expected] = []
        for start in range(0, len(sequences), FEW):
            few = sequences[start : start + FEW]
            outputs = self._answered(few, parameters)
            found += [scoring.read(method, tokens, output, top) for tokens, output in zip(few, outputs, strict=True)]
        return found

    def _answered(self, prompts: Sequence[Sequence[int]], parameters: Any) -> list[Any]:
        given = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        return list(self._llm.generate(given, parameters, use_tqdm=False))

    def _parameters(self, tokens: int, **more: Any) -> Any:
        """Greedy, and exactly `tokens` long, unless `more` says where to end."""
        given = {"max_tokens": tokens, "ignore_eos": True, "temperature": 0.0, "detokenize": False, **more}
        return self._sampling(**given)

    def _tokens(self) -> Any:
        """The checkpoint's own tokenizer, without the special tokens that wrappers add."""
        if self._tokenizer is None:
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_file(str(Path(self._asked["tokenizer"]) / "tokenizer.json"))
        return self._tokenizer


class _Absent:
    """In the place of what cannot be read back."""


def _at(value: Any, path: str) -> Any:
    for name in path.split("."):
        value = getattr(value, name, _Absent)
    return value


def _plain(value: Any) -> Any:
    """As JSON can hold it: members of enums by their value, paths and other objects by their text."""
    value = getattr(value, "value", value)
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value if value is _Absent or value is None or isinstance(value, (bool, int, float, str)) else str(value)
