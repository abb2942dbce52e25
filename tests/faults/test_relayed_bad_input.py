"""What can be wrong where a site meets a relay, through the real command line: exit code, what and where, no traceback.

Blocks that are truncated, doubled, too large or out of order on the wire: tests/relay/test_hostile.py; certificates as
the transport sees them: tests/relay/test_identity.py.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import FEDHPC, ROOT, Completed, call, edit, mpi_words, start, until, write_rows

from fedhpc.enrolment.certificates import Issued, issue, issue_new, new_authority, new_request
from fedhpc.enrolment.one_machine import Enrolled, enrol, running_relay
from fedhpc.errors import PolicyError
from fedhpc.secure.transcript import canon
from fedhpc.sums.over_relay.exchange import RelayExchange
from fedhpc.transport.https.client import RelayClient
from fedhpc.transport.https.link import RelayAccess
from fedhpc.transport.https.retry import Patience
from fedhpc.transport.link_problems import RelayProblem
from fedhpc.wire.object_names import BLOCK_BYTES

pytestmark = pytest.mark.faults

NAMES = ("aa", "bb", "cc")
SECTIONS = """
[cohort]
deadline_s = 3.0
answer_s = 2.0

[task]
name = "logistic"
options = { features = 4 }

[train]
optimizer = "sgd"
lr = 0.1
"""


@dataclass(frozen=True)
class Place:
    """A copy of one site's folder and of federation.toml, to be spoilt; the relay is the module's."""

    enrolled: Enrolled
    federation: Path
    home: Path  # of site aa

    @property
    def site_file(self) -> Path:
        return self.home / "site.toml"

    @property
    def authority(self) -> Issued:
        folder = self.enrolled.folder / "coordinator"
        return Issued((folder / "authority.key").read_bytes(), (folder / "authority.pem").read_bytes())

    def run(self, *words: str | Path, env: dict[str, str] | None = None, timeout: float = 60) -> Completed:
        """`fedhpc run` of site aa alone."""
        return call(self.words(*words), timeout=timeout, env=env)

    def words(self, *more: str | Path) -> list[str | Path]:
        return [*FEDHPC, "run", self.federation, "--site", self.site_file, "--out", self.home.parent / "run", *more]

    def certify(self, days: float = 7.0, start: datetime.datetime | None = None, by: Issued | None = None) -> None:
        """Another certificate for the site's own key."""
        request = new_request((self.home / "tls.key").read_bytes(), "aa")
        (self.home / "tls.pem").write_bytes(issue(by or self.authority, request, days, start))

    def exchange(self, line: str) -> None:
        """One more line for [exchange], in place of one with that key."""
        key = line.split(" ")[0]
        kept = [text for text in self.site_file.read_text().splitlines() if not text.startswith(f"{key} = ")]
        at = kept.index("[exchange]") + 1
        self.site_file.write_text("\n".join([*kept[:at], line, *kept[at:]]) + "\n")


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Enrolled]:
    """Three sites and a relay that runs; nobody changes these."""
    folder = tmp_path_factory.mktemp("three")
    for name in NAMES:
        write_rows(folder / f"{name}.h5", name, 24)
    made = enrol(folder, "three", SECTIONS, {name: folder / f"{name}.h5" for name in NAMES})
    with (folder / "relay.log").open("w") as log, relay_of(made.relay, log):
        yield made


