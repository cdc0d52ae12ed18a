"""A forest as flat rollouts, which are padded arrays with one row for each leaf."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from treeadv.forest.labels import Ints
from treeadv.forest.structure import ForestArrays


@dataclass(frozen=True, kw_only=True)
class FlatRollouts:
    """The L rollouts of a forest. They are padded on the right to the R tokens of the longest rollout.

    `index` [L, R] is the index of each token in the token arrays of the forest. `segment` [L, R] is the segment of each
    token. Both are -1 in the padding. `copies` [S] is the number of rows that contain the tokens of a segment.
    """

    index: Ints
    segment: Ints
    copies: Ints
    token: Ints  # [T] the token array of the forest

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """Return [L, R]: whether the entry is a token and no padding."""
        return self.index >= 0

    @property
    def paths(self) -> list[Ints]:
        """Return the indices of the tokens of each rollout, without padding."""
        return [row[row >= 0] for row in self.index]

    def tokens(self, pad: int = 0) -> Ints:
        """Return the token ids [L, R]. The padding is `pad`."""
        return np.where(self.mask, self.token[self.index], pad).astype(np.int32)

    def spread_tokens(self, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return [L, R]: the entry of `values` [T] for each token. The padding is 0."""
        return np.where(self.mask, np.asarray(values, np.float64)[self.index], 0.0)

    def spread_segments(self, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return [L, R]: the entry of `values` [S] for the segment of each token. The padding is 0."""
        return np.where(self.mask, np.asarray(values, np.float64)[self.segment], 0.0)


def flatten(f: ForestArrays) -> FlatRollouts:
    """Return the rollouts of a forest. `Forest.to_flat` calls this function."""
    paths = [f.path(int(end)) for end in f.leaf_segment]
    rows = [np.concatenate([np.arange(f.start[s], f.start[s + 1]) for s in path]) for path in paths]
    width = max(map(len, rows))
    index = np.full((f.leaves, width), -1, np.int32)
    for row, places in zip(index, rows, strict=True):
        row[: len(places)] = places
    owner = np.repeat(np.arange(f.segments, dtype=np.int32), f.lengths)
    segment = np.where(index >= 0, owner[index], -1).astype(np.int32)
    return FlatRollouts(index=index, segment=segment, copies=f.leaf_count, token=f.token)
