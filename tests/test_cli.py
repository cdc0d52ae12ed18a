"""Tests the commands: their output, the files that they write, and the one-line errors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest

import actors.cli
import treeadv.disk
from tests.report.runs import make_run, record
from tests.strategies import build
from treeadv.cli.main import main
from treeadv.forest import Forest
from treeadv.wire import read_file, write_file

SMALL = [
    "sampling.leaves=4",
    "sampling.max_tokens=12",
    "sampling.tau=0.5",
    "generator.threads=1",
    "task.verifier=exact",
]


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps({"problem": f"{i}+1=", "answer": str(i + 1)}) + "\n" for i in range(3)))
    return path


@pytest.fixture
def forests(tmp_path: Path) -> Path:
    """Write a file of two graded forests that name no model, and return its path."""
    path = tmp_path / "two.arrow"
    made = [
        build([-1, 0, 0, -1], [2, 1, 3, 2], rewards=[1.0, 0.0, 0.0], seed=i, forest_id=f"forest-{i}") for i in range(2)
    ]
    write_file(path, made)
    return path


def run(*argv: object) -> int:
    return main([str(a) for a in argv])


# ---- start ---------------------------------------------------------------------------------------
def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys; from treeadv.cli.main import main\n"
        "heavy = {'torch', 'transformers', 'ray', 'pyarrow', 'pydantic', 'rich'}\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"
    for command in ("generate", "grade", "show", "eval", "audit", "report"):
        assert f"    {command} " in out


@pytest.mark.parametrize("name", actors.cli.BENCHMARKS)
def test_every_benchmark_accepts_json(name: str, capsys) -> None:
    with pytest.raises(SystemExit):
        actors.cli.main(["bench", name, "--json", "--no-such-option"])
    assert f"unknown option --no-such-option (see treeadv bench {name} --help)" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["view", "x"], ["grade", "x.jsonl"], ["audit", "x"], ["report", "x"]])
def test_commands_that_need_no_model_import_no_torch(argv: list[str]) -> None:
    code = (
        f"import sys; from treeadv.cli.main import main; main({argv!r}); print({{'torch', 'ray'}} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "set()"


# ---- generate, eval ------------------------------------------------------------------------------
def test_generate_with_one_seed_gives_equal_graded_forests(
    tiny_model: Path, problems: Path, tmp_path: Path, capsys
) -> None:
    for name in ("a", "b"):
        assert (
            run("generate", "--model", tiny_model, "--data", problems, "--out", tmp_path / f"{name}.arrow", *SMALL) == 0
        )
    assert (
        run("generate", "--model", tiny_model, "--data", problems, "--out", tmp_path / "c.arrow", *SMALL, "run.seed=1")
        == 0
    )
    (a, model), (b, _), (c, _) = (read_file(tmp_path / f"{name}.arrow") for name in "abc")
    assert model == str(tiny_model)
    assert [(f.leaves, f.graded, f.gold) for f in a] == [(4, True, str(i + 1)) for i in range(3)]
    assert [f.token.tolist() for f in a] == [f.token.tolist() for f in b]
    assert [f.token.tolist() for f in a] != [f.token.tolist() for f in c]
    assert f"{tmp_path / 'a.arrow'}: 3 forests, 12 leaves" in capsys.readouterr().out


def test_limit_does_not_change_the_remaining_forests(tiny_model: Path, problems: Path, tmp_path: Path) -> None:
    for name, limit in (("one", 1), ("all", 3)):
        out = tmp_path / f"{name}.arrow"
        assert run("generate", "--model", tiny_model, "--data", problems, "--out", out, "--limit", limit, *SMALL) == 0
    (one,), every = read_file(tmp_path / "one.arrow")[0], read_file(tmp_path / "all.arrow")[0]
    assert one.token.tolist() == every[0].token.tolist()


def test_overrides_win_over_the_recipe(tiny_model: Path, problems: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "task: {source: elsewhere.jsonl, prompt: 'Q {problem}', verifier: exact}\n"
        "sampling: {leaves: 3, max_tokens: 5, temperature: 0.5}\n"
    )
    out = tmp_path / "f.arrow"
    args = ["--model", tiny_model, "--data", problems, "--out", out, "--config", recipe]
    assert run("generate", *args, "sampling.leaves=2", "generator.threads=1") == 0
    forest = read_file(out)[0][0]
    assert (forest.leaves, forest.temperature, len(forest.prompt)) == (2, 0.5, len("Q 0+1="))


def test_eval_counts_independent_samples(tiny_model: Path, problems: Path, tmp_path: Path, capsys) -> None:
    args = ["--model", tiny_model, "--data", problems, "--out", tmp_path / "eval", "--samples", 3, "--json"]
    assert run("eval", *args, *SMALL[1:]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result["sets"]) == ["problems"] and result["sets"]["problems"]["problems"] == 3
    assert sum(result["sets"]["problems"]["verdicts"].values()) == 9


# ---- grade ---------------------------------------------------------------------------------------
def test_grade_adds_verdicts_to_the_lines(tmp_path: Path, capsys) -> None:
    path, out = tmp_path / "answers.jsonl", tmp_path / "graded.jsonl"
    rows = [{"problem": "1+1", "answer": "2", "response": r} for r in ("The answer is 2.", "The answer is 3.")]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert run("grade", path, "--verifier", "numeric", "--out", out) == 0
    assert "2 answers" in capsys.readouterr().out
    graded = [json.loads(line) for line in out.read_text().splitlines()]
    assert [g["verdict"] for g in graded] == ["verified", "wrong"]
    assert [g["problem"] for g in graded] == ["1+1", "1+1"]


# ---- show ----------------------------------------------------------------------------------------
def test_show_prints_every_forest_or_the_one_asked_for(forests: Path, capsys) -> None:
    assert run("show", forests) == 0
    shown = capsys.readouterr()
    assert "forest forest-0" in shown.out and "forest forest-1" in shown.out
    assert "tokens are shown as numbers (--model DIR)" in shown.err
    assert run("show", forests, "--index", 1) == 0
    only = capsys.readouterr().out
    assert "forest forest-1" in only and "forest forest-0" not in only


def test_show_draws_text_with_the_model_that_the_file_names(tiny_model: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "named.arrow"
    forest = build([-1, -1], [3, 2])
    spelled = np.array(
        [2 + ord(c) - 32 for c in "oaktw"], np.int32
    )  # the tiny vocabulary has two special tokens and the printable characters
    write_file(path, [replace(forest, token=spelled)], str(tiny_model))
    assert run("show", path) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "oak  ✓" in shown.out and "tw  ✓" in shown.out


def test_show_writes_a_page_and_a_picture(forests: Path, tmp_path: Path, capsys) -> None:
    page, picture = tmp_path / "f.html", tmp_path / "f.svg"
    assert run("show", forests, "--html", page) == 0
    assert run("show", forests, "--index", 0, "--svg", picture) == 0
    assert page.read_text().startswith("<!doctype html>") and page.read_text().count("<article") == 2
    assert picture.read_text().startswith("<svg")
    assert capsys.readouterr().out == ""


def test_show_refuses_a_file_whose_forest_breaks_an_invariant(tmp_path: Path, monkeypatch, capsys) -> None:
    forest = build([-1, -1], [3, 2])
    monkeypatch.setattr(Forest, "check", lambda self: self)  # the file is written without a check of the invariants
    write_file(tmp_path / "bad.arrow", [replace(forest, logprob=-forest.logprob)])
    monkeypatch.undo()
    assert run("show", tmp_path / "bad.arrow") == 2
    assert "log-probability" in capsys.readouterr().err


# ---- audit, report -------------------------------------------------------------------------------
def test_audit_of_a_damaged_run_exits_with_1(tmp_path: Path, capsys) -> None:
    path = make_run(tmp_path, [build([-1, 0, 0], [2, 2, 2])] * 2, [])
    assert run("audit", path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["sound"] is True
    (payload_file,) = (path / "replay" / "payloads").glob("*.arrow")
    data = bytearray(payload_file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    payload_file.write_bytes(data)
    assert run("audit", path) == 1
    assert "FAULT" in capsys.readouterr().out


def test_report_is_in_the_run_folder_and_its_path_is_printed(tmp_path: Path, capsys) -> None:
    path = make_run(tmp_path, [build([-1, 0, 0], [2, 2, 2], rewards=[1.0, 0.0])], [record(1)])
    assert run("report", path) == 0
    assert capsys.readouterr().out == f"{path / 'report.html'}\n"
    assert "Trained in step 1" in (path / "report.html").read_text()


# ---- mistakes ------------------------------------------------------------------------------------
GENERATE = ("generate", "--model", "M", "--data", "problems.jsonl", "--out", "o.arrow")
READS_RUN = (["view"], ["watch"], ["runs"], ["compare", "."])
AWAY = (
    "s3://b/x?region=r is not on this machine; copy it, then give x: "
    """python -c "from pyarrow.fs import copy_files; copy_files('s3://b/x?region=r', 'x')\""""
)
MISTAKES: list[tuple[Sequence[str], str]] = [
    ([], "the following arguments are required: COMMAND (see treeadv --help)"),
    (["shows"], "unknown command shows, did you mean show?"),
    (["show"], "the following arguments are required: PATH (see treeadv show --help)"),
    (["show", "none.arrow"], "none.arrow: no such file"),
    (["show", "problems.jsonl"], "problems.jsonl: not an Arrow file of forests"),
    (["show", "two.arrow", "--index", "2"], "--index 2: two.arrow holds 2 forests, counted from 0"),
    (["show", "two.arrow", "--svg", "x.svg"], "two.arrow holds 2 forests; choose one with --index N"),
    (["show", "two.arrow", "--html", "none/x.html"], "none/x.html: its folder does not exist; make none first"),
    (["show", "two.arrow", "--html", "."], ". is a folder; give a file"),
    (["show", "two.arrow", "--model", "none"], "none/tokenizer.json: no such tokenizer"),
    (["show", "two.arrow", "--preset", "treeadvs"], "learner.preset=treeadvs is unknown, did you mean treeadv"),
    ([*GENERATE, "--model", "none"], "model.path=none: no such folder"),
    ([*GENERATE, "--data", "none.jsonl"], "none.jsonl: no such file of problems"),
    ([*GENERATE, "--data", "bad.jsonl"], "bad.jsonl:2: no answer"),
    ([*GENERATE, "--out", "none/o.arrow"], "none/o.arrow: its folder does not exist"),
    ([*GENERATE, "sampling.tau=-1"], "sampling.tau: Input should be greater"),
    ([*GENERATE, "sampling.trees=9"], "sampling.trees=9 is more than sampling.leaves"),
    ([*GENERATE, "sampling.taus=1"], "did you mean sampling.tau?"),
    ([*GENERATE, "tau"], "override 'tau': write section.key=value"),
    ([*GENERATE, "--config", "no.yaml"], "no.yaml: no such configuration file; recipes of the package"),
    ([*GENERATE, "--config", "latop"], "latop: no such configuration file, did you mean laptop?"),
    ([*GENERATE, "--config", "recipes/laptop.yml"], "no such configuration file, did you mean laptop?"),
    (["runs", "problems.jsonl"], "problems.jsonl is a file; give the folder run.root of the runs"),
    ([*GENERATE, "task.verifier=maths"], "verifier 'maths' is unknown"),
    (
        ["eval", "--model", "M", "--data", "problems.jsonl", "--samples", "0"],
        "argument --samples: '0' is not a positive number",
    ),
    (
        ["eval", "--model", "M", "--data", "problems.jsonl", "--limit", "x"],
        "argument --limit: 'x' is not a positive number",
    ),
    (["grade", "none.jsonl"], "none.jsonl: no such file"),
    (["grade", "problems.jsonl"], "problems.jsonl:1: the line has no text under 'response'"),
    (["grade", "problems.jsonl", "--timeout", "0"], "--timeout 0: a limit in seconds must be a number above 0"),
    (["grade", "problems.jsonl", "--timeout", "nan"], "--timeout nan: a limit in seconds must be a number above 0"),
    (["grade", "problems.jsonl", "--verifier", "maths"], "verifier 'maths' is unknown"),
    (["eval", "--model", "M", "--data", "problems.jsonl", "sampling.trees=2"], "eval draws independent answers"),
    ([*GENERATE, "--config", "latin.yaml"], "latin.yaml is not YAML"),
    ([*GENERATE, "learner.betas=[2, 3]"], "learner.betas.0: Input should be less than 1"),
    ([*GENERATE, "metrics.port=70000"], "metrics.port: Input should be less than or equal to 65535"),
    ([*GENERATE, "run.name=../out"], "run.name: String should match pattern"),
    ([*GENERATE, "--model", "hollow"], "hollow: the folder has no weights"),
    ([*GENERATE, "--model", "nameless"], "nameless/config.json: names no model_type"),
    (["show", "hollow"], "hollow is not a run folder (it has no config.yaml)"),
    (["show", "."], ". is a folder and no run; give a file of forests, such as two.arrow"),
    (["audit", "."], "has no journal under replay/journal"),
    (["report", "."], ". is not a run folder"),
    *[([*argv, "s3://b/x?region=r"], AWAY) for argv in READS_RUN],
    ([*GENERATE, "--data", "s3://b/p.jsonl"], "argument --data: s3://b/p.jsonl is not on this machine"),
    ([*GENERATE, "--out", "gs://b/o.arrow"], "gs://b/o.arrow is not on this machine; give a path of this machine"),
    ([*GENERATE, "--model", "s3://b/m"], "model.path=s3://b/m: a path on this machine is needed"),
    ([*GENERATE, "--config", "twice.yaml"], "twice.yaml is not YAML: the key lr occurs twice"),
    ([*GENERATE, "task.columns={a: b, a: c}"], "the value is not YAML (the key a occurs twice"),
    (["grade", "s3://b/a.jsonl"], "s3://b/a.jsonl is not on this machine"),
    ([*GENERATE, "--model", "m\0"], "model.path='m\\x00': can be no path (embedded null byte)"),
    ([*GENERATE, "--model", "m" * 5000], "...: can be no path (File name too long)"),
    ([*GENERATE, 'task.prompt="{problem}\\ud800"'], "task.prompt: has an unpaired surrogate ('\\ud800')"),
    (["audit", "problems.jsonl"], "problems.jsonl has no journal under replay/journal; give the folder of a run"),
    (["show", "problems.jsonl", "--html", "s3://b/x.html"], "s3://b/x.html is not on this machine; give a path of"),
    (["grade", "."], ".: is a folder; give a file of answers"),
]


