"""Rewrites gold answers as responses whose answer, by construction, equals the gold answer or differs from it. A
rewrite takes a gold answer and a random generator. It returns a response, or None if it does not apply.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from fractions import Fraction

Rewrite = Callable[[str, random.Random], str | None]
EQUAL: dict[str, Rewrite] = {}
UNEQUAL: dict[str, Rewrite] = {}

_INTEGER = re.compile(r"-?\d{1,15}")
_FRACTION = re.compile(r"(-?)\\[dt]?frac\{(\d{1,9})\}\{(\d{1,9})\}")
_ROOT = re.compile(r"(-?)(\d{0,4})\\sqrt\{(\d{1,4})\}")
_PAIR = re.compile(
    r"(?:\\left)?\(([^(),;\\]+|-?\\frac\{\d+\}\{\d+\}),\s*([^(),;\\]+|-?\\frac\{\d+\}\{\d+\})(?:\\right)?\)"
)
_LIST = re.compile(r"-?\d+(?:,\s*-?\d+)+")
_INTERVAL = re.compile(r"([(\[])(-?\d+),\s*(-?\d+)([)\]])")
_SUM = re.compile(r"(\d*[a-z](?:\^\{?\d\}?)?)\s*\+\s*(\d+|\d*[a-z])")
_VARIABLE = re.compile(r"(?<![A-Za-z\\{])([a-z])(?![A-Za-z])")
THOUSANDS = re.compile(r"(?<!\d)\d{1,3}(?:,\d{3})+(?!\d)")  # a gold answer that may be a number or a list


def is_formula(gold: str) -> bool:
    """Return whether a gold answer is one formula with balanced braces and no prose."""
    plain = re.sub(r"\\[A-Za-z]+", "", gold)
    return (
        not re.search(r"\$|[A-Za-z]{4}", plain)
        and not re.search(r"\\(?:text|begin|\()", gold)
        and plain.count("{") == plain.count("}")
    )


def equal(rewrite: Rewrite) -> Rewrite:
    EQUAL[rewrite.__name__] = rewrite
    return rewrite


def unequal(rewrite: Rewrite) -> Rewrite:
    UNEQUAL[rewrite.__name__] = rewrite
    return rewrite


def boxed(text: str) -> str:
    return f"First I write down what is given, so with 7 cases left we are done.\n\nTherefore \\boxed{{{text}}}."


def integer(gold: str) -> int | None:
    return int(gold) if _INTEGER.fullmatch(gold) else None


def fraction(gold: str) -> Fraction | None:
    m = _FRACTION.fullmatch(gold)
    return Fraction(int(m[1] + m[2]), int(m[3])) if m and int(m[3]) else None


def latex(value: Fraction) -> str:
    return f"{'-' * (value < 0)}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


# Equal: position of the answer


@equal
def in_a_sentence(gold: str, rng: random.Random) -> str | None:
    return f"We are done. The final answer is ${gold}$." if is_formula(gold) else None


@equal
def in_a_tag(gold: str, rng: random.Random) -> str | None:
    return f"<think>Perhaps \\boxed{{13}}?</think>\n<answer>{gold}</answer>"


@equal
def after_a_thought(gold: str, rng: random.Random) -> str | None:
    return f"<think>It may be \\boxed{{-3}} or 4.</think> So \\boxed{{{gold}}}"


@equal
def with_an_empty_box(gold: str, rng: random.Random) -> str | None:
    return rng.choice(
        (
            f"I answer in \\boxed{{}}. It is \\boxed{{{gold}}}.",
            f"It is \\boxed{{{gold}}}. The answer stands in \\boxed{{}}.",
        )
    )


@equal
def with_an_explanation(gold: str, rng: random.Random) -> str | None:
    return f"The answer is {gold}, since all other cases fail for 3 reasons." if integer(gold) is not None else None


@equal
def with_an_end_token(gold: str, rng: random.Random) -> str | None:
    return f"Answer: {gold}{rng.choice(('</s>', '<|im_end|>', '<|endoftext|>'))}" if integer(gold) is not None else None


@equal
def in_bold(gold: str, rng: random.Random) -> str | None:
    return f"**Final answer:** **{gold}**" if integer(gold) is not None else None


@equal
def unmarked(gold: str, rng: random.Random) -> str | None:
    return (
        f"Step 2 gives the value ${gold}$."
        if integer(gold) is not None or fraction(gold) is not None or _ROOT.fullmatch(gold)
        else None
    )


@equal
def after_hashes(gold: str, rng: random.Random) -> str | None:
    return f"7 * 6 = 42\n#### {gold}" if integer(gold) is not None else None


@equal
def in_chinese(gold: str, rng: random.Random) -> str | None:
    return rng.choice((f"所以答案是{gold}。", f"总共有{gold}个")) if integer(gold) is not None else None


# Equal: typesetting of the answer


@equal
def with_spacing(gold: str, rng: random.Random) -> str | None:
    return boxed(f"\\, {gold} \\;") if is_formula(gold) else None


@equal
def with_display_style(gold: str, rng: random.Random) -> str | None:
    return boxed(f"\\displaystyle {gold}") if is_formula(gold) else None


@equal
def with_dollars(gold: str, rng: random.Random) -> str | None:
    return boxed(f"${gold}$") if "$" not in gold else None


@equal
def with_sized_brackets(gold: str, rng: random.Random) -> str | None:
    if (
        not is_formula(gold)
        or "(" not in gold
        or "\\left" in gold
        or not all(c not in gold for c in "[]|")
        or gold.count("(") != gold.count(")")
    ):
        return None
    return boxed(gold.replace("(", "\\left(").replace(")", "\\right)"))


@equal
def with_other_fractions(gold: str, rng: random.Random) -> str | None:
    return (
        boxed(re.sub(r"\\[dt]?frac", lambda m: rng.choice((r"\dfrac", r"\tfrac", r"\frac")), gold))
        if "frac" in gold
        else None
    )


@equal
def with_short_fractions(gold: str, rng: random.Random) -> str | None:
    m = re.fullmatch(r"\\frac\{(\d)\}\{(\d)\}", gold)
    return boxed(rng.choice((f"\\frac{m[1]}{m[2]}", f"\\frac {m[1]} {m[2]}", f"\\frac{m[1]}{{{m[2]}}}"))) if m else None


@equal
def in_unicode(gold: str, rng: random.Random) -> str | None:
    text = (
        gold.replace(r"\pi", "π")
        .replace(r"\infty", "∞")
        .replace(r"^\circ", "°")
        .replace(r"\cup", "\u222a")
        .replace(r"\le ", "≤ ")
    )
    text = re.sub(r"\\sqrt\{(\d+)\}", r"√\1", text)
    text = re.sub(r"\^(?:\{(\d+)\}|(\d))", lambda m: "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(d)] for d in m[1] or m[2]), text)
    text = text.replace("-", "\u2212")
    return boxed(text) if text != gold and is_formula(gold) else None


@equal
def in_full_width(gold: str, rng: random.Random) -> str | None:
    text = gold.translate({ord(c): ord(c) + 0xFEE0 for c in "(),"})
    return (
        boxed(text) if text != gold and "\\" not in gold and is_formula(gold) and not THOUSANDS.search(gold) else None
    )


@equal
def in_colour(gold: str, rng: random.Random) -> str | None:
    return (
        None
        if not is_formula(gold)
        else boxed(rng.choice((f"\\color{{red}}{{{gold}}}", f"\\textcolor{{blue}}{{{gold}}}", f"\\mathbf{{{gold}}}")))
    )


@equal
def with_a_label(gold: str, rng: random.Random) -> str | None:
    return boxed(rng.choice((f"\\text{{Answer: }} {gold}", f"**{gold}**"))) if integer(gold) is not None else None


# Equal: numbers


@equal
def with_thousands(gold: str, rng: random.Random) -> str | None:
    n = integer(gold)
    if n is None or abs(n) < 1000:
        return None
    return boxed(f"{n:,}".replace(",", rng.choice((",", r"\,", "{,}", ",\\!", " "))))


@equal
def as_a_decimal(gold: str, rng: random.Random) -> str | None:
    if (n := integer(gold)) is not None:
        return boxed(f"{n}.{'0' * rng.randrange(1, 4)}")
    value = fraction(gold)
    return boxed(f"{float(value):.10f}".rstrip("0")) if value and abs(value) > Fraction(1, 10) else None


@equal
def as_a_fraction(gold: str, rng: random.Random) -> str | None:
    k = rng.randrange(2, 9)
    if (n := integer(gold)) is not None:
        return boxed(f"\\frac{{{n * k}}}{{{k}}}")
    value = fraction(gold)
    return (
        boxed(
            rng.choice(
                (
                    f"\\frac{{{value.numerator * k}}}{{{value.denominator * k}}}",
                    f"{value.numerator}/{value.denominator}",
                )
            )
        )
        if value
        else None
    )


@equal
def as_a_mixed_number(gold: str, rng: random.Random) -> str | None:
    value = fraction(gold)
    if value is None or value < 1 or value.denominator == 1:
        return None
    whole, rest = divmod(value.numerator, value.denominator)
    return boxed(rng.choice((f"{whole}\\frac{{{rest}}}{{{value.denominator}}}", f"{whole} {rest}/{value.denominator}")))


@equal
def as_arithmetic(gold: str, rng: random.Random) -> str | None:
    n = integer(gold)
    if n is None:
        return None
    k = rng.randrange(1, 50)
    return boxed(
        rng.choice(
            (
                f"{n - k} + {k}",
                f"{n + k} - {k}",
                f"\\sqrt{{{n * n}}}" if n >= 0 else f"-\\sqrt{{{n * n}}}",
                f"{n} \\cdot 1",
                f"{k} + {n - k} = {n}",
            )
        )
    )


@equal
def in_scientific_notation(gold: str, rng: random.Random) -> str | None:
    n = integer(gold)
    if n is None or n == 0 or n % 100:
        return None
    power = len(str(abs(n))) - 1
    mantissa = str(Fraction(n, 10**power).limit_denominator(10**12)) if n % 10**power == 0 else f"{n / 10**power!r}"
    return boxed(
        rng.choice((f"{mantissa} \\times 10^{{{power}}}", f"{mantissa}e{power}", f"{mantissa} \\cdot 10^{power}"))
    )


@equal
def with_a_unit(gold: str, rng: random.Random) -> str | None:
    if integer(gold) is None and fraction(gold) is None:
        return None
    return boxed(
        gold
        + rng.choice(
            (
                r"\text{ cm}",
                r"\ \mathrm{km}",
                r" \text{ dollars}",
                r"\text{ square units}",
                r"^\circ",
                r"\text{ ways}",
                " hours",
            )
        )
    )


@equal
def with_a_name(gold: str, rng: random.Random) -> str | None:
    return (
        boxed(f"{rng.choice(('x', 'n', 'f(2)', 'a_{3}', '|AB|'))} = {gold}")
        if integer(gold) is not None or fraction(gold) is not None
        else None
    )


@equal
def as_a_percentage(gold: str, rng: random.Random) -> str | None:
    value = fraction(gold)
    if value is None or (value * 10000).denominator != 1:
        return None
    return boxed(f"{float(value * 100):g}\\%")


# Equal: expressions


@equal
def with_a_root_expanded(gold: str, rng: random.Random) -> str | None:
    m = _ROOT.fullmatch(gold)
    if m is None:
        return None
    factor, radicand = int(m[2] or 1), int(m[3])
    return boxed(rng.choice((
        f"{m[1]}\\sqrt{{{factor * factor * radicand}}}", f"{m[1]}{factor}*sqrt({radicand})",
        f"{m[1]}{factor} \\cdot {radicand}^{{1/2}}",
        f"{m[1]}{factor}\\sqrt{radicand}" if radicand < 10 else f"{m[1]}{factor} \\sqrt {{{radicand}}}",
    )))  # fmt: skip


@equal
def in_plain_text(gold: str, rng: random.Random) -> str | None:
    text = re.sub(r"\\frac\{(\d+)\}\{(\d+)\}", r"(\1/\2)", gold)
    text = re.sub(r"\\sqrt\{(\d+)\}", r"sqrt(\1)", text).replace(r"\pi", "*pi" if re.match(r"\d", gold) else "pi")
    if (
        text == gold
        or "\\" in text
        or not re.fullmatch(r"[\d()/*+\-pisqrt ]+", text)
        or re.search(r"[/+(-] ?\*|\d \(", text)
    ):
        return None
    return boxed(re.sub(r"(\d|\))(?=sqrt)", r"\1*", text))


@equal
def with_a_sum_reordered(gold: str, rng: random.Random) -> str | None:
    m = _SUM.fullmatch(gold)
    return boxed(f"{m[2]} + {m[1]}") if m else None


@equal
def with_a_term_added_and_taken(gold: str, rng: random.Random) -> str | None:
    if not re.fullmatch(r"[\da-z^{}+\- ]+", gold) or not re.search(r"[a-z]", gold) or re.search(r"[a-z]{2}", gold):
        return None
    return boxed(f"{gold} + 3 - 3")


# Equal: collections


@equal
def with_a_list_reordered(gold: str, rng: random.Random) -> str | None:
    if not _LIST.fullmatch(gold) or THOUSANDS.search(gold):
        return None
    items = [i.strip() for i in gold.split(",")]
    rng.shuffle(items)
    return boxed(rng.choice((", ".join(items),
    f"\\{{{', '.join(items)}\\}}" if len(set(items)) == len(items) else ", ".join(items),
                             ", ".join(items[:-1]) + r" \text{ and } " + items[-1])))  # fmt: skip


@equal
def with_boxes_side_by_side(gold: str, rng: random.Random) -> str | None:
    if not _LIST.fullmatch(gold) or THOUSANDS.search(gold):
        return None
    joint = rng.choice((" and ", ", ", r" \quad \text{and} \quad ", r",\ "))
    return "So we get $" + joint.join(f"\\boxed{{{i.strip()}}}" for i in gold.split(",")) + "$."


@equal
def with_a_pair_spaced(gold: str, rng: random.Random) -> str | None:
    m = _PAIR.fullmatch(gold)
    return (
        boxed(rng.choice((f"( {m[1]} , {m[2]} )", f"\\left( {m[1]},\\, {m[2]} \\right)", f"(x,y)=({m[1]},{m[2]})")))
        if m
        else None
    )


@equal
def as_an_inequality(gold: str, rng: random.Random) -> str | None:
    m = _INTERVAL.fullmatch(gold)
    if m is None or int(m[2]) >= int(m[3]):
        return None
    signs = [r"\le" if bracket in "[]" else "<" for bracket in (m[1], m[4])]
    return boxed(rng.choice((f"{m[2]} {signs[0]} x {signs[1]} {m[3]}", f"x \\in {gold}")))


@equal
def as_words(gold: str, rng: random.Random) -> str | None:
    m = re.fullmatch(r"\\text\{([A-Za-z]{3,})\}|([A-Za-z]{3,})", gold)
    return (
        boxed(rng.choice(((m[1] or m[2]), f"\\text{{{m[1] or m[2]}}}", f"\\text{{{(m[1] or m[2]).lower()}}}")))
        if m
        else None
    )


# Unequal


@unequal
def number_off(gold: str, rng: random.Random) -> str | None:
    n = integer(gold)
    return boxed(str(n + rng.choice((-10, -1, 1, 2, 10, 100)))) if n is not None else None


@unequal
def sign_flipped(gold: str, rng: random.Random) -> str | None:
    n = integer(gold)
    if n:
        return rng.choice((boxed(str(-n)), f"The answer is {-n}.", boxed(f"x = {-n}")))
    value = fraction(gold)
    return boxed(latex(-value)) if value else None


@unequal
def digit_changed(gold: str, rng: random.Random) -> str | None:
    places = [i for i, c in enumerate(gold) if c.isdigit() and c not in "0"]
    if not places or "\\text" in gold or "_" in gold or re.search(r"[A-Za-z]{4}", re.sub(r"\\[A-Za-z]+", "", gold)):
        return None
    i = rng.choice(places)
    changed = gold[:i] + rng.choice([d for d in "123456789" if d != gold[i]]) + gold[i + 1 :]
    return boxed(changed) if _kept_value(gold, changed) is False else None


def _kept_value(gold: str, changed: str) -> bool | None:
    """Return whether a changed digit keeps the value; None if that is unknown, as in 1^2, x^{0}, lists in another
    order, \\log and percent signs."""
    if re.search(r"\^|log|ln|%|,|0|\\pm|\\frac\{\d+\}\{\d+\}|:|=|\\le|\\ge|<|>|begin", gold):
        a, b = fraction(gold), fraction(changed)
        return a == b if a is not None and b is not None else None if integer(gold) is None else False
    return False


@unequal
def magnitude_changed(gold: str, rng: random.Random) -> str | None:
    n = integer(gold)
    return (
        boxed(
            rng.choice((f"{n}0", f"{n} \\times 10^{{3}}", f"{n}\\text{{ million}}", f"{n}e3", f"\\frac{{{n}}}{{10}}"))
        )
        if n
        else None
    )


@unequal
def fraction_turned(gold: str, rng: random.Random) -> str | None:
    value = fraction(gold)
    return boxed(latex(1 / value)) if value and abs(value) != 1 else None


@unequal
def fraction_off(gold: str, rng: random.Random) -> str | None:
    value = fraction(gold)
    return boxed(latex(value + Fraction(1, value.denominator))) if value and value.denominator > 1 else None


@unequal
def decimal_too_short(gold: str, rng: random.Random) -> str | None:
    value = fraction(gold)
    if value is None or abs(value) < Fraction(1, 10) or (value * 100).denominator == 1:
        return None
    return boxed(f"{float(value):.2f}")


@unequal
def only_a_part(gold: str, rng: random.Random) -> str | None:
    value = fraction(gold)
    if value and value.denominator != 1 and value.numerator != value:
        return boxed(str(rng.choice((value.numerator, value.denominator))))
    m = _ROOT.fullmatch(gold)
    return boxed(m[3]) if m and m[2] != m[3] else None


@unequal
def number_in_a_formula(gold: str, rng: random.Random) -> str | None:
    n = integer(gold)
    if n is None or n < 2:
        return None
    form = rng.choice((r"x \geq {}", r"\frac{{1}}{{{}}}", r"2\sqrt{{{}}}", "(7, {})", r"x^{{{}}}", r"{}x", r"\log {}",
    "y < {}", r"\binom{{{}}}{{1}} + 1",
                       r"\{{1, {}\}}", "[0, {}]", r"{}\pi"))  # fmt: skip
    return rng.choice(("Hence ${}$.", "So we obtain ${}$.", "Therefore \\boxed{{{}}}.")).format(form.format(n))


@unequal
def unreadable(gold: str, rng: random.Random) -> str | None:
    n = integer(gold)
    if n is None:
        return None
    return boxed(
        rng.choice(
            (
                r"\foo{{x}} + {}",
                r"x² + {}",
                r"41 \mid {}",
                r"\begin{{cases}}x={}\\y=3\end{{cases}}",
                r"\bar{{}} {}",
                r"? {}",
                r"7 \equiv {}",
            )
        ).format(n)
    )


@unequal
def only_thought(gold: str, rng: random.Random) -> str | None:
    return rng.choice((f"<think>It is \\boxed{{{gold}}}.</think> I cannot decide.",
    f"<think>Perhaps \\boxed{{{gold}}}, let me check",
                       f"It is \\boxed{{{gold}}}.</think> I cannot decide."))  # fmt: skip


@unequal
def cut_off(gold: str, rng: random.Random) -> str | None:
    return (
        rng.choice((f"The answer is \\boxed{{{gold}", f"#### \\boxed{{{gold}", f"So it is <answer>{gold}"))
        if "}" not in gold
        else None
    )


@unequal
def denied(gold: str, rng: random.Random) -> str | None:
    if integer(gold) is None:
        return None
    form = rng.choice(("The answer is not {}.", "The answer is at least {}.", "The answer is {} times 3.",
    "The answer is {} or more.", "It is not {}.",
                       "The answer is more than {}.", "It must be less than ${}$.", "The answer is {} squared.",
                       "The answer is {} log 3."))  # fmt: skip
    return form.format(gold)


@unequal
def list_changed(gold: str, rng: random.Random) -> str | None:
    if not _LIST.fullmatch(gold) or THOUSANDS.search(gold):
        return None
    items = [i.strip() for i in gold.split(",")]
    if rng.random() < 0.5 and len(set(items)) == len(items):
        return boxed(", ".join(items[:-1]))
    items[-1] = str(max(map(int, items)) + 1)
    return boxed(", ".join(items))


@unequal
def list_joined(gold: str, rng: random.Random) -> str | None:
    if not re.fullmatch(r"\d+, ?\d+", gold) or THOUSANDS.search(gold):
        n = integer(gold)
        return boxed(f"{n:,}".replace(",", ", ")) if n and n >= 1000 else None
    return boxed(re.sub(r",\s*", "", gold))


@unequal
def pair_swapped(gold: str, rng: random.Random) -> str | None:
    m = _PAIR.fullmatch(gold)
    return boxed(f"({m[2]},{m[1]})") if m and re.sub(r"\s", "", m[1]) != re.sub(r"\s", "", m[2]) else None


@unequal
def interval_changed(gold: str, rng: random.Random) -> str | None:
    m = _INTERVAL.fullmatch(gold)
    if m is None or int(m[2]) >= int(m[3]):
        return None
    return boxed({"(": "[", "[": "("}[m[1]] + gold[1:])


@unequal
def variable_renamed(gold: str, rng: random.Random) -> str | None:
    names = {v for v in _VARIABLE.findall(re.sub(r"\\[A-Za-z]+", " ", gold)) if v not in "eidxfgh"}
    if len(names) != 1 or "text" in gold or re.search(r"[A-Za-z]{2}|=", re.sub(r"\\[A-Za-z]+", " ", gold)):
        return None
    name = names.pop()
    renamed = re.sub(
        rf"(?<![A-Za-z\\]){name}(?![A-Za-z])", "y" if name == "w" else "w" if rng.random() < 0.5 else name.upper(), gold
    )
    return boxed(renamed) if renamed != gold and "mathrm" not in gold else None


@unequal
def letter_dropped(gold: str, rng: random.Random) -> str | None:
    m = re.fullmatch(r"(\d+)\s*([a-z])", gold)
    return boxed(m[1]) if m else None


@unequal
def term_added(gold: str, rng: random.Random) -> str | None:
    if (
        "text" in gold
        or "," in gold
        or re.search(
            r"[=<>%]|\\(?:le|ge|cup|in|pm|circ|infty|begin|ldots|mathrm)|[A-Za-z]{4}",
            re.sub(r"\\(?:d?frac|sqrt)", "", gold),
        )
    ):
        return None
    return boxed(
        rng.choice((f"{gold} + 1", f"2({gold})", f"({gold})^{{3}} + 5", f"{gold} + x"))
        if gold.strip("$ ") != "0"
        else f"{gold} + 1"
    )


@unequal
def unit_changed(gold: str, rng: random.Random) -> str | None:
    m = re.fullmatch(
        r"(\d+(?:\.\d+)?)\s*\\(?:text|mathrm)\s*\{[~ ]*(?:cm|m|ft|min|inches|feet|miles|hours|minutes)\s*\}", gold
    )
    return boxed(f"{m[1]}\\text{{ {rng.choice(('kg', 'dollars', 'km', 'days'))}}}") if m else None


@unequal
def base_changed(gold: str, rng: random.Random) -> str | None:
    m = re.fullmatch(r"(\d+)_\{?(\d+)\}?", gold)
    return boxed(f"{m[1]}_{{{int(m[2]) + 1}}}") if m else None
