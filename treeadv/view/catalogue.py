"""The rows of a source, which a thread keeps current. Changes have numbers, so a page can ask only for new ones."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Hashable, Iterator

from treeadv.errors import BadInput
from treeadv.forest import Forest
from treeadv.jsonl import JsonObject
from treeadv.view.rows import Facts, ForestRow, facts_of, to_json
from treeadv.view.sources import Source
from treeadv.visible import visible

POLL = 2.0  # seconds between two checks whether the source has changed
PATIENCE = 5.0  # a read of the source is followed by a pause of at least this many times its duration
SEARCH_SECONDS = 0.4  # longest time of one request; the page then asks for the rest
KEPT_TEXT = 1 << 26  # largest number of characters of searched forests in memory
_UNREAD = object()


class Catalogue:
    """All rows of a source, with the facts of the forests that have been read so far.

    Many threads may use it at once.
    """

    def __init__(self, source: Source) -> None:
        """Read the rows. The forests are read later, by `start` or `read_all`."""
        self.source = source
        self.fault = ""
        self._rows: dict[str, ForestRow] = {}
        self._facts: dict[str, Facts] = {}
        self._changes: OrderedDict[str, int] = OrderedDict()  # number of the last change of each row, ascending
        self._serial = 0
        self._stamp: Hashable = _UNREAD
        self._took = 0.0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._texts: OrderedDict[str, str] = OrderedDict()
        self.refresh()

    # ---- reading -----------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Start a thread that keeps the rows current and reads the forests. It ends with `stop` or with the process."""
        threading.Thread(target=self._follow, name="treeadv-view", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def read_all(self) -> None:
        """Read every forest that has not been read yet."""
        while key := self._unread():
            self._read(key)

    def refresh(self) -> None:
        """Read the rows again if the source has changed."""
        stamp = self.source.stamp()
        if stamp == self._stamp:
            return
        began = time.monotonic()
        rows, fault = self.source.rows()
        with self._lock:
            self._stamp, self.fault = stamp, fault
            for row in rows:
                if self._rows.get(row.key) != row:
                    self._rows[row.key] = row
                    self._note(row.key)
            # A forest that could not be read before may be complete now.
            for key in [key for key, facts in self._facts.items() if facts.fault]:
                del self._facts[key]
        self._took = time.monotonic() - began

    def _follow(self) -> None:
        while not self._stopped.is_set():
            self.refresh()
            due = time.monotonic() + max(POLL, PATIENCE * self._took)
            while time.monotonic() < due and not self._stopped.is_set() and (key := self._unread()):
                self._read(key)
            self._stopped.wait(max(0.0, due - time.monotonic()))

    def _unread(self) -> str:
        """Return the key of the newest forest that has not been read, or "" if all have been read."""
        with self._lock:
            return next((k for k in reversed(self._rows) if self._rows[k].readable and k not in self._facts), "")

    def _read(self, key: str) -> None:
        try:
            facts = facts_of(self.source.forest(key), self.source.vocabulary)
        except BadInput as e:
            facts = Facts(fault=visible(str(e)))
        with self._lock:
            self._facts[key] = facts
            self._note(key)

    def _note(self, key: str) -> None:
        self._serial += 1
        self._changes[key] = self._serial
        self._changes.move_to_end(key)

    # ---- answers -----------------------------------------------------------------------------------------------------
    def about(self) -> JsonObject:
        """Return the facts of the page's head, the number of the last change and the number of forests read."""
        about = self.source.about()
        with self._lock:
            faults = [text for text in (about["fault"], self.fault) if text]
            readable = sum(row.readable for row in self._rows.values())
            return {
                **about,
                "fault": "; ".join(faults),
                "serial": self._serial,
                "rows": len(self._rows),
                "read": len(self._facts),
                "readable": readable,
            }

    def changes(self, since: int, limit: int) -> JsonObject:
        """Return up to `limit` rows that changed after change number `since`, with their prompts, the oldest change
        first.

        `serial` is the number of the last change among these rows. `last` is the number of the last change of all rows.
        """
        with self._lock:
            changed: list[str] = []
            for key in reversed(self._changes):
                if self._changes[key] <= since:
                    break
                changed.append(key)
            changed = changed[::-1][:limit]
            prompts, rows = {}, []
            for key in changed:
                facts = self._facts.get(key)
                rows.append(to_json(self._rows[key], facts))
                if facts and not facts.fault:
                    prompts[facts.prompt_key] = facts.prompt
            serial = self._changes[changed[-1]] if changed else since
            return {"rows": rows, "prompts": prompts, "serial": serial, "last": self._serial}

    def row(self, key: str) -> ForestRow:
        """Return the row with this key. Raises `BadInput` for an unknown key."""
        with self._lock:
            if key not in self._rows:
                raise BadInput(f"{key}: no such forest")
            return self._rows[key]

    def keys(self) -> list[str]:
        """Return the keys of the forests that can be read, in the order of their rows."""
        with self._lock:
            return [key for key, row in self._rows.items() if row.readable]

    def forest(self, key: str) -> Forest:
        """Return the forest of a row. Raises `BadInput` for a forest that cannot be read."""
        return self.source.forest(self.row(key).key)

    def search(self, text: str, after: int) -> JsonObject:
        """Return the keys of the forests whose prompt or leaves contain `text`. The search ignores the case of letters.

        The search starts at forest number `after` and stops after `SEARCH_SECONDS`. `next` is the number of the forest
        where the next request starts, or None at the end. `of` is the number of all forests."""
        until = time.monotonic() + SEARCH_SECONDS
        keys, found, at = self.keys(), [], after
        needle = text.casefold()
        while at < len(keys) and (time.monotonic() < until or at == after):
            if any(needle in shown for shown in self._texts_of(keys[at])):
                found.append(keys[at])
            at += 1
        return {"found": found, "next": at if at < len(keys) else None, "of": len(keys)}

    def _texts_of(self, key: str) -> Iterator[str]:
        """Yield the case-folded texts of prompt and leaves."""
        with self._lock:
            whole = self._texts.get(key)
        if whole is None:
            try:
                forest = self.source.forest(key)
            except BadInput:
                return
            decode = self.source.vocabulary.text
            texts = [
                decode(forest.prompt.tolist()),
                *(decode(forest.leaf_tokens(n).tolist()) for n in range(forest.leaves)),
            ]
            whole = "\0".join(texts).casefold()
            with self._lock:
                self._texts[key] = whole
                while sum(map(len, self._texts.values())) > KEPT_TEXT and len(self._texts) > 1:
                    self._texts.popitem(last=False)
        yield from whole.split("\0")
