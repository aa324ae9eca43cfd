import contextlib
import errno
import io
import random
import re
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tfrecord_writer import (
    byte_strings,
    crc32c,
    example,
    floats,
    frame,
    gzip_member,
    integers,
    message,
    strings,
    tfrecords,
    unpacked_floats,
    varint,
)
from time_limit import time_limit

from slotattn_fast.data import tfrecord
from slotattn_fast.data.errors import DataError
from slotattn_fast.data.tfrecord import MAX_RECORD_BYTES, ExampleError, decode_example, read_records

RECORDS = [b"one", b"", bytes(range(100)), b"\x1f\x8b\x08" * 20]
PLAIN = b"".join(map(frame, RECORDS))
GZIP = gzip_member(PLAIN)
VALUES = np.array([0, 1, 10, 255, 1, 10], np.uint8)
NUMBERS = np.array([0, -1.5, np.inf, 1e-40], np.float32)


@pytest.fixture(autouse=True)
def _in_time():
    with time_limit(60):
        yield


@pytest.fixture
def read(tmp_path):
    """Reads a file of these contents: the records, and the message of the error on which they ended, or None."""
    path = tmp_path / "file.tfrecords"

    def read(contents, skip=0):
        path.write_bytes(contents)
        records = []
        try:
            for record in read_records(path, skip):
                records.append(record)
        except DataError as error:
            message = str(error)
            assert message.startswith(f"{path}: record {skip + len(records)}: ")
            assert message.endswith(": download the file again")
            assert "\n" not in message
            return records, message
        return records, None

    return read


