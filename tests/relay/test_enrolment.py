"""The relay's mailbox over real TLS, and what a certificate from it opens: until it is revoked, swapped or expired."""

from __future__ import annotations

import datetime
import hashlib
import json
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from relay_process import Relay, World, until

from fedhpc.enrolment.certificates import issue, new_authority, new_request
from fedhpc.enrolment.coordinator import Coordinator
from fedhpc.enrolment.mailbox import RelayMailbox
from fedhpc.enrolment.one_machine import enrol, running_relay
from fedhpc.enrolment.relay import admit
from fedhpc.enrolment.site import SiteFolder
from fedhpc.errors import PeersError, PolicyError
from fedhpc.secure.join_request import access_hash, new_token, split_token
from fedhpc.transport.https.client import RelayClient
from fedhpc.transport.https.link import RelayAccess
from fedhpc.transport.https.retry import Patience
from fedhpc.wire.object_names import ObjectName

TOKENS = {name: split_token(new_token()) for name in ("aa", "bb")}


class Box:
    """A relay with a mailbox for aa and bb."""

    def __init__(self, new_relay: Callable[..., Relay], tmp_path: Path) -> None:
        self.folder, self.tokens = tmp_path / "box", tmp_path / "tokens.toml"
        self.folder.mkdir()
        self.invite(*TOKENS)
        self.relay = new_relay(extra=f'tokens = "{self.tokens}"\nenrolment = "{self.folder}"')

    def invite(self, *names: str) -> None:
        self.tokens.write_text("".join(f'{name} = "{access_hash(TOKENS[name].access)}"\n' for name in names))

    def ask(
        self,
        method: str,
        name: str = "aa",
        body: bytes = b"",
        token: str | None = None,
        query: str = "",
        more: str = "",
    ) -> tuple[int, str]:
        token = TOKENS["aa"].access if token is None else token
        length = f"\ncontent-length: {len(body)}" if body else ""
        head = f"{method} /v1/enrolment/{name}{query} HTTP/1.1\nhost: r\nfedhpc-token: {token}{length}{more}"
        return self.relay.ask(head, body, who="")

    def mailbox(self, name: str = "aa", access: str = "") -> RelayMailbox:
        url = f"https://127.0.0.1:{self.relay.port}"
        return RelayMailbox(url, self.relay.world.relay.pin(), name, access or TOKENS[name].access)

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def box(new_relay: Callable[..., Relay], tmp_path: Path) -> Box:
    return Box(new_relay, tmp_path)


def test_without_the_two_settings_there_is_no_mailbox(relay: Relay) -> None:
    for method in ("GET", "PUT"):
        assert relay.ask(f"{method} /v1/enrolment/aa HTTP/1.1\nhost: r\nfedhpc-token: x", who="")[0] == 401
    assert relay.ask("GET /v1/enrolment/aa HTTP/1.1\nhost: r\nfedhpc-token: x", who="site1")[0] == 404


def test_one_of_the_two_settings_is_refused(new_relay: Callable[..., Relay]) -> None:
    with pytest.raises(AssertionError, match="go together"):
        new_relay(extra='tokens = "tokens.toml"')


def test_a_wrong_name_and_a_wrong_token_get_the_same_answer_and_leave_nothing(box: Box) -> None:
    access = TOKENS["aa"].access
    wrong = [
        ("aa", TOKENS["bb"].access), ("aa", ""), ("aa", access[:-1]), ("aa", access + "0"), ("aa", access.upper()),
        ("aa", access_hash(access)), ("aa", TOKENS["aa"].proof), ("aa", "é"), ("nobody", access), ("", access),
        ("../box/aa", access), ("aa/../aa", access), ("%61a", access), ("aa/", access), ("AA", access),
        ("0" * 300, access),
    ]  # fmt: skip
    answers = {
        box.ask(method, name, body, token)[1].split("\r\n\r\n")[1]
        for name, token in wrong
        for method, body in (("GET", b""), ("PUT", b"x"), ("PUT", b"x" * 70000), ("DELETE", b""))
    }
    assert len(answers) == 1
    assert json.loads(answers.pop())["status"] == 403
    assert box.files() == []
    assert box.relay.ask("GET /v1/enrolment/aa HTTP/1.1\nhost: r", who="")[0] == 403


