"""LLM: arguments checked, the checkpoint loaded, requests made of what users give."""

from __future__ import annotations

import atexit
import itertools
import json
import os
import weakref
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from . import faults, quantization
from .arguments import CommonArgs
from .errors import HFValidationError, RequestError
from .sampling import SamplingParams, ending
from .tokens import Tokenizer
from .versions import PromptLogprobs, Version

if TYPE_CHECKING:
    from .results import RequestOutput

    Prompt = str | list[int] | dict[str, Any]


class DoubleLLM:
    """Each version is a subclass that says what it is and what it takes. torch is imported when one is made."""

    VERSION: ClassVar[Version]
    ARGS: ClassVar[type[CommonArgs]]

    def __init__(
        self,
        model: str | Path,
        tokenizer: str | Path | Tokenizer | None = None,
        tokenizer_mode: str = "auto",
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        revision: str | None = None,
        tokenizer_revision: str | None = None,
        **kwargs: Any,
    ) -> None:
        self._scheduler: Any = None
        if not self.VERSION.arguments_by_pydantic:
            for key in kwargs:
                if key not in self.ARGS.model_fields:
                    raise ValueError(f"{type(self).__name__} got invalid argument: {key}")
        self.args = self.ARGS(
            model=str(model),
            tokenizer=str(tokenizer) if isinstance(tokenizer, Path) else tokenizer,
            tokenizer_mode=tokenizer_mode,
            skip_tokenizer_init=skip_tokenizer_init,
            trust_remote_code=trust_remote_code,
            tensor_parallel_size=tensor_parallel_size,
            dtype=dtype,
            revision=revision,
            tokenizer_revision=tokenizer_revision,
            **kwargs,
        )
        _check_gpus(self.args.parallel_config.world_size)
        folder = _folder(str(model))
        config = _read_json(folder / "config.json")
        self.tokenizer = None if skip_tokenizer_init else _tokenizer(tokenizer, folder)
        self.args.tokenizer = (
            self.tokenizer
        )  # no path any more: TensorRT-LLM's arguments hold what they were validated to
        self._more_ends = _more_ends(folder)
        self._numbers = itertools.count(1)
        self.args.quant_config = quantization.effective(
            folder, config, self.VERSION, self.args.quant_config, self._kv_cache_dtype()
        )
        self.args.max_seq_len = self.args.max_seq_len or int(config["max_position_embeddings"])
        self.args = faults.at(faults.Place.ARGUMENTS, self.args)
        faults.at(faults.Place.CONSTRUCTION, self.args.parallel_config.world_size)
        self._start(folder, dtype if dtype != "auto" else config.get("dtype") or config.get("torch_dtype", "bfloat16"))
        self._metric_names = Enum(  # type: ignore[misc]
            "MetricNames", {name: name.lower() for name in self.VERSION.metric_names}
        )
        atexit.register(_shut_down, weakref.ref(self))

    def _start(self, folder: Path, dtype: str) -> None:
        from .network import Computation
        from .reuse import Prefixes
        from .scheduler import Scheduler

        args, cache = self.args, self.args.kv_cache_config
        fp8 = args.quant_config.kv_cache_quant_algo == "FP8"
        slots = args.max_batch_size or 2048
        network = Computation(folder, dtype, slots=slots, positions=args.max_seq_len, fp8_cache=fp8)
        self._vocabulary = network.vocabulary
        faults.at(faults.Place.GRAPHS)
        gib = network.cache_bytes / 2**30
        print(f"[TRT-LLM] [I] Allocated {gib:.2f} GiB for max tokens in paged KV cache.", flush=True)
        block = getattr(cache, "tokens_per_block", 32)
        prefixes = Prefixes(block, cache.enable_partial_reuse) if cache.enable_block_reuse else None
        self._scheduler = Scheduler(network, slots, args.max_num_tokens or 8192, prefixes)

    def generate(
        self,
        inputs: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | list[SamplingParams] | None = None,
        use_tqdm: bool = True,
    ) -> RequestOutput | list[RequestOutput]:
        """All requests are submitted, then waited for in their order."""
        if not isinstance(inputs, list) or (inputs and isinstance(inputs[0], int)):
            return self.generate_async(inputs, sampling_params).result()
        given = sampling_params if isinstance(sampling_params, list) else [sampling_params] * len(inputs)
        made = [self.generate_async(one, params) for one, params in zip(inputs, given, strict=True)]
        if use_tqdm:
            from tqdm import tqdm

            return [output.result() for output in tqdm(made, desc="Processed requests", dynamic_ncols=True)]
        return [output.result() for output in made]

    def generate_async(
        self, inputs: Prompt, sampling_params: SamplingParams | None = None, *, streaming: bool = False
    ) -> RequestOutput:
        """Raises ValueError for what cannot be asked for; RuntimeError once the LLM has shut down."""
        from .results import RequestOutput
        from .scheduler import Request, Response

        if self._scheduler is None:
            raise RuntimeError("LLM is shutting down")
        params = SamplingParams() if sampling_params is None else sampling_params
        if not isinstance(params, SamplingParams):
            raise TypeError(f"Expected SamplingParams, got {type(params).__name__}")
        params.check()
        text, prompt = self._tokens_of(inputs, params)
        self._check(prompt, params)
        room = self.args.max_seq_len - len(prompt)
        request = Request(
            number=next(self._numbers),
            prompt=prompt,
            ending=ending(params, self.tokenizer, self._more_ends, room),
            interval=self.args.stream_interval if streaming else 0,
            answer=lambda response: None,
            prompt_logprobs=params.prompt_logprobs or None,
            own_token=self.VERSION.prompt_logprobs == PromptLogprobs.WITH_ITS_TOKEN,
            logprobs=params.logprobs,
            context_logits=params.return_context_logits,
        )
        measured = params.return_perf_metrics or getattr(self.args, "return_perf_metrics", False)
        output = RequestOutput(
            text, request, self.tokenizer if params.detokenize else None, self._metric_names if measured else None
        )
        if params.max_tokens is not None and params.max_tokens > room > 0:
            print(
                f"[TRT-LLM] [W] User-specified `max_tokens` ({params.max_tokens}) is greater than deduced "
                f"`default_max_tokens` ({room}), using default_max_tokens instead.",
                flush=True,
            )
        try:
            faults.at(faults.Place.SUBMISSION, request.number)
            _check_room(room, self.args.max_seq_len)
            self._scheduler.submit(request)
        except RequestError as problem:  # which users meet when they wait for the result
            request.answer(Response(error=problem))
        return output

    def shutdown(self) -> None:
        """May be called again. Waits without a limit for the step under way."""
        if self._scheduler is None:
            return
        faults.at(faults.Place.SHUTDOWN)
        scheduler, self._scheduler = self._scheduler, None
        scheduler.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def __del__(self) -> None:
        if getattr(self, "_scheduler", None) is not None:
            self.shutdown()

    def __getstate__(self) -> None:
        raise RuntimeError("LLM object can not be pickled.")

    def _kv_cache_dtype(self) -> str:
        """It was an argument of its own once."""
        return str(getattr(self.args, "kv_cache_dtype", getattr(self.args.kv_cache_config, "dtype", "auto")))

    def _tokens_of(self, inputs: Prompt, params: SamplingParams) -> tuple[str | None, list[int]]:
        """(the text if there was one, its tokens)"""
        if isinstance(inputs, dict):
            inputs = inputs["prompt_token_ids"] if "prompt_token_ids" in inputs else inputs["prompt"]
        if isinstance(inputs, str):
            if self.tokenizer is None:
                raise ValueError("tokenizer is required to tokenize string prompt")
            tokens = self.tokenizer.encode(inputs, add_special_tokens=params.add_special_tokens)
        elif isinstance(inputs, list) and all(isinstance(token, int) for token in inputs):
            tokens = list(inputs)
        else:
            raise TypeError(f"The inputs must be type str or list of int, but got {type(inputs)}")
        if params.truncate_prompt_tokens is not None:
            tokens = tokens[-params.truncate_prompt_tokens :]
        return (inputs if isinstance(inputs, str) else None), tokens

    def _check(self, prompt: list[int], params: SamplingParams) -> None:
        """What is refused before it is submitted."""
        most = self.args.max_num_tokens
        if not self.args.enable_chunked_prefill and most and len(prompt) > most:
            raise ValueError(
                f"The sum of prompt length ({float(len(prompt))}), query length (0) should not exceed max_num_tokens "
                f"({most})"
            )
        if not prompt or not all(0 <= token < self._vocabulary for token in prompt):
            raise ValueError("Token ID out of range" if prompt else "The prompt is empty")
        if params.prompt_logprobs and self.VERSION.prompt_logprobs == PromptLogprobs.REFUSED:
            raise ValueError(
                "`prompt_logprobs` in sampling_params is not supported in the PyTorch backend yet. Received "
                f"`prompt_logprobs={params.prompt_logprobs}`. Please unset this field."
            )
        if params.return_context_logits and not self.VERSION.context_logits:
            raise ValueError("`return_context_logits` is not supported in the PyTorch backend yet.")


