import errno
import resource
import signal

import numpy as np
import pytest

from slotattn_fast.data.row_file import RowFile, finish

LABELS = np.dtype(np.uint8), (3, 2)
ROWS = np.random.default_rng(0).integers(0, 256, (7, 3, 2), np.uint8)


def write(path, pieces):
    """Writes rows [first, last) of ROWS for each pair."""
    file = RowFile(path, *LABELS)
    for first, last in pieces:
        file.write(first, ROWS[first:last])
    file.sync()
    file.close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a file.npy"


@pytest.fixture
def saved(tmp_path):
    """What np.save makes of ROWS."""
    np.save(tmp_path / "saved.npy", ROWS)
    return (tmp_path / "saved.npy").read_bytes()


@pytest.mark.parametrize(
    "sessions",
    [
        pytest.param([[(0, 7)]], id="at once"),
        pytest.param([[(i, i + 1) for i in (3, 6, 0, 5, 1, 4, 2)]], id="in any order"),
        pytest.param([[(0, 3)], [(3, 7)]], id="taken up again"),
        pytest.param([[(0, 5)], [(2, 7)]], id="rows written twice"),
        pytest.param([[(6, 7)], [(0, 6)]], id="the last first"),
    ],
)
def test_rows_end_up_as_numpy_saves_them(path, saved, sessions):
    for pieces in sessions:
        write(path, pieces)
        assert len(np.load(path)) == 0  # not yet
    finish(path, 7)
    assert path.read_bytes() == saved


def test_finishing_again_or_with_other_rows(path, saved):
    write(path, [(0, 7)])
    for rows in (7, 7, 4):
        finish(path, rows)
        np.testing.assert_array_equal(np.load(path), ROWS[:rows])
    write(path, [(4, 7)])
    finish(path, 7)
    assert path.read_bytes() == saved


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [(np.uint8, ()), (np.float32, (10, 3)), (np.uint8, (128, 128, 3)), (np.float32, (1,)), (np.int64, (0, 2))],
)
def test_every_shape_and_a_large_number_of_rows_keep_the_headers_length(path, tmp_path, dtype, shape):
    rows = np.random.default_rng(0).integers(0, 100, (5, *shape)).astype(dtype)
    file = RowFile(path, np.dtype(dtype), shape)
    file.write(0, rows)
    file.close()
    finish(path, 5)
    np.save(tmp_path / "saved.npy", rows)
    assert path.read_bytes() == (tmp_path / "saved.npy").read_bytes()
    written = path.stat().st_size - rows.nbytes
    if len(shape) < 3:
        finish(path, 10**7)  # a sparse file
        array = np.load(path, mmap_mode="r")
        assert array.shape == (10**7, *shape)
        assert path.stat().st_size == written + array.nbytes


@pytest.mark.parametrize(
    "rows", [np.zeros((1, 3, 2), np.int8), np.zeros((1, 2, 3), np.uint8), np.zeros((3, 2), np.uint8), np.zeros(1)]
)
def test_other_rows_are_refused(path, rows):
    file = RowFile(path, *LABELS)
    with pytest.raises(ValueError, match=r"^got rows .*, expected uint8 \(3, 2\)$"):
        file.write(0, rows)
    file.close()


@pytest.fixture
def small_disk():
    """Files can have 150 000 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("small_disk")
@pytest.mark.parametrize("row_bytes", [100_000, 100])  # more than is buffered, and less
def test_a_full_disk_is_an_error_that_names_the_file(path, row_bytes):
    rows = np.zeros((1, row_bytes), np.uint8)
    file = RowFile(path, rows.dtype, rows.shape[1:])
    file.write(0, rows)
    errors = []
    for do in (lambda: file.write(150_000 // row_bytes + 1, rows), file.sync, file.close, file.close):
        try:
            do()
        except OSError as error:
            errors.append((error.errno, error.filename))
    assert errors in ([(errno.EFBIG, str(path))], 2 * [(errno.EFBIG, str(path))])
    assert path.stat().st_size <= 150_000
