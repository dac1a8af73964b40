"""A client of debugpy: the Debug Adapter Protocol over a socket, as an editor speaks it when it attaches."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60.0  # for whatever is waited for


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class DebuggedProgram:
    """``debugpy-run PROGRAM ...`` without its wrapper: the program waits until a client attaches."""

    def __init__(self, *words: str):
        self.port = free_port()
        listen = ["-Xfrozen_modules=off", "-m", "debugpy", "--listen", f"127.0.0.1:{self.port}", "--wait-for-client"]
        self.errors = tempfile.TemporaryFile("w+")  # no pipe: debugpy's adapter outlives the program by a moment and holds it
        self.process = subprocess.Popen(
            [sys.executable, *listen, *words],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self.client: DebugClient | None = None

    def __enter__(self) -> "DebuggedProgram":
        return self

    def __exit__(self, *_: object) -> None:
        if self.client is not None:
            self.client.close()
        self.process.kill()
        self.process.wait()
        self.errors.close()

    def attach(self, breakpoints: dict[Path, list[int]]) -> "DebugClient":
        """A client that has set breakpoints (file -> lines) and let the program begin."""
        self.client = DebugClient(self.port)
        self.client.attach(breakpoints)
        return self.client

    def end(self) -> tuple[int, str]:
        """Wait until it ends by itself; returns its exit code and what it wrote to stderr."""
        code = self.process.wait(timeout=SECONDS)
        self.errors.seek(0)
        return code, self.errors.read()


class DebugClient:
    """Attaches to a program; events that were not waited for are kept."""

    def __init__(self, port: int):
        self.socket = self._connect(port)
        self.stream, self.sent, self.events = self.socket.makefile("rb"), 0, []

    @staticmethod
    def _connect(port: int) -> socket.socket:
        end = time.monotonic() + SECONDS
        while True:
            try:
                made = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
            except OSError:
                assert time.monotonic() < end, "the program does not listen"
                time.sleep(0.05)
            else:
                return made

    def attach(self, breakpoints: dict[Path, list[int]]) -> None:
        """Set breakpoints (file -> lines) and let the program begin."""
        self.request("initialize", adapterID="test", clientID="test", linesStartAt1=True, pathFormat="path")
        attached = self.send("attach", justMyCode=True, redirectOutput=False)  # as editors do
        self.wait_for("initialized")
        for path, lines in breakpoints.items():
            self.set_breakpoints(path, lines)
        self.request("configurationDone")
        self.answer(attached)

    def set_breakpoints(self, path: Path, lines: list[int]) -> None:
        """Replace the breakpoints of a file; all of them must be possible."""
        found = self.request("setBreakpoints", source={"path": str(path)}, breakpoints=[{"line": line} for line in lines])
        assert [point["verified"] for point in found["breakpoints"]] == [True] * len(lines)

    def send(self, command: str, **arguments: object) -> int:
        """Send a request; returns its number."""
        self.sent += 1
        body = json.dumps({"seq": self.sent, "type": "request", "command": command, "arguments": arguments}).encode()
        self.socket.sendall(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        return self.sent

    def request(self, command: str, **arguments: object) -> dict:
        """Send a request and wait for its answer; returns the body of that."""
        return self.answer(self.send(command, **arguments))

    def answer(self, number: int) -> dict:
        """Wait for the answer to a request."""
        while True:
            message = self.receive()
            if message["type"] == "response" and message["request_seq"] == number:
                assert message["success"], message
                return message.get("body", {})

    def wait_for(self, event: str) -> dict:
        """Wait for an event; returns its body."""
        while True:
            for i, message in enumerate(self.events):
                if message["event"] == event:
                    return self.events.pop(i).get("body", {})
            self.receive()

    def receive(self) -> dict:
        """The next message; events are kept."""
        length = 0
        while line := self.stream.readline().strip():
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        assert length, "the program has closed the connection"
        message = json.loads(self.stream.read(length))
        if message["type"] == "event":
            self.events.append(message)
        return message

    def close(self) -> None:
        """Hang up."""
        self.stream.close()
        self.socket.close()
