"""The management of several inference servers of one engine: readiness, the routing of trees, and weights."""
