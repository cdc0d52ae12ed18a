"""Tests the benchmarks `overlap` and `ragged` with a tiny model."""

from __future__ import annotations

import json

import pytest

from actors.benchmarks import context, overlap, queue, ragged
from actors.benchmarks.coin import coin
from actors.benchmarks.overlap_roles import Role
from treeadv.errors import BadInput

SYNC = {"token_s": 0.3, "learner_s": 2.0, "generator_s": 1.0}


def record(elapsed: float, tokens: int, wait: float, busy: float) -> dict:
    seconds = {"wait": wait, "publish": 1.0, "forward_backward": 3.0, "optimizer": 1.0, "checkpoint": 9.0}
    return {"elapsed_s": elapsed, "tokens_trained": tokens, "generator_busy_s": busy, "seconds": seconds}


def test_shares_leave_out_the_first_steps():
    found = overlap.shares([record(90.0, 5, 80.0, 1.0), record(100.0, 15, 2.0, 8.0), record(110.0, 25, 4.0, 8.0)], 1)
    assert found == pytest.approx(
        {"step_s": 10.0, "tokens": 10.0, "token_s": 1.0, "learner_wait": 0.3, "publish": 0.1, "generator_idle": 0.2,
         "learner_s": 4.0, "generator_s": 8.0}
    )  # fmt: skip


@pytest.mark.parametrize(
    ("learner", "generator", "seconds"),
    [
        (1.0, 1.0, 2.0),  # the learner works for 2 s, the generator for 1 s beside it
        (0.9, 1.0, 2.0),  # no role is faster beside the other
        (1.0, 3.0, 2.0 + 1.0 - 2 / 3),  # the generator does 2/3 of its work beside the learner
        (2.0, 2.0, 2.0 + 1.0),  # the roles share everything
        (1.5, 1.2, 1.2 + 2.0 - 1.2 / 1.5),
    ],
)
def test_ceiling_is_both_roles_over_their_time_at_once(learner, generator, seconds):
    found = overlap.compare(SYNC, {"token_s": 0.2}, {"learner_slowdown": learner, "generator_slowdown": generator})
    ceiling = 3.0 / seconds
    assert found == pytest.approx(
        {"async_over_sync": 1.5, "ceiling": ceiling, "of_ceiling": 1.5 / ceiling, "balance": 2.0}
    )


def test_overlap_without_staleness_0_is_refused():
    with pytest.raises(BadInput, match=r"--staleness .1.: add 0"):
        overlap.main(["--staleness", "1"])


def test_overlap_that_skips_all_steps_is_refused():
    with pytest.raises(BadInput, match="--steps 3: take more"):
        overlap.main(["--steps", "3", "--skip", "3"])


def test_queue_refuses_forests_that_fill_no_last_step():
    with pytest.raises(BadInput, match="--forests 100: must be a multiple of --per-step 16"):
        queue.main(["--forests", "100"])


def test_coin_gives_both_grades():
    grades = [coin(f"the answer is {n}") for n in range(64)]
    assert 20 < sum(grades) < 44 and grades == [coin(f"the answer is {n}") for n in range(64)]


@pytest.mark.slow
def test_a_role_that_cannot_start_is_named(tmp_path):
    with pytest.raises(BadInput, match="the process of the generator ended"):
        Role("generator", str(tmp_path), "float32")


@pytest.mark.slow
def test_slowdowns_of_both_roles_are_measured(tiny_model):
    found = overlap.slowdowns(str(tiny_model), "float32", 0.5)
    for role in ("learner", "generator"):
        assert found[f"{role}_slowdown"] == pytest.approx(found[f"{role}_alone"] / found[f"{role}_together"])
        assert found[f"{role}_together"] > 0


def test_ragged_compares_equal_numbers_of_tokens(tiny_model, capsys):
    options = "--answers 6 --rows 2 --prompt 5 --mean 4 --rounds 1"
    ragged.main(["--model", str(tiny_model), *options.split()])
    rows = {r["way"]: r for r in map(json.loads, capsys.readouterr().out.splitlines())}
    assert rows["engine"]["tokens"] == rows["generate"]["tokens"] >= 6
    ratio = rows["engine"]["tokens_per_second"] / rows["generate"]["tokens_per_second"]
    assert rows["speedup"]["engine_over_generate"] == pytest.approx(ratio, rel=0.01)
    assert 0 < rows["engine"]["model"] < 1


def test_context_computes_the_shared_prompt_once(tiny_model, capsys):
    options = "--layers 1 --leaves 3 --prompt 20 --answers 5 700 --steps 2"
    context.main(["--model", str(tiny_model), *options.split()])
    lines = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert [(r["way"], r["answer"]) for r in lines] == [("prefill", 5), ("step", 5), ("prefill", 700), ("step", 700)]
    assert [r["rows"] for r in lines[::2]] == [20 + 3 * 5, 20 + 3 * 700]
    for r in lines:
        assert r["engine_over_transformers"] == pytest.approx(r["transformers_s"] / r["engine_s"], rel=0.01)
