"""The ranks of the reference engine as processes: what they say, how they end, and what is told of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import BF16, FP32, PROMPTS, Command, llama, logprobs_of, scripted, served, settings
from safetensors.torch import load_file, save_file

from pytest_llamaperf.children import torch_llama
from pytest_llamaperf.hosting.failures import FailureKind, classify
from pytest_llamaperf.hosting.phases import Phase

# stdin: [[settings, who is killed (a rank), when], ...]. `working`: in the middle of a run; `unseen`: likewise, but the
# others notice and say so before the parent looks; `waiting`: between commands; `loading`: as a layer is reported.
# Prints for each what was raised, how long closing took and what was left then.
KILLING = """
import ctypes, faulthandler, json, multiprocessing, os, pathlib, signal, sys, tempfile, threading, time
from pytest_llamaperf.children import torch_llama

faulthandler.dump_traceback_later(100, exit=True)

def ranks():
    return sorted(multiprocessing.active_children(), key=lambda process: process.pid)

def told(settings, victim, when):
    def kill():
        os.kill(ranks()[victim].pid, signal.SIGKILL)
        if when == "unseen":
            ctypes.PyDLL(None).usleep(500_000)  # with the interpreter's lock held

    def report(text, done=0, total=None):
        if when == "loading" and done == 1:
            kill()
            time.sleep(0.5)

    driver = torch_llama.open_driver(report)
    raised = None
    try:
        driver.handle("load", settings)
        if when == "waiting":
            processes = ranks()
            kill()
            processes[victim].join()
        else:
            threading.Timer(0.2, kill).start()
        driver.handle("run", {"lengths": [[4, 3000]] * 2, "concurrency": None})
    except Exception as problem:
        raised = [type(problem).__name__, str(problem)]
    started = time.monotonic()
    driver.close()
    left = [process.pid for process in ranks()] + [str(path) for path in pathlib.Path(tempfile.gettempdir()).iterdir()]
    return {"raised": raised, "seconds": time.monotonic() - started, "left": left}

with tempfile.TemporaryDirectory() as tempfile.tempdir:
    print(json.dumps([told(*case) for case in json.load(sys.stdin)]))
