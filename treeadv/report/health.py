"""Findings about the health of a run, from its records: alarms, and advice for a run without alarms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from treeadv.config import Config
from treeadv.jsonl import JsonMapping

WINDOW = 20  # number of last steps that a finding describes
TREND = 20  # smallest number of steps for a comparison of the start and the end of a run
_FEW = 3  # smallest number of steps for a finding about speed or variance
_FAILURES = ("timeout", "crash", "ungraded", "aborted")
Record = JsonMapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A finding about the health of a run, and the remedy for it."""

    what: str
    remedy: str

    @property
    def text(self) -> str:
        return f"{sentence(self.what)} {sentence(self.remedy)}"


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def alarms(records: Sequence[Record]) -> list[Finding]:
    """Return what is wrong with the run, the worst first. `records` are all records, or the last records of a long
    run."""
    last = records[-WINDOW:]
    return [found for check in _ALARMS if last for found in check(last, records)]


def advice(records: Sequence[Record], config: Config, local: bool) -> list[Finding]:
    """Return what is idle or wasted, and the option to change. `local` says that the run is in one process (`--local`).

    Call this function only if `alarms` finds nothing: a run that learns nothing need not be faster."""
    last = records[-WINDOW:]
    if len(last) < _FEW:
        return []
    idle = _local_idle(last, config) if local else _idle(last, config)
    return [*idle, *_wasted(last)]


# ---- alarms: each check takes (last records, all records) ------------------------------------------------------------
def _law(last: Sequence[Record], _: Sequence[Record]) -> Iterator[Finding]:
    if error := last[-1].get("law_error", 0):
        yield Finding(
            what=f"the equation admitted = ready + leased + trained + dropped has an error of {error}",
            remedy="stop the run and run treeadv audit RUN: this is a defect",
        )


def _not_finite(last: Sequence[Record], _: Sequence[Record]) -> Iterator[Finding]:
    if count := sum(r.get("nonfinite_updates", 0) for r in last):
        yield Finding(
            what=f"{count} updates of the last {len(last)} steps were not finite",
            remedy="lower learner.lr, or set learner.dtype=float32; treeadv reproduce RUN --batch takes one again",
        )


def _unjudged(last: Sequence[Record], _: Sequence[Record]) -> Iterator[Finding]:
    if (share := _verdict_share(last, *_FAILURES)) > 0.1:
        yield Finding(
            what=f"{share:.0%} of the leaves were not judged (the verifier failed, or the engine lost the branch)",
            remedy="look at reward.timeout and reward.memory_mb, and at the details of the leaves in the report",
        )


def _nothing_to_learn(last: Sequence[Record], _: Sequence[Record]) -> Iterator[Finding]:
    if len(last) >= _FEW and _mean(last, "zero_variance") > 0.999:
        yield Finding(
            what=f"in the last {len(last)} steps all leaves of a forest had the same reward (mean"
            f" {_mean(last, 'reward_mean'):.2f}): no gradient",
            remedy="take easier or harder problems, raise sampling.leaves, or change task.verifier if it is wrong",
        )


def _unparsed(last: Sequence[Record], _: Sequence[Record]) -> Iterator[Finding]:
    if (share := _verdict_share(last, "unparsed")) > 0.5:
        yield Finding(
            what=f"{share:.0%} of the answers could not be read by the verifier",
            remedy="let task.prompt ask for the form that the verifier reads, or change task.verifier",
        )


def _cut(last: Sequence[Record], _: Sequence[Record]) -> Iterator[Finding]:
    if (share := _mean(last, "truncated")) > 0.5:
        yield Finding(
            what=f"{share:.0%} of the answers were cut at the token limit",
            remedy="raise sampling.max_tokens, or look whether the answers repeat themselves",
        )


def _mismatch(last: Sequence[Record], _: Sequence[Record]) -> Iterator[Finding]:
    if (ess := _mean(last, "ess", 1.0)) < 0.5:
        yield Finding(
            what=f"the effective sample size is {ess:.0%} of the tokens: engine and learner disagree",
            remedy="lower queue.max_staleness or learner.lr, or use one dtype for generator and learner",
        )


def _reward_fell(_: Sequence[Record], records: Sequence[Record]) -> Iterator[Finding]:
    first, last = _ends(records, "reward_mean")
    if first > 0.05 and last < 0.5 * first:
        yield Finding(
            what=f"the mean reward fell from {first:.2f} to {last:.2f}",
            remedy="lower learner.lr, or set learner.kl; compare with another learner.preset",
        )


