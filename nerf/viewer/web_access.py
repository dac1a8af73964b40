"""Who may see the web viewer: its address, the token in its URL, and what is asked of every request.

A browser that knows the URL with the token gets a cookie with the page, and the socket of the page carries that. Without one
neither the page nor the socket answers. On the loopback interface there is no token, as nobody else reaches it; but any page
of the web may try to from the user's own browser, so requests of other origins and for other hosts are refused.
"""

import errno
import http
import ipaddress
import re
import secrets
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from nerf.core.errors import UserError

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection
    from websockets.http11 import Request, Response

    Process = Callable[[ServerConnection, Request], Response | None]

TOKEN_BYTES = 16
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
HOST = re.compile(r"[\w.\-]+(:\d+)?|\[[0-9a-fA-F:.]+\](:\d+)?")  # of a request
HEADERS = {"Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
REFUSED = "This viewer needs the address with the token that the program has printed.\n"


def policy(host: str) -> str:
    """The content security policy of the page: it loads nothing from elsewhere, and a browser holds it to that.

    Args:
        host: name and port that the page was asked for at, where its socket is.
    """
    return (
        "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' "
        f"'unsafe-inline'; worker-src 'self' blob:; connect-src 'self' ws://{host} wss://{host} data: blob:; "
        "frame-ancestors 'self'; form-action 'none'; base-uri 'none'"
    )


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address.

    Args:
        host: name or number of one of this machine's interfaces.
        port: 0 takes any free one.

    Raises:
        UserError: the port is taken, or the host is none of this machine's.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address[:2], family=family)
    except socket.gaierror:
        raise UserError(
            f"--viewer_host {host} is no host that is known here; give 127.0.0.1 (this machine alone) or 0.0.0.0 (the network)"
        ) from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"--viewer_port {port} on {host} is taken by another program; give another one, or 0 for any that is free"
            ) from None
        reason = error.strerror or error
        raise UserError(f"--viewer_host {host} --viewer_port {port} cannot be listened at: {reason}; give others") from None


class Access:
    """Decides about requests.

    Args:
        host: that the viewer listens at.
        port: of the socket.
        token: part of the URL; None on the loopback interface.
    """

    def __init__(self, host: str, port: int, token: str | None = None):
        self.host, self.port, self.token = host, port, token
        self.cookie = f"somnia_{port}"  # cookies do not tell ports apart

    @staticmethod
    def to(host: str, port: int) -> "Access":
        """With a new token unless the host is on the loopback interface."""
        return Access(host, port, None if is_loopback(host) else secrets.token_urlsafe(TOKEN_BYTES))

    @property
    def url(self) -> str:
        """The address to open."""
        name = self.host
        if name in ("0.0.0.0", "::", ""):
            name = socket.gethostname()
        name = f"[{name}]" if ":" in name else name
        return f"http://{name}:{self.port}/" + ("" if self.token is None else f"?token={self.token}")

    def guarded(self, respond: "Process") -> "Process":
        """A function for ``websockets.serve(process_request=...)`` that asks this access first and then ``respond``."""

        def process(connection: "ServerConnection", request: "Request") -> "Response | None":
            if not self.allows(request):
                refused = connection.respond(http.HTTPStatus.FORBIDDEN, REFUSED)
                _add(refused, HEADERS)
                return refused
            response = respond(connection, request)
            if response is not None:
                _add(response, HEADERS | {"Content-Security-Policy": policy(request.headers["Host"])})
                if self.token is not None:
                    _add(response, {"Set-Cookie": f"{self.cookie}={self.token}; Path=/; HttpOnly; SameSite=Strict"})
            return response

        return process

    def allows(self, request: "Request") -> bool:
        """Whether a request is answered."""
        hosts, origins = (request.headers.get_all(name) for name in ("Host", "Origin"))
        if len(hosts) != 1 or len(origins) > 1 or HOST.fullmatch(hosts[0]) is None:
            return False
        if self.token is None and urlsplit(f"//{hosts[0]}").hostname not in LOCAL_NAMES:
            return False  # a name of the web that was made to mean this machine
        if origins and urlsplit(origins[0]).netloc.lower() != hosts[0].lower():
            return False
        return self.token is None or any(_same(word, self.token) for word in self._words(request))

    def _words(self, request: "Request") -> list[str]:
        """What a request gives for the token, in its address and its cookies."""
        pairs = [pair.strip().partition("=") for line in request.headers.get_all("Cookie") for pair in line.split(";")]
        given = [value for name, _, value in pairs if name == self.cookie]
        return given + parse_qs(urlsplit(request.path).query).get("token", [])


def _same(given: str, token: str) -> bool:
    """Whether two words are equal, in a time that does not tell where they differ."""
    return secrets.compare_digest(given.encode(), token.encode())


def _add(response: "Response", headers: dict[str, str]) -> None:
    """Set headers of a response."""
    for name, value in headers.items():
        if name in response.headers:
            del response.headers[name]
        response.headers[name] = value
