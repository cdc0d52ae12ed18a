"""Tests evaluation in one process: it does not change the training, it survives kills, and it can end a run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.local.test_training import command, local_recipe, train, weights
from treeadv.cli.main import main
from treeadv.errors import BadInput
from treeadv.evaluation.folder import EvalFolder
from treeadv.storage.run_folder import RunFolder


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held-out")
    for name, count in (("one", 4), ("two", 6)):
        rows = ({"problem": f"{name} {i}", "answer": str(i)} for i in range(count))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def options(held_out: Path, *more: str) -> tuple[str, ...]:
    return ("eval.every=2", f"eval.data={held_out}", "eval.samples=3", "run.keep_checkpoints=1", *more)


def evaluations(run: Path) -> list[dict]:
    return [{k: v for k, v in r.items() if k != "seconds"} for r in RunFolder(run).evaluations()]


@pytest.fixture(scope="module")
def evaluated(tiny_model: Path, held_out: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp_path = tmp_path_factory.mktemp("evaluated")
    assert train("--config", local_recipe(tmp_path, tiny_model, "whole", *options(held_out))) == 0
    return tmp_path / "whole"


def test_run_records_its_evaluations_and_keeps_the_best(evaluated: Path) -> None:
    found = evaluations(evaluated)
    assert [(r["step"], r["version"]) for r in found] == [(0, 0), (2, 2), (4, 4), (5, 5)]
    assert [(n, s["problems"], s["samples"]) for n, s in found[0]["sets"].items()] == [("one", 4, 3), ("two", 6, 3)]
    first = max(found, key=lambda r: r["avg"]["value"])
    kept = json.loads((evaluated / "best" / "evaluation.json").read_text()) if first["step"] else None
    assert (kept is None) or kept["step"] == first["step"]
    assert [p.name for p in (evaluated / "checkpoints").iterdir()] == ["step-5"]
    assert "Held-out problems" in (evaluated / "report.html").read_text()
    summary = json.loads((evaluated / "summary.json").read_text())
    assert summary["evaluation_best"] == {"step": first["step"], "value": first["avg"]["value"]}


def test_evaluation_changes_neither_weights_nor_counts(evaluated: Path, tiny_model: Path, tmp_path: Path) -> None:
    assert train("--config", local_recipe(tmp_path, tiny_model, "plain")) == 0
    assert weights(tmp_path / "plain") == weights(evaluated)
    drawn = [RunFolder(run).records()[-1]["tokens_generated"] for run in (evaluated, tmp_path / "plain")]
    assert drawn[0] == drawn[1]


@pytest.mark.slow
def test_killed_run_goes_on_to_equal_evaluations(
    evaluated: Path, tiny_model: Path, held_out: Path, tmp_path: Path
) -> None:
    process = subprocess.Popen(command("--config", local_recipe(tmp_path, tiny_model, "killed", *options(held_out))))
    records = tmp_path / "killed" / "evaluations.jsonl"
    while not (records.is_file() and len(records.read_text().splitlines()) >= 2):
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert train("--resume", tmp_path / "killed") == 0
    assert evaluations(tmp_path / "killed") == evaluations(evaluated)
    assert weights(tmp_path / "killed") == weights(evaluated)


@pytest.mark.slow
def test_evaluation_of_a_stale_run_is_of_its_newest_weights(tiny_model: Path, held_out: Path, tmp_path: Path) -> None:
    stale = options(held_out, "local.staleness=2")
    assert train("--config", local_recipe(tmp_path, tiny_model, "stale", *stale)) == 0
    last = evaluations(tmp_path / "stale")[-1]
    checkpoint = tmp_path / "stale" / "checkpoints" / "step-5"
    out = tmp_path / "out"
    arguments = ["--model", checkpoint, "--data", held_out, "--samples", 3, "--out", out]
    recipe = tmp_path / "stale" / "config.yaml"
    assert main([str(a) for a in ["eval", *arguments, "--config", recipe]]) == 0
    assert json.loads((out / "results.json").read_text())["sets"] == last["sets"]


def test_run_ends_early_at_its_target(tiny_model: Path, held_out: Path, tmp_path: Path, capsys) -> None:
    assert train("--config", local_recipe(tmp_path, tiny_model, "early", *options(held_out, "run.patience=1"))) == 0
    found = evaluations(tmp_path / "early")
    values = [r["avg"]["value"] for r in found]
    assert len(values) > 1 and values[-1] <= max(values[:-1])
    assert "Ended early: run.patience=1" in " ".join(capsys.readouterr().out.split())
    assert train("--resume", tmp_path / "early") == 0, "a run that has ended stays ended"
    assert evaluations(tmp_path / "early") == found


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eval.data=nowhere.jsonl", "nowhere.jsonl: no such file or folder of problems"),
        ("eval.data=''", "eval.every=2 needs eval.data"),
        ("eval.max_tokens=4000", "prompts cannot be used"),
    ],
)
def test_unusable_evaluation_leaves_no_run_folder(
    override: str, message: str, tiny_model: Path, held_out: Path, tmp_path: Path, capsys
) -> None:
    recipe = local_recipe(tmp_path, tiny_model, "bad", *options(held_out))
    assert train("--config", recipe, override) == 2
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1
    assert not (tmp_path / "bad").exists()


def test_other_evaluation_is_refused_at_a_resume(evaluated: Path, capsys) -> None:
    assert train("--resume", evaluated, "eval.samples=4") == 2
    assert "eval: the run" in capsys.readouterr().err


# ---- treeadv eval --------------------------------------------------------------------------------
def eval_command(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    small = ["sampling.max_tokens=12", "generator.threads=1", "task.verifier=tests.parity:has_even_sum"]
    return ["eval", "--model", str(model), "--data", str(data), "--samples", "3", "--out", str(out), *small, *more]


def lines(out: Path) -> dict[str, list[dict]]:
    found = {f.stem: [json.loads(line) for line in f.read_text().splitlines()] for f in (out / "answers").iterdir()}
    return {name: sorted(rows, key=lambda r: r["place"]) for name, rows in found.items()}


@pytest.mark.slow
def test_killed_eval_goes_on_to_the_same_answers(tiny_model: Path, held_out: Path, tmp_path: Path, capsys) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(eval_command(tiny_model, held_out, whole)) == 0
    process = subprocess.Popen([sys.executable, "-m", "treeadv.cli.main", *eval_command(tiny_model, held_out, cut)])
    while not any(f.read_text().count("\n") for f in (cut / "answers").glob("*.jsonl")):
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    file = next((cut / "answers").glob("*.jsonl"))
    file.write_text(file.read_text() + '{"place": 3, "answ')  # an incomplete line, as a kill leaves it
    kept = {name: {row["place"] for row in rows} for name, rows in lines_before(cut).items()}
    assert main(eval_command(tiny_model, held_out, cut)) == 0
    assert any(kept.values())
    assert lines(cut) == lines(whole)
    results = [json.loads((out / "results.json").read_text()) for out in (whole, cut)]
    assert results[0] == results[1]
    assert results[0]["settings"]["chat_template"] is None and results[0]["settings"]["task"]["prompt"] == "{problem}"
    row = lines(whole)["one"][2]
    assert row["prompt"] == "one 2" and row["prompt_tokens"] == 5 and len(row["answers"]) == 3
    assert (whole / "results.md").read_text().startswith("| set | problems | avg@3 | pass@3 |")
    capsys.readouterr()
    assert main([*eval_command(tiny_model, held_out, whole), "--json"]) == 0, "a finished one is shown again"
    assert json.loads(capsys.readouterr().out)["sets"] == results[0]["sets"]


def lines_before(out: Path) -> dict[str, list[dict]]:
    """Return the complete lines of an evaluation that was killed."""
    files = (out / "answers").iterdir()
    return {f.stem: [json.loads(x) for x in f.read_text().splitlines(True) if x.endswith("\n")] for f in files}


def test_eval_with_other_settings_is_refused(tiny_model: Path, held_out: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert main([*eval_command(tiny_model, held_out / "one.jsonl", out), "--limit", "1"]) == 0
    capsys.readouterr()
    for more, named in (
        (["sampling.temperature=0.5", "--limit", "1"], "sampling.temperature (0.7, now 0.5)"),
        (["--limit", "2"], "sets.one.problems (1, now 2)"),
    ):
        assert main([*eval_command(tiny_model, held_out / "one.jsonl", out), *more]) == 2
        shown = capsys.readouterr().err
        assert named in shown and "choose another --out" in shown and shown.count("\n") == 1


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("settings.json", "", "is not JSON"),
        ("settings.json", "[1]", "a JSON object is needed, found list"),
        ("settings.json", '{"a": ' + "9" * 5000 + "}", "an integer has more than 4300 digits"),
        ("answers/one.jsonl", "7\n", "one.jsonl:1: is no finished problem"),
        ("answers/one.jsonl", "{}\n", "one.jsonl:1: is no finished problem (KeyError: 'answers')"),
        ("answers/one.jsonl", '{"place": 0, "answers": []}\n', "one.jsonl:1: its place and the tokens of its answers"),
        ("answers/one.jsonl", '{"place": -1, "answers": [ANSWER]}\n', "one.jsonl:1: its place and the tokens"),
        ("answers/one.jsonl", '{"place": 0, "answers": [ANSWER, 7]}\n', "one.jsonl:1: is no finished problem"),
    ],
)
def test_damaged_file_of_an_evaluation_is_named(tmp_path: Path, file: str, content: str, said: str) -> None:
    folder = EvalFolder(tmp_path / "evaluation", {"a": 1})
    (folder.path / file).write_text(content.replace("ANSWER", '{"verdict": "wrong", "finish": "stop", "tokens": 3}'))
    with pytest.raises(BadInput) as caught:
        EvalFolder(folder.path, {"a": 1}).results("one")
    assert said in str(caught.value) and "restore the" in str(caught.value) and "\n" not in str(caught.value)
