"""What is odd in CSV and JSONL: faults of one row, of a whole file, and of its compression."""

from __future__ import annotations

import gzip
from collections.abc import Generator
from pathlib import Path

import pyarrow as pa
import pytest
from data_rig import Here, encoded, joined, on_disk, on_s3, read_all, table
from object_store import ObjectStore, object_store

from batchline.data import text_blocks
from batchline.data.contract import MAYBE_NUMBERS, UNTYPED, marked
from batchline.errors import SourceError


@pytest.fixture(scope="module")
def s3() -> Generator[ObjectStore]:
    with object_store() as store:
        yield store


@pytest.fixture(params=["file", "s3"])
def here(request: pytest.FixtureRequest, tmp_path: Path) -> Here:
    return on_disk(tmp_path) if request.param == "file" else on_s3(request.getfixturevalue("s3"))


@pytest.fixture
def local(tmp_path: Path) -> Here:
    return on_disk(tmp_path)


def test_a_csv_line_with_too_many_values_is_a_fault_of_its_row(here: Here) -> None:
    """Rows with too few or too many values, or values of another type, keep their place and are told."""
    lines = [b"a,b"] + [b"%d,%d.5" % (n, n) for n in range(30)]
    lines[4], lines[7] = b"3", b"6,6,6"
    lines.insert(6, b"")
    here.put("a.csv", b"\r\n".join([*lines, b""]))
    (got,) = read_all(here.source("a.csv"), 100)
    assert got.batch.num_rows == 30
    assert sorted(got.faults) == [3, 6]
    assert "1 values" in got.faults[3]
    assert got.batch.column("a").to_pylist()[5:9] == [5, None, 7, 8]


def test_a_value_that_is_no_number_is_a_fault_of_its_row(here: Here) -> None:
    """Far behind: a fault. Among the first rows: text, marked for the mapper, unless there are more words."""
    many = [b"a,b"] + [b"%d,%d.5" % (n, n) for n in range(200_000)]
    many[150_001] = b"150000,nine"
    here.put("late.csv", b"\n".join(many))
    got = read_all(here.source("late.csv"), 1_000_000, batch_rows=1_000_000)
    told = [why for part in got for why in part.faults.values()]
    assert told == ["column b: 'nine' is no number"]
    assert joined(got).num_rows == 200_000
    here.put("early.csv", b"a,b,c,d\n1,2,y,n\n3,x,z,0\n")
    schema = here.source("early.csv").schema()
    assert schema.types == [pa.int64(), pa.string(), pa.string(), pa.string()]
    assert [marked(field, MAYBE_NUMBERS) for field in schema] == [False, True, False, True]
    assert all(marked(field, UNTYPED) for field in schema)
    (got,) = read_all(here.source("early.csv"), 100)
    assert [marked(field, MAYBE_NUMBERS) for field in got.batch.schema] == [False, True, True, True]


def test_text_that_is_not_utf8_is_a_fault_of_its_row(here: Here) -> None:
    """Latin-1, from the first row or far behind: told by row and column with what to do; the rest is read."""
    rows = [b"a,b"] + [b"%d,%s" % (n, b"xyz" * 20) for n in range(30_000)]
    rows[1], rows[3], rows[29_000] = (f"{n},Zürich".encode("latin-1" if n != 2 else "utf-8") for n in (0, 2, 28_999))
    here.put("a.csv", b"\n".join([*rows, b""]))
    here.put("a.jsonl", b"".join(b'{"a":%s,"b":"%s"}\n' % tuple(row.split(b",")) for row in rows[1:]))
    for name, told in (("a.csv", "column b: the text is not UTF-8; "), ("a.jsonl", "the line is not UTF-8; ")):
        assert here.source(name).schema().types == [pa.int64(), pa.string()]
        (got,) = read_all(here.source(name), 100_000, batch_rows=100_000)
        assert dict(got.faults) == dict.fromkeys((0, 28_999), told + "save the file as UTF-8")
        assert got.batch.column("b").to_pylist()[1:3] == ["xyz" * 20, "Zürich"]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_other_encodings_of_a_whole_file_are_named(here: Here, ending: str) -> None:
    """UTF-16 with its mark, and a header of Latin-1."""
    text = "a,Größe\n1,2\n"
    here.put(f"wide.{ending}", text.encode("utf-16"))
    with pytest.raises(SourceError, match=rf"wide\.{ending} is UTF-16; save it as UTF-8"):
        here.source(f"wide.{ending}").schema()
    if ending == "csv":
        here.put("latin.csv", text.encode("latin-1"))
        with pytest.raises(SourceError, match=r"latin\.csv: the first line is not UTF-8"):
            here.source("latin.csv").schema()


@pytest.mark.parametrize("ending", ["csv", "jsonl", "csv.gz", "jsonl.gz"])
def test_a_byte_order_mark_is_no_part_of_the_text(here: Here, ending: str) -> None:
    """As spreadsheets put it before UTF-8; rows and spans are the same as without."""
    data = b"\xef\xbb\xbf" + encoded(table(100), ending.removesuffix(".gz"))
    here.put(f"a.{ending}", gzip.compress(data) if ending.endswith(".gz") else data)
    for slice_rows in (30, 1000):
        got = read_all(here.source(f"a.{ending}"), slice_rows)
        assert not any(rows.faults for rows in got)
        assert joined(got).to_pydict() == table(100).to_pydict()