@contextlib.contextmanager
def relay_of(relay: Path, log: object = None) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update({"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    try:
        with running_relay(relay, log):  # type: ignore[arg-type]
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def place(enrolled: Enrolled, tmp_path: Path) -> Place:
    home = tmp_path / "aa"
    shutil.copytree(enrolled.site_file("aa").parent, home)
    shutil.copy(enrolled.federation, tmp_path / "federation.toml")
    found = Place(enrolled, tmp_path / "federation.toml", home)
    found.exchange('proxy = ""')
    found.exchange("patience_s = 2.0")
    return found


@contextlib.contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port on which every connection is given to `answer`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()

        def one(peer: socket.socket) -> None:
            with peer, contextlib.suppress(OSError):
                answer(peer)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


# --- the site's certificate


def ago(days: float) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days)


@pytest.mark.parametrize(
    ("days", "start", "foreign", "word"),
    [
        (1.0, ago(30), False, "expired"),
        (7.0, ago(-3), False, "bad certificate"),
        (7.0, None, True, "unknown ca"),
    ],
    ids=["expired", "not yet valid", "of another enrolment"],
)
def test_a_certificate_that_the_relay_does_not_accept(
    place: Place, days: float, start: datetime.datetime | None, foreign: bool, word: str
) -> None:
    place.certify(days, start, new_authority() if foreign else None)
    done = place.run().refused(77, "the relay does not accept this site's certificate", "fedhpc site request")
    assert word in done.err, done.text


def test_a_key_that_is_not_the_rosters(place: Place) -> None:
    for file in ("tls.key", "tls.pem"):
        (place.home / file).unlink()
    stranger = issue_new(place.authority, "aa")
    stranger.write(place.home, "tls")
    done = place.run().refused(77, f"tls.pem has the key {stranger.pin().hex()}, the roster says ", "for site aa")
    assert f"`fedhpc site request {place.home} --wait`" in done.err


def test_the_certificate_of_another_site(place: Place) -> None:
    other = place.enrolled.site_file("bb").parent
    shutil.copy(other / "tls.pem", place.home / "tls.pem")
    place.run().refused(77, "tls.pem has the key ", "the roster says ", "for site aa")
    shutil.copy(place.enrolled.site_file("aa").parent / "tls.pem", place.home / "tls.pem")
    shutil.copy(other / "tls.key", place.home / "tls.key")
    done = place.run().refused(77, "tls.pem and the key ", "do not fit")
    assert f"fedhpc site rotate {place.home}" in done.err


def test_a_certificate_that_is_none(place: Place) -> None:
    (place.home / "tls.pem").write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    place.run().refused(64, "cannot read the certificate ", "tls.pem")
    (place.home / "tls.pem").unlink()
    place.run().refused(64, "cannot read the certificate ", "tls.pem")


@pytest.mark.parametrize(("file", "code"), [("tls.key", 64), ("sign.key", 74)])
@pytest.mark.parametrize("mode", [0o644, 0o604, 0o640])
def test_a_key_that_others_can_read(place: Place, file: str, code: int, mode: int) -> None:
    (place.home / file).chmod(mode)
    done = place.run().refused(code, file, "chmod 600")
    assert "can be read by others" in done.err or "others can read" in done.err


def test_a_key_that_is_missing(place: Place) -> None:
    (place.home / "tls.key").unlink()
    place.run().refused(64, "cannot read the key file ", "tls.key: No such file", f"fedhpc site rotate {place.home}")


def test_a_signing_key_that_is_missing_or_another(place: Place) -> None:
    other = place.enrolled.site_file("bb").parent / "sign.key"
    (place.home / "sign.key").write_bytes(other.read_bytes())
    place.run().refused(77, "the key file of site aa has the public key ", f"fedhpc site rotate {place.home}")
    (place.home / "sign.key").unlink()
    place.run().refused(74, "cannot read the key file ", f"fedhpc site rotate {place.home}")


# --- who has agreed to what


def test_a_configuration_that_this_site_did_not_approve(place: Place) -> None:
    approved = (place.home / "approvals" / "present").read_text().strip()
    edit(place.federation, "lr = 0.1", "lr = 0.5")
    done = place.run().refused(77, "is not the one that this site approved", f"approved {approved} (epoch 0), given ")
    assert "they differ in train.lr (0.1, now 0.5)" in done.err, done.text
    assert "fedhpc site approve" in done.err


def test_a_roster_that_this_site_did_not_approve(place: Place) -> None:
    text = place.federation.read_text()
    entries = [block for block in text.split("[[site]]") if 'name = "cc"' in block]
    given = entries[0].split('tls = "')[1][:64]
    place.federation.write_text(text.replace(given, "ab" * 32))
    done = place.run().refused(
        77, "is not the one that this site approved", f"they differ in site.cc.tls ({given[:16]}"
    )
    assert "ab" * 8 in done.err, done.text


def test_a_site_that_approved_nothing(place: Place) -> None:
    shutil.rmtree(place.home / "approvals")
    place.run().refused(77, "this site has not approved the configuration ", "fedhpc site approve")


def test_an_approval_that_was_changed(place: Place) -> None:
    (copy,) = (place.home / "approvals").glob("*.toml")
    copy.write_text(copy.read_text() + "\n")
    place.run().refused(74, f"{copy.name} was changed after it was approved")


def test_sites_that_have_not_signed(place: Place) -> None:
    config = (place.home / "approvals" / "present").read_text().strip()
    place.run().refused(69, f"site bb, cc has not signed the configuration {config}", "fedhpc site approve")


def test_a_signature_that_is_not_the_sites(place: Place) -> None:
    """bb's CONFIG at the relay is a signature by nobody: aa names bb and does nothing else."""
    config = bytes.fromhex((place.home / "approvals" / "present").read_text().strip())
    aa = next((place.home / "approvals").glob("*.json")).read_bytes()
    with spoilt_relay(place) as port:
        for number, name in ((2, "bb"), (3, "cc")):
            message = aa.replace(b'"from":1', b'"from":%d' % number)
            assert message != aa
            client = RelayClient(access(place.enrolled, name, port), patience=Patience(5.0))
            RelayExchange(client, config, number).put(0, 0, "CONFIG", message)
            client.close()
        place.exchange(f'url = "https://127.0.0.1:{port}"')
        place.run().refused(77, "bb")


# --- the relay


@contextlib.contextmanager
def spoilt_relay(place: Place, *changes: tuple[str, str], roster: Callable[[str], str] = str) -> Iterator[int]:
    """A relay like the module's with an empty store, after changes of its relay.toml and roster; its port."""
    folder, port = place.home.parent / "relay", free_port()
    shutil.copytree(place.enrolled.relay.parent, folder, ignore=shutil.ignore_patterns("store"))
    edit(folder / "relay.toml", f'"127.0.0.1:{place.enrolled.port}"', f'"127.0.0.1:{port}"')
    for old, new in changes:
        edit(folder / "relay.toml", old, new)
    (folder / "roster.toml").write_text(roster((folder / "roster.toml").read_text()))
    with relay_of(folder / "relay.toml"):
        yield port


def access(enrolled: Enrolled, name: str, port: int = 0) -> RelayAccess:
    home = enrolled.site_file(name).parent
    pin = Issued(b"", (enrolled.relay.parent / "relay.pem").read_bytes()).pin()
    return RelayAccess(f"https://127.0.0.1:{port or enrolled.port}", pin, home / "tls.pem", home / "tls.key")


def test_a_relay_that_cannot_be_reached(place: Place) -> None:
    port = free_port()
    place.exchange(f'url = "https://127.0.0.1:{port}"')
    done = place.run().refused(69, f"the relay https://127.0.0.1:{port} cannot be reached: ", "refused", "for 2 s")
    assert f"waiting for the relay (127.0.0.1:{port}: Connection refused)" in done.err, done.text
    assert "next try in " in done.err
    assert "giving up in " in done.err


def test_a_relay_that_says_nothing(place: Place) -> None:
    with answering(lambda peer: None) as port:
        place.exchange(f'url = "https://127.0.0.1:{port}"')
        place.run().refused(69, f"the relay https://127.0.0.1:{port} cannot be reached: ")


def test_a_relay_that_speaks_no_tls(place: Place) -> None:
    with answering(lambda peer: peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        place.exchange(f'url = "https://127.0.0.1:{port}"')
        done = place.run().refused(69, f"the relay https://127.0.0.1:{port} cannot be reached: TLS: ")
        assert "waiting for the relay" not in done.err, "it ends at once"


def test_a_relay_with_another_key(place: Place) -> None:
    other = issue_new(place.authority, "relay")
    other.write(place.home.parent, "other")
    changes = [('"relay.pem"', f'"{place.home.parent}/other.pem"'), ('"relay.key"', f'"{place.home.parent}/other.key"')]
    agreed = place.federation.read_text().split('tls = "')[1][:64]
    with spoilt_relay(place, *changes) as port:
        place.exchange(f'url = "https://127.0.0.1:{port}"')
        done = place.run().refused(77, f"has the key {other.pin().hex()}, the configuration says {agreed}")
        assert "somebody is in between" in done.err


def test_a_relay_whose_certificate_has_ended(place: Place) -> None:
    key = place.enrolled.relay.parent / "relay.key"
    old = place.home.parent / "old.pem"
    old.write_bytes(issue(place.authority, new_request(key.read_bytes(), "relay"), 1.0, ago(30)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(old, key)

    def answer(peer: socket.socket) -> None:
        with context.wrap_socket(peer, server_side=True) as sock:
            sock.recv(1)

    with answering(answer) as port:
        place.exchange(f'url = "https://127.0.0.1:{port}"')
        place.run().refused(77, "the relay's certificate ended on ", "or the clock here is wrong")
    relay = place.home.parent / "relay"
    shutil.copytree(place.enrolled.relay.parent, relay, ignore=shutil.ignore_patterns("store"))
    edit(relay / "relay.toml", '"relay.pem"', f'"{old}"')
    done = call([*FEDHPC, "relay", "serve", relay / "relay.toml"], timeout=60)
    done.refused(64, f"the certificate {old} expired on ")


def test_a_federation_that_the_relay_does_not_know(place: Place) -> None:
    with spoilt_relay(place, roster=lambda text: "") as port:
        place.exchange(f'url = "https://127.0.0.1:{port}"')
        place.run().refused(77, "the relay refused (403 forbidden)", "is no site of federation ")


def test_a_site_whose_key_was_revoked(place: Place) -> None:
    def without_aa(text: str) -> str:
        kept = [line for line in text.splitlines() if not line.strip().startswith(("1 =", '"1" ='))]
        if len(kept) == len(text.splitlines()):  # sites = { 1 = "…", … } on one line
            before, _, after = text.partition("1 = ")
            return before + after.partition(", ")[2]
        return "\n".join(kept)

    with spoilt_relay(place, roster=without_aa) as port:
        place.exchange(f'url = "https://127.0.0.1:{port}"')
        place.run().refused(77, "the relay refused (403 forbidden)", "is no site of federation ")


# --- a proxy


def proxy_that_says(words: bytes, more: bytes = b"") -> Callable[[socket.socket], None]:
    def answer(peer: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            data = peer.recv(4096)
            if not data:
                return
            head += data
        peer.sendall(words)
        while more:
            peer.sendall(more)

    return answer


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (proxy_that_says(b"HTTP/1.1 403 Forbidden\r\n\r\n"), ["refused to connect to 127.0.0.1:", "403 Forbidden"]),
        (
            proxy_that_says(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"),
            ["refused to connect", " 407 ", "http://user:password@host:port"],
        ),
        (
            proxy_that_says(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n\r\n"),
            ["waiting for the relay (127.0.0.1:", "cannot be reached: the proxy 127.0.0.1:", "503 ", "for 2 s"],
        ),
        (proxy_that_says(b"\x1b[2J\x00rubbish\r\n\r\n"), ["is not an HTTP proxy", "?[2J?rubbish"]),
        (proxy_that_says(b"", b"x" * 65536), ["is not an HTTP proxy", "xxx"]),
        (proxy_that_says(b""), ["cannot be reached: the proxy 127.0.0.1:", "it closed the connection", "for 2 s"]),
        (
            proxy_that_says(b"HTTP/1.1 200 OK\r\n\r\nthis is no TLS"),
            ["cannot be reached: TLS: ", "does not speak TLS ("],
        ),
    ],
    ids=["forbidden", "password", "busy", "rubbish", "endless", "silent", "no TLS behind it"],
)
def test_a_proxy_that_does_not_connect(place: Place, answer: Callable[[socket.socket], None], words: list[str]) -> None:
    with answering(answer) as port:
        place.exchange(f'proxy = "http://127.0.0.1:{port}"')
        done = place.run().refused(69, *words)
        assert ("for 2 s" in words) == ("waiting for the relay" in done.err), done.text
        assert "\x1b" not in done.err, "what a proxy sends does not reach the terminal as it is"


def test_the_proxy_of_the_environment(place: Place) -> None:
    text = place.site_file.read_text()
    place.site_file.write_text(text.replace('proxy = ""\n', ""))
    with answering(proxy_that_says(b"HTTP/1.1 403 Forbidden\r\n\r\n")) as port:
        env = {"HTTPS_PROXY": f"http://someone:secret@127.0.0.1:{port}", "NO_PROXY": "", "no_proxy": ""}
        done = place.run(env=env).refused(69, f"the proxy 127.0.0.1:{port} refused to connect to ", "HTTPS_PROXY")
        assert "secret" not in done.err, "passwords stay out of messages"


# --- site.toml


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('certificate = "tls.pem"\n', "", ['kind = "https" needs url, certificate and key', "fedhpc site init"]),
        ('key = "tls.key"\n', "", ['kind = "https" needs url, certificate and key']),
        ("url = ", "address = ", ["exchange: unknown key 'address'"]),
        ('url = "https:', 'url = "http:', ["the relay's address is not https://host:port"]),
        ("url = ", 'url = "https://relay" # ', ["the relay's address is not https://host:port"]),
        ('proxy = ""', 'proxy = "socks5://127.0.0.1:1080"', ["the proxy's address is not http://host:port"]),
        ('kind = "https"', 'kind = "http"', ["exchange.kind = 'http' is not one of 'mpi', 'https'"]),
        ("patience_s = 2.0", "patience_s = 0.0", ["exchange.patience_s = 0.0", "1 second to 7 days"]),
        ("patience_s = 2.0", "connections = 0", ["exchange.connections = 0", "1 to 16"]),
        ('name = "aa"', 'name = "zz"', ["site 'zz' is not in the roster", "aa, bb, cc"]),
    ],
)
def test_mistakes_in_the_site_file(place: Place, old: str, new: str, words: list[str]) -> None:
    edit(place.site_file, old, new)
    place.run().refused(64, *words)


def test_two_processes_for_one_site(place: Place) -> None:
    """The second one is refused at once and the first goes on."""
    with answering(lambda peer: peer.recv(1 << 20) and peer.recv(1)) as port:  # a relay that never gets ready
        place.exchange(f'url = "https://127.0.0.1:{port}"')
        place.exchange("patience_s = 60.0")
        with start(place.words()) as first:
            runs = place.home / "ledger" / "runs"
            until(lambda: any(map(is_locked, runs.glob("*.lock"))), 60, "the first run's lock")
            place.run().refused(
                74, f"another run is using {place.home.parent / 'run' / 'aa'}", "federation next --again"
            )
            assert first.process.poll() is None, "the first run goes on"


def is_locked(path: Path) -> bool:
    import fcntl

    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


# --- relay.toml and the roster file


RELAY_FAULTS = [
    ("relay.toml", "[relay]", "[realy]", ["unknown key 'realy'"]),
    ("relay.toml", "store = ", "stor = ", ["relay: unknown key 'stor'", "did you mean 'store'?"]),
    ("relay.toml", "listen = ", 'listen = "everywhere" # ', ["relay.listen = 'everywhere' is not host:port"]),
    ("relay.toml", "listen = ", 'listen = "127.0.0.1:99999" # ', ["relay.listen = '127.0.0.1:99999' is not host:port"]),
    ("relay.toml", "admin = ", 'admin = "0.0.0.0:9443" # ', ["relay.admin must be on loopback"]),
    ("relay.toml", "listen = ", "listen = 8443 # ", ["relay.listen = 8443 has the wrong type"]),
    ("relay.toml", '["authority.pem"]', "[]", ["relay.client_authorities is empty"]),
    ("relay.toml", '["authority.pem"]', '["nowhere.pem"]', ["nowhere.pem"]),
    ("relay.toml", '"relay.pem"', '"roster.toml"', ["roster.toml"]),
    ("relay.toml", '"relay.key"', '"missing.key"', ["missing.key"]),
    ("relay.toml", "tokens = ", "# tokens = ", ["relay.tokens and relay.enrolment go together"]),
    ("relay.toml", "[relay]", "[limits]\nhead_s = 0.0\n[relay]", ["limits.head_s must be above zero"]),
    ("relay.toml", "[relay]", "[limits]\nheads = 1\n[relay]", ["limits: unknown key 'heads'"]),
    ("relay.toml", "[relay]", "[relay", ["relay.toml", "line "]),
    ("roster.toml", "bytes = ", "bytes = -1 # ", ["roster.toml", "bytes and objects must be above zero"]),
    ("roster.toml", "bytes = ", "byte = ", ["roster.toml", "unknown key 'byte'"]),
    ("roster.toml", "threshold = ", "threshold = 9 # ", ["roster.toml", "threshold = 9 of 3 sites"]),
    ("roster.toml", "bytes = ", "bytes ", ["roster.toml", "line "]),
]


@pytest.mark.parametrize(("file", "old", "new", "words"), RELAY_FAULTS)
def test_mistakes_in_the_relays_files(
    enrolled: Enrolled, tmp_path: Path, file: str, old: str, new: str, words: list[str]
) -> None:
    folder = tmp_path / "relay"
    shutil.copytree(enrolled.relay.parent, folder, ignore=shutil.ignore_patterns("store"))
    edit(folder / "relay.toml", f'"127.0.0.1:{enrolled.port}"', '"127.0.0.1:0"')
    edit(folder / file, old, new)
    call([*FEDHPC, "relay", "serve", folder / "relay.toml"], timeout=60).refused(64, *words)


def test_a_relays_key_of_another_pair(enrolled: Enrolled, tmp_path: Path) -> None:
    folder = tmp_path / "relay"
    shutil.copytree(enrolled.relay.parent, folder, ignore=shutil.ignore_patterns("store"))
    edit(folder / "relay.toml", '"relay.pem"', '"authority.pem"')
    done = call([*FEDHPC, "relay", "serve", folder / "relay.toml"], timeout=60)
    done.refused(77, "do not fit", "put back the pair")


def test_a_relays_key_that_others_can_read(enrolled: Enrolled, tmp_path: Path) -> None:
    folder = tmp_path / "relay"
    shutil.copytree(enrolled.relay.parent, folder, ignore=shutil.ignore_patterns("store"))
    (folder / "relay.key").chmod(0o644)
    call([*FEDHPC, "relay", "serve", folder / "relay.toml"], timeout=60).refused(64, "others can read", "chmod 600")


def test_two_relays_on_one_store_and_on_one_port(enrolled: Enrolled, tmp_path: Path) -> None:
    call([*FEDHPC, "relay", "serve", enrolled.relay], timeout=60).refused(74, "another relay uses the store ")
    folder = tmp_path / "relay"
    shutil.copytree(enrolled.relay.parent, folder, ignore=shutil.ignore_patterns("store"))
    done = call([*FEDHPC, "relay", "serve", folder / "relay.toml"], timeout=60)
    done.refused(64, f"cannot listen on 127.0.0.1:{enrolled.port}: Address already in use")


# --- a site that says something else than the others


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("case", "fields"), [("another name", "another layout than"), ("another shape", "another layout, tensors than")]
)
def test_a_layout_that_is_not_the_others(tmp_path: Path, case: str, fields: str) -> None:
    """bb sums other tensors: it is told which field of the proposal differs, and sends nothing of its vector."""
    made = enrol(tmp_path, "three", SECTIONS, dict.fromkeys(NAMES, tmp_path / "no-data"))
    script = ROOT / "tests" / "mpi" / "sum_ranks.py"
    with relay_of(made.relay), contextlib.ExitStack() as stack:
        jobs = {
            name: stack.enter_context(
                start(mpi_words(1, [script, made.federation, "site", made.site_file(name), case], guarded=False))
            )
            for name in NAMES
        }
        done = jobs["bb"].finish(60).refused(77, f"the relay proposes {fields} this site has")
        assert "at: site bb" in done.err, done.text
    assert not list((made.relay.parent / "store").rglob("M3v.2*")), "nothing of the vector left the site"


def test_what_is_no_vector_of_the_round(place: Place) -> None:
    """What no site may send in a round that runs: too early, too long, in an attempt that is not open, for another."""
    config = bytes.fromhex((place.home / "approvals" / "present").read_text().strip())
    ready = {"base": "00" * 32, "everyone": 0, "layout": "11" * 32, "purpose": "test", "state": "22" * 32}
    lanes = BLOCK_BYTES // 4 + 16
    length = 4 * lanes
    with spoilt_relay(place) as port, contextlib.ExitStack() as stack:
        sites = {}
        for number, name in enumerate(NAMES, start=1):
            client = RelayClient(access(place.enrolled, name, port), patience=Patience(5.0))
            stack.callback(client.close)
            sites[number] = RelayExchange(client, config, number)
            sites[number].put(1, 0, "READY", canon(ready | {"tensors": [[32, lanes]]}))
        watch = sites[1].watch(1, 0)
        assert watch.wait(lambda w: "A1" in w, deadline=time.monotonic() + 30, until=("DONE", 1))
        client, vector = sites[1].client, sites[1].name(1, 1, "M3v/1")
        with pytest.raises(PolicyError, match=r"403 forbidden.*site 1 sent M3v, but is not in the set that may"):
            client.upload(vector, length).write(0, memoryview(bytes(length)))  # no set was closed yet
        assert client.missing(vector) is None, "nothing of it is kept"
        with pytest.raises(RelayProblem, match=r"413 too-large.*M1 has at most"):
            sites[1].put(1, 1, "M1", bytes(1 << 20))
        with pytest.raises(PolicyError, match=r"403 forbidden.*attempt 2 of round 1 was not proposed"):
            sites[1].put(1, 2, "M1", b"{}")
        with pytest.raises(PolicyError, match=r"403 forbidden.*site 1 may not write M1/2"):
            client.put(sites[1].name(1, 1, "M1/2"), b"{}")
        with pytest.raises(PolicyError, match=r"403 forbidden.*there is no message M7"):
            sites[1].put(1, 1, "M7", b"{}")
