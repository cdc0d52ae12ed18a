"""Times of day and durations with a colon: `3:15`, `10:30 p.m.`. They are not ratios: 3:15 is not 1:5."""

from __future__ import annotations

import re
from dataclasses import dataclass

_TIME = re.compile(r"(\d{1,2}):([0-5]\d)(?::([0-5]\d))?\s*(?:\\text\{)?\s*([ap])?\.?\s*(m\.?)?\s*\}?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Time:
    """Hours, minutes and seconds as written. `half` is "a" for a.m., "p" for p.m., or "" without either."""

    hours: int
    minutes: int
    seconds: int
    half: str

    def same(self, other: Time) -> bool:
        """Return whether both times are equal. One of them may lack a.m. or p.m."""
        if self.half and other.half:
            return self == other
        written = [(t.hours, t.minutes, t.seconds) for t in (self, other)]
        return written[0] == written[1] or self._clock() == other._clock()

    def _clock(self) -> tuple[int, int, int]:
        hours = self.hours % 12 + 12 * (self.half == "p") if self.half else self.hours
        return hours, self.minutes, self.seconds


def time(text: str) -> Time | None:
    """Return the time that a normalised text states, or None."""
    match = _TIME.fullmatch(text.strip())
    if match is None or (match[4] is None) != (match[5] is None):
        return None
    return Time(hours=int(match[1]), minutes=int(match[2]), seconds=int(match[3] or 0), half=(match[4] or "").lower())
