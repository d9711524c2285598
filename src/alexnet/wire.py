"""Protocol buffers as they lie on the disk, field by field, without a schema.

Only what a reader of Caffe's files needs: a message is a mapping from field numbers to what was
found, numbers of packed fields are viewed and not copied. Everything is checked against the end of
the data; whatever is wrong raises ValueError. Nothing in a file can make this code do more than
read it.

Not here: what the fields mean (`caffe.py`).
"""

import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

MAX_FIELDS = 100_000  # of one message; a network has some hundred
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class Message:
    """One message: the fields of `data`, in order. Raises ValueError if it is none."""

    def __init__(self, data: bytes | memoryview) -> None:
        self.fields: dict[int, list[int | memoryview]] = {}
        for count, (number, value) in enumerate(_fields(memoryview(data))):
            if count >= MAX_FIELDS:
                raise ValueError(f"more than {MAX_FIELDS:,} fields in one message")
            self.fields.setdefault(number, []).append(value)

    def has(self, number: int) -> bool:
        return number in self.fields

    def messages(self, number: int) -> list["Message"]:
        return [Message(_bytes(value)) for value in self.fields.get(number, [])]

    def message(self, number: int) -> "Message":
        """The last one, as the format has it; an empty one where there is none."""
        found = self.fields.get(number, [b""])
        return Message(_bytes(found[-1]))

    def text(self, number: int, default: str = "") -> str:
        found = self.fields.get(number)
        return default if not found else bytes(_bytes(found[-1])).decode(errors="replace")

    def integers(self, number: int) -> list[int]:
        """A repeated whole number, packed or not."""
        found: list[int] = []
        for value in self.fields.get(number, []):
            found += [value] if isinstance(value, int) else list(_varints(value))
            if len(found) > MAX_FIELDS:
                raise ValueError(f"more than {MAX_FIELDS:,} numbers")
        return found

    def integer(self, number: int, default: int) -> int:
        return (self.integers(number) or [default])[-1]

    def floats(self, number: int, kind: str = "<f4") -> NDArray[np.float32]:
        """A repeated float ("<f8": double), packed or not."""
        size = np.dtype(kind).itemsize
        parts = []
        for value in self.fields.get(number, []):
            data = value.to_bytes(size, "little") if isinstance(value, int) else value
            if len(data) % size:
                raise ValueError("a list of numbers is cut off")
            parts.append(np.frombuffer(data, kind))
        joined = parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, kind), *parts])
        return joined.astype(np.float32, copy=False)

    def number(self, number: int, default: float) -> float:
        found = self.floats(number)
        return float(found[-1]) if len(found) else default


def _bytes(value: object) -> bytes | memoryview:
    if isinstance(value, int):
        raise ValueError("a number stands where a message or a text was expected")
    assert isinstance(value, bytes | memoryview)
    return value


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise ValueError("field number 0")
        if kind == VARINT:
            value, at = _varint(data, at)
            yield number, value
        elif kind in (FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
            if at + size > len(data):
                raise ValueError("it ends in the middle of a number")
            yield number, struct.unpack_from("<I" if size == 4 else "<Q", data, at)[0]
            at += size
        elif kind == BYTES:
            size, at = _varint(data, at)
            if size > len(data) - at:
                raise ValueError("it ends in the middle of a field")
            yield number, data[at : at + size]
            at += size
        else:
            raise ValueError(f"wire type {kind}")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("it ends in the middle of a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")


def _varints(data: memoryview) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value
