"""Packs one step of the embedded engine.

The rows of all branches form one sequence. Attention is computed by forest.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from treeadv.data.model_check import check_terms
from treeadv.engines.prefix_cache import PrefixCache, Reads

PREFILL_ROWS = 512  # largest number of prefix rows of a step; a longer prefix takes several steps
GATHER = 16  # number of rows that must read a slot to be worth a copy of its keys and values; an estimate


@dataclass(slots=True, eq=False, kw_only=True)
class TokenPath:
    """The tokens of one branch: its prefix and its drawn tokens.

    `slots` are the slots of the first tokens of the branch. The keys and values of these tokens are computed already or
    are computed in this step.
    """

    cache: PrefixCache  # the cache of the forest
    tokens: list[int]
    slots: list[int] = field(default_factory=list)
    reads: Reads = field(default_factory=Reads)
    found: int = 0  # prefix tokens that were already computed for another branch


@dataclass(slots=True, kw_only=True)
class Reading:
    """Rows of a forest that read the same slots."""

    rows: slice  # in the packed sequence
    slots: torch.Tensor | None  # in the order of a path; None: all slots in use
    mask: torch.Tensor  # [groups * rows, slots] additive mask


@dataclass(slots=True, kw_only=True)
class ForestRows:
    """The rows of one forest in the packed sequence, the slots that they write, and the slots that they read."""

    cache: PrefixCache
    rows: slice
    written: torch.Tensor | None  # rows with new keys and values, counted from rows.start; None: all rows
    slots: slice  # the new slots, which are adjacent
    readings: list[Reading]


@dataclass(slots=True, kw_only=True)
class Step:
    """The packed rows of a step. `drawing` holds the indices of the paths that draw a token. `last` holds the last row
    of each of these paths.
    """

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    parts: list[ForestRows] = field(default_factory=list)
    drawing: list[int] = field(default_factory=list)
    last: list[int] = field(default_factory=list)


def pack(paths: Sequence[TokenPath], groups: int, dtype: torch.dtype) -> Step:
    """Pack the next step of `paths`, in which the paths of a forest are adjacent.

    `groups` is the number of query heads of each key/value head.
    """
    step = Step()
    room = PREFILL_ROWS
    for _, forest in itertools.groupby(enumerate(paths), key=lambda item: id(item[1].cache)):
        first = len(step.tokens)
        rows: list[tuple[TokenPath, list[int]]] = []  # a path, and the slot that each of its rows adds
        written: list[int] = []
        used = -1
        for number, path in forest:
            cache = path.cache
            used = cache.used if used < 0 else used
            added = _extend(path, room, len(step.tokens) - first, written)
            if not added:
                continue
            room -= len(added) if len(added) > 1 else 0
            start = len(path.slots) - len(added)
            step.tokens += path.tokens[start : len(path.slots)]
            step.positions += range(start, len(path.slots))
            rows.append((path, added))
            if len(path.slots) == len(path.tokens):
                step.drawing.append(number)
                step.last.append(len(step.tokens) - 1)
        if rows:
            cache.reserve()
            whole = len(written) == len(step.tokens) - first
            step.parts.append(
                ForestRows(
                    cache=cache,
                    rows=slice(first, len(step.tokens)),
                    written=None if whole else torch.tensor(written, dtype=torch.long),
                    slots=slice(used, cache.used),
                    readings=list(_readings(rows, first, cache.used, groups, dtype)),
                )
            )
    return step


def _extend(path: TokenPath, room: int, offset: int, written: list[int]) -> list[int]:
    """Assign slots to the next tokens of a path. Returns the slots of its rows in this step.

    The result is empty if the step has no room for the prefix. The rows with new slots, counted from `offset`, are
    appended to `written`.
    """
    cache = path.cache
    if not path.slots:
        slots = cache.match(path.tokens)
        if room < 2 and len(path.tokens) - len(slots) > 1:
            return []  # a later match may find more, because the other branches have computed more by then
        path.slots = slots
        path.found = min(len(path.slots), len(path.tokens) - 1)
        path.reads.add(path.slots)
    missing = len(path.tokens) - len(path.slots)
    if missing == 0:  # all tokens are cached; the last token is computed again for its logits, but is not written
        return path.slots[-1:]
    count = 1 if missing == 1 else min(missing, room)
    for token in path.tokens[len(path.slots) : len(path.slots) + count]:
        if cache.add(path.slots, token):
            written.append(offset)
        offset += 1
    return path.slots[len(path.slots) - count :] if count else []


def _readings(
    rows: Sequence[tuple[TokenPath, list[int]]], first: int, used: int, groups: int, dtype: torch.dtype
) -> Iterator[Reading]:
    """Yield what the rows of a forest read. `first` is the place of the first row in the packed sequence.

    Most rows read all slots in use, and the mask removes those of other branches. A long prefix reads only its own
    slots, if the forest has so many others that copies of its keys and values cost less.
    """

    def reads_alone(row: tuple[TokenPath, list[int]]) -> int:
        path, added = row
        alone = len(added) > 1 and len(added) * (used - len(path.slots)) > GATHER * len(path.slots)
        return id(path) if alone else 0

    for alone, members in itertools.groupby(rows, key=reads_alone):
        some = list(members)
        last = first + sum(len(added) for _, added in some)
        mask = _path_mask(*some[0], groups, dtype) if alone else _masks(some, used, groups, dtype)
        slots = torch.tensor(some[0][0].slots) if alone else None
        yield Reading(rows=slice(first, last), slots=slots, mask=mask)
        first = last


def _path_mask(path: TokenPath, added: list[int], groups: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the mask [groups * len(added), len(path.slots)] of the last rows of a path over its own slots."""
    path.reads.add(added)
    rows, slots = len(added), len(path.slots)
    return torch.full((rows, slots), float("-inf"), dtype=dtype).triu(slots - rows + 1).repeat(groups, 1)


