"""Tells paths on this machine from URIs of object stores, and names that are text from others."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from treeadv.errors import BadInput, one_line, short

# The start of a URI of a store whose colon or slashes are mistyped: s3:/b/x, s3:b/x, s3//b/x.
_MISTYPED = re.compile(r"(s3|gs|gcs|abfss?|hdfs|https?)(?::/?|//)(?=[^/:])", re.I)


def is_uri(text: str) -> bool:
    """Return whether a text is a URI and no path. The test must come before `Path`, which turns s3://b/x to s3:/b/x."""
    return "://" in text


def meant_uri(text: str) -> str | None:
    """Return the URI that a text with a mistyped start means, such as s3://b/x for s3:/b/x; None for any other text."""
    found = _MISTYPED.match(text)
    return f"{found[1].lower()}://{text[found.end() :]}" if found and not os.path.lexists(text) else None


def check_typed(text: str, key: str = "") -> None:
    """Raise `BadInput` if `text` is a URI whose start is mistyped. `key` names the option.

    As a path, s3:/b/x would be a folder `s3:` on this machine."""
    if (uri := meant_uri(text)) is not None:
        raise BadInput(f"{key and key + '='}{text}: a URI has :// after its scheme, did you mean {uri}?")


def check_local(text: str, key: str) -> None:
    """Raise `BadInput` if `text` is a URI or can be no path. `key` names the option that needs a local path."""
    try:
        os.stat(text)
    except (OSError, ValueError) as e:  # a ValueError for a zero byte or half of a surrogate pair
        if isinstance(e, ValueError) or e.errno == errno.ENAMETOOLONG:
            reason = e.strerror if isinstance(e, OSError) else one_line(e)
            raise BadInput(f"{key}={short(text)}: can be no path ({reason})") from e
    check_typed(text, key)
    if is_uri(text):
        raise BadInput(f"{key}={text}: a path on this machine is needed; copy the files first: {copy_command(text)}")


def copy_command(uri: str) -> str:
    """Return a shell command that copies a file or folder at a URI into the working folder."""
    name = target_of(uri)
    return f"""python -c "from pyarrow.fs import copy_files; copy_files('{uri}', '{name}')\""""


def target_of(uri: str) -> str:
    """Return the name of the copy that `copy_command` makes: the last part of the URI, without its query."""
    return Path(uri.partition("?")[0].rstrip("/")).name


def is_text(name: str) -> bool:
    """Return whether the name of a file is text. Python keeps the bytes of another name as unpaired surrogates."""
    return name.isascii() or name == name.encode(errors="replace").decode()
