"""What watches a run: dashboards, rules and the local Prometheus. Nothing of treeadv imports it."""
