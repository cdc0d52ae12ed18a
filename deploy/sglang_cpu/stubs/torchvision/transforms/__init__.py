"""Import stand-in. It has the enum that annotations use. Every other name is a function that raises."""

from enum import Enum

from _stub import absent

from torchvision.transforms import functional, v2

__all__ = ["InterpolationMode", "functional", "v2"]


class InterpolationMode(Enum):
    """Names and values of torchvision.transforms.InterpolationMode."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


def __getattr__(name: str):
    if name.startswith("__"):
        raise AttributeError(name)
    return absent(__name__, name)