def test_a_token_opens_the_mailbox_and_nothing_else(box: Box) -> None:
    more = f"\nfedhpc-token: {TOKENS['aa'].access}"
    for path in ("/v1/objects/" + "ab" * 32 + "/1/0/", "/v1/federations/" + "ab" * 32, "/v1/enrolment"):
        assert box.relay.ask(f"GET {path} HTTP/1.1\nhost: r{more}", who="")[0] == 401


def test_sizes_methods_and_queries_are_checked(box: Box) -> None:
    assert box.ask("PUT", body=b"x" * 65537)[0] == 413
    assert box.ask("PUT", more="\ncontent-length: 99999999999")[0] == 413
    assert box.ask("PUT", more="\ncontent-length: 0")[0] == 413
    assert box.ask("PUT")[0] == 411
    assert box.ask("PUT", more="\ntransfer-encoding: chunked")[0] == 411
    assert box.ask("DELETE")[0] == 405
    assert box.ask("GET", body=b"x")[0] == 400
    for query in ("?wait=x", "?wait=-1", "?after=12", "?more=1", "?wait", "?wait=1&wait=x", "?&&&&&&"):
        assert box.ask("GET", query=query)[0] == 400, query
    assert box.files() == []
    assert box.ask("PUT", body=b"x" * 65536)[0] == 201
    assert (box.folder / "aa.request").read_bytes() == b"x" * 65536


def test_the_first_request_binds_the_token(box: Box) -> None:
    def put(number: int) -> int:
        return box.ask("PUT", body=b"request %d" % number)[0]

    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(put, range(8)))
    assert sorted(codes) == [201] + [409] * 7
    won = codes.index(201)
    assert (box.folder / "aa.request").read_bytes() == b"request %d" % won
    assert put(won) == 200
    assert put(9) == 409
    assert box.ask("PUT", "bb", b"other", TOKENS["bb"].access)[0] == 201
    assert box.files() == ["aa.request", "bb.request"]


def test_a_certificate_is_waited_for(box: Box) -> None:
    mailbox = box.mailbox()
    mailbox.send(b"request")
    assert mailbox.certificate(b"", 0.0) is None
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(mailbox.certificate, b"", 60.0)
        until(lambda: "connections 1\n" in box.relay.metrics())
        (box.folder / "aa.tmp").write_bytes(b"first")
        (box.folder / "aa.tmp").rename(box.folder / "aa.pem")
        assert waiting.result(30) == b"first"
        assert mailbox.certificate(b"first", 0.0) is None  # a renewal waits for another one
        again = pool.submit(mailbox.certificate, b"first", 60.0)
        box.relay.stop(signal.SIGKILL)
        box.relay.start()  # on the same port; the site tries again
        (box.folder / "aa.pem").write_bytes(b"second")
        assert again.result(30) == b"second"
    (box.folder / "aa.pem").write_bytes(b"x" * 65537)
    assert mailbox.certificate(b"", 0.0) is None


def test_refusals_reach_the_site_in_words(box: Box, world: World, relay: Relay) -> None:
    with pytest.raises(PolicyError, match=r"403.*invited with this token") as caught:
        box.mailbox("aa", TOKENS["bb"].access).send(b"x")
    assert "fedhpc federation invite" in caught.value.hint
    box.mailbox().send(b"x")
    with pytest.raises(PolicyError, match=r"409.*another request with this token"):
        box.mailbox().send(b"y")
    url = f"https://127.0.0.1:{box.relay.port}"
    with pytest.raises(PolicyError, match="the configuration says"):
        RelayMailbox(url, world.stranger.pin(), "aa", TOKENS["aa"].access).send(b"x")
    with pytest.raises(PolicyError, match="401"):
        RelayMailbox(f"https://127.0.0.1:{relay.port}", world.relay.pin(), "aa", TOKENS["aa"].access).send(b"x")
    with pytest.raises(PeersError, match="cannot be reached"):
        RelayMailbox("https://127.0.0.1:1", world.relay.pin(), "aa", "x").send(b"x", 0.3)


