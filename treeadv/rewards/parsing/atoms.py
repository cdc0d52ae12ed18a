"""The atoms of the grammar: numbers, names, brackets, fractions, roots, functions, matrices, and what is raised or set behind them."""

from __future__ import annotations

import re
from fractions import Fraction

from treeadv.rewards.parsing.terms import Call, Group, Matrix, Name, Number, Relation, Term
from treeadv.rewards.parsing.tokens import COMMAND, END, LETTER, NUMBER, PLAIN_FUNCTIONS, SIGN, WORDS, Token, Unreadable

MAX_EXPONENT = 400  # of a number in scientific notation
GREEK = frozenset(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi omicron rho varrho sigma varsigma tau upsilon "
    "phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Upsilon Phi Psi Omega ell hbar".split()
)
_FUNCTIONS = PLAIN_FUNCTIONS - {"sqrt", "cbrt", "mod", "binom"}
_ACCENTS = frozenset("vec hat bar tilde overline overrightarrow widehat dot overleftrightarrow".split())
_CLOSE = {"(": ") ]", "[": "] )", r"\{": r"\}", "{": "}", "langle": "rangle"}
_PLAIN = {r"\{": "{", r"\}": "}"}
_SETS = {"R": "reals", "Z": "integers", "N": "naturals", "Q": "rationals", "C": "complexes"}
_MATRICES = frozenset({"matrix", "pmatrix", "bmatrix", "Bmatrix", "smallmatrix", "array"})
_APPLIED = frozenset("fgh")


