"""Units and currencies: names that mean the same unit, and words that multiply."""

# ruff: noqa: SIM905  (tables of words read better as one text)
from fractions import Fraction

_ALIASES = {
    "mm": "millimeter millimeters millimetre millimetres",
    "cm": "centimeter centimeters centimetre centimetres",
    "dm": "decimeter decimeters",
    "m": "meter meters metre metres",
    "km": "kilometer kilometers kilometre kilometres kms",
    "nm": "nanometer nanometers",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard yards yds",
    "mi": "mile miles",
    "mg": "milligram milligrams",
    "g": "gram grams gm",
    "kg": "kilogram kilograms kgs",
    "lb": "pound pounds lbs",
    "oz": "ounce ounces",
    "t": "ton tons tonne tonnes",
    "ms": "millisecond milliseconds msec",
    "s": "second seconds sec secs",
    "min": "minute minutes mins",
    "h": "hour hours hr hrs",
    "day": "days",
    "week": "weeks",
    "month": "months",
    "year": "years yr yrs",
    "ml": "milliliter milliliters mL",
    "l": "liter liters litre litres L",
    "gal": "gallon gallons",
    "mph": "",
    "kph": "kmh",
    "rad": "radian radians rads",
    "deg": "degree degrees",
    "percent": "percentage pct",
    "dollar": "dollars usd",
    "cent": "cents",
    "euro": "euros eur",
    "yen": "jpy",
    "rupee": "rupees rs inr",
    "Hz": "hertz hz",
    "kHz": "khz",
    "MHz": "mhz",
    "J": "joule joules",
    "kJ": "kilojoule kilojoules",
    "N": "newton newtons",
    "W": "watt watts",
    "kW": "kilowatt kilowatts",
    "V": "volt volts",
    "A": "ampere amperes amp amps",
    "C": "celsius",
    "F": "fahrenheit",
    "K": "kelvin kelvins",
    "Pa": "pascal pascals",
    "kPa": "",
    "eV": "ev",
    "mol": "mole moles",
    "ohm": "ohms Omega",
    "unit": "units",
    "erg": "ergs",
    "AU": "au",
    "pc": "parsec parsecs",
    "am": "a.m. a.m",
    "pm": "p.m. p.m",
}
UNITS = {alias: name for name, words in _ALIASES.items() for alias in (name, *words.split())}
# Written without markup right after a number; the single letters (m, s, g ...) would be variables there.
BARE_UNITS = tuple(sorted((unit for unit in UNITS if len(unit) > 1 and unit.isalpha() and unit != "in"), key=len))[::-1]
SCALES = {
    "dozen": Fraction(12),
    "hundred": Fraction(100),
    "thousand": Fraction(10**3),
    "million": Fraction(10**6),
    "billion": Fraction(10**9),
    "trillion": Fraction(10**12),
}
_SQUARED = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
# A word after a number that is no unit but changes or doubts the answer.
_NOT_A_UNIT = frozenset(
    "or and not if mod modulo is are was else but maybe perhaps probably approximately about than less more least "
    "most over under plus minus times to from through except without unless for with where when either neither nor "
    "possibly likely unknown undefined infinity infinite none no yes true false base factorial squared cubed percent "
    "because since so then therefore times divided point half thirds third quarter quarters remainder".split()
)


def canonical_unit(words: str) -> str | None:
    """The canonical name of a unit written in words or symbols, or None if `words` cannot be one.

    A noun that is counted (``apples``) is a unit of its own; "square units" and the like carry their power.
    """
    parts = words.replace("/", " per ").replace("{", "").replace("}", "").split()
    power, names, num_nouns = 1, [], 0
    for part in parts:
        part = part.rstrip(".") if part not in UNITS else part
        if part.lower() in _SQUARED:
            power = _SQUARED[part.lower()]
            continue
        part, caret, exponent = part.partition("^")
        name = UNITS.get(part, UNITS.get(part.lower()))
        if name is None:
            if not part.isalpha() or (len(part) < 2 and part not in UNITS) or part.lower() in _NOT_A_UNIT:
                return None
            name = part.lower().removesuffix("s") if len(part) > 3 else part.lower()
            num_nouns += part != "per"
        names.append(name + caret + exponent)
    if not names and power == 1:
        return None
    if len(names) > 4 or num_nouns > 2:
        return None
    return " ".join(names or ["unit"]) + (f"^{power}" if power > 1 else "")
