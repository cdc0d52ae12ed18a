"""The main functions for users of the library. `treeadv` exports them. Each combines functions of several packages."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from treeadv.forest import Forest
from treeadv.presets import AdvantageSpec, build_advantage

if TYPE_CHECKING:
    import numpy.typing as npt

    from treeadv.config import Config
    from treeadv.learning.advantage import Array
    from treeadv.learning.packing import Packed
    from treeadv.rewards.judgement import Judgement


def grow(model: str | Path, problems: Sequence[Mapping[str, str]], *overrides: str) -> list[Forest]:
    """Grow one graded forest for each problem with the model of a Hugging Face folder.

    A problem is a mapping with `problem` and `answer`. `overrides` set fields of the configuration, such as
    "sampling.tau=0.5". The same arguments give the same forests. Raises `BadInput` for an invalid argument.

    >>> problems = [{"problem": "1+1=", "answer": "2"}]
    >>> small = ("sampling.leaves=4", "sampling.max_tokens=8", "task.verifier=exact", "generator.threads=1")
    >>> (forest,) = grow(model, problems, *small)
    >>> forest.leaves, forest.graded
    (4, True)
    """
    from treeadv import config as configuration
    from treeadv.data.model_folder import resolve
    from treeadv.data.problems import problems_of
    from treeadv.data.rows import DataRow
    from treeadv.local.rollouts import rollouts

    given = ["task.source=memory.jsonl", f"model.path={model}", *overrides]
    config: Config = configuration.build({}, given, "grow")
    rows = [DataRow(value=row, place=f"problem {n}", id=str(n)) for n, row in enumerate(problems)]
    made = problems_of(rows, config.task.parts[0])
    folder = resolve(config.model.path, config.model.cache)
    return asyncio.run(rollouts(config, folder, made, lambda _: None))


def redistribute(forest: Forest, preset: str | AdvantageSpec = "treeadv") -> tuple[Array, Array]:
    """Return (A [S], c [S]) of a graded forest. A is the advantage and c the loss weight of the tokens of each segment.

    docs/method.md defines both. Raises `BadForest` if the forest is not graded.

    >>> tree = Forest.assemble(prompt=[1], parent=[-1, 0, 0], lengths=[2, 1, 3], token=[5] * 6, logprob=[-1.0] * 6)
    >>> graded = tree.with_rewards([1.0, 0.0], [Verdict.VERIFIED, Verdict.WRONG])
    >>> A, c = redistribute(graded)
    >>> A.round(2).tolist(), c.tolist()
    ([0.0, 0.71, -0.71], [1.0, 1.0, 1.0])
    """
    from treeadv.learning.advantage import advantages

    return advantages(forest, _spec(preset))


def loss(
    forests: Sequence[Forest], logprobs: Sequence[npt.ArrayLike], preset: str | AdvantageSpec = "treeadv"
) -> tuple[float, list[Array]]:
    """Return the clipped loss of a batch of graded forests, and its derivative with respect to the log-probability of
    each token.

    `logprobs` holds log pi [T] of each forest's tokens under the current policy. The denominator of the ratio is the
    policy that drew the tokens. To get the gradient of the loss, multiply each derivative [T] by your model's
    log-probabilities and backpropagate the sum.

    >>> tree = Forest.assemble(prompt=[1], parent=[-1, 0, 0], lengths=[2, 1, 3], token=[5] * 6, logprob=[-1.0] * 6)
    >>> graded = tree.with_rewards([1.0, 0.0], [Verdict.VERIFIED, Verdict.WRONG])
    >>> value, (slope,) = loss([graded], [graded.logprob])
    >>> round(value, 3), slope.round(3).tolist()
    (0.236, [-0.0, -0.0, -0.118, 0.118, 0.118, 0.118])
    """
    from treeadv.learning.correction import CORRECTIONS
    from treeadv.learning.objective import Objective, evaluate, scales

    objective = Objective(spec=_spec(preset), correction=CORRECTIONS["bypass"])
    losses = [
        evaluate(f, objective, scale, np.asarray(logp, np.float64))
        for f, scale, logp in zip(forests, scales(forests, objective), logprobs, strict=True)
    ]
    return float(sum(x.loss.sum() for x in losses)), [x.slope for x in losses]


def pack(forests: Sequence[Forest], limit: int = 4096) -> list[Packed]:
    """Pack forests into micro-batches of at most `limit` rows. Every token is one row and attends to its ancestors.

    >>> tree = Forest.assemble(prompt=[1], parent=[-1, 0, 0], lengths=[2, 1, 3], token=[5] * 6, logprob=[-1.0] * 6)
    >>> (batch,) = pack([tree])
    >>> len(batch.token), batch.position.tolist()
    (5, [0, 1, 2, 3, 4])
    """
    from treeadv.learning import packing

    return [packing.pack(forests, batch) for batch in packing.group(packing.pieces(forests, limit), limit)]


def verify(response: str, gold: str, verifier: str = "math", timeout: float = 5.0) -> Judgement:
    """Judge one response against the gold answer. Another process judges it, unless the text alone decides the verdict.

    `verifier` is a name as in `task.verifier`. `timeout` is in seconds. Raises `BadInput` for an unknown verifier.

    >>> verify("The answer is 1/2.", "0.5").verdict.name
    'VERIFIED'
    """
    from treeadv.rewards.judgement import Answer
    from treeadv.rewards.sandbox.pool import judging

    with judging(workers=1, timeout=timeout, memory_mb=1024) as judge:
        (judgement,) = judge([Answer(response=response, gold=gold, verifier=verifier)])
    return judgement


def _spec(preset: str | AdvantageSpec) -> AdvantageSpec:
    return build_advantage(preset) if isinstance(preset, str) else preset
