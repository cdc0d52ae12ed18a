"""The engine on SGLang servers: a server that it starts, or the servers behind an address (docs/sglang.md)."""
