"""The replay queue without Ray: what happens to a forest between its prompt and a durable checkpoint, kept in files (DESIGN
section 8)."""
