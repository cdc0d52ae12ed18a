"""The commands of the grammar: fractions, roots, functions, sums and matrices."""

from __future__ import annotations

from fractions import Fraction

from treeadv.rewards.parsing.atoms import ACCENTS, FUNCTIONS, GREEK, Atoms
from treeadv.rewards.parsing.terms import Call, Group, Matrix, Name, Number, Term, walk
from treeadv.rewards.parsing.tokens import COMMAND, END, LETTER, NUMBER, SIGN, Token, Unreadable

_SETS = {"R": "reals", "Z": "integers", "N": "naturals", "Q": "rationals", "C": "complexes"}
_MATRICES = frozenset({"matrix", "pmatrix", "bmatrix", "Bmatrix", "smallmatrix", "array"})


class Commands(Atoms):
    """A reader of commands over tokens."""

    def command(self) -> Term:
        token = self.advance()
        name = token.text
        if name in GREEK:
            return self.subscripted(Name(name))
        if name in ("pi", "infty"):
            return Name(name)
        if name in ("frac", "binom"):
            self.at -= 1
            return self.fraction()
        if name in ("sqrt", "cbrt"):
            return self._root(name)
        if name in FUNCTIONS:
            return self._function(name)
        if name in ("sum", "prod"):
            return self._series(name)
        if name in ("lfloor", "lceil"):
            inside = self.sum()
            self.need(name.replace("l", "r", 1))
            return Call("floor" if name == "lfloor" else "ceil", (inside,))
        if name == "mathbb":
            return Name(_SETS.get(self.raw_group(), "set"))
        if name == "emptyset":
            return Group("{", "}", ())
        if name == "ldots":
            return Name("ldots")
        if name == "langle":
            self.at -= 1
            return self.bracketed()
        if name in ACCENTS:
            return Name(f"{name} {self.raw_group()}")
        if name in ("angle", "triangle"):
            return Name(f"{name} {self.letters()}")
        if name == "begin":
            return self._matrix()
        raise Unreadable(f"the command \\{name}")

    def fraction(self) -> Term:
        command = self.advance().text
        above, below = self._argument(), self._argument()
        return Call("/" if command == "frac" else "binom", (above, below))

    def _argument(self) -> Term:
        """Return a group in braces, or one character: the 1 and the 2 of `\\frac12`."""
        token = self.next
        if token.kind == NUMBER and len(token.text) > 1 and token.text.isdigit():
            self.tokens[self.at] = Token(NUMBER, token.text[1:], token.begin + 1, token.end)
            return Number(Fraction(int(token.text[0])))
        if token.kind == NUMBER:
            value, rounded = self.value(self.advance())
            return Number(value, rounded)
        return self.atom()

    def _root(self, name: str) -> Term:
        degree: Term = Number(Fraction(3 if name == "cbrt" else 2))
        if self.take(SIGN, "["):
            degree = self.sum()
            self.need("]")
        if self.next.kind == NUMBER:
            value, rounded = self.value(self.advance())
            return Call("root", (Number(value, rounded), degree))
        return Call("root", (self.atom(), degree))

    def _function(self, name: str) -> Term:
        base: tuple[Term, ...] = ()
        if self.take(SIGN, "_"):
            base = (self._argument() if self.next.kind != NUMBER else Number(self.value(self.advance())[0]),)
            if name != "log":
                raise Unreadable(f"a subscript of {name}")
        power: Term | None = None
        if self.next.text == "^":
            self.advance()
            power = self.exponent()
            if power in (Call("neg", (Number(Fraction(1)),)), Number(Fraction(-1))):
                name, power = f"arc{name}", None
        arguments = self._arguments()
        found: Term = Call(name, arguments + base)
        return Call("^", (found, power)) if power is not None else found

    def _arguments(self) -> tuple[Term, ...]:
        if self.next.kind == SIGN and self.next.text in ("(", "[", "{", r"\{"):
            inside = self.bracketed()
            return inside.items if isinstance(inside, Group) else (inside,)
        if self.take(SIGN, "-"):
            return (Call("neg", self._arguments()),)
        found = self.power()
        while self.next.kind == LETTER or (
            self.next.kind == COMMAND and (self.next.text in GREEK or self.next.text in ("pi", "frac", "sqrt"))
        ):
            found = Call("*", (found, self.power()))
        return (found,)

    def _series(self, name: str) -> Term:
        """Return the call of (index, first, last, terms) for `\\sum_{k=1}^{n} k^2`. A product follows the sum sign."""
        self.need("_")
        self.need("{")
        index = self.advance()
        if index.kind != LETTER:
            raise Unreadable(f"a {name} without an index")
        self.need("=")
        first = self.sum()
        self.need("}")
        self.need("^")
        last = self.exponent()
        body = self.product()
        if any(isinstance(t, Call) and t.function in ("sum", "prod") for t in walk(body)):
            raise Unreadable(f"a {name} of sums")
        return Call(name, (Name(index.text), first, last, body))

    def _matrix(self) -> Term:
        """Return the matrix of `\\begin{pmatrix} a & b \\\\ c & d \\end{pmatrix}`. `cases` gives a list."""
        kind = self.raw_group()
        if kind not in _MATRICES and kind not in ("vmatrix", "cases"):
            raise Unreadable(f"the environment {kind}")
        if kind == "array":
            self.raw_group()
        rows: list[list[Term]] = [[]]
        while not self.take(COMMAND, "end"):
            if self.next.kind == END:
                raise Unreadable(f"an open {kind}")
            if self.take(SIGN, r"\\"):
                rows.append([])
            elif not self.take(SIGN, "&"):
                rows[-1].append(self.item())
                self.take(SIGN, ",")
        self.raw_group()
        filled = [tuple(row) for row in rows if row]
        if kind == "cases":
            if any(len(row) != 1 for row in filled):
                raise Unreadable("cases with conditions")
            return Group("", "", tuple(row[0] for row in filled))
        if not filled or len({len(row) for row in filled}) != 1:
            raise Unreadable("a matrix with ragged rows")
        return Call("det", (Matrix(tuple(filled)),)) if kind == "vmatrix" else Matrix(tuple(filled))