"""
KILLED = [
    ("tp1", 0, "working"),
    ("tp2", 1, "unseen"),
    ("tp2-pp2", 2, "working"),
    ("pp2", 0, "unseen"),
    ("pp2", 1, "unseen"),
    ("pp2", 1, "waiting"),
    ("pp2", 1, "loading"),
]


CONFIG = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 160,
    "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 512, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("networks") / "plain", layers=2, seed=4)


def failure(job: list[dict[str, Any]]) -> tuple[str, str]:
    """(type, message) of what a job ended with."""
    type_name, message, *_ = job[-1]["failed"]
    return type_name, message


@pytest.fixture(scope="module")
def came_of(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What came of each command of each job; one process answers all of them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in ("without-a-tensor", "cut-off", "with-tokenizer"):
        shutil.copytree(checkpoint, folder / name)
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, folder / "without-a-tensor" / "model.safetensors")
    whole = (checkpoint / "model.safetensors").read_bytes()
    (folder / "cut-off" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    write_tokenizer(folder / "with-tokenizer" / "tokenizer.json")

    def random(layout: str = "tp1", recipe: dict[str, Any] = FP32, seed: int = 7) -> Command:
        return "load", settings(None, layout, config=CONFIG, recipe=recipe, seed=seed)

    stages = settings(checkpoint, "pp2")
    score = ("score", {"sequences": PROMPTS, "noise": 0.0})
    generate = ("generate", {"prompts": PROMPTS, "tokens": 4, "concurrency": None})
    jobs: dict[str, list[Command]] = {
        "without a tensor": [("load", settings(folder / "without-a-tensor", "pp2"))],
        "cut off": [("load", settings(folder / "cut-off", "pp2"))],
        "gone": [("load", settings(folder / "gone", "pp2"))],
        "too many ranks": [("load", settings(checkpoint, "pp3"))],
        "too long": [("load", stages), ("run", {"lengths": [[60, 5]], "concurrency": None})],
        "unknown token": [("load", stages), ("score", {"sequences": [[512]], "noise": 0.0})],
        "unknown number": [random(recipe={**BF16, "attention": "int4-awq"})],
        "no tokenizer": [random(), ("encode", {"texts": ["a"]})],
        "no tokenizer to decode": [random(), ("decode", {"sequences": [[1]]})],
        "unknown command": [random(), ("close_all", {})],
        "seed 7": [random(), score, generate],
        "seed 7 again": [random(), score, generate],
        "seed 7 on two ranks": [random("tp2"), score, generate],
        "seed 8": [random(seed=8), score, generate],
        "tokenizer": [
            ("load", settings(folder / "with-tokenizer")), ("encode", {"texts": ["two one", "", "three"]}),
            ("decode", {"sequences": [[1, 2, 3], []]}),
        ],
    }  # fmt: skip
    return dict(zip(jobs, served(list(jobs.values())), strict=True))


def write_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"<unk>": 0, "one": 1, "two": 2, "<end>": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.add_special_tokens(["<end>"])
    words.save(str(path))


# Ranks that are killed.


@pytest.fixture(scope="module")
def killed(checkpoint: Path) -> list[dict[str, Any]]:
    cases = [[settings(checkpoint, layout, positions=3100), victim, when] for layout, victim, when in KILLED]
    found: list[dict[str, Any]] = json.loads(scripted(KILLING, json.dumps(cases)))
    return found


@pytest.mark.parametrize("case", KILLED, ids=str)
def test_a_rank_that_is_killed_is_named_with_the_signal(
    case: tuple[str, int, str], killed: list[dict[str, Any]]
) -> None:
    """Also where the others said first that they lost it; nothing is left of the engine, and closing does not hang."""
    layout, victim, _ = case
    found, ranks = killed[KILLED.index(case)], {"tp1": 1, "tp2-pp2": 4}.get(layout, 2)

    assert found["raised"] == ["ChildProcessError", f"rank {victim} of {ranks} died by signal 9 (SIGKILL)"]
    assert classify(Phase.RUN, *found["raised"]).kind is FailureKind.DIED
    assert found["seconds"] < 10.0
    assert found["left"] == []


# Ranks that fail.


@pytest.mark.parametrize(
    ("what", "type_name", "message"),
    [
        ("without a tensor", "ValueError", "the checkpoint has no tensor model.layers.1.mlp.down_proj.weight"),
        ("gone", "FileNotFoundError", "gone/config.json"),
        ("cut off", "RuntimeError", "SafetensorError: "),
        ("too many ranks", "ValueError", "2 cannot be cut into 3 parts"),
        ("too long", "ValueError", "a request of 60 + 5 tokens is longer than the 64 the engine was opened for"),
        ("unknown token", "ValueError", "sequence 0 has a token outside the vocabulary of 512"),
        ("unknown number", "ValueError", "random weights cannot be int4-awq"),
        ("no tokenizer", "ValueError", "a network of random weights has no tokenizer"),
        ("no tokenizer to decode", "ValueError", "a network of random weights has no tokenizer"),
        ("unknown command", "ValueError", "unknown command 'close_all'"),
    ],
)
def test_what_a_rank_raises_arrives_as_what_it_was(
    what: str, type_name: str, message: str, came_of: dict[str, list[dict[str, Any]]]
) -> None:
    """Also of the second stage, while the first waits for it."""
    found_type, found_message = failure(came_of[what])

    assert found_type == type_name
    assert message in found_message


def test_the_traceback_of_a_rank_comes_along(came_of: dict[str, list[dict[str, Any]]]) -> None:
    _, _, note = came_of["without a tensor"][-1]["failed"]

    assert note.startswith("Traceback (most recent call last):")
    assert "weights.py" in note


@pytest.mark.parametrize(
    ("type_name", "kind"),
    [
        ("MemoryError", MemoryError),
        ("OSError", OSError),
        ("OutOfMemoryError", RuntimeError),  # PyTorch's
        ("UnicodeDecodeError", RuntimeError),  # cannot be made of a message alone
        ("ExceptionGroup", RuntimeError),  # nor can this
        ("KeyboardInterrupt", RuntimeError),
        ("print", RuntimeError),
    ],
)
def test_an_exception_keeps_its_name_whatever_it_was(type_name: str, kind: type) -> None:
    problem = torch_llama._as_it_was(type_name, "what happened", "where")

    assert type(problem) is kind
    assert type_name in f"{type(problem).__name__}: {problem}"
    assert "what happened" in str(problem)
    assert problem.__notes__ == ["where"]


# The first in trouble. Ranks that cannot go on because of another one must not speak for it.

FIRST = """
import ctypes, json, multiprocessing, os, signal, sys, time
from pytest_llamaperf.children import torch_llama

