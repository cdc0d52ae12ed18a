"""Tests that problems depend only on (seed, draw) and have the configured mix, and that a faulty task gives an error of
one line."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treeadv.config import TaskConfig
from treeadv.data.problems import Problem
from treeadv.data.tasks import Shuffled, file_problems, problem_source
from treeadv.errors import BadInput
from treeadv.evaluation.answer_file import grade_file

MIX: list[dict[str, Any]] = [{"name": "chain_sum", "weight": 3.0}, {"name": "gcd", "options": {"max_numbers": 3}}]


def gym(**more: Any) -> TaskConfig:
    return TaskConfig.model_validate({"families": MIX, **more})


def read_problems(path: Path, verifier: str = "math", **more: Any) -> list[Problem]:
    return file_problems(path, TaskConfig(source=str(path), verifier=verifier, **more))


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@given(n=st.integers(1, 40), seed=st.integers(-5, 5), epoch=st.integers(0, 3))
def test_every_epoch_of_a_file_is_a_permutation_of_it(n: int, seed: int, epoch: int) -> None:
    problems = [Problem(id=str(i), problem="p", answer="a", verifier="math", meta="") for i in range(n)]
    source = Shuffled(problems, seed)
    assert Counter(source[epoch * n + i].id for i in range(n)) == Counter(p.id for p in problems)


def test_other_epoch_or_seed_gives_another_order() -> None:
    problems = [Problem(id=str(i), problem="p", answer="a", verifier="math", meta="") for i in range(50)]
    orders = {
        tuple(Shuffled(problems, seed)[50 * epoch + i].id for i in range(50)) for seed in (0, 1) for epoch in (0, 1)
    }
    assert len(orders) == 4


@pytest.mark.parametrize("kind", ["file", "gym"])
def test_draw_does_not_depend_on_earlier_draws(kind: str, tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", *({"problem": f"q{i}", "answer": i} for i in range(7)))
    task = gym() if kind == "gym" else TaskConfig(source=str(path))
    forward = [problem_source(task, 3)[i] for i in range(20)]
    source = problem_source(task, 3)
    assert [source[i] for i in reversed(range(20))] == forward[::-1]
    assert [problem_source(task, 4)[i] for i in range(20)] != forward


def test_families_are_the_same_in_another_process() -> None:
    code = (
        "from treeadv.config import TaskConfig; from treeadv.data.tasks import problem_source\n"
        f"print([problem_source(TaskConfig(families={MIX!r}), 5)[i].problem for i in range(12)])"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert other.strip() == repr([problem_source(gym(), 5)[i].problem for i in range(12)])


def test_families_are_mixed_by_weight() -> None:
    source = problem_source(gym(), 0)
    families = Counter(source[i].id.split("-")[0] for i in range(2000))
    assert families["chain_sum"] / 2000 == pytest.approx(0.75, abs=0.04)  # four standard deviations


def test_family_options_apply_to_its_problems() -> None:
    options = {"min_terms": 2, "max_terms": 2, "max_digits": 1}
    task = TaskConfig.model_validate({"families": [{"name": "chain_sum", "options": options}]})
    for i in range(50):
        problem = problem_source(task, 0)[i]
        first, sign, second = problem.problem.split(": ")[1].removesuffix(" =").split()
        assert int(problem.answer) == (int(first) + int(second) if sign == "+" else int(first) - int(second))
        assert problem.meta == ""


def test_reasoning_gym_meta_lets_the_family_score_its_answer() -> None:
    import reasoning_gym

    source = problem_source(gym(verifier="reasoning-gym"), 0)
    for i in range(20):
        meta = json.loads(source[i].meta)
        scorer = reasoning_gym.create_dataset(meta["dataset"], size=1, seed=0)
        assert meta["entry"]["question"] == source[i].problem
        assert scorer.score_answer(source[i].answer, meta["entry"]) == 1.0


def test_jsonl_and_parquet_give_the_same_problems(tmp_path: Path) -> None:
    rows = [{"id": "a", "problem": "1+1?", "answer": "2"}, {"id": "b", "problem": "x²?", "answer": "x^2"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    jsonl = lines(tmp_path / "p.jsonl", rows[0], "", rows[1])
    assert read_problems(jsonl) == read_problems(tmp_path / "p.parquet")
    assert read_problems(jsonl)[1] == Problem(id="b", problem="x²?", answer="x^2", verifier="math", meta="")


def test_line_without_id_is_named_by_file_and_line(tmp_path: Path) -> None:
    path = lines(tmp_path / "sums.jsonl", "", {"problem": "0+0", "answer": 0})
    assert read_problems(path, "exact") == [Problem(id="sums-2", problem="0+0", answer="0", verifier="exact", meta="")]


def test_hub_data_set_is_read_by_name_and_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the optional package datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name, key in (("toy", "problem"), ("other", "task")):
        (tmp_path / name).mkdir()
        lines(tmp_path / name / "train.jsonl", {key: "1+1", "answer": "2"})
        lines(tmp_path / name / "test.jsonl", {key: "1+2", "answer": "3"})
    assert problem_source(TaskConfig(source=f"hf:{tmp_path}/toy"), 0)[0].answer == "2"
    assert problem_source(TaskConfig(source=f"hf:{tmp_path}/toy:test"), 0)[5].answer == "3"
    with pytest.raises(BadInput, match=r"task\.source=hf:.*nosplit"):
        problem_source(TaskConfig(source=f"hf:{tmp_path}/toy:nosplit"), 0)
    with pytest.raises(
        BadInput, match=r"row 1: no problem; .* \(this one has task, answer\); name its column in task.columns"
    ):
        problem_source(TaskConfig(source=f"hf:{tmp_path}/other"), 0)
    (tmp_path / "toy" / "train.jsonl").write_text("{torn")
    with pytest.raises(BadInput, match=r"task\.source=hf:"):
        problem_source(TaskConfig(source=f"hf:{tmp_path}/toy"), 0)


def test_hub_data_set_in_the_form_of_gsm8k_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data set has two configurations, a column `question`, and answers in which the result follows ####."""
    datasets = pytest.importorskip("datasets", reason="the optional package datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "gsm8k"
    configurations = []
    for configuration, answer in (("main", "2+2 = <<2+2=4>>4\n#### 1,004"), ("socratic", "How many? ** 4\n#### 5")):
        (folder / configuration).mkdir(parents=True)
        lines(folder / configuration / "train.jsonl", {"question": "2+2?", "answer": answer})
        configurations.append(
            {"config_name": configuration, "data_files": [{"split": "train", "path": f"{configuration}/train.jsonl"}]}
        )
    (folder / "README.md").write_text(f"---\n{json.dumps({'configs': configurations})}\n---\n")
    found = problem_source(TaskConfig(source=f"hf:{folder}:main:train"), 0)[0]
    assert (found.problem, found.answer) == ("2+2?", "1,004")
    assert problem_source(TaskConfig(source=f"hf:{folder}:socratic:train"), 0)[0].answer == "5"
    with pytest.raises(BadInput, match=r"task\.source=hf:.*main.*socratic"):
        problem_source(TaskConfig(source=f"hf:{folder}:train"), 0)
    with pytest.raises(BadInput, match="write hf:NAME"):
        problem_source(TaskConfig(source=f"hf:{folder}:main:train:0"), 0)


def test_error_without_datasets_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BadInput, match="pip install datasets"):
        problem_source(TaskConfig(source="hf:some/set"), 0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (['{"problem": "a", "answer": "b"}', '{"problem": "a"}'], r"p\.jsonl:2: no answer; .*\(this one has problem\)"),
        (['{"problem": "a", "answer": ""}'], r"p\.jsonl:1: no answer"),
        (['{"answer": "b"}'], r"p\.jsonl:1: no problem"),
        (['{"problem": "a", "answer": ["b"]}'], r"p\.jsonl:1: answer must be text or a number, got \['b'\]"),
        (['{"problem": "a", "answer": true}'], r"p\.jsonl:1: answer must be text or a number, got True"),
        (["", "{nonsense"], r"p\.jsonl:2: not JSON"),
        (["1", "[1]"], r"p\.jsonl:1: an object with problem and answer is needed, found int"),
        (['{"problem": "a", "problem": "b", "answer": "c"}'], r"p\.jsonl:1: the key 'problem' occurs twice"),
        (["", '{"problem": "a", "answer": "c", "meta": {"x": [{"k": 1, "k": 1}]}}'], r"p\.jsonl:2: the key 'k' occurs"),
        ([""], "has no problem"),
        (["", "[", "1]"], r"p\.jsonl is a JSON array; write each .* on its own line: jq -c '\.\[\]' .*p\.jsonl >"),
    ],
)
def test_faulty_line_is_named(rows: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message):
        read_problems(lines(tmp_path / "p.jsonl", *rows))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"source": "nowhere.jsonl"}, r"nowhere\.jsonl: no such file of problems"),
        ({"source": "d.txt"}, r"d\.txt: problems are read from \.jsonl, \.parquet, \.csv files"),
        ({"source": "d.jsonl.gz"}, r"decompress it: gzip -dc d\.jsonl\.gz > d\.jsonl$"),
        ({"source": "d.json"}, r"name it \.jsonl if each line is an object, or .*: jq -c '\.\[\]' d\.json > d\.jsonl$"),
        (
            {"source": "s3://b/d.jsonl"},
            r"task\.source=s3://b/d\.jsonl: a path on this machine .*copy_files\(",
        ),
        ({"families": [{"name": "chain_sums"}]}, "unknown reasoning-gym family 'chain_sums', did you mean chain_sum?"),
        ({"families": [{"name": "zzzz"}]}, r"unknown reasoning-gym family 'zzzz'; there are \d+"),
        (
            {"families": [{"name": "gcd", "options": {"size_of": 1}}]},
            r"gcd does not take options \{'size_of': 1\}: .*size_of",
        ),
        ({"families": [{"name": "gcd", "options": {"min_numbers": 0}}]}, "gcd does not take options .*min_numbers"),
    ],
)
def test_faulty_task_is_refused_before_a_draw(task: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        problem_source(TaskConfig.model_validate(task), 0)
    assert "\n" not in str(caught.value)


def test_family_without_gold_answers_needs_its_own_verifier() -> None:
    with pytest.raises(BadInput, match=r"rush_hour has no gold answer.*task.verifier=reasoning-gym"):
        problem_source(TaskConfig.model_validate({"families": [{"name": "rush_hour"}]}), 0)[0]


def test_text_that_is_no_parquet_or_no_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.parquet").write_text("no")
    with pytest.raises(BadInput, match="cannot be read as Parquet"):
        read_problems(tmp_path / "p.parquet")
    (tmp_path / "p.jsonl").write_bytes(b'{"problem": "\xff"}')
    with pytest.raises(BadInput, match="not UTF-8 text"):
        read_problems(tmp_path / "p.jsonl")


LINE = '{"problem": "1+1?", "answer": "2"}\n'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            gzip.compress(LINE.encode(), mtime=0),
            r"compressed by gzip; decompress it: gzip -dc .*p\.jsonl > NEW",
        ),
        (bz2.compress(LINE.encode()), r"compressed by bzip2; decompress it: bzip2 -dc"),
        (LINE.encode("utf-16"), r"p\.jsonl is UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8 .*p\.jsonl > NEW"),
        (LINE.encode("utf-16-be"), "UTF-16 text"),
        (b"\r\n" + LINE.encode("utf-16-le"), "UTF-16 text"),
        (b"PAR1\x15\x04", "a Parquet file; give it a name that ends with .parquet"),
        (b"PK\x03\x04", "a zip archive; unpack it: unzip"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS .*: git lfs pull"),
        (b"\xef\xbb\xbf[\n" + LINE.encode() + b"]", "a JSON array"),
    ],
)
@pytest.mark.parametrize("command", ["grade", "data"])
def test_file_in_another_form_is_named_with_the_remedy(command: str, data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(data)
    with pytest.raises(BadInput, match=message) as caught:
        grade_file(tmp_path / "p.jsonl") if command == "grade" else read_problems(tmp_path / "p.jsonl")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [LINE.encode("utf-16"), gzip.compress(b"problem,answer\n1,1\n", mtime=0)])
