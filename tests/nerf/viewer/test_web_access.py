"""Who is answered by the web viewer: addresses, tokens, other origins; asked with plain requests and sockets."""

import http.client
import re
import socket
import threading

import pytest

from nerf.core.errors import UserError
from nerf.viewer.web_access import Access, is_loopback, listen, policy

websockets = pytest.importorskip("websockets")

from websockets.exceptions import InvalidStatus  # noqa: E402
from websockets.sync.client import connect  # noqa: E402
from websockets.sync.server import serve  # noqa: E402


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("localhost", True), ("127.9.9.9", True), ("::1", True), ("0.0.0.0", False), ("192.168.0.7", False),
     ("::", False), ("example.org", False), ("", False)],
)  # fmt: skip
def test_only_addresses_of_this_machine_alone_have_no_token(host, loopback):
    assert is_loopback(host) == loopback
    assert (Access.to(host, 8080).token is None) == loopback


def test_every_token_is_another_one_and_long():
    tokens = {Access.to("0.0.0.0", 8080).token for _ in range(20)}
    assert len(tokens) == 20 and all(len(token) >= 20 for token in tokens)


@pytest.mark.parametrize(
    ("access", "url"),
    [
        (Access("127.0.0.1", 8080), "http://127.0.0.1:8080/"),
        (Access("192.168.0.7", 99, "abc"), "http://192.168.0.7:99/?token=abc"),
        (Access("::1", 8080), "http://[::1]:8080/"),
        (Access("0.0.0.0", 8080, "abc"), f"http://{socket.gethostname()}:8080/?token=abc"),
    ],
)
def test_the_url_is_one_that_can_be_opened(access, url):
    assert access.url == url


def test_a_taken_port_is_a_sentence():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"--viewer_port {port} on 127.0.0.1 is taken .*give another"):
            listen("127.0.0.1", port)


def test_a_host_that_is_not_known_or_not_ours_is_a_sentence():
    with pytest.raises(UserError, match="--viewer_host no.such.host.invalid is no host"):
        listen("no.such.host.invalid", 0)
    with pytest.raises(UserError, match="--viewer_host 203.0.113.7 .* cannot be listened at"):
        listen("203.0.113.7", 0)


@pytest.fixture
def served():
    """Begin to serve a page, and a socket that says hello: host and token -> access; what the library serves with is real."""
    servers = []

    def begin(host="127.0.0.1", token=None):
        listener = listen("127.0.0.1", 0)
        access = Access(host, listener.getsockname()[1], token)

        def page(connection, request):
            return None if request.headers.get("Upgrade") == "websocket" else connection.respond(200, "the page")

        server = serve(lambda one: one.send("hello"), sock=listener, process_request=access.guarded(page))
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        servers.append((server, thread))
        return access

    yield begin
    for server, thread in servers:
        server.shutdown()
        thread.join()


def fetch(access, path="/", **headers):
    """Status, headers and text of a page."""
    connection = http.client.HTTPConnection("127.0.0.1", access.port, timeout=10)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read().decode()


def speaks(access, path="/", **headers):
    """Whether the socket answers."""
    origin = headers.pop("Origin", None)
    try:
        with connect(f"ws://127.0.0.1:{access.port}{path}", origin=origin, additional_headers=headers, open_timeout=10) as one:
            return one.recv(timeout=10) == "hello"
    except InvalidStatus as error:
        assert error.response.status_code == 403
        return False


def test_on_the_loopback_interface_page_and_socket_answer(served):
    access = served()
    assert fetch(access)[0] == 200 and speaks(access)
    assert speaks(access, Origin=f"http://127.0.0.1:{access.port}")


def test_pages_of_the_web_cannot_reach_it_from_the_user_s_browser(served):
    access = served()
    assert not speaks(access, Origin="http://example.org") and not speaks(access, Origin="null")
    assert not speaks(access, Origin="http://127.0.0.1:1")  # another program of this machine
    assert fetch(access, Host="example.org")[0] == 403  # a name that was made to mean this machine
    assert fetch(access, Host=f"localhost:{access.port}")[0] == 200
    assert fetch(access, Host="a b")[0] == 403


def test_without_the_token_neither_the_page_nor_the_socket_answers(served):
    access = served("0.0.0.0", "the-token")
    for path in ("/", "/?token=", "/?token=other", "/?tokens=the-token", "/index.html", "/?token=the-toke"):
        status, headers, text = fetch(access, path)
        assert status == 403 and "the page" not in text and "token" in text and "Set-Cookie" not in headers
        assert not speaks(access, path)
    assert not speaks(access, Cookie=f"somnia_{access.port}=other")
    assert not speaks(access, Cookie="somnia_1=the-token")


def test_with_the_token_the_page_gives_the_cookie_that_the_socket_needs(served):
    access = served("0.0.0.0", "the-token")
    status, headers, text = fetch(access, "/?token=the-token")
    assert (status, text) == (200, "the page")
    cookie = headers["Set-Cookie"]
    assert re.fullmatch(rf"somnia_{access.port}=the-token; Path=/; HttpOnly; SameSite=Strict", cookie)
    given = f"other=1; {cookie.partition(';')[0]}"
    assert speaks(access, Cookie=given) and fetch(access, Cookie=given)[0] == 200
    assert speaks(access, "/?token=the-token")
    assert not speaks(access, Cookie=given, Origin="http://example.org")


def test_the_page_may_load_nothing_from_elsewhere_and_tells_nobody_its_address(served):
    access = served()
    headers = fetch(access)[1]
    assert headers["Content-Security-Policy"] == policy(f"127.0.0.1:{access.port}")
    assert "http:" not in policy("localhost:1") and "*" not in policy("localhost:1")
    assert headers["Referrer-Policy"] == "no-referrer" and headers["Cache-Control"] == "no-store"
