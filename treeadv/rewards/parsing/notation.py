"""Normalises the notation of answers: Unicode, spacing and styling become one small set of LaTeX commands.

Takes time linear in the length of the text.
"""

from __future__ import annotations

import re
import unicodedata

_CHARACTERS = {
    "\u2212": "-", "\u2013": "-", "\u2014": "-", "\u00d7": r"\times ", "\u00f7": "/", "\u00b7": r"\cdot ",
    "\u22c5": r"\cdot ", "\u2217": "*", "\u2044": "/", "\u2215": "/", "\u221a": r"\sqrt ", "\u221b": r"\cbrt ",
    "\u221e": r"\infty ",
    "\u00b0": r"^\circ ", "\u2264": r"\le ", "\u2265": r"\ge ", "\u2a7d": r"\le ", "\u2a7e": r"\ge ",
    "\u2260": r"\ne ", "\u2248": r"\approx ", "\u00b1": r"\pm ", "\u2213": r"\mp ", "\u2208": r"\in ",
    "\u222a": r"\cup ", "\u2229": r"\cap ", "\u2205": r"\emptyset ", "\u00f8": r"\emptyset ", "\u2216": r"\setminus ",
    "\u211d": r"\mathbb{R}", "\u2124": r"\mathbb{Z}", "\u2115": r"\mathbb{N}", "\u211a": r"\mathbb{Q}",
    "\u2102": r"\mathbb{C}", "\u2220": r"\angle ", "\u25b3": r"\triangle ", "\u2032": "'", "\u2026": r"\ldots ",
    "\u22ef": r"\ldots ", "\u2308": r"\lceil ", "\u2309": r"\rceil ", "\u230a": r"\lfloor ", "\u230b": r"\rfloor ",
    "\u27e8": r"\langle ", "\u27e9": r"\rangle ", "\u2223": "|", "\u2192": r"\to ", "\u3002": ". ", "\u3001": ", ",
    "\uff0c": ", ", "\u201c": '"', "\u201d": '"', "\u2019": "'", "\u2018": "'", "\u00a0": " ", "\u3000": " ",
    "\u200b": "", "\u200c": "", "\u200d": "", "\ufeff": "", "\u2061": "", "\u2062": "", "\u3010": "[", "\u3011": "]",
}  # fmt: skip
_GREEK = {
    chr(code): f"\\{unicodedata.name(chr(code)).rsplit(' ', 1)[1].lower()} "
    for code in range(0x3B1, 0x3CA)
    if code != 0x3C2
}
_GREEK |= {
    "\u0394": r"\Delta ",
    "\u03a9": r"\Omega ",
    "\u03a3": r"\Sigma ",
    "\u03a0": r"\Pi ",
    "\u03a6": r"\Phi ",
    "\u0398": r"\Theta ",
}
_GREEK["\u03bb"] = r"\lambda "
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "0123456789+-()ni")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙₖ", "0123456789+-()nk")
_LISTING = re.compile("[\u6216\u548c\u4e0e\u53ca\u4e14]")  # "or" and "and" in Chinese
_ROOT = re.compile("([\u221a\u221b])(\\d+(?:\\.\\d+)?|[A-Za-z])")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙₖ]+")
_VULGAR = re.compile("[¼½¾⅐-⅞]")
_TABLE = str.maketrans(_CHARACTERS | _GREEK)

_GROUPED = re.compile(  # thousands that are set apart by a space or a braced comma: 12\,345, 12{,}345, 12,\!345, 12 345
    r"(?<![\d.,^_{])(\d{1,3}(?:(?:\\[,!;: ]|\s?\{,\s?\}|~|[ \u2009\u202f]|,\\!\s?)\d{3})+)(?![\d/])"
)
_NO_DIGIT = re.compile(r"[^\d]")
_SPACES = re.compile(
    r"(?<!\\)\\[!,;:> ]|\\q?quad|\\(?:thinspace|medspace|thickspace|enspace|displaystyle|textstyle|scriptstyle|limits"
    r"|nolimits|hfill|normalsize|large|Large|bf|rm|it|cal|centering|par|newline|protect)(?![A-Za-z])|~|&nbsp;"
    r"|[\u2000-\u200a\u202f\s]+"
)
_SIZES = re.compile(r"\\(?:left|right|mleft|mright|middle|[bB]igg?[lrm]?)(?![a-zA-Z])\s*\.?")
_SPACE_COMMAND = re.compile(
    r"\\[hv]space\*?\s*\{[^{}]*\}|\\(?:hphantom|phantom|vphantom|label|tag|color|pagecolor)\s*\{[^{}]*\}"
)
_COLOURED = re.compile(r"\\(?:textcolor|colorbox)\s*\{[^{}]*\}")
_STYLE = re.compile(
    r"\\(?:boldsymbol|bm|pmb|mathbf|mathit|mathnormal|mathsf|mathtt|underline|overbrace|underbrace|ensuremath|hbox"
    r"|displaylines|mathcal|mathop|smash|cancel|bold|boxed|fbox)(?![A-Za-z])\s*"
)
_TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|texttt|textsf|mathrm|mbox|operatorname\*?|emph)\s*\{([^{}]*)\}"
)
_RENAMED = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom", "leq": "le", "geq": "ge",
    "leqslant": "le", "geqslant": "ge", "leqq": "le", "geqq": "ge", "lt": "<", "gt": ">", "neq": "ne", "lbrack": "[",
    "rbrack": "]", "lbrace": r"\{", "rbrace": r"\}", "lgroup": "(", "rgroup": ")", "lparen": "(", "rparen": ")",
    "lvert": "|", "rvert": "|", "vert": "|", "mid": "mid", "ulcorner": "lceil", "urcorner": "rceil",
    "llcorner": "lfloor", "lrcorner": "rfloor", "dots": "ldots", "cdots": "ldots", "dotsc": "ldots", "dotsb": "ldots",
    "dotso": "ldots", "varnothing": "emptyset", "bmod": "mod", "exponentialE": "e", "backslash": "setminus",
    "ast": "*", "div": "/", "colon": ":", "land": r"\text{and}", "lor": r"\text{or}", "vee": r"\text{or}",
    "wedge": r"\text{and}", "simeq": "approx", "doteq": "approx", "tg": "tan", "ctg": "cot", "arctg": "arctan",
    "textdegree": r"^\circ", "degree": r"^\circ", "textdollar": r"\$", "percent": r"\%", "pounds": "£", "euro": "€",
    "lang": "langle", "rang": "rangle", "infin": "infty", "R": r"\mathbb{R}", "prime": "'", "lnot": "neg",
    "varphi": "varphi", "isin": "in", "smallsetminus": "setminus",
}  # fmt: skip
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_FUNCTIONS = frozenset(["gcd", "lcm", "ceil", "floor", "max", "min", "mod", "arcsin", "arccos", "arctan", "arccot",
"sinh", "cosh", "tanh", "coth", "sech", "csch", "sec", "csc", "cot", "sin", "cos", "tan", "log", "ln", "lg", "exp",
"abs", "sgn", "det"])  # fmt: skip
_DOUBLED = re.compile(r"\\\\(?=[A-Za-z,;!(){}\[\]])")
_PRIMES = re.compile(r"\^\s*\{?\s*('[\s']*)\}?")
_BOLD = re.compile(r"(?<![^\s=:(])\*\*(?=\S)([^*\n]+)\*\*(?!\w)")
_MATH_MARKS = re.compile(r"(?<!\\)\\[()\[\]]")
_LABEL = re.compile(
    r"(?:\\text\s*\{)?\s*(?:the\s+)?(?:final\s+)?(?:answer|ans|result|solution)\s*(?:is)?\s*:?\s*\}?\s*[:=]?\s*(?=\S)",
    re.IGNORECASE,
)


