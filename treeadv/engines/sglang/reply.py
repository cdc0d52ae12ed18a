"""Parses and checks SGLang's reply to a generate call. An inconsistent reply is refused with the reason."""

from __future__ import annotations

import math
from dataclasses import dataclass

from treeadv.engines.fleet.member import Refused
from treeadv.engines.sglang.entropy import KEY, from_top
from treeadv.jsonl import JsonObject

ROUNDING = 1e-4  # a log-probability above 0 or an entropy below 0 by less than this is a rounding error; it is set to 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """The parameters of a request.

    `entropy` is `exact` or a mode of `from_top`. `version` is the policy version at the start of the request.
    """

    tokens: int
    entropy: str
    vocabulary: int
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """The n >= 0 tokens of one request. There are fewer than requested after a stop token or an abort by the server."""

    tokens: list[int]
    logprobs: list[float]
    entropies: list[float]
    versions: list[int]
    prompt: int  # tokens of the prefix
    cached: int  # tokens of the prefix that were in the radix cache
    aborted: str  # the server's reason for an abort; "" without an abort


def read(body: JsonObject, ask: Ask) -> Chunk:
    """Parse the JSON body of a reply of SGLang's native call /generate. Raises `Refused`."""
    try:
        meta = body["meta_info"]
        reason = meta["finish_reason"]
        aborted = str(reason.get("message") or "aborted") if reason["type"] == "abort" else ""
        pairs = meta.get("output_token_logprobs") or []
        logprobs = [_number(p[0], "log-probability", upper=0.0) for p in pairs]
        tokens = [int(p[1]) for p in pairs]
        if list(body["output_ids"]) != tokens:
            raise Refused(f"{len(body['output_ids'])} tokens came with log-probabilities of {len(tokens)} others")
        if not (aborted or 0 < len(tokens) <= ask.tokens):
            raise Refused(f"the reply has {len(tokens)} tokens, but 1 to {ask.tokens} were requested")
        if any(not 0 <= t < ask.vocabulary for t in tokens):
            raise Refused(f"a token outside of the vocabulary of {ask.vocabulary}")
        return Chunk(
            tokens=tokens,
            logprobs=logprobs,
            entropies=_entropies(meta, ask, len(tokens)),
            versions=_versions(meta, ask, len(tokens)),
            prompt=int(meta["prompt_tokens"]),
            cached=int(meta["cached_tokens"]),
            aborted=aborted,
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as fault:
        raise Refused(f"malformed reply ({type(fault).__name__}: {fault})") from fault


def sent_back(body: JsonObject) -> bool:
    """Return whether the server aborted the request. Such a reply may lack fields that `read` needs."""
    try:
        return body["meta_info"]["finish_reason"]["type"] == "abort"
    except (KeyError, TypeError):
        return False


def _entropies(meta: JsonObject, ask: Ask, n: int) -> list[float]:
    if n == 0:
        return []
    if ask.entropy == "exact":
        values = [_number(h, "entropy", lower=0.0) for h in meta[KEY]]
    else:
        tops = meta["output_top_logprobs"]
        listed = [[_number(p[0], "log-probability", upper=0.0) for p in top] for top in tops]
        values = [from_top(row, ask.vocabulary, ask.entropy) for row in listed]
    if len(values) != n:
        raise Refused(f"{len(values)} entropies came with {n} tokens")
    return [max(0.0, v) for v in values]


def _versions(meta: JsonObject, ask: Ask, n: int) -> list[int]:
    """Return the policy version of each token.

    The versions are those of the server's spans. Without spans all tokens get the version at the start of the request.
    If an update falls into such a request, some tokens get an older version than their own, but no token gets a newer
    version.
    """
    spans = meta.get("weight_versions")
    if spans is None:
        return [ask.version] * n
    versions: list[int] = []
    for span in spans:
        if span["start"] != len(versions):
            raise Refused(f"version spans {spans} do not cover the tokens in order")
        versions += [int(span["version"])] * (int(span["end"]) - int(span["start"]))
    if len(versions) != n:
        raise Refused(f"version spans cover {len(versions)} of {n} tokens")
    if any(b < a for a, b in zip([ask.version, *versions], versions, strict=False)):
        raise Refused(f"the policy version goes backwards: {spans} in a request that began under {ask.version}")
    return versions


def _number(value: object, what: str, lower: float = -math.inf, upper: float = math.inf) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise Refused(f"{what} {value!r} is not a finite number")
    if not lower - ROUNDING <= value <= upper + ROUNDING:
        raise Refused(f"{what} {value} is outside of [{lower}, {upper}]")
    return min(max(float(value), lower), upper)
