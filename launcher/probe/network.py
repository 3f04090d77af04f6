"""Which servers this host reaches, and whether a key for W&B lies here (which is never read out)."""

from __future__ import annotations

import base64
import contextlib
import http.client
import netrc
import os
import socket
import ssl
import threading
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Server:
    """A server of the world outside. `what` says what it is for, `url` where it is."""

    name: str
    what: str
    url: str

    @property
    def host(self) -> str:
        """Host and port, without what else an address may hold."""
        parts = urllib.parse.urlsplit(self.url)
        with contextlib.suppress(ValueError):
            return (parts.hostname or "") + (f":{parts.port}" if parts.port else "")
        return parts.hostname or ""


def servers() -> list[Server]:
    """The servers that graft may ask, as the environment moves them."""
    return [
        Server("W&B", "curves are sent there", os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"),
        Server("hub", "weights and data come from there", os.environ.get("HF_ENDPOINT") or "https://huggingface.co"),
        Server("torch", "torchvision's weights come from there", "https://download.pytorch.org"),
    ]


def reach(url: str, timeout: float = 5.0) -> str:
    """Connect (TCP, TLS for https, through the proxy that the environment names); returns why not, empty when it worked.

    Never takes much longer than `timeout` seconds, also where a name server does not answer.
    """
    outcome = [f"no answer within {timeout:.0f} s"]

    def attempt() -> None:
        try:
            connection = _connection(url, timeout)
            try:
                connection.connect()
                outcome[0] = ""
            finally:
                connection.close()
        except TimeoutError:
            pass
        except socket.gaierror:
            outcome[0] = "its name is not known here (no name server, or no network)"
        except ssl.SSLCertVerificationError as error:
            outcome[0] = f"its certificate is not trusted ({error.verify_message})"
        except (OSError, ValueError, http.client.HTTPException) as error:
            outcome[0] = getattr(error, "strerror", None) or str(error) or type(error).__name__

    thread = threading.Thread(target=attempt, daemon=True)  # a name server that is silent cannot be given a time limit
    begun = time.monotonic()
    thread.start()
    thread.join(max(0.0, timeout + 0.5 - (time.monotonic() - begun)))
    return outcome[0]


def _connection(url: str, timeout: float) -> http.client.HTTPConnection:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("not an address of the form https://host")
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    proxy = None if urllib.request.proxy_bypass(parts.hostname) else urllib.request.getproxies().get(parts.scheme)
    if proxy is None:
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        return kind(parts.hostname, port, timeout=timeout)
    via = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if via.scheme != "http" or not via.hostname:
        raise ValueError(f"the proxy of the environment is of the kind {via.scheme!r}, which cannot be tried here")
    if not secure:
        return http.client.HTTPConnection(via.hostname, via.port or 80, timeout=timeout)
    connection = http.client.HTTPSConnection(via.hostname, via.port or 80, timeout=timeout)
    headers = {}
    if via.username:
        word = f"{urllib.parse.unquote(via.username)}:{urllib.parse.unquote(via.password or '')}"
        headers["Proxy-Authorization"] = "Basic " + base64.b64encode(word.encode()).decode()
    connection.set_tunnel(parts.hostname, port, headers)
    return connection


def key(host: str) -> str:
    """Where the W&B key for a host lies: `environment`, `netrc`, or empty. `unreadable` for a netrc that cannot be read."""
    file = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    if file.is_file():
        try:
            found = netrc.netrc(str(file)).hosts.get(host.partition(":")[0])
        except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
            return "environment" if os.environ.get("WANDB_API_KEY") else "unreadable"
        if found is not None and found[2]:
            return "netrc"
    return "environment" if os.environ.get("WANDB_API_KEY") else ""
