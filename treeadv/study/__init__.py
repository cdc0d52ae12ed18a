"""Studies: grids of full local runs at equal budgets, and their analysis, which is written down before the runs."""
