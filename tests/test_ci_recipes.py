"""The recipes in docs/ci: linted by what knows their languages, and no command line in them that does not exist.

Nobody runs them here, for there is neither such a service nor a GPU. What can be known without is asked: schemas of GitHub, GitLab
and Kubernetes, zizmor for the safety of a workflow, grammars of Groovy and of the shell, shellcheck, and the parsers of `llamaperf`
and of pytest themselves. What docs/ci/kubernetes has of its own, two programs, is run: against a `kubectl` that pretends.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import tree_sitter_bash
import tree_sitter_groovy
from markdown_it import MarkdownIt
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from shard_builders import campaign, leave_results, shard
from tree_sitter import Language, Node, Parser

from pytest_llamaperf.commands import main
from pytest_llamaperf.scaling.contract import Campaign
from pytest_llamaperf.scaling.manifest import NAME, PERFORMANCE, Shard

pytest_plugins = "pytester"

DOCS = Path(__file__).parent.parent / "docs"
CI = DOCS / "ci"
KUBERNETES = CI / "kubernetes"
BASH = Parser(Language(tree_sitter_bash.language()))
GROOVY = Parser(Language(tree_sitter_groovy.language()))

# Actions and images are pinned by tags in the recipe, which says how to pin them by digests; else zizmor decides.
ZIZMOR = "rules: {unpinned-uses: {config: {policies: {actions/*: ref-pin}}}, unpinned-images: {disable: true}}\n"
# What a shell word may be; the rest of a command are redirections and assignments.
WORDS = (
    "word",
    "string",
    "raw_string",
    "number",
    "concatenation",
    "simple_expansion",
    "expansion",
    "command_substitution",
)


@dataclass(frozen=True)
class Script:
    """Shell as it stands in a recipe. `dialect`: what runs it there, `sh` where that may be another one than bash."""

    where: str
    text: str
    dialect: str = "bash"

    def __str__(self) -> str:
        return self.where


def yaml_of(text: str) -> list[Any]:
    """All documents. YAML 1.2, as services read it; a key that stands twice raises DuplicateKeyError."""
    return [document for document in YAML(typ="safe", pure=True).load_all(text) if document is not None]


def documents(path: Path) -> list[Any]:
    return yaml_of(path.read_text(encoding="utf-8"))


def nodes(tree: Node, *kinds: str) -> Iterator[Node]:
    if tree.type in kinds:
        yield tree
    for child in tree.children:
        yield from nodes(child, *kinds)


def errors(tree: Node) -> list[str]:
    """Places that the grammar does not know, as `line 3: what stands there`."""
    found = [f"line {tree.start_point.row + 1}: {tree.text!r:.80}"] if tree.is_error or tree.is_missing else []
    return [*found, *(problem for child in tree.children for problem in errors(child))]


def of_github() -> Iterator[Script]:
    [workflow] = documents(CI / "github.yml")
    for name, job in workflow["jobs"].items():
        for number, step in enumerate(job["steps"], 1):
            if "run" in step:
                yield Script(f"github.yml, {name}, step {number}", step["run"])


def of_gitlab() -> Iterator[Script]:
    for name, job in gitlab_jobs().items():
        for key in ("before_script", "script", "after_script"):
            if key in job:
                yield Script(f"gitlab.yml, {name}, {key}", "\n".join(job[key]), "sh")


def gitlab_jobs() -> dict[str, Any]:
    [pipeline] = documents(CI / "gitlab.yml")
    return {name: job for name, job in pipeline.items() if isinstance(job, dict) and "script" in job}


def of_jenkins() -> Iterator[Script]:
    """Strings between ''' or ', after `sh` or as its `script:`."""
    root = GROOVY.parse((CI / "Jenkinsfile").read_bytes()).root_node
    for node in nodes(root, "juxt_function_call", "method_invocation"):
        if node.children[0].text == b"sh":
            [string] = [each for each in nodes(node, "string_literal") if each.text != b"sh"]
            where = f"Jenkinsfile, line {string.start_point.row + 1}"
            assert string.text.startswith(b"'"), f"{where}: Groovy puts values into strings between double quotes"
            yield Script(where, string.text.decode().strip("'"), "sh")


def of_slurm() -> Iterator[Script]:
    for line in (CI / "slurm" / "scrontab").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            yield Script("scrontab", line.split(maxsplit=5)[5])
    yield Script("nightly.sh", (CI / "slurm" / "nightly.sh").read_text(encoding="utf-8"))


def of_kubernetes() -> Iterator[Script]:
    yield Script("gate.sh", (KUBERNETES / "gate.sh").read_text(encoding="utf-8"))
    for name in ("plan.yaml", "merge.yaml"):
        for container in containers(documents(KUBERNETES / name)[0]):
            assert container["command"] == ["bash", "-euo", "pipefail", "-c"]
            [text] = container["args"]
            yield Script(f"{name}, {container['name']}", text)
    for line in (KUBERNETES / "Containerfile").read_text(encoding="utf-8").splitlines():
        if line.startswith("RUN "):
            yield Script("Containerfile", line.removeprefix("RUN "), "sh")


def containers(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    spec = job["spec"]["template"]["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def of_page() -> Iterator[Script]:
    """The blocks of docs/ci.md; of YAML what is run in them."""
    for token in MarkdownIt().parse((DOCS / "ci.md").read_text(encoding="utf-8")):
        where = f"ci.md, line {token.map[0] + 1}" if token.map else "ci.md"
        if token.type == "code_block" or (token.type == "fence" and token.info == "sh"):
            yield Script(where, token.content)
        elif token.type == "fence" and token.info == "yaml":
            [steps] = yaml_of(token.content)
            yield Script(where, "\n".join(step["run"] for step in steps if "run" in step))


RECIPES = {
    "github": [*of_github()],
    "gitlab": [*of_gitlab()],
    "jenkins": [*of_jenkins()],
    "slurm": [*of_slurm()],
    "kubernetes": [*of_kubernetes()],
}
PAGE = [*of_page()]
SCRIPTS = [script for scripts in RECIPES.values() for script in scripts] + PAGE
every_script = pytest.mark.parametrize("script", SCRIPTS, ids=str)


def command_lines(script: Script) -> list[list[str]]:
    """Every `llamaperf` and `pytest` in a script, wherever it stands there, with its words. Variables stay as they are."""
    found = []
    for command in nodes(BASH.parse(script.text.encode()).root_node, "command"):
        words = [node for node in command.children if node.type in ("command_name", *WORDS)]
        name, *arguments = [shlex.split((node.text or b"").decode())[0] for node in words]
        if Path(name).name in ("llamaperf", "pytest"):
            found.append([Path(name).name, *arguments])
    return found


def check_llamaperf(words: Sequence[str]) -> list[str]:
    """Have click parse them, without doing anything. Returns what a command hands on to pytest.

    Raises click.UsageError for a command, an option or a choice that does not exist, and for what lacks.
    """
    command: click.Command = main
    context, rest = click.Context(main, info_name="llamaperf"), [*words]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        _, found, rest = command.resolve_command(context, rest)
        assert found is not None
        command, context = found, click.Context(found, info_name=found.name, parent=context)
    parsed = command.make_context(command.name, rest, parent=context.parent)
    handed_on = [parsed.params[str(each.name)] for each in command.params if each.type is click.UNPROCESSED]
    return [str(word) for words in handed_on for word in ([words] if isinstance(words, str) else words)]


# --- languages


@pytest.mark.parametrize("path", [*sorted(CI.rglob("*.yml")), *sorted(CI.rglob("*.yaml"))], ids=lambda path: path.name)
def test_yaml_is_read_strictly(path: Path) -> None:
    assert documents(path)


def test_a_key_that_stands_twice_is_found() -> None:
    with pytest.raises(DuplicateKeyError):
        yaml_of("gate: {timeout: 1, timeout: 2}")


def check_schema(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", *options, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


SCHEMAS = {
    "github.yml": ("--builtin-schema", "vendor.github-workflows"),
    "gitlab.yml": ("--builtin-schema", "vendor.gitlab-ci", "--data-transform", "gitlab-ci"),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_github_and_gitlab_know_every_key(name: str, tmp_path: Path) -> None:
    checked = check_schema(CI / name, *SCHEMAS[name])

    assert checked.returncode == 0, checked.stdout
    wrong = tmp_path / name
    wrong.write_text((CI / name).read_text(encoding="utf-8").replace("timeout", "time-out"), encoding="utf-8")
    assert check_schema(wrong, *SCHEMAS[name]).returncode == 1


def zizmor(path: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    config = folder / "zizmor.yml"
    config.write_text(ZIZMOR, encoding="utf-8")
    command = [
        str(Path(sys.executable).with_name("zizmor")),
        "--offline",
        "--persona",
        "pedantic",
        "--config",
        str(config),
        str(path),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_workflow_is_safe(tmp_path: Path) -> None:
    checked = zizmor(CI / "github.yml", tmp_path)

    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("safe", "unsafe", "audit"),
    [
        ("llamaperf report out", "echo ${{ github.event.head_commit.message }}", "template-injection"),
        ("permissions: {}", "permissions: write-all", "excessive-permissions"),
        ("actions/checkout@v6", "someone/checkout@v6", "unpinned-uses"),
        ("secrets.LLAMAPERF_HISTORY", "toJSON(secrets)", "overprovisioned-secrets"),
    ],
)
def test_zizmor_would_find_what_is_not(safe: str, unsafe: str, audit: str, tmp_path: Path) -> None:
    text = (CI / "github.yml").read_text(encoding="utf-8")
    assert safe in text
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(text.replace(safe, unsafe), encoding="utf-8")

    checked = zizmor(wrong, tmp_path)

    assert checked.returncode != 0
    assert f"[{audit}]" in checked.stdout


def test_the_jenkinsfile_is_groovy() -> None:
    text = (CI / "Jenkinsfile").read_bytes()

    assert errors(GROOVY.parse(text).root_node) == []
    assert errors(GROOVY.parse(text.rstrip().removesuffix(b"}")).root_node) != []


VERSIONS = ("1.30", kubernetes_validate.latest_version())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", sorted(KUBERNETES.glob("*.yaml")), ids=lambda path: path.name)
def test_kubernetes_knows_every_key(path: Path, version: str) -> None:
    for document in documents(path):
        kubernetes_validate.validate(document, version, strict=True)


def test_a_key_that_kubernetes_does_not_know_is_found() -> None:
    [job] = documents(KUBERNETES / "shard.yaml")
    job["spec"]["template"]["spec"]["containers"][0]["resources"]["limit"] = {}

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, VERSIONS[0], strict=True)


def test_the_profile_is_one_that_llamaperf_reads() -> None:
    from pytest_llamaperf.scaling.slurm.profiles import read_profile

    assert read_profile(CI / "slurm" / "slurm.yaml").partition == "h200"


def test_the_line_of_scrontab_is_five_times_and_a_command() -> None:
    lines = (CI / "slurm" / "scrontab").read_text(encoding="utf-8").splitlines()
    [line] = [line for line in lines if line and not line.startswith("#")]
    times, options = line.split()[:5], [line for line in lines if line.startswith("#SCRON ")]

    assert all(re.fullmatch(r"\*|\d+", time) for time in times)
    # Slurm takes everything behind #SCRON for options, so a remark there would be one.
    assert all(re.fullmatch(r"#SCRON --[a-z-]+=\S+", option) for option in options)
    assert any(option.startswith("#SCRON --time=") for option in options)


@every_script
def test_shell_parses(script: Script) -> None:
    checked = subprocess.run([script.dialect, "-n"], input=script.text, capture_output=True, text=True, check=False)

    assert checked.returncode == 0, checked.stderr
    assert errors(BASH.parse(script.text.encode()).root_node) == []


@pytest.mark.parametrize("script", [each for each in SCRIPTS if each not in PAGE], ids=str)
def test_shellcheck_finds_nothing(script: Script) -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed: apt-get install shellcheck")
    # SC2148: a block has no first line of its own.
    command = ["shellcheck", "--shell", script.dialect, "--exclude", "SC2148", "-"]
    checked = subprocess.run(command, input=script.text, capture_output=True, text=True, check=False)

    assert checked.returncode == 0, checked.stdout


# --- commands


def check_commands(script: Script, pytester: pytest.Pytester) -> None:
    """Raises click.ClickException or pytest.UsageError for one that would be refused."""
    for name, *words in command_lines(script):
        options = check_llamaperf(words) if name == "llamaperf" else words
        if name == "pytest" or words[0] == "plan":
            pytester.parseconfig(*options)


@every_script
def test_every_command_line_uses_what_exists(script: Script, pytester: pytest.Pytester) -> None:
    check_commands(script, pytester)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("llamaperf compares A B", click.UsageError),
        ("x=$(.venv/bin/llamaperf compare A B --markdwon f)", click.NoSuchOption),
        ("llamaperf compare A", click.MissingParameter),
        ("llamaperf compare A B C", click.UsageError),
        ("llamaperf summary out --bencher", click.BadOptionUsage),
        ("test -e out || pytest suites/ --gates", pytest.UsageError),
        ("llamaperf plan suites/ --gpus h200", pytest.UsageError),
        ("llamaperf plan --results out", click.MissingParameter),
        ('if true; then llamaperf history import "$RUN" --dp x; fi', click.NoSuchOption),
    ],
)
def test_a_command_line_that_does_not_exist_is_found(
    line: str, problem: type[Exception], pytester: pytest.Pytester
) -> None:
    with pytest.raises(problem):
        check_commands(Script("here", line), pytester)


@every_script
def test_no_command_is_overlooked(script: Script) -> None:
    """What a reader would take for a command, in code and not in a comment or between quotes, was checked above."""
    code = re.sub(r"""(?<!\S)#.*|'[^']*'|"[^"]*\"""", "", script.text)
    seen = re.findall(r"(?:llamaperf (?=[a-z])|pytest (?=suites|-))", code)

    assert len(command_lines(script)) >= len(seen)


# --- what every recipe does


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_gates_keeps_the_past_compares_and_makes_the_page(name: str) -> None:
    lines = [line for script in RECIPES[name] for line in command_lines(script)]
    commands = [tuple(line[1:3] if line[1] == "history" else line[1:2]) for line in lines if line[0] == "llamaperf"]

    assert any("--gate" in line and "h200" in line for line in lines)
    for needed in [("compare",), ("history", "import"), ("report",)]:
        assert needed in commands
    if any(line[:2] == ["llamaperf", "plan"] for line in lines):
        assert ("run",) in commands or name == "kubernetes"
        assert ("merge",) in commands
    assert commands.index(("compare",)) < commands.index(("history", "import"))


def test_every_recipe_is_on_the_page() -> None:
    page = (DOCS / "ci.md").read_text(encoding="utf-8")

    assert {target for target in re.findall(r"\(ci/([^)]+)\)", page)} == {
        "github.yml", "gitlab.yml", "Jenkinsfile", "slurm/", "kubernetes/",
    }  # fmt: skip
    for each in re.findall(r"\(ci/([^)]+)\)", page):
        assert (CI / each).exists()


@pytest.mark.parametrize(
    "path", [CI / "github.yml", CI / "gitlab.yml", CI / "Jenkinsfile", KUBERNETES / "Containerfile"]
)
def test_the_image_is_named_once_and_marked(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    [image] = [line for line in lines if "tensorrt-llm/release:" in line]

    assert re.search(r"release:[0-9.]+\b", image)
    assert image.startswith("FROM ") or image.endswith("<- what is judged")


def test_github_ends_in_time_alone_with_least_rights() -> None:
    [workflow] = documents(CI / "github.yml")

    assert "pull_request" not in str(workflow["on"])
    assert workflow["permissions"] == {}
    assert workflow["concurrency"]["cancel-in-progress"] is False
    for job in workflow["jobs"].values():
        assert job["permissions"] == {"contents": "read"}
        assert job["timeout-minutes"] > 0
        [upload] = [step for step in job["steps"] if "upload-artifact" in step.get("uses", "")]
        assert upload["if"] == "always()"
        for step in job["steps"]:
            assert re.fullmatch(r"actions/[a-z-]+@v[0-9]+", step.get("uses", "actions/none@v1"))
            if "checkout" in step.get("uses", ""):
                assert step["with"] == {"persist-credentials": False}
    assert "${{" not in "".join(script.text for script in of_github())


def test_the_url_of_the_history_is_no_business_of_what_is_judged() -> None:
    [workflow] = documents(CI / "github.yml")
    [merge] = documents(KUBERNETES / "merge.yaml")

    assert "secrets" not in str(workflow["jobs"]["gate"])
    assert "secrets.LLAMAPERF_HISTORY" in str(workflow["jobs"]["compare"])
    assert gitlab_jobs()["compare"]["environment"]["name"] == "history"
    assert "secretKeyRef" in str(merge)
    assert "secret" not in (KUBERNETES / "shard.yaml").read_text(encoding="utf-8")


def test_gitlab_ends_in_time_alone_and_keeps_everything() -> None:
    jobs = gitlab_jobs()

    assert {job["artifacts"]["when"] for job in jobs.values()} == {"always"}
    assert all(job["timeout"] for job in jobs.values())
    assert jobs["gate"]["resource_group"]
    assert jobs["gate"]["artifacts"]["reports"]["junit"] == "out/junit.xml"
    assert jobs["compare"]["when"] == "always"
    assert jobs["compare"]["allow_failure"] == {"exit_codes": [3]}


def test_jenkins_ends_in_time_alone_and_keeps_everything() -> None:
    """By the names of steps: what they do is known to Jenkins alone."""
    root = GROOVY.parse((CI / "Jenkinsfile").read_bytes()).root_node
    [gate, after] = [node for node in nodes(root, "method_invocation", "juxt_function_call") if is_called(node, "post")]

    assert {"timeout", "lock", "disableConcurrentBuilds"} <= called(root)
    assert {"always", "archiveArtifacts", "junit", "stash"} <= called(gate)
    assert {"always", "unstash", "withCredentials", "unstable", "error"} <= called(after)
    assert [is_called(node, "withCredentials") for node in nodes(root, "method_invocation")].count(True) == 1


def is_called(node: Node, name: str) -> bool:
    return node.children[0].text == name.encode()


def called(tree: Node) -> set[str]:
    return {(node.children[0].text or b"").decode() for node in nodes(tree, "method_invocation", "juxt_function_call")}


# --- exit statuses, of recipes that are one script

STATUSES = pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ({}, 0),
        ({"gate": 1}, 1),
        ({"gate": 3}, 3),
        ({"gate": 1, "compare": 3}, 1),
        ({"compare": 1}, 1),
        ({"compare": 3}, 3),
        ({"history": 2}, 2),
        ({"gate": 1, "history": 2}, 1),
        ({"report": 2}, 2),
    ],
    ids=str,
)


@dataclass(frozen=True)
class Commands:
    """A `llamaperf` that only notes how it was called, and ends with what was asked for."""

    folder: Path

    def set(self, statuses: Mapping[str, int]) -> None:
        self.folder.mkdir(parents=True)
        ends = "".join(f"{name}) exit {status} ;; " for name, status in statuses.items())
        text = f'#!/bin/sh\necho "$@" >>{self.folder}/calls\ncase $1 in {ends} esac\n'
        (self.folder / "llamaperf").write_text(text, encoding="utf-8")
        (self.folder / "llamaperf").chmod(0o755)

    @property
    def called(self) -> list[str]:
        return [line.split()[0] for line in (self.folder / "calls").read_text(encoding="utf-8").splitlines()]


@STATUSES
def test_a_night_ends_as_its_gate_did_and_then_as_the_comparison(
    statuses: dict[str, int], expected: int, tmp_path: Path
) -> None:
    done, called = night(tmp_path, {"run" if name == "gate" else name: code for name, code in statuses.items()})

    assert done.returncode == expected, done.stderr
    merged = ["merge"] if statuses.get("gate") == 3 else []
    assert called == ["plan", "run", *merged, "compare", "history", "report"]


def night(folder: Path, statuses: Mapping[str, int], day: str = "2026-11-22") -> tuple[Any, list[str]]:
    (folder / "repository").mkdir()
    (folder / ".config" / "llamaperf").mkdir(parents=True)
    (folder / ".config" / "llamaperf" / "history").write_text("postgresql://", encoding="utf-8")
    commands = Commands(folder / "environments" / "1.1.0" / "bin")
    commands.set(statuses)
    (folder / "environments" / "1.1.0" / "complete").touch()
    text = (CI / "slurm" / "nightly.sh").read_text(encoding="utf-8").replace("=/shared/llamaperf ", f"={folder} ")
    environment = {**os.environ, "HOME": str(folder)}
    done = subprocess.run(
        ["bash", "-c", text, "nightly.sh", day], capture_output=True, text=True, check=False, env=environment
    )
    return done, commands.called if (commands.folder / "calls").exists() else []


def test_a_night_of_which_nothing_could_run_leaves_the_past_alone(tmp_path: Path) -> None:
    done, called = night(tmp_path, {"run": 2})

    assert (done.returncode, called) == (2, ["plan", "run"])


def test_a_night_that_was_cut_off_is_not_planned_again(tmp_path: Path) -> None:
    (tmp_path / "runs" / "2026-11-22").mkdir(parents=True)
    (tmp_path / "runs" / "2026-11-22" / NAME).touch()

    assert "plan" not in night(tmp_path, {})[1]


def test_two_gates_do_not_run_at_once(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with (tmp_path / "runs" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done, called = night(tmp_path, {})

    assert (done.returncode, done.stderr, called) == (2, "another gate is running: squeue --me\n", [])


def test_a_night_is_a_day(tmp_path: Path) -> None:
    done, called = night(tmp_path, {}, day="../other")

    assert (done.returncode, done.stderr, called) == (2, "../other is no day: write 2026-11-22\n", [])


@STATUSES
def test_the_merge_on_kubernetes_ends_as_the_gate_and_then_as_the_comparison(
    statuses: dict[str, int], expected: int, tmp_path: Path
) -> None:
    commands = Commands(tmp_path / "bin")
    commands.set({"merge" if name == "gate" else name: code for name, code in statuses.items()})
    [container] = containers(documents(KUBERNETES / "merge.yaml")[0])
    path = f"{commands.folder}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "RUN": "out", "LAST_RELEASE": "1.0.0"}

    done = subprocess.run([*container["command"], *container["args"]], check=False, env=environment)

    assert done.returncode == expected
    assert commands.called == ["merge", "compare", "history", "report"]


# --- Kubernetes: what is run


def planned(folder: Path, *shards: Shard, **changes: Any) -> Campaign:
    """A run below `folder`, which is planned for GPUs."""
    return campaign(
        folder / "20261122-100000", *shards, **{"gpu": "h200", "engine": "tensorrt-llm", "gate": True, **changes}
    )


def jobs_of(run: Campaign) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(KUBERNETES / "jobs.py"), str(run.path), str(KUBERNETES / "shard.yaml")]
    environment = {**os.environ, "IMAGE": "registry.example/llamaperf:1.1.0"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_a_shard_becomes_a_job_that_kubernetes_knows(tmp_path: Path) -> None:
    run = planned(
        tmp_path, shard("h200/fast", devices=2, kind=PERFORMANCE, minutes=100), shard("h200/right", devices=2)
    )

    made = jobs_of(run)

    assert made.returncode == 0, made.stderr
    [wave] = map(json.loads, made.stdout.splitlines())
    fast, right = wave["items"]
    for job in (fast, right):
        for version in VERSIONS:
            kubernetes_validate.validate(job, version, strict=True)
        [container] = containers(job)
        assert container["image"] == "registry.example/llamaperf:1.1.0"
        assert container["workingDir"] == run.manifest.about.directory
        assert {"name": "LLAMAPERF_RUN", "value": run.manifest.id} in container["env"]
        assert {"name": "HF_HUB_OFFLINE", "value": "1"} in container["env"]
        assert job["metadata"]["labels"] == {"llamaperf/run": run.path.name, "llamaperf/part": "shard"}
        # Without a second process in the same pod, and with memory for NCCL.
        assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
        assert [each["mountPath"] for each in container["volumeMounts"]] == ["/data", "/dev/shm"]
    command = containers(fast)[0]["command"]
    assert "--llamaperf-shard=h200/fast" in command
    assert f"--results={run.path}/shards/0001-h200-fast" in command
    # What measures has its node for itself; what does not has what it needs.
    assert [containers(job)[0]["resources"]["limits"]["nvidia.com/gpu"] for job in (fast, right)] == [8, 2]
    assert [job["spec"]["template"]["spec"]["activeDeadlineSeconds"] for job in (fast, right)] == [18_000, 3_600]


def test_a_job_is_complete_once_its_shard_has_results(tmp_path: Path) -> None:
    [wave] = map(json.loads, jobs_of(planned(tmp_path, shard("h200/a"))).stdout.splitlines())
    bash, option, script, name, *_ = containers(wave["items"][0])[0]["command"]

    def ends_with(status: int) -> int:
        return subprocess.run([bash, option, script, name, "sh", "-c", f"exit {status}"], check=False).returncode

    assert {status: ends_with(status) for status in (0, 1, 2, 3, 4, 5, 137)} == {
        0: 0,
        1: 0,
        2: 2,
        3: 3,
        4: 4,
        5: 0,
        137: 137,
    }


def test_shards_wait_for_what_they_need_and_are_not_run_twice(tmp_path: Path) -> None:
    run = planned(tmp_path, shard("c", after=("b",)), shard("a"), shard("b", after=("a",)), shard("d"), shard("e"))
    leave_results(run, run.manifest.shards[4])

    made = jobs_of(run)

    waves = [json.loads(line)["items"] for line in made.stdout.splitlines()]
    assert [[job["metadata"]["annotations"]["llamaperf/shard"] for job in wave] for wave in waves] == [
        ["a", "d"],
        ["b"],
        ["c"],
    ]


def test_what_could_not_be_merged_is_not_started(tmp_path: Path) -> None:
    made = jobs_of(planned(tmp_path, shard("a"), versions={"tensorrt_llm": "9.9"}))

    assert (made.returncode, made.stdout) == (1, "")
    assert made.stderr.startswith("Error: ")
    assert "was planned with other versions installed" in made.stderr


def test_a_shard_over_several_nodes_is_refused(tmp_path: Path) -> None:
    made = jobs_of(planned(tmp_path, shard("h200/huge", devices=16)))

    assert made.returncode == 1
    assert made.stderr == "h200/huge: needs 16 GPUs and a pod has 8; run it by `llamaperf run --on slurm`\n"


KUBECTL = r"""#!{python}
import json, sys
from pathlib import Path

folder, words = Path({folder!r}), sys.argv[1:]
with (folder / "calls").open("a") as calls:
    print(*words, file=calls)
jobs = folder / "jobs.json"
known = json.loads(jobs.read_text()) if jobs.exists() else {{}}


def chosen():
    asked = words[words.index("--selector") + 1].split(",")

    def fits(labels):
        return {{*asked}} <= {{*labels, *(f"{{key}}={{value}}" for key, value in labels.items())}}

    return {{name: job for name, job in known.items() if fits(job["metadata"]["labels"])}}


match words:
    case ["create", *_]:
        import yaml

        made = yaml.safe_load(sys.stdin.read())
        for job in made.get("items", [made]):
            # The first time it is looked at a Job runs, then it is about to end, then it has ended.
            name = f"{{job['metadata']['generateName']}}{{len(known)}}"
            known[name] = job | {{"looks": 0}}
            print(f"job.batch/{{name}}")
    case ["get", "jobs", *_] if "name" in words:
        print(*(f"job.batch/{{name}}" for name in chosen()), sep="\n", end="\n" if chosen() else "")
    case ["get", "jobs", *_]:
        if (folder / "away").exists():
            sys.exit("The connection to the server was refused")
        items = []
        for name, job in chosen().items():
            job["looks"] += 1
            kind = "Failed" if "broken" in json.dumps(job) else "Complete"
            ended = [{{"type": type, "status": "True"}} for type in ("SuccessCriteriaMet", kind)][: job["looks"] - 1]
            items.append({{"status": {{"conditions": ended}} if ended else {{"active": 1}}}})
        print(json.dumps({{"items": items}}))
    case ["logs", name, "--container", "jobs"]:
        print((folder / "waves").read_text(), end="")
    case ["logs", *_]:
        print("what it said")
    case ["wait", *_] if (folder / "refused").exists():
        sys.exit("error: timed out waiting for the condition")
    case ["wait", *_]:
        pass
    case ["get", "pods", *_]:
        print((folder / "status").read_text(), end="")
    case ["delete", "jobs", *_]:
        for name in chosen():
            del known[name]
    case _:
        sys.exit(f"no such command: {{words}}")
beside = jobs.with_name("jobs.new")
beside.write_text(json.dumps(known))
beside.replace(jobs)
"""


@dataclass(frozen=True)
class Cluster:
    """A `kubectl` that pretends, in a folder that comes first on the PATH; `sleep` does not wait there."""

    folder: Path

    def gate(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PATH": f"{self.folder}:{os.environ['PATH']}"}
        command = ["bash", str(KUBERNETES / "gate.sh"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)

    def calls(self, verb: str) -> list[str]:
        lines = (self.folder / "calls").read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line.startswith(verb)]

    @property
    def jobs(self) -> dict[str, Any]:
        known: dict[str, Any] = json.loads((self.folder / "jobs.json").read_text(encoding="utf-8"))
        return known


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    if not shutil.which("jq"):
        pytest.skip("jq is not installed: apt-get install jq")
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {
        "kubectl": KUBECTL.format(python=sys.executable, folder=str(folder)),
        "sleep": "#!/bin/sh\n",
    }.items():
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    (folder / "waves").write_text("", encoding="utf-8")
    (folder / "status").write_text("0", encoding="utf-8")
    return Cluster(folder)


def wave(*names: str) -> str:
    def made(name: str) -> dict[str, Any]:
        labels = {"llamaperf/run": "night", "llamaperf/part": "shard"}
        return {"metadata": {"generateName": f"{name}-", "labels": labels}}

    return json.dumps({"kind": "List", "items": [made(name) for name in names]}) + "\n"


@pytest.mark.parametrize("status", [0, 1, 2, 3])
def test_the_gate_ends_as_the_merge_did_and_leaves_no_job(cluster: Cluster, status: int) -> None:
    (cluster.folder / "waves").write_text(wave("a", "broken") + wave("c"), encoding="utf-8")
    (cluster.folder / "status").write_text(str(status), encoding="utf-8")

    done = cluster.gate("night")

    assert done.returncode == status, done.stderr
    assert cluster.jobs == {}
    calls = (cluster.folder / "calls").read_text(encoding="utf-8").splitlines()
    steps = [line.split()[0] for line in calls if not line.startswith(("get", "wait"))]
    # The plan, two logs of it, two waves, no shard left, the merge and its log, nothing left.
    assert steps == ["create", "logs", "logs", "create", "create", "delete", "create", "logs", "delete"]
    # A wave begins when all Jobs of the one before have ended, for better or worse.
    first, second = [number for number, line in enumerate(calls) if line == "create --filename -"]
    assert sum(line.startswith("get jobs") for line in calls[first:second]) == 3


def test_a_run_whose_shards_have_all_results_is_merged(cluster: Cluster) -> None:
    done = cluster.gate("night")

    assert done.returncode == 0, done.stderr
    assert len(cluster.calls("create")) == 2
    assert "what it said" in done.stdout


def test_without_a_plan_nothing_is_started(cluster: Cluster) -> None:
    (cluster.folder / "waves").write_text("Error: out/manifest.json: is of another run\n", encoding="utf-8")
    (cluster.folder / "refused").touch()

    done = cluster.gate("night")

    assert done.returncode == 5
    assert "no plan: Error: out/manifest.json: is of another run" in done.stderr
    assert len(cluster.calls("create")) == 1
    assert cluster.jobs == {}


def test_no_job_keeps_a_gpu_when_kubernetes_is_away_for_good(cluster: Cluster) -> None:
    (cluster.folder / "away").touch()

    done = cluster.gate("night")

    assert done.returncode == 1
    assert cluster.jobs == {}


def test_no_job_keeps_a_gpu_when_the_gate_is_ended(cluster: Cluster) -> None:
    (cluster.folder / "away").touch()
    (cluster.folder / "sleep").write_text("#!/bin/sh\nexec /bin/sleep 1\n", encoding="utf-8")
    environment = {**os.environ, "PATH": f"{cluster.folder}:{os.environ['PATH']}"}
    gate = subprocess.Popen(["bash", str(KUBERNETES / "gate.sh"), "night"], env=environment, stderr=subprocess.DEVNULL)
    while not (cluster.folder / "jobs.json").exists() or not cluster.jobs:
        assert gate.poll() is None
        time.sleep(0.05)

    gate.terminate()

    assert gate.wait(timeout=60) != 0
    assert cluster.jobs == {}


def test_a_second_gate_is_refused_and_leaves_the_first_alone(cluster: Cluster) -> None:
    other = {"other-0": {"metadata": {"labels": {"llamaperf/run": "other"}}, "looks": 0}}
    (cluster.folder / "jobs.json").write_text(json.dumps(other), encoding="utf-8")

    done = cluster.gate("night")

    assert (done.returncode, done.stderr) == (2, "another gate is running: kubectl get jobs -l llamaperf/run\n")
    assert cluster.jobs == other


@pytest.mark.parametrize("name", ["a|b", "../etc", "UP", "x" * 41])
def test_a_run_has_a_name_that_labels_and_folders_can_have(cluster: Cluster, name: str) -> None:
    done = cluster.gate(name)

    assert (done.returncode, done.stderr) == (2, f"{name} is no name of a run\n")
    assert not (cluster.folder / "calls").exists()