def _entropy_gone(_: Sequence[Record], records: Sequence[Record]) -> Iterator[Finding]:
    first, last = _ends(records, "entropy_mean")
    if last < 0.1 * first:
        yield Finding(
            what=f"the entropy of a token fell from {first:.3f} to {last:.3f} nats: the policy hardly explores",
            remedy="lower learner.lr, set learner.kl, or raise sampling.temperature",
        )


def _dropped(last: Sequence[Record], records: Sequence[Record]) -> Iterator[Finding]:
    before = records[-len(last) - 1] if len(records) > len(last) else {}
    counts = {name: n - before.get("dropped", {}).get(name, 0) for name, n in last[-1].get("dropped", {}).items()}
    counts.pop("no_variance", None)  # the configuration asks for these drops
    dropped, admitted = sum(counts.values()), last[-1].get("admitted", 0) - before.get("admitted", 0)
    if dropped > 0.3 * max(admitted, dropped):
        reasons = ", ".join(f"{name} {n}" for name, n in counts.items() if n)
        yield Finding(
            what=f"{dropped} forests were dropped and {admitted} admitted in the last {len(last)} steps ({reasons})",
            remedy="stale: lower generator.forests or raise queue.max_staleness; other reasons: treeadv audit RUN",
        )


_ALARMS: tuple[Callable[[Sequence[Record], Sequence[Record]], Iterator[Finding]], ...] = (
    _law, _not_finite, _unjudged, _nothing_to_learn, _unparsed, _cut, _mismatch, _reward_fell, _entropy_gone, _dropped,
)  # fmt: skip


# ---- advice ----------------------------------------------------------------------------------------------------------
def _idle(last: Sequence[Record], config: Config) -> Iterator[Finding]:
    """Yield a finding for a learner that waits and for engines that are idle, in a run with Ray."""
    waited, busy = _shares_of_time(last, config)
    if waited > 0.3:
        yield Finding(
            what=f"the learner waits {waited:.0%} of the time for forests",
            remedy="add generators (treeadv scale RUN generator=N), or raise generator.rows",
        )
    if busy < 0.5:
        yield Finding(
            what=f"the engines decode {busy:.0%} of the time",
            remedy="use fewer generators, or raise queue.max_staleness so that they need not wait for slots",
        )


def _local_idle(last: Sequence[Record], config: Config) -> Iterator[Finding]:
    waited, _ = _shares_of_time(last, config)
    if waited > 0.5:
        yield Finding(
            what=f"growing and grading forests takes {waited:.0%} of the time",
            remedy="raise generator.rows, or train without --local: generators then draw while the learner steps",
        )


def _wasted(last: Sequence[Record]) -> Iterator[Finding]:
    if (share := _mean(last, "zero_variance")) > 0.5:
        yield Finding(
            what=f"{share:.0%} of the forests have equal rewards, so they give no gradient",
            remedy="set queue.mixed_only=true, or mix in problems of another difficulty",
        )
    if (share := _mean(last, "sharing")) < 0.05:
        yield Finding(
            what=f"forests share {share:.0%} of their tokens",
            remedy="set sampling.tau_quantile, or lower sampling.tau, so that chains fork",
        )
    if (share := _mean(last, "truncated")) > 0.1:
        yield Finding(what=f"{share:.0%} of the answers are cut at the token limit", remedy="raise sampling.max_tokens")


def _shares_of_time(last: Sequence[Record], config: Config) -> tuple[float, float]:
    """Return the share of the time in which the learner waits, and the share in which an engine decodes. The first
    record only gives the start of the time."""
    seconds = max(1e-9, last[-1]["elapsed_s"] - last[0]["elapsed_s"])
    waited = sum(r.get("seconds", {}).get("wait", 0.0) for r in last[1:])
    busy = sum(r.get("generator_busy_s", 0.0) for r in last[1:])
    return waited / seconds, busy / seconds / config.generator.count


def _mean(records: Sequence[Record], key: str, default: float = 0.0) -> float:
    values = [r[key] for r in records if r.get(key) is not None]
    return fmean(values) if values else default


def _ends(records: Sequence[Record], key: str) -> tuple[float, float]:
    """Return the mean of the first fifth and of the last fifth of the steps; (0, 0) for a run of fewer than TREND
    steps."""
    if len(records) < TREND:
        return 0.0, 0.0
    fifth = len(records) // 5
    return _mean(records[:fifth], key), _mean(records[-fifth:], key)


def _verdict_share(records: Sequence[Record], *names: str) -> float:
    total = sum(sum(r.get("verdicts", {}).values()) for r in records)
    return sum(r.get("verdicts", {}).get(name, 0) for r in records for name in names) / max(1, total)
