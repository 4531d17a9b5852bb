"""Whole pytest sessions with engines, in folders of their own, and what they leave behind.

`Folder` runs them as processes; `fake_engine` writes a conftest whose engines are as fast as a test says, without
taking any time.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

OURS = "TESTED_IN"  # in the environment of every process of a session: the folder it was run in
PATIENCE = 60.0  # seconds, on a machine that does other things too

# A Llama of a few hundred kilobytes as transformers writes it, with a tokenizer of single bytes.
CHECKPOINT = """
import json, sys
from pathlib import Path
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

folder = Path(sys.argv[1])
torch.manual_seed(0)
network = LlamaForCausalLM(LlamaConfig(
    vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=8,
    num_key_value_heads=4, max_position_embeddings=2048, tie_word_embeddings=False, initializer_range=0.3,
    bos_token_id=None, eos_token_id=None,
))
network.to(torch.bfloat16).save_pretrained(folder)
letters = sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer.save(str(folder / "tokenizer.json"))
"""

# Counts what is opened, whoever opens it: a line in `loads` for each.
COUNTING = """
from pytest_llamaperf.engines import built_in_openers
from pytest_llamaperf.plugin import SURROUNDINGS

def pytest_llamaperf_engines(config):
    opener = built_in_openers(config.stash[SURROUNDINGS])["torch"]

    def counted(spec):
        with open("loads", "a") as file:
            print(f"{spec.recipe}/{spec.layout}", file=file)
        return opener(spec)

    return {"torch": counted}
"""

SHUFFLING = """
import random, pytest

@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    random.Random(SEED).shuffle(items)
"""

# Requests are answered one after the other, so the throughput is the speed. Every restart takes the next speed of its
# recipe and layout, the last one again and again; 0 is an engine that fails.
FAKE = """
from pytest_llamaperf.engines import Run, Scored
from pytest_llamaperf.errors import EngineError
from pytest_llamaperf.lengths import request_lengths
from pytest_llamaperf.measurements import Fingerprint, Source
from pytest_llamaperf.traces import Trace

SPEEDS = {name: list(speeds) for name, speeds in GIVEN.items()}

class Engine:
    source = Source.MEASURED

    def __init__(self, spec):
        self.name = f"{spec.recipe}/{spec.layout}"
        speeds = SPEEDS.setdefault(self.name, list(SPEEDS.get("*", [])))
        self.speed = speeds.pop(0) if len(speeds) > 1 else speeds[0]
        self.tell("open")

    def tell(self, verb):
        with open("engines.log", "a") as log:
            print(verb, self.name, file=log)

    def run(self, workload):
        self.tell("run")
        if not self.speed:
            raise EngineError("worker died: signal 9")
        traces, now = [], 0.0
        for isl, osl in request_lengths(workload):
            traces.append(Trace(now, now + 0.5 * osl / self.speed, now + osl / self.speed, isl, osl))
            now += osl / self.speed
        return Run(tuple(traces), fingerprint=Fingerprint(versions={"torch": "2.13.0"}))

    def encode(self, texts):
        return [list(text.encode()) for text in texts]

    def decode(self, sequences):
        return [bytes(sequence).decode() for sequence in sequences]

    def generate(self, prompts, tokens, *, until=None, concurrency=None):
        self.tell("generate")
        return [[len(prompt)] * tokens for prompt in prompts]

    def score(self, sequences, *, noise=0.0):
        return [Scored((-1.0 - noise,) * (len(s) - 1), (1,) * (len(s) - 1)) for s in sequences]

    def close(self):
        self.tell("close")

def pytest_llamaperf_engines():
    return {"torch": Engine}
