"""How good a model is on held-out problems: sets of problems, results, estimates with intervals, the best step."""
