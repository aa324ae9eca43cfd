"""TFRecord files of tf.train.Example messages, read without TensorFlow, one record in memory at a time.

Sources: the file, tensorflow.org/tutorials/load_data/tfrecord; the message, tensorflow/core/example/example.proto and
feature.proto; its encoding, protobuf.dev/programming-guides/encoding, of which only what writers produce is accepted.
"""

import os
import struct
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from slotattn_fast.data.errors import DataError

MAX_RECORD_BYTES = 1 << 26
"""Longest record that is read; the longest of the published data sets have 3.2 MB."""

_HEADER = struct.Struct("<QI")  # length of the data, masked CRC-32C of these eight bytes
_FOOTER = struct.Struct("<I")  # masked CRC-32C of the data
_GZIP_MAGIC = b"\x1f\x8b"
_INPUT_BYTES = 1 << 16
_BLOCK_BYTES = 1 << 18  # of the uncompressed stream: bounds the memory, however well the file is compressed

# A field of a message starts with its tag: 8 times its number, plus 2 if a length comes next, 5 if four bytes do.
_FIELD_1, _FIELD_2, _FIELD_3, _FLOAT_1 = 0x0A, 0x12, 0x1A, 0x0D
_ONE_BYTE_STRING = 0x010A  # the tag and the length before a string of one byte, 0a 01, as a little-endian number


class ExampleError(Exception):
    """A record is not the tf.train.Example that was expected: why, for the caller to add the file and the record."""


class _Damaged(Exception):
    """What is wrong with a file, for read_records to add the file and the record."""


def read_records(path: Path, skip: int = 0) -> Iterator[bytes]:
    """The records of a TFRecord file, compressed with GZIP or not, in their order and without the first `skip`.

    The two checksums of every record are verified, also of those skipped, and at the end those of the GZIP stream. A
    file that was cut off is noticed at its end; one without compression that was cut off between two records is not.

    Raises DataError if there is no such file, if it holds no record or is no TFRecord file, and, after the records
    before it, at the first damage. Raises ValueError for a negative `skip`.
    """
    if skip < 0:
        raise ValueError(f"skip: got {skip}, expected at least 0")
    if not os.path.isfile(path):  # Path.is_file raises some of the system's errors
        problem = "not a file" if os.path.exists(path) else "no such file"
        raise DataError(f"{path}: {problem}: give the path of a .tfrecords file")
    try:
        import google_crc32c  # noqa: F401
    except ModuleNotFoundError as missing:
        raise DataError(f"{path}: reading it needs `pip install google-crc32c` ({missing})") from missing
    return _read_records(path, skip)


def decode_example(record: bytes, names: Collection[str]) -> dict[str, NDArray[Any]]:
    """The features of these names that a tf.train.Example has, each as a new array of one dimension.

    A list of bytes becomes uint8, whether it is one string or, as in the published data sets, one string a byte. A list
    of floats becomes float32. Features without a value are left out, as are all others.

    Raises ExampleError if the record is no such message, or if a feature is a list of another kind.
    """
    features: dict[str, NDArray[Any]] = {}
    for _, outer_start, outer_end in _fields(record, 0, len(record), (_FIELD_1,)):
        for _, start, end in _fields(record, outer_start, outer_end, (_FIELD_1,)):
            name, value_start, value_end = _entry(record, start, end)
            if name in names:
                if name in features:
                    raise ExampleError(f"feature {name!r} occurs twice")
                lists = _fields(record, value_start, value_end, (_FIELD_1, _FIELD_2, _FIELD_3))
                if len(lists) > 1:
                    raise ExampleError(f"feature {name!r} has {len(lists)} lists of values, expected one")
                for kind, list_start, list_end in lists:
                    if kind == _FIELD_3:
                        raise ExampleError(f"feature {name!r} is a list of integers, expected bytes or floats")
                    decode = _decode_bytes if kind == _FIELD_1 else _decode_floats
                    features[name] = decode(record, name, list_start, list_end)
    return features


def _read_records(path: Path, skip: int) -> Iterator[bytes]:
    number = 0
    try:
        with path.open("rb") as file:
            stream = _Stream(_blocks(file))
            while (record := _next_record(stream)) is not None:
                if number >= skip:
                    yield record
                number += 1
        if number == 0:
            raise _Damaged("the file holds no record")
    except _Damaged as error:
        raise DataError(f"{path}: record {number}: {error}: download the file again") from error
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path}: record {number}: cannot be read ({reason}): check the disk and the rights") from error


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    """The uncompressed contents, in blocks that are not empty. The first checksum tells if the file is compressed."""
    start = file.read(_HEADER.size)
    file.seek(0)
    if len(start) == _HEADER.size and _length(start) is not None:
        yield from iter(lambda: file.read(_BLOCK_BYTES), b"")
    elif start.startswith(_GZIP_MAGIC):
        yield from _inflate(file)
    elif start:
        raise _Damaged("the file is no TFRecord file, with or without GZIP")


