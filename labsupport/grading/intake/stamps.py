"""The time in nbgrader's timestamp.txt, in the forms that its versions and its users' scripts write."""

from __future__ import annotations

import contextlib
import re
from datetime import UTC, datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from zoneinfo import ZoneInfo

# Abbreviations with one meaning, which no database of time zones knows. IST, CST and BST have several.
_HOURS = {
    "Z": 0, "UTC": 0, "GMT": 0, "WEST": 1, "CEST": 2, "EEST": 3, "MSK": 3, "EDT": -4, "CDT": -5, "MDT": -6,
    "PDT": -7, "PST": -8, "AKDT": -8, "AKST": -9, "JST": 9, "KST": 9, "AEST": 10, "AEDT": 11, "NZDT": 13,
}  # fmt: skip
_AMBIGUOUS = {"IST", "CST", "BST", "AST", "ADT", "SST", "EST5EDT"}
_NO_ZONE = "its timestamp.txt names no time zone: taken as UTC, as nbgrader does"
_STAMP = re.compile(r"(?P<day>\d{4}-\d\d-\d\d)[ T](?P<clock>\d\d:\d\d(?::\d\d(?:[.,]\d{1,9})?)?)\s*(?P<zone>\S.*)?")


def read_stamp(text: str) -> tuple[datetime | None, str]:
    """The time, None if it cannot be read; and a remark where it was not wholly clear."""
    found = _STAMP.fullmatch(text.strip()[:100])
    if found is None:
        return _otherwise(text.strip()[:100])
    clock = re.sub(r"[.,](\d{1,6})\d*", lambda part: "." + part[1].ljust(6, "0"), found["clock"])
    try:
        moment = datetime.fromisoformat(f"{found['day']} {clock}")
    except ValueError:
        return None, "its timestamp.txt cannot be read"
    zone = re.sub(r"^([+-]\d\d:?\d\d) \(?[A-Z]{2,5}\)?$", r"\1", (found["zone"] or "").strip("() "))
    if not zone:
        return moment.replace(tzinfo=UTC), _NO_ZONE
    known = _zone(zone)
    if known is None:
        return moment.astimezone(), f"its timestamp.txt has the time zone {zone!r}, which is not clear: taken as local"
    return moment.replace(tzinfo=known), ""


def _otherwise(text: str) -> tuple[datetime | None, str]:
    """ "20260202T155823Z", "Mon, 02 Feb 2026 15:58:23 +0000", and what `date` prints."""
    for read in (datetime.fromisoformat, parsedate_to_datetime, _as_date_prints):
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            moment = read(text)
            return (moment, "") if moment.tzinfo else (moment.replace(tzinfo=UTC), _NO_ZONE)
    return None, "its timestamp.txt cannot be read"


def _as_date_prints(text: str) -> datetime:
    found = re.fullmatch(r"([A-Z][a-z]{2} [A-Z][a-z]{2} +\d+ \d\d:\d\d:\d\d)(?: (\S+))? (\d{4})", text)
    if found is None:
        raise ValueError(text)
    moment = datetime.strptime(f"{found[1]} {found[3]}", "%a %b %d %H:%M:%S %Y")
    if found[2] is None:
        return moment
    known = _zone(found[2])
    if known is None:
        raise ValueError(text)
    return moment.replace(tzinfo=known)


def _zone(name: str) -> timezone | ZoneInfo | None:
    if offset := re.fullmatch(r"(?:UTC|GMT)?([+-])(\d\d?):?(\d\d)?(?::?\d\d)?", name):
        delta = timedelta(hours=int(offset[2]), minutes=int(offset[3] or 0))
        return timezone(-delta if offset[1] == "-" else delta) if delta < timedelta(hours=24) else None
    if name.upper() in _HOURS:
        return timezone(timedelta(hours=_HOURS[name.upper()]))
    if name.upper() in _AMBIGUOUS:
        return None
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # KeyError: there is no such zone
        return None
