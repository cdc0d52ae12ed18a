"""Tests which answers equal a gold answer for the verifier `math`. Text and arithmetic decide nearly all of them
without a worker."""

# ruff: noqa: RUF001

from __future__ import annotations

from fractions import Fraction

import math_verify
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treeadv.forest import Verdict
from treeadv.rewards.judgement import Answer, Grade, Task
from treeadv.rewards.parsing.guards import refusal
from treeadv.rewards.parsing.numbers import quantity
from treeadv.rewards.parsing.units import UNITS, unit
from treeadv.rewards.verifiers.registry import screen

VERIFIED, WRONG, UNPARSED = Verdict.VERIFIED, Verdict.WRONG, Verdict.UNPARSED
integers = st.integers(-(10**9), 10**9)
decimals = st.decimals(-10_000, 10_000, places=4).map(str)
numbers = st.one_of(
    integers.map(str), decimals, st.builds("{}/{}".format, integers, st.integers(1, 999)),
    st.builds(r"\frac{{{}}}{{{}}}".format, st.integers(0, 999), st.integers(1, 999)),
)  # fmt: skip


def math(response: str, gold: str) -> Grade | Task:
    return screen(Answer(response=response, gold=gold, verifier="math"))


def verdict(response: str, gold: str) -> Verdict:
    grade = math(response, gold)
    assert isinstance(grade, Grade), grade
    return grade.verdict


def fraction_of(text: str) -> Fraction:
    return Fraction(text.replace(r"\frac{", "").replace("}{", "/").replace("}", ""))


@given(st.text(max_size=300))
def test_any_text_gets_a_grade_or_a_bounded_task(text):
    for response in (text, f"\\boxed{{{text}}}", f"The answer is {text}", f"so ${text}$"):
        grade = math(response, "3")
        assert isinstance(grade, Grade) or len(grade.text) < 3000


MARKS = st.text(r"\{}()[]|$^_,;:=<>!'.+-*/%0123456789xyifae ", max_size=40)


@given(MARKS, MARKS)
@settings(deadline=None)
def test_any_formula_as_gold_answer_or_answer_is_judged(gold, answer):
    math(f"\\boxed{{{answer}}}", gold)


@given(numbers)
def test_quantity_reads_every_number_that_fraction_reads(text):
    read = quantity(text)
    assert read is not None and read.value == fraction_of(text)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[str, str]:
    """Generate two numbers. They are arbitrary, or a number and its decimals. The decimals are exact or have an error
    of 1e-5 to 1e-8."""
    gold = draw(numbers)
    off = draw(st.sampled_from(["0", "1e-5", "-1e-5", "3e-7", "-2e-7", "1e-8"]))
    near = f"{float(fraction_of(gold) + Fraction(off)):.9f}"
    return gold, draw(st.one_of(numbers, st.just(near)))


@settings(deadline=None)  # the first call is slow, because it loads sympy's parsers
@given(pairs())
def test_numbers_found_equal_are_equal_for_math_verify(pair):
    gold, answer = pair
    parsed = [math_verify.parse(f"${t}$", parsing_timeout=None) for t in (gold, answer)]
    ours, theirs = verdict(f"\\boxed{{{answer}}}", gold) is VERIFIED, math_verify.verify(*parsed, timeout_seconds=None)
    exact = fraction_of(gold) == fraction_of(answer)
    assert (
        ours == theirs or (theirs and not exact) or abs(fraction_of(gold) - fraction_of(answer)) <= Fraction(1, 10**6)
    )


FORMS = (
    "{}",
    "{:,}",
    "${}$",
    r"\boxed{{{}}}",
    "The answer is {}.",
    "Answer: {:,}",
    "#### {}",
    "x = {} so the answer is {}",
)


@given(integers, st.sampled_from(FORMS))
def test_integer_is_verified_in_every_usual_form(n, form):
    assert verdict(form.format(n, n), str(n)) is VERIFIED
    assert verdict(form.format(n, n), str(n + 1)) is WRONG


