"""treeadv: tree-structured reinforcement learning for reasoning language models."""

__version__ = "0.1.0"
