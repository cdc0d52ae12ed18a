"""The settings of the engines (`generator.NAME` for the engine NAME)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from treeadv.dtypes import fast_dtype
from treeadv.section import Positive, PositiveFloat, Seconds, Section


class EngineSettings(Section):
    """The settings of an engine. A subclass is the section of `GeneratorConfig` that bears the engine's name."""

    @property
    def auto_dtype(self) -> Literal["float32", "bfloat16"]:
        """The number format that `generator.dtype=auto` means for this engine."""
        return fast_dtype("cpu")

    @property
    def remote(self) -> bool:
        """Whether the engine computes on servers that it does not start."""
        return False


class SGLangConfig(EngineSettings):
    """The settings of the engine sglang (generator.engine=sglang)."""

    url: str = Field(
        "",
        description="running servers, comma separated, or a router or "
        "headless Service; empty: each generator starts one",
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="where the servers compute")
    chunk: Positive = Field(
        8, description="tokens a request draws before its forks are opened and it continues from the cache"
    )
    timeout: Seconds = Field(120.0, description="seconds without a token after which a request counts as hung")
    start_timeout: Seconds = Field(600.0, description="seconds that a server may take to start, and to take weights")
    max_logprob_error: PositiveFloat = Field(
        0.05, description="refuse to start above this difference to a plain forward"
    )
    entropy: Literal["exact", "truncated", "lower", "upper"] = Field(
        "exact", description="exact needs a server with custom logit processors; the others read the top_k log-probs"
    )
    top_k: Annotated[int, Field(ge=2)] = Field(
        20, description="log-probs a token that entropies other than exact are read from"
    )
    weights: Literal["disk", "tensor", "distributed"] = Field(
        "disk",
        description="how new weights reach a server: a folder, shared memory, or a process group (docs/sglang.md)",
    )
    stubs: str = Field(
        "", description="without a GPU: folder of import stand-ins for SGLang's kernels, deploy/sglang_cpu/stubs"
    )
    args: dict[str, Any] = Field(
        default_factory=dict, description="further server arguments; true is a bare flag, false takes one away"
    )

    @model_validator(mode="after")
    def _once(self) -> SGLangConfig:
        if twice := next((n for n in self.args if "_" in n and n.replace("_", "-") in self.args), ""):
            raise ValueError(f"args has {twice} and {twice.replace('_', '-')}, which are one argument; remove one")
        return self

    @property
    def auto_dtype(self) -> Literal["float32", "bfloat16"]:
        """bfloat16 on a GPU. SGLang's bfloat16 on a CPU differs from transformers' by more than the check at the start
        allows."""
        return "bfloat16" if self.device == "cuda" else "float32"

    @property
    def remote(self) -> bool:
        return bool(self.url)


def engine_settings(options: Mapping[str, object]) -> EngineSettings:
    """Return the section of the engine that the options of a generator name, or the default settings."""
    own = options.get(str(options["engine"]))
    return own if isinstance(own, EngineSettings) else EngineSettings()
