"""Runs the commands of the documents in a copy of the folders that they name, and checks those that it cannot run.

Slow tests run the long commands with fewer steps. `NOT_RUN` says why a command of the project is not run. A command may
be a name without arguments, such as `treeadv show`; then only the name is checked."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

import actors.cli
from tests.command_lines import TOOLS, WORDS, parser_of
from tests.documented import FOREIGN, ROOT, Command, commands
from tests.running import recipe

FOUND = commands()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RUN = "runs/try"
PLACEHOLDERS = {
    "RUN": RUN, "N": "1", "generator=N": "generator=1", "F": "page.html", "DIR": "folder", "FILE": "docs/tree.jsonl",
    "FILE_OR_FOLDER": "docs/tree.jsonl", "RECIPE": "tiny.yaml", "RECIPE.yaml": "tiny.yaml", "MODEL": "tiny",
    "STUDY.yaml": "docs/results/claims.yaml", "DATA": "problems.jsonl", "section.key=value": "run.seed=1",
}  # fmt: skip
READERS = {"show", "audit", "report", "runs", "compare", "watch", "reproduce", "init"}
OWN_TEST = {"your-task.md"}  # pages whose blocks another test runs in their order
# The words that make a long command short: a tiny model, one process, few steps. `train` also gets --local and `TRAIN`.
TRAIN = ("generator.count=1", "run.root=shortened", "sampling.max_tokens=8")
SHORTER = {
    r"train --resume RUN": ("run.steps=10",),
    r"train .*--config .*": ("model.path=tiny", "run.steps=1", "learner.forests_per_step=2", "sampling.leaves=2"),
    r"eval --model .*": ("sampling.max_tokens=8",),
    r"plan deploy/recipes/laptop.yaml": (),
    r"bench verifier .*": ("--answers", "100"),
    r"bench queue .+": ("--forests", "64"),
    r"bench learner .+":
        ("--model", "tiny", "--rounds", "1", "--leaves", "4", "--step", "4", "--length", "16", "--sharing", "0.5"),
    r"bench ragged .+": ("--model", "tiny", "--answers", "8", "--mean", "4", "--rounds", "1"),
    r"bench context.*": ("--model", "tiny", "--layers", "1", "--prompt", "8", "--answers", "4"),
    r"bench rollout --saturated 32 --forests.*": ("--model", "tiny", "--saturated", "8", "--chunks", "1"),
}  # fmt: skip
# Why a command of the project is not run here, by a pattern of the command.
NOT_RUN = {
    r"treeadv train --resume s3://.*": "needs a bucket; tests/test_storage.py resumes a run on a server of S3",
    r"treeadv generate --model .*": "takes minutes; the test of the picture of docs/tree.md runs it",
    r"treeadv scale .*": "needs a running run; tests/deploy/test_autoscaler.py scales one",
    r"treeadv view .*": "serves until Ctrl-C; tests/view starts the server and reads its pages",
    r"treeadv reproduce RUN --batch .*": "needs a step that is not finite; tests/learning/test_reproduce.py makes one",
    r"treeadv study run .*": "takes hours; tests/study runs a small study and resumes it",
    r"treeadv study report .*": "needs the cells of a study that took hours; tests/study reports on a small study",
    r"treeadv plan deploy/recipes/qwen.*": "tests/deploy/test_documents.py runs it and compares its output",
    r"treeadv bench learning .*": "takes 30 minutes; tests/local and tests/test_pipeline.py train with short recipes",
    r"treeadv bench (driver.*|overlap.*|queue|learner)": "takes minutes as it stands; tests/test_bench_*.py run it",
    r"treeadv bench weights.*": "takes minutes with its defaults; tests/learning/test_benchmarks.py runs it",
    r"python -m benchmarks\.(agreement|trl_study|cipher|study_forests|forks|simulation\.check)\b.*":
        "reads or makes a study that took hours; its results are in docs/results",
    r"python -m benchmarks\.(trl_speed|profile\b.*)":
        "trains SmolLM2 for minutes; tests/learning/test_trl_speed.py and tests/test_profile.py run it on a tiny model",
    r"python -m benchmarks\.bias": "takes minutes; tests/learning/test_bias.py runs a small table",
    r"python -m benchmarks\.gpu": "needs a GPU",
    r"python -m actors\.driver\.drain": "ends its pod; tests/deploy/test_drain.py drains a node of Ray",
    r"python -m monitoring\.(dashboards|pictures .*)": "writes files of the repository, which a test compares",
    r"python -m treeadv\.local\.warmup.*": "trains a model for minutes; tests/study warms a tiny model up",
}  # fmt: skip


def of(*programs: str) -> list[Command]:
    return [c for c in FOUND if c.program in programs]


def filled(words: Sequence[str]) -> list[str]:
    """Return the words with values for their placeholders, and with all words in square brackets."""
    bare = [word.strip("[]").replace("...", "") for word in words]
    return [PLACEHOLDERS.get(word, re.sub(r"^runs/(laptop|NAME)\S*$", RUN, word)) for word in bare if word]


def runs_here(command: Command) -> bool:
    """Return whether a command is cheap: it reads a finished run or a recipe, and it ends."""
    words = command.words
    if command.page.name in OWN_TEST or "--batch" in words:
        return False
    if words[0] == "plan":
        return words[1:2] in (("RECIPE",), ("RECIPE.yaml",))
    if words[0] in ("view", "train"):
        return "--bundle" in " ".join(words) or "--dry-run" in words
    return words[0] in READERS and (len(words) > 1 or words[0] == "runs")


@pytest.fixture(scope="module")
def copy(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the documents, the recipes, a finished run of nine steps and a file of forests."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("docs", "deploy"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / "tiny").symlink_to(tiny_model)
    changes = {"run__root": str(folder / "runs"), "run__name": "try", "run__steps": 9, "learner__forests_per_step": 5}
    recipe(folder, tiny_model, **changes).rename(folder / "tiny.yaml")
    config = yaml.safe_load((folder / "tiny.yaml").read_text())
    config["sampling"]["leaves"], config["generator"]["count"] = 2, 1
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    assert actors.cli.main(["train", "--local", "--config", str(folder / "tiny.yaml")]) == 0
    lines = [json.dumps({"problem": f"{n} + 1 =", "answer": str(n + 1)}) for n in range(4)]
    (folder / "problems.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "build").mkdir()
    forests = ["--out", str(folder / "build" / "tree.arrow"), "sampling.leaves=4", "sampling.max_tokens=8"]
    data = ["--data", str(folder / "docs" / "tree.jsonl")]
    assert actors.cli.main(["generate", "--model", str(tiny_model), *data, *forests]) == 0
    return folder


@pytest.mark.parametrize("command", of("treeadv"), ids=str)
def test_documented_command_is_understood(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    name, *words = filled(command.words)
    assert name in WORDS
    if name == "bench":
        assert words[0] in actors.cli.BENCHMARKS
        parser_of(f"bench {words[0]}", monkeypatch).parse_args(words[1:])
    elif words:
        WORDS[""].parse_args([name, *words])


@pytest.mark.parametrize("command", [c for c in of("treeadv") if runs_here(c)], ids=str)
def test_cheap_command_succeeds(command: Command, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    words = filled(command.words)
    if "--bundle" in words:  # the page removes the folder first, or another command has written into it
        shutil.rmtree(words[words.index("--bundle") + 1], ignore_errors=True)
    assert actors.cli.main(words) == 0


def shorter(command: Command) -> tuple[str, ...] | None:
    """Return the words that make a long command of `treeadv` short; None if the command is not run as a long one."""
    text = " ".join(command.words)
    if command.program != "treeadv" or runs_here(command) or command.page.name in OWN_TEST or unrun_reasons(command):
        return None
    words = next((words for pattern, words in SHORTER.items() if re.fullmatch(pattern, text)), None)
    return words if words is None or command.words[0] != "train" else (*TRAIN, *words)


def unrun_reasons(command: Command) -> list[str]:
    text = f"{command.program} {' '.join(command.words)}"
    return [reason for pattern, reason in NOT_RUN.items() if re.fullmatch(pattern, text)]


def is_name(command: Command) -> bool:
    """Return whether a command has no arguments. Options without their values are a name too: `train --local`."""
    return all(word.startswith("-") for word in command.words[1:])


def test_each_command_is_run_or_has_one_reason() -> None:
    own = [c for c in of("treeadv", "python") if c.page.name not in OWN_TEST and not runs_here(c)]
    told = {c.text: len(unrun_reasons(c)) + (shorter(c) is not None) for c in own}
    assert {text for text, n in told.items() if n > 1} == set()
    assert {c.text for c in own if not told[c.text] and not is_name(c)} == set()


def test_each_reason_is_that_of_a_command() -> None:
    texts = [f"{c.program} {' '.join(c.words)}" for c in FOUND]
    assert [pattern for pattern in NOT_RUN if not any(re.fullmatch(pattern, text) for text in texts)] == []
    named = re.findall(r"tests/[\w/]+(?:\.py)?", " ".join(NOT_RUN.values()))
    assert [path for path in named if not (ROOT / path).exists() and not list(ROOT.glob(f"{path}*"))] == []


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in FOUND if shorter(c) is not None], ids=str)
def test_long_command_succeeds_with_fewer_steps(command: Command, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    shutil.rmtree("shortened", ignore_errors=True)
    words, added = filled(command.words), shorter(command) or ()
    if words[0] == "train" and "--local" not in words:  # a parser takes overrides at one place, so it comes first
        words.insert(1, "--local")
    if "--resume" in words:  # other tests read the run as it is
        shutil.copytree(RUN, "shortened/try")
        words[words.index(RUN)] = "shortened/try"
        added = tuple(word for word in added if not word.startswith("run.root="))
    assert actors.cli.main([*words, *added]) == 0


def test_many_commands_are_found_and_run() -> None:
    assert len(FOUND) > 120 and sum(runs_here(c) for c in of("treeadv")) > 15
    assert {c.program for c in FOUND} >= {"treeadv", "make", "pytest", "python", "pip", ".ci/run", "helm"}


@pytest.mark.parametrize("command", of("make"), ids=str)
def test_documented_target_exists(command: Command) -> None:
    out = subprocess.run(["make", "-n", *command.words], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert out.returncode == 0, out.stderr


@pytest.mark.parametrize("command", of("python"), ids=str)
def test_documented_module_understands_its_options(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    dash, module, *words = filled(command.words)
    assert dash == "-m" and module in TOOLS
    if words:
        parser_of(module, monkeypatch).parse_args(words)


@pytest.mark.parametrize("command", of("pytest"), ids=str)
def test_documented_tests_exist(command: Command) -> None:
    paths = [ROOT / word for word in command.words if word.startswith("tests")]
    assert paths and all(path.exists() for path in paths)
    for option, value in zip(command.words, command.words[1:], strict=False):
        if option == "-m":
            names = {marker.partition(":")[0] for marker in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
            assert set(value.split()) - {"not", "and", "or"} <= names
        if option == "-k":
            files = [f for path in paths for f in (path.rglob("test_*.py") if path.is_dir() else [path])]
            assert any(re.search(rf"def test_\w*{value}", f.read_text()) or value in f.name for f in files)


@pytest.mark.slow
@pytest.mark.parametrize("command", of("pytest"), ids=str)
def test_documented_tests_are_collected(command: Command) -> None:
    line = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *command.words]
    out = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert out.returncode == 0, out.stdout[-2000:]  # 5 if no test is selected


@pytest.mark.parametrize("command", of("pip"), ids=str)
def test_documented_extra_exists(command: Command) -> None:
    install, package = command.words
    extras = re.fullmatch(r"[\w.-]+(?:\[(\w+)\])?", package)
    assert install == "install" and extras
    assert extras[1] is None or extras[1] in PROJECT["project"]["optional-dependencies"]


@pytest.mark.parametrize("command", of(".ci/run", *FOREIGN), ids=str)
def test_files_of_a_foreign_command_exist(command: Command) -> None:
    if command.program == ".ci/run":
        assert os.access(ROOT / command.program, os.X_OK)
    values = [word.partition("=")[2] or word for word in command.words]
    folders = {f.name for f in ROOT.iterdir() if f.is_dir()} - {"build"}
    paths = [value for value in values if "/" in value and value.partition("/")[0] in folders]
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_picture_of_a_forest_is_what_its_commands_print(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last digits of probabilities depend on the processor; everything else of the picture is equal."""
    made = [c for c in FOUND if c.page.name == "tree.md" and c.words[0] in ("generate", "show")]
    generate, show = (c for c in made if "--out" in c.words or "--svg" in c.words)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    (tmp_path / "build").mkdir()
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    for command in (generate, show):
        assert actors.cli.main(list(command.words)) == 0
    number = re.compile(r"\d+\.\d+")
    drawn, kept = (f.read_text() for f in (tmp_path / "docs" / "tree.svg", ROOT / "docs" / "tree.svg"))
    assert number.sub("x", drawn) == number.sub("x", kept)
    values = [[float(x) for x in number.findall(text)] for text in (drawn, kept)]
    assert values[0] == pytest.approx(values[1], abs=0.011)
