"""Dashboards, rules and the local Prometheus of a run. The package treeadv does not import this folder."""
