"""The replay queue without Ray: it keeps the state of every forest, from its prompt to a durable checkpoint, in files
(docs/replay.md)."""
