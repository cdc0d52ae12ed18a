"""Tests that the JSON of a forest contains every token, text and number of the forest."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from tests.strategies import forests as any_forest
from tests.view.runs import STEP_KEPT, forests, tree
from treeadv.errors import BadInput
from treeadv.forest import Forest
from treeadv.learning.advantage import advantages
from treeadv.learning.kept import write_log_probs
from treeadv.presets import build_advantage
from treeadv.report.picture import Numbers, Vocabulary
from treeadv.view.encoding import encode_row, forest_json
from treeadv.view.sources import open_source

SPEC = build_advantage("treeadv")


def unpacked(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind)


@settings(max_examples=30)
@given(any_forest(losses=True))
def test_json_of_any_forest_decodes_to_its_arrays(f: Forest) -> None:
    made = json.loads(json.dumps(forest_json(f, Numbers(), SPEC), allow_nan=False))
    assert made["parent"] == f.parent.tolist() and made["length"] == f.lengths.tolist()
    assert np.array_equal(unpacked(made["id"], "<u4"), f.token)
    assert np.allclose(unpacked(made["entropy"], "<u2") / 1000, f.entropy, atol=0.00051)
    assert np.allclose(unpacked(made["surprise"], "<u2") / -1000, f.logprob, atol=0.00051)
    assert [v for v, n in made["version"] for _ in range(n)] == f.version.tolist()
    assert np.allclose(made["advantage"], advantages(f, SPEC)[0], atol=1e-6)
    assert [leaf["segment"] for leaf in made["leaves"]] == f.leaf_segment.tolist()
    sizes, at = unpacked(made["size"], "<u2"), 0
    for s, text in enumerate(made["text"]):
        for t in range(f.start[s], f.start[s + 1]):
            assert text[at : at + sizes[t]] == f"{f.token[t]} "
            at += int(sizes[t])
        assert at == len(text)
        at = 0


def test_texts_are_the_recorded_tokens_decoded(tiny_model: Path) -> None:
    f = forests()[3]
    made = forest_json(f, Vocabulary(tiny_model), SPEC)
    assert made["prompt"] == "C: name a bird"
    assert made["text"] == ["the <b>owl</b> & ", "<answer>owl</answer>", "<answer>cat</answer>"]


def test_sizes_count_utf16_units_and_invisible_text_is_shown(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models

    words = ["😀", "é", "\u202e", "\n", "a"]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="a"))
    made.decoder = decoders.Fuse()
    made.save(str(tmp_path / "tokenizer.json"))
    f = Forest.assemble(prompt=[4], parent=[-1], lengths=[5], token=range(5), logprob=[-1.0] * 5)
    out = forest_json(f, Vocabulary(tmp_path), SPEC)
    assert out["text"] == ["😀é\\u202e⏎\na"] and unpacked(out["size"], "<u2").tolist() == [2, 1, 6, 2, 1]
    assert out["advantage"] is None and out["leaves"][0]["verdict"] == "ungraded"


def test_leaves_say_what_the_verifier_read_and_why(tiny_model: Path) -> None:
    f = tree("A", "so ", ["<answer>4</answer>", "<answer>5</answer>", "no idea"], "4")
    leaves = forest_json(f, Vocabulary(tiny_model), SPEC)["leaves"]
    assert [leaf["read"] for leaf in leaves] == ["4", "5", "so no idea"]
    assert leaves[2]["detail"] == "no answer found" and leaves[2]["verdict"] == "unparsed"


@pytest.mark.parametrize("verifier", ["tests.failing:everything", "https://example.invalid/x", "nothing", "numeric:x"])
def test_verifier_that_is_not_of_this_package_does_not_run(tiny_model: Path, verifier: str) -> None:
    from dataclasses import replace

    leaves = forest_json(replace(forests()[0], verifier=verifier), Vocabulary(tiny_model), SPEC)["leaves"]
    assert [leaf["read"] for leaf in leaves] == [None] * 3


def test_mismatch_is_learner_minus_engine_where_kept(run: Path) -> None:
    source = open_source(run)
    of = {row.step: row.key for row in source.rows()[0]}
    mismatch = unpacked(encode_row(source, of[STEP_KEPT])["mismatch"], "<f4")
    assert np.isnan(mismatch[0]) and np.allclose(mismatch[1:], 0.25, atol=1e-6)
    assert encode_row(source, of[1])["mismatch"] is None


@pytest.mark.parametrize("damage", ["other length", "cut"])
def test_damaged_log_probs_are_named(run: Path, tmp_path: Path, damage: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    source = open_source(copy)
    key = next(row.key for row in source.rows()[0] if row.step == 1)
    write_log_probs(copy, 1, 0, {key: np.zeros(3, np.float32)})
    if damage == "cut":
        (kept,) = (copy / "log_probs").glob("step-1.*")
        kept.write_bytes(kept.read_bytes()[:-40])
    with pytest.raises(BadInput, match="log_probs/"):
        encode_row(source, key)
