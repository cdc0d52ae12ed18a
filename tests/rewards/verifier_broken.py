"""A user's verifier in a module whose import raises an error."""

raise RuntimeError("no licence found")
