"""The engine on SGLang servers: its own, or a fleet behind an address (docs/sglang.md)."""
