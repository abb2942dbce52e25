"""Every parser of bytes from outside, with genuine inputs to start from and what it may say to others.

A target raises one of `refuses`, or takes the input and then holds to its promise (an assert). Whatever else it raises
is a bug. `most` is the longest input that it looks into: beyond, it must refuse without allocating.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from protocol_fakes import World
from secure_fakes import key_of
from spool_targets import spool_parsers

from fedhpc.agreement.federation_file import read_agreement
from fedhpc.agreement.site_file import read_site
from fedhpc.app.features import read_feature_set
from fedhpc.config import MAX_CONFIG_BYTES
from fedhpc.data.schema import Feature, FeatureSet, Label
from fedhpc.enrolment.certificates import issue, issue_new, new_authority, new_key, new_request
from fedhpc.enrolment.fingerprints import read_asked
from fedhpc.enrolment.invitations import Invitations
from fedhpc.errors import FedhpcError
from fedhpc.ledger.file import LEDGER_FILE, LedgerFile
from fedhpc.ledger.home import LedgerHome
from fedhpc.ledger.journal import FileJournal
from fedhpc.relay.http.connection import Head, parse_head
from fedhpc.relay.http.mailbox import read_tokens
from fedhpc.relay.http.routes import Routes, _query
from fedhpc.relay.problems import Problem
from fedhpc.relay.rounds.ready import read_ready
from fedhpc.relay.settings import Limits, Roster, read_roster, read_settings
from fedhpc.secure import labels, message_kinds, messages
from fedhpc.secure.attempt_file import from_private
from fedhpc.secure.catch_up_messages import CommonKnowledge, Giver, Taker
from fedhpc.secure.epochs import Configuration, approve, check_signed
from fedhpc.secure.home_ledger import KnownFederation
from fedhpc.secure.join_request import MAX_REQUEST_BYTES, read_request, sign_request, split_token
from fedhpc.secure.keys import AttemptKey
from fedhpc.secure.ledger import LedgerEntry
from fedhpc.secure.results import RoundResults, abandon
from fedhpc.secure.suite import SHA256
from fedhpc.secure.transcript import MAX_CANON_BYTES, canon, parse_canon, sign_message
from fedhpc.sums.over_relay.catch_up import Attendant
from fedhpc.sums.over_relay.waiting import late_sites
from fedhpc.transport.gaps import read_gaps
from fedhpc.transport.https.transfer import declared_length
from fedhpc.transport.link_problems import RelayProblem, refusal
from fedhpc.transport.listing import read_listing
from fedhpc.wire.kinds import MAX_READY_BYTES
from fedhpc.wire.object_names import ObjectName
from fedhpc.wire.pins import MAX_CERTIFICATE_BYTES, pin_of, pin_of_der, read_certificate, read_der

SITES = 4
CONFIG = "ab" * 32


@dataclass(frozen=True)
class Target:
    """One parser."""

    name: str
    parse: Callable[[bytes], Any]
    seeds: list[bytes] = field(repr=False)
    refuses: tuple[type[Exception], ...] = (FedhpcError,)
    most: int | None = None
    least: int = 512 << 10  # bytes of memory that any input may cost
    factor: int = 80  # and for each byte of it; a JSON list in a list costs 64 for two


@cache
def targets() -> dict[str, Target]:
    """All targets by name."""
    made = [*_protocol(), *_hostile_sites(), *_relay(), *_site(), *_files(), *_enrolment(), *_spool()]
    return {target.name: target for target in made}


def _spool() -> list[Target]:
    """Files of a spool directory."""
    return [Target(name, parse, seeds, (ValueError,)) for name, (parse, seeds) in spool_parsers().items()]


# --- messages of the protocol, as they come


@cache
def _world() -> Any:
    """A federation of four sites that has gone through one attempt."""
    world = World(SITES)
    attempt = world.attempt()
    attempt.run()
    return world


def _sent(name: str, u: int = 2) -> bytes:
    objects = _world().attempts[0].objects.small
    return bytes(objects[name] if name in objects else objects[f"{name}/{u}"])


BODIES: dict[str, Callable[[Any], Any]] = {
    "M1": lambda body: messages.read_keys(body, "b"),
    "M2": lambda body: messages.read_shares(body, 1, SITES, "b"),
    "M3": lambda body: messages.read_masked(body, "b"),
    "M4": lambda body: messages.read_empty(body, "M4", "b"),
    "M5": lambda body: messages.read_unmask(body, 1, SITES, SITES, "b"),
    "M6": lambda body: messages.read_result(body, SITES, "b"),
}


def _protocol() -> list[Target]:
    world = _world()
    most = partial(message_kinds.max_bytes, sites=SITES)

    def signed(name: str, data: bytes) -> None:
        """As another site reads it: only the genuine message passes."""
        t = bytes.fromhex(parse_canon(_sent(name))["t"])
        BODIES[name](messages.open_signed(data, name, t, world.roster[1], SITES))
        assert data == _sent(name)

    def envelope(name: str, data: bytes) -> None:
        """As the relay reads it, which checks no signature."""
        BODIES[name](messages.read_envelope(data, name, 2, SITES)["body"])
        assert canon(parse_canon(data)) == data

    def proposal(data: bytes) -> None:
        assert messages.read_proposal(data, SITES).to_bytes() == data

    def survivors(data: bytes) -> None:
        assert messages.read_survivors(data, SITES).to_bytes() == data

    def sets(data: bytes) -> None:
        assert canon(list(messages.read_sites(data, SITES, "U1"))) == data

    def result(data: bytes) -> None:
        RoundResults(world.roster, world.thresholds, None).receive(data)

    def canonical(data: bytes) -> None:
        assert canon(parse_canon(data)) == data

    entry = LedgerEntry(world.round_, "train", key_of("input"), key_of("print"), (1, 2, 3))
    given_up = abandon(world.identities[2], 2, world.disks[2].__class__(), entry, world.state, key_of("next"))
    found = [
        Target("canon", canonical, [canon({"a": [1, -2, {"b": "x y"}], "B": ""})], (ValueError,), MAX_CANON_BYTES),
        Target("M0", proposal, [_sent("M0")], most=most("M0")),
        Target("M4r", survivors, [_sent("M4r")], most=most("M4r")),
        Target("U1", sets, [b"[1,2,3,4]", b"[2,3,4]"], most=most("U1")),
        Target("results", result, [_sent("M6"), given_up], most=most("M6")),
        Target("READY", read_ready, [_ready()], most=MAX_READY_BYTES),
        Target("attempt file", _attempt_file, [world.disks[1].private]),
    ]
    for name in BODIES:
        found.append(Target(f"{name} signed", partial(signed, name), [_sent(name)], most=most(name)))
        found.append(Target(f"{name} envelope", partial(envelope, name), [_sent(name)], most=most(name)))
    return found


def _ready() -> bytes:
    digest = key_of("x").hex()
    fields = {"base": digest, "everyone": 0, "layout": digest, "purpose": "train", "state": digest}
    return canon(fields | {"tensors": [[32, 5], [64, 3]]})


def _attempt_file(data: bytes) -> None:
    assert from_private(data).export_private() == data


# --- bodies that a hostile site signs with its own key


def _hostile_sites() -> list[Target]:
    world = _world()
    key = world.identities[2]
    config = world.config if hasattr(world, "config") else key_of("config")
    known = CommonKnowledge(config, world.roster, world.thresholds, (1 << 20) + 5)
    taker = Taker(known, 1, world.identities[1], key_of("old"), 1)
    proof = [_sent("M6", u) for u in (1, 2, 3)]
    state = Giver(known, 2, key, 1, taker.need, 9, proof).state
    need_body = canon({"key": AttemptKey(key_of("k")).public.hex(), "state": key_of("old").hex()})

    def need(data: bytes) -> None:
        message = sign_message(key, labels.SIGN_NEED, 2, config, _value(data))
        Giver(known, 1, world.identities[1], 2, message, 9, proof)

    def answer(data: bytes) -> None:
        t = bytes.fromhex(parse_canon(state)["t"])
        fresh = Taker(known, 1, world.identities[1], key_of("old"), 1, fresh=taker._key)
        fresh.receive_state(2, sign_message(key, labels.SIGN_STATE, 2, t, _value(data)))

    def given_up(data: bytes) -> None:
        message = sign_message(key, labels.SIGN_ABANDON, 2, world.state, _value(data))
        RoundResults(world.roster, world.thresholds, world.state).receive(message)

    def result(data: bytes) -> None:
        message = sign_message(key, labels.SIGN_RESULT, 2, key_of("t"), _value(data))
        RoundResults(world.roster, world.thresholds, world.state).receive(message)

    first = Configuration(key_of("file"), 0, b"")
    genuine = {u: approve(k, u, None, first) for u, k in world.identities.items()}

    def configuration(data: bytes) -> None:
        check_signed(first, world.roster, genuine | {2: data})
        assert data == genuine[2]

    def body(name: str, data: bytes) -> None:
        BODIES[name](_value(data))

    return [
        Target("NEED", need, [need_body]),
        Target("STATE", answer, [canon(parse_canon(state)["body"])]),
        Target("ABANDON", given_up, [canon({"state": key_of("next").hex()})]),
        Target("M6 of a hostile site", result, [canon(parse_canon(_sent("M6"))["body"])]),
        Target("CONFIG", configuration, [genuine[2]], most=message_kinds.max_bytes("CONFIG", SITES)),
        *[Target(f"{name} body", partial(body, name), [canon(parse_canon(_sent(name))["body"])]) for name in BODIES],
    ]


class _NoForm(FedhpcError):
    """The fuzzer's bytes are no body at all."""


