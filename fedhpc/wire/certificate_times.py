"""Whether a certificate is used within its time, in words that tell one that has not begun from one that has ended."""

from __future__ import annotations

import datetime

from cryptography import x509

GRACE = datetime.timedelta(minutes=5)  # for clocks that are a little off
COMPARE_CLOCKS = "compare `date -u` here with the time elsewhere: a clock may be wrong"


def utc(time: datetime.datetime) -> str:
    """`2026-11-30 08:00:00 UTC`."""
    return f"{time.astimezone(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"


def begins_later(certificate: x509.Certificate, now: datetime.datetime, grace: datetime.timedelta = GRACE) -> str:
    """When it begins, for the middle of a sentence, if it has not begun at `now`; else ""."""
    if now >= certificate.not_valid_before_utc - grace:
        return ""
    return f"begins only on {utc(certificate.not_valid_before_utc)}, and the clock here says {utc(now)}"


def has_ended(certificate: x509.Certificate, now: datetime.datetime, grace: datetime.timedelta = GRACE) -> str:
    """When it ended, for the middle of a sentence, if it has at `now`; else ""."""
    if now <= certificate.not_valid_after_utc + grace:
        return ""
    return f"ended on {utc(certificate.not_valid_after_utc)}, or the clock here is wrong: it says {utc(now)}"
