"""Writes what data/tfrecord.py reads, from the formats' descriptions and without that module or its CRC package."""

import struct
import zlib

import numpy as np

# Castagnoli's polynomial, lowest bit first.
_TABLE = list(range(256))
for _ in range(8):
    _TABLE = [crc >> 1 ^ (0x82F63B78 if crc & 1 else 0) for crc in _TABLE]


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    return ((crc >> 15) + ((crc & 0x7FFF) << 17) + 0xA282EAD8) % 2**32


def frame(record: bytes, length: int | None = None) -> bytes:
    """A record of a TFRecord file; with another length it lies, under good checksums."""
    head = struct.pack("<Q", len(record) if length is None else length)
    return head + struct.pack("<I", masked(crc32c(head))) + record + struct.pack("<I", masked(crc32c(record)))


def gzip_member(data: bytes, level: int = 6) -> bytes:
    deflate = zlib.compressobj(level, zlib.DEFLATED, -15)
    head = bytes([0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 3])  # deflate, no flags, no time, Unix
    return head + deflate.compress(data) + deflate.flush() + struct.pack("<II", zlib.crc32(data), len(data) % 2**32)


def tfrecords(*records: bytes) -> bytes:
    """A GZIP file of these records."""
    return gzip_member(b"".join(map(frame, records)))


def varint(number: int) -> bytes:
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*digits, number])


def message(*fields: tuple[int, bytes]) -> bytes:
    """Fields that have a length, as (number, contents)."""
    return b"".join(varint(number << 3 | 2) + varint(len(contents)) + contents for number, contents in fields)


def strings(*values: bytes) -> bytes:
    """A feature that is a list of strings."""
    return message((1, message(*((1, value) for value in values))))


def byte_strings(values: np.ndarray) -> bytes:
    """A feature that is a list of strings of one byte each."""
    wire = np.empty((values.size, 3), np.uint8)
    wire[:] = 0x0A, 1, 0
    wire[:, 2] = values.reshape(-1)
    return message((1, wire.tobytes()))


def floats(values: np.ndarray) -> bytes:
    """A feature that is a list of packed floats."""
    return message((2, message((1, np.asarray(values, "<f4").tobytes()))))


def unpacked_floats(values: np.ndarray) -> bytes:
    return message((2, b"".join(b"\x0d" + struct.pack("<f", value) for value in np.ravel(values))))


def integers(*values: int) -> bytes:
    """A feature that is a list of packed integers."""
    return message((3, message((1, b"".join(map(varint, values))))))


def example(features: dict[str, bytes]) -> bytes:
    """A tf.train.Example of these features, in their order."""
    entries = (message((1, name.encode()), (2, feature)) for name, feature in features.items())
    return message((1, message(*((1, entry) for entry in entries))))


def scene(arrays: dict[str, np.ndarray]) -> bytes:
    """An Example as DeepMind's data sets have it: bytes are strings of one byte each, floats are packed."""
    encode = {"u": byte_strings, "f": floats}
    return example({name: encode[array.dtype.kind](array) for name, array in arrays.items()})
