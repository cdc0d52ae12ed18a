"""Tests data in the forms that users have: other columns, messages, derivations, several sources, held-out problems."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import csv

from tests.test_tasks import lines, read_problems
from treeadv.checks import check_prompts
from treeadv.config import TaskConfig, build
from treeadv.data.problems import Problem, Turn
from treeadv.data.prompts import Prompter
from treeadv.data.tasks import Mixture, Shuffled, held_out_problems, problem_source, read_parts
from treeadv.errors import BadInput
from treeadv.rewards.judgement import Task
from treeadv.rewards.verifiers.registry import find_verifier

VERL = {
    "data_source": "openai/gsm8k",
    "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}],
    "ability": "math",
    "reward_model": {"ground_truth": "4", "style": "rule"},
    "extra_info": {"index": 7, "split": "train"},
}


def task(*paths: Path, **more: Any) -> TaskConfig:
    if len(paths) == 1:
        return TaskConfig.model_validate({"source": str(paths[0]), **more})
    return TaskConfig.model_validate({"sources": [{"source": str(p)} for p in paths], **more})


# ---- forms ---------------------------------------------------------------------------------------
def test_raw_gsm8k_lines_are_read_without_a_mapping(tmp_path: Path) -> None:
    path = lines(tmp_path / "g.jsonl", {"question": "2+2?", "answer": "2+2 = <<2+2=4>>4\n#### 1,004"})
    (problem,) = read_problems(path)
    assert (problem.problem, problem.answer) == ("2+2?", "1,004")


def test_parquet_of_verl_is_read_without_a_mapping(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([VERL]), tmp_path / "v.parquet")
    (problem,) = read_problems(tmp_path / "v.parquet")
    assert (problem.problem, problem.answer) == ("2+2?", "4")
    assert problem.turns == (Turn(role="system", content="Be brief."), Turn(role="user", content="2+2?"))


def test_columns_map_names_and_nested_fields(tmp_path: Path) -> None:
    row = {"task": "2+2?", "solution": {"final": "4"}, "a.b": "5", "uid": 12}
    path = lines(tmp_path / "p.jsonl", row)
    columns = {"problem": "task", "answer": "solution.final", "id": "uid"}
    (problem,) = read_problems(path, columns=columns)
    assert (problem.id, problem.problem, problem.answer) == ("12", "2+2?", "4")
    assert read_problems(path, columns=columns | {"answer": "a.b"})[0].answer == "5"


def difficulty(response: str, gold: str, level: str, reward_model: dict[str, str], problem: str) -> dict[str, float]:
    return {
        "reward": float(response == gold),
        "level": float(level),
        "known": float(reward_model["ground_truth"] == gold),
    }


def test_columns_reach_a_reward_function_by_name(tmp_path: Path) -> None:
    path = lines(tmp_path / "v.jsonl", VERL)
    name = f"{__name__}:difficulty"
    (problem,) = read_problems(path, name, columns={"level": "extra_info.index"})
    verifier = find_verifier(name)
    verifier.load()
    grade = verifier.judge(Task(verifier=name, gold=problem.answer, text="4", meta=problem.meta))
    assert grade.reward == 1 and grade.parts == {"level": 7.0, "known": 1.0}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
def test_gsm8k_answer_without_its_mark_is_refused(suffix: str, tmp_path: Path) -> None:
    rows = [{"question": "2+2?", "answer": "2+2 = 4\n#### 4"}, {"question": "2+3?", "answer": "It is 5."}]
    table, path = pa.Table.from_pylist(rows), tmp_path / f"g{suffix}"
    if suffix == ".jsonl":
        lines(path, *rows)
    else:
        pq.write_table(table, path) if suffix == ".parquet" else csv.write_csv(table, path)
    with pytest.raises(BadInput, match=r"g\.\w+(:| row )2: the answer has no ####, but 1 of 2 .*task\.normaliser"):
        read_problems(path)
    assert [p.answer for p in read_problems(path, normaliser="none")] == [row["answer"] for row in rows]


def test_gsm8k_answer_of_the_hub_without_mark_is_refused(tmp_path: Path, monkeypatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the optional package datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "g").mkdir()
    lines(tmp_path / "g" / "train.jsonl", {"question": "a", "answer": "x #### 1"}, {"question": "b", "answer": "2"})
    with pytest.raises(BadInput, match=r"hf:.* row 2: the answer has no ####"):
        problem_source(TaskConfig(source=f"hf:{tmp_path}/g"), 0)


def test_chat_messages_are_a_prompt(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    rows = [{"messages": turns, "answer": "4"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet")
    for path in (lines(tmp_path / "m.jsonl", *rows), tmp_path / "m.parquet"):
        (problem,) = read_problems(path)
        assert problem.turns == (Turn(role="system", content="Be brief."), Turn(role="user", content="2+2?"))
    named = lines(tmp_path / "n.jsonl", {"messages": turns, "problem": "3+3?", "answer": "6"})
    assert read_problems(named)[0].problem == "3+3?"


@pytest.mark.parametrize(
    ("normaliser", "answer", "gold"),
    [
        ("hashes", "a #### b\n#### 5 ", "5"),
        ("hashes", "5", "5"),
        ("none", "1 #### 2", "1 #### 2"),
        ("boxed", r"so \boxed{1} or \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        ("tests.test_sources:shout", "x", "X"),
    ],
)
def test_normaliser_makes_the_gold_answer(normaliser: str, answer: str, gold: str, tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", {"problem": "p", "answer": answer})
    assert read_problems(path, normaliser=normaliser)[0].answer == gold


def shout(answer: str) -> str:
    return answer.upper() if answer != "bad" else answer[99]


@pytest.mark.parametrize(
    ("row", "more", "message"),
    [
        ({"task": "1", "answer": "1"}, {}, r"p\.jsonl:1: no problem; .*has task, answer\); name its column"),
        ({"task": "1"}, {"columns": {"problem": "tusk"}}, r"problem is tusk, which is not a column, did you mean task"),
        ({"a": {"b": 1}}, {"columns": {"problem": "a.c"}}, r"problem is a\.c, which is not a column"),
        ({"q": "1", "sol": "2"}, {"columns": {"problem": "q", "anwser": "sol"}}, "names anwser, did you mean answer"),
        ({"problem": "1", "answer": ""}, {"columns": {"answer": "answer"}}, "the column answer is empty"),
        ({"problem": "1", "answer": None}, {}, r"p\.jsonl:1: no answer: the column answer is null; remove the row"),
        ({"problem": "", "answer": "1"}, {}, r"p\.jsonl:1: no problem: the column problem is empty"),
        ({"messages": [], "answer": "1"}, {}, r"no problem: the column messages is an empty list"),
        ({"prompt": "1", "reward_model": None}, {}, r"no answer: the column reward_model\.ground_truth is null"),
        ({"problem": "1", "r": None}, {"columns": {"answer": "r.value"}}, r"no answer: the column r\.value is null"),
        ({"problem": {"text": "1"}, "answer": "1"}, {}, r"an object with text; .* as problem: problem\.text"),
        ({"messages": [{"from": "x" * 999}], "answer": "1"}, {}, r"message 1: .* got \{'from': 'x{54}\.\.\.$"),
        ({"problem": "1", "answer": "1", "verifier": {"a": 1}}, {}, r"verifier must be the name .* got \{'a': 1\}"),
        ({f"c{n}": n for n in range(99)}, {}, r"this one has c0, .*c15, \.\.\.\); name its column"),
        ({"problem": "1", "answer": "1"}, {"normaliser": "boxed"}, r"p\.jsonl:1: .*has no \\boxed"),
        ({"problem": "1", "answer": "bad"}, {"normaliser": f"{__name__}:shout"}, r"p\.jsonl:1: .*fails: IndexError"),
        ({"problem": "1", "answer": "1"}, {"normaliser": "hash"}, "normaliser=hash is unknown, did you mean hashes"),
        ({"prompt": [{"role": "user"}], "answer": "1"}, {}, "message 1: a message is an object with role and content"),
        ({"prompt": [{"role": "bot", "content": "x"}], "answer": "1"}, {}, "unknown role 'bot'"),
        ({"prompt": [{"role": "assistant", "content": "x"}], "answer": "1"}, {}, "last message is of the assistant"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}], "answer": "1"}, {}, "a part that is not text"),
        ({"problem": "1", "answer": "1", "id": "\ud800"}, {}, r"p\.jsonl:1: id has an unpaired surrogate"),
        ({"problem": "1", "answer": "1", "meta": "\udfff"}, {}, r"p\.jsonl:1: meta has an unpaired surrogate"),
        ({"prompt": [{"role": "user", "content": "\ud800"}], "answer": "1"}, {}, "content has an unpaired surrogate"),
    ],
)  # fmt: skip
def test_row_that_cannot_be_used_is_named(row: Any, more: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        read_problems(lines(tmp_path / "p.jsonl", row), **more)
    assert "\n" not in str(caught.value)


def test_two_problems_with_one_id_are_refused(tmp_path: Path) -> None:
    rows = [{"id": "a", "problem": "1?", "answer": "1"}, {"id": "a", "problem": " 1? ", "answer": "1"}]
    assert len(read_problems(lines(tmp_path / "p.jsonl", *rows))) == 2
    path = lines(tmp_path / "p.jsonl", *rows, {"id": "a", "problem": "2?", "answer": "2"})
    with pytest.raises(BadInput, match=r"p\.jsonl:3: its id .a. is that of another problem, at .*:1; change one"):
        read_problems(path)


# ---- several sources -----------------------------------------------------------------------------
def test_sources_are_mixed_by_weight_and_each_is_a_permutation(tmp_path: Path) -> None:
    a = Shuffled([Problem(id=f"a{i}", problem="p", answer="a", verifier="math", meta="") for i in range(10)], 0)
    b = Shuffled([Problem(id=f"b{i}", problem="p", answer="a", verifier="math", meta="") for i in range(10)], 0)
    mixture = Mixture([(a, 3.0), (b, 1.0)], 0)
    drawn = [mixture[n].id for n in range(4000)]
    assert Counter(i[0] for i in drawn)["a"] / 4000 == pytest.approx(0.75, abs=0.03)  # four standard deviations
    for name in "ab":
        own = [i for i in drawn if i[0] == name]
        assert all(len(set(own[n : n + 10])) == 10 for n in range(0, len(own) - 10, 10))
    again = Mixture([(a, 3.0), (b, 1.0)], 0)
    assert [again[n].id for n in reversed(range(50))] == drawn[49::-1]


def test_each_source_has_columns_and_verifier_of_its_own(tmp_path: Path) -> None:
    a = lines(tmp_path / "a.jsonl", {"q": "1+1?", "answer": "2"})
    b = lines(tmp_path / "b.jsonl", {"problem": "Which?", "answer": "B"})
    both = {"sources": [{"source": str(a), "columns": {"problem": "q"}}, {"source": str(b), "verifier": "choice"}]}
    problems = problem_source(TaskConfig.model_validate(both), 0).examples(8)
    assert [(p.problem, p.verifier) for p in problems] == [("1+1?", "math"), ("Which?", "choice")]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"source": "a.jsonl", "sources": [{"source": "b.jsonl"}]}, "not both"),
        ({"sources": [{"source": "reasoning-gym"}]}, "families must name"),
        ({"source": "a.jsonl", "held_out": 1.5}, "whole number of problems"),
        ({"sources": [{"source": "a.jsonl", "weight": 0}]}, "greater than 0"),
    ],
)
def test_sources_that_contradict_each_other_are_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskConfig.model_validate(more)


# ---- held out ------------------------------------------------------------------------------------
@given(texts=st.lists(st.integers(0, 30), min_size=2, max_size=60), count=st.integers(1, 5), seed=st.integers(0, 3))
def test_no_text_is_on_both_sides_of_the_split(texts: list[int], count: int, seed: int, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("split")
    rows = [{"problem": f"{t}?", "answer": str(t)} for t in texts]
    half = len(rows) // 2
    paths = [lines(folder / f"{n}.jsonl", *rows_of_file) for n, rows_of_file in enumerate((rows[:half], rows[half:]))]
    config = task(*paths, held_out=count, held_out_seed=seed)
    try:
        parts = read_parts(config, 5)
    except BadInput as e:
        assert "hold out fewer" in str(e) or "leaves no problem" in str(e)
        return
    reserved = {p.problem for source in parts for p in source.held_out}
    trained = {p.problem for source in parts for p in source.train.examples(8)}
    assert len(reserved) == count and not reserved & trained and reserved | trained == {f"{t}?" for t in texts}
    backwards = [
        lines(folder / f"{n}.jsonl", *rows_of_file) for n, rows_of_file in enumerate((rows[half:][::-1], rows[:half]))
    ]
    try:
        assert {p.problem for p in held_out_problems(task(*backwards, held_out=count, held_out_seed=seed))} == reserved
    except BadInput as e:
        assert "leaves no problem" in str(e)


def test_held_out_share_does_not_depend_on_the_seed_of_the_run(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", *({"problem": f"{i}?", "answer": "1"} for i in range(40)))
    for seed in (0, 1):
        (source,) = read_parts(task(path, held_out=0.1), seed)
        assert source.size == 36 and [p.id for p in source.held_out] == [
            p.id for p in held_out_problems(task(path, held_out=4))
        ]
    other = held_out_problems(task(path, held_out=4, held_out_seed=1))
    assert {p.id for p in other} != {p.id for p in held_out_problems(task(path, held_out=4))}


def test_held_out_problems_of_families_are_never_drawn() -> None:
    options = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    families = {"families": [{"name": "chain_sum", "options": options}], "held_out": 100}
    config = TaskConfig.model_validate(families)
    reserved = {p.problem for p in held_out_problems(config)}
    source = problem_source(config, 0)
    drawn = {source[n].problem for n in range(300)}
    assert len(reserved) == 100 and not reserved & drawn
    plain = problem_source(TaskConfig.model_validate(families | {"held_out": 0}), 0)
    assert reserved & {plain[n].problem for n in range(300)}
    with pytest.raises(BadInput, match="endless; give a number"):
        problem_source(TaskConfig.model_validate(families | {"held_out": 0.1}), 0)


def test_content_other_than_the_recorded_one_is_refused(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", {"problem": "1?", "answer": "1"})
    with pytest.raises(BadInput, match=r"p\.jsonl: the content has changed \(SHA-256 .*restore it"):
        problem_source(task(path, content={str(path): "0" * 64}), 0)


def test_meta_with_dates_and_bytes_is_written_as_text(tmp_path: Path) -> None:
    import datetime

    row = {"problem": "1?", "answer": "1", "meta": {"day": datetime.date(2026, 1, 2), "raw": b"\xff"}}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "p.parquet")
    (problem,) = read_problems(tmp_path / "p.parquet")
    assert json.loads(problem.meta)["day"] == "2026-01-02"


# ---- prompts -------------------------------------------------------------------------------------
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if think is defined and not think %}!{% endif %}"
    "{% if messages[0].content == 'bad' %}{{ raise_exception('no such turn') }}{% endif %}"
)


@pytest.fixture(scope="module")
def chat_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a chat template."""
    folder = tmp_path_factory.mktemp("chat")
    for file in (*tiny_model.glob("*.json"), *tiny_model.glob("*.safetensors")):
        shutil.copy(file, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def rendered(folder: Path, problem: Problem, **more: Any) -> str:
    prompter = Prompter(folder, TaskConfig(source="p.jsonl", **more))
    return prompter.shown(prompter.encode(problem))


def test_prompt_has_system_message_template_and_arguments(chat_model: Path) -> None:
    bare = Problem(id="1", problem="2+2?", answer="4", verifier="math", meta="")
    told = Problem(
        id="1",
        problem="2+2?",
        answer="4",
        verifier="math",
        meta="",
        turns=(Turn(role="system", content="Mine."), Turn(role="user", content="2+2?")),
    )
    assert rendered(chat_model, bare) == "<user>2+2?"
    more = {"system": "Be brief.", "prompt": "Q: {problem}", "template_args": {"think": False}}
    assert rendered(chat_model, bare, **more) == "<system>Be brief.<user>Q: 2+2?!"
    assert rendered(chat_model, told, **more) == "<system>Mine.<user>Q: 2+2?!"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"template_args": {"thinking": False}}, r"does not use thinking \(it uses think\)"),
        ({"template_args": {"tokenize": False}}, "tokenize is set by treeadv"),
    ],
)
def test_argument_that_the_chat_template_ignores_is_refused(chat_model: Path, more: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        rendered(chat_model, Problem(id="1", problem="2+2?", answer="4", verifier="math", meta=""), **more)


def test_chat_template_that_raises_is_named_with_the_problem(chat_model: Path) -> None:
    with pytest.raises(BadInput, match=f"p-7: the chat template of {chat_model} fails on its prompt: no such turn"):
        rendered(chat_model, Problem(id="p-7", problem="bad", answer="4", verifier="math", meta=""))
    config = build({}, ["task.source=p.jsonl", f"model.path={chat_model}"], "test")
    with pytest.raises(BadInput, match="no such turn"):
        check_prompts([Problem(id="p-7", problem="bad", answer="4", verifier="math", meta="")], config)


def test_model_without_a_chat_template_takes_one_turn_only(tiny_model: Path) -> None:
    turns = (Turn(role="system", content="s"), Turn(role="user", content="u"))
    with pytest.raises(BadInput, match="has no chat template for 2 messages"):
        rendered(tiny_model, Problem(id="1", problem="u", answer="4", verifier="math", meta="", turns=turns))
    with pytest.raises(BadInput, match=r"task\.system: the tokenizer of .* has no chat template; remove task.system"):
        rendered(tiny_model, Problem(id="1", problem="u", answer="4", verifier="math", meta=""), system="s")
