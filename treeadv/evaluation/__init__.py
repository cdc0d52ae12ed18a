"""Evaluation on held-out problems: sets of problems, results, estimates with intervals, the best step of a run."""