def test_numbers_that_turn_out_to_be_fractions_are_no_fault(here: Here) -> None:
    """A column of whole numbers with a fraction far behind becomes one of floats."""
    rows = 90_000
    here.put("a.csv", b"a,b\n" + b"".join(b"%d,%s\n" % (n, b"x" * 20) for n in range(rows)) + b"0.5,x\n")
    here.put("a.jsonl", b"".join(b'{"a":%d,"b":"%s"}\n' % (n, b"x" * 20) for n in range(rows)) + b'{"a":0.5,"b":"x"}\n')
    for name in ("a.csv", "a.jsonl"):
        got = read_all(here.source(name), 1_000_000)
        assert not any(part.faults for part in got)
        assert got[-1].batch.column("a").to_pylist()[-1] == 0.5


def test_an_open_quotation_mark_is_told_with_its_row(here: Here) -> None:
    """A quote that never ends would swallow the file: SourceError with the row behind which it begins."""
    here.put("a.csv", b'a,b\n1,2\n3,4\n5,"six\n7,8\n')
    with pytest.raises(SourceError, match=r"a\.csv: after row .* never ends"):
        list(here.source("a.csv").pieces(10))


def test_quotation_marks_within_values_are_letters(here: Here) -> None:
    """Stray quotes and quotes behind a blank do not hide newlines."""
    here.put("a.csv", b'a,b\n1,5" pipe\n2, "x"\n3,"line\nbreak ""q"""\n4,y\n')
    got = joined(read_all(here.source("a.csv"), 2))
    assert got.column("a").to_pylist() == [1, 2, 3, 4]
    assert got.column("b").to_pylist()[2] == 'line\nbreak "q"'


def test_bad_json_lines_are_faults_of_their_rows(here: Here) -> None:
    """No JSON, no object, another type: the row keeps its place; blank lines are no rows."""
    here.put("a.jsonl", b'\xef\xbb\xbf{"a":1,"b":"x"}\n\n{"a":\n[1]\n{"a":"two","b":"y"}\n{"a":3}\n{"b":"\xff"}\n')
    (got,) = read_all(here.source("a.jsonl"), 100)
    assert sorted(got.faults) == [1, 2, 3, 5]
    assert got.batch.column("a").to_pylist() == [1, None, None, None, 3, None]
    assert got.batch.column("b").to_pylist() == ["x", None, None, "y", None, None]


def test_bare_lines_are_the_column_value(here: Here) -> None:
    """A line may be the row itself."""
    here.put("a.jsonl", b"[1,2]\n[3.5,4]\n")
    here.put("b.jsonl", b'"one"\n"two"\n')
    assert joined(read_all(here.source("a.jsonl"), 9)).to_pydict() == {"value": [[1, 2], [3.5, 4]]}
    assert joined(read_all(here.source("b.jsonl"), 9)).to_pydict() == {"value": ["one", "two"]}


def test_timestamps_in_json_stay_text(here: Here) -> None:
    """Text that looks like a date is text."""
    here.put("a.jsonl", b'{"t":"2026-01-01T00:00:00"}\n')
    assert joined(read_all(here.source("a.jsonl"), 9)).to_pydict() == {"t": ["2026-01-01T00:00:00"]}


def test_a_gzip_bomb_is_refused(here: Here) -> None:
    """A file that swells beyond every real table's ratio is refused by name, in bounded memory."""
    here.put("bomb.jsonl.gz", gzip.compress((b'{"a":' + b"1" * 1000 + b"}\n") * 150_000))
    with pytest.raises(SourceError, match=r"bomb\.jsonl\.gz swells"):
        list(here.source("bomb.jsonl.gz").pieces(1000))


def test_an_endless_line_is_refused(local: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row has a greatest length."""
    monkeypatch.setattr(text_blocks, "MAX_ROW_BYTES", 1 << 20)
    local.put("a.jsonl", b'{"a":1}\n{"a":"' + b"x" * (3 << 20) + b'"}\n')
    with pytest.raises(SourceError, match=r"a\.jsonl: a row after row 1 is longer"):
        list(local.source("a.jsonl").pieces(1000))


@pytest.mark.parametrize("cut", [40, -3])
def test_a_damaged_gzip_file_is_told(here: Here, cut: int) -> None:
    """Truncated or not gzip at all: SourceError by name."""
    here.put("a.csv.gz", encoded(table(), "csv.gz")[:cut])
    with pytest.raises(SourceError, match=r"a\.csv\.gz is truncated"):
        list(here.source("a.csv.gz").pieces(1000))
    here.put("b.csv.gz", b"a,b\n1,2\n")
    with pytest.raises(SourceError, match=r"b\.csv\.gz is no gzip"):
        here.source("b.csv.gz").schema()


def test_gzip_members_follow_one_another(here: Here) -> None:
    """Files that were put together by appending are one text."""
    here.put("a.jsonl.gz", gzip.compress(b'{"a":1}\n{"a"') + gzip.compress(b":2}\n") + b"\0" * 10)
    assert joined(read_all(here.source("a.jsonl.gz"), 9)).to_pydict() == {"a": [1, 2]}


@pytest.mark.parametrize("header", [b"a,a\n1,2\n", b'{"a":1}\n'])
def test_names_that_stand_twice_are_refused(here: Here, header: bytes) -> None:
    """Two columns of one name cannot be told apart."""
    here.put("a.csv", header)
    if header.startswith(b"a"):
        with pytest.raises(SourceError, match="two columns named 'a'"):
            here.source("a.csv").schema()
