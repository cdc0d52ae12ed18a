"""Manages several inference servers of one engine: their readiness, the routing of trees, and their weights."""
