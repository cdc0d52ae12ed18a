"""Tests where the final answer of a response is found."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treeadv.rewards.parsing.extract import final_answer, marked_answer, marked_text
from treeadv.rewards.parsing.thought import TAIL, spoken

balanced = st.recursive(
    st.text("abxyz0123+-*/^ ,", max_size=6),
    lambda inner: st.builds("{}{{{}}}{}".format, inner, inner, inner),
    max_leaves=6,
)


@given(
    st.text(max_size=200).filter(lambda t: "<" not in t and "[" not in t),
    balanced.filter(lambda t: any(c.isalnum() for c in t)),
    st.text("abc .", max_size=30),
)
def test_last_box_is_found_in_any_surrounding_text(before, content, after):
    before = before.replace("boxed", "").replace("{", "").replace("}", "")
    response = f"{before} \\boxed{{9}} {before} \\boxed{{{content}}} {after}"
    assert final_answer(response) == content.strip().rstrip(".,; \t")


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("The answer is 11.", "11"), ("the final answer is: **12**", "12"),
        ("Answer:\n\n$\\frac{1}{2}$", r"\frac{1}{2}"),
        ("The answer is $x=1$ and $x=2$.", "x=1, x=2"), ("The answer is $2$ because $x+1=3$.", "2"),
        ("I think 3. No: 4", "4"),
        ("<answer> seven </answer>", "seven"), (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\fbox{a}", "a"),
        (r"\boxed{\boxed{5}}", r"\boxed{5}"), ("My answer is that there are 12 of them", "12"), ("nothing", None),
        (r"\boxed{1} then cut off \boxed{2", None), (r"\boxed{2} \boxed{}", "2"), (r"\boxed 7", "7"),
        ("so $x = 3$ and that is all", "x = 3"),
        ("Hence 64 + 67 = 131", "64 + 67 = 131"), ("The answer is not 4", None), ("The answer is at least 4", None),
        ("#### 1,234", "1,234"),
        (r"<answer>\boxed{3}</answer>", "3"), (r"\boxed{2} <answer>3</answer>", "3"), ("<answer>3</answer> or 4", "3"),
        ("<answer>3", None),
        ("The answer is 12 cm.", "12 cm"), ("Both 5 and 6 fail, which leaves 7.", "7"), ("It is -$40", "-$40"),
        ("答案是7。", "7"),
    ],
)  # fmt: skip
def test_marked_final_answer_is_extracted(response, answer):
    assert final_answer(response) == answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"\boxed{1}, \boxed{2} and \boxed{3}", "1, 2, 3"), (r"$\boxed{1} \quad \text{or} \quad \boxed{2}$", "1, 2"),
        (r"first \boxed{1}, but really \boxed{2}", "2"), (r"\boxed{1} then \boxed{2}", "2"),
    ],
)  # fmt: skip
def test_adjacent_boxes_are_one_answer_of_several_parts(response, answer):
    assert final_answer(response, several=True) == answer
    assert final_answer(response) == answer.split(", ")[-1]


def test_prose_without_a_mark_has_no_marked_answer():
    assert marked_answer("There are 12.") is None


def test_marked_text_is_the_unchanged_line():
    assert marked_text("The answer is Dr. Smith, I think.\nBye.") == "Dr. Smith, I think.\nBye."


@pytest.mark.parametrize(
    ("response", "text"),
    [
        ("<think>a</think>b", "b"), ("a</think>b", "b"), ("<think>a</think>b<think>c</think>d", "d"), ("<think>a", ""),
        ("a<think>b", "a"),
        ("<think>a <answer>5</answer>", "<answer>5</answer>"), ("<THINK>a</THINK> b", " b"), ("b<|im_end|>", "b\n"),
        ("b</s>", "b\n"),
        ("[THINK]a[/THINK]b", "b"), ("2 < 3 and 5 > 4", "2 < 3 and 5 > 4"),
    ],
)  # fmt: skip
def test_only_text_after_the_last_thought_is_read(response, text):
    assert spoken(response) == text


def test_only_the_end_of_a_long_response_is_read():
    assert len(spoken("x" * 10**6)) == TAIL
    assert final_answer(r"\boxed{1}" + " word" * TAIL) is None


@pytest.mark.parametrize(
    "unit",
    ["\\boxed{", "<answer>", "$", "\\(", "1+", "1,", "((((", "**", "answer is ", "{", "<think>", "- $", "1 1/2 "],
)
def test_repeated_marks_take_linear_time(unit):
    final_answer(unit * (40_000 // len(unit)))
