"""The grammar of answers: parses a normalised text to a tree or raises `Unreadable`. No part of the text is skipped.

answer    = group of items, separated by `,`, `;`, "and", "or"
item      = relation, then a unit
relation  = sum (`=` `<` `\\le` `\\in` ... sum)*, where unions and ratios of sums are sums
sum       = product (`+` `-` `\\pm` product)*
product   = power (`*` `/` or nothing, power)*
"""

from __future__ import annotations

import re
from fractions import Fraction

from treeadv.rewards.parsing.commands import Commands
from treeadv.rewards.parsing.notation import notation
from treeadv.rewards.parsing.terms import Call, Group, Measure, Name, Number, Relation, Term, Words, variables
from treeadv.rewards.parsing.tokens import COMMAND, END, LETTER, NUMBER, SIGN, WORDS, Token, Unreadable, tokens
from treeadv.rewards.parsing.units import CHANGING, MAGNITUDES, unit

_RELATIONS = {
    "=": "=", "==": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!=", "le": "<=", "ge": ">=", "ne": "!=",
    "in": "in",
    "approx": "approx", "sim": "approx",
}  # fmt: skip
_CURRENCIES = {r"\$": "dollar", "$": "dollar", "€": "euro", "£": "pound sterling", "¥": "yen"}
_SET_OPERATORS = ("cup", "cap", "setminus")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d]|,\d)")
_PROSE = re.compile(r"[A-Za-z][A-Za-z' .,;:-]*")
_LABEL_END = re.compile(r".*(?:\bis|\bare|[:=])\s*", re.DOTALL)
_DENYING = re.compile(  # a label with such a word bounds or negates the value that follows
    r"\b(?:not|no|never|false|wrong|incorrect|impossible|least|most|than|up|except|if|where|when|times)\b",
    re.IGNORECASE,
)
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_LETTER_IN_TEXT = re.compile(r"\(?\\text\{\s*\(?([A-Za-z])\)?\.?\s*\}\)?")
_GLUED = re.compile(r"(?:[cmk]m|kg|ft|mL|ml)\b")  # units that may stand beside a number without a space
_CONCLUDES = re.compile(r"\\(?:implies|Rightarrow|Longrightarrow|therefore|iff|Leftrightarrow)(?![A-Za-z])")


def read(text: str, *, thousands: bool = True, letter_units: bool = False, tight_slash: bool = False) -> Term:
    """Return the tree of an answer. Raises `Unreadable` if a part of the text is outside of the grammar.

    `thousands` reads `2,500` as a number, else as a list. `letter_units` reads the m of `5 m` as a unit, else as a
    variable.
    `tight_slash` reads `1/2x` as 1/(2x), else as (1/2)x.
    """
    text = _CONCLUDES.split(notation(text))[-1].lstrip(" ,;:=").rstrip(" .,;:\\")
    text = _without_braces(text)
    if letter := _LETTER_IN_TEXT.fullmatch(text):
        return Name(letter[1])
    if prose := _words(text):
        return prose
    if thousands:
        text = _without_thousands(text)
    reader = _Reader(tokens(text), text, letter_units, tight_slash)
    try:
        answer = reader.items(closing=None)
    except RecursionError:
        raise Unreadable("signs nested too deep") from None
    reader.expect_end()
    return answer


def _without_braces(text: str) -> str:
    """Return the text without a pair of braces around the complete text."""
    while text.startswith("{") and text.endswith("}"):
        depth = 0
        for at, c in enumerate(text):
            depth += (c == "{") - (c == "}")
            if not depth and at < len(text) - 1:
                return text
        text = text[1:-1].strip()
    return text


def has_thousands(text: str) -> bool:
    """Return whether the text may be read as a number with thousands separators or as a list."""
    return _THOUSANDS.search(text) is not None


