"""MLPerf's questions and targets: what a line of the file may say, what ROUGE comes to, and when a target is reached."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from engine_sessions import Folder, tiny_checkpoint

from pytest_llamaperf.accuracy import canary
from pytest_llamaperf.accuracy.evaluating import Evaluator
from pytest_llamaperf.accuracy.given import missing_documents
from pytest_llamaperf.accuracy.reaching import reached, told
from pytest_llamaperf.accuracy.scores import Document, Scores
from pytest_llamaperf.cases import Case, Layout, Task, Workload
from pytest_llamaperf.catalog import model_named, recipe_named, targets
from pytest_llamaperf.catalog.tasks import evaluation_named
from pytest_llamaperf.documents import read_document
from pytest_llamaperf.engines import Run, Scored, Surroundings
from pytest_llamaperf.errors import DocumentError, UsageError
from pytest_llamaperf.hosting.phases import Deadlines
from pytest_llamaperf.measurements import Source

VARIABLE = "LLAMAPERF_OPENORCA"
REACHED = {"rouge1": 0.4456, "rouge2": 0.2216, "rougeL": 0.2877, "answer_tokens": 291.2}

# prompt, GPT-4's answer, ours, and what ROUGE-1, ROUGE-2 and ROUGE-L of the two are by hand; words of four letters and more
# are compared by their stems.
ANSWERED = [
    ("[INST] One [/INST] ", "The cats were running home.", "A cat runs home quickly.", 0.6, 0.25, 0.6),
    ("[INST] Two [/INST] ", "Yes, and more of it.", "  yes and MORE\n", 0.75, 2 / 3, 0.75),
    ("[INST] Three [/INST] ", "one two three four", "four three two one", 1.0, 0.0, 0.25),
    ("[INST] Four [/INST] ", "red. Green. Blue.", "red.\nGreen.\nBlue.", 1.0, 1.0, 1.0),
    ("[INST] Five [/INST] ", "nothing in common", "what else", 0.0, 0.0, 0.0),
    ("[INST] Five [/INST] ", "nothing in common", "what else", 0.0, 0.0, 0.0),  # two that are alike stay two
]
END = 0


class Answering:
    """Says what stands above, then that the text ends, then more."""

    source = Source.MEASURED

    def __init__(self, checkpoint: Path) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        self.asked: list[str] = []

    def run(self, workload: Workload) -> Run:
        raise NotImplementedError

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.tokenizer.encode(text, add_special_tokens=False).ids for text in texts]

    def decode(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        return [self.tokenizer.decode(list(ids)) for ids in sequences]

    def generate(
        self, prompts: Sequence[Sequence[int]], tokens: int, *, until=None, concurrency: int | None = None
    ) -> list[list[int]]:
        texts = self.decode(prompts)
        self.asked += texts
        ours = {prompt: answer for prompt, _, answer, *_ in ANSWERED}
        return [[*ids, END, *ids][:tokens] for ids in self.encode([ours[text] for text in texts])]

    def score(
        self, sequences: Sequence[Sequence[int]], *, tails: Sequence[int] | None = None, noise: float = 0.0
    ) -> list[Scored]:
        raise NotImplementedError

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("known") / "known"
    shutil.copytree(tiny_checkpoint(tmp_path_factory), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": END}))
    return folder


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("documents") / "openorca.jsonl"


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory, file: Path) -> Iterator[Evaluator]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canary, "check", lambda engine: None)
        patch.setenv(VARIABLE, str(file))
        surroundings = Surroundings(
            Deadlines(load=60, run=60, close=5), tmp_path_factory.mktemp("logs"), lambda text, done, total: None
        )
        opened = Evaluator(surroundings)
        yield opened
        opened.close()


def write(file: Path) -> None:
    documents = [{"prompt": prompt, "answer": answer} for prompt, answer, *_ in ANSWERED]
    file.write_text("\n".join(map(json.dumps, documents)) + "\n")


def case_of(model: str, recipe: str = "bf16") -> Case:
    return Case("h200", "tensorrt-llm", model_named(model), recipe_named(recipe), Layout(), Task("openorca"))


def scores_of(measures: Mapping[str, float], documents: int = 24_576) -> Scores:
    names = map(str, range(documents))
    found = {name: Document(name, 0.28, name) for name in names}
    return Scores(case_of("llama-2-70b"), found, {}, measures={**REACHED, **measures})


# --- questions -------------------------------------------------------------------------------------------------------


def test_all_measures_come_from_one_evaluation_and_are_what_they_are_by_hand(
    evaluator: Evaluator, checkpoint: Path, file: Path
) -> None:
    write(file)
    engine = Answering(checkpoint)

    found = evaluator.scores(case_of(str(checkpoint)), engine)

    assert len(found.documents) == 6
    assert [document.score for document in found.documents.values()] == [
        pytest.approx(rouge_l) for *_, rouge_l in ANSWERED
    ]
    by_hand = {name: [row[place] for row in ANSWERED] for place, name in ((3, "rouge1"), (4, "rouge2"), (5, "rougeL"))}
    lengths = [
        len(engine.encode([answer])[0]) for _, _, answer, *_ in ANSWERED
    ]  # not counting the end, nor what follows
    assert found.measures == {
        **{name: pytest.approx(sum(values) / 6) for name, values in by_hand.items()},  # type: ignore[arg-type]
        "answer_tokens": pytest.approx(sum(lengths) / 6),
    }
    assert sorted(engine.asked) == sorted(prompt for prompt, *_ in ANSWERED)  # to the blank at its end


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"prompt": "One", "answer": ', r"openorca\.jsonl:2: is not JSON: Expecting value"),
        ('["One", "two"]', r"openorca\.jsonl:2: a document has the fields prompt and answer, found: list"),
        ('{"prompt": "One", "output": "two"}', r"openorca\.jsonl:2: .*prompt and answer, found: output, prompt"),
        ('{"prompt": "One", "answer": 2}', r"openorca\.jsonl:2: 'answer' must be a text that is not empty"),
        ('{"prompt": " ", "answer": "two"}', r"openorca\.jsonl:2: 'prompt' must be a text that is not empty"),
        ("", r"openorca\.jsonl:2: is not JSON"),
    ],
    ids=["cut off", "a list", "another field", "a number", "empty", "an empty line"],
)
def test_a_line_that_is_no_document_is_told_with_file_and_line(
    evaluator: Evaluator, checkpoint: Path, file: Path, line: str, problem: str
) -> None:
    good = '{"prompt": "One", "answer": "two"}'
    file.write_text(f"{good}\n{line}\n{good}\n")

    with pytest.raises(UsageError, match=problem):
        evaluator.scores(case_of(str(checkpoint)), Answering(checkpoint))


def test_an_empty_file_holds_no_documents(evaluator: Evaluator, checkpoint: Path, file: Path) -> None:
    file.write_text("")

    with pytest.raises(UsageError, match=r"openorca\.jsonl: holds no documents"):
        evaluator.scores(case_of(str(checkpoint)), Answering(checkpoint))


def test_documents_nobody_has_named_are_missing_and_a_file_that_is_not_there_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    case = case_of("llama-2-70b")
    monkeypatch.delenv(VARIABLE, raising=False)
    assert missing_documents(case) == (
        f"needs the documents of openorca: {VARIABLE} names their file; {evaluation_named('openorca').source}"
    )

    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.jsonl"))
    with pytest.raises(UsageError, match=r"LLAMAPERF_OPENORCA=.*none\.jsonl: there is no such file"):
        missing_documents(case)

    (tmp_path / "none.jsonl").touch()
    assert missing_documents(case) is None


# --- targets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measures", "missed"),
    [
        ({}, []),
        ({"rouge1": 0.999 * 0.444312 + 1e-9}, []),
        ({"rouge1": 0.999 * 0.444312 - 1e-9}, ["rouge1"]),
        ({"rouge2": 0.99 * 0.220352, "rougeL": 0.99 * 0.286162}, ["rouge2", "rougeL"]),
        ({"answer_tokens": 0.9 * 294.45 - 0.01}, ["answer_tokens"]),
        ({"answer_tokens": 1.1 * 294.45 + 0.01}, ["answer_tokens"]),
        ({"answer_tokens": 1.1 * 294.45 - 0.01, "rouge1": 0.9}, []),
        ({"rougeL": float("nan")}, ["rougeL"]),
    ],
)
def test_every_target_has_to_be_reached(measures: dict[str, float], missed: list[str]) -> None:
    found = reached(scores_of(measures))

    assert [one.target.measure for one in found] == ["rouge1", "rouge2", "rougeL", "answer_tokens"]
    assert [one.target.measure for one in found if one.outcome != "pass"] == missed


def test_a_missed_target_is_told_with_what_is_asked_and_by_whom() -> None:
    text = told(reached(scores_of({"rouge1": 0.4400, "answer_tokens": 200.0})))

    assert "regression rouge1 is 44.0000 %, asked are at least 44.3868 %; the reference has 44.4312 %: -1.0 %\n" in text
    assert "answer_tokens is 200.00 tokens, asked are at least 265.00 tokens, at most 323.90 tokens" in text
    assert "by         mlcommons/inference tools/submission/" in text


def test_targets_are_of_all_documents_and_of_measures_that_were_taken() -> None:
    with pytest.raises(UsageError, match="targets are of 24,576 documents, and 6 were answered"):
        reached(scores_of({}, documents=6))
    lost = Scores(case_of("llama-2-70b"), scores_of({}).documents, {}, measures={"rouge1": 0.5})
    with pytest.raises(UsageError, match="was not measured: rouge2, rougeL, answer_tokens; there are: rouge1"):
        reached(lost)
    other = Scores(case_of("llama-3.1-8b"), scores_of({}).documents, {}, measures=REACHED)
    with pytest.raises(UsageError, match=r"there are no targets for it .*; there are for: llama-2-70b openorca"):
        reached(other)


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("{percent: 44.4, tokens: 3.0, least: 0.9}", "in percent or in tokens, one of them"),
        ("{least: 0.9}", "in percent or in tokens, one of them"),
        ("{percent: 44.4}", "'least' is missing"),
        ("{percent: 44.4, least: 0.9, most: 0.8}", "'least' is above 0 and not above 'most'"),
        ("{percent: 44.4, least: 0.9, value: 1.0}", "unknown key 'value'"),
    ],
)
def test_a_target_that_is_none_is_refused_with_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str, problem: str
) -> None:
    path = tmp_path / "targets.yaml"
    path.write_text(f"m:\n  t:\n    documents: 3\n    source: s\n    measures:\n      rouge1: {entry}\n")

    with pytest.raises(DocumentError, match=problem) as caught:
        targets._entry(read_document(path).section("m").section("t"))

    assert "targets.yaml:6: " in str(caught.value)


# --- in whole sessions -----------------------------------------------------------------------------------------------

SUITE = """
import pytest
from pytest_llamaperf.accuracy.scores import Document, Scores

