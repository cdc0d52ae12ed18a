"""The forest, which holds all rollouts of one prompt and every token once."""

from treeadv.forest.flat import FlatRollouts
from treeadv.forest.labels import UNJUDGED, Finish, Floats, Ints, Verdict
from treeadv.forest.structure import Segment
from treeadv.forest.tree import Forest

__all__ = ["UNJUDGED", "Finish", "FlatRollouts", "Floats", "Forest", "Ints", "Segment", "Verdict"]