def _value(data: bytes) -> Any:
    try:
        return parse_canon(data)
    except ValueError:
        raise _NoForm("no canonical JSON") from None


# --- the relay's side of HTTP


def _relay() -> list[Target]:
    head = b"PUT /v1/objects/%s/3/1/M3v/2 HTTP/1.1\r\nhost: r\r\ncontent-length: 1048576\r\n%s\r\n"
    heads = [
        head % (CONFIG.encode(), b"content-range: bytes 0-1048575/4194304\r\nfedhpc-tree: " + b"0" * 64 + b"\r\n"),
        b"GET /v1/objects/%s/3/1/?wait=20&after=ab.7 HTTP/1.1\r\nhost: r\r\nrange: bytes=0-\r\n\r\n" % CONFIG.encode(),
    ]
    routes = Routes(None, Roster, Limits(), None)  # type: ignore[arg-type]

    def parsed(data: bytes) -> Head:
        found = parse_head(data, Limits().head_bytes)
        assert found.length >= 0
        assert all(name == name.lower() for name in found.headers)
        return found

    def part(data: bytes) -> None:
        length, _, given = data.partition(b" ")
        if not length.isdigit() or len(length) > 19:
            raise Problem("bad-request", "h11 lets no other content-length through")
        found = Head("PUT", "/", "", {"content-range": given.decode("latin-1")}, int(length), keep=True)
        first, whole = routes._part(found)
        assert 0 <= first <= whole
        assert first + found.length <= whole or found.length == 0

    def wanted(data: bytes) -> None:
        found = Head("GET", "/", "", {"range": data.decode("latin-1")}, 0, keep=True)
        first, end = routes._range(found, 1000)
        assert 0 <= first < end <= 1000

    def query(data: bytes) -> None:
        found = Head("GET", "/", data.decode("latin-1"), {}, 0, keep=True)
        assert isinstance(_query(found, "wait"), str)

    def name(data: bytes) -> None:
        text = data.decode("latin-1")
        assert str(ObjectName.parse(text)) == text
        assert ".." not in text

    return [
        Target("HTTP head", parsed, heads, (Problem,)),
        Target("content-range", part, [b"1048576 bytes 0-1048575/4194304", b"0 bytes */12"], (Problem,)),
        Target("range", wanted, [b"bytes=0-99", b"bytes=5-"], (Problem,)),
        Target("query", query, [b"wait=20&after=ab.7", b"kind=M4&count=3&inline=1"], (Problem,)),
        Target("object name", name, [f"{CONFIG}/3/1/M3v/2".encode(), f"{CONFIG}/0/7/B12/1/2".encode()], (ValueError,)),
    ]


