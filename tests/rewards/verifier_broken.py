"""A user's verifier whose module cannot be imported."""

raise RuntimeError("no licence found")
