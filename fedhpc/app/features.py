"""What the sites' columns mean, compared before the first round. Names and units are public; values are not."""

from __future__ import annotations

import json

from fedhpc.data.schema import Feature, FeatureSet, Label, compare_features
from fedhpc.errors import DataError
from fedhpc.federation.session import Session

LARGEST_TOLD_BYTES = 1 << 20  # some 30,000 columns; the relay takes 4 MiB
_HASHED = b"sha256 "


def compare_stores(session: Session, mine: FeatureSet | None) -> None:
    """Raise DataError that names the first site with other features, and the features. None: a store of one's own.

    Called by every rank; the leaders compare.
    """
    if not session.leads or len(session.sites) == 1:
        return
    described = b"" if mine is None else describe(mine)
    for number, message in session.peers.announce("FEATURES", described).items():
        if message == described:
            continue
        site = session.sites[number - 1]
        what = "one of them has no feature list"
        if _HASHED in (described[: len(_HASHED)], message[: len(_HASHED)]):
            what = "there are too many to send; compare what `fedhpc data check` says of each store"
        elif mine is not None and message:
            told = "; ".join(compare_features(mine, read_feature_set(message, site)))
            what = "".join(c if c.isprintable() else "?" for c in told)  # another site's words reach a terminal
        raise DataError(
            f"the stores of sites {session.site} (first) and {site} (second) hold different features: {what}",
            "ingest both with the same recipe; names, units, codings and order must be equal",
        )


def describe(mine: FeatureSet) -> bytes:
    """What a site tells the others of its features: their canonical JSON, or its hash beyond 1 MiB."""
    canonical = mine.canonical()
    return canonical if len(canonical) <= LARGEST_TOLD_BYTES else _HASHED + mine.sha256.encode()


def read_feature_set(canonical: bytes, site: str) -> FeatureSet:
    """The feature set in its canonical JSON, as `site` sent it. Raises DataError for any other form."""
    try:
        document = json.loads(canonical)
        columns = zip(document["names"], document["units"], document["codings"], strict=True)
        found = FeatureSet(
            tuple(Feature(str(n), str(u), str(c)) for n, u, c in columns),
            Label(**{key: str(value) for key, value in document["label"].items()}),  # type: ignore[arg-type]
            tuple(int(size) for size in document["row_shape"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(f"site {site} sent a feature list that cannot be read: {error}") from None
    if found.canonical() != canonical:
        raise DataError(f"site {site} sent a feature list that is not in canonical form")
    return found
