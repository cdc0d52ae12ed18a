"""Finds the value that a sentence states: a formula, or a number with its unit.

A sentence that only bounds or negates a value states no value.
"""

from __future__ import annotations

import re

from treeadv.rewards.parsing.notation import characters
from treeadv.rewards.parsing.units import CHANGING, unit

FORMULA = re.compile(
    r"(?<!\\)\$\$((?:[^$\\]|\\.){1,2000})\$\$|(?<!\\)\$((?:[^$\\]|\\.){1,2000})\$"
    r"|\\\(((?:(?!\\\().){1,2000}?)\\\)|\\\[((?:(?!\\\[).){1,2000}?)\\\]",
    re.DOTALL,
)
_STOP = re.compile(r"(?<!\bi\.e)(?<!\be\.g)(?<!\bapprox)(?<!\bDr)(?<!\bMr)(?<!\bSt)\.(?=\s|$)|\n|\u3002")
_JOINT = re.compile(r"(?:[\s.:;,]|\band\b|\bor\b){1,30}", re.IGNORECASE)
_CLAUSE = re.compile(
    r",?\s+(?:because|since|as|so|which|where|for|when|given|therefore|thus|hence|by|from|after|if|but|while)\b"
    r"|;\s+(?=I\b|[A-Za-z]{2,}\s)|\s+\((?![^()]*\)\s*$)",
    re.IGNORECASE,
)
_DOUBT = re.compile(  # words before a value that negate or bound the value
    r"(?:\b(?:not|never|neither|nor|or|cannot|without|except|least|most|more than|less than|fewer than|greater than"
    r"|larger than|smaller than|over|under|above|below|between|up to|exceeds?|unlike|minus|times|plus|divisible by"
    r"|multiplied by|divided by|twice|double|triple|negative|base|log|sqrt|ln|modulo|mod|divides"
    r"|besides|other than|hardly|unlikely to)|n't)"
    r"\s+(?:be\s+|equal\s+(?:to\s+)?|than\s+|is\s+)?\W{0,2}$"
    r"|(?:\b(?:multiples?|squares?|roots?|cubes?|half|third|quarter|percent|sum|product|difference|power|reciprocal"
    r"|inverse|opposite|negative|factorial|divisors?|factors?|one|out)|%)\s+of\s+\W{0,2}$",
    re.IGNORECASE,
)
_JOINED = re.compile(r"\d\S*\s+(?:and|or|to)\s+$", re.IGNORECASE)  # the value is the second of two
_BOUND = re.compile(  # a sign, an open bracket or a letter that belongs to the following value
    r"(?:\\(?!approx|sim|quad|qquad|therefore|implies|Rightarrow|to\b)[A-Za-z]+\s*|(?<![<>])[<>]=?\s*|!=\s*|[|^]\s*"
    r"|\d[^\S\n]*|[\[(][^\])\n]{0,20},\s*|(?<![A-Za-z])[A-Za-z]|(?<!-)-|(?:=|:|\bis)\s*-\s)\Z"
)
_OF_ANOTHER = re.compile(  # the value is a part of another, or the first of two
    r"\s+(?:out\s+)?of\s+(?:[\d$\\(]|[a-z]\b)|\s+base\b|,?\s+(?:or|and)\s+(?:maybe\s+|perhaps\s+|possibly\s+)?\d"
)
_GLUED_AFTER = re.compile(r"[A-Za-z](?![A-Za-z])|[\d^/]|\s*\|")
_DENIED = re.compile(
    r"\s*(?:(?:is|are|was|were|does|do|did|can|could|would|will|should|seems?|looks?)?"
    r"(?:n't|not\b|\s+(?:not|wrong|incorrect|false|impossible|invalid|too)\b)|\s(?:cannot|fails)\b)"
)
_CHANGED = re.compile(
    rf"\s*(?:{CHANGING.pattern}|and\s+a\s+half\b)",
    re.IGNORECASE,
)
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?(?:[eE][-+]?\d+(?!\w))?|\.\d+)"
_WORD = r"(?:sqrt|cbrt|sin|cos|tan|log|ln|exp|pi|abs|gcd|lcm|binom)"
_BRACKET = r"\([^()\n]{0,200}(?:\([^()\n]{0,100}\)[^()\n]{0,100})*\)|\{[^{}\n]{0,200}\}"
_ATOM = rf"(?:\\[A-Za-z]+|{_NUMBER}|{_WORD}(?![A-Za-z])|[A-Za-z](?![A-Za-z'])|{_BRACKET})"
_OPERATOR = r"(?:\s*(?:\*\*|<=|>=|!=|[-+*/^=<>_]|\\(?:times|cdot|div|le|ge|ne|leq|geq|neq|pm|approx)\b)\s*-?\s*)"
_EXPRESSION = re.compile(
    rf"(?<![\w.,^\\]){_ATOM}(?:{_OPERATOR}{_ATOM}|(?<=[\d)}}\w]){_ATOM})*!?(?:\^\\circ|\^\{{\\circ\}})?(?:\s?\\?%)?",
    re.ASCII,
)
_SIGNED = re.compile(r"(?:(?<![\w)])-\s*|[\u00a3\u20ac\u00a5]\s?|\\?\$\s?|(?<![\w)])-\s?\\?\$\s?)$", re.ASCII)
_GLUED = re.compile(rf"({_NUMBER})((?:[A-Za-z]{{2,}}|[A-Za-z](?=\^))(?:\^\{{?[23]\}}?)?)")
_MIXED = re.compile(r"\d+ \d+/\d+(?![\d/])")
_UNIT = re.compile(
    r"\s?(?:\\?%|percent\b|pct\b|((?:(?:square|cubic|sq\.?|cu\.?)\s+)?[A-Za-z]+(?:\s?/\s?[A-Za-z]+"
    r"|\s+per\s+[A-Za-z]+)?(?:\^\{?[23]\}?)?))"
)
_PROSE = re.compile(r"(?<![\\A-Za-z])(?!and\b|or\b)[A-Za-z]{3,}")


