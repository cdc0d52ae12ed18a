"""The type of a problem, and its construction from a row of data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from treeadv.data.columns import mapped_row, missing_column
from treeadv.data.normalisers import HASHES, check_marks, normalised
from treeadv.data.rows import DataRow
from treeadv.errors import BadInput, short
from treeadv.jsonl import JsonMapping, JsonObject
from treeadv.rewards.golds import gold_text, text_of
from treeadv.rewards.verifiers.registry import meta_of, verifier_of
from treeadv.task_config import SourceConfig

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One message of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One prompt. `problem` is the text without the prompt template. `answer` is the gold answer.

    `meta` is JSON for the verifier, or "" if the verifier needs none. For `reasoning-gym` it is {"dataset": family,
    "entry": {...}}. If the data has messages, `turns` is the whole conversation and `problem` is the last turn.
    """

    id: str
    problem: str
    answer: str
    verifier: str
    meta: str
    turns: tuple[Turn, ...] = ()

    @property
    def key(self) -> str:
        """Return the text of all turns with normalised spacing. Problems with the same key have the same prompt."""
        return "\n".join(" ".join(text.split()) for text in ([t.content for t in self.turns] or [self.problem]))


def problems_of(rows: Sequence[DataRow], source: SourceConfig) -> list[Problem]:
    """Return the problems of all rows of `source` (`TaskConfig.parts`), in order.

    A row may name its `verifier`. A row without a verifier gets the verifier of the source. Raises `BadInput`.
    """
    named = [_named(row, source) for row in rows]
    if source.normaliser == HASHES:
        check_marks([(row.place, columns.get("answer")) for row, (_, columns) in zip(rows, named, strict=True)])
    problems = [_problem(row, given, columns, source) for row, (given, columns) in zip(rows, named, strict=True)]
    _check_ids(rows, problems)
    return problems


def _check_ids(rows: Sequence[DataRow], problems: Sequence[Problem]) -> None:
    """Raise `BadInput` if two different problems have the same id. A row may occur several times."""
    first: dict[str, tuple[str, str]] = {}
    for row, problem in zip(rows, problems, strict=True):
        place, key = first.setdefault(problem.id, (row.place, problem.key))
        if key != problem.key:
            raise BadInput(
                f"{row.place}: its id {short(problem.id)} is that of another problem, at {place}; change one, or name"
                " another column as id in task.columns"
            )


def _named(row: DataRow, source: SourceConfig) -> tuple[JsonMapping, JsonObject]:
    """Return the columns of a row as they are, and after `mapped_row`."""
    if not isinstance(row.value, Mapping):
        raise BadInput(f"{row.place}: an object with problem and answer is needed, found {type(row.value).__name__}")
    return row.value, mapped_row(row.value, source.columns, row.place)


def _problem(row: DataRow, given: JsonMapping, columns: JsonObject, source: SourceConfig) -> Problem:
    """Return the problem of a row. `given` and `columns` are the results of `_named`."""
    where = row.place
    grader = verifier_of(columns, source.verifier, where)
    if columns.get("problem") in (None, "", []):
        raise missing_column("problem", given, source.columns, where)
    asked = columns["problem"]
    turns = _turns(asked, where) if isinstance(asked, list) else ()
    text = turns[-1].content if turns else _text(asked, "problem", where)
    columns["problem"] = text  # reward functions get the text, and the messages stay in their own column
    gold = ""
    if columns.get("answer") not in (None, ""):
        answer = _no_object(columns["answer"], "answer", where)
        gold = gold_text(normalised(answer, source.normaliser, where), where)
    elif grader.needs_gold:
        raise missing_column("answer", given, source.columns, where)
    name = columns.get("id")
    return Problem(
        id=row.id if name in (None, "") else _text(name, "id", where),
        problem=text,
        answer=gold,
        verifier=grader.name,
        meta=meta_of(grader, columns, where),
        turns=turns,
    )


def _text(value: object, key: str, where: str) -> str:
    return text_of(_no_object(value, key, where), key, where)


def _no_object(value: object, key: str, where: str) -> object:
    """Return the value of a column. Raises `BadInput` for an object, whose field `task.columns` can name."""
    if isinstance(value, Mapping):
        fields = ", ".join(map(str, value)) or "no field"
        first = next(iter(value), "FIELD")
        raise BadInput(f"{where}: {key} is an object with {fields}; name one in task.columns, as {key}: {key}.{first}")
    return value


def _turns(messages: Sequence[object], where: str) -> tuple[Turn, ...]:
    """Return the turns of a list of {role, content}. The role of the last turn must be user."""
    turns = []
    for n, message in enumerate(messages, 1):
        place = f"{where}: message {n}"
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise BadInput(f"{place}: a message is an object with role and content, got {short(message)}")
        if message["role"] not in ROLES:
            raise BadInput(f"{place}: unknown role {short(message['role'])}; use {', '.join(ROLES)}")
        turns.append(Turn(role=message["role"], content=text_of(_joined(message["content"], place), "content", place)))
    if turns[-1].role != "user":
        raise BadInput(
            f"{where}: the last message is of the {turns[-1].role}; a prompt ends with a turn of the user: remove the"
            " messages after it"
        )
    return tuple(turns)


def _joined(content: object, place: str) -> object:
    """Return the text of the content of a message, which may be a list of parts {type: text, text: ...}."""
    if not isinstance(content, list):
        return content
    if not all(isinstance(item, Mapping) and isinstance(item.get("text"), str) for item in content):
        raise BadInput(f"{place}: the content has a part that is not text")
    return "".join(item["text"] for item in content)
