"""How good a model is on a file of problems: pass@1, pass@k and tokens, from independent samples of each problem."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, sqrt
from statistics import fmean, pstdev

from treeadv.config import Config
from treeadv.forest import Finish, Forest, Verdict


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`pass_at` maps k to the mean over problems; `pass_1_error` is the standard error of pass@1 over the problems.

    Only VERIFIED passes; what no verifier could decide is a failure and shows in `verdicts`.
    """

    problems: int
    samples: int
    pass_at: dict[int, float]
    pass_1_error: float
    tokens: int
    tokens_mean: float  # of an answer
    cut: float  # share of the answers that ran into the token limit
    verdicts: dict[str, int]


def independent(config: Config, samples: int) -> Config:
    """The same configuration with `samples` rollouts a problem that share nothing: leaves of one tree are not
    independent."""
    alone = {"rule": "none", "rule_options": {}, "leaves": samples, "trees": samples}
    return config.model_copy(update={"sampling": config.sampling.model_copy(update=alone)})


def evaluate(forests: Sequence[Forest]) -> Evaluation:
    """Count graded forests of independent leaves, one a problem, all with the same number of leaves."""
    n = forests[0].leaves
    passed = [int((f.verdict == Verdict.VERIFIED).sum()) for f in forests]
    verdicts = Counter(Verdict(int(v)).name.lower() for f in forests for v in f.verdict)
    tokens = sum(f.tokens for f in forests)
    return Evaluation(
        problems=len(forests),
        samples=n,
        pass_at={k: fmean(pass_at_k(n, c, k) for c in passed) for k in _ks(n)},
        pass_1_error=pstdev([c / n for c in passed]) / sqrt(len(forests)),
        tokens=tokens,
        tokens_mean=tokens / (n * len(forests)),
        cut=fmean(float((f.finish == Finish.LENGTH).mean()) for f in forests),
        verdicts=dict(verdicts.most_common()),
    )


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that one of k draws without replacement passes, when c of n samples do: 1 - C(n-c, k) / C(n, k).

    Unbiased for 1 - (1-p)^k when the samples are independent (Chen et al. 2021, arXiv:2107.03374, equation 1).
    """
    return 1.0 - comb(n - c, k) / comb(n, k)


def _ks(n: int) -> list[int]:
    """1, 2, 4, ... and n."""
    return sorted({1 << i for i in range(n.bit_length()) if 1 << i <= n} | {n})
