"""The command `treeadv plan`, which predicts the memory of each role and the bytes of a step."""

from __future__ import annotations

import argparse

from treeadv.cli.parser import Commands, add_command
from treeadv.command_line import FIELD, above_zero, local
from treeadv.errors import BadInput
from treeadv.visible import visible


def add(commands: Commands) -> None:
    p = add_command(commands, "plan", plan, "predict the memory of each role and the bytes that a step sends")
    p.add_argument("recipe", type=local, metavar="RECIPE.yaml")
    p.add_argument("overrides", nargs="*", metavar=FIELD, help="changes of the recipe")
    p.add_argument("--model-config", type=local, metavar="FILE", help="config.json of a model (default: model.path's)")
    p.add_argument(
        "--gpu-gb", type=above_zero, default=80.0, metavar="GB", help="memory of a GPU, 10^9 bytes (default 80)"
    )
    p.add_argument("--host-gb", type=above_zero, default=1000.0, metavar="GB", help="memory of a host (default 1000)")


def plan(args: argparse.Namespace) -> int:
    from treeadv.config import load
    from treeadv.data.model_folder import resolve
    from treeadv.planning.plan import GB, make_plan, render

    config = load(args.recipe, args.overrides)
    file = args.model_config
    if file is None:
        file = resolve(config.model.path, config.model.cache, ("config.json",)) / "config.json"
    if not file.is_file():
        raise BadInput(f"{file}: no such file; give the model's config.json by --model-config")
    found = make_plan(config, file, int(args.gpu_gb * GB), int(args.host_gb * GB))
    print(visible(render(found), newline="\n"))
    return 1 if found.faults else 0
