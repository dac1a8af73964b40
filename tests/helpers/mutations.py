"""Damages a valid file in a repeatable way: flipped bytes, cuts, repeated and lost pieces, JSON values replaced by others."""

import copy
import json
import struct

import numpy as np

HUGE = "\N{WHITE SQUARE}huge"  # stands for a number of 5,000 digits, which json cannot write
VALUES = (
    None, True, False, 0, 1, -1, 2, 7, 1e308, -1e308, 1e-308, 5e-324, 0.5, 10**30, -(10**30), 2**31, 2**63, 2**64, float("nan"),
    float("inf"), float("-inf"), "", "x", "x" * 5000, "a\0b", "\ud800", "../..", "\x1b[2J", "1", [], {}, [[]], [None], ["a", 1],
    [1e308] * 3, {"a": {}}, [[1.0, 2.0], [3.0]], HUGE,
)  # fmt: skip


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes with one kind of damage."""
    kind, at = rng.integers(7), int(rng.integers(max(len(data), 1)))
    some = bytearray(data)
    if kind == 0 and data:  # a few bits
        for place in rng.integers(len(data), size=rng.integers(1, 9)):
            some[place] ^= 1 << int(rng.integers(8))
    elif kind == 1 and data:  # a few bytes
        for place in rng.integers(len(data), size=rng.integers(1, 9)):
            some[place] = int(rng.choice([0, 1, 10, 32, 45, 48, 57, 127, 128, 255, int(rng.integers(256))]))
    elif kind == 2:  # cut off
        return data[:at]
    elif kind == 3:  # a piece lost
        return data[:at] + data[at + int(rng.integers(1, 65)) :]
    elif kind == 4:  # a piece repeated, or of another place
        begin = int(rng.integers(max(len(data), 1)))
        return data[:at] + data[begin : begin + int(rng.integers(1, 65))] + data[at:]
    elif kind == 5:  # noise, or zeros
        length = int(rng.integers(1, 33))
        some[at : at + length] = rng.bytes(length) if rng.integers(2) else bytes(length)
    else:  # something in front or behind
        return (b"\xef\xbb\xbf" + data) if rng.integers(2) else data + rng.bytes(int(rng.integers(1, 65)))
    return bytes(some)


def _places(value, found=None):
    """(container, key) of everything inside a JSON value."""
    found = [] if found is None else found
    for key, inside in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found.append((value, key))
        _places(inside, found)
    return found


def swapped(value, rng: np.random.Generator):
    """A JSON value in which one or two values are replaced, lost or exchanged."""
    value = copy.deepcopy(value)
    for _ in range(int(rng.integers(1, 3))):
        places = _places(value)
        if not places:
            return value
        container, key = places[int(rng.integers(len(places)))]
        kind = rng.integers(6)
        if kind == 0:
            del container[key]
        elif kind == 1:
            other, where = places[int(rng.integers(len(places)))]
            container[key] = copy.deepcopy(other[where])
        elif kind == 2 and isinstance(container, dict):
            container[str(VALUES[int(rng.integers(25, 29))])] = container.pop(key)
        else:
            container[key] = copy.deepcopy(VALUES[int(rng.integers(len(VALUES)))])
    return value


def as_text(value) -> bytes:
    """JSON bytes, with :data:`HUGE` as the number that it stands for."""
    return json.dumps(value).replace(json.dumps(HUGE), "1" * 5000).encode()


def damaged_json(data: bytes, rng: np.random.Generator) -> bytes:
    """JSON whose bytes or values are damaged; once in a while it is nested without end."""
    kind = rng.integers(20)
    if kind == 0:
        return b"[" * 50_000 + data
    return damaged(data, rng) if kind < 6 else as_text(swapped(json.loads(data), rng))


def damaged_lines(data: bytes, rng: np.random.Generator) -> bytes:
    """Text in which bytes, words or lines are damaged."""
    if rng.integers(3) == 0:
        return damaged(data, rng)
    lines = data.split(b"\n")
    at = int(rng.integers(len(lines)))
    words = lines[at].split(b" ")
    odd = (b"", b"nan", b"inf", b"-1", b"1e999", b"9" * 5000, b"0", b"x", b"\xff", b"99999999999", b"1e308", b"-0", b"\0")
    words[int(rng.integers(len(words)))] = odd[int(rng.integers(len(odd)))]
    kind = rng.integers(4)
    lines[at] = b" ".join(words if kind else words[: int(rng.integers(len(words) + 1))])
    if kind == 1:
        lines.insert(at, lines[int(rng.integers(len(lines)))])
    return b"\n".join(lines)


def damaged_glb(data: bytes, rng: np.random.Generator) -> bytes:
    """A GLB whose bytes are damaged, or whose JSON is, in a container that fits it."""
    if rng.integers(3) == 0:
        return damaged(data, rng)
    size = struct.unpack_from("<I", data, 12)[0]
    text = as_text(swapped(json.loads(data[20 : 20 + size]), rng))
    text += b" " * (-len(text) % 4)
    rest = data[20 + size :]
    return struct.pack("<4sII", b"glTF", 2, 20 + len(text) + len(rest)) + struct.pack("<I4s", len(text), b"JSON") + text + rest


def damaged_safetensors(data: bytes, rng: np.random.Generator) -> bytes:
    """A safetensors file whose bytes, header, or JSON inside the header are damaged."""
    if rng.integers(3) == 0:
        return damaged(data, rng)
    size = struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8 : 8 + size])
    inner = header.get("__metadata__", {}).get("somnia")
    if inner is not None and rng.integers(2):
        header["__metadata__"]["somnia"] = damaged_json(inner.encode(), rng).decode("latin-1")
    else:
        header = swapped(header, rng)
    text = as_text(header)
    return struct.pack("<Q", len(text)) + text + data[8 + size :]