def _words(text: str) -> Words | None:
    plain = _TEXT.sub(r" \1 ", text)
    plain = " ".join(plain.split()).strip(" .")
    if plain.casefold() == "no":
        return Words("no")
    if not _PROSE.fullmatch(plain) or not re.search(r"[A-Za-z]{3,}", plain):
        return None
    if "text" in text and not re.search(r"\b(?:and|or)\b", plain):
        return Words(plain.casefold())
    found = tokens(plain.replace(".", " "))
    if any(t.kind in (COMMAND, SIGN) for t in found):
        return None
    single = re.fullmatch(r"[A-Za-z]{3}", plain) is not None
    return Words(plain.casefold()) if single or any(t.kind == WORDS for t in found) else None


def _without_thousands(text: str) -> str:
    """Write `1,234` as `1234`, except between brackets, where the commas separate items."""
    if "," not in text:
        return text
    depth, begin, pieces = 0, 0, []
    for match in _THOUSANDS.finditer(text):
        between = text[begin : match.start()]
        depth += between.count("(") + between.count("[") + between.count(r"\{")
        depth -= between.count(")") + between.count("]") + between.count(r"\}")
        pieces += [between, match[0] if depth > 0 else match[0].replace(",", "")]
        begin = match.end()
    return "".join(pieces) + text[begin:]


