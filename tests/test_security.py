"""What docs/security.md promises, kept."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import pickle
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import pytest
from builders import case
from click.testing import CliRunner
from engine_sessions import Folder, tiny_checkpoint

from pytest_llamaperf.baselines import read_promises
from pytest_llamaperf.cache import Cache, problem_of
from pytest_llamaperf.catalog import model_named, recipe_named
from pytest_llamaperf.checkpoints import BadCheckpoint, CheckpointStore
from pytest_llamaperf.checkpoints.safetensors_files import tensors
from pytest_llamaperf.commands import main
from pytest_llamaperf.documents import read_document
from pytest_llamaperf.engines import EngineSpec
from pytest_llamaperf.engines.trtllm import inputs
from pytest_llamaperf.engines.trtllm.arguments import flat, wanted
from pytest_llamaperf.engines.trtllm.nodes import Nodes
from pytest_llamaperf.errors import DocumentError, UsageError
from pytest_llamaperf.hosting.failures import EngineFailure
from pytest_llamaperf.hosting.host import OFFLINE, SILENT, Host
from pytest_llamaperf.requirements import read_requirements
from pytest_llamaperf.runtimes import runtime_named
from pytest_llamaperf.waivers import read_waivers

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "pytest_llamaperf"


# Names that nothing in the package may use, and why.
FORBIDDEN_CALLS = {
    "eval": "runs what it reads",
    "exec": "runs what it reads",
    "compile": "makes code of text",
    "__import__": "imports what a text names",
    "importlib.import_module": "imports what a text names",
    "os.system": "a shell takes its text apart",
    "os.popen": "a shell takes its text apart",
    "os.execvpe": "becomes another program",
    "subprocess.getoutput": "a shell takes its text apart",
    "subprocess.getstatusoutput": "a shell takes its text apart",
    "torch.load": "unpickles, and so runs what it reads",
    "torch.save": "what it writes is read by unpickling",
    "numpy.load": "may unpickle",
    "yaml.load": "may make objects of any class",
    "yaml.full_load": "may make objects of any class",
    "yaml.unsafe_load": "makes objects of any class",
    "yaml.dump": "writes tags of classes; safe_dump does not",
    "tempfile.mktemp": "another process may take the name first",
}
FORBIDDEN_MODULES = {
    "pickle": "runs what it reads", "dill": "runs what it reads", "cloudpickle": "runs what it reads", "shelve": "pickles",
    "marshal": "reads code", "joblib": "pickles", "pickletools": "of pickle",
    "socket": "the network", "urllib": "the network", "http": "the network", "requests": "the network", "httpx": "the network",
    "ftplib": "the network", "smtplib": "the network", "aiohttp": "the network", "xmlrpc": "the network",
    "xml": "expands entities",
}  # fmt: skip
FORBIDDEN_ARGUMENTS = {
    "shell": "a shell takes its text apart",
    "trust_remote_code": "runs code that comes with weights",
    "allow_pickle": "runs what it reads",
    "use_safetensors": "reads pickled weights",  # where it is False
}
SAFE_VALUES = {"shell": False, "trust_remote_code": False, "allow_pickle": False, "use_safetensors": True}

# Where one of them stands all the same, and why it may.
EXCEPTIONS = {
    ("commands/launch.py", "os.execvpe"): "a list of words, of the person who typed them; no shell",
    ("scaling/junit.py", "xml.etree.ElementTree"): "without a DOCTYPE, which is refused, no entity can be declared",
    ("report/drawing.py", "xml.etree"): "reads the SVG that Vega-Lite has just drawn, in this process",
    ("children/program.py", "importlib.import_module"): "a driver of this package, or one that a test brings",
    ("children/trtllm/serving.py", "importlib.import_module"): "names that stand there; tensorrt_llm has no types",
    ("children/trtllm/probing.py", "importlib.import_module"): "names that stand there; tensorrt_llm has no types",
}


def dangers(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of all that is forbidden in a module, under whatever name it was imported."""
    tree = ast.parse(source)
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
                if alias.name.partition(".")[0] in FORBIDDEN_MODULES:
                    yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if node.module.partition(".")[0] in FORBIDDEN_MODULES:
                yield node.lineno, node.module
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and (name := dotted(node, names)) in FORBIDDEN_CALLS:
            yield node.lineno, name
        if isinstance(node, ast.Call):
            yield from dangerous_arguments(node, names)