def _inflate(file: BinaryIO) -> Iterator[bytes]:
    """The contents of a GZIP file; gzip.open reads in smaller steps, and is slower."""
    data = file.read(_INPUT_BYTES)
    while data:
        if not data.startswith(_GZIP_MAGIC[:1]):
            raise _Damaged("bytes that are no GZIP stream follow on its end")
        member = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)  # GZIP, whose CRC-32 and length zlib verifies
        while not member.eof:
            data = data or file.read(_INPUT_BYTES)
            if not data:
                raise _Damaged("the GZIP stream is cut off")
            try:
                block = member.decompress(data, _BLOCK_BYTES)
            except zlib.error as error:
                raise _Damaged(f"the GZIP stream is damaged ({error})") from error
            data = member.unconsumed_tail
            if block:
                yield block
        data = member.unused_data or file.read(_INPUT_BYTES)


class _Stream:
    """Blocks of bytes, to be taken in other sizes."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._block = b""
        self._position = 0

    def take(self, size: int) -> bytes:
        """The next `size` bytes, or the fewer that are left; memory is taken as they arrive, not for `size`."""
        parts = []
        while size > 0:
            part = self._block[self._position : self._position + size]
            if part:
                parts.append(part)
                self._position += len(part)
                size -= len(part)
            else:
                self._block, self._position = next(self._blocks, b""), 0
                if not self._block:
                    break
        return b"".join(parts)


def _next_record(stream: _Stream) -> bytes | None:
    """The next record's data, or None at the end of the stream."""
    header = stream.take(_HEADER.size)
    if not header:
        return None
    if len(header) < _HEADER.size:
        raise _Damaged("the file ends within the record's length")
    length = _length(header)
    if length is None:
        raise _Damaged("the record's length does not match its checksum")
    if length > MAX_RECORD_BYTES:
        raise _Damaged(f"the record is said to have {length} bytes, expected at most {MAX_RECORD_BYTES}")
    data = stream.take(length)
    footer = stream.take(_FOOTER.size)
    if len(footer) < _FOOTER.size:
        raise _Damaged("the file ends within the record")
    if _FOOTER.unpack(footer) != (_masked_crc(data),):
        raise _Damaged("the record's data do not match their checksum")
    return data


def _length(header: bytes) -> int | None:
    """The length that a record's header tells, if its checksum is right."""
    length, checksum = _HEADER.unpack(header)
    return length if checksum == _masked_crc(header[:8]) else None


def _masked_crc(data: bytes) -> int:
    """CRC-32C, turned by 15 bits, plus a constant: a checksum that also data with checksums in them may have."""
    from google_crc32c import value  # here, as nothing else needs it: generators work without

    crc = value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _fields(record: bytes, position: int, end: int, tags: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(tag, start, end) of the fields of the message in record[position:end]; these tags, with lengths, may occur."""
    fields = []
    while position < end:
        tag = record[position]
        if tag not in tags:
            raise ExampleError(f"not a tf.train.Example: unknown field {tag:#04x} at byte {position}")
        start, position = _span(record, position + 1, end)
        fields.append((tag, start, position))
    return fields


def _span(record: bytes, position: int, end: int) -> tuple[int, int]:
    """(start, end) of what follows on its length, a number of base 128 at `position`, lowest digit first."""
    length = shift = 0
    while position < end and shift < 64:
        digit = record[position]
        position += 1
        length |= (digit & 0x7F) << shift
        if digit < 0x80:
            if length > end - position:
                raise ExampleError(f"not a tf.train.Example: no {length} bytes are left at byte {position}")
            return position, position + length
        shift += 7
    raise ExampleError(f"not a tf.train.Example: a length before byte {position} has no end")


def _entry(record: bytes, start: int, end: int) -> tuple[str, int, int]:
    """A feature's name and (start, end) of its value, a message."""
    fields = _fields(record, start, end, (_FIELD_1, _FIELD_2))
    if len(fields) != 2 or fields[0][0] != _FIELD_1 or fields[1][0] != _FIELD_2:
        raise ExampleError(f"not a tf.train.Example: the feature at byte {start} is not a name and a value")
    (_, name_start, name_end), (_, value_start, value_end) = fields
    return record[name_start:name_end].decode(errors="replace"), value_start, value_end


def _decode_bytes(record: bytes, name: str, start: int, end: int) -> NDArray[np.uint8]:
    """The bytes of one string, or of many that have one byte each, [bytes]."""
    count, rest = divmod(end - start, 3)
    data = np.frombuffer(record, np.uint8)
    # Strings of one byte lie three bytes apart; to parse a million of them one by one takes about a second.
    if rest == 0 and not np.count_nonzero(np.ndarray(count, "<u2", record, start, (3,)) != _ONE_BYTE_STRING):
        return data[start + 2 : end : 3].copy()
    string_start, string_end = _span(record, start + 1, end)
    if record[start] != _FIELD_1 or string_end != end:
        raise ExampleError(f"feature {name!r} is a list of strings, expected one string, or strings of one byte each")
    return data[string_start:string_end].copy()


def _decode_floats(record: bytes, name: str, start: int, end: int) -> NDArray[np.float32]:
    """Little-endian floats, packed as writers do it, or each on its own, [floats]."""
    parts = []
    while start < end:
        tag, start = record[start], start + 1
        if tag == _FIELD_1:
            start, stop = _span(record, start, end)
        elif tag == _FLOAT_1:
            stop = start + 4
        else:
            raise ExampleError(f"feature {name!r} is no list of floats: unknown field {tag:#04x} at byte {start - 1}")
        if stop > end or (stop - start) % 4:
            raise ExampleError(f"feature {name!r} ends within a float")
        parts.append(record[start:stop])
        start = stop
    return np.frombuffer(b"".join(parts), "<f4").astype(np.float32)
