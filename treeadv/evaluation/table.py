"""The scores of an evaluation as rows of text."""

from __future__ import annotations

from treeadv.evaluation.estimates import Estimate
from treeadv.evaluation.scores import Score, SetScore


def header(score: Score) -> list[str]:
    """Return the titles of the columns."""
    samples = _samples(score)
    passes = [f"pass@{k}" for k in _shown(samples)]
    return [
        "set",
        "problems",
        f"avg@{samples}",
        *passes,
        "tokens",
        "cut",
        "completed",
        "correct of completed",
        "failed",
    ]


def rows(score: Score) -> list[list[str]]:
    """Return one row for each set, and a row for the mean over the sets if there are several."""
    found = [_row(name, s) for name, s in score.sets.items()]
    if len(found) > 1:
        problems = sum(s.problems for s in score.sets.values())
        cells = ["mean of the sets", str(problems), _estimate(score.avg)]
        found.append(cells + [""] * (len(header(score)) - len(cells)))
    return found


def markdown(score: Score) -> str:
    """Return the table in Markdown."""
    titles = header(score)
    lines = [titles, ["---"] * len(titles), *rows(score)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(name: str, s: SetScore) -> list[str]:
    failed = sum(n for verdict, n in s.verdicts.items() if verdict in ("timeout", "crash", "aborted"))
    correct = "" if s.completed_correct is None else f"{s.completed_correct:.1%}"
    passes = [_estimate(s.passes[k]) for k in _shown(s.samples)]
    shares = [f"{s.tokens_mean:.0f}", f"{s.cut:.0%}", f"{s.completed:.0%}", correct, str(failed)]
    return [name, str(s.problems), _estimate(s.avg), *passes, *shares]


def _estimate(e: Estimate) -> str:
    text = f"{100 * e.value:.1f}"
    return text if e.interval is None else f"{text} [{100 * e.interval[0]:.1f}, {100 * e.interval[1]:.1f}]"


def _samples(score: Score) -> int:
    return next(iter(score.sets.values())).samples


def _shown(samples: int) -> list[int]:
    """Return the k of pass@k that have a column. pass@1 has no column, because it equals avg."""
    return [samples] if samples > 1 else []
