"""The list of units: words that may follow a number and do not change its value. "2 pi" and "2 thirds" are not 2."""

from __future__ import annotations

import re

_NAMES = {  # usual abbreviation: other spellings, without plurals
    "nm": "nanometer nanometre", "mm": "millimeter millimetre", "cm": "centimeter centimetre", "m": "meter metre mtr",
    "km": "kilometer kilometre", "in": "inch", "ft": "foot feet", "yd": "yard", "mi": "mile", "acre": "",
    "ha": "hectare",
    "mg": "milligram", "g": "gram gm", "kg": "kilogram", "lb": "pound", "oz": "ounce", "ton": "", "tonne": "",
    "mL": "ml milliliter millilitre", "L": "l liter litre", "gal": "gallon", "qt": "quart", "pint": "", "cup": "",
    "ms": "millisecond", "s": "sec second", "min": "minute", "h": "hr hour", "day": "", "week": "", "month": "",
    "yr": "year",
    "mi/h": "mph", "km/h": "kmh kmph kph", "deg": "degree", "rad": "radian", "dollar": "", "cent": "", "euro": "",
    "rupee": "",
    "N": "newton", "J": "joule", "kJ": "kilojoule", "W": "watt", "kW": "kilowatt", "V": "volt", "A": "amp ampere",
    "ohm": "",
    "Pa": "pascal", "kPa": "kilopascal", "Hz": "hertz", "kHz": "kilohertz", "K": "kelvin", "T": "tesla", "mol": "mole",
    "bit": "", "B": "byte", "KB": "kilobyte", "MB": "megabyte", "GB": "gigabyte", "TB": "terabyte",
    "unit": "", "point": "", "digit": "", "way": "", "person": "people", "student": "", "child": "children",
    "man": "men", "woman": "women", "boy": "", "girl": "", "apple": "", "cookie": "", "book": "", "page": "",
    "coin": "", "ticket": "",
}  # fmt: skip
UNITS = {spelling: name for name, others in _NAMES.items() for spelling in (name, *others.split())}

MAGNITUDES = {"dozen": 12, "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
CHANGING = re.compile(  # words that change the value of the number beside them
    r"\b(?:pi|sqrt|roots?|log|ln|sin|cos|tan|exp|squared|cubed|factorial|hal(?:f|ves)|quarters?"
    r"|(?:third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|(?:hundred|thousand|million|ten)th)s?"
    r"|dozen|hundred|thousand|million|billion|trillion|percent|percentage|pct|plus|minus|divides?"
    r"|times(?=\s*[\d$\\(]|\s+(?:as|more|less|greater|larger|the|that)\b)"
    r"|(?:eleven|twelf|thirteen|fifteen|sixteen|twentie)ths?|doubled|tripled|halved|raised|multiplied|added|subtracted"
    r"|increased|decreased|reduced|less|short|shy|(?:in\s+)?base|mil|bn|[km]$|st|nd|rd|th"
    r"|(?:out\s+)?of(?=\s*[\d$\\(])|false|wrong|incorrect|impossible"
    r"|divided|over|mod(?:ulo)?|choose|power"
    r"|not|no|never|least|most|(?:more|less|fewer|greater|smaller|larger|higher|lower)\s+than|above|below|under"
    r"|or\s+(?:more|less|fewer|greater|above|below|higher|lower)|exceeds?|between|up|than|except|to|if|where|when"
    r"|multiples?|squares?|cubes?)\b",
    re.IGNORECASE,
)

_LONGEST = 40  # characters
_PER = re.compile(r"\s*/\s*|\s+per\s+")
_POWER = re.compile(r"(?:(square|sq\.?|cubic|cu\.?)\s+)?([A-Za-z]+)\.?(?:\s*\^\s*\{?([23])\}?|([23]))?")


def unit(text: str) -> str | None:
    """Return the usual abbreviation of a unit, such as `m/s` for "meters per second"; None if a word is not in the
    list."""
    if len(text) > _LONGEST:
        return None
    parts = [_power(factor) for factor in _PER.split(text.strip(" ~."))]
    return None if None in parts else "/".join(map(str, parts))


def _power(text: str) -> str | None:
    if text in UNITS:
        return UNITS[text]
    m = _POWER.fullmatch(text)
    if m is None or (name := _name(m[2])) is None:
        return None
    power = m[3] or m[4] or {"s": "2", "c": "3"}.get((m[1] or " ")[0], "")
    return f"{name}^{power}" if power else name


def _name(word: str) -> str | None:
    forms = (word, word.lower()) if len(word) > 2 else (word,)  # Miles, but not mw for MW
    stems = (form.removesuffix(end) for form in forms for end in ("", "s", "es") if end == "" or len(word) > 2)
    return next((UNITS[stem] for stem in stems if stem in UNITS), None)