@pytest.mark.parametrize(("argv", "message"), MISTAKES, ids=[" ".join(a) or "nothing" for a, _ in MISTAKES])
def test_bad_command_gives_one_line_exit_code_2_and_no_file(
    argv: list[str], message: str, problems: Path, forests: Path, tiny_model: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"problem": "1", "answer": "1"}\n{"problem": "2"}\n')
    (tmp_path / "latin.yaml").write_bytes(b"run: {name: caf\xe9}\n")
    (tmp_path / "twice.yaml").write_text("learner:\n  lr: 1.0e-5\n  lr: 2.0e-5\n")
    for name, settings in (("hollow", '{"model_type": "llama"}'), ("nameless", "{}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(settings)
        (tmp_path / name / "tokenizer.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    try:
        code = main([str(tiny_model) if a == "M" else a for a in argv])
    except SystemExit as e:  # argparse ends the process itself
        code = e.code
    shown = capsys.readouterr()
    assert code == 2
    assert shown.err.startswith("treeadv: error: ") and shown.err.count("\n") == 1 and message in shown.err
    assert shown.out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_full_disk_is_reported_and_the_old_file_stays(forests: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    page = tmp_path / "page.html"
    page.write_text("as before")
    monkeypatch.setattr(treeadv.disk, "uuid4", lambda: UUID(int=0))
    full = tmp_path / f".page.html.{'0' * 12}"
    full.symlink_to("/dev/full")  # every write to the temporary file fails, because no space is left
    assert run("show", forests, "--html", page) == 2
    assert f"{page}: cannot be written (No space left on device)" in capsys.readouterr().err
    assert page.read_text() == "as before"


def test_verifier_that_cannot_be_loaded_is_bad_input(tiny_model: Path, problems: Path, tmp_path: Path, capsys) -> None:
    args = [
        "--model",
        tiny_model,
        "--data",
        problems,
        "--out",
        tmp_path / "o.arrow",
        *SMALL[:-1],
        "task.verifier=nowhere:judge",
    ]
    assert run("generate", *args) == 2
    assert "nowhere" in capsys.readouterr().err
    assert not (tmp_path / "o.arrow").exists()


# ---- suggestions ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian", "--config", "x.yaml"], "did you mean train?"),
        (["evl"], "did you mean eval?"),
        (["train", "--config", "r.yaml", "--steps=5"], "fields are set without dashes: run.steps=5"),
        (["train", "--config", "r.yaml", "--steps", "5"], "fields are set without dashes: run.steps=5"),
        (["train", "--config", "r.yaml", "--max-tokens=9"], "sampling.max_tokens=9"),
        (["train", "--config", "r.yaml", "lr=1e-4"], "unknown key lr, did you mean learner.lr?"),
        (["train", "--config", "r.yaml", "step=4"], "unknown key step, did you mean run.steps?"),
        (["train", "--config", "r.yaml", "run.stps=4"], "did you mean run.steps?"),
        (
            ["train", "--config", "r.yaml", f"run.seed={'1' * 5000}"],
            "the value is not YAML (an integer has more than 4300 digits",
        ),
        (["train", "--config", "long.yaml"], "long.yaml is not YAML: an integer has more than 4300 digits"),
        (
            ["train", "--resume", "runs"],
            "runs is not a run folder (it has no config.yaml); the runs in it, newest first",
        ),
        (["train", "--resume", "r.yaml", "--dry-run"], "--dry-run describes a new run: give --config RECIPE"),
        (
            ["scale", "s3://b/x", "generator=2"],
            "s3://b/x: the driver reads requests from its own disk; give",
        ),
        (["reproduce", "s3://b/x", "--step", "1"], "s3://b/x is not on this machine; copy it, then give x: python -c"),
        (["train", "--config", "r.yaml", "task.source=s3://b/p.jsonl"], "task.source=s3://b/p.jsonl: a path on this"),
        (["train", "--config", "r.yaml", "model.path=s3://b/m"], "model.path=s3://b/m: a path on this machine"),
        (["init", "none", "p.jsonl"], "model.path=none: no such folder"),
    ],
)
def test_wrong_word_gets_a_suggestion_in_one_line(argv: list[str], message: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text("task: {source: p.jsonl}\n")
    (tmp_path / "long.yaml").write_text(f"run: {{seed: {'1' * 5000}}}\n")
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "config.yaml").write_text("task: {source: p.jsonl}\n")
    try:
        code = actors.cli.main(argv)
    except SystemExit as e:
        code = e.code
    shown = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and message in shown[-1] and len(shown[-1]) < 600
    assert len(shown) == 1
