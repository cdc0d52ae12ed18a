"""The type of a problem, and its construction from a row of data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from treeadv.data.columns import mapped_row, missing_column
from treeadv.data.normalisers import find_normaliser
from treeadv.errors import BadInput, one_line
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


def problem_of(row: object, where: str, default_id: str, source: SourceConfig) -> Problem:
    """Return the problem of a row of `source` (`TaskConfig.parts`). `where` names the row in errors.

    A row may name its `verifier`. A row without a verifier gets the verifier of the source. Raises `BadInput`.
    """
    if not isinstance(row, Mapping):
        raise BadInput(f"{where}: an object with problem and answer is needed, found {type(row).__name__}")
    row = mapped_row(row, source.columns, where)
    grader = verifier_of(row, source.verifier, where)
    if row.get("problem") in (None, "", []):
        raise missing_column("problem", row, source.columns, where)
    turns = _turns(row["problem"], where) if isinstance(row["problem"], list) else ()
    text = turns[-1].content if turns else text_of(row["problem"], "problem", where)
    row["problem"] = text  # reward functions get the text, and the messages stay in their own column
    gold = ""
    if row.get("answer") not in (None, ""):
        gold = gold_text(_normalised(row["answer"], source.normaliser, where), where)
    elif grader.needs_gold:
        raise missing_column("answer", row, source.columns, where)
    given = row.get("id")
    return Problem(
        id=default_id if given in (None, "") else text_of(given, "id", where),
        problem=text,
        answer=gold,
        verifier=grader.name,
        meta=meta_of(grader, row, where),
        turns=turns,
    )


def _normalised(answer: object, normaliser: str, where: str) -> object:
    if not isinstance(answer, str):
        return answer
    try:
        return find_normaliser(normaliser)(answer)
    except BadInput as e:
        raise BadInput(f"{where}: {e}") from e
    except Exception as e:  # a user's function may raise anything
        raise BadInput(f"{where}: task.normaliser={normaliser} fails: {type(e).__name__}: {one_line(e)}") from e


def _turns(messages: Sequence[object], where: str) -> tuple[Turn, ...]:
    """Return the turns of a list of {role, content}. The role of the last turn must be user."""
    turns = []
    for n, message in enumerate(messages, 1):
        place = f"{where}: message {n}"
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise BadInput(f"{place}: a message is an object with role and content, got {message!r}")
        if message["role"] not in ROLES:
            raise BadInput(f"{place}: unknown role {message['role']!r}; use {', '.join(ROLES)}")
        turns.append(Turn(role=message["role"], content=text_of(_joined(message["content"], place), "content", place)))
    if turns[-1].role != "user":
        raise BadInput(f"{where}: the last message is of the {turns[-1].role}; a prompt ends with a turn of the user")
    return tuple(turns)


def _joined(content: object, place: str) -> object:
    """Return the text of the content of a message, which may be a list of parts {type: text, text: ...}."""
    if not isinstance(content, list):
        return content
    if not all(isinstance(item, Mapping) and isinstance(item.get("text"), str) for item in content):
        raise BadInput(f"{place}: the content has a part that is not text")
    return "".join(item["text"] for item in content)
