"""The relay's public port: TLS 1.3, one thread a connection, caps on everything.

Threads on blocking TLS sockets were chosen by measurement (docs/relay-transport.md): a body is decrypted straight into
the block it is hashed and written from, hashing, crypto and disk run outside the interpreter's lock, and a connection
that waits costs about a hundred kilobytes.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import logging
import resource
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fedhpc.errors import ConfigError, StorageError
from fedhpc.relay.http.census import Census, Ticket
from fedhpc.relay.http.connection import Connection, Hangup
from fedhpc.relay.http.mailbox import Mailbox
from fedhpc.relay.http.routes import Routes
from fedhpc.relay.http.tls import handshake_failure, let_read, tls_context
from fedhpc.relay.metrics import Metrics
from fedhpc.relay.problems import Problem
from fedhpc.relay.rounds.round_threads import Coordinator
from fedhpc.relay.settings import Limits, RelaySettings, read_roster, split_address
from fedhpc.relay.store.object_store import Store
from fedhpc.wire.certificate_times import utc
from fedhpc.wire.pins import pin_of, read_der

_log = logging.getLogger("fedhpc.relay")
_STACK_BYTES = 512 << 10
_LOOK_S = 2.0  # how often the roster's file is looked at


class RelayServer:
    """A relay that listens. `serve` runs until `stop`; `reload` reads the roster again."""

    def __init__(
        self,
        settings: RelaySettings,
        limits: Limits,
        coordinator: Callable[[Store, Metrics], Coordinator] = Coordinator,
    ) -> None:
        """`coordinator`: makes what runs the rounds, from the store and where it counts."""
        self._settings, self._limits = settings, limits
        self._context = tls_context(settings)
        self._roster_seen = _stamp(settings.roster)
        self.roster = read_roster(settings.roster)
        self.store = Store(settings.store, settings.reserve_bytes)
        self.metrics = Metrics()
        self.rounds = coordinator(self.store, self.metrics)
        self.routes = Routes(self.store, lambda: self.roster, limits, self.rounds)
        self.rounds.update(self.roster)
        if settings.tokens and settings.enrolment:
            self.routes.mailbox = Mailbox(settings.tokens, settings.enrolment, limits)
        self._lock = threading.Lock()  # for `_ends` and `_idle`, which every connection's thread changes
        self._ends: dict[bytes, datetime.datetime] = {}
        self.roster_error = ""
        self._census = Census(limits, lambda: self.metrics.count("connections_evicted_total"))
        _raise_file_limit(limits.connections)
        try:
            host, port = split_address(settings.listen, "relay.listen")
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.create_server((host, port), family=family, backlog=128)
        except OSError as error:
            self.store.close()
            words = (error.strerror or str(error)).partition(" (")[0]  # Python repeats the address there
            hint = "another program has the port; another relay?" if error.errno == errno.EADDRINUSE else ""
            raise ConfigError(f"cannot listen on {settings.listen}: {words}", hint) from None
        self.port: int = self._listener.getsockname()[1]
        self._stopping = threading.Event()
        self._idle: set[Connection] = set()  # between two requests
        self._look = threading.Event()
        self._stop_asked = self._reload_asked = False  # by signal handlers, see `stop`

    def serve(self) -> None:
        """Accept connections until `stop`, then let running requests end for at most `drain_s`."""
        threading.stack_size(_STACK_BYTES)
        threading.Thread(target=self._sweep, name="sweep", daemon=True).start()
        self.rounds.start()
        threading.Thread(target=self._watch, name="roster", daemon=True).start()
        self._listener.settimeout(0.5)
        while not self._stop_asked:
            if self._reload_asked:
                self._look.set()
            try:
                plain, address = self._listener.accept()
            except TimeoutError:
                continue
            except OSError as error:  # out of files: let some end
                if not self._stop_asked:
                    _log.warning("cannot accept: %s", error)
                    time.sleep(0.1)
                continue
            ticket = self._census.enter(address[0], plain)
            if ticket is None:
                self.metrics.count("connections_refused_total")
                plain.close()
                continue
            try:
                threading.Thread(target=self._connection, args=(plain, address[0], ticket), daemon=True).start()
            except RuntimeError:
                plain.close()
                self._census.leave(ticket)
        for event in (self._stopping, self.routes.stopping, self._look):
            event.set()
        self._listener.close()
        self.rounds.stop()
        deadline = time.monotonic() + self._limits.drain_s
        while self._census.total() and time.monotonic() < deadline:
            self.store.wake_all()
            self._hurry_idle()
            time.sleep(0.05)
        self.store.close()

    def stop(self) -> None:
        """End `serve`, within half a second; safe in a signal handler.

        A handler may run inside another in the same thread, so it must take no lock, and setting an Event takes one.
        """
        self._stop_asked = True

    def reload(self) -> None:
        """Read the roster again, in a moment; safe in a signal handler."""
        self._reload_asked = True

    @property
    def connections(self) -> int:
        """How many connections there are now."""
        return self._census.total()

    def certificate_ends(self) -> dict[bytes, datetime.datetime]:
        """When the certificates of known keys end, by pin, as last shown."""
        with self._lock:
            return dict(self._ends)

    # --- one connection, in its own thread

    def _connection(self, plain: socket.socket, address: str, ticket: Ticket) -> None:
        try:
            with plain:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                plain.settimeout(self._limits.handshake_s)
                sock = self._handshake(plain, address, ticket)
                if sock is None:
                    return
                shown, expires = self._identify(sock)
                connection = Connection(sock, self._limits)
                try:
                    roster = self.roster
                    known = shown is not None and roster.knows(shown)
                    if shown is not None and known:
                        self._remember(shown, expires)
                        if not self._census.prove(ticket, shown, roster.keys):
                            self._refuse(connection, shown)
                            return
                    self._requests(connection, shown, expires, address, self._limits.idle_s if known else None)
                finally:
                    self._count_bytes(connection)
                    self._census.holds(ticket, None)
                    connection.close()
        except Exception:
            _log.exception("%s: a connection failed", address)
        finally:
            self._census.leave(ticket)

    def _handshake(self, plain: socket.socket, address: str, ticket: Ticket) -> ssl.SSLSocket | None:
        """TLS on `plain`, or None where that fails."""
        try:
            sock = self._context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
        except (OSError, ValueError):
            return None
        self._census.holds(ticket, sock)
        try:
            sock.do_handshake()
        except (OSError, ValueError) as error:
            self.metrics.count("handshakes_failed_total")
            _log.info("%s: handshake failed: %s", address, "evicted" if ticket.evicted else handshake_failure(error))
            let_read(sock)
            self._census.holds(ticket, None)
            sock.close()
            return None
        self._census.shaken(ticket)
        return sock

    def _identify(self, sock: ssl.SSLSocket) -> tuple[bytes | None, datetime.datetime]:
        """The pin of the peer's certificate, already verified by TLS, and when the certificate ends."""
        der = sock.getpeercert(binary_form=True)
        if not der:
            return None, datetime.datetime.max.replace(tzinfo=datetime.UTC)
        certificate = read_der(der)
        return pin_of(certificate), certificate.not_valid_after_utc

    def _refuse(self, connection: Connection, pin: bytes) -> None:
        self.metrics.count("connections_refused_total")
        with contextlib.suppress(OSError, ValueError):
            most = self._limits.connections_per_site
            connection.send_problem(Problem("too-many-connections", f"{pin.hex()[:16]} has {most}", close=True))

    def _requests(
        self,
        connection: Connection,
        pin: bytes | None,
        expires: datetime.datetime,
        address: str,
        idle_s: float | None,
    ) -> None:
        """`idle_s`: how long a known site may say nothing; None: a stranger, who speaks at once or leaves."""
        idle_s = idle_s or self._limits.head_s
        while not self._stopping.is_set():
            status, method, keep = 200, "-", False
            begun = time.perf_counter()
            head_only = False
            try:
                with self._waits(connection):
                    head = connection.read_head(idle_s)
                begun, method, head_only = time.perf_counter(), head.method, head.method == "HEAD"
                if datetime.datetime.now(datetime.UTC) > expires:
                    words = f"the certificate has expired: it ended on {utc(expires)} by the relay's clock"
                    raise Problem("forbidden", words, close=True)
                self.routes.answer(connection, head, pin)
                keep = head.keep
            except Problem as problem:
                status = problem.status
                _log.info("%s %s: %d %s: %s", address, method, status, problem.kind, problem.detail)
                with contextlib.suppress(OSError, ValueError):
                    keep = connection.send_problem(problem, bare=head_only)
                if not keep:
                    connection.linger()
            except (Hangup, ConnectionError, TimeoutError, ssl.SSLError):
                return
            except Exception:
                status = 500
                _log.exception("%s %s: the request failed", address, method)
                if not connection.answering:  # else a short answer tells the peer
                    with contextlib.suppress(OSError, ValueError):
                        connection.send_problem(Problem("internal", "see the relay's log", close=True))
            self.metrics.count_request(method, status, time.perf_counter() - begun)
            self._count_bytes(connection)
            if not keep:
                return

    @contextlib.contextmanager
    def _waits(self, connection: Connection) -> Iterator[None]:
        """While it lasts, a relay that stops may cut the connection."""
        with self._lock:
            self._idle.add(connection)
        try:
            yield
        finally:
            with self._lock:
                self._idle.discard(connection)

    def _hurry_idle(self) -> None:
        with self._lock:
            idle = list(self._idle)
        for connection in idle:
            connection.hurry()

    def _remember(self, pin: bytes, expires: datetime.datetime) -> None:
        with self._lock:
            self._ends[pin] = expires

    def _count_bytes(self, connection: Connection) -> None:
        """What has moved since the last time: connections last for days."""
        self.metrics.count("received_bytes_total", connection.bytes_in)
        self.metrics.count("sent_bytes_total", connection.bytes_out)
        connection.bytes_in = connection.bytes_out = 0

    def _watch(self) -> None:
        """Read the roster again when told to or when its file is another: federations come while the relay runs.

        Revoked pins lose every next request. A damaged roster keeps the old one.
        """
        while not self._stopping.is_set():
            self._look.wait(_LOOK_S)
            self._look.clear()
            stamp = _stamp(self._settings.roster)
            if not self._reload_asked and stamp == self._roster_seen:
                continue
            self._reload_asked, self._roster_seen = False, stamp
            try:
                self.roster, self.roster_error = read_roster(self._settings.roster), ""
                self.rounds.update(self.roster)
                _log.info("roster read: %d federations", len(self.roster.federations))
            except ConfigError as error:
                self.roster_error = error.what
                _log.error("roster not read, the old one stays: %s", error.what)

    def _sweep(self) -> None:
        while not self._stopping.wait(60.0):
            removed = self.store.expire_uploads(self._limits.upload_idle_s)
            if removed:
                _log.info("%d idle uploads removed", removed)


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes when a file is written or replaced; empty if it is not there."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _raise_file_limit(connections: int) -> None:
    """Room for every connection and upload."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192 if hard == resource.RLIM_INFINITY else min(8192, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if max(soft, wanted) < 2 * connections:
        raise StorageError(f"only {max(soft, wanted)} open files are allowed", "raise LimitNOFILE (ulimit -n)")