def _shut_down(llm: weakref.ref[DoubleLLM]) -> None:
    """At the end of the process, what is still there."""
    still = llm()
    if still is not None:
        still.shutdown()


def _check_room(room: int, max_seq_len: int) -> None:
    if room <= 0:
        raise RequestError(
            f"`default_max_tokens` ({room}) must be greater than 0, `default_max_tokens` ({room}) = max_seq_len "
            f"({max_seq_len}) - `splited_prompt_len` ({max_seq_len - room}) - `query_token_len` (0)"
        )


def _check_gpus(required: int) -> None:
    """There are as many GPUs as TRTLLM_DOUBLE_GPUS says; without it, as many as anybody asks for."""
    there = int(os.environ.get("TRTLLM_DOUBLE_GPUS", required))
    if there < required:
        raise RuntimeError(f"Only {there} GPUs are available, but {required} are required.")


def _folder(model: str) -> Path:
    """Where the checkpoint is; nothing is ever downloaded."""
    folder = Path(model)
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise OSError(f"{model} does not appear to have a file named config.json.")
        return folder
    if model.startswith(("/", ".")):
        raise HFValidationError(f"Repo id must be in the form 'repo_name' or 'namespace/repo_name': '{model}'.")
    raise OSError(f"{model} is not a local folder, and this double of TensorRT-LLM downloads nothing")


def _tokenizer(asked: str | Path | Tokenizer | None, folder: Path) -> Tokenizer | None:
    """One that is asked for must be there; that of the checkpoint need not be."""
    if isinstance(asked, str | Path):
        return Tokenizer(Path(asked))
    if asked is not None:
        return asked
    try:
        return Tokenizer(folder)
    except OSError as problem:
        print(f"[TRT-LLM] [W] Failed to load tokenizer from {folder}: {problem}", flush=True)
        return None


def _more_ends(folder: Path) -> list[int]:
    path = folder / "generation_config.json"
    ends = _read_json(path).get("eos_token_id") if path.exists() else None
    return ends if isinstance(ends, list) else [] if ends is None else [ends]


def _read_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