def dangerous_arguments(call: ast.Call, names: dict[str, str]) -> Iterator[tuple[int, str]]:
    for keyword in call.keywords:
        if keyword.arg in FORBIDDEN_ARGUMENTS:
            value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
            if value is not SAFE_VALUES[keyword.arg]:
                yield call.lineno, keyword.arg
    name = dotted(call.func, names)
    if (
        name.startswith("subprocess.")
        and call.args
        and isinstance(call.args[0], (ast.Constant, ast.JoinedStr, ast.BinOp))
    ):
        yield call.lineno, "a command as one text"
    if name.endswith(".from_pretrained"):
        given = {keyword.arg for keyword in call.keywords}
        if name.startswith("transformers.") and "trust_remote_code" not in given:
            yield call.lineno, "from_pretrained without trust_remote_code=False"
        if name.startswith("transformers.AutoModel") and "use_safetensors" not in given:
            yield call.lineno, "from_pretrained without use_safetensors=True"


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """`np.load` as numpy.load; a name of the builtins as it is, and nothing for what was computed."""
    match node:
        case ast.Name(id=name):
            return names.get(name, name)
        case ast.Attribute(value=value, attr=attribute) if left := dotted(value, names):
            return f"{left}.{attribute}"
    return ""


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("module", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_dangerous_is_called(module: Path) -> None:
    place = module.relative_to(PACKAGE).as_posix()

    found = [(line, name) for line, name in dangers(module.read_text("utf-8")) if (place, name) not in EXCEPTIONS]

    assert found == []


def test_every_exception_is_used() -> None:
    used = {(m.relative_to(PACKAGE).as_posix(), name) for m in modules() for _, name in dangers(m.read_text("utf-8"))}

    assert set(EXCEPTIONS) <= used


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import os\nos.system('ls')", "os.system"),
        ("from os import system as run\nrun('ls')", "os.system"),
        ("import numpy as np\nnp.load('x')", "numpy.load"),
        ("import numpy as np\nload = np.load", "numpy.load"),
        ("import torch\ntorch.load('x', weights_only=True)", "torch.load"),
        ("import yaml\nyaml.load('x', Loader=yaml.SafeLoader)", "yaml.load"),
        ("import pickle", "pickle"),
        ("from pickle import loads", "pickle"),
        ("import urllib.request", "urllib.request"),
        ("import subprocess\nsubprocess.run(['ls'], shell=True)", "shell"),
        ("import subprocess\nsubprocess.run(['ls'], shell=yes)", "shell"),
        ("import subprocess\nsubprocess.run(f'ls {x}')", "a command as one text"),
        ("from subprocess import Popen\nPopen('ls')", "a command as one text"),
        ("eval('1')", "eval"),
        ("f(trust_remote_code=True)", "trust_remote_code"),
        ("f(trust_remote_code=named)", "trust_remote_code"),
        ("from transformers import AutoTokenizer\nAutoTokenizer.from_pretrained(x)", "from_pretrained without trust_remote_code=False"),
        (
            "from transformers import AutoModelForCausalLM as A\nA.from_pretrained(x, trust_remote_code=False)",
            "from_pretrained without use_safetensors=True",
        ),
        ("f(use_safetensors=False)", "use_safetensors"),
    ],
)  # fmt: skip
def test_what_is_dangerous_is_seen(source: str, found: str) -> None:
    assert found in [name for _, name in dangers(source)]


def test_what_is_harmless_is_not() -> None:
    harmless = "import yaml, subprocess\nyaml.safe_load('x')\nsubprocess.run(['ls'])\nf(shell=False)\nmodel.eval()\nre.compile('x')"

    assert list(dangers(harmless)) == []