class _Reader(Commands):
    """A recursive-descent parser over tokens."""

    def __init__(self, found: list[Token], text: str, letter_units: bool, tight_slash: bool) -> None:
        super().__init__(found, text)
        self._letter_units, self._tight_slash = letter_units, tight_slash

    def expect_end(self) -> None:
        if self.next.kind != END:
            raise Unreadable(f"{self.next.text!r} after the answer")

    def items(self, closing: str | None) -> Term:
        """Return items up to a closing bracket or the end. Several make a list; `a,b;c,d` makes a list of tuples."""
        groups: list[list[Term]] = [[]]
        separators = 0
        while not self._at_close(closing):
            if self.take(SIGN, ","):
                separators += 1
            elif self.take(SIGN, ";") or self.take(COMMAND, "or") or self.take(COMMAND, "and"):
                separators += 1
                if groups[-1]:
                    groups.append([])
            else:
                groups[-1].append(self.item())
                if not self._at_close(closing) and self.next.text not in (",", ";", "and", "or"):
                    raise Unreadable(f"{self.next.text!r} after an item")
        groups = [g for g in groups if g]
        sizes = {len(g) for g in groups}
        if closing is None and len(groups) > 1 and len(sizes) == 1 and sizes != {1}:
            return Group("", "", tuple(Group("(", ")", tuple(g)) for g in groups))
        found = [item for g in groups for item in g]
        if len(found) == 1 and not separators:
            return found[0]
        if closing is None and not found:
            raise Unreadable("nothing")
        return Group("", "", tuple(found))

    def _at_close(self, closing: str | None) -> bool:
        return self.next.kind == END or (
            closing is not None and self.next.kind in (SIGN, COMMAND) and self.next.text in closing.split()
        )

    def item(self) -> Term:
        label = self.next
        if label.kind == WORDS and _LABEL_END.fullmatch(label.text) and not _DENYING.search(label.text):
            self.advance()
        self.take(COMMAND, "approx")
        signs: list[str] = []
        sides = [self._side()]
        while sign := self._relation():
            signs.append(sign)
            sides.append(self._side())
        if "approx" in signs:
            last = signs.index("approx")
            if last or not variables(sides[0]):
                signs, sides = signs[:last], sides[: last + 1]
            signs = ["=" if s == "approx" else s for s in signs]
        return Relation(tuple(signs), tuple(sides)) if signs else sides[0]

    def _relation(self) -> str | None:
        sign = _RELATIONS.get(self.next.text) if self.next.kind in (SIGN, COMMAND) else None
        if self.next.text == ":" and self.peek(1).text == "=":
            self.advance()
            sign = "="
        if sign:
            self.advance()
            if sign in ("<", ">") and self.take(SIGN, "="):
                return sign + "="
        return sign

    def _side(self) -> Term:
        """Return a set expression or a ratio, with its unit."""
        if self.next.kind == WORDS and self.peek(1).text == "=":
            return Name(self.advance().text)
        left = self._measured()
        while True:
            if (self.next.kind == COMMAND and self.next.text in _SET_OPERATORS) or self._is_union():
                operator = "cup" if self.next.kind == LETTER else self.next.text
                self.advance()
                left = Call(operator, (left, self._measured()))
            elif self.next.text == ":" and self.peek(1).text != "=":
                self.advance()
                right = self._measured()
                first = left.arguments if isinstance(left, Call) and left.function == "ratio" else (left,)
                left = Call("ratio", (*first, right))
            else:
                return left

    def _is_union(self) -> bool:
        """Return whether the next token is the letter U between two brackets."""
        return (
            self.next.text == "U" and self.peek(-1).text in (")", "]", r"\}") and self.peek(1).text in ("(", "[", r"\{")
        )

    def _measured(self) -> Term:
        negative = self.next.text == "-" and self.peek(1).text in _CURRENCIES
        if negative:
            self.advance()
        currency = _CURRENCIES.get(self.next.text) if self.next.kind == SIGN else None
        if currency:
            self.advance()
            if self.take(SIGN, "-"):
                negative = True
        value = self.sum()
        if negative:
            value = Call("neg", (value,))
        value = self._multiplied(value)
        found = self._unit(value)
        if currency:
            return Measure(value, currency)
        if found:
            return Measure(value, *found)
        match value:
            case Call("deg", (degrees,)):
                return Measure(degrees, "deg")
            case Call("neg", (Call("deg", (degrees,)),)):
                return Measure(Call("neg", (degrees,)), "deg")
        return value

    def _multiplied(self, value: Term) -> Term:
        """Return the value times the magnitude that follows: `3 million`, `2 hundred thousand`."""
        while self.next.kind == WORDS and (
            magnitude := MAGNITUDES.get(self.next.text.split()[0].lower() if self.next.text else "")
        ):
            token = self.next
            word, _, rest = token.text.partition(" ")
            value = Call("*", (value, Number(Fraction(magnitude))))
            if rest.strip():
                self.tokens[self.at] = Token(
                    WORDS,
                    rest.strip(),
                    token.begin + self.text[token.begin : token.end].index(word) + len(word),
                    token.end,
                )
            else:
                self.advance()
        return value

    def _unit(self, value: Term) -> tuple[str, bool] | None:
        """Return the unit that follows a value, and whether the unit is in the list."""
        if self.next.kind == END or self.next.text in (",", ";", "and", "or", "="):
            return None
        begin = self.at
        end = begin
        while self.tokens[end].kind != END and self.tokens[end].text not in (
            ",",
            ";",
            "and",
            "or",
            "=",
            ")",
            "]",
            "cup",
        ):
            end += 1
        raw = self.text[self.tokens[begin].begin : self.tokens[end - 1].end] if end > begin else ""
        words = all(t.kind == WORDS for t in self.tokens[begin:end])
        plain = " ".join(t.text for t in self.tokens[begin:end]) if words else _TEXT.sub(r" \1 ", raw).strip(" .")
        if plain in ("%", r"\%", "percent", "pct", "percentage", r"\text{%}"):
            self.at = end
            return "%", True
        if plain in (r"\$", "€", "£", "¥"):
            self.at = end
            return _CURRENCIES[plain], True
        glued = self.next.kind != WORDS and self.next.begin == self.peek(-1).end and not _GLUED.match(plain)
        if (
            (name := unit(plain))
            and not (glued and not self._letter_units)
            and (self._letter_units or "\\text" in raw or len(plain) > 1 or "^" in plain)
        ):
            self.at = end
            return name, True
        if words and end > begin and "\\text" in raw and not CHANGING.search(plain):
            self.at = end
            noun = plain.split()[-1]
            return noun.casefold().rstrip("s") if len(noun) > 2 else noun, False
        return None

    def sum(self) -> Term:
        terms = [self._signed()]
        while True:
            if self.take(SIGN, "+"):
                terms.append(self._signed_product())
            elif self.take(SIGN, "-"):
                terms.append(Call("neg", (self._signed_product(),)))
            elif self.next.kind == COMMAND and self.next.text in ("pm", "mp"):
                operator = self.advance().text
                terms = [Call(operator, (_joined("+", terms), self.product()))]
            elif self.next.kind == COMMAND and self.next.text in ("choose", "over"):
                operator = "binom" if self.advance().text == "choose" else "/"
                terms = [Call(operator, (_joined("+", terms), self.sum()))]
            else:
                return _joined("+", terms)

    def _signed(self) -> Term:
        if self.next.kind == COMMAND and self.next.text in ("pm", "mp"):
            return Call(self.advance().text, (Number(Fraction(0)), self.product()))
        return self._signed_product()

    def _signed_product(self) -> Term:
        negative = False
        while self.next.text in ("-", "+") and self.next.kind == SIGN:
            negative ^= self.advance().text == "-"
        return self.product(negative=negative)

    def product(self, *, negative: bool = False) -> Term:
        found = self.power()
        if negative:
            found = Number(-found.value, found.rounded) if isinstance(found, Number) else Call("neg", (found,))
        factors = [found]
        while True:
            if self.next.text in ("*", "times", "cdot") and self.next.kind in (SIGN, COMMAND):
                self.advance()
                factors.append(self._factor())
            elif self.take(SIGN, "/"):
                factors = [Call("/", (_joined("*", factors), self._denominator()))]
            elif self.next.kind == COMMAND and self.next.text == "mod":
                self.advance()
                factors = [Call("mod", (_joined("*", factors), self._factor()))]
            elif self._begins_factor(factors[-1]):
                factors = [_unbraced(f) for f in factors]
                factors.append(_unbraced(self.power()))
            else:
                return _joined("*", factors)

    def _factor(self) -> Term:
        """Return a factor after a multiplication sign. The factor may begin with a plus or minus sign."""
        if self.take(SIGN, "-"):
            return Call("neg", (self._factor(),))
        self.take(SIGN, "+")
        return self.power()

    def _denominator(self) -> Term:
        """Return the denominator: in `1/2x` the 2x if `tight_slash`, else the 2."""
        found = self._factor()
        while self._tight_slash and self._begins_factor(found):
            found = Call("*", (found, self.power()))
        return found

    def _begins_factor(self, left: Term) -> bool:
        token = self.next
        if token.kind == NUMBER:
            follows_number = isinstance(left, Number) or (
                isinstance(left, Call) and left.function in ("/", "^") and not variables(left)
            )
            if follows_number and not self.is_mixed():
                raise Unreadable("two numbers side by side")
            return True
        if token.kind == LETTER:
            return not self._is_union() and not self._starts_unit(left)
        if token.kind == COMMAND:
            return self.begins_atom(token)
        return token.kind == SIGN and (token.text in ("(", "[", "{", r"\{") or (token.text == "|" and not self.bars))

    def _starts_unit(self, left: Term) -> bool:
        """Return whether the letters from here to the end of the item are a unit after a number."""
        if variables(left) or self.peek(-1).kind == LETTER:
            return False
        mark = self.at
        found = self._unit(left)
        self.at = mark
        return found is not None


def _joined(operator: str, terms: list[Term]) -> Term:
    """Return one term, or the sum or product of several."""
    return terms[0] if len(terms) == 1 else Call(operator, tuple(terms))


def _unbraced(factor: Term) -> Term:
    """Return a factor without surrounding braces: `\\{1+2\\}\\{3-4\\}` is a product."""
    return factor.items[0] if isinstance(factor, Group) and factor.left == "{" and len(factor.items) == 1 else factor
