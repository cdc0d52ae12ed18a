"""The loader of extensions by name. A name is an entry of a registry, or `module:Name` for an object of a module on
the Python path."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
from collections.abc import Mapping

from treeadv.errors import BadInput

PATTERN = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"  # module:Name


def load_extension(key: str, name: str, registry: Mapping[str, str]) -> object:
    """Return the object called `name`. `registry` maps each short name to `module:Name`.

    `key` is the configuration key that holds the name; error messages contain it. Raises `BadInput` for an unknown
    name, a module that cannot be imported, or a module without the object."""
    target = registry.get(name, name)
    if not re.fullmatch(PATTERN, target):
        close = difflib.get_close_matches(name, registry, n=1)
        hint = f", did you mean {close[0]}?" if close else ""
        raise BadInput(f"{key}={name} is unknown{hint} (use {', '.join(registry)} or module:Name)")
    module, _, attribute = target.partition(":")
    try:
        found = importlib.import_module(module)
    except ImportError as e:
        raise BadInput(f"{key}={name}: module {module} cannot be imported ({e})") from e
    if not hasattr(found, attribute):
        raise BadInput(f"{key}={name}: module {module} has no {attribute}")
    return getattr(found, attribute)


def require(module: str, purpose: str) -> None:
    """Raise `BadInput` unless the package `module` is installed. Only `purpose` needs the package."""
    if importlib.util.find_spec(module) is None:
        raise BadInput(f"{purpose} needs the package {module}: pip install 'treeadv[train]'")
