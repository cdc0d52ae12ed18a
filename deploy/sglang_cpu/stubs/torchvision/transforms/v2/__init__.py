"""Import stand-in. Every name is a function that raises."""

from _stub import absent

from torchvision.transforms.v2 import functional

__all__ = ["functional"]


def __getattr__(name: str):
    if name.startswith("__"):
        raise AttributeError(name)
    return absent(__name__, name)
