"""Import stand-in. Every name is a function that raises."""

from _stub import absent


def __getattr__(name: str):
    if name.startswith("__"):
        raise AttributeError(name)
    return absent(__name__, name)
