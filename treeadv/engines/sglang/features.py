"""The check that a server offers every call and every field that the engine needs.

The check does not compare release numbers, because forks and builds between releases have unreliable numbers. A refusal
quotes the number for information only.
"""

from __future__ import annotations

from treeadv.engines.sglang.client import Client
from treeadv.errors import BadInput
from treeadv.jsonl import JsonObject

IDENTITY = "/model_info"  # the first call; its answer shows that the server is up
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
EXACT = ("enable_custom_logit_processor", "disable_overlap_schedule")  # fields of SERVER that exact entropies need


async def check(client: Client, weights: str, exact: bool) -> dict[str, JsonObject]:
    """Return the server's answers to `IDENTITY`, `SERVER` and `MODELS`.

    The answer to `MODELS` is that for the only model. `weights` is the transport of weights. `exact` says whether
    entropies come from a logit processor. Raises `BadInput` with the names of all missing calls and fields."""
    missing = [path for path in (*CALLS, *OF_TRANSPORT[weights]) if not await client.offers(path)]
    answers: dict[str, JsonObject] = {}
    for path, facts in FACTS.items():
        if path not in missing:
            answer = await client.get(path)
            answers[path] = answer["data"][0] if path == MODELS else answer
            needed = facts + (EXACT if exact and path == SERVER else ())
            missing += [f"{name} of {path}" for name in needed if answers[path].get(name) is None]
    if missing:
        raise unsupported(client.url, missing, answers.get(SERVER, {}).get("version"))
    return answers


def unsupported(url: str, missing: list[str], release: object = None) -> BadInput:
    which = f"SGLang {release}" if release else "this server"
    return BadInput(
        f"{url}: {which} cannot be driven: it lacks {', '.join(missing)}; docs/sglang.md lists the releases that can"
    )
