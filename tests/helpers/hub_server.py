"""A server on this machine that answers as the Hugging Face hub does: listings, files in ranges, and failures on request."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c" * 40
LARGE = 1 << 12  # bytes from which files are stored with Git LFS


class HubServer:
    """Serves folders as repositories.

    Attributes:
        url: of the server.
        asked: (method, path, Range header or "") of every request.
        cut: path -> how many bytes of the next answer are sent before the connection is closed; used once.
        spoilt: paths whose content arrives with its first byte changed.
        gated: repositories that need a token.
    """

    def __init__(self, repositories: dict[str, Path]):
        self.repositories = repositories
        self.asked, self.cut, self.spoilt, self.gated = [], {}, set(), set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def sent(self, end: str) -> list[str]:
        """The Range headers of the requests for content whose path ends so."""
        return [span for method, path, span in self.asked if method == "GET" and "/resolve/" in path and path.endswith(end)]


def described(path: Path, name: str) -> dict:
    """A file as the listings of the hub give it."""
    data = path.read_bytes()
    git = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
    found = {"rfilename": name, "path": name, "type": "file", "size": len(data), "blobId": git, "oid": git}
    if len(data) >= LARGE:
        sha = hashlib.sha256(data).hexdigest()
        found["lfs"] = {"sha256": sha, "oid": sha, "size": len(data), "pointerSize": 100}
    return found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *_):
        """Nothing."""

    def do_HEAD(self):
        """Headers of a file."""
        self.answer(body=False)

    def do_GET(self):
        """A listing, or a file."""
        self.answer(body=True)

    def answer(self, body: bool):
        """One request."""
        path, span = self.path.split("?")[0], self.headers.get("Range", "")
        self.hub.asked.append((self.command, path, span))
        for name, folder in self.hub.repositories.items():
            api, files = f"/api/models/{name}", f"/{name}/resolve/{COMMIT}/"
            if name in self.hub.gated and name in path:
                return self.send(401, b"", body, {"X-Error-Code": "GatedRepo", "X-Error-Message": "restricted"})
            every = [described(p, p.relative_to(folder).as_posix()) for p in sorted(folder.rglob("*")) if p.is_file()]
            if path.startswith(f"{api}/tree/"):
                return self.send(200, json.dumps(every).encode(), body)
            if path == api or path.startswith(f"{api}/revision/"):
                return self.send(200, json.dumps({"id": name, "sha": COMMIT, "siblings": every}).encode(), body)
            if path.startswith(files):
                return self.send_file(folder / path.removeprefix(files), path, span, body)
        return self.send(404, b"", body, {"X-Error-Code": "RepoNotFound"})

    def send_file(self, file: Path, path: str, span: str, body: bool):
        """A file or the rest of it."""
        if not file.is_file():
            return self.send(404, b"", body, {"X-Error-Code": "EntryNotFound"})
        data, facts = file.read_bytes(), described(file, file.name)
        if path in self.hub.spoilt:
            data = bytes([data[0] ^ 255]) + data[1:]
        etag = facts["lfs"]["sha256"] if "lfs" in facts else facts["blobId"]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        first = int(span.removeprefix("bytes=").split("-")[0]) if span else 0
        if span:
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        return self.send(206 if span else 200, data[first:], body, headers, self.hub.cut.pop(path, None) if body else None)

    def send(self, status: int, data: bytes, body: bool, headers: dict | None = None, cut: int | None = None):
        """An answer; with ``cut`` the connection is closed early."""
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data if cut is None else data[:cut])
        if cut is not None:
            self.close_connection = True