def sentence(text: str) -> str:
    """Return the first sentence of a text."""
    return _STOP.split(text, maxsplit=1)[0]


def answer_in(text: str) -> str | None:
    """Return the answer in a text that follows "the answer is".

    The answer is the first formulas of the text, a leading number with its unit, or the words of the text.
    """
    if formulas := _leading_formulas(text):
        return formulas
    stated = sentence(text).strip(' \t\r*_`"')
    if any(_is_formula(m) for m in FORMULA.finditer(stated)):
        return _stated_formulas(stated)
    clause = _CLAUSE.split(stated, maxsplit=1)[0].strip(' \t,;:*_`"')
    if not _PROSE.search(re.sub(r"\\text\{[^{}]*\}", "", clause)):
        return clause or None
    if re.match(r"(?:not|at least|at most|more than|less than|between|greater than)\b", clause, re.IGNORECASE):
        return None
    values = [m for m in _EXPRESSION.finditer(clause) if re.search(r"\d|\bpi\b|\\", m[0])]
    if not values:
        return clause
    before_first = clause[: values[0].start()]
    leads = not _PROSE.search(before_first) and not re.search(r"[A-Za-z]", before_first)
    if (
        leads
        and any(c in clause for c in "\\=^<>")
        and len(values[0][0]) < len(clause)
        and not _PROSE.search(clause[values[0].end() :])
    ):
        return clause
    return _with_context(clause, values[0] if leads else values[-1])


def last_value(text: str) -> str | None:
    """Return the last formula or number of a text without a marked answer."""
    text = characters(text)
    formulas = [m for m in FORMULA.finditer(text) if _is_formula(m)]
    hidden = FORMULA.sub(lambda m: " " * len(m[0]) if _is_formula(m) else m[0], text)
    numbers = [m for m in _EXPRESSION.finditer(hidden) if re.search(r"\d", m[0])]
    if formulas and (not numbers or formulas[-1].start() > numbers[-1].start()):
        return _in_context(text, formulas, len(formulas) - 1)
    if not numbers:
        return None
    return _with_context(hidden, numbers[-1])


def _is_formula(match: re.Match[str]) -> bool:
    """Return whether the text between two dollar signs is mathematics and not prose between two prices."""
    content = _content(match)
    words = re.findall(
        r"(?<![\\A-Za-z{])[A-Za-z]{4,}",
        re.sub(r"\\(?:text|mathrm|textbf|mbox|operatorname|begin|end)\s*\{[^{}]*\}", "", content),
    )
    return len(words) < 2 and bool(content.strip())


def _content(match: re.Match[str]) -> str:
    return next(g for g in match.groups() if g is not None)


def _leading_formulas(text: str) -> str | None:
    """Return the formulas at the start of a text: the first formula, and the formulas joined by commas, "and" or
    "or"."""
    lead = re.match(r"[\s:*\"]*", text)
    first = FORMULA.match(text, lead.end() if lead else 0)
    if first is None or not _is_formula(first):
        return None
    formulas = [m for m in FORMULA.finditer(text, first.start()) if _is_formula(m)]
    return _in_context(text, formulas, 0)


