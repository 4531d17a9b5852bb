"""Accuracy in whole pytest sessions: lm-eval's real questions, and an engine that is as right as a test says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_sessions import Folder, tiny_checkpoint

from pytest_llamaperf.accuracy import evaluating

SUITE = """
import pytest

@pytest.mark.accuracy
@pytest.mark.cases(model=CHECKPOINT, hardware="cpu", recipe="bf16", layout="tp2", task="agreement")
@pytest.mark.versus(layout="tp1")
def test_right(case, other, evaluate, accuracy):
    accuracy.check(evaluate(case), other)
"""

# One rank is right of every document; of two ranks every so many-th sentence is taken for the less likely one.
CONFTEST = """
import json
from pathlib import Path
from tokenizers import Tokenizer
from pytest_llamaperf.accuracy import evaluating
from pytest_llamaperf.engines import Scored
from pytest_llamaperf.measurements import Source

LOST_EVERY, MUTE = GIVEN
TOKENIZER = Tokenizer.from_file(str(Path(CHECKPOINT) / "tokenizer.json"))
DOCUMENTS = [json.loads(line) for line in (evaluating.OFFLINE / "agreement.jsonl").read_text().splitlines()]
RIGHT = {f"{each['context']} {each['choices'][each['label']]}": number for number, each in enumerate(DOCUMENTS)}

class Engine:
    source = Source.MEASURED

    def __init__(self, spec):
        self.ranks = spec.layout.tp
        with open("engines.log", "a") as log:
            print("open", spec.layout, file=log)

    def run(self, workload):
        raise NotImplementedError

    def encode(self, texts):
        return [TOKENIZER.encode(text, add_special_tokens=False).ids for text in texts]

    def decode(self, sequences):
        return [TOKENIZER.decode(list(ids)) for ids in sequences]

    def generate(self, prompts, tokens, *, until=None, concurrency=None):
        return [[len(prompt) % 100] * tokens for prompt in prompts]

    def score(self, sequences, *, tails=None, noise=0.0):
        found = []
        for number, sequence in enumerate(sequences):
            tail = list(sequence)[-tails[number]:] if tails else list(sequence)[1:]
            place = RIGHT.get(TOKENIZER.decode(list(sequence)))
            lost = place is not None and self.ranks > 1 and LOST_EVERY and place % LOST_EVERY == 0
            nats = 0.01 if place is not None and not lost else 9.0 if lost else 1.0
            if MUTE:
                tail = [1] * len(tail)
            found.append(Scored((-nats,) * len(tail), tuple(tail)))
        return found

    def close(self):
        pass

def pytest_llamaperf_engines():
    return {"torch": Engine}
"""

Session = Callable[..., pytest.RunResult]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def session(folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> Session:
    checkpoint = folder.path / "known"
    shutil.copytree(tiny_checkpoint(tmp_path_factory), checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "eos_token_id": 0}))

    def run(*options: str, lost_every: int = 0, mute: bool = False) -> pytest.RunResult:
        here = f"CHECKPOINT = {str(checkpoint)!r}\n"
        folder.write(test_suite=here + SUITE, conftest=f"{here}GIVEN = {(lost_every, mute)!r}\n{CONFTEST}")
        folder.ini("llamaperf_deadlines = load=60 run=120 close=10")
        return folder.run("--gpu=cpu", "--results=out", *options)

    return run


def result_of(folder: Folder) -> dict[str, Any]:
    (found,) = folder.run_json()["results"]
    return dict(found)


def test_a_loss_is_a_regression_that_names_task_loss_answers_and_documents(session: Session, folder: Folder) -> None:
    result = session(lost_every=12)

    result.assert_outcomes(failed=1)
    found = result_of(folder)
    assert (found["outcome"], found["metric"], found["source"]) == ("regression", "accuracy", "measured")
    assert found["value"] == pytest.approx(1 - 50 / 600)
    assert found["baseline"]["value"] == 1.0
    assert found["fingerprint"]["settings"].keys() == {
        "seed",
        "checkpoint",
        "dataset",
    }  # the engine says nothing of itself
    assert found["fingerprint"]["versions"].keys() == {"lm_eval"}
    assert found["low"] < found["value"] < found["high"] < 0.99
    counts = {"documents": 600, "groups": 46, "both": 550, "only_reference": 50, "only_candidate": 0}
    assert found["paired"].items() >= counts.items()
    assert found["paired"]["difference"] == pytest.approx(-100 * 50 / 600)
    result.stdout.fnmatch_lines(
        [
            "cpu/torch/known/bf16/tp2/agreement",
            "  accuracy of agreement: regression",
            "    reference  100.0 % right: cpu/torch/known/bf16/tp1/agreement",
            "    measured   91.7 % right: lost 8.33 points (*) on 600 documents in 46 groups: 50 answers lost, 0 gained*",
            "    lost 1     'This student': wanted 'thinks', got 'think' (*)",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")
    assert folder.left_over() == {}


def test_a_recorded_reference_is_not_asked_again(session: Session, folder: Folder) -> None:
    """Equal answers to 600 documents of 46 templates do not show that no point is lost: that is told, and skips."""
    session("--record").assert_outcomes(skipped=1)
    stored = folder.path / "baselines" / "local" / "accuracy" / "torch" / "known" / "bf16-agreement.json"
    assert len(json.loads(stored.read_text())["documents"]) == 600
    (folder.path / "engines.log").unlink()

    result = session(lost_every=12)

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["    reference  100.0 % right: *tp1/agreement (*torch/known/bf16-agreement.json, 20*)"]
    )
    assert folder.words() == ["open tp2"]
    assert result_of(folder)["outcome"] == "regression"


def test_a_reference_of_another_lm_eval_is_told_and_no_score(session: Session, folder: Folder) -> None:
    session("--record")
    stored = folder.path / "baselines" / "local" / "accuracy" / "torch" / "known" / "bf16-agreement.json"
    document = json.loads(stored.read_text())
    document["protocol"]["lm_eval"] = "0.4.0"
    stored.write_text(json.dumps(document))

    result = session()

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*bf16-agreement.json: the reference was asked other questions: lm_eval is '0.4.0' there*"]
    )
    assert folder.run_json()["results"] == []


def test_an_engine_whose_answers_cannot_be_trusted_gets_no_score(session: Session, folder: Folder) -> None:
    result = session(mute=True)

    result.assert_outcomes(failed=1)
    assert result_of(folder)["outcome"] == "error"
    result.stdout.fnmatch_lines(
        ["*error, not a regression: *the engine's answers cannot be trusted: of the tokens it chose*"]
    )


def test_the_gate_refuses_a_task_that_could_not_show_its_margin(session: Session, folder: Folder) -> None:
    result = session("--gate")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(
        ["ERROR: *test_right*agreement*: on 600 documents a candidate that is equal passes with*"]
    )
    assert folder.words() == []


def test_offline_tasks_lie_in_the_package() -> None:
    assert (evaluating.OFFLINE / "agreement.yaml").is_file()