NOT_PAID = [
    # a number inside an unmarked formula
    ("7", r"Hence $x > 7$."), ("4", r"This gives $\frac{3}{4}$."), ("5", r"The side is $4\sqrt{5}$."),
    ("9", "It meets the axis at $(2, 9)$."),
    ("2", r"It grows like $n^2$."), ("8", r"The roots are $\pm 8$."), ("3", "So $3 \\le k$."),
    ("6", r"So it is $\log_2 6$."),
    # a number inside a text that cannot be read
    ("5", r"\boxed{y³ + 5}"), ("7", r"\boxed{\qux{z} + 7}"), ("9", r"\boxed{\begin{cases}u=9\\v=1\end{cases}}"),
    ("12", r"\boxed{5 \mid 12}"),
    ("4", r"\boxed{x \equiv 4 \pmod 7}"), ("6", r"\boxed{? 6}"), ("8", r"\boxed{3 5 8}"), ("2", r"\boxed{a b \\ 2}"),
    # a thought
    ("17", r"<think>so \boxed{17}</think> Hard to say."), ("17", r"<thinking>\boxed{17}</thinking> I give up."),
    ("17", r"<think>maybe \boxed{17}. Let me"),
    ("17", r"\boxed{17} it is.</think> I do not know."), ("17", "<think>The answer is 17."),
    ("17", "<think>17</think>"),
    # lists and thousands
    ("3, 100", r"\boxed{3100}"), ("2,100,7", r"\boxed{2100,7}"), ("4200", r"\boxed{4, 200}"),
    ("1, 234, 567", r"\boxed{1234567}"),
    # signs and words
    ("25", "It costs -$25."), ("25", r"\boxed{-\$25}"), ("6", "so y = - 6"), ("7", "The answer is not 7."),
    ("7", "The answer is at most 7."),
    ("7", "The answer is 7 times 2."), ("9", r"The answer is \leq 9."), ("9", r"\boxed{> 9}"),
    ("7", "The answer is 7 or less."), ("7", "It isn't 7."),
    ("7", r"\boxed{\text{more than } 7}"), ("7", r"\boxed{7 \text{ or more}}"), ("7", "There are fewer than 7."),
    ("7", "The answer is between 2 and 7."),
    # very small, very large and unevaluated
    (r"\frac{1}{3^{50}}", r"\boxed{\frac{1}{3^{51}}}"), (r"\frac{1}{25!}", r"\boxed{\frac{1}{24!}}"),
    (r"2^{500}", r"\boxed{2^{500}+1}"),
    (r"5\times10^{-20} \text{ m}", r"\boxed{6\times10^{-20}\text{ m}}"), (r"10^{-9}", r"\boxed{0}"),
    (r"\binom{100}{50}", r"\boxed{\binom{100}{49}}"),
    ("2^{2000}", r"\boxed{2^{2000} + x}"),
    # names, places, letters
    ("a=4", r"\boxed{b=4}"), (r"\$9", r"\boxed{£9}"), ("110_2", r"\boxed{110_3}"),
    (r"2, 4, \ldots, 2n", r"\boxed{1, 3, \ldots, 2n-1}"), ("3V", r"\boxed{3v}"),
    ("3,3,5", r"\boxed{3,5,5}"), ("p=2,q=3", r"\boxed{p=3,q=2}"), ("(3,8)", r"\boxed{(8,3)}"),
    ("[3,8)", r"\boxed{[3,8]}"), ("f(x)=x", r"\boxed{g(x)=x}"),
    ("5m", r"\boxed{5}"), ("2s", r"\boxed{2}"), ("x+y", r"\boxed{x-y}"), (r"5\text{ kg}", r"\boxed{5\text{ g}}"),
    # times and compound measures
    ("2:30", r"\boxed{5:15}"), ("7:45 a.m.", "The answer is 7:45 p.m."), ("6 ft 2 in", "The answer is 6 ft 3 in."),
    ("12:20", r"\boxed{12:02}"),
    # cut answers
    ("4", r"So the answer is \boxed{4"), ("4", r"#### \boxed{4"), ("4", r"\boxed{4}, wait, \boxed{4"),
    ("4", "<answer>4"), ("12", r"\boxed{\frac{12"),
    # text
    ("6", "The answer is 6 log 2."), ("3", "The answer is sqrt(3)."), ("2", "The answer is 2 thirds."),
    ("4", "The answer is 4 squared."),
    ("Ann", "The answer is Bob."), ("3", r"\boxed{three}"),
    # equations that state no value
    ("9", r"\boxed{x^2 = 9}"), ("6", r"\boxed{2x = 6}"), ("2x+y=3", r"\boxed{3}"), ("0", r"\boxed{x - 1 = 0}"),
    ("9", r"\boxed{x^2 + y^2 = 9}"), ("9", r"\boxed{x + y = 9}"), ("9", r"\boxed{xy = 9}"), ("9", "Hence $|x| = 9$."),
    ("9", r"\boxed{a^2 + b = 9}"), ("9", r"\boxed{2a + 3b = 9}"), ("9", r"\boxed{4 + 4 = 9}"), ("9", r"\boxed{8 = 9}"),
    # a part, a function or the opposite of the number
    ("9", "The answer is 9 percent of 20."), ("9", "The answer is 9% of 20."), ("9", "The answer is 9 out of 20."),
    ("1/2", "The answer is 1/2 of 20."), ("9", "The answer is half of 9."), ("9", "The answer is 20% of 9."),
    ("9", "The answer is negative 9."), ("9", "The answer is the negative of 9."), ("9", "The answer is log base 9."),
    ("9", "The answer is the sum of 8 and 9."), ("9", "The roots are 8 and 9."), ("9", "The answer is the 9th prime."),
    ("9", r"\boxed{9\text{th}}"), ("9", r"\boxed{9\text{k}}"), ("9", "9 is wrong."), ("9", "9 is not the answer."),
    ("9", "It cannot be 9."), ("9", r"\boxed{\text{False: }9}"), ("9", r"\boxed{.9}"), ("42", "The answer is .42"),
    ("9", "That is 9 times as many."), ("9", "9 divides n"), ("9", "a divisor of 9"), ("9", "9|n"), ("9", "≥ 9"),
    ("9", "±9"), ("9", "!= 9"), ("9", "∛9"), ("9", "the interval [0, 9]"), ("9", "2^$9$"), ("9", "$9$x"), ("9", "1$9$"),
    ("9", r"so x = -\(9\)"), ("9", "$9$ of $20$"), ("9", "half of $9$"), ("9", "$8$ and $9$"), ("9", "$9$ is wrong"),
    ("9", "The answer is 9 in base 11."), ("9", "The answer is 9 doubled."), ("9", "The answer is 9 multiplied by 2."),
    ("9", "The answer is 9 short of 20."), ("9", r"\boxed{9\text{ twelfths}}"), ("9", r"\boxed{9\text{ bn}}"),
    ("9", "The answer is 9, or maybe 8."), ("9", "The answer is any number other than 9."), ("9", r"\boxed{9\text{M}}"),
    ("9", "The answer is unlikely to be 9."), ("9", "The answer is unknown; I tried 9."),
    # choices in prose
    ("B", "Vitamin B"), ("B", "Plan B failed."), ("E", "E = mc^2"), ("C", "In C, this fails."), ("B", "Not B."),
    # equal only for small values, and other kinds of values
    ("12", r"\boxed{\max(12, x)}"), ("0", r"\boxed{\lfloor x/500 \rfloor}"), ("0", r"\boxed{P(0)}"),
    ("3,4", r"\boxed{[3,4]}"), ("7:05", r"\boxed{7:5}"),
    # equal only for positive values, or only to some digits
    ("|x|", r"\boxed{x}"), (r"\sqrt{x^2}", r"\boxed{x}"), (r"\sqrt{3}", r"\boxed{\sqrt{3}+10^{-30}}"),
    (r"e^{-90}", r"\boxed{e^{-91}}"), (r"e^{-90}", r"\boxed{0}"), ("0", r"\boxed{e^{-90}}"),
    (r"\sqrt{10^{30}+1}", r"\boxed{10^{15}}"), ("4:20", r"\boxed{1:5}"),
    # rounding
    (r"\frac{2}{3}", r"\boxed{0.667}"), (r"\sqrt{2}", r"\boxed{1.414}"), ("50", r"\boxed{0.5}"),
    ("7", r"\boxed{7.0000001}"),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "response"), NOT_PAID)