def _stated_formulas(stated: str) -> str | None:
    """Return the first formula after the last "is", "are", "be" or "equals" of a sentence, or else the last formula."""
    formulas = [m for m in FORMULA.finditer(stated) if _is_formula(m)]
    hidden = FORMULA.sub(lambda m: "\x00" * len(m[0]), stated)
    verbs = list(re.finditer(r"\b(?:is|are|be|equals|equal to|:)\s*", hidden))
    tail = hidden[verbs[-1].end() :] if verbs else ""
    if (
        verbs
        and tail
        and not tail.startswith("\x00")
        and (plain := [m for m in _EXPRESSION.finditer(tail) if re.search(r"\d", m[0])])
    ):
        return _with_context(tail, plain[0])
    later = [n for n, m in enumerate(formulas) if verbs and m.start() >= verbs[-1].end()]
    return _in_context(stated, formulas, later[0] if later else len(formulas) - 1)


def _in_context(text: str, formulas: list[re.Match[str]], index: int) -> str | None:
    """Return a formula with the formulas joined to it and with its unit.

    None if the surrounding words negate, bound or change the formula."""
    first = last = index
    while last + 1 < len(formulas) and _JOINT.fullmatch(text[formulas[last].end() : formulas[last + 1].start()]):
        last += 1
    while (
        first
        and _JOINT.fullmatch(text[formulas[first - 1].end() : formulas[first].start()])
        and "\n" not in (text[formulas[first - 1].end() : formulas[first].start()])
    ):
        first -= 1
    before = text[max(0, formulas[first].start() - 60) : formulas[first].start()]
    after = text[formulas[last].end() :]
    unit_name, rest = _unit_after(after)
    if _is_doubtful(before) or _is_changed(rest, unit_name):
        return None
    content = ", ".join(_content(m).strip() for m in formulas[first : last + 1])
    return content + (unit_name if first == last else "")


def _with_context(text: str, match: re.Match[str]) -> str | None:
    """Return a number or a plain expression with its sign, currency and unit.

    None if the surrounding words negate, bound or change the value.
    """
    begin, end = match.start(), match.end()
    found = match[0]
    if (glued := _GLUED.fullmatch(found)) and unit(glued[2]):
        found = glued[1] + _as_text(glued[2])
    if mixed := _MIXED.match(text, begin):
        found, end = mixed[0], mixed.end()
    elif (mixed := re.search(r"(?<![\w.])\d+ $", text[max(0, begin - 12) : begin])) and re.fullmatch(r"\d+/\d+", found):
        begin -= len(mixed[0])
        found = mixed[0] + found
    if signed := _SIGNED.search(text[max(0, begin - 6) : begin]):
        begin -= len(signed[0])
        found = signed[0] + found
    before = text[max(0, begin - 60) : begin]
    if _is_doubtful(before) or before.endswith(("^", "\\")):
        return None
    after = text[end:]
    if multiplied := re.match(r"\s(?:dozen|hundred|thousand|million|billion|trillion)\b", after):
        found += multiplied[0]
        after = after[multiplied.end() :]
    unit_name, rest = _unit_after(after)
    return None if _is_changed(rest, unit_name) else found + unit_name


def _is_doubtful(before: str) -> bool:
    """Return whether the words before a value negate or bound the value, or name a part or a function of the value."""
    return any(pattern.search(before) for pattern in (_DOUBT, _JOINED, _BOUND))


def _is_changed(after: str, unit_name: str) -> bool:
    """Return whether the words after a value and its unit negate or change the value."""
    return any(pattern.match(after) for pattern in (_OF_ANOTHER, _DENIED, _GLUED_AFTER)) or (
        not unit_name and _CHANGED.match(after) is not None
    )


def _unit_after(after: str) -> tuple[str, str]:
    """Return the unit at the start of a text, as LaTeX text ("" without a unit), and the text after the unit."""
    match = _UNIT.match(after)
    if match is None:
        return "", after
    if match[1] is None:
        return r"\%", after[match.end() :]
    name = match[1]
    while name and unit(name) is None:
        name = name.rpartition(" ")[0] if " " in name else ""
    return (_as_text(name), after[match.start(1) + len(name) :]) if name else ("", after)


def _as_text(name: str) -> str:
    """Return a unit as LaTeX text. Braces inside the unit are removed."""
    return rf"\text{{ {name.replace('{', '').replace('}', '')}}}"