def flipped(data, bit):
    data = bytearray(data)
    data[bit // 8] ^= 1 << bit % 8
    return bytes(data)


def test_the_writer_has_the_published_checksum():
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32/ISCSI


@pytest.mark.parametrize(
    "contents",
    [
        pytest.param(GZIP, id="gzip"),
        pytest.param(PLAIN, id="plain"),
        pytest.param(gzip_member(PLAIN, level=0), id="stored"),
        pytest.param(tfrecords(RECORDS[0]) + gzip_member(b"") + tfrecords(*RECORDS[1:]), id="members"),
    ],
)
@pytest.mark.parametrize("skip", [0, 1, 4, 9])
def test_records_come_as_written(read, contents, skip):
    assert read(contents, skip) == (RECORDS[skip:], None)


@pytest.mark.parametrize("compress", [gzip_member, bytes], ids=["gzip", "plain"])
@pytest.mark.parametrize("distance", [0, 1, 4, 12, 14, 16])
def test_records_cross_the_blocks_in_which_a_file_is_read(read, compress, distance):
    # Blocks have a power of two: one ends within the length, its checksum, the data, theirs, or between two records.
    first = b"x" * distance
    records = [first, random.Random(0).randbytes(2**20 - len(frame(first)) - 16 - 4)]
    assert read(compress(b"".join(map(frame, [*records, b"next", *records])))) == ([*records, b"next", *records], None)


@pytest.mark.parametrize("input_bytes", [1, 2, 3, len(tfrecords(RECORDS[0])), 50])
@pytest.mark.parametrize("block_bytes", [1, 11, 1000])
def test_members_may_end_anywhere_in_what_is_read_at_once(read, monkeypatch, input_bytes, block_bytes):
    monkeypatch.setattr(tfrecord, "_INPUT_BYTES", input_bytes)
    monkeypatch.setattr(tfrecord, "_BLOCK_BYTES", block_bytes)
    members = tfrecords(RECORDS[0]) + tfrecords(*RECORDS[1:])
    assert read(members) == (RECORDS, None)
    assert "cut off" in read(members[:-1])[1]
    assert "no GZIP stream follow" in read(members + b"\0")[1]


def test_memory_is_that_of_a_few_records_however_small_the_file(read, tmp_path):
    path = tmp_path / "zeros.tfrecords"
    path.write_bytes(gzip_member(frame(bytes(2**20)) * 64))
    assert path.stat().st_size < 2**17
    tracemalloc.start()
    try:
        assert sum(len(record) for record in read_records(path)) == 64 * 2**20
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def test_no_truncation_of_a_gzip_file_passes(read):
    for size in range(len(GZIP)):
        records, problem = read(GZIP[:size])
        assert problem
        assert records == RECORDS[: len(records)]


def test_truncations_of_a_plain_file_pass_only_between_records(read):
    ends = np.cumsum([len(frame(record)) for record in RECORDS]).tolist()
    for size in range(len(PLAIN)):
        records, problem = read(PLAIN[:size])
        assert records == RECORDS[: sum(end <= size for end in ends)]
        assert (problem is None) == (size in ends)


@pytest.mark.parametrize("contents", [PLAIN, gzip_member(PLAIN, level=0), GZIP], ids=["plain", "stored", "gzip"])
def test_no_flipped_bit_gives_other_records(read, contents):
    harmless = set()
    for bit in range(8 * len(contents)):
        records, problem = read(flipped(contents, bit))
        assert records == RECORDS[: len(records)]
        if problem is None:
            assert records == RECORDS
            harmless.add(bit)
    if contents is PLAIN:
        assert not harmless
    else:
        # In the header "is text", which nothing heeds, time, effort and system; and those that fill up a byte.
        header = {24, *range(32, 80)}
        assert header <= harmless
        assert len({bit // 8 for bit in harmless - header}) <= 1


def test_a_flipped_bit_below_the_compression_is_found_in_its_record(read):
    ends = np.cumsum([len(frame(record)) for record in RECORDS])
    for bit in range(0, 8 * len(PLAIN), 3):
        records, problem = read(gzip_member(flipped(PLAIN, bit)))
        assert len(records) == (ends <= bit // 8).sum()
        assert "not match" in problem


@pytest.mark.parametrize(
    ("contents", "problem"),
    [
        pytest.param(b"", "holds no record", id="empty"),
        pytest.param(gzip_member(b""), "holds no record", id="empty-gzip"),
        pytest.param(b"<html>404: no such object</html>", "no TFRecord file", id="html"),
        pytest.param(b"PK", "no TFRecord file", id="two-bytes"),
        pytest.param(gzip_member(b"tetrominoes_train.tfrecords" * 9), "length does not match", id="archive"),
        pytest.param(GZIP + b"\0", "no GZIP stream follow", id="zero-after-the-end"),
        pytest.param(GZIP + b"\x1f", "cut off", id="start-of-a-member-after-the-end"),
        pytest.param(GZIP + PLAIN, "no GZIP stream follow", id="plain-after-the-end"),
        pytest.param(GZIP[:-1] + bytes([GZIP[-1] ^ 1]), "incorrect length check", id="gzip-length"),
        pytest.param(GZIP[:-5] + bytes([GZIP[-5] ^ 1]) + GZIP[-4:], "incorrect data check", id="gzip-checksum"),
    ],
)
def test_what_is_no_whole_file_is_named(read, contents, problem):
    assert problem in read(contents)[1]


@pytest.mark.parametrize("length", [MAX_RECORD_BYTES + 1, 2**31, 2**62, 2**64 - 1])
def test_a_long_length_under_a_good_checksum_is_refused(read, length):
    records, problem = read(gzip_member(frame(b"one") + frame(b"two", length)))
    assert records == [b"one"]
    assert f"{length} bytes" in problem


def test_a_length_takes_no_memory_before_its_bytes_are_there(tmp_path):
    path = tmp_path / "file.tfrecords"
    path.write_bytes(frame(b"two", MAX_RECORD_BYTES))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="record 0: the file ends within the record"):
            next(read_records(path))
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()


def test_what_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(DataError, match=r"missing\.tfrecords: no such file"):
        read_records(tmp_path / "missing.tfrecords")
    with pytest.raises(DataError, match="no such file"):
        read_records(tmp_path / ("x" * 10_000))
    with pytest.raises(DataError, match=f"^{re.escape(str(tmp_path))}: not a file"):
        read_records(tmp_path)
    with pytest.raises(ValueError, match="skip: got -1"):
        read_records(tmp_path, -1)


def test_a_disk_that_fails_is_named(tmp_path, monkeypatch):
    class Failing(io.BytesIO):
        def read(self, size=-1):
            if self.tell() >= 2**16:
                raise OSError(errno.EIO, "Input/output error")
            return super().read(size)

    path = tmp_path / "file.tfrecords"
    path.touch()
    contents = gzip_member(frame(b"one") + frame(bytes(2**17)), level=0)
    monkeypatch.setattr(type(path), "open", lambda *_: Failing(contents))
    records = read_records(path)
    assert next(records) == b"one"
    with pytest.raises(
        DataError, match=r"file\.tfrecords: record 1: cannot be read \(Input/output error\): check the disk"
    ):
        next(records)


@pytest.mark.parametrize(
    ("feature", "expected"),
    [
        pytest.param(byte_strings(VALUES), VALUES, id="one-byte-strings"),
        pytest.param(strings(VALUES.tobytes()), VALUES, id="one-string"),
        pytest.param(strings(b"\n\1x"), np.frombuffer(b"\n\1x", np.uint8), id="one-string-like-one-byte-strings"),
        pytest.param(strings(b"x" * 298), np.full(298, ord("x"), np.uint8), id="one-string-with-a-long-length"),
        pytest.param(strings(b""), np.empty(0, np.uint8), id="one-empty-string"),
        pytest.param(message((1, b"")), np.empty(0, np.uint8), id="no-string"),
        pytest.param(floats(NUMBERS), NUMBERS, id="packed"),
        pytest.param(unpacked_floats(NUMBERS), NUMBERS, id="unpacked"),
        pytest.param(
            message((2, message((1, NUMBERS[:3].tobytes()), (1, b"")) + b"\x0d" + NUMBERS[3:].tobytes())),
            NUMBERS,
            id="packed-in-parts-and-unpacked",
        ),
        pytest.param(message((2, b"")), np.empty(0, np.float32), id="no-float"),
    ],
)
def test_a_feature_is_an_array(feature, expected):
    features = decode_example(example({"other": integers(7, 300), "it": feature, "more": feature}), {"it"})
    assert features.keys() == {"it"}
    assert features["it"].dtype == expected.dtype
    np.testing.assert_array_equal(features["it"], expected)
    assert features["it"].flags.writeable
    assert features["it"].flags.c_contiguous


def test_features_without_a_value_are_left_out():
    assert decode_example(example({"it": b""}), {"it"}) == {}
    assert decode_example(b"", {"it"}) == {}


GOOD = floats(NUMBERS)


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        pytest.param(example({"it": integers(1)}), "list of integers", id="integers"),
        pytest.param(example({"it": strings(b"a", b"bc")}), "list of strings", id="strings"),
        pytest.param(example({"it": strings(b"", b"a")}), "list of strings", id="empty-string"),
        pytest.param(example({"it": strings(b"a", b"")}), "list of strings", id="empty-string-last"),
        pytest.param(example({"it": message((1, message((2, b"ab"))))}), "list of strings", id="not-strings"),
        pytest.param(example({"it": GOOD + GOOD}), "2 lists", id="two-lists"),
        pytest.param(example({"it": GOOD}) * 2, "'it' occurs twice", id="twice"),
        pytest.param(example({"it": message((2, message((1, b"12345"))))}), "within a float", id="five-bytes"),
        pytest.param(example({"it": message((2, b"\x0d123"))}), "within a float", id="three-bytes-unpacked"),
        pytest.param(example({"it": message((2, b"\x081234"))}), "no list of floats", id="not-floats"),
        pytest.param(example({"it": message((4, b""))}), "unknown field 0x22", id="unknown-kind"),
        pytest.param(message((2, b"")), "unknown field 0x12 at byte 0", id="unknown-field"),
        pytest.param(b"\x08\x01", "unknown field 0x08 at byte 0", id="unknown-encoding"),
        pytest.param(b"\x0a\x05abc", "no 5 bytes are left at byte 2", id="longer-than-the-record"),
        pytest.param(b"\x0a" + varint(2**63), f"no {2**63} bytes", id="absurd-length"),
        pytest.param(b"\x0a" + b"\xff" * 20 + b"\1", "has no end", id="endless-length"),
        pytest.param(b"\x0a\x80", "has no end", id="cut-off-length"),
        pytest.param(b"\x0a", "has no end", id="no-length"),
        pytest.param(message((1, message((1, message((2, GOOD), (1, b"it")))))), "a name and a value", id="order"),
        pytest.param(message((1, message((1, message((1, b"it")))))), "a name and a value", id="no-value"),
        # These would fit into the record, and read on in what follows them there.
        pytest.param(b"\x0a\x02\x0a\x03" + b"\x0a\x01\x0a", "no 3 bytes are left", id="longer-than-its-message"),
        pytest.param(
            message((1, example({"it": message((2, b"\x0d123"))})[2:]), (1, b"")),
            "ends within a float",
            id="longer-than-its-list",
        ),
    ],
)
def test_what_is_no_example_is_named(record, problem):
    with pytest.raises(ExampleError, match=problem):
        decode_example(record, {"it"})


def test_a_million_strings_that_are_not_one_byte_each_are_refused_at_once():
    record = example({"it": message((1, b"\x0a\1x" * 10**6 + b"\x0a\0" + b"\x0a\2xx" + b"\x0a\0"))})
    with time_limit(1), pytest.raises(ExampleError, match="list of strings"):
        decode_example(record, {"it"})


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_an_example_or_refused(record):
    with contextlib.suppress(ExampleError):
        assert decode_example(record, {""}).keys() <= {""}


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=5),
        st.one_of(st.binary(max_size=200), st.lists(st.floats(width=32, allow_nan=False), max_size=50)),
        max_size=5,
    ),
    st.data(),
)
def test_examples_come_as_written_and_damaged_ones_are_refused_or_arrays(values, data):
    arrays = {
        name: np.frombuffer(value, np.uint8) if isinstance(value, bytes) else np.array(value, np.float32)
        for name, value in values.items()
    }
    encode = {
        np.dtype(np.uint8): st.sampled_from([byte_strings, lambda array: strings(array.tobytes())]),
        np.dtype(np.float32): st.sampled_from([floats, unpacked_floats]),
    }
    record = example({name: data.draw(encode[array.dtype])(array) for name, array in arrays.items()})
    features = decode_example(record, arrays.keys())
    assert features.keys() == arrays.keys()
    for name, array in arrays.items():
        assert features[name].dtype == array.dtype
        np.testing.assert_array_equal(features[name], array)

    at = data.draw(st.integers(0, max(len(record) - 1, 0)))
    damaged = record[:at] + data.draw(st.binary(max_size=3)) + record[at + data.draw(st.integers(0, 3)) :]
    try:
        features = decode_example(damaged, arrays.keys())
    except ExampleError:
        return
    assert all(array.dtype in encode and array.ndim == 1 for array in features.values())


def test_the_checksum_package_is_asked_for_only_to_read(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    path = tmp_path / "file.tfrecords"
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"reading it needs `pip install google-crc32c`"):
        read_records(path)
