"""The manifest of a checkpoint: the names of its files with their sizes and checksums."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from treeadv.errors import short
from treeadv.jsonl import parse_object

_CHUNK = 1 << 22


class FileInfo(TypedDict):
    """The size in bytes and the CRC-32 of a file."""

    size: int
    crc: int


Manifest = dict[str, FileInfo]


def describe(folder: Path) -> Manifest:
    """Return the manifest of all files in a folder, by path inside the folder. The function reads every file."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): FileInfo(size=p.stat().st_size, crc=_checksum(p)) for p in files}


def parse(text: str | bytes) -> Manifest:
    """Return the manifest of a JSON text. Raises ValueError, which says what is damaged."""
    return checked(parse_object(text))


def checked(files: object) -> Manifest:
    """Return a JSON value as a manifest. Raises ValueError, which says what is damaged."""
    if not isinstance(files, dict) or not files:
        raise ValueError("it names no files")
    found: Manifest = {}
    for name, info in files.items():
        if not isinstance(info, dict) or any(type(info.get(key)) is not int for key in ("size", "crc")):
            raise ValueError(f"it has no size and checksum of {short(name)}")
        found[name] = FileInfo(size=info["size"], crc=info["crc"])
    return found


def size_fault(sizes: Mapping[str, int], manifest: Manifest) -> str:
    """Return a message about a file of the manifest that is missing or has another size; "" if there is no such
    file."""
    for name, info in manifest.items():
        if name not in sizes:
            return f"{name} is missing"
        if sizes[name] != info["size"]:
            return f"{name} has {sizes[name]} bytes instead of {info['size']}"
    return ""


def fault(folder: Path, manifest: Manifest) -> str:
    """Return a message about a file of the manifest that is missing or damaged in a folder; "" if there is no such
    file.

    The function reads every file."""
    sizes = {name: (folder / name).stat().st_size for name in manifest if (folder / name).is_file()}
    if found := size_fault(sizes, manifest):
        return found
    damaged = [name for name, info in manifest.items() if _checksum(folder / name) != info["crc"]]
    return f"{damaged[0]} is damaged (checksum)" if damaged else ""


def _checksum(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc
