"""Studies, which are grids of full local runs at equal budgets.

The file of a study fixes its analysis before the runs.
"""