@pytest.mark.accuracy
@pytest.mark.cases(model="llama-2-70b", hardware="cpu", recipe="modelopt-fp8", layout="tp1", task="openorca")
def test_targets(case, accuracy):
    documents = {str(number): Document(str(number), 0.3, "") for number in range(24_576)}
    accuracy.reaches(Scores(case, documents, {}, measures=MEASURES))
"""
ENGINES = """
def pytest_llamaperf_engines():
    return {"torch": lambda spec: None}
"""


def session(tmp_path: Path, *options: str, **measures: float) -> tuple[Folder, pytest.RunResult]:
    folder = Folder(tmp_path)
    folder.write(test_suite=f"MEASURES = { ({**REACHED, **measures})!r}\n{SUITE}", conftest=ENGINES)
    folder.ini()
    return folder, folder.run("--gpu=cpu", "--results=out", "-rs", *options)


@pytest.mark.parametrize("gate", [(), ("--gate",)])
def test_without_its_documents_the_test_skips_and_the_gate_stays_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: tuple[str, ...]
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)

    _, result = session(tmp_path, *gate)

    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines([f"SKIPPED*needs the documents of openorca: {VARIABLE} names their file;*"])
    assert result.ret == (pytest.ExitCode.TESTS_FAILED if gate else pytest.ExitCode.OK)


def test_a_file_that_is_named_and_not_there_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "none.jsonl")

    _, result = session(tmp_path)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines([f"ERROR: {VARIABLE}=none.jsonl: there is no such file*"])


def test_targets_reached_are_passes_of_published_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, __file__)

    folder, result = session(tmp_path, "--gate")

    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.OK
    found = folder.run_json()["results"]
    assert [(one["metric"], one["unit"], one["outcome"]) for one in found] == [
        ("rouge1", "fraction", "pass"),
        ("rouge2", "fraction", "pass"),
        ("rougeL", "fraction", "pass"),
        ("answer_tokens", "tok", "pass"),
    ]
    assert {one["baseline"]["source"] for one in found} == {"published"}
    result.stdout.fnmatch_lines(
        [
            "llama-2-70b on cpu | openorca | rouge1",
            "published by MLPerf Inference, evaluate-accuracy.py, 24,576 documents: bf16*",
            "releasable: every test is a measured pass",
        ]
    )


def test_a_missed_target_fails_the_test_and_names_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, __file__)

    folder, result = session(tmp_path, rouge2=0.2)

    result.assert_outcomes(failed=1)
    outcomes = {one["metric"]: one["outcome"] for one in folder.run_json()["results"]}
    assert outcomes == {"rouge1": "pass", "rouge2": "regression", "rougeL": "pass", "answer_tokens": "pass"}
    result.stdout.fnmatch_lines(["*regression rouge2 is 20.0000 %, asked are at least 22.0132 %*"])
    result.stdout.no_fnmatch_line("*Traceback*")
