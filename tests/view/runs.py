"""Makes run folders with known texts. Tokens of the tiny model are characters."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from tests.report.runs import make_run, record
from tests.tiny import CHARACTERS
from treeadv.forest import Finish, Forest, Verdict
from treeadv.learning.kept import write_log_probs
from treeadv.replay.history import forests_of_step

STEP_KEPT = 2  # the step whose log-probabilities the run of the tests keeps
FIRST = 2  # id of the first character
SHARED = ("2+2: think", ["ing <answer>4</answer>", "ing <answer>5</answer>", " no more"])


def encode(text: str) -> list[int]:
    return [FIRST + CHARACTERS.index(c) for c in text]


def tree(
    prompt: str, stem: str, ends: Sequence[str], gold: str, version: int = 0, cut: int = -1, prompt_id: str = "p"
) -> Forest:
    """Return a forest of one tree with a root segment `stem`, which forks into `ends`. An end that has the gold answer
    in an answer tag is verified. The leaf `cut` has reached the token limit."""
    texts = [stem, *ends]
    tokens = [t for text in texts for t in encode(text)]
    rng = np.random.default_rng(len(tokens))
    forest = Forest.assemble(
        forest_id=f"{prompt}-{version}", prompt_id=prompt_id, gold=gold, verifier="exact", rule="entropy", tau=1.5,
        prompt=encode(prompt), parent=[-1, *[0] * len(ends)], lengths=[len(t) for t in texts], token=tokens,
        logprob=-rng.gamma(1.0, 1.0, len(tokens)), entropy=rng.gamma(1.0, 0.5, len(tokens)), version=version,
        finish=[Finish.LENGTH if n == cut else Finish.STOP for n in range(len(ends))],
    )  # fmt: skip
    right = [f"<answer>{gold}</answer>" in end for end in ends]
    read = ["<answer>" in end for end in ends]
    verdicts = [
        Verdict.VERIFIED if r else Verdict.WRONG if has else Verdict.UNPARSED
        for r, has in zip(right, read, strict=True)
    ]
    detail = ["" if has else "no answer found" for has in read]
    return forest.with_rewards([float(r) for r in right], verdicts, detail)


def forests() -> list[Forest]:
    """Return six forests. Steps 1, 3 and 5 have prompt A, and the other steps have other prompts."""
    stem, ends = SHARED
    return [
        tree("A: what is 2+2?", stem, ends, "4", 0),
        tree("B: what is 3+3?", "three ", ["<answer>6</answer>", "<answer>7</answer>"], "6", 1, prompt_id="q"),
        tree("A: what is 2+2?", stem, [ends[1], ends[2]], "4", 2, cut=1),
        tree("C: name a bird", "the <b>owl</b> & ", ["<answer>owl</answer>", "<answer>cat</answer>"], "owl", 3),
        tree("A: what is 2+2?", stem, [ends[0], ends[0] + "!"], "4", 4),
        tree("D: long", "x" * 700, ["y" * 300 + "<answer>1</answer>", "z" * 40], "1", 5),
    ]


def run_of(root: Path, model: Path, made: Sequence[Forest] | None = None) -> Path:
    """Create a run with one forest in each step. Its model is the tiny model."""
    chosen = forests() if made is None else made
    path = make_run(root, chosen, [record(step) for step in range(1, len(chosen) + 1)])
    file = path / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["model"]["path"] = str(model)
    config["run"]["steps"] = len(chosen)
    file.write_text(yaml.safe_dump(config))
    return path


def keep_log_probs(run: Path, step: int, mismatch: float) -> None:
    """Write log-probabilities of the learner for a step. They are those of the engine plus `mismatch`. Token 0 has
    none."""
    kept = {}
    for forest in forests_of_step(run, step):
        kept[forest.forest_id] = forest.logprob + np.float32(mismatch)
        kept[forest.forest_id][0] = np.nan
    write_log_probs(run, step, 0, kept)


def digest(folder: Path) -> dict[str, tuple[str, int]]:
    """Return the content and the modification time of every file."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    return {str(p): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in files}
