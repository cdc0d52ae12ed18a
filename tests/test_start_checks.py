"""Tests the checks at the start of a run: damaged model files, devices, temporary folders, clusters that do not answer.
A refused start makes no run folder."""

from __future__ import annotations

import http.server
import json
import shutil
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from actors.cli import main
from treeadv.checks import check_devices, check_prompts
from treeadv.config import Config, build
from treeadv.data.model_files import check_folder
from treeadv.data.problems import Problem
from treeadv.data.prompts import Prompter
from treeadv.errors import BadInput
from treeadv.learning.loading import check_weights
from treeadv.replay import history
from treeadv.replay.audit import audit
from treeadv.storage.run_folder import RunFolder


def config(*overrides: str) -> Config:
    return build({}, ["task.source=p.jsonl", *overrides], "test")


# ---- files of a model ----------------------------------------------------------------------------
def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def index_of(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))


def tokenizer(**changes: object) -> Callable[[Path], object]:
    """Return a damage that changes keys of tokenizer.json. A key `model_X` is the key X of the model."""

    def damage(folder: Path) -> None:
        tree = json.loads((folder / "tokenizer.json").read_text())
        for key, value in changes.items():
            inner, name = (tree["model"], key.removeprefix("model_")) if key.startswith("model_") else (tree, key)
            inner[name] = value
        (folder / "tokenizer.json").write_text(json.dumps(tree))

    return damage