def test_wrong_answer_is_not_verified(gold, response):
    assert verdict(response, gold) is not VERIFIED


@pytest.mark.parametrize("response", [
    r"\boxed{\qux{z} + 7}", r"\boxed{5 \mid 7}", r"<think>maybe \boxed{7}. Let me", r"so \boxed{7", "I do not know.",
    "", r"\boxed{}", r"\boxed{7 8}",
])  # fmt: skip
def test_answer_that_cannot_be_read_is_unparsed(response):
    assert verdict(response, "7") is UNPARSED


PAID = [
    # position of the answer
    ("34", "Final Answer: The smallest $m$ is 34."), ("8", r"I write \boxed{}. So \boxed{8}."),
    ("8", r"So \boxed{8}, as asked in \boxed{}."),
    ("8", r"The answer is 8. It goes in \boxed{...}."), ("3,5", r"\boxed{3} \quad\text{or}\quad \boxed{5}"),
    ("61", "一共有61个。"), ("61", "答案：61。"),
    ("5/7", r"Thus we find $\frac{5}{7}$."), ("(2,9)", "They meet at $(2, 9)$."), ("x > 7", "Hence $x > 7$."),
    ("8", "<think>7?</think> <answer>8</answer>"),
    ("8", "<think>7?</think>\n\n**8**"), ("8", r"<think>\boxed{7}</think> So \boxed{8}."),
    ("8", "7 it seems.</think> The answer is 8."),
    ("51", "The answer is 51, since 51 = 3 * 17."), ("51", "Answer: 51<|im_end|>"),
    ("51", "The answer is 51 because 2 and 3 do not work."), ("7", r"\boxed7"),
    ("-2", "so x = -2"), ("25", "It costs $25 in total."), ("5/2", "The answer is 2 1/2."), ("8", "**Answer:** 8"),
    ("8", "**Final Answer**\n\n8"),
    ("1,2,3", "The answer is 1, 2, and 3."), ("12", "Ann has 12 apples left."),
    ("20", "The answer is 20 square meters."), ("x+1", "The answer is x + 1."),
    # typesetting of the answer
    ("x^3-1", r"\boxed{x³ − 1}"), (r"\frac{\sqrt{5}}{2}", r"\boxed{√5/2}"), ("3/4", r"\boxed{¾}"),
    (r"[0,\infty)", r"\boxed{［0，∞）}"), (r"30^\circ", r"\boxed{30°}"),
    (r"\frac{\pi}{6}", r"\boxed{pi/6}"), (r"6\pi", r"\boxed{6*pi}"), (r"\frac{\sqrt{7}}{3}", r"\boxed{sqrt(7)/3}"),
    ("y^3", r"\boxed{y**3}"), (r"\ln 5", r"\boxed{ln(5)}"),
    (r"\sqrt{7}", r"\boxed{\sqrt(7)}"), ("11/4", r"\boxed{2 3/4}"), ("7/9", r"\boxed{0.\overline{7}}"),
    ("1/6", r"\boxed{0.1\overline{6}}"), ("x^{n}", r"\boxed{x^n}"),
    (r"\log_3 5", r"\boxed{\log_{3}{5}}"), (r"\frac{7}{3}", r"\boxed{\frac 7 3}"), ("21", r"\boxed{\binom 7 2}"),
    ("8", r"\boxed{**8**}"), ("8", r"\boxed{\color{blue}{8}}"),
    ("8", r"\boxed{\text{Final answer: } 8}"), ("C", r"\boxed{\textbf{(C)}\ 9}"), ("C", r"\boxed{\text{(C)}}"),
    ("1234567", r"\boxed{1\,234\,567}"), ("12345", r"\boxed{12{,}345}"),
    ("4, 100", r"\boxed{4,100}"), (r"\emptyset", r"\boxed{\{\}}"), ("Even", r"\boxed{\text{even}}"),
    (r"\frac{1}{2}x", r"\boxed{x/2}"), ("1/(2x)", r"\boxed{1/2x}"),
    # numbers
    ("2.5", r"\boxed{5/2}"), ("0.25", r"\boxed{25\%}"), ("25", r"\boxed{25\%}"), (r"25\%", r"\boxed{0.25}"),
    (r"25\%", r"\boxed{25}"), ("7000000", r"\boxed{7 million}"),
    ("24", "The answer is 2 dozen."), ("1/3", r"\boxed{0.33333333}"), (r"\sqrt{2}", r"\boxed{1.41421356}"),
    ("1500", r"\boxed{1.5 \times 10^3}"), ("1024", r"\boxed{2^{10}}"),
    (r"\binom{100}{50}", r"\boxed{\frac{100!}{50!50!}}"), ("2^{500}", r"\boxed{4^{250}}"),
    # units, names and times
    ("8", r"\boxed{8\text{ cm}}"), (r"8\text{ cm}", r"\boxed{8}"), (r"8\text{ m}", r"\boxed{8m}"),
    (r"\$8", r"\boxed{8\text{ dollars}}"), ("8", r"\boxed{8\text{ ways}}"),
    ("9.8", r"\boxed{9.8 \, \mathrm{m/s^2}}"), ("x=8", r"\boxed{8}"), ("8", r"\boxed{f(3) = 8}"),
    ("8", r"\boxed{a+b = 8}"), ("8", r"\boxed{= 8}"), ("8", r"\boxed{P(2) = 8}"), ("8", r"\boxed{|AB| = 8}"),
    ("8", r"\boxed{3 + 5 = 8}"), ("0", r"\boxed{\sqrt{2} - \frac{2}{\sqrt{2}}}"), (r"\sqrt[3]{7}", r"\boxed{∛7}"),
    ("8", r"\boxed{AB + CD = 8}"), ("8", r"\boxed{a - b = 8}"), ("8", r"\boxed{x_1 + x_2 = 8}"),
    ("No", "The answer is no."),
    ("1/8", r"\boxed{P(A \cap B) = \frac18}"), ("8", "Answer: 8cm"), ("8", "It takes 8 hours to finish."),
    ("8", "<|begin_of_thought|>7<|end_of_thought|> \\boxed{8}"), ("8", "The answer is 8, not 9."),
    ("8%", "The answer is 8% of the students."), ("8", "A total of 8."),
    ("110_2", r"\boxed{110_{2}}"),
    ("2:30", r"\boxed{2:30 \text{ p.m.}}"), ("6 ft 2 in", "The answer is 6 ft 2 in."), ("3:4", r"\boxed{6:8}"),
    ("(a,b)=(1,2)", r"\boxed{(1,2)}"),
    # expressions, relations and collections
    ("1+2m", r"\boxed{2m+1}"), ("(x+1)^2", r"\boxed{x^2+2x+1}"),
    (r"\frac{1}{\sqrt{2}}", r"\boxed{\frac{\sqrt{2}}{2}}"), ("e^{e}", r"\boxed{e^e}"),
    (r"\sin 2x", r"\boxed{2\sin x\cos x}"), ("x - 2y = 3", r"\boxed{2x = 4y + 6}"), (r"x \le 4", r"\boxed{4 \ge x}"),
    (r"x \ge 4", r"\boxed{[4, \infty)}"),
    (r"(2,5]", r"\boxed{2 < x \le 5}"), (r"(-\infty,1)\cup(1,\infty)", r"\boxed{x \ne 1}"),
    (r"\mathbb{R}", r"\boxed{(-\infty,\infty)}"), ("1,2", r"\boxed{\{2,1\}}"),
    (r"2\pm\sqrt{3}", r"\boxed{2-\sqrt{3}, 2+\sqrt{3}}"), ("x=1, x=2", r"\boxed{x = 2 \text{ or } x = 1}"),
    ("p=2,q=3", r"\boxed{q=3,p=2}"), ("(1,2),(3,4)", r"\boxed{(3,4),(1,2)}"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\boxed{\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\boxed{(1,2)}"),
    (r"\{x \mid x > 3\}", r"\boxed{(3,\infty)}"),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "response"), PAID)
def test_right_answer_is_verified(gold, response):
    assert verdict(response, gold) is VERIFIED


@pytest.mark.parametrize("gold", sorted({gold for gold, _ in PAID}))
def test_gold_answer_equals_itself_boxed(gold):
    assert verdict(f"With 7 cases left, \\boxed{{{gold}}}.", gold) is VERIFIED


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        (r"\frac{x^2}{2}", r"\int x \, dx"),
        ("1", r"\sum_{k=1}^{\infty} \frac{1}{2^k}"),
        ("1", r"\lim_{x \to 0} \frac{\sin x}{x}"),
    ],
)
def test_answer_outside_the_grammar_goes_to_math_verify(gold, text):
    assert isinstance(math(f"\\boxed{{{text}}}", gold), Task)