def _masks(rows: Sequence[tuple[TokenPath, list[int]]], used: int, groups: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the mask [groups * rows, used] of a forest. Each element is written once, because masks grow with the
    length of the paths.
    """
    masks = torch.empty((groups, sum(len(added) for _, added in rows), used), dtype=dtype)
    first = 0
    for path, added in rows:
        masks[:, first : first + len(added)] = _mask(path, added, used)
        first += len(added)
    return masks.view(-1, used)


def _mask(path: TokenPath, added: list[int], used: int) -> torch.Tensor:
    """Return the mask [len(added), used] of a path's rows.

    A row reads its own slot and the slots that the row before it reads.
    """
    if len(added) == 1:
        path.reads.add(added)
        return path.reads.row(used)[None]
    mask = path.reads.row(used).repeat(len(added), 1)
    mask[:, torch.tensor(added)] = torch.full((len(added), len(added)), float("-inf")).triu(1)
    path.reads.add(added)
    return mask


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    parts: Sequence[ForestRows],
    **more: object,
) -> tuple[torch.Tensor, None]:
    """Implement transformers' attention interface for rows that are packed by forest.

    query is [1, heads, rows, dim], key and value are [1, kv heads, rows, dim]. The query heads of a key/value head are
    folded into rows, so keys and values are never repeated.
    """
    check_terms(more)
    heads, dim = query.shape[1], query.shape[3]
    out = torch.empty_like(query)
    layer: int = module.layer_idx  # type: ignore[assignment]
    for forest in parts:
        keys, values = forest.cache.keys[layer], forest.cache.values[layer]
        own_keys, own_values = key[0, :, forest.rows], value[0, :, forest.rows]
        keys[:, forest.slots] = own_keys if forest.written is None else own_keys[:, forest.written]
        values[:, forest.slots] = own_values if forest.written is None else own_values[:, forest.written]
        for reading in forest.readings:
            read = slice(forest.slots.stop) if reading.slots is None else reading.slots
            folded = query[0, :, reading.rows].reshape(1, keys.shape[0], -1, dim)
            found = F.scaled_dot_product_attention(
                folded, keys[None, :, read], values[None, :, read], attn_mask=reading.mask, scale=scaling
            )
            out[0, :, reading.rows] = found.reshape(heads, -1, dim)
    return out.transpose(1, 2), None