def raised(driver):
    try:
        driver._answers()
    except Exception as problem:
        driver.close()
        return [type(problem).__name__, str(problem)]

def opened():
    return torch_llama.open_driver(lambda text, done=0, total=None: None)

# The second stage fails at once and the first when it waits for the second, both before the parent looks.
failing = opened()
failing.handle("load", json.load(sys.stdin))
for (_, connection), token in zip(failing._ranks, (1, 999), strict=True):
    connection.send(("generate", {"prompts": [[token]], "tokens": 50, "concurrency": None}))
ctypes.PyDLL(None).usleep(1_000_000)  # with the interpreter's lock held

# And ranks that are nothing but what they say at the end: one tells that it lost the other before that one is dead.
def losing(connection):
    connection.send(("failed", (time.monotonic(), "RuntimeError", "lost rank 1", "")))

def dying(connection):
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGKILL)

dead, fork = opened(), multiprocessing.get_context("fork")
for end in (losing, dying):
    ours, theirs = fork.Pipe()
    dead._ranks.append((fork.Process(target=end, args=(theirs,)), ours))
    dead._ranks[-1][0].start()
    theirs.close()

print(json.dumps([raised(failing), raised(dead)]))
"""


def test_the_rank_that_failed_first_is_the_one_that_is_told(checkpoint: Path) -> None:
    failed, died = json.loads(scripted(FIRST, json.dumps(settings(checkpoint, "pp2"))))

    assert failed == ["ValueError", "sequence 0 has a token outside the vocabulary of 512"]
    assert died == ["ChildProcessError", "rank 1 of 2 died by signal 9 (SIGKILL)"]


# What ranks answer.


def test_the_same_seed_gives_the_same_answers(came_of: dict[str, list[dict[str, Any]]]) -> None:
    first, again, other = (came_of[job][1:] for job in ("seed 7", "seed 7 again", "seed 8"))

    assert first == again
    assert first != other


def test_random_weights_are_the_same_network_in_every_layout(came_of: dict[str, list[dict[str, Any]]]) -> None:
    one, two = (logprobs_of(came_of[job][1]["result"]) for job in ("seed 7", "seed 7 on two ranks"))

    torch.testing.assert_close(two, one, rtol=0.0, atol=1e-5)


def test_loading_says_what_was_loaded(came_of: dict[str, list[dict[str, Any]]]) -> None:
    assert came_of["seed 7"][0]["result"] == {"versions": {"torch": str(torch.__version__)}, "threads": 1}
    assert set(came_of["tokenizer"][0]["result"]["versions"]) == {"torch", "safetensors"}


def test_a_checkpoint_brings_its_tokenizer(came_of: dict[str, list[dict[str, Any]]]) -> None:
    _, encoded, decoded = came_of["tokenizer"]

    assert encoded["result"] == [[2, 1], [], [0]]
    assert decoded["result"] == ["one two", ""]