@pytest.mark.parametrize(
    "text", [r"\sum_{k=1}^{10} \foo k^2", r"\int x dx \text{ or so}", r"385 \mid \sum_{k=1}^{10} k^2"]
)
def test_partly_readable_answer_is_not_sent_to_math_verify(text):
    assert verdict(f"\\boxed{{{text}}}", "385") is UNPARSED


@given(st.from_regex(r"[a-z]{4,9}", fullmatch=True))
def test_word_after_a_number_is_dropped_only_if_it_is_a_unit(word):
    paid = verdict(f"\\boxed{{7 {word}}}", "7") is VERIFIED
    assert paid == (unit(word) is not None or word == "percent")


@pytest.mark.parametrize("word", ["cubed", "pi", "xy", "sqrt", "thirds", "mod"])
def test_words_that_change_a_number_are_not_dropped(word):
    assert verdict(f"\\boxed{{2 {word}}}", "2") is not VERIFIED
    assert verdict(f"The answer is 2 {word}.", "2") is not VERIFIED


def test_math_verify_also_drops_every_listed_unit():
    kept = [
        u
        for u in UNITS
        if not math_verify.verify(math_verify.parse("$7$"), math_verify.parse(rf"\boxed{{7\text{{ {u}}}}}"))
    ]
    assert kept == []


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("meters", "m"), ("Inches", "in"), ("lbs", "lb"), ("mph", "mi/h"), ("meters per second", "m/s"),
        ("sq. ft.", "ft^2"),
        ("cm^{2}", "cm^2"), ("cubic meters", "m^3"), ("people per day", "person/day"), ("MB", "MB"), ("mb", None),
        ("pi", None),
        ("s s", None), ("", None), ("per", None), ("square", None), ("x per hour", None), ("times 3", None),
    ],
)  # fmt: skip
def test_usual_abbreviation_of_a_unit_is_read(text, name):
    assert unit(text) == name


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3 million", 3_000_000), ("1.25 million", 1_250_000), ("1.5 dozen", 18), ("2 hundred thousand", 200_000),
        ("1,200 million", 1_200_000_000),
        (r"5\text{ million dollars}", 5_000_000), ("0.000000001 thousand", Fraction(1, 10**6)),
        (r"6.63 \times 10^{-34}", Fraction("6.63e-34")),
        (r"2\frac{1}{2}", Fraction(5, 2)), (r"\approx 3.14", Fraction("3.14")), ("x = 3.14", Fraction("3.14")),
        (r"\$2.50", Fraction("2.5")),
    ],
)  # fmt: skip
def test_quantity_reads_numbers_as_they_are_written(text, value):
    read = quantity(text)
    assert read is not None and read.value == value


