"""Whether a server can be driven at all: it is asked for every call and every fact that the engine relies on before it
serves.

Releases are told apart by what they offer, never by their number: builds between releases and forks carry numbers that
say little. The number is quoted in the refusal for whoever reads it, and decides nothing.
"""

from __future__ import annotations

from typing import Any

from treeadv.engines.sglang.client import Client
from treeadv.errors import BadInput

IDENTITY = "/model_info"  # asked first: it tells when a server is up
SERVER, MODELS = "/server_info", "/v1/models"
CALLS = (
    IDENTITY,
    SERVER,
    MODELS,
    "/generate",
    "/update_weight_version",
    "/update_weights_from_disk",
    "/pause_generation",
    "/continue_generation",
    "/abort_request",
    "/flush_cache",
)
OF_TRANSPORT = {
    "disk": (),
    "tensor": ("/update_weights_from_tensor",),
    "distributed": ("/init_weights_update_group", "/update_weights_from_distributed"),
}
FACTS = {
    IDENTITY: ("weight_version",),
    SERVER: ("max_total_num_tokens", "max_running_requests", "tp_size"),
    MODELS: ("max_model_len",),
}
EXACT = ("enable_custom_logit_processor", "disable_overlap_schedule")  # of SERVER


async def check(client: Client, weights: str, exact: bool) -> dict[str, dict[str, Any]]:
    """The answers to `IDENTITY`, `SERVER` and `MODELS` (of its one model) of a server that is found to offer all that
    is needed.

    `weights`: the transport of weights; `exact`: whether entropies come from a logit processor. Raises `BadInput` that
    names all that is missing."""
    missing = [path for path in (*CALLS, *OF_TRANSPORT[weights]) if not await client.offers(path)]
    answers: dict[str, dict[str, Any]] = {}
    for path, facts in FACTS.items():
        if path not in missing:
            answer = await client.get(path)
            answers[path] = answer["data"][0] if path == MODELS else answer
            needed = facts + (EXACT if exact and path == SERVER else ())
            missing += [f"{name} of {path}" for name in needed if answers[path].get(name) is None]
    if missing:
        raise unsupported(client.url, missing, answers.get(SERVER, {}).get("version"))
    return answers


def unsupported(url: str, missing: list[str], release: Any = None) -> BadInput:
    which = f"SGLang {release}" if release else "this server"
    return BadInput(
        f"{url}: {which} cannot be driven: it lacks {', '.join(missing)}; docs/sglang.md lists the releases that can"
    )