# --- what the relay tells a site


def _site() -> list[Target]:
    entry = {"name": "M1/2", "bytes": 3, "tree": SHA256.tree(b"abc").hex()}
    listing = json.dumps({"after": "ab.1", "objects": [entry]}).encode() + b"\n"
    inline = listing.replace(b"}]", b', "inline": true}]') + b"abc"
    features = FeatureSet((Feature("age", "year", "number"), Feature("sex", "", "0 1")), Label("y"), (2,))
    standing = {"done": 7, "rounds": [{"round": 8, "attempt": 1, "phase": "masked", "ready": [1, 2], "late": [2]}]}
    whole = b"HTTP/1.1 %s\r\ncontent-length: %d\r\ncontent-type: application/json\r\n\r\n%s"
    problem = Problem("too-late", "closed").document()

    def listed(data: bytes) -> None:
        for found in read_listing(data, CONFIG, 3, 1, SHA256)[0]:
            assert found.length > 0
            ObjectName(CONFIG, 3, 1, found.name)

    def gaps(data: bytes) -> None:
        for first, end in read_gaps(_document(data)):
            assert 0 <= first < end

    def answer(data: bytes) -> None:
        response = http.client.HTTPResponse(_Socket(data))  # type: ignore[arg-type]
        response.begin()
        assert declared_length(response) >= -1
        if response.status >= 300:
            assert isinstance(refusal(response), Exception)

    def late(data: bytes) -> None:
        """Where the federation stands, as a site that gives up tells its people."""
        exchange = SimpleNamespace(standing=lambda: _document(data))
        assert late_sites(exchange, ["a", "b", "c"], 8)  # type: ignore[arg-type]

    def asked(data: bytes) -> None:
        """Whom the relay asks this site to help."""
        world = _world()
        known = CommonKnowledge(key_of("config"), world.roster, world.thresholds, 0)
        exchange = SimpleNamespace(standing=lambda: _document(data), me=1)
        attendant = Attendant(known, exchange, world.identities[1], None)  # type: ignore[arg-type]
        for site, number in attendant._asked():
            ObjectName(CONFIG, 0, number, f"NEED/{site}")

    def described(data: bytes) -> None:
        assert read_feature_set(data, "b").canonical() == data

    network = (http.client.HTTPException, OSError, ValueError)
    return [
        Target(
            "listing",
            listed,
            [listing, inline],
            (ValueError, FedhpcError),
        ),
        Target("gaps", gaps, [b'{"missing": [[0, 1048576], [2097152, 2097153]]}'], (RelayProblem,)),
        Target("answer", answer, [whole % (b"409 Conflict", len(problem), problem)], network),
        Target("standing", late, [json.dumps(standing).encode()], (RelayProblem,)),
        Target("needs", asked, [b'{"needs": [{"site": 4, "attempt": 123, "asked": 1}]}'], (RelayProblem,)),
        Target("features", described, [features.canonical()]),
    ]