def test_yaml_is_read_by_the_safe_loader_alone() -> None:
    """`compose` and `parse` make no objects; their loader is named all the same."""
    for module in modules():
        for loader in re.findall(r"Loader=([\w.()\", ]+?)\)?$", module.read_text("utf-8"), re.MULTILINE):
            assert loader in ("_Loader", 'getattr(yaml, "CSafeLoader", yaml.SafeLoader)'), module


CODE = "raise SystemExit('the code of a checkpoint was run')\n"


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_checkpoint_that_brings_code_is_refused(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path / "with-code"
    folder.mkdir()
    for path in tiny_checkpoint(tmp_path_factory).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    said = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    (folder / name).write_text(
        json.dumps({**said, "auto_map": {"AutoConfig": "evil.Config", "AutoTokenizer": ["evil.T", None]}})
    )
    (folder / "evil.py").write_text(CODE)

    with pytest.raises(BadCheckpoint, match=rf"{name}: names code that comes with the checkpoint \(auto_map\)"):
        CheckpointStore(tmp_path / "cache").get(model_named(str(folder)), recipe_named("bf16"))


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, ("exploded",))


def test_pickled_weights_are_not_read(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "pickled"
    folder.mkdir()
    for path in tiny_checkpoint(tmp_path_factory).glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    for name in ("pytorch_model.bin", "model.safetensors"):
        (folder / name).write_bytes(pickle.dumps(Bomb()))

        with pytest.raises(BadCheckpoint):
            CheckpointStore(tmp_path / "cache").get(model_named(str(folder)), recipe_named("bf16"))

    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["../other.safetensors", "/other.safetensors", "in/other.safetensors"])
def test_an_index_names_weights_in_its_folder_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))

    with pytest.raises(BadCheckpoint, match="does not name files beside it"):
        tensors(tmp_path)


YAML_CODE = "!!python/object/apply:os.mkdir [exploded]"


@pytest.mark.parametrize(
    "read",
    [
        lambda path: read_promises(path, "h200"),
        lambda path: read_requirements(path, hardware="h200", engine="tensorrt-llm"),
        lambda path: read_waivers(path, date(2026, 11, 26)),
        lambda path: runtime_named(str(path), path.parent),
        read_document,
    ],
    ids=["baseline", "gate", "waivers", "runtime", "document"],
)
@pytest.mark.parametrize("text", [YAML_CODE, f"schema: {YAML_CODE}", f"{YAML_CODE}: 1", f"python: {YAML_CODE}"])
def test_yaml_makes_nothing_but_plain_values(
    text: str, read: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file.yaml"
    path.write_text(text + "\n")

    with contextlib.suppress(UsageError):  # the top of a document is read without its values
        read(path)

    assert [found.name for found in tmp_path.iterdir()] == ["file.yaml"]


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("tensorrt-llm/../../../../tmp/x/bf16/tp1/max-throughput-16-8", "a case is written engine/model/recipe"),
        ("tensorrt-llm/../bf16/tp1/max-throughput-16-8", "'..' is no model"),
        ("tensorrt-llm/./bf16/tp1/max-throughput-16-8", "'.' is no model"),
        ("../llama-3.1-8b/bf16/tp1/max-throughput-16-8", "unknown engine '..'"),
        ("tensorrt-llm/llama-3.1-8b/../tp1/max-throughput-16-8", "unknown recipe '..'"),
        ("tensorrt-llm/llama-3.1-8b/bf16/tp1/..", "unknown workload '..'"),
    ],
)
def test_names_in_a_baseline_are_no_paths(
    key: str, problem: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tmp_path, tmp_path / "inner"):  # weights lie where the names lead
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_bytes((tiny_checkpoint(tmp_path_factory) / "config.json").read_bytes())
    monkeypatch.chdir(tmp_path / "inner")
    path = tmp_path / "llama-3.1-8b.yaml"
    entry = "output_throughput: {value: 1.0, unit: tok/s, tolerance: 0.1, source: published, reference: a}"
    path.write_text(f"schema: 1\nreferences: {{a: b}}\npromises:\n  {key}:\n    {entry}\n")

    with pytest.raises(DocumentError, match=re.escape(problem)):
        read_promises(path, "h200")


