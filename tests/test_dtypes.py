"""Tests of `dtype=auto` and of the warning about emulated bfloat16."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from treeadv.checks import check_dtypes
from treeadv.config import Config, build
from treeadv.errors import BadInput

TASK = {"task": {"source": "reasoning-gym", "families": [{"name": "chain_sum"}]}}
AVX2 = {"avx2": True, "avx512_bf16": False, "amx_bf16": False, "cpu_name": "bf16"}
SGLANG = "generator.engine=sglang"
SERVER = 'generator.sglang={"device": "cuda"}'
CPUS = {
    "AVX2": (AVX2, "float32"),
    "AVX-512 without bfloat16": (AVX2 | {"avx512_f": True}, "float32"),
    "AVX-512 with bfloat16": (AVX2 | {"avx512_bf16": True}, "bfloat16"),
    "AMX": (AVX2 | {"amx_bf16": True}, "bfloat16"),
    "Arm": ({"neon": True, "bf16": False}, "float32"),
    "Arm with bfloat16": ({"neon": True, "bf16": True}, "bfloat16"),
}


def config(*options: str) -> Config:
    return build(TASK, list(options), "test")


@pytest.fixture
def cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Replace the features of the CPU by those of the parameter's CPU. Return the dtype of `auto`."""
    features, dtype = CPUS[request.param]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    return dtype


@pytest.mark.parametrize("cpu", CPUS, indirect=True)
def test_auto_is_bfloat16_where_the_cpu_multiplies_it(cpu: str) -> None:
    found = config("learner.dtype=auto", "generator.dtype=auto")
    assert (found.learner.dtype, found.generator.dtype) == (cpu, cpu)


@pytest.mark.parametrize("cpu", ["AVX2"], indirect=True)
@pytest.mark.parametrize(
    "options",
    [["learner.device=cuda", "learner.dtype=auto"], ["learner.dtype=auto", "learner.device=cuda"]],
)
def test_auto_is_bfloat16_on_a_gpu(cpu: str, options: list[str]) -> None:
    assert config(*options).learner.dtype == "bfloat16"


@pytest.mark.parametrize("cpu", ["AMX"], indirect=True)
@pytest.mark.parametrize(("options", "dtype"), [([], "float32"), ([SERVER], "bfloat16")])
def test_auto_of_sglang_depends_on_its_device(cpu: str, options: list[str], dtype: str) -> None:
    assert config("generator.engine=sglang", "generator.dtype=auto", *options).generator.dtype == dtype


@pytest.mark.parametrize("cpu", ["AVX2", "AMX"], indirect=True)
def test_dtype_of_the_user_is_kept(cpu: str) -> None:
    for dtype in ("float32", "bfloat16"):
        found = config(f"learner.dtype={dtype}", f"generator.dtype={dtype}")
        assert (found.learner.dtype, found.generator.dtype) == (dtype, dtype)


@pytest.mark.parametrize("cpu", ["AVX2"], indirect=True)
def test_stored_configuration_names_the_chosen_dtype(cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = json.loads(config("learner.dtype=auto").model_dump_json())
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: CPUS["AMX"][0])
    assert build(stored, [], "stored").learner.dtype == "float32"


def test_fault_of_the_device_is_reported_alone() -> None:
    with pytest.raises(BadInput, match=r"learner\.device") as fault:
        config("learner.device=tpu", "learner.dtype=auto")
    assert "dtype" not in str(fault.value)


@pytest.mark.parametrize(
    ("cpu", "options", "named"),
    [
        ("AVX2", [], "learner.dtype"),
        ("AVX2", ["generator.dtype=bfloat16"], "learner.dtype, generator.dtype"),
        ("AVX2", ["learner.dtype=auto"], ""),
        ("AVX2", ["learner.dtype=auto", "generator.dtype=bfloat16", SGLANG], "generator.dtype"),
        ("AVX2", ["learner.dtype=auto", "generator.dtype=bfloat16", SGLANG, SERVER], ""),
        ("AVX2", ["learner.dtype=auto", "generator.dtype=bfloat16", SGLANG, "generator.sglang.url=h:1"], ""),
        ("AVX2", ["learner.device=cuda"], ""),
        ("AMX", ["generator.dtype=bfloat16"], ""),
    ],
    indirect=["cpu"],
)
def test_emulated_bfloat16_is_warned_of(
    cpu: str, options: list[str], named: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    check_dtypes(config(*options))
    assert [r.getMessage().partition(":")[0] for r in caplog.records] == ([named] if named else [])
