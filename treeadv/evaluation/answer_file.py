"""Grades the responses of a JSONL file (`treeadv grade`)."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from treeadv.data.columns import mapped_row
from treeadv.data.normalisers import HASHES, check_marks, find_normaliser, normalised
from treeadv.errors import BadInput
from treeadv.forest import UNJUDGED
from treeadv.jsonl import JsonObject, check_file, read_jsonl
from treeadv.rewards.golds import gold_text
from treeadv.rewards.judgement import Answer, Judgement
from treeadv.rewards.sandbox.pool import judging
from treeadv.rewards.verifiers.registry import find_verifier, meta_of, verifier_of

_MEMORY_MB = 1024
_BATCH = 256  # answers given to the pool at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The result of `grade_file`.

    The fields are the number of answers by verdict, the mean reward of the judged answers (None without a judged
    answer), the number of verifier failures with the detail of the last failure, and the wall time in seconds.
    """

    answers: int
    verdicts: dict[str, int]
    reward_mean: float | None
    failures: int
    last_failure: str
    seconds: float


def grade_file(
    path: Path,
    verifier: str = "math",
    workers: int = 2,
    timeout: float = 5.0,
    out: Path | None = None,
    normaliser: str = HASHES,
) -> Summary:
    """Grade every line of a JSONL file. With `out`, write the lines with their verdicts to the file `out`.

    A line has a gold answer, in the forms that `task.source` knows, and `response`. `normaliser` extracts the gold
    answer, as `task.normaliser` does. A line may have `problem`, `meta` (JSON for the verifier) and `verifier`. A
    written line also has `verdict`, `reward`, `detail`, `parts` and `seconds`. Raises `BadInput` with file and line
    before anything is graded or written."""
    find_verifier(verifier)
    find_normaliser(normaliser)
    records = list(_records(path))
    columns = [(f"{path}:{n}", mapped_row(r, {}, f"{path}:{n}")) for n, r in records]
    if normaliser == HASHES:
        check_marks([(place, row.get("answer")) for place, row in columns])
    answers = [_answer(row, verifier, normaliser, place) for place, row in columns]
    began = time.monotonic()
    with judging(workers, timeout, _MEMORY_MB) as judge:
        judgements = [j for i in range(0, len(answers), _BATCH) for j in judge(answers[i : i + _BATCH])]
    seconds = time.monotonic() - began
    if out is not None:
        _write(out, [r for _, r in records], judgements)
    counts = Counter(j.verdict.name.lower() for j in judgements)
    judged = [j.reward for j in judgements if j.verdict not in UNJUDGED]
    failed = [j.detail for j in judgements if j.verdict in UNJUDGED]
    return Summary(
        answers=len(answers),
        verdicts=dict(counts),
        reward_mean=fmean(judged) if judged else None,
        failures=len(failed),
        last_failure=failed[-1] if failed else "",
        seconds=seconds,
    )


def _records(path: Path) -> Iterator[tuple[int, JsonObject]]:
    check_file(path, "answers: JSON lines with answer and response")
    empty = True
    for n, record in read_jsonl(path, "an object with answer and response"):
        if not isinstance(record, dict):
            raise BadInput(
                f"{path}:{n}: the line must be a JSON object with answer and response, not {type(record).__name__}"
            )
        empty = False
        yield n, record
    if empty:
        raise BadInput(f"{path} has no line to grade")


def _answer(record: JsonObject, configured: str, normaliser: str, place: str) -> Answer:
    response = record.get("response")
    if not isinstance(response, str):
        raise BadInput(f"{place}: the line has no text under 'response'")
    verifier = verifier_of(record, configured, place)
    if record.get("answer") in (None, "") and not verifier.needs_gold:
        gold = ""
    elif "answer" not in record:
        raise BadInput(f"{place}: the line has no text under 'answer'")
    else:
        gold = gold_text(normalised(record["answer"], normaliser, place), place)
    return Answer(response=response, gold=gold, verifier=verifier.name, meta=meta_of(verifier, record, place))


def _write(out: Path, records: list[JsonObject], judgements: list[Judgement]) -> None:
    with out.open("w") as f:
        for record, j in zip(records, judgements, strict=True):
            verdict = {
                "verdict": j.verdict.name.lower(),
                "reward": j.reward,
                "detail": j.detail,
                "parts": dict(j.parts),
                "seconds": round(j.seconds, 4),
            }
            f.write(json.dumps(record | verdict) + "\n")