def _document(data: bytes) -> dict[str, Any]:
    """As Link.read_json."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise RelayProblem(200, "nonsense", "the answer is not a JSON object")
    return value


class _Socket:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


# --- files that people send each other, or that a disk may have damaged

AGREED = f"""
[federation]
name = "heart"
protocol = "fedhpc-secagg/3"
rounds = 3
epoch = 1
previous = "{"cd" * 32}"
[[site]]
name = "a"
sign = "{"01" * 32}"
tls = "{"11" * 32}"
[[site]]
name = "b"
sign = "{"02" * 32}"
[[site]]
name = "c"
sign = "{"03" * 32}"
[relay]
tls = "{"0f" * 32}"
[cohort]
policy = "buffered"
staleness = 2
[secure]
rounding = "stochastic"
bound = 1.5
[strategy]
name = "diloco"
weights = "uniform"
[task]
name = "mlp"
[train]
lr = 0.1
"""

SITE = """
[site]
name = "a"
ranks = 2
key = "sign.key"
[data]
store = "a.h5"
[compute]
threads = 2
[exchange]
kind = "https"
url = "https://relay:8443"
certificate = "a.pem"
key = "a.key"
rails = "auto"
"""

RELAY = """
[relay]
listen = "127.0.0.1:8443"
admin = "127.0.0.1:9443"
store = "store"
certificate = "relay.pem"
key = "relay.key"
client_authorities = ["enrolment.pem"]
roster = "roster.toml"
[limits]
connections_per_site = 8
"""

ROSTER = f"""
["{CONFIG}"]
bytes = 100_000
objects = 10
threshold = 3
sites = {{ 1 = "{"01" * 32}", 2 = "{"02" * 32}", 3 = "{"03" * 32}" }}
["{CONFIG}".cohort]
policy = "quorum"
grace_s = 2.5
"""


_FOLDER = tempfile.TemporaryDirectory(prefix="fedhpc-fuzz-")  # removed when the process ends


def _folder() -> Path:
    """Files of this process."""
    folder = Path(_FOLDER.name)
    os.close(os.open(folder / "relay.key", os.O_CREAT, 0o600))
    return folder


def _from_file(name: str, read: Callable[[Path], Any]) -> Callable[[bytes], Any]:
    def parse(data: bytes) -> None:
        path = _folder() / name
        path.write_bytes(data)
        read(path)

    return parse


def _files() -> list[Target]:
    home = _folder()
    known = KnownFederation(key_of("config"), "test", 0, 1, 1, ("a", "b", "c"), tuple(map(key_of, "abc")))
    filled = FileJournal(LedgerHome(home), known, home)
    for u3 in ((), (1, 2, 3)):
        filled.admit(LedgerEntry(1, "train", key_of("input"), key_of("print"), u3))
    filled.close()

    def ledger(path: Path) -> None:
        LedgerFile(path).close()

    # tomllib keeps five containers for a table, and a file is read into a buffer of its longest size.
    toml: dict[str, Any] = {"least": MAX_CONFIG_BYTES + (1 << 20), "factor": 1200}
    agreed, site = AGREED.encode(), SITE.encode()
    return [
        Target("federation.toml", lambda data: read_agreement(data, "federation.toml"), [agreed], factor=1200),
        Target("site.toml", lambda data: read_site(data, Path("site.toml")), [site], factor=1200),
        Target("relay.toml", _from_file("relay.toml", read_settings), [RELAY.encode()], **toml),
        Target("roster.toml", _from_file("roster.toml", read_roster), [ROSTER.encode()], **toml),
        Target("tokens.toml", _from_file("tokens.toml", read_tokens), [f'a-1 = "{"0" * 64}"\n'.encode()], **toml),
        Target("ledger", _from_file("ledger.jsonl", ledger), [(home / LEDGER_FILE).read_bytes()]),
    ]


# --- enrolment: requests, certificates, tokens


def _enrolment() -> list[Target]:
    world = _world()
    authority, tls_key = new_authority(), new_key()
    pem = new_request(tls_key, "site-2")
    csr = x509.load_pem_x509_csr(pem).public_bytes(Encoding.DER)
    halves = split_token("00" * 16)
    request = sign_request(world.identities[2], "site-2", csr, halves)
    issued = issue_new(authority, "site-2")
    der = x509.load_pem_x509_certificate(issued.certificate).public_bytes(Encoding.DER)
    invited = f'signed = true\n[invited]\na-1 = "{"0" * 64}"\n[refused]\n{"1" * 64} = "b"\n'.encode()

    def asked_again(data: bytes) -> None:
        """A certificate request inside a request that is signed over it."""
        assert read_asked(sign_request(world.identities[2], "site-2", data)).csr

    def certified(data: bytes) -> None:
        assert issue(authority, data)

    def request_of(data: bytes) -> None:
        assert read_request(data).source == data

    def pinned(path: Path) -> None:
        found = read_certificate(path)
        assert len(pin_of(found)) == 32
        assert found.not_valid_before_utc.tzinfo is found.not_valid_after_utc.tzinfo

    def handed_over(data: bytes) -> None:
        """As a peer's certificate in TLS: its pin, and when it ends."""
        found = read_der(data)
        assert pin_of(found) == pin_of_der(data)
        assert found.not_valid_before_utc.tzinfo is found.not_valid_after_utc.tzinfo

    def token(data: bytes) -> None:
        halves = split_token(data.decode("latin-1"))
        assert halves.access != halves.proof

    def invitations(path: Path) -> None:
        Invitations.read(path, path.with_name("no tokens"))

    return [
        Target("enrolment request", request_of, [request], most=MAX_REQUEST_BYTES),
        Target("certificate request", asked_again, [csr], factor=400),
        Target("certificate request, PEM", certified, [pem], most=MAX_CERTIFICATE_BYTES),
        Target("certificate", handed_over, [der], (ValueError,), most=MAX_CERTIFICATE_BYTES),
        Target("certificate, PEM", _from_file("site.pem", pinned), [issued.certificate]),
        Target("token", token, [b"00112233445566778899aabbccddeeff"]),
        Target("invitations.toml", _from_file("inv.toml", invitations), [invited], least=5 << 20, factor=1200),
    ]