@pytest.mark.parametrize("ending", ["", "/.", "/../inner", "/../inner/.."])
def test_a_folder_of_weights_gives_its_last_name_to_files_and_nothing_else(
    ending: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    for folder in (inner, inner.parent):
        (folder / "config.json").write_bytes((tiny_checkpoint(tmp_path_factory) / "config.json").read_bytes())

    name = model_named(f"{inner}{ending}").name

    assert name in ("inner", "outer")


def test_tensorrt_llm_is_not_told_to_trust_code() -> None:
    assert "trust_remote_code" not in flat(wanted(EngineSpec.of(case()), "/a", Nodes()))


DRIVER = """
import os

class Driver:
    def handle(self, command, arguments):
        return dict(os.environ)

    def close(self):
        pass

def open_driver(report):
    return Driver()
"""


@pytest.fixture
def environment_of(tmp_path: Path) -> Callable[..., dict[str, str]]:
    def asked(**options: object) -> dict[str, str]:
        (tmp_path / "driver.py").write_text(DRIVER)
        with Host(tmp_path / "driver.py", log=tmp_path / "logs" / "engine.log", **options) as host:  # type: ignore[arg-type]
            found: dict[str, str] = host.call("ask", {}, "run")  # type: ignore[arg-type]
        return found

    return asked


def test_processes_are_told_to_stay_off_the_network(
    environment_of: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in OFFLINE:
        monkeypatch.setenv(name, "0")

    assert {**SILENT, **OFFLINE}.items() <= environment_of().items()
    asked = environment_of(network=True)
    assert SILENT.items() <= asked.items()
    assert {name: asked[name] for name in OFFLINE} == dict.fromkeys(OFFLINE, "0")
    assert environment_of(environment={"HF_HUB_OFFLINE": "0"})["HF_HUB_OFFLINE"] == "0"  # a runtime's file may ask


# Whoever wants out of this machine is written down, in every process, before he is let go.
WATCHED = """
import os, socket

_connect = socket.socket.connect

def connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(("127.", "::1")):
        with open(os.environ["WANTED_OUT"], "a") as file:
            print(address, file=file)
        raise OSError("no way out")
    return _connect(self, address)

socket.socket.connect = connect

def getaddrinfo(host, *others, **more):
    if host not in (None, "localhost", "127.0.0.1", "::1", socket.gethostname()):
        with open(os.environ["WANTED_OUT"], "a") as file:
            print("name", host, file=file)
        raise socket.gaierror("no way out")
    return _getaddrinfo(host, *others, **more)

_getaddrinfo, socket.getaddrinfo = socket.getaddrinfo, getaddrinfo
"""

MEASURED = """
import pytest
from pytest_llamaperf import OUTPUT_THROUGHPUT

@pytest.mark.cases(model=CHECKPOINT, hardware="cpu", recipe="bf16", layout="tp1", workload="max-throughput-16-8")
def test_speed(case, measure):
    assert measure(case).of(OUTPUT_THROUGHPUT).value > 0
"""


def test_a_session_asks_nothing_of_the_network(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WATCHED)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("WANTED_OUT", str(tmp_path / "wanted-out"))
    folder = Folder(tmp_path / "project")
    asking = "import os; os.environ['HF_HUB_OFFLINE'] = '0'"
    folder.write(
        test_suite=MEASURED.replace("CHECKPOINT", repr(str(tiny_checkpoint(tmp_path_factory)))), conftest=asking
    )

    ended = folder.run("--gpu=cpu", "--restarts=1", "--rounds=1", "--results=out")

    assert ended.parseoutcomes() == {"passed": 1}
    assert not (tmp_path / "wanted-out").exists()
    seen = "import socket, urllib.request\ntry: urllib.request.urlopen('http://192.0.2.1', timeout=1)\nexcept OSError: pass"
    subprocess.run([sys.executable, "-c", seen], check=True, timeout=60)
    assert "192.0.2.1" in (tmp_path / "wanted-out").read_text()  # the watch sees who wants out
    assert modes(folder.path / "out" / "engines") == {0o700}
    assert {modes(path).pop() for path in (folder.path / "out" / "engines").iterdir()} == {0o600}


def modes(path: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode)}


def test_logs_are_for_their_owner_and_a_link_is_not_followed(
    tmp_path: Path, environment_of: Callable[..., dict[str, str]]
) -> None:
    environment_of()
    log = tmp_path / "logs" / "engine.log"
    assert (modes(log), modes(log.parent)) == ({0o600}, {0o700})
    log.unlink()
    log.symlink_to(tmp_path / "precious")

    with pytest.raises(EngineFailure, match="symbolic links"):
        environment_of()

    assert not (tmp_path / "precious").exists()


def test_the_folder_for_logs_of_a_session_without_results_cannot_be_guessed(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write(
        conftest="""
def pytest_configure(config):
    from pytest_llamaperf.plugin import SURROUNDINGS
    config.add_cleanup(lambda: print("logs:", config.stash[SURROUNDINGS].logs.name))
""",
        test_suite="def test_a(): ...",
    )

    names = {re.findall(r"logs: (\S+)", str(folder.run().stdout))[0] for _ in range(2)}

    assert len(names) == 2
    assert all(re.fullmatch(r"llamaperf-engines-[0-9a-f]{16}", name) for name in names)


def test_a_cache_that_is_made_is_for_its_owner_and_one_that_is_there_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o775)
    shared.chmod(0o775)

    for root in (tmp_path / "own", shared):
        Cache(root, tell=print, warn=print).get(
            "entry", lambda folder: {"key": "k"}, lambda entry: problem_of(entry, "k")
        )
    monkeypatch.setenv("LLAMAPERF_CACHE", str(tmp_path / "inputs"))
    inputs.options_file({"a": 1})

    assert modes(tmp_path / "own") == {0o700}
    assert modes(tmp_path / "inputs") == {0o700}
    assert modes(shared) == {0o775}


@pytest.mark.parametrize("name", ["../other/file", "/etc/hostname", "a/../../b"])
def test_an_entry_of_the_cache_names_no_file_outside_of_it(name: str, tmp_path: Path) -> None:
    (tmp_path / "entry").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    (tmp_path / "entry" / "manifest.json").write_text(json.dumps({"schema": 1, "key": "k", "files": {name: 0}}))

    assert problem_of(tmp_path / "entry", "k") == f"{name} is outside of it"


@pytest.mark.parametrize("nodeid", ["--rootdir=/elsewhere", "-pevil", "@/etc/passwd"])
def test_a_run_of_somebody_else_gives_pytest_no_options(nodeid: str, tmp_path: Path) -> None:
    from builders import record, result

    from pytest_llamaperf.gates import decide
    from pytest_llamaperf.runs import RunHeader, run_document, to_json

    tests = [record(result("regression", nodeid=nodeid))]
    header = RunHeader("1", "2026-11-26T10:00:00Z", "cpu", "torch")
    (tmp_path / "run.json").write_text(to_json(run_document(header, tests, decide(tests))))

    ended = CliRunner().invoke(main, ["confirm", str(tmp_path), "--against", sys.executable])

    assert ended.exit_code == 2
    assert f"{nodeid!r} is no name of a test" in ended.output
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_the_page_about_security_names_tests_that_exist() -> None:
    page = (REPOSITORY / "docs" / "security.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+)::(test_\w+)`", page)

    missing = [
        f"{module}::{test}"
        for module, test in named
        if f"def {test}(" not in (REPOSITORY / "tests" / f"{module}.py").read_text(encoding="utf-8")
    ]

    assert len(named) > 30
    assert missing == []
