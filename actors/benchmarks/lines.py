"""The lines of JSON that the benchmarks print."""

from __future__ import annotations

import json


def print_figures(**figures: object) -> None:
    """Print one JSON object. Floats are rounded to 4 significant digits."""
    rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in figures.items()}
    print(json.dumps(rounded), flush=True)
