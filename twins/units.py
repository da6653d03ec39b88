"""Units of measurement as SenML spells them, and how else people spell them."""

from __future__ import annotations

from typing import Final

# IANA's registries "SenML Units" (RFC 8428) and "Secondary Units" (RFC 8798), as of 2025-03-27.
_PRIMARY: Final = (
    "m kg g s A K cd mol Hz rad sr N Pa J W C V F Ohm S Wb T H Cel lm lx Bq Gy Sv kat m2 m3 l m/s m/s2 m3/s l/s W/m2 "
    "cd/m2 bit bit/s lat lon pH dB dBW Bspl count / % %RH %EL EL 1/s 1/min beat/min beats S/m B VA VAs var vars J/m "
    "kg/m3 deg NTU"
)
_SECONDARY: Final = (
    "ms min h MHz kW kVA kvar Ah Wh kWh varh kvarh kVAh Wh/km KiB GB Mbit/s B/s MB/s mV mA dBm ug/m3 mm/h m/h ppm /100 "
    "/1000 hPa mm cm km km/h ppb ppt VAh mg/l ug/l g/l"
)
SENML_UNITS: Final = frozenset(_PRIMARY.split()) | frozenset(_SECONDARY.split())
# How units are often written, and what SenML writes.
_OTHER_SPELLINGS: Final = {
    "°C": "Cel",
    "°c": "Cel",
    "℃": "Cel",
    "degC": "Cel",
    "celsius": "Cel",
    "Celsius": "Cel",
    "%rH": "%RH",
    "rh": "%RH",
    "percent": "/100",
    "Ω": "Ohm",
    "ohm": "Ohm",
    "µg/m³": "ug/m3",
    "µg/m3": "ug/m3",
    "μg/m³": "ug/m3",
    "m²": "m2",
    "m³": "m3",
    "m/s²": "m/s2",
    "°": "deg",
    "kmh": "km/h",
    "kph": "km/h",
    "sec": "s",
    "seconds": "s",
    "minutes": "min",
    "hours": "h",
    "volt": "V",
    "watt": "W",
    "lux": "lx",
    "L": "l",
}
# A single letter in the other case is another unit (t is no tesla).
_BY_LOWER_CASE: Final = {unit.lower(): unit for unit in SENML_UNITS if len(unit) > 1}


def senml_spelling(unit: str) -> str:
    """Return how SenML writes a unit that is spelled otherwise, or nothing where it is right, or SenML has none."""
    if not unit or unit in SENML_UNITS:
        return ""
    return _OTHER_SPELLINGS.get(unit) or _BY_LOWER_CASE.get(unit.lower(), "")
