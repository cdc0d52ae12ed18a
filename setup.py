"""Puts the recipes of deploy/recipes into the package, where `treeadv train --config laptop` finds them."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_tree(str(Path(__file__).parent / "deploy" / "recipes"), f"{self.build_lib}/treeadv/recipes")


setup(cmdclass={"build_py": BuildWithRecipes})
