"""The process that sends: jobs as JSON on standard input, one line of JSON for each as soon as it is done with it.

Run by `sending.send` only. A text that says why something did not arrive never holds a part of its address.
"""

from __future__ import annotations

import json
import logging
import re
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from crmbackup.core.clock import Clock, SystemClock

#: Pauses before the second and each later try.
PAUSES = (1.0, 3.0, 10.0, 30.0)
PING_SECONDS = 10.0
#: Answers of a server that another try may change.
WORTH_RETRYING = (408, 425, 429, 500, 502, 503, 504)
#: A part of an address that is shorter says nothing, and stands in too many texts.
SECRET_LENGTH = 3
REASON_LENGTH = 300
INSTALL = "a package is missing: pip install 'crmbackup[notify]'"


class Hopeless(Exception):
    """It did not arrive, and another try would not change that."""


class Failed(Exception):
    """It did not arrive this time."""


def main() -> None:
    """Do all jobs at the same time and end when the last is done or the time is over."""
    given = json.load(sys.stdin)
    seconds = float(given["seconds"])
    # Also when whoever started us is gone.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    clock = SystemClock()
    deadline = clock.monotonic() + seconds
    lock = threading.Lock()

    def work(index: int, job: dict[str, Any]) -> None:
        why = attempt(lambda: deliver(job), clock, deadline)
        with lock:
            sys.stdout.write(json.dumps({"index": index, "why": scrub(why, job["url"])}) + "\n")
            sys.stdout.flush()

    threads = [threading.Thread(target=work, args=each, daemon=True) for each in enumerate(given["jobs"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def attempt(once: Callable[[], None], clock: Clock, deadline: float) -> str:
    """Try until it works, is hopeless, or the next try would come too late. Why not, or an empty text."""
    for pause in (*PAUSES, None):
        try:
            once()
            return ""
        except Hopeless as error:
            return str(error)
        except Failed as error:
            why = str(error)
        except ImportError:
            return INSTALL
        except Exception as error:  # noqa: BLE001 - libraries raise anything; their texts may hold addresses
            why = type(error).__name__
        if pause is None or clock.monotonic() + pause >= deadline:
            break
        clock.sleep(pause)
    return why


def deliver(job: dict[str, Any]) -> None:
    """One try. Raises Hopeless, Failed."""
    if job["kind"] == "ping":
        _ping(job["url"], job["body"])
    else:
        _message(job)


def _ping(url: str, body: str | None) -> None:
    import requests

    if not re.match(r"https?://[^/?#]", url):
        raise Hopeless("its address does not begin with http:// or https:// and a host")
    data = None if body is None else body.encode("utf-8")
    try:
        with requests.post(url, data=data, timeout=PING_SECONDS, stream=True) as answer:
            status = answer.status_code
    except requests.Timeout as error:
        raise Failed(f"no answer within {PING_SECONDS:g} s") from error
    except requests.exceptions.SSLError as error:
        raise Failed("the server's certificate is not trusted, or TLS failed") from error
    except requests.ConnectionError as error:
        raise Failed("there is no connection to its host") from error
    except (requests.RequestException, ValueError) as error:
        raise Hopeless(f"its address cannot be used ({type(error).__name__})") from error
    if status >= 400:
        kind = Failed if status in WORTH_RETRYING else Hopeless
        raise kind(f"the server answered {status}")


class _Heard(logging.Handler):
    """Keeps what Apprise says of the failure of this thread."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self.texts.append(record.getMessage())


def _message(job: dict[str, Any]) -> None:
    import apprise

    logger = logging.getLogger("apprise")
    logger.propagate = False
    heard = _Heard()
    logger.addHandler(heard)
    try:
        receiver = apprise.Apprise()
        if not receiver.add(job["url"]):
            raise Hopeless("Apprise does not understand its address; `apprise --details` lists all kinds")
        if not receiver.notify(
            title=job["title"], body=job["body"], notify_type=job["tone"], body_format=apprise.NotifyFormat.TEXT
        ):
            raise Failed("; ".join(heard.texts) or "its service did not take it")
    finally:
        logger.removeHandler(heard)


def scrub(text: str, url: str) -> str:
    """The text without anything of the address but its scheme and what is too short to be a secret."""
    rest = url.partition("://")[2]
    parts = {url, rest, *re.split(r"[/:@?&=#,;+ ]+", rest)}
    parts |= {unquote(part) for part in parts}
    for part in sorted((part for part in parts if len(part) >= SECRET_LENGTH), key=len, reverse=True):
        text = text.replace(part, "***")
    text = " ".join(text.split())
    return text if len(text) <= REASON_LENGTH else text[:REASON_LENGTH] + " ..."


if __name__ == "__main__":
    main()