def test_the_wrong_relay_never_sees_the_token(world: World, relay: Relay) -> None:
    access = TOKENS["aa"].access
    before = relay.log_text().count("\n")
    with pytest.raises(PolicyError, match="the configuration says"):
        RelayMailbox(f"https://127.0.0.1:{relay.port}", world.stranger.pin(), "aa", access).send(b"x")
    assert "PUT" not in "\n".join(relay.log_text().split("\n")[before:])
    assert access not in repr(RelayMailbox("https://r:1", world.relay.pin(), "aa", access))


def test_invitations_come_and_go_while_the_relay_runs(box: Box) -> None:
    box.invite("bb")
    assert box.ask("GET")[0] == 403
    box.invite("aa")
    assert box.ask("GET")[0] == 404
    for damaged in ("nonsense", 'aa = "xy"\n', "aa = 1\n", '"../aa" = "%s"\n' % ("ab" * 32)):
        box.tokens.write_text(damaged)
        assert box.ask("GET")[0] == 403
    until(lambda: "tokens not read, nobody can enrol" in box.relay.log_text())
    box.invite("aa")
    assert box.ask("GET")[0] == 404


def test_the_log_holds_no_token(box: Box) -> None:
    box.ask("PUT", body=b"x")
    box.ask("PUT", body=b"y")
    box.ask("GET", token=TOKENS["bb"].access)
    until(lambda: "409 other-bytes" in box.relay.log_text() and "403 forbidden" in box.relay.log_text())
    for token in TOKENS.values():
        assert token.access not in box.relay.log_text()


def test_strangers_who_hang_on_do_not_keep_the_mailbox_from_others(
    new_relay: Callable[..., Relay], tmp_path: Path
) -> None:
    box = Box(lambda **extra: new_relay("connections_without_certificate = 4", **extra), tmp_path)
    held = [box.relay.raw("") for _ in range(4)]
    for connection in held:
        connection.__enter__()
    for connection in held:
        connection.__exit__(None, None, None)
    box.mailbox().send(b"x")  # tries again until one of the four is free


# --- what a certificate opens


SECTIONS = '[cohort]\npolicy = "sync"\n[task]\nname = "logistic"\n'


class Enrolled:
    """Three sites enrolled with a running relay."""

    def __init__(self, folder: Path) -> None:
        data = dict.fromkeys(("aa", "bb", "cc", "dd"), folder / "data.h5")
        self.made = enrol(folder, "heart", SECTIONS, data)
        self.coordinator = Coordinator(folder / "coordinator")
        self.config = hashlib.sha256(self.made.federation.read_bytes()).hexdigest()

    def site(self, name: str) -> SiteFolder:
        return SiteFolder.open(self.made.site_file(name))

    def access(self, name: str, certificate: Path | None = None) -> RelayAccess:
        site = self.site(name)
        pin = bytes.fromhex(site.relay_pin())
        return RelayAccess(site.file.exchange.url, pin, certificate or site.certificate_path, site.tls_path)

    def list(self, name: str, certificate: Path | None = None, config: str = "") -> int:
        """What is in the federation's lobby; raises what the relay refuses."""
        client = RelayClient(self.access(name, certificate), 1, Patience(5.0, 0.05, 0.5))
        try:
            return len(client.listing(config or self.config, 1, 0)[0])
        finally:
            client.close()

    def refused(self, name: str, config: str = "") -> bool:
        try:
            self.list(name, config=config)
        except PolicyError as error:
            return "403 forbidden" in error.what
        return False


@pytest.fixture
def enrolled(tmp_path: Path) -> Iterator[Enrolled]:
    made = Enrolled(tmp_path / "fed")
    with (tmp_path / "relay.log").open("w") as log, running_relay(made.made.relay, log):
        yield made


