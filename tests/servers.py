"""Real servers for tests: SeaweedFS and rclone as S3, and a small HTTP server that misbehaves on demand.

Each is a context manager. A server runs in a directory of its own, on free ports of 127.0.0.1, and dies with the test
process, even when that is killed.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from crmbackup.core.secrets import Secret
from crmbackup.storage.address import Credentials, S3Address

START_SECONDS = 60
STARTS = 3

# The kernel kills the server when its parent dies, so that nothing survives a killed test run (Linux: 1 is
# PR_SET_PDEATHSIG). Done in the child itself, since code between fork and exec is unsafe with threads.
_DIES_WITH_PARENT = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"


@dataclass(frozen=True)
class S3Server:
    """A running S3 server and the keys to it."""

    endpoint: str
    access_key: str
    secret_key: str

    @property
    def credentials(self) -> Credentials:
        return Credentials(Secret(self.access_key), Secret(self.secret_key))

    def make_bucket(self) -> str:
        """The name of a fresh, empty bucket."""
        name = f"test-{secrets.token_hex(8)}"
        self._own_client.create_bucket(Bucket=name)
        return name

    @cached_property
    def _own_client(self):
        """Making one takes longer than making a bucket."""
        return self.client()

    def close(self) -> None:
        """Give back connections."""
        self._own_client.close()

    def address(self, prefix: str = "") -> S3Address:
        """A place in a fresh bucket."""
        return S3Address(self.make_bucket(), prefix, endpoint=self.endpoint)

    def client(self):
        """A boto3 client, to look at the server from outside of the product."""
        import boto3  # most tests need no S3, and it loads slowly
        from botocore.config import Config

        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
        )


@contextmanager
def seaweed_server(directory: Path) -> Iterator[S3Server]:
    """SeaweedFS: an S3 server with an atomic conditional put, whose listings are not in key order."""
    access, secret = secrets.token_hex(10), secrets.token_hex(20)
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    keys = [{"accessKey": access, "secretKey": secret}]
    identities = [{"name": "tests", "credentials": keys, "actions": actions}]
    used: list[int] = []

    def command(place: Path) -> tuple[list[str], int]:
        (place / "s3.json").write_text(json.dumps({"identities": identities}))
        # One volume per bucket instead of seven.
        (place / "master.toml").write_text("[master.volume_growth]\ncopy_1 = 1\n")
        (place / "data").mkdir()
        ports = free_ports(8)
        used.extend(ports)
        names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc")
        names += ("filer.port", "filer.port.grpc", "s3.port", "s3.port.grpc")
        options = {
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "dir": place / "data",
            "filer": "true",
            "filer.localSocket": place / "filer.sock",
            "master.telemetry": "false",
            "master.volumeSizeLimitMB": 64,
            "s3": "true",
            "s3.autoCreateBucket": "false",
            "s3.config": place / "s3.json",
            "s3.localSocket": place / "s3.sock",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "volume.max": 1000,
            "volume.preStopSeconds": 0,
            **dict(zip(names, ports, strict=True)),
        }
        return [_program("weed"), "server", *(f"-{name}={value}" for name, value in options.items())], ports[6]

    try:
        with _running(directory, command) as port, closing(_s3(port, access, secret)) as server:
            yield server
    finally:
        # It leaves these behind, in the system's place, when it is killed; asked to end it takes ten seconds.
        for path in Path(tempfile.gettempdir()).glob("seaweedfs-*-grpc-*.sock"):
            if int(path.stem.rpartition("-")[2]) in used:
                path.unlink(missing_ok=True)


def _s3(port: int, access_key: str, secret_key: str) -> S3Server:
    return S3Server(f"http://127.0.0.1:{port}", access_key, secret_key)


@contextmanager
def rclone_server(directory: Path) -> Iterator[S3Server]:
    """rclone: an S3 server that ignores the condition of a conditional put."""
    access, secret = secrets.token_hex(10), secrets.token_hex(20)

    def command(place: Path) -> tuple[list[str], int]:
        (place / "data").mkdir()
        (port,) = free_ports(1)
        options = ["--config", str(place / "none"), "--addr", f"127.0.0.1:{port}", "--auth-key", f"{access},{secret}"]
        return [_program("rclone"), "serve", "s3", *options, str(place / "data")], port

    with _running(directory, command) as port, closing(_s3(port, access, secret)) as server:
        yield server


def free_ports(count: int) -> list[int]:
    """Different ports of 127.0.0.1 that nobody listens on right now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _program(name: str) -> str:
    """A program that a Python package installed beside the interpreter, or one on the PATH."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    assert found, f"{name} is not installed: install the project's dev group"
    return found


@contextmanager
def _running(directory: Path, command: Callable[[Path], tuple[list[str], int]]) -> Iterator[int]:
    """Start a server and wait until it answers. Another process may take a free port first: then try new ones."""
    for attempt in range(STARTS):
        place = directory / f"start{attempt}"
        place.mkdir(parents=True)
        arguments, port = command(place)
        log = place / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", _DIES_WITH_PARENT, *arguments],
                cwd=place,
                env={"HOME": str(place), "PATH": os.environ["PATH"]},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            if _answers(process, port, log):
                yield port
                return
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            shutil.rmtree(place / "data", ignore_errors=True)
    raise AssertionError(
        f"{arguments[0]} did not start {STARTS} times; the last log:\n{log.read_text(errors='replace')}"
    )


def _answers(process: subprocess.Popen[bytes], port: int, log: Path) -> bool:
    """Whether the server came up; False when it ended by itself."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return False
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return True
        except OSError:
            time.sleep(0.05)  # the condition waited for is outside of this process
    raise AssertionError(f"no answer on port {port} in {START_SECONDS} s; log:\n{log.read_text(errors='replace')}")


@dataclass(frozen=True)
class Request:
    """What the misbehaving server was asked."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class FaultyHttp:
    """What the misbehaving server is to answer, in turn; the last answer is repeated.

    An answer takes the handler and does what it likes with the connection.
    """

    endpoint: str
    answers: list[Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    #: Set when the server goes, for answers that hang.
    stopping: threading.Event = field(default_factory=threading.Event)

    def status(self, code: int, body: bytes = b"", headers: dict[str, str] | None = None):
        """An answer with that status and body."""

        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(code)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                handler.send_header(name, value)
            handler.end_headers()
            if handler.command != "HEAD":
                handler.wfile.write(body)

        return answer

    def error(self, code: int, name: str, text: str = "no"):
        """An error as S3 words it."""
        return self.status(code, f"<Error><Code>{name}</Code><Message>{text}</Message></Error>".encode())

    def cut(self, announced: int, sent: bytes):
        """A body that ends before its announced length."""

        def answer(handler: BaseHTTPRequestHandler) -> None:
            self.status(200, sent, {"Content-Length": str(announced)})(handler)
            handler.close_connection = True

        return answer

    def hang(self, handler: BaseHTTPRequestHandler) -> None:
        """No answer at all, until the server goes."""
        self.stopping.wait()
        handler.close_connection = True

    def reset(self, handler: BaseHTTPRequestHandler) -> None:
        """Closes the connection without an answer."""
        handler.close_connection = True


@contextmanager
def faulty_http() -> Iterator[FaultyHttp]:
    """An HTTP server that gives scripted answers to whatever is asked."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            script.requests.append(Request(self.command, self.path, dict(self.headers)))
            (script.answers.pop(0) if len(script.answers) > 1 else script.answers[0])(self)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer  # noqa: N815 - names that http.server looks for

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    script = FaultyHttp(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield script
    finally:
        script.stopping.set()
        server.shutdown()
        thread.join()
        server.server_close()
