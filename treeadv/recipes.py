"""The search for a recipe. A recipe is a file of the user, or a recipe of the package by name."""

from __future__ import annotations

import difflib
from pathlib import Path

from treeadv.errors import BadInput

# A wheel holds the recipes inside the package (setup.py); a checkout has them in deploy/recipes.
FOLDERS = (Path(__file__).parent / "recipes", Path(__file__).parents[1] / "deploy" / "recipes")


def find_recipe(path: Path) -> Path:
    """Return the file `path`, or the file of the package's recipe with the name `path`, such as `laptop`.

    Raises `BadInput` if neither exists."""
    if path.is_file():
        return path
    recipes = {file.stem: file for folder in FOLDERS for file in sorted(folder.glob("*.yaml"))}
    if str(path) in recipes:
        return recipes[str(path)]
    close = difflib.get_close_matches(path.stem, recipes, n=1)
    hint = f", did you mean {close[0]}?" if close else ""
    raise BadInput(f"{path}: no such configuration file{hint}; recipes of the package: {', '.join(recipes)}")
