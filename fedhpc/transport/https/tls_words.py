"""What a failure of TLS with the relay means: wait it out, another service, or a refused certificate.

While a relay starts again anything may happen to a handshake, so what is not known for certain is waited out.
"""

from __future__ import annotations

import datetime
import re
import ssl
from pathlib import Path
from typing import Literal

from fedhpc.errors import ConfigError, PolicyError
from fedhpc.wire.certificate_times import COMPARE_CLOCKS, begins_later, has_ended, utc
from fedhpc.wire.pins import read_certificate

Kind = Literal["wait", "no relay", "certificate"]

_NO_TLS = ("wrong version number", "http request", "record layer failure", "packet length too long", "unknown protocol")
_NOT_OURS = (
    "unsupported protocol",
    "alert protocol version",
    "alert handshake failure",
    "alert insufficient security",
    "alert no application protocol",
    "alert inappropriate fallback",
    "alert missing extension",
)
_CERTIFICATE = ("certificate", "unknown ca", "access denied")


def kind_of(words: str) -> Kind:
    """The error for a failure (`words_of`) before the relay has answered on the connection."""
    if words.startswith("alert ") and any(word in words for word in _CERTIFICATE):
        return "certificate"
    return "no relay" if words in (*_NO_TLS, *_NOT_OURS) else "wait"


def words_of(error: ssl.SSLError) -> str:
    """OpenSSL's reason in lower case: `alert internal error` for what the other end said, `wrong version number`."""
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):  # which of them depends on what comes first
        return "the connection was closed in the middle"
    found = re.fullmatch(r"(?:\[[^\]]*\] )?(.*?)(?: \(_ssl\.c:[0-9]+\))?", str(error.args[-1] if error.args else error))
    reason = error.reason or (found[1] if found else "")
    return re.sub(r"^(sslv3|tlsv1|tlsv13) ", "", reason.lower().replace("_", " ")) or "unknown error"


def no_relay(words: str, place: str) -> tuple[str, str]:
    """Reason and hint for a service that is not a relay."""
    port = "its public port, and not its admin port" if words in _NO_TLS else "a relay, and not another service"
    hint = f"is {place} {port} or a middlebox that opens TLS? The address is `url` under [exchange] of site.toml"
    if words in _NO_TLS:
        return f"TLS: what answers there does not speak TLS ({words})", hint
    return f"TLS: what answers there does not speak TLS 1.3 as a relay does ({words})", hint


def refused_certificate(words: str, certificate: Path) -> PolicyError:
    """The error where the relay gave the alert `words` to this site's `certificate`, with what its dates tell."""
    what = f"the relay does not accept this site's certificate ({words})"
    renew = "renew it with `fedhpc site request DIR --wait`"
    try:
        shown = read_certificate(certificate)
    except ConfigError:
        return PolicyError(what, f"it may come from another enrolment: {renew}")
    now = datetime.datetime.now(datetime.UTC)
    if early := begins_later(shown, now):
        return PolicyError(f"{what}: it {early}", f"{COMPARE_CLOCKS}; or {renew}")
    if late := has_ended(shown, now, datetime.timedelta()):
        return PolicyError(f"{what}: it {late}", renew)
    if "expired" in words:
        ends = utc(shown.not_valid_after_utc)
        return PolicyError(
            f"{what}: it ends on {ends}, and the clock here says {utc(now)}", f"{COMPARE_CLOCKS}; or {renew}"
        )
    if words == "alert bad certificate":  # OpenSSL says this also of one that is not yet valid
        begins = utc(shown.not_valid_before_utc)
        hint = f"it is valid from {begins}: where the relay's clock is behind that, it has not begun; else {renew}"
        return PolicyError(what, hint)
    return PolicyError(what, f"it may come from another enrolment: {renew}")
