"""Helpers of the import stand-ins of this folder. A stand-in refuses to load beside the real package and raises when it
is called."""

from importlib import metadata


def refuse_beside(*distributions: str) -> None:
    """Raise ImportError if one of the real `distributions` is installed, because a stand-in must not hide the real
    package."""
    for name in distributions:
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        raise ImportError(f"{name} {found.version} is installed: take deploy/sglang_cpu/stubs off PYTHONPATH")


def absent(package: str, name: str):
    """Return a function that raises an error with the name of the missing function."""

    def call(*args, **kwargs):
        raise RuntimeError(f"{package}.{name} was called, but this stand-in of {package} can only be imported")

    return call
