"""Tiny models in ONNX, written field by field, so that tests of what reads them need no other package."""


def _varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found += bytes([value & 127 | 128])
        value >>= 7
    return found + bytes([value])


def field(number: int, value) -> bytes:
    """One field of a protocol buffer: a number, text, or the bytes of a message."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    value = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _tensor(name: str, *sizes) -> bytes:
    """A named float32 input or output; a size that is text is open."""
    shape = b"".join(field(1, field(1, size) if isinstance(size, int) else field(2, size)) for size in sizes)
    return field(1, name) + field(2, field(1, field(1, 1) + field(2, shape)))


def mean_of_channels(side, outputs: int = 1, channels: int = 3) -> bytes:
    """A model [1, channels, side, side] -> [1, 1, side, side] (several times): the mean of the channels.

    Args:
        side: pixels, or a word where the file leaves it open.
        outputs: how many, all equal.
        channels: of the input.
    """
    axes = field(5, field(1, "axes") + field(8, 1) + field(20, 7))
    keep = field(5, field(1, "keepdims") + field(3, 1) + field(20, 2))
    graph = b"".join(
        field(1, field(1, "picture") + field(2, f"mask{i}") + field(4, "ReduceMean") + axes + keep) for i in range(outputs)
    )
    graph += field(2, "graph") + field(11, _tensor("picture", 1, channels, side, side))
    graph += b"".join(field(12, _tensor(f"mask{i}", 1, 1, side, side)) for i in range(outputs))
    return field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 13))
