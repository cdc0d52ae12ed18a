"""Readers of JSON files, and of JSON Lines files with one JSON value on each line."""

from __future__ import annotations

import json
import shlex
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from treeadv.errors import BadInput, one_line

JsonObject: TypeAlias = dict[str, Any]  # an object of JSON values
JsonMapping: TypeAlias = Mapping[str, Any]  # an object of JSON values that its reader does not change

_TO_UTF8 = "is UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8 {file} > NEW{suffix}"
# The first bytes of files in other forms that users give as text, and what to do with such a file.
_OTHER_FORMS = {
    b"\x1f\x8b": "is compressed by gzip; decompress it: gzip -dc {file} > NEW{suffix}",
    b"BZh": "is compressed by bzip2; decompress it: bzip2 -dc {file} > NEW{suffix}",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd; decompress it: zstd -dc {file} > NEW{suffix}",
    b"PK\x03\x04": "is a zip archive; unpack it: unzip {file}",
    b"PAR1": "is a Parquet file; give it a name that ends with .parquet",
    b"version https://git-lfs": "is a pointer of Git LFS without the data; fetch the data: git lfs pull",
    b"<!": "is a web page; download the data again",
    b"\xff\xfe": _TO_UTF8,
    b"\xfe\xff": _TO_UTF8,
    b"{\0": _TO_UTF8,
    b"\0{": _TO_UTF8,
    b"[": "is a JSON array; write each of its objects on its own line: jq -c '.[]' {file} > NEW.jsonl",
}


class NotAnObject(ValueError):
    """A text is not one JSON object. The message says why."""


class RepeatedKey(ValueError):
    """A JSON object has a key twice, so the value of the key is not known."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {key[:60]!a} occurs twice in one object; remove one")


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text. Raises ValueError or RecursionError if it is not JSON, and `RepeatedKey`."""
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> JsonObject:
    found = dict(pairs)
    if len(found) < len(pairs):
        times = Counter(key for key, _ in pairs)
        raise RepeatedKey(next(key for key, n in times.items() if n > 1))
    return found


def parse_object(text: str | bytes) -> JsonObject:
    """Return the JSON object of a text. Raises `NotAnObject` or `RepeatedKey`."""
    try:
        value = parse_json(text)
    except RepeatedKey:
        raise
    except (ValueError, RecursionError) as e:
        raise NotAnObject(f"not JSON: {reason(e)}") from e
    if not isinstance(value, dict):
        raise NotAnObject(f"a JSON object is needed, found {type(value).__name__}")
    return value


def check_file(path: Path, content: str) -> None:
    """Raise `BadInput` unless `path` is a regular file. `content` says what the file should hold."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as e:
        raise BadInput(f"{path}: no such file of {content}") from e
    except (OSError, ValueError) as e:  # no permission, a link to itself, a name that is too long or has a zero byte
        raise BadInput(f"{path}: cannot be read ({one_line(e)})") from e
    if stat.S_ISDIR(mode):
        raise BadInput(f"{path}: is a folder; give a file of {content}")
    if not stat.S_ISREG(mode):
        raise BadInput(f"{path}: is a pipe or a device; write its content to a file, and give a file of {content}")


def read_json(path: Path) -> Any:
    """Return the value in a JSON file. Raises `BadInput` if the file cannot be read or is not JSON."""
    try:
        return parse_json(path.read_bytes())
    except OSError as e:
        raise BadInput(f"{path}: cannot be read ({e.strerror})") from e
    except RepeatedKey as e:
        raise BadInput(f"{path}: {e}") from e
    except (ValueError, RecursionError) as e:  # includes bytes that are not text, and integers over 4,300 digits
        raise BadInput(f"{path}: is not JSON ({reason(e)}); restore the file") from e


def read_object(path: Path) -> JsonObject:
    """Return the JSON object in a file. Raises `BadInput`."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise BadInput(f"{path}: a JSON object is needed, found {type(value).__name__}; restore the file")
    return value


def read_jsonl(path: Path, expected: str) -> Iterator[tuple[int, Any]]:
    """Yield (line number from 1, value) of each line that is not blank. The file may have a byte order mark and CRLF.

    `expected` describes a line in error messages. Raises `BadInput` with file and line for a line that is not UTF-8
    or not JSON, and for a file in another form."""
    try:
        with path.open("rb") as lines:
            first = True
            for n, raw in enumerate(lines, 1):
                if first and raw.strip():
                    check_form(path, raw)
                    first = False
                if (line := _text(raw, f"{path}:{n}", n == 1)) != "":
                    yield n, _value(line, f"{path}:{n}", expected)
    except OSError as e:
        raise BadInput(f"{path}: cannot be read ({e.strerror})") from e


def check_form(path: Path, start: bytes) -> None:
    """Raise `BadInput` if the first bytes of a file that should be text, `start`, are those of a file in another
    form."""
    begin = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if form := next((form for head, form in _OTHER_FORMS.items() if begin.startswith(head)), None):
        raise BadInput(f"{path} {form.format(file=shlex.quote(str(path)), suffix=path.suffix)}")


def _text(raw: bytes, place: str, first: bool) -> str:
    try:
        return raw.decode("utf-8-sig" if first else "utf-8").strip()
    except UnicodeDecodeError as e:
        raise BadInput(
            f"{place}: not UTF-8 text ({e.reason} at byte {e.start} of the line); convert the file with iconv"
        ) from e


def _value(line: str, place: str, expected: str) -> Any:
    try:
        return parse_json(line)
    except RepeatedKey as e:
        raise BadInput(f"{place}: {e}") from e
    except (ValueError, RecursionError) as e:
        raise BadInput(f"{place}: not JSON ({reason(e)}); a line is {expected}") from e


def reason(error: Exception) -> str:
    """Return the reason why a text is neither JSON nor YAML, on one line."""
    if isinstance(error, RecursionError):
        return "its values are nested too deeply"
    if type(error) is ValueError and "4300 digits" in str(error):  # Python's message names a remedy in Python code
        return "an integer has more than 4300 digits: write it as a text"
    return one_line(error)
