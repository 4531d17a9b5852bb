"""The options of `pytest`, declared once and read once into a value."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pytest_llamaperf.cases import Runtime
from pytest_llamaperf.errors import UsageError, nearest
from pytest_llamaperf.hosting.phases import SETTING, Deadlines
from pytest_llamaperf.operator_tables import INSTALLED, Tables, tables_named
from pytest_llamaperf.runtimes import runtime_named

AUTO = "auto"
WAIT = "llamaperf_wait"


@dataclass(frozen=True)
class Settings:
    """What was asked for on the command line; `results` is None where no files are wanted.

    `restarts` and `rounds` are None where the hardware decides; `deadlines` come from the ini file, for they belong to a project.
    Predictions are made of `tables`.
    `against` is the build to compare with, and `allowed` are settings in which it may differ; with `resume` a run that was cut off goes
    on.
    `lock_clocks` are MHz, or None to leave clocks alone; `wait` are seconds for another session that measures here.
    `baselines_named` tells a folder somebody asked for from the default, which need not exist yet; `waivers` and `gate_file` are
    None where nobody named one. `shard` is an engine key, of whose shard alone the tests are; with `inventory` what was
    collected is written there.
    """

    gpu: str
    engine: str
    tables: Tables
    baselines: Path
    baselines_named: bool
    results: Path | None
    gate: bool
    gate_file: Path | None
    waivers: Path | None
    root: Path
    directory: Path
    record: bool
    plan: bool
    restarts: int | None
    rounds: int | None
    against: Runtime | None
    allowed: tuple[str, ...]
    resume: bool
    shard: str | None
    inventory: Path | None
    deadlines: Deadlines
    lock_clocks: int | None
    wait: float

    @classmethod
    def from_config(cls, config: pytest.Config) -> Settings:
        """Raises UsageError."""
        against, tables = config.getoption("against"), config.getoption("tables")
        return cls(
            gpu=config.getoption("gpu"),
            engine=config.getoption("engine"),
            tables=INSTALLED if tables is None else tables_named(tables, config.invocation_params.dir),
            baselines=_path(config, config.getoption("baselines")) or config.rootpath / "baselines",
            baselines_named=config.getoption("baselines") is not None,
            results=_path(config, config.getoption("results")),
            gate=config.getoption("gate"),
            gate_file=_path(config, config.getoption("gate_file")),
            waivers=_path(config, config.getoption("waivers")),
            root=config.rootpath,
            directory=config.invocation_params.dir,
            record=config.getoption("record"),
            plan=config.getoption("plan"),
            restarts=config.getoption("restarts"),
            rounds=config.getoption("rounds"),
            against=None if against is None else runtime_named(against, config.invocation_params.dir),
            allowed=tuple(config.getoption("allow_difference")),
            resume=config.getoption("resume"),
            shard=config.getoption("llamaperf_shard"),
            inventory=_path(config, config.getoption("llamaperf_inventory")),
            deadlines=Deadlines.parse(config.getini(SETTING)),
            lock_clocks=config.getoption("lock_clocks"),
            wait=_seconds(config.getini(WAIT)),
        )


def add_options(parser: pytest.Parser) -> None:
    group = parser.getgroup("llamaperf", "Llama on TensorRT-LLM: are speed and accuracy as promised?")
    group.addoption(
        "--gpu",
        default=AUTO,
        type=_Name("GPU", _gpu_names),
        choices=_Names(_gpu_names),
        metavar="NAME",
        help="hardware under test: auto (what is in this machine, else cpu), cpu, h100, h200, b200",
    )
    group.addoption(
        "--engine",
        default=AUTO,
        type=_Name("engine", _engine_names),
        choices=_Names(_engine_names),
        metavar="KIND",
        help="what runs the cases: auto (tensorrt-llm on a GPU, torch on a CPU), tensorrt-llm, trtllm-bench, torch, "
        "or predicted (NVIDIA's operator times under a simulated scheduler; needs no GPU, releases nothing)",
    )
    group.addoption(
        "--tables",
        metavar="VERSION",
        help="with --engine predicted: operator times of that TensorRT-LLM, got by `llamaperf tables fetch`, or of a folder "
        "of your own (default: those that aiconfigurator-core brings)",
    )
    group.addoption(
        "--baselines",
        metavar="DIR",
        help="folder of promises, DIR/<gpu>/<model>.yaml (default: baselines, in the root directory)",
    )
    group.addoption(
        "--results",
        metavar="DIR",
        help="write DIR/run.jsonl as tests finish, DIR/run.json and DIR/summary.md at the end (default: write nothing)",
    )
    group.addoption(
        "--gate",
        action="store_true",
        help="release gate: exit 1 unless every test is a measured pass, every promise was judged, and nothing is missing "
        "that gates/<gpu>.yaml in the root directory requires; say why",
    )
    group.addoption(
        "--gate-file",
        metavar="FILE",
        help="with --gate: another file of what is required",
    )
    group.addoption(
        "--waivers",
        metavar="FILE",
        help="regressions that are accepted for a while, by whom and why (default: waivers.yaml in the root directory)",
    )
    group.addoption(
        "--record",
        action="store_true",
        help="write what was measured and is not promised in git to DIR/local/<gpu>-<machine>.yaml, as promises for this "
        "machine, with tolerances from the spread between restarts",
    )
    group.addoption(
        "--plan",
        action="store_true",
        help="run nothing: print what TensorRT-LLM would be given for each case, LLM() arguments and trtllm-bench "
        "commands; needs neither a GPU nor TensorRT-LLM",
    )
    group.addoption(
        "--restarts",
        default=None,
        type=_at_least_one,
        metavar="N",
        help="engine restarts measured for each case; one is never conclusive (default: 2, on a CPU 3)",
    )
    group.addoption(
        "--rounds",
        default=None,
        type=_at_least_one,
        metavar="N",
        help="rounds of a workload in each restart, of which the median counts (default: 3, on a CPU 2)",
    )
    group.addoption(
        "--against",
        metavar="RUNTIME",
        help="compare with another build, measured in turn in this session: the folder of an environment, a python in one, "
        "or a YAML file with python, name and environment; promises are left aside",
    )
    group.addoption(
        "--allow-difference",
        action="append",
        default=[],
        metavar="SETTING",
        help="with --against: a setting in which the two builds may differ, as it is named in the error about it",
    )
    group.addoption(
        "--resume",
        action="store_true",
        help="with --results: go on with a run that was cut off; what DIR/run.jsonl holds as settled, measured by the same "
        "versions with the same options, is not measured again (after a whole run: everything is)",
    )
    group.addoption(
        "--lock-clocks",
        default=None,
        type=_at_least_one,
        metavar="MHZ",
        help="lock the SM clocks of the GPUs at MHZ while this session measures, and unlock them at its end; needs root "
        "(default: leave them alone, and see what they are)",
    )
    parser.addini(
        WAIT,
        help="seconds to wait for another session that measures on this machine, before this one is refused (default: 0)",
        default="",
    )
    group.addoption(
        "--llamaperf-shard",
        metavar="KEY",
        help="only the tests of one shard: those that need the engine KEY, or one that is compared with it; what `llamaperf run` "
        "starts its processes with",
    )
    group.addoption(
        "--llamaperf-inventory",
        metavar="FILE",
        help="with --collect-only: write FILE, the tests with the engines they need, of which `llamaperf plan` makes shards",
    )
    parser.addini(
        SETTING,
        help="seconds an engine may take: load=1800 run=1800 close=60 (for each start, each call, each end)",
        default="",
    )


def _path(config: pytest.Config, option: str | None) -> Path | None:
    return None if option is None else config.invocation_params.dir / option


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 up, not {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    """Raises UsageError."""
    try:
        seconds = float(text or 0)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise UsageError(f"{WAIT}: {text!r} is no number of seconds; write for example {WAIT} = 600")
    return seconds


def _gpu_names() -> tuple[str, ...]:
    from pytest_llamaperf.catalog import gpus

    return (AUTO, "cpu", *gpus())


def _engine_names() -> tuple[str, ...]:
    from pytest_llamaperf.engines import KINDS

    return (AUTO, *KINDS)


class _Name:
    """An argparse type that answers an unknown name with the nearest known one."""

    def __init__(self, what: str, names: Callable[[], tuple[str, ...]]) -> None:
        self._what, self._names = what, names

    def __call__(self, text: str) -> str:
        known = self._names()
        if text not in known:
            raise argparse.ArgumentTypeError(f"unknown {self._what} {text!r}; {nearest(text, known)}")
        return text


class _Names:
    """Choices read when they are needed: shell completion and errors, not every start of pytest."""

    def __init__(self, names: Callable[[], tuple[str, ...]]) -> None:
        self._names = names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __contains__(self, name: object) -> bool:
        return name in self._names()