def test_csv_in_another_form_is_named_with_the_remedy(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_bytes(data)
    with pytest.raises(BadInput, match=r"p\.csv is .*(iconv|gzip -dc) .*> NEW\.csv"):
        read_problems(tmp_path / "p.csv")


def test_csv_columns_are_read_as_text(tmp_path: Path) -> None:
    rows = b'\xef\xbb\xbfproblem,answer\r\n"1, 2\nor 3?",007\r\nhalf of 3?,1.50\r\n"""",NA\r\n'
    (tmp_path / "p.csv").write_bytes(rows)
    found = [(p.problem, p.answer) for p in read_problems(tmp_path / "p.csv")]
    assert found == [("1, 2\nor 3?", "007"), ("half of 3?", "1.50"), ('"', "NA")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "Empty CSV file"),
        (b"problem,answer\nx,1\ny,1,3\n", "Expected 2 columns, got 3: y,1,3"),
        (b"problem,answer\nx\xe9,1\n", "invalid UTF8"),
        (b"problem,problem,answer\nx,1,2\n", "2 columns have the name problem; rename or remove one"),
        (b"problem,answer\nx,1\ny,\n", r"p\.csv row 2: no answer: the column answer is empty"),
        (b"problem,answer\n", "has no problem"),
    ],
)
def test_faulty_csv_is_named_in_one_line(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_bytes(data)
    with pytest.raises(BadInput, match=message) as caught:
        read_problems(tmp_path / "p.csv")
    assert "\n" not in str(caught.value)


def fields(*names: str) -> pa.StructArray:
    return pa.StructArray.from_arrays([pa.array(["1"])] * len(names), names=list(names))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([("problem", ["a"]), ("problem", ["b"])], "2 columns have the name problem; rename or remove one"),
        ([("problem", ["a"]), ("answer", fields("a", "a"))], r"2 fields have the name answer\.a"),
        ([("a", pa.ListArray.from_arrays([0, 1], fields("x", "y", "x")))], r"2 fields have the name a\.x"),
        ([("problem", ["a"]), ("answer", fields("value"))], r"row 1: answer is an object .*as answer: answer\.value"),
        ([("problem", ["a", "b"]), ("answer", ["1", None])], r"p\.parquet row 2: no answer: the column answer is null"),
        ([("problem", ["a"]), ("answer", pa.nulls(1))], "row 1: no answer: the column answer is null"),
        ([("problem", [b"a"]), ("answer", ["1"])], "row 1: problem must be text or a number, got b'a'"),
    ],
)
def test_faulty_parquet_is_named_in_one_line(columns: list[tuple[str, Any]], message: str, tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(values) for _, values in columns], names=[name for name, _ in columns])
    pq.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(BadInput, match=message) as caught:
        read_problems(tmp_path / "p.parquet")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.mkdir(), "is a folder; give a file of problems"),
        (os.mkfifo, "is a pipe or a device; write its content to a file"),
        (lambda p: p.symlink_to(p.name), "cannot be read .*symbolic links"),
        (lambda p: p.symlink_to("nowhere"), "no such file of problems"),
        (lambda p: p.write_bytes(b"\xef\xbb\xbf\n"), "has no problem"),
    ],
)
def test_path_that_is_no_file_of_problems_is_refused(make: Any, message: str, tmp_path: Path) -> None:
    make(tmp_path / "p.jsonl")
    with pytest.raises(BadInput, match=message):
        read_problems(tmp_path / "p.jsonl")


def test_byte_order_mark_and_crlf_are_read(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(b"\xef\xbb\xbf\r\n" + LINE.replace("\n", "\r\n").encode() * 2)
    assert [p.answer for p in read_problems(tmp_path / "p.jsonl")] == ["2", "2"]


def test_entry_that_is_no_json_is_drawn() -> None:
    """Draw 17 of gsm_symbolic has a Fraction in its metadata."""
    family = {"source": "reasoning-gym", "families": [{"name": "gsm_symbolic"}], "verifier": "reasoning-gym"}
    source = problem_source(TaskConfig(**family), 0)
    assert all(json.loads(source[draw].meta)["dataset"] == "gsm_symbolic" for draw in range(40))
