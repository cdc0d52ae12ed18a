"""Engines: language models that draw branches and share keys and values along prefixes."""
