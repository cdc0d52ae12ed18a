"""What the stand-ins of this folder share: they refuse to load beside the real package, and to be called."""

from importlib import metadata


def refuse_beside(*distributions: str) -> None:
    """Raise ImportError when one of the real `distributions` is installed: a stand-in must never hide it."""
    for name in distributions:
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        raise ImportError(f"{name} {found.version} is installed: take deploy/sglang_cpu/stubs off PYTHONPATH")


def absent(package: str, name: str):
    """A function that says that it is not there."""

    def call(*args, **kwargs):
        raise NotImplementedError(f"{package}.{name}: only an import stand-in for machines without a GPU is installed")

    return call
