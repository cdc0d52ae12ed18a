"""A test of `python -m benchmarks.trl_speed`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.running import recipe


@pytest.mark.slow
def test_speed_of_trl_and_of_the_pipeline_is_printed(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.trl_speed import main

    config = recipe(tmp_path, tiny_model, generator__count=1, task__verifier="literal")
    main(["--config", str(config), "--steps", "3", "--skip", "1", "--presets", "grpo"])
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines() if line.startswith("{")]
    assert [line["system"] for line in lines] == ["trl", "pipeline", "local"]
    assert all(line["leaves_per_s"] > 0 and 0 < line["tokens_per_leaf"] <= 12 for line in lines)
    assert 0 < lines[0]["generation_share"] < 1
