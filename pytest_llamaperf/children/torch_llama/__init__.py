"""The reference engine: a Llama in PyTorch, spread over ranks by tensor and pipeline parallelism.

cut       which part of the network a rank holds
weights   where its tensors come from          linears   the number formats
network   what it computes                     rotary, kv_cache
stages    one step of the pipeline             batching  which requests share a step
graphs    decode steps as CUDA graphs
rank      one rank answers commands            this file starts and watches all ranks

It imports nothing of pytest_llamaperf, and of libraries only torch and safetensors: transformers takes three seconds to
import, at every restart of every engine. What it computes is checked against transformers in `tests/`.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

# Imported before ranks are forked, so that all of them share it. Nothing here computes, or touches a GPU.
from .rank import Rank, Settings

Report = Callable[..., None]

MOMENT = 1.0  # seconds


def open_driver(report: Report) -> Ranks:
    return Ranks(report)


class Ranks:
    """The ranks of one engine as processes forked from this one, which only starts and watches them."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._ranks: list[tuple[ForkProcess, Connection]] = []
        self._folder: Path | None = None
        self._tokenizer: Any = None
        self._vocabulary: list[str] | None = None
        self._checkpoint: Path | None = None

    def handle(self, command: str, arguments: Mapping[str, Any]) -> Any:
        """`load` once, then run, generate, score, distributions, encode, decode."""
        if command == "load":
            return self._load(Settings(**arguments))
        if command == "encode":
            return [self._tokens().encode(text, add_special_tokens=False).ids for text in arguments["texts"]]
        if command == "decode":
            return [self._tokens().decode(ids, skip_special_tokens=True) for ids in arguments["sequences"]]
        if command not in ("run", "generate", "score", "distributions"):
            raise ValueError(f"unknown command {command!r}")
        if "until" in arguments:
            given = {name: value for name, value in arguments.items() if name != "until"}
            return self._all(command, {**given, "stops": self._stops(**arguments["until"])})
        return self._all(command, arguments)

    def close(self) -> None:
        for _, connection in self._ranks:
            with contextlib.suppress(BrokenPipeError):  # a rank that is gone need not be told
                connection.send(("close", {}))
        for process, connection in self._ranks:
            process.join()
            connection.close()
        self._ranks.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder)
            self._folder = None

    def _load(self, settings: Settings) -> Any:
        self._folder = Path(tempfile.mkdtemp(prefix="llamaperf-ranks-"))
        self._checkpoint = Path(settings.checkpoint) if settings.checkpoint else None
        # Ranks of one machine meet on its loopback interface, whatever other networks it has.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        fork = multiprocessing.get_context("fork")
        for rank in range(settings.ranks):
            ours, theirs = fork.Pipe()
            process = fork.Process(
                target=_serve, args=(settings, rank, self._folder / "rendezvous", theirs, ours), daemon=True
            )
            process.start()
            theirs.close()
            self._ranks.append((process, ours))
        self._report("starting ranks", 0, settings.ranks)
        return self._answers()

    def _all(self, command: str, arguments: Mapping[str, Any]) -> Any:
        for rank, (process, connection) in enumerate(self._ranks):
            try:
                connection.send((command, dict(arguments)))
            except BrokenPipeError:
                process.join()
                raise _ended(rank, len(self._ranks), process.exitcode) from None
        return self._answers()

    def _answers(self) -> Any:
        """Rank 0's answer once all have answered. Raises what the first one in trouble tells, or how it died.

        A rank that loses another one fails too, and may be heard first: after a failure the others have a moment to say
        what they know, or to be found dead.
        """
        pending = dict(enumerate(self._ranks))
        answer: Any = None
        failures: list[tuple[float, str, str, str]] = []
        while pending:
            items = [item for process, connection in pending.values() for item in (connection, process.sentinel)]
            ready = wait(items, timeout=MOMENT if failures else None)
            if not ready:
                break
            for rank, (process, connection) in list(pending.items()):
                # What a rank said before it ended counts before its end does.
                if connection in ready:
                    try:
                        kind, content = connection.recv()
                    except (EOFError, ConnectionResetError):
                        process.join()
                        raise _ended(rank, len(self._ranks), process.exitcode) from None
                    if kind == "progress":
                        self._report(*content)
                    elif kind == "failed":
                        failures.append(content)
                        del pending[rank]
                    else:
                        answer = content if rank == 0 else answer
                        del pending[rank]
                elif process.sentinel in ready and not connection.poll():
                    process.join()
                    raise _ended(rank, len(self._ranks), process.exitcode)
        if failures:
            _, *first = min(failures)
            raise _as_it_was(*first)
        return answer

    def _stops(self, token: int, texts: Sequence[str]) -> list[list[int]]:
        """Runs of tokens after which an answer has ended: `token`, a token that holds one of `texts`, or what a text is
        made of where it stands alone. In other surroundings it may be made of others, which only takes longer."""
        if self._vocabulary is None:
            count = self._tokens().get_vocab_size()
            self._vocabulary = self._tokens().decode_batch([[number] for number in range(count)])
        holding = [number for number, told in enumerate(self._vocabulary) if any(text in told for text in texts)]
        alone = [self._tokens().encode(text, add_special_tokens=False).ids for text in texts]
        return [[token], *([number] for number in holding), *(ids for ids in alone if len(ids) > 1)]

    def _tokens(self) -> Any:
        if self._tokenizer is None:
            if self._checkpoint is None:
                raise ValueError("a network of random weights has no tokenizer")
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_file(str(self._checkpoint / "tokenizer.json"))
        return self._tokenizer


def _serve(settings: Settings, rank: int, rendezvous: Path, connection: Connection, parents: Connection) -> None:
    """The life of a rank: load, then answer until told to close."""
    parents.close()
    _die_with_parent()

    def report(text: str, done: int, total: int) -> None:
        if rank == 0:
            connection.send(("progress", (text, done, total)))

    try:
        worker = Rank(settings, rank, rendezvous, report)
        connection.send(("done", worker.loaded()))
        while True:
            command, arguments = connection.recv()
            if command == "close":
                worker.close()
                return
            connection.send(("done", getattr(worker, command)(**arguments)))
    except EOFError:
        return
    except Exception as problem:  # noqa: BLE001  told to the parent, which decides what it was
        connection.send(("failed", (time.monotonic(), type(problem).__name__, str(problem), traceback.format_exc())))


def _as_it_was(type_name: str, message: str, trace: str) -> Exception:
    """The exception of a rank, of its own type where that is Python's: what it is called tells what it was."""
    kind = getattr(builtins, type_name, None)
    problem: Exception = RuntimeError(f"{type_name}: {message}")
    if isinstance(kind, type) and issubclass(kind, Exception):
        with contextlib.suppress(TypeError):  # of those that are made of more than a message
            problem = kind(message)
    problem.add_note(trace)
    return problem


def _ended(rank: int, ranks: int, exitcode: int | None) -> Exception:
    if exitcode is not None and exitcode < 0:
        how = f"died by signal {-exitcode} ({signal.Signals(-exitcode).name})"
    else:
        how = f"ended with exit status {exitcode}"
    return ChildProcessError(f"rank {rank} of {ranks} {how}")


def _die_with_parent() -> None:
    """A rank in the middle of a product would not notice that nobody waits for it any more."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