class Atoms:
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
        """Whether the next token is this one; it is then passed."""
        if self.next.kind == kind and self.next.text == text:
            self.at += 1
            return True
        return False

    def need(self, text: str) -> None:
        if self.next.text not in text.split():
            raise Unreadable(f"{text!r} is missing before {self.next.text!r}")
        self.advance()

    def items(self, closing: str | None) -> Term:
        raise NotImplementedError

    def item(self) -> Term:
        raise NotImplementedError

    def sum(self) -> Term:
        raise NotImplementedError

    def begins_atom(self, token: Token) -> bool:
        """Whether a command may stand beside another factor without a sign between them."""
        return (
            token.text in GREEK or token.text in PLAIN_FUNCTIONS or token.text in _ACCENTS
            or token.text in ("frac", "sqrt", "cbrt", "binom", "pi", "infty", "lfloor", "lceil", "begin", "angle")
        )  # fmt: skip

    def power(self) -> Term:
        """An atom with its exponents, factorials and degree signs."""
        found = self.atom()
        while True:
            if self.next.text in ("^", "**") and self.next.kind == SIGN:
                self.advance()
                if self._takes_circle():
                    found = Call("deg", (found,))
                else:
                    found = Call("^", (found, self._exponent()))
            elif self.take(SIGN, "!"):
                if self.next.text == "!":
                    raise Unreadable("a double factorial")
                found = Call("factorial", (found,))
            elif self.next.text == "_" and isinstance(found, Call) and found.function == "^" and isinstance(found.arguments[0], Name):
                base, exponent = found.arguments
                assert isinstance(base, Name)
                found = Call("^", (self._subscripted(base), exponent))
            else:
                return found

    def _takes_circle(self) -> bool:
        if self.take(COMMAND, "circ"):
            return True
        if self.next.text == "{" and self.peek(1).text == "circ" and self.peek(2).text == "}":
            self.at += 3
            return True
        return False

    def _exponent(self) -> Term:
        if self.take(SIGN, "-"):
            return Call("neg", (self._exponent(),))
        self.take(SIGN, "+")
        atom = Number(*self._value(self.advance())) if self.next.kind == NUMBER else self.atom()
        if self.next.text in ("^", "**"):
            self.advance()
            return Call("^", (atom, self._exponent()))
        return atom

    def atom(self) -> Term:
        token = self.next
        if token.kind == NUMBER:
            return self._number()
        if token.kind == LETTER:
            return self._letter()
        if token.kind == COMMAND:
            return self._command()
        if token.kind == SIGN and token.text in ("(", "[", "{", r"\{"):
            return self._bracketed()
        if token.kind == SIGN and token.text == "|":
            self.advance()
            self.bars += 1
            inside = self.sum()
            self.bars -= 1
            self.need("|")
            return Call("abs", (inside,))
        raise Unreadable(f"{token.text or 'the end'!r} where a value should stand")

    def _number(self) -> Term:
        token = self.advance()
        value, rounded = self._value(token)
        if token.text.endswith(".") or "." in token.text:
            if self.next.kind == COMMAND and self.next.text in ("overline", "bar", "dot"):
                return self._repeating(token)
        if self.next.text == "_" and not rounded:
            self.advance()
            base = re.sub(r"[{}\s]|\\text", "", self._raw_group())
            return Call(f"base {_BASES.get(base, base)}", (Number(value),))
        if not rounded and self.next.kind == COMMAND and self.next.text == "frac":
            mark = self.at
            fraction = self._fraction()
            if (part := _proper(fraction)) is not None:
                return Number(value + part)
            self.at = mark
        if not rounded and self.next.kind == NUMBER and self.is_mixed_tail():
            part = Fraction(int(self.next.text), int(self.peek(2).text))
            self.at += 3
            return Number(value + part)
        return Number(value, rounded)

    def is_mixed(self) -> bool:
        """Whether a mixed number stands here: `1\\frac{1}{2}`."""
        return self.next.text.isdigit() and self.peek(1).text == "frac"

    def is_mixed_tail(self) -> bool:
        """Whether a proper fraction stands here, as the 1/2 of `1 1/2`."""
        numerator, slash, denominator = self.next.text, self.peek(1).text, self.peek(2).text
        return slash == "/" and numerator.isdigit() and denominator.isdigit() and 0 < int(numerator) < int(denominator)

    def _value(self, token: Token) -> tuple[Fraction, bool]:
        mantissa, _, exponent = token.text.lower().partition("e")
        if exponent and abs(int(exponent[:6])) > MAX_EXPONENT:
            raise Unreadable(f"the exponent {exponent[:6]}")
        value = Fraction(mantissa.rstrip(".") or "0") * Fraction(10) ** int(exponent or 0)
        return value, "." in mantissa.rstrip(".") or bool(exponent)

    def _repeating(self, token: Token) -> Term:
        digits = ""
        while self.next.kind == COMMAND and self.next.text in ("overline", "bar", "dot"):
            self.advance()
            digits += self._raw_group()
        if not digits.isdigit():
            raise Unreadable("a repeating decimal without digits")
        _, _, fixed = token.text.partition(".")
        period = Fraction(int(digits), (10 ** len(digits) - 1) * 10 ** len(fixed))
        return Number(Fraction(token.text.rstrip(".")) + period)

    def _letter(self) -> Term:
        letter = self.advance().text
        name = self._subscripted(Name(letter))
        while self.next.text == "'":
            self.advance()
            name = Name(name.text + "'")
        if letter in _APPLIED and (applied := self._applied(name)):
            return applied
        return name

    def _applied(self, name: Name) -> Term | None:
        """`f(x)`, `f^{-1}(x)`: an unknown function of its arguments."""
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

    def _subscripted(self, name: Name) -> Name:
        if not self.take(SIGN, "_"):
            return name
        return Name(f"{name.text}_{{{self._raw_group()}}}")

    def _raw_group(self) -> str:
        """The text of a group in braces, or of one token, without spaces."""
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

    def _bracketed(self) -> Term:
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

    def _command(self) -> Term:
        token = self.advance()
        name = token.text
        if name in GREEK:
            return self._subscripted(Name(name))
        if name in ("pi", "infty"):
            return Name(name)
        if name in ("frac", "binom"):
            self.at -= 1
            return self._fraction()
        if name in ("sqrt", "cbrt"):
            return self._root(name)
        if name in _FUNCTIONS:
            return self._function(name)
        if name in ("lfloor", "lceil"):
            inside = self.sum()
            self.need(name.replace("l", "r", 1))
            return Call("floor" if name == "lfloor" else "ceil", (inside,))
        if name == "mathbb":
            return Name(_SETS.get(self._raw_group(), "set"))
        if name == "emptyset":
            return Group("{", "}", ())
        if name == "ldots":
            return Name("ldots")
        if name == "langle":
            self.at -= 1
            return self._bracketed()
        if name in _ACCENTS:
            return Name(f"{name} {self._raw_group()}")
        if name in ("angle", "triangle"):
            return Name(f"{name} {self._letters()}")
        if name == "begin":
            return self._matrix()
        raise Unreadable(f"the command \\{name}")

    def _letters(self) -> str:
        letters = ""
        while self.next.kind in (LETTER, WORDS) or self.next.kind == NUMBER and not letters:
            letters += self.advance().text
            if self.take(SIGN, "_"):
                letters += f"_{{{self._raw_group()}}}"
        return letters

    def _fraction(self) -> Term:
        command = self.advance().text
        above, below = self._argument(), self._argument()
        return Call("/" if command == "frac" else "binom", (above, below))

    def _argument(self) -> Term:
        """A group in braces, or one character: the 1 and the 2 of `\\frac12`."""
        token = self.next
        if token.kind == NUMBER and len(token.text) > 1 and token.text.isdigit():
            self.tokens[self.at] = Token(NUMBER, token.text[1:], token.begin + 1, token.end)
            return Number(Fraction(int(token.text[0])))
        if token.kind == NUMBER:
            value, rounded = self._value(self.advance())
            return Number(value, rounded)
        return self.atom()

    def _root(self, name: str) -> Term:
        degree: Term = Number(Fraction(3 if name == "cbrt" else 2))
        if self.take(SIGN, "["):
            degree = self.sum()
            self.need("]")
        if self.next.kind == NUMBER:
            value, rounded = self._value(self.advance())
            return Call("root", (Number(value, rounded), degree))
        return Call("root", (self.atom(), degree))

    def _function(self, name: str) -> Term:
        base: tuple[Term, ...] = ()
        if self.take(SIGN, "_"):
            base = (self._argument() if self.next.kind != NUMBER else Number(self._value(self.advance())[0]),)
            if name != "log":
                raise Unreadable(f"a subscript of {name}")
        power: Term | None = None
        if self.next.text == "^":
            self.advance()
            power = self._exponent()
            if power in (Call("neg", (Number(Fraction(1)),)), Number(Fraction(-1))):
                name, power = f"arc{name}", None
        arguments = self._arguments()
        found: Term = Call(name, arguments + base)
        return Call("^", (found, power)) if power is not None else found

    def _arguments(self) -> tuple[Term, ...]:
        if self.next.kind == SIGN and self.next.text in ("(", "[", "{", r"\{"):
            inside = self._bracketed()
            return inside.items if isinstance(inside, Group) else (inside,)
        if self.take(SIGN, "-"):
            return (Call("neg", self._arguments()),)
        found = self.power()
        while self.next.kind == LETTER or self.next.kind == COMMAND and (self.next.text in GREEK or self.next.text in ("pi", "frac", "sqrt")):
            found = Call("*", (found, self.power()))
        return (found,)

    def _matrix(self) -> Term:
        """`\\begin{pmatrix} a & b \\\\ c & d \\end{pmatrix}`; the equations of `cases` are a list."""
        kind = self._raw_group()
        if kind not in _MATRICES and kind not in ("vmatrix", "cases"):
            raise Unreadable(f"the environment {kind}")
        if kind == "array":
            self._raw_group()
        rows: list[list[Term]] = [[]]
        while not self.take(COMMAND, "end"):
            if self.next.kind == END:
                raise Unreadable(f"an open {kind}")
            if self.take(SIGN, r"\\"):
                rows.append([])
            elif not self.take(SIGN, "&"):
                rows[-1].append(self.item())
                self.take(SIGN, ",")
        self._raw_group()
        filled = [tuple(row) for row in rows if row]
        if kind == "cases":
            if any(len(row) != 1 for row in filled):
                raise Unreadable("cases with conditions")
            return Group("", "", tuple(row[0] for row in filled))
        if not filled or len({len(row) for row in filled}) != 1:
            raise Unreadable("a matrix with ragged rows")
        return Call("det", (Matrix(tuple(filled)),)) if kind == "vmatrix" else Matrix(tuple(filled))


_BASES = {
    "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10", "eleven": "11",
    "twelve": "12", "sixteen": "16",
}  # fmt: skip


def _proper(fraction: Term) -> Fraction | None:
    """The value of a fraction of two whole numbers between 0 and 1, else None."""
    match fraction:
        case Call("/", (Number(above, False), Number(below, False))) if 0 < above < below and above.denominator == below.denominator == 1:
            return above / below
        case _:
            return None
