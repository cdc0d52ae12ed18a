"""The labels of a leaf, and the types of the arrays of a forest."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


class Finish(IntEnum):
    """The reason why a leaf ended."""

    STOP = 0  # the model drew a stop token
    LENGTH = 1  # the rollout reached the token limit
    ABORT = 2  # the engine lost the branch; the arity of its parent still counts the branch


class Verdict(IntEnum):
    """The judgement of a verifier on a leaf. A failure to judge (TIMEOUT, CRASH, ABORTED) is never `WRONG`."""

    UNGRADED = -1
    VERIFIED = 0
    WRONG = 1
    UNPARSED = 2
    TIMEOUT = 3
    CRASH = 4
    REFUSED = 5
    ABORTED = 6  # the engine lost the branch, so no verifier was called


UNJUDGED = (Verdict.UNGRADED, Verdict.TIMEOUT, Verdict.CRASH, Verdict.ABORTED)