@pytest.mark.parametrize("text", ["x^2 million", "3 millions", "x", "1, 2", "", "three", r"\infty"])
def test_quantity_reads_no_number_in_anything_else(text):
    assert quantity(text) is None


COMPETITION = (
    "2^{4950}", "x^{9900}", "2^{2^{7}}", "2^{2^{n}}", "e^{x^2}", r"\frac{3^{2014}}{2014!}", r"\binom{4048}{2024}",
    r"\sum_{k=1}^{30} 2^{k-1}",
)  # fmt: skip


@pytest.mark.parametrize("text", COMPETITION)
def test_competition_answers_are_not_refused(text):
    assert refusal(text) is None


FALSE_POSITIVES = (
    ("The answer is 3e10", "3"), ("The answer is 0.0000001", "0.0000004"), (r"\boxed{1\,2}", "3"),
    (r"\boxed{1 2}", "3"),
    (r"\boxed{5\text{ km}}", r"5\text{ m}"), (r"\boxed{5\text{ million}}", "5"),
)  # fmt: skip


@pytest.mark.parametrize(("response", "gold"), FALSE_POSITIVES)
def test_false_positives_of_math_verify_are_not_verified(response, gold):
    """If a release of math-verify corrects a case, the first assertion fails, and its line in docs/rewards.md can be
    removed."""
    assert math_verify.verify(math_verify.parse(f"${gold}$"), math_verify.parse(response))
    assert verdict(response, gold) is not VERIFIED