def characters(text: str) -> str:
    """Return the text with ASCII or LaTeX instead of Unicode: full-width forms, superscripts, roots, Greek letters,
    signs."""
    if text.isascii():
        return text
    text = _ROOT.sub(r"\1{\2}", text).translate(_TABLE)
    text = _VULGAR.sub(_vulgar, text)
    text = _RAISED.sub(lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text)
    text = _LOWERED.sub(lambda m: f"_{{{m[0].translate(_SUBSCRIPTS)}}}", text)
    return "".join(
        unicodedata.normalize("NFKC", c) if "\uff00" <= c <= "\uffef" or "\U0001d400" <= c <= "\U0001d7ff" else c
        for c in text
    )


def _vulgar(match: re.Match[str]) -> str:
    numerator, _, denominator = unicodedata.normalize("NFKC", match[0]).partition("\u2044")
    return rf"\frac{{{numerator}}}{{{denominator}}}"


def repaired(gold: str) -> str:
    """Return the text of an answer with single backslashes; some data sets escape backslashes twice.

    `\\\\\\\\frac` becomes `\\\\frac`.
    """
    return _DOUBLED.sub(r"\\", gold)


def joined(text: str) -> str:
    """Return the text without separators of thousands other than a plain comma: 12\\,345 and 12 345 become 12345."""
    return _GROUPED.sub(lambda m: _NO_DIGIT.sub("", m[1]), text)


def notation(text: str) -> str:
    """Return the answer in the notation that the lexer reads: no styling, no spacing commands, one name for each
    command."""
    text = joined(characters(text))
    if not text.isascii():
        text = _LISTING.sub(lambda m: r"\text{or}" if m[0] in "\u6216" else r"\text{and}", text)
    if "**" in text:
        text = _BOLD.sub(r"\1", text)
    if "\\" in text:
        text = _SPACE_COMMAND.sub(" ", text)
        text = _STYLE.sub("", _COLOURED.sub("", text))
        text = _SIZES.sub("", _MATH_MARKS.sub(" ", text))
    text = _SPACES.sub(" ", text)
    if "\\" in text:
        text = _TEXT.sub(_text, text)
        text = _PRIMES.sub(lambda m: m[1].replace(" ", ""), _COMMAND.sub(_renamed, text))
    return _LABEL.sub("", _undollared(text), count=1).strip() if _LABEL.match(text) else _undollared(text).strip()


def _text(match: re.Match[str]) -> str:
    """Return a word set in roman type: the name of a function, a single letter, or words."""
    words = match[1].strip()
    if words in _FUNCTIONS:
        return f"\\{words} "
    if len(words) == 1 and "operator" not in match[0] and "mathrm" in match[0] and words in "ei":
        return words
    return rf"\text{{{match[1]}}}"


def _renamed(match: re.Match[str]) -> str:
    name = _RENAMED.get(match[1])
    if name is None:
        return match[0]
    return f"\\{name} " if name.isalpha() and len(name) > 1 else f"{name} " if name.isalpha() else name


def _undollared(text: str) -> str:
    """Return the text without dollar signs around formulas. A dollar sign beside a number is a currency and becomes
    `\\$`."""
    bare = [i for i, c in enumerate(text) if c == "$" and (i == 0 or text[i - 1] != "\\")]
    if not bare:
        return text
    if len(bare) == 1 and (
        re.match(r"\s*-?\.?\d", text[bare[0] + 1 :])
        or (bare[0] == len(text.rstrip()) - 1 and text[bare[0] - 1].isdigit())
    ):
        return text[: bare[0]] + r"\$" + text[bare[0] + 1 :]
    return re.sub(r"(?<!\\)\$", " ", text)