"""


def fake_engine(**speeds: Sequence[float]) -> str:
    """A conftest. Speeds by recipe and layout, as in bf16_tp1=[100.0, 101.0]; `every` for all others."""
    given = {"*" if name == "every" else name.replace("_", "/"): list(values) for name, values in speeds.items()}
    return f"GIVEN = {given!r}\n{FAKE}"


def tiny_checkpoint(base: pytest.TempPathFactory) -> Path:
    """Written once a session of tests, by a process that imports what that takes."""
    folder = base.getbasetemp() / "checkpoints" / "tiny"
    if not folder.exists():
        folder.mkdir(parents=True)
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        subprocess.run([sys.executable, "-c", CHECKPOINT, folder], env=environment, check=True, capture_output=True)
    return folder


class Folder:
    """A project to run pytest in. TMPDIR, the cache of checkpoints and what sessions reserve are its own.

    Of plugins only this one is loaded: most of the time of a short session goes into loading others.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("tmp", "cache"):
            (path / name).mkdir(parents=True, exist_ok=True)
        self._shared_memory = _shared_memory()

    def write(self, **files: str) -> None:
        """Python files by their names."""
        for name, text in files.items():
            (self.path / f"{name}.py").write_text(text)

    def ini(self, *lines: str) -> None:
        (self.path / "pytest.ini").write_text("\n".join(["[pytest]", *lines]) + "\n")

    def environment(self) -> dict[str, str]:
        """Of every process: its files, locks and cache are those of this folder."""
        taken_away = ("PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST", "PYTEST_XDIST_WORKER", "CUDA_VISIBLE_DEVICES", "COLUMNS")
        return {name: value for name, value in os.environ.items() if name not in taken_away} | {
            "TMPDIR": str(self.path / "tmp"), "LLAMAPERF_CACHE": str(self.path / "cache"), "LLAMAPERF_LOCKS": str(self.path / "locks"), "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1", OURS: str(self.path),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        }  # fmt: skip

    def start(self, *options: str, **popen: Any) -> subprocess.Popen[str]:
        given = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL, **popen}
        command = [sys.executable, "-m", "pytest", "-W", "error", "-p", "llamaperf", "-p", "no:cacheprovider", *options]
        return subprocess.Popen(command, cwd=self.path, env=self.environment(), text=True, **given)

    def run(self, *options: str, patience: float = 3 * PATIENCE) -> pytest.RunResult:
        """Output and errors in one."""
        started = time.monotonic()
        process = self.start(*options)
        try:
            output, _ = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        print(output)
        assert process.returncode is not None
        return pytest.RunResult(process.returncode, output.splitlines(), [], time.monotonic() - started)

    def run_json(self, folder: str = "out") -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.path / folder / "run.json").read_text())
        return document

    def words(self, file: str = "engines.log") -> list[str]:
        path = self.path / file
        return path.read_text().splitlines() if path.exists() else []

    def processes(self) -> list[psutil.Process]:
        """Whatever was started by sessions of this folder, and by what they started."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def left_over(self) -> dict[str, list[str]]:
        """What sessions left behind: nothing, as soon as the kernel has put it away."""
        with contextlib.suppress(TimeoutError):
            wait_for(lambda: not any(self._left_over().values()), patience=5.0)
        return {kind: found for kind, found in self._left_over().items() if found}

    def _left_over(self) -> dict[str, list[str]]:
        return {
            "processes": [" ".join(_command(process)) for process in self.processes()],
            "files": sorted(path.name for path in (self.path / "tmp").iterdir()),
            "reservations": sorted(path.name for path in self.path.glob("locks/*")),
            "shared memory": [name for name in sorted(_shared_memory() - self._shared_memory) if not _is_mapped(name)],
        }

    def _is_ours(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error, OSError):
            return (
                process.status() != psutil.STATUS_ZOMBIE
                and process.environ().get(OURS) == str(self.path)
                and process.pid != os.getpid()
            )
        return False


def short(nodeid: str) -> str:
    name = nodeid.rpartition("::")[2]
    return name.partition("[")[0]


def skip_if_ignored(number: signal.Signals) -> None:
    """What nohup starts ignores SIGHUP, and so does all that it starts."""
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip(f"{number.name} is ignored here, as by what nohup starts")


def wait_for(condition: Callable[[], object], patience: float = PATIENCE) -> Any:
    """What the condition comes to, once that is true."""
    until = time.monotonic() + patience
    while not (found := condition()):
        if time.monotonic() > until:
            raise TimeoutError
        time.sleep(0.02)
    return found


def _command(process: psutil.Process) -> list[str]:
    try:
        found: list[str] = process.cmdline()
    except psutil.Error:
        return ["ended meanwhile"]
    return found


def _is_mapped(name: str) -> bool:
    """Whether a living process, of whatever session, still uses a file of shared memory."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            if f"/dev/shm/{name}" in maps.read_text():
                return True
    return False


def _shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()}
