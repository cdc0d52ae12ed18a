"""The atoms of the grammar: numbers, names and brackets, with their exponents."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from fractions import Fraction

from treeadv.rewards.parsing.terms import Call, Group, Name, Number, Relation, Term
from treeadv.rewards.parsing.tokens import COMMAND, END, LETTER, NUMBER, PLAIN_FUNCTIONS, SIGN, WORDS, Token, Unreadable

MAX_DIGITS = 1000  # largest number of digits of a number
MAX_EXPONENT = 400  # largest exponent of a number in scientific notation
GREEK = frozenset({
    "alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta", "iota", "kappa",
    "lambda", "mu", "nu", "xi", "omicron", "rho", "varrho", "sigma", "varsigma", "tau", "upsilon", "phi", "varphi",
    "chi", "psi", "omega", "Gamma", "Delta", "Theta", "Lambda", "Xi", "Sigma", "Upsilon", "Phi", "Psi", "Omega",
    "ell", "hbar",
})  # fmt: skip
FUNCTIONS = PLAIN_FUNCTIONS - {"sqrt", "cbrt", "mod", "binom"}
ACCENTS = frozenset({
    "vec", "hat", "bar", "tilde", "overline", "overrightarrow", "widehat", "dot", "overleftrightarrow",
})  # fmt: skip
_CLOSE = {"(": ") ]", "[": "] )", r"\{": r"\}", "{": "}", "langle": "rangle"}
_PLAIN = {r"\{": "{", r"\}": "}"}
_APPLIED = frozenset("fgh")
_FUNCTION_VALUE = re.compile(  # `P(2)`, and the left sides of `P(A \cap B) = 1` and `p(k) = 1`; 0 is no factor
    r"[A-Z]\(\d+\)|[a-z]\(0\)|[A-Z]\([^()=]*\) ?=|[a-z]\((?:\d+|[A-Za-z](?:, ?[A-Za-z])*)\) ?="
)


class Atoms(ABC):
    """A reader of atoms over tokens. The grammar builds sums and products of them."""

    def __init__(self, found: list[Token], text: str) -> None:
        self.tokens, self.text, self.at, self.bars = found, text, 0, 0

    @property
    def next(self) -> Token:
        return self.tokens[self.at]

    def peek(self, offset: int) -> Token:
        return self.tokens[min(max(self.at + offset, 0), len(self.tokens) - 1)]

    def advance(self) -> Token:
        token = self.tokens[self.at]
        self.at += token.kind != END
        return token

    def take(self, kind: str, text: str) -> bool:
        """Advance if the next token is this token. Return whether it is."""
        if self.next.kind == kind and self.next.text == text:
            self.at += 1
            return True
        return False

    def need(self, text: str) -> None:
        if self.next.text not in text.split():
            raise Unreadable(f"{text!r} is missing before {self.next.text!r}")
        self.advance()

    @abstractmethod
    def command(self) -> Term: ...

    @abstractmethod
    def fraction(self) -> Term: ...

    @abstractmethod
    def items(self, closing: str | None) -> Term: ...

    @abstractmethod
    def item(self) -> Term: ...

    @abstractmethod
    def sum(self) -> Term: ...

    @abstractmethod
    def product(self) -> Term: ...

    def begins_atom(self, token: Token) -> bool:
        """Return whether the token can begin a factor that follows another factor without a sign."""
        return (
            token.text in GREEK or token.text in PLAIN_FUNCTIONS or token.text in ACCENTS
            or token.text in ("frac", "sqrt", "cbrt", "binom", "pi", "infty", "lfloor", "lceil", "begin", "angle",
            "sum", "prod")
        )  # fmt: skip

    def power(self) -> Term:
        """Return an atom with its exponents, factorials and degree signs."""
        found = self.atom()
        while True:
            if self.next.text in ("^", "**") and self.next.kind == SIGN:
                self.advance()
                found = Call("deg", (found,)) if self._takes_circle() else Call("^", (found, self.exponent()))
            elif self.take(SIGN, "!"):
                if self.next.text == "!":
                    raise Unreadable("a double factorial")
                found = Call("factorial", (found,))
            elif (
                self.next.text == "_"
                and isinstance(found, Call)
                and found.function == "^"
                and isinstance(found.arguments[0], Name)
            ):
                base, exponent = found.arguments
                assert isinstance(base, Name)
                found = Call("^", (self.subscripted(base), exponent))
            else:
                return found

    def _takes_circle(self) -> bool:
        if self.take(COMMAND, "circ"):
            return True
        if self.next.text == "{" and self.peek(1).text == "circ" and self.peek(2).text == "}":
            self.at += 3
            return True
        return False

    def exponent(self) -> Term:
        if self.take(SIGN, "-"):
            return Call("neg", (self.exponent(),))
        self.take(SIGN, "+")
        atom = Number(*self.value(self.advance())) if self.next.kind == NUMBER else self.atom()
        if self.next.text in ("^", "**"):
            self.advance()
            return Call("^", (atom, self.exponent()))
        return atom

    def atom(self) -> Term:
        token = self.next
        if token.kind == NUMBER:
            return self._number()
        if token.kind == LETTER:
            return self._letter()
        if token.kind == COMMAND:
            return self.command()
        if token.kind == SIGN and token.text in ("(", "[", "{", r"\{"):
            return self.bracketed()
        if token.kind == SIGN and token.text == "|":
            self.advance()
            self.bars += 1
            inside = self.sum()
            self.bars -= 1
            self.need("|")
            return Call("abs", (inside,))
        raise Unreadable(f"{token.text or 'the end'!r} instead of a value")

    def _number(self) -> Term:
        token = self.advance()
        value, rounded = self.value(token)
        if "." in token.text and self.next.kind == COMMAND and self.next.text in ("overline", "bar", "dot"):
            return self._repeating(token)
        if self.next.text == "_" and not rounded:
            self.advance()
            base = re.sub(r"[{}\s]|\\text", "", self.raw_group())
            return Call(f"base {_BASES.get(base, base)}", (Number(value),))
        if not rounded and self.next.kind == COMMAND and self.next.text == "frac":
            mark = self.at
            fraction = self.fraction()
            if (proper := _proper(fraction)) is not None:
                return Number(value + proper)
            self.at = mark
        if not rounded and self.next.kind == NUMBER and self.is_mixed_tail():
            proper = Fraction(int(self.next.text), int(self.peek(2).text))
            self.at += 3
            return Number(value + proper)
        return Number(value, rounded)

    def is_mixed(self) -> bool:
        """Return whether the next tokens are a mixed number: `1\\frac{1}{2}`."""
        return self.next.text.isdigit() and self.peek(1).text == "frac"

    def is_mixed_tail(self) -> bool:
        """Return whether the next tokens are a proper fraction, such as the 1/2 of `1 1/2`."""
        numerator, slash, denominator = self.next.text, self.peek(1).text, self.peek(2).text
        return slash == "/" and numerator.isdigit() and denominator.isdigit() and 0 < int(numerator) < int(denominator)

    def value(self, token: Token) -> tuple[Fraction, bool]:
        if len(token.text) > MAX_DIGITS:
            raise Unreadable(f"a number of {len(token.text)} characters")
        mantissa, _, exponent = token.text.lower().partition("e")
        if exponent and abs(int(exponent[:6])) > MAX_EXPONENT:
            raise Unreadable(f"the exponent {exponent[:6]}")
        value = Fraction(mantissa.rstrip(".") or "0") * Fraction(10) ** int(exponent or 0)
        return value, "." in mantissa.rstrip(".") or bool(exponent)

    def _repeating(self, token: Token) -> Term:
        digits = ""
        while self.next.kind == COMMAND and self.next.text in ("overline", "bar", "dot"):
            self.advance()
            digits += self.raw_group()
        if not digits.isdigit():
            raise Unreadable("a repeating decimal without digits")
        _, _, fixed = token.text.partition(".")
        period = Fraction(int(digits), (10 ** len(digits) - 1) * 10 ** len(fixed))
        return Number(Fraction(token.text.rstrip(".")) + period)

    def _letter(self) -> Term:
        token = self.advance()
        name = self.subscripted(Name(token.text))
        while self.next.text == "'":
            self.advance()
            name = Name(name.text + "'")
        if (token.text in _APPLIED or _FUNCTION_VALUE.match(self.text, token.begin)) and (
            applied := self._applied(name)
        ):
            return applied
        return name

    def _applied(self, name: Name) -> Term | None:
        """Return a call of an unknown function, such as `f(x)` or `f^{-1}(x)`; None if no argument follows the name."""
        label = name.text
        if self.next.text == "^" and re.match(r"\^\s*\{\s*-\s*1\s*\}\s*\(", self.text[self.next.begin :]):
            self.at += 5
            label += "^{-1}"
        if self.next.text != "(":
            return None
        self.advance()
        inside = self.items(")")
        self.need(")")
        return Call(f"apply {label}", inside.items if isinstance(inside, Group) and not inside.left else (inside,))

    def subscripted(self, name: Name) -> Name:
        if not self.take(SIGN, "_"):
            return name
        return Name(f"{name.text}_{{{self.raw_group()}}}")

    def raw_group(self) -> str:
        """Return the text of a group in braces, or of one token, without spaces."""
        if self.next.text != "{":
            token = self.advance()
            if token.kind == END or token.kind == SIGN:
                raise Unreadable("an empty subscript")
            return token.text
        depth, begin = 0, self.next.end
        while True:
            token = self.advance()
            if token.kind == END:
                raise Unreadable("an open brace")
            depth += (token.text == "{") - (token.text == "}")
            if not depth:
                return "".join(re.sub(r"\\text", "", self.text[begin : token.begin]).split())

    def bracketed(self) -> Term:
        left = self.advance().text
        closing = _CLOSE[left]
        bars, self.bars = self.bars, 0
        if left == r"\{" and self.next.kind == LETTER and self.peek(1).text in ("mid", "|", ":"):  # {x | x > 2}
            self.at += 2
            inside = self.items(closing)
            self.need(closing)
            self.bars = bars
            return inside
        inside = self.items(closing)
        self.bars = bars
        right = self.next.text
        self.need(closing)
        if left == "{":
            return inside
        if isinstance(inside, Group) and not inside.left:
            flat = inside.items
            if left == "langle":
                return Group("(", ")", flat)
            return Group(_PLAIN.get(left, left), _PLAIN.get(right, right), flat)
        if left == r"\{":
            return Group("{", "}", (inside,))
        if isinstance(inside, Relation) and left == "(":
            return inside
        if {left, right} in ({"(", "]"}, {"[", ")"}):
            raise Unreadable("an interval with one end")
        return inside

    def letters(self) -> str:
        letters = ""
        while self.next.kind in (LETTER, WORDS) or (self.next.kind == NUMBER and not letters):
            letters += self.advance().text
            if self.take(SIGN, "_"):
                letters += f"_{{{self.raw_group()}}}"
        return letters


_BASES = {
    "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
    "ten": "10", "eleven": "11",
    "twelve": "12", "sixteen": "16",
}  # fmt: skip


def _proper(fraction: Term) -> Fraction | None:
    """Return the value of a fraction of two whole numbers between 0 and 1, else None."""
    match fraction:
        case Call("/", (Number(above, False), Number(below, False))) if (
            0 < above < below and above.denominator == below.denominator == 1
        ):
            return above / below
        case _:
            return None