TOKENIZER_DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: (f / "tokenizer.json").unlink(), r"tokenizer\.json: no such tokenizer"),
    (lambda f: cut(f / "tokenizer.json"), r"tokenizer\.json: is not JSON \(.*line \d+ column \d+"),
    (lambda f: (f / "tokenizer.json").write_text("{}"), r"tokenizer\.json: not a tokenizer \(Model missing"),
    (lambda f: (f / "tokenizer.json").write_text("[]"), "a JSON object is needed, found list"),
    (tokenizer(model=None), r"tokenizer\.json: not a tokenizer \(.*line 1 column"),
    (tokenizer(version="9.9"), r"tokenizer\.json: not a tokenizer \(Unknown tokenizer version '9.9' at line 1"),
    (tokenizer(added_tokens=[{"id": 5}]), r"not a tokenizer \(missing field `content`"),
    (tokenizer(model_vocab={"a": -1}), r"not a tokenizer \(invalid value: integer `-1`"),
    (tokenizer(model_vocab={}), r"not a tokenizer \(WordLevel error: Missing \[UNK\]"),  # appears at the first text
    (tokenizer(model_vocab={"?": 10**9}), r"token '\?' has the id 10{9}, but the vocab_size of config.json is 97"),
    (lambda f: (f / "tokenizer_config.json").write_text("{torn"), r"tokenizer_config\.json: is not JSON"),
]
DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: cut(f / "model.safetensors"), r"model\.safetensors: is cut off, \d+ of \d+ bytes"),
    (lambda f: (f / "model.safetensors").write_bytes(b"\x01"), r"model\.safetensors: is cut off after 1 bytes"),
    (lambda f: (f / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{]"), "is no safetensors file"),
    (lambda f: (f / "model.safetensors").unlink(), r"the folder has no weights \(\*\.safetensors\)"),
    (index_of, r"model-2\.safetensors: is missing, but model\.safetensors\.index\.json names it"),
    (lambda f: (f / "generation_config.json").write_text("{torn"), r"generation_config\.json: is not JSON"),
    (lambda f: (f / "generation_config.json").write_bytes(b'{"a": "\xff"}'), r"generation_config\.json: is not JSON"),
    (lambda f: (f / "generation_config.json").write_text("[1]"), "a JSON object is needed, found list"),
    (lambda f: (f / "generation_config.json").write_text('{"eos_token_id": "x"}'), "eos_token_id must be a token id"),
    (
        lambda f: (f / "config.json").write_text(f'{{"a": {"1" * 5000}}}'),
        "an integer has more than 4300 digits",
    ),
    (lambda f: [(f / "model.safetensors").unlink(), (f / "model.safetensors").mkdir()], "cannot be read"),
    (lambda f: [(f / "generation_config.json").unlink(), (f / "generation_config.json").mkdir()], "is a folder"),
    (lambda f: (f / "generation_config.json").write_text('{"eos_token_id": 97}'), "eos_token_id 97 is no token of the"),
    (lambda f: (f / "config.json").write_text("{}"), r"config\.json: names no model_type"),
    (lambda f: (f / "config.json").write_text('{"model_type": "a", "model_type": "b"}'), "'model_type' occurs twice"),
    *TOKENIZER_DAMAGES,
]


@pytest.mark.parametrize("change", [
        {"hidden_size": "a"}, {"num_attention_heads": 0}, {"hidden_size": -8}, {"num_hidden_layers": -1},
        {"head_dim": 7}, {"num_key_value_heads": 3}, {"model_type": "bert"},
    ],
)  # fmt: skip
def test_configuration_that_fits_no_model_is_named_by_the_plan(
    change: dict[str, object], tiny_model: Path, tmp_path: Path
) -> None:
    import torch

    from treeadv.planning.sizes import model_sizes

    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads((tiny_model / "config.json").read_text()) | change))
    with pytest.raises(BadInput, match=r"config\.json") as caught:
        model_sizes(path, tokens=8, compute=torch.float32, recompute=False, lora_rank=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("config.json", {"hidden_size": 32}, "has a tensor .* of shape .*, but LlamaForCausalLM needs"),
        ("config.json", {"num_key_value_heads": 4}, r"k_proj.weight of shape \(32, 64\), but .* needs \(64, 64\)"),
        ("config.json", {"vocab_size": 200}, "embed_tokens.weight of shape"),
        ("config.json", {"num_hidden_layers": 4}, r"has no tensor model\.layers\.2\.self_attn\.q_proj\.weight"),
        ("config.json", {"num_hidden_layers": -1}, r"no layers \(num_hidden_layers=-1\)"),
        ("config.json", {"num_attention_heads": -4}, "no model can be built from this configuration"),
        ("config.json", {"hidden_act": "no"}, "no model can be built from this configuration"),
        ("config.json", {"rope_parameters": {"rope_type": "no"}}, "no model can be built from this configuration"),
        ("config.json", {"head_dim": 0}, "no model can be built from this configuration"),
        ("config.json", {"sliding_window": "x"}, "a limit of its context in config.json is no integer"),
        ("config.json", {"model_type": "bert"}, "bert|Bert"),
        ("generation_config.json", {"pad_token_id": "x"}, "cannot be used"),
        ("generation_config.json", {"watermarking_config": 7}, "cannot be used"),
    ],
)
def test_model_that_its_weights_do_not_fit_is_refused(
    file: str, change: dict[str, object], said: str, tiny_model: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
    problem = Problem(id="p", problem="3+4", answer="7", verifier="math", meta="")
    with pytest.raises(BadInput, match=said) as caught:
        check_prompts([problem], config(f"model.path={folder}", "sampling.max_tokens=4"))
    assert "\n" not in str(caught.value)


def test_tensors_that_the_model_does_not_use_are_named(tiny_model: Path, tmp_path: Path, caplog) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    changed = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 1}
    (folder / "config.json").write_text(json.dumps(changed))
    check_weights(folder)
    assert "does not use 9 tensors of the folder, as model.layers.1." in caplog.text
    caplog.clear()
    check_weights(tiny_model)
    assert caplog.text == ""


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_damaged_model_file_is_named_in_one_line(
    damage: Callable[[Path], object], message: str, tiny_model: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    check_folder(folder)
    damage(folder)
    with pytest.raises(BadInput, match=message) as caught:
        check_folder(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_tokenizer_of_another_model_is_refused_at_the_prompt(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    ids = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    tokenizer(model_vocab=ids | {"7": 98})(folder)
    check_folder(folder)  # a model may have tokens that it never draws
    problem = Problem(id="p-3", problem="3+4", answer="7", verifier="math", meta="")
    assert len(Prompter(folder).encode(problem)) == 3
    with pytest.raises(BadInput, match=r"p-4: its prompt has the token id 98, but the vocab_size of .* is 97"):
        Prompter(folder).encode(replace(problem, id="p-4", problem="3+7"))


@pytest.mark.parametrize("command", ["plan", "init", "generate", "eval", "train", "train --dry-run --local"])
def test_damaged_tokenizer_ends_each_command_with_one_line(
    command: str, tiny_model: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    tokenizer(model=None)(folder)
    (tmp_path / "p.jsonl").write_text('{"problem": "1+1", "answer": "2"}\n' * 2)
    (tmp_path / "r.yaml").write_text("task: {source: p.jsonl}\nmodel: {path: model}\n")
    name, *flags = command.split()
    model = ["--model", "model", "--data", "p.jsonl"]
    given = {
        "plan": ["r.yaml"], "init": ["model", "p.jsonl"], "generate": [*model, "--out", "o.arrow"], "eval": model,
        "train": ["--config", "r.yaml"],
    }  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    assert main([name, *given[name], *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("treeadv: error: ") and "tokenizer.json: not a tokenizer (" in line
    assert sorted(tmp_path.rglob("*")) == before


# ---- devices, folders, clusters ------------------------------------------------------------------
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["learner.device=cuda", "learner.gpus=1"], r"learner\.device=cuda: torch .* finds no CUDA device"),
        (["generator.engine=sglang", "generator.sglang.device=cuda"], r"generator\.sglang\.device=cuda: torch"),
        (["generator.gpus=0.5"], r"ask for 0\.5 GPUs, but this machine has 0; lower them"),
    ],
)
def test_cuda_without_a_device_is_refused(overrides: list[str], message: str, monkeypatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(BadInput, match=message):
        check_devices(config(*overrides))
    check_devices(config())


def test_temporary_folder_too_long_for_sockets_is_refused(tmp_path: Path, monkeypatch) -> None:
    check_machine = pytest.importorskip("actors.driver.start_check").check_machine
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", f"/tmp/{'x' * 80}")
    with pytest.raises(
        BadInput, match=r"TMPDIR=/tmp/x+: \d+ bytes too long for the paths of Ray's sockets; set RAY_TMPDIR=/tmp"
    ):
        check_machine(config())
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    check_machine(config())


def test_address_without_a_cluster_is_refused_at_once(monkeypatch) -> None:
    join_cluster = pytest.importorskip("actors.driver.start_check").join_cluster
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(BadInput, match=rf"RAY_ADDRESS=127\.0\.0\.1:{port}: no cluster answers there"):
        join_cluster()
    monkeypatch.setenv("RAY_ADDRESS", "somewhere")
    with pytest.raises(BadInput, match="write HOST:PORT, ray://HOST:PORT or auto"):
        join_cluster()


def test_address_of_another_service_is_refused_at_once(monkeypatch) -> None:
    join_cluster = pytest.importorskip("actors.driver.start_check").join_cluster
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.server_port}")
        with pytest.raises(BadInput, match="not a Ray cluster"):
            join_cluster()
        server.shutdown()


# ---- run folders ---------------------------------------------------------------------------------
def test_every_earlier_configuration_is_kept(tmp_path: Path) -> None:
    folder, first, lock = RunFolder.create(config(f"run.root={tmp_path}", "run.name=run"), "")
    lock.release()
    changed = [build(first.model_dump(mode="json"), [f"run.steps={n}"], "test") for n in (50, 60)]
    folder.replace_configuration(first, 0)
    for n, new in enumerate((changed[0], changed[0], changed[1])):
        folder.replace_configuration(new, n)
    kept = [folder.path / f"config.{n}.yaml" for n in (1, 2)]
    assert [RunFolder.open(folder.path, [])[1].run.steps, *(_steps(p) for p in kept)] == [60, 40, 50]
    assert sorted(folder.path.glob("config.*.yaml")) == kept


def _steps(path: Path) -> int:
    from treeadv.config import load

    return load(path).run.steps


def test_history_and_audit_take_a_path_and_a_text(tmp_path: Path) -> None:
    from tests.report.runs import make_run
    from tests.strategies import build as forest

    run = make_run(tmp_path, [forest([-1, 0, 0], [2, 2, 2])] * 2, [])
    for path in (run, str(run)):
        assert len(list(history.forests(path))) == 2 and audit(path).sound
