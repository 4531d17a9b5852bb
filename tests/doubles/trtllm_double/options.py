"""The command line of trtllm-bench, as each version has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .strict import ValidationError
from .versions import Version

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
OUTPUT = click.Path(dir_okay=False, path_type=Path)
BACKENDS = click.Choice(["pytorch", "_autodeploy", "tensorrt"])
POLICIES = click.Choice(["guaranteed_no_evict", "max_utilization"])


def command(version: Version, run: Callable[..., None]) -> click.Group:
    """`run(group's options, options of the subcommand, latency: bool)` does the work."""

    @click.pass_obj
    def throughput(group: dict[str, Any], **options: Any) -> None:
        run(group, options, latency=False)

    @click.pass_obj
    def latency(group: dict[str, Any], **options: Any) -> None:
        run(group, options, latency=True)

    @click.pass_context
    def enter(context: click.Context, **options: Any) -> None:
        context.obj = options
        if Path(options["model"]).exists():
            raise ValidationError(
                "1 validation error for BenchmarkEnvironment\nmodel\n  Value error, model name should not be an existing "
                "path: please provide a model name"
            )

    return click.Group(
        "trtllm-bench",
        params=_group_options(version),
        callback=enter,
        commands=[
            click.Command("throughput", params=_throughput_options(version), callback=throughput),
            click.Command("latency", params=_latency_options(version), callback=latency),
        ],
    )


def _group_options(version: Version) -> list[click.Parameter]:
    options = [
        click.Option(["--model", "-m"], required=True, help="The Huggingface name of the model to benchmark."),
        click.Option(
            ["--model_path"], type=click.Path(path_type=Path), help="Path to a Huggingface checkpoint directory."
        ),
        click.Option(["--workspace", "-w"], type=click.Path(path_type=Path), default=Path("/tmp"), show_default=True),
        click.Option(["--log_level"], default="info", show_default=True),
        click.Option(["--revision"]),
    ]
    if version.telemetry:
        options.append(click.Option(["--telemetry/--no-telemetry"], default=True, show_default=True))
    return list(options)


def _throughput_options(version: Version) -> list[click.Parameter]:
    chunking = "--enable_chunked_context"
    if version.chunks_unless_told:
        chunking += "/--disable_chunked_context"
    return [
        *_engine_options(version),
        _yaml_option(version),
        click.Option(["--max_batch_size"], type=int),
        click.Option(["--max_num_tokens"], type=int),
        click.Option(["--max_input_len"], type=int, default=4096, show_default=True),
        click.Option([chunking], is_flag=True, default=version.chunks_unless_told, show_default=True),
        click.Option(["--scheduler_policy"], type=POLICIES, default="guaranteed_no_evict", show_default=True),
        *_input_options(version),
        click.Option(["--eos_id"], type=int, default=version.eos_id, show_default=True),
        click.Option(["--target_input_len"], type=int),
        click.Option(["--target_output_len"], type=int),
        click.Option(["--concurrency"], type=int, default=-1, show_default=True),
        click.Option(["--streaming"], is_flag=True),
        click.Option(["--report_json"], type=OUTPUT),
        click.Option(["--iteration_log"], type=OUTPUT),
        click.Option(["--output_json"], type=OUTPUT),
        click.Option(["--request_json"], type=OUTPUT),
    ]


def _latency_options(version: Version) -> list[click.Parameter]:
    return [
        *_engine_options(version),
        *([_yaml_option(version)] if version.options_of_1_1 else []),
        *_input_options(version),
        click.Option(["--medusa_choices"], type=FILE),
        click.Option(["--concurrency"], type=int, default=1, show_default=True),
        click.Option(["--report_json"], type=OUTPUT),
        click.Option(["--iteration_log"], type=OUTPUT),
    ]


def _engine_options(version: Version) -> list[click.Parameter]:
    """What to run, and on how many GPUs."""
    return [
        click.Option(["--engine_dir"], type=click.Path(path_type=Path)),
        click.Option(["--backend"], type=BACKENDS, default="pytorch", show_default=True),
        *_added(version, ["--custom_module_dirs"], multiple=True, type=click.Path(path_type=Path)),
        *_added(version, ["--sampler_options"], type=FILE),
        click.Option(["--max_seq_len"], type=int),
        click.Option(["--beam_width"], type=int, default=1, show_default=True),
        click.Option(["--kv_cache_free_gpu_mem_fraction"], type=float, default=0.9, show_default=True),
        click.Option(["--tp"], type=int, default=1, show_default=True),
        click.Option(["--pp"], type=int, default=1, show_default=True),
        click.Option(["--ep"], type=int),
        click.Option(["--cluster_size"], type=int),
    ]


def _input_options(version: Version) -> list[click.Parameter]:
    return [
        click.Option(["--dataset"], type=FILE),
        *_added(version, ["--no_skip_tokenizer_init"], is_flag=True),
        *_added(version, ["--image_data_format"], type=click.Choice(["pt", "pil"]), default="pt"),
        *_added(version, ["--data_device"], type=click.Choice(["cuda", "cpu"]), default="cuda"),
        click.Option(["--modality"], type=click.Choice(["image", "video"])),
        click.Option(["--num_requests"], type=int, default=0, show_default=True),
        click.Option(["--warmup"], type=int, default=2, show_default=True),
    ]


def _yaml_option(version: Version) -> click.Option:
    names = ["--config"] if version.config_alias else []
    return click.Option([*names, "--extra_llm_api_options", "extra_llm_api_options"], type=FILE)


def _added(version: Version, names: list[str], **settings: Any) -> list[click.Option]:
    """An option that came with 1.1."""
    return [click.Option(names, **settings)] if version.options_of_1_1 else []
