"""Receivers of messages and pings: a mail server and a web server on this machine, which keep what they get."""

from __future__ import annotations

import base64
import email
import email.policy
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session


@dataclass
class Mailbox:
    """A mail server that wants a password. mails: what arrived, the oldest first."""

    port: int = 0
    user: str = "bob"
    password: str = "hunter22pass"
    mails: list[EmailMessage] = field(default_factory=list)

    @property
    def url(self) -> str:
        """As Apprise writes it."""
        return f"mailto://{self.user}:{self.password}@127.0.0.1:{self.port}/?from=crm@example.org&to=ops@example.org"

    @property
    def subjects(self) -> list[str]:
        return [str(mail["Subject"]) for mail in self.mails]

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's
        assert session.authenticated
        content = envelope.original_content
        assert content is not None
        message = email.message_from_bytes(content, policy=email.policy.default)
        assert isinstance(message, EmailMessage)
        self.mails.append(message)
        return "250 OK"

    def authenticate(self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
        right = isinstance(data, LoginPassword) and (data.login, data.password) == (
            self.user.encode(),
            self.password.encode(),
        )
        return AuthResult(success=right)


class _Controller(Controller):
    def _trigger_server(self) -> None:
        # It looks whether the server answers, at a port that the system has chosen only now.
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


@contextmanager
def mailbox() -> Iterator[Mailbox]:
    """A mail server for as long as the block lasts."""
    box = Mailbox()
    controller = _Controller(box, hostname="127.0.0.1", port=0, auth_require_tls=False, authenticator=box.authenticate)
    controller.start()
    try:
        box.port = controller.port
        yield box
    finally:
        controller.stop()


@dataclass(frozen=True)
class Request:
    """One POST. user: as the client gave it, with its password."""

    path: str
    body: str
    user: str

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


@dataclass
class Webhook:
    """A web server. answers: status by path, 200 for others; None keeps the client waiting until the end."""

    port: int = 0
    requests: list[Request] = field(default_factory=list)
    answers: dict[str, int | None] = field(default_factory=dict)
    arrived: threading.Condition = field(default_factory=threading.Condition)
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def paths(self) -> list[str]:
        return [request.path for request in self.requests]

    def wait_for(self, path: str, seconds: float = 60) -> None:
        """Until a request for that path is there."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: path in self.paths, seconds), f"no {path} in {self.paths}"


@contextmanager
def webhook() -> Iterator[Webhook]:
    """A web server for as long as the block lasts."""
    hook = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            user = base64.b64decode((self.headers.get("Authorization") or "").partition(" ")[2]).decode()
            with hook.arrived:
                hook.requests.append(Request(self.path, body, user))
                hook.arrived.notify_all()
            status = hook.answers.get(self.path, 200)
            if status is None:
                hook.over.wait()
                return
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hook.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hook
    finally:
        hook.over.set()
        server.shutdown()
        thread.join()
        server.server_close()
