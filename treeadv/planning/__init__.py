"""Predicts the memory of each role and the bytes that a step sends, before the start of a run."""
