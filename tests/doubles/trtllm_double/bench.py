"""trtllm-bench: the command line becomes an LLM, its load, and a report."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import yaml

from . import dataset, faults
from .driving import Record, driven
from .llm import DoubleLLM
from .options import command
from .report import Run, overview, report
from .sampling import NEVER
from .tokens import Tokenizer

BATCH, TOKENS = 128, 2048  # where TensorRT-LLM looks at the GPU's memory and the dataset

# What the double has no part in; anything but these values is an error, lest it be left out without a word.
NOT_DOUBLED = {
    "engine_dir": None,
    "custom_module_dirs": (),
    "sampler_options": None,
    "modality": None,
    "target_input_len": None,
    "target_output_len": None,
    "medusa_choices": None,
    "iteration_log": None,
    "cluster_size": None,
    "beam_width": 1,
    "backend": "pytorch",
}


def bench(llm: type[DoubleLLM]) -> click.Group:
    """The command of the version that this LLM is of."""

    def run(group: dict[str, Any], options: dict[str, Any], latency: bool) -> None:
        Benchmark(llm, group, options, latency).run()

    return command(llm.VERSION, run)


class Benchmark:
    def __init__(self, llm: type[DoubleLLM], group: dict[str, Any], options: dict[str, Any], latency: bool) -> None:
        self._llm, self._options, self._latency = llm, options, latency
        self._model, self._path = group["model"], group["model_path"]

    def run(self) -> None:
        """Ends the process: 1 after an error, 0 otherwise, also when it was interrupted and has written nothing."""
        llm: DoubleLLM | None = None
        try:
            self._check()
            tokenizer = Tokenizer(self._path)
            entries = dataset.read(self._options["dataset"], self._options["num_requests"], tokenizer)
            asked = self._asked(entries)
            llm = self._llm(**self._arguments(asked))
            self._warm_up(llm, entries)
            _log("Starting benchmarking async task.")
            faults.at(faults.Place.BENCHMARK)
            before = time.process_time()
            records = self._drive(llm, entries, streaming=self._streaming)
            spent = time.process_time() - before
            described = dataset.described(entries, self._options["dataset"])
            run = Run(
                self._model, self._path, asked, llm.args, _dtype(self._path), described, records, self._streaming, spent
            )
            self._write(run, tokenizer)
        except KeyboardInterrupt:
            _log("Keyboard interrupt, exiting benchmark...")
        except Exception:  # noqa: BLE001  whatever it is, the status says so
            _log(f"Error during benchmarking:\n{traceback.format_exc()}", "E")
            sys.exit(1)
        finally:
            if llm is not None:
                llm.shutdown()

    @property
    def _streaming(self) -> bool:
        return self._latency or self._options["streaming"]

    def _check(self) -> None:
        for name, known in NOT_DOUBLED.items():
            if self._options.get(name, known) != known:
                raise NotImplementedError(f"this double of trtllm-bench does not know --{name}")
        if self._path is None:
            raise OSError(f"{self._model}: this double of trtllm-bench downloads nothing; give --model_path")
        if self._options["dataset"] is None:
            raise ValueError("No dataset has been given")

    def _asked(self, entries: Sequence[dataset.Entry]) -> dict[str, Any]:
        """The settings of the run, those that nobody chose included."""
        asked = {"scheduler_policy": "guaranteed_no_evict", "enable_chunked_context": False, **self._options}
        longest = max(len(entry.input_ids) for entry in entries)
        whole = max(len(entry.input_ids) + entry.output_tokens for entry in entries)
        if not (asked.get("max_batch_size") and asked.get("max_num_tokens")):
            asked |= {"max_batch_size": BATCH, "max_num_tokens": TOKENS}
        if self._latency:
            asked["max_batch_size"] = 1
        if self._latency or not (self._options.get("max_batch_size") and self._options.get("max_num_tokens")):
            least = 0 if asked["enable_chunked_context"] else longest + asked["max_batch_size"]
            asked["max_num_tokens"] = max(asked["max_num_tokens"], least)
        asked["max_seq_len"] = asked["max_seq_len"] or whole
        return asked

    def _arguments(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Of LLM. What the user's YAML says is put on top, and wins."""
        arguments: dict[str, Any] = {
            "model": str(self._path),
            "skip_tokenizer_init": not asked.get("no_skip_tokenizer_init", False),
            "tensor_parallel_size": asked["tp"],
            "pipeline_parallel_size": asked["pp"],
            "moe_expert_parallel_size": asked["ep"],
            "max_batch_size": asked["max_batch_size"],
            "max_num_tokens": asked["max_num_tokens"],
            "max_seq_len": asked["max_seq_len"],
            "enable_chunked_prefill": asked["enable_chunked_context"],
            "cuda_graph_config": {"enable_padding": True, "max_batch_size": asked["max_batch_size"]},
            "scheduler_config": {"capacity_scheduler_policy": asked["scheduler_policy"].upper()},
        }
        cache = {
            "free_gpu_memory_fraction": asked["kv_cache_free_gpu_mem_fraction"],
            "enable_block_reuse": False,
        }
        file = asked.get("extra_llm_api_options")
        users = yaml.safe_load(file.read_text(encoding="utf-8")) or {} if file else {}
        return arguments | users | {"kv_cache_config": cache | (users.get("kv_cache_config") or {})}

    def _warm_up(self, llm: DoubleLLM, entries: Sequence[dataset.Entry]) -> None:
        """Some of the requests, drawn with replacement, and not streamed."""
        if self._options["warmup"] > 0:
            _log("Starting warmup benchmark run.")
            self._drive(llm, random.choices(entries, k=self._options["warmup"]), streaming=False)

    def _drive(self, llm: DoubleLLM, entries: Sequence[dataset.Entry], streaming: bool) -> list[Record]:
        end_id = self._options.get("eos_id")
        concurrency = self._options["concurrency"]
        records, errors = asyncio.run(
            driven(
                llm,
                entries,
                end_id=NEVER if end_id is None else end_id,
                concurrency=concurrency,
                streaming=streaming,
            )
        )
        if errors and llm.VERSION.sums_up_failures:
            raise ValueError(f"Requests failed: {errors[0]} ({len(errors)} requests)")
        for problem in errors:
            _log(f"Request failed: {problem}", "E")
        return records

    def _write(self, run: Run, tokenizer: Tokenizer) -> None:
        told = report(run, self._llm.VERSION)
        _log("\n\n" + overview(told))
        texts = {record.id: tokenizer.decode(record.tokens) for record in run.records}
        told = faults.at(faults.Place.REPORT, told)
        _write(self._options["report_json"], faults.at(faults.Place.WRITING, json.dumps(told, indent=4)))
        requests = faults.at(faults.Place.REQUESTS, [record.as_json(texts[record.id]) for record in run.records])
        _write(self._options.get("request_json"), json.dumps(requests, indent=4))
        _write(self._options.get("output_json"), json.dumps(dict(sorted(texts.items())), indent=4))


def _write(path: Path | None, text: str) -> None:
    if path is not None:
        path.write_text(text, encoding="utf-8")


def _dtype(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")


def _log(text: str, level: str = "I") -> None:
    print(f"[{time.strftime('%m/%d/%Y-%H:%M:%S')}] [TRT-LLM] [{level}] {text}", flush=True)