def test_an_enrolled_site_is_known_until_it_is_revoked(enrolled: Enrolled) -> None:
    for name in enrolled.made.sites:
        assert enrolled.list(name) == 0
    before = enrolled.made.federation.read_bytes()
    lost, granted, _ = enrolled.coordinator.revoke("dd", reinvite=False)
    assert lost == [enrolled.config]
    until(lambda: enrolled.refused("dd"))
    assert not enrolled.refused("aa")
    assert granted is not None
    after = enrolled.made.federation.read_bytes()
    assert after != before
    following = hashlib.sha256(after).hexdigest()
    assert enrolled.refused("aa", following)
    admit(enrolled.made.federation, enrolled.made.relay, quota_bytes=1 << 30, objects=100)
    until(lambda: not enrolled.refused("aa", following))
    assert enrolled.refused("dd", following)
    assert enrolled.refused("dd")


def test_rotated_keys_open_the_next_epoch_only(enrolled: Enrolled) -> None:
    site = enrolled.site("bb")
    site.rotate()
    granted = enrolled.coordinator.admit([enrolled.coordinator.candidate(site.request(None)[0], mailed=True)], 1.0)
    site.take_certificate((enrolled.coordinator.folder / "certificates" / "bb.pem").read_bytes())
    assert enrolled.refused("bb")
    admit(enrolled.made.federation, enrolled.made.relay, quota_bytes=1 << 30, objects=100)
    until(lambda: not enrolled.refused("bb", granted.hash))
    assert enrolled.refused("bb")


def test_expired_unknown_and_swapped_certificates_open_nothing(enrolled: Enrolled, tmp_path: Path) -> None:
    authority = enrolled.coordinator._authority()
    csr = new_request(enrolled.site("aa").keys().tls_key, "aa")
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=9)
    bad = {"expired": issue(authority, csr, 1.0, past), "unknown": issue(new_authority(), csr)}
    for name, pem in bad.items():
        (tmp_path / f"{name}.pem").write_bytes(pem)
        with pytest.raises(PolicyError, match="does not accept this site's certificate"):
            enrolled.list("aa", tmp_path / f"{name}.pem")
    with pytest.raises(PolicyError, match="not for this site's"):
        enrolled.site("aa").take_certificate(enrolled.site("bb").certificate())
    with pytest.raises(Exception, match="do not fit"):
        enrolled.list("aa", enrolled.site("bb").certificate_path)
    assert enrolled.list("aa") == 0
    client = RelayClient(enrolled.access("bb"), 1, Patience(5.0, 0.05, 0.5))
    with pytest.raises(PolicyError, match="403"):  # bb in the place of aa
        client.put(ObjectName(enrolled.config, 1, 0, "READY/1"), b"x")


def test_the_whole_way_through_the_mailbox(enrolled: Enrolled, tmp_path: Path) -> None:
    token = split_token(enrolled.coordinator.invite("ee"))
    pin = enrolled.site("aa").relay_pin()
    site = SiteFolder.new(tmp_path / "ee", "ee", relay=enrolled.made.url, relay_pin=pin, data="d.h5")
    path, data = site.request(token)
    mailbox = site.mailbox(token)
    mailbox.send(data)
    mailbox.send(path.read_bytes())
    assert [p.name for p in enrolled.coordinator.mailbox()] == ["ee.request"]
    candidate = enrolled.coordinator.candidate(enrolled.coordinator.mailbox()[0], mailed=False)
    assert (candidate.kind, candidate.proved) == ("new", True)
    granted = enrolled.coordinator.admit([candidate], 1.0)
    pem = mailbox.certificate(b"", 20.0)
    assert pem is not None
    site.take_certificate(pem)
    admit(enrolled.made.federation, enrolled.made.relay, quota_bytes=1 << 30, objects=100)
    access = RelayAccess(enrolled.made.url, bytes.fromhex(pin), site.certificate_path, site.tls_path)

    def known() -> bool:
        client = RelayClient(access, 1, Patience(5.0, 0.05, 0.5))
        try:
            return client.listing(granted.hash, 1, 0)[0] == []
        except PolicyError:
            return False
        finally:
            client.close()

    until(known)
