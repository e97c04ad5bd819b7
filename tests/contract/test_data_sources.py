"""One suite for every source in files: three formats, compressed or not, on file:// and s3://."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pytest
from data_rig import ROWS, Here, encoded, joined, on_disk, on_s3, read_all, table
from object_store import FaultProxy, ObjectStore, object_store

from batchline.batch import Input
from batchline.data import open_source, s3_client, s3_place
from batchline.data.contract import Places, typeless
from batchline.data.local_place import open_below
from batchline.data.places import place_of
from batchline.errors import SourceError, SourceUnavailableError


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


ALL = ["parquet", "csv", "jsonl", "csv.gz", "jsonl.gz"]


@pytest.mark.parametrize("ending", ALL)
def test_every_row_is_read_once_in_order(here: Here, ending: str) -> None:
    """Pieces in order, put together, are the data set: same rows, same values, whatever the size of slices."""
    here.put(f"a.{ending}", encoded(table(), ending))
    source = here.source(f"a.{ending}")
    assert source.schema().names == ["id", "f0", "f1", "name"]
    for slice_rows in (333, 1300, 100_000):
        got = read_all(source, slice_rows)
        assert all(0 < rows.batch.num_rows <= 700 and not rows.faults for rows in got)
        assert joined(got).to_pydict() == table().to_pydict()


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_pieces_are_exact_and_read_by_themselves(here: Here, ending: str) -> None:
    """A piece holds as many rows as it says, at most about a slice, and can be read by anybody in any order."""
    here.put(f"a.{ending}", encoded(table(), ending))
    pieces = list(here.source(f"a.{ending}").pieces(500))
    assert sum(piece.rows for piece in pieces) == ROWS
    assert max(piece.rows for piece in pieces) <= 625
    first = 0
    ends = {}
    for piece in pieces:
        ends[piece.span] = first
        first += piece.rows
    for piece in reversed(pieces):
        got = joined(list(here.source(f"a.{ending}").read(piece, ["id"], batch_rows=64)))
        assert got.column("id").to_pylist() == list(range(ends[piece.span], ends[piece.span] + piece.rows))


@pytest.mark.parametrize("ending", ALL)
def test_columns_come_as_they_are_asked_for(here: Here, ending: str) -> None:
    """Only the columns that are asked for, in that order."""
    here.put(f"a.{ending}", encoded(table(100), ending))
    got = read_all(here.source(f"a.{ending}"), 50, ["f1", "id"])
    assert joined(got).schema.names == ["f1", "id"]
    assert joined(got).column("id").to_pylist() == list(range(100))


@pytest.mark.parametrize("uri", ["many/*.csv", "many/", "many", "**/*.csv", "many/part-[0-1]?.csv", "many/part-??.csv"])
def test_a_glob_or_folder_is_all_its_files_by_name(here: Here, uri: str) -> None:
    """Files are read in order of their names; hidden ones, error parts and manifests of a folder are not data."""
    for part in (10, 2, 0, 1):
        here.put(f"many/part-{part:02d}.csv", encoded(table(10, part * 10), "csv"))
    for other in (".hidden.csv", "errors-00.csv", "manifest.json"):
        if "*" not in uri and "?" not in uri:
            here.put(f"many/{other}", b"x\n1\n")
    got = joined(read_all(here.source(uri, "csv"), 15))
    assert got.column("id").to_pylist() == [*range(30), *range(100, 110)]


def test_a_pattern_stays_within_its_folder(here: Here) -> None:
    """`*` does not cross folders; `**` does."""
    here.put("a/x.csv", b"a\n1\n")
    here.put("a/b/x.csv", b"a\n2\n")
    assert joined(read_all(here.source("a/*.csv"), 10)).column("a").to_pylist() == [1]
    assert sorted(joined(read_all(here.source("a/**/*.csv"), 10)).column("a").to_pylist()) == [1, 2]


@pytest.mark.parametrize("uri", ["none.csv", "none/*.csv", "none/"])
def test_what_is_not_there_is_named(here: Here, uri: str) -> None:
    """No such file, no match: SourceError naming what was asked for."""
    with pytest.raises(SourceError, match="none"):
        here.source(uri, "csv").schema()


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_an_empty_file_is_told(here: Here, ending: str) -> None:
    """A file of no bytes has no schema."""
    here.put(f"a.{ending}", b"")
    with pytest.raises(SourceError, match="empty"):
        here.source(f"a.{ending}").schema()


@pytest.mark.parametrize("ending", ALL)
def test_a_table_without_rows_has_no_pieces(here: Here, ending: str) -> None:
    """A header or footer alone is a data set of no rows, and so is JSONL without lines; its types are not known, but
    those of the next file that has rows are.
    """
    here.put(f"a.{ending}", encoded(table(0), ending))
    assert list(here.source(f"a.{ending}").pieces(10)) == []
    names = [] if "jsonl" in ending else table(0).column_names
    assert here.source(f"a.{ending}").schema().names == names
    assert typeless(here.source(f"a.{ending}").schema()) is (ending != "parquet")
    here.put(f"b.{ending}", encoded(table(10), ending))
    assert here.source(f"*.{ending}").schema().types[0] == pa.int64()


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_a_file_that_changed_since_the_plan_is_not_read(here: Here, ending: str) -> None:
    """The version of the plan is asked for; another one is a SourceError that names the file."""
    here.put(f"a.{ending}", encoded(table(), ending))
    source = here.source(f"a.{ending}")
    piece = next(source.pieces(1000))
    here.put(f"a.{ending}", encoded(table(ROWS, 1), ending))
    with pytest.raises(SourceError, match=rf"a\.{ending} has changed"):
        list(source.read(piece, None, batch_rows=100))


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_a_file_that_changes_while_it_is_read_is_told(here: Here, ending: str) -> None:
    """What was read of two versions never passes for a whole piece."""
    here.put(f"a.{ending}", encoded(table(), ending))
    source = here.source(f"a.{ending}")
    (piece,) = source.pieces(ROWS)
    reading = source.read(piece, None, batch_rows=100)
    next(reading)
    here.remove(f"a.{ending}")
    here.put(f"a.{ending}", encoded(table(ROWS, 1), ending))
    try:
        got = joined(list(reading))
    except SourceError:
        return
    else:  # all of it had been fetched before, in one version
        assert got.column("id").to_pylist() == list(range(100, ROWS))


def test_an_open_file_is_one_version(here: Here) -> None:
    """Reads after a replacement give the old bytes or an error, and `verify` tells; never a mixture."""
    here.put("a.csv", b"a" * 1000)
    file = place_of(f"{here.root}/a.csv", here.places).open(f"{here.root}/a.csv")
    assert file.read_at(0, 10) == b"a" * 10
    here.remove("a.csv")
    here.put("a.csv", b"b" * 1000)
    with pytest.raises(SourceError, match="has changed"):  # noqa: PT012 - whichever of the two tells
        assert file.read_at(500, 10) == b"a" * 10
        file.verify()
    file.close()


def test_a_truncated_parquet_file_is_told(here: Here) -> None:
    """Half a file: SourceError naming it, without pyarrow's own words."""
    data = encoded(table(), "parquet")
    here.put("half.parquet", data[: len(data) // 2])
    with pytest.raises(SourceError, match=r"half\.parquet is no Parquet file"):
        here.source("half.parquet").schema()


def test_a_damaged_parquet_page_is_told(here: Here) -> None:
    """A good footer over bad pages is found when they are read."""
    data = encoded(table(), "parquet")
    here.put("bad.parquet", data[:100] + b"\xff" * 4000 + data[4100:])
    source = here.source("bad.parquet")
    with pytest.raises(SourceError, match=r"bad\.parquet"):
        read_all(source, 1000)


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_a_column_that_is_missing_is_named(here: Here, ending: str) -> None:
    """One file of many lacks a column: SourceError naming file and column."""
    here.put(f"a.{ending}", encoded(table(10), ending))
    here.put(f"b.{ending}", encoded(table(10).drop_columns(["f1"]), ending))
    source = here.source(f"*.{ending}")
    with pytest.raises(SourceError, match=rf"b\.{ending} has no column 'f1'"):
        read_all(source, 100, ["f0", "f1"])


class TestBounds:
    """What file:// must not reach."""

    @pytest.mark.parametrize(
        "way", ["/../secret.csv", "/sub/../../secret.csv", "/%2e%2e/secret.csv", "/link.csv", "/up/secret.csv"]
    )
    def test_nothing_leads_out_of_the_roots(self, local: Here, tmp_path: Path, way: str) -> None:
        """Neither dots, encoded or not, nor links to files or folders."""
        (tmp_path / "secret.csv").write_bytes(b"a\n1\n")
        root = tmp_path / "root"
        (root / "sub").mkdir()
        (root / "link.csv").symlink_to(tmp_path / "secret.csv")
        (root / "up").symlink_to(tmp_path)
        with pytest.raises(SourceError) as told:
            local.source(way[1:]).schema()
        assert "not below a folder" in told.value.detail
        for pattern in ("*.csv", "up/*.csv", "../*.csv"):
            with pytest.raises(SourceError):
                local.source(pattern).schema()

    @pytest.mark.parametrize("parts", [["link.csv"], ["up", "secret.csv"]])
    def test_a_link_put_in_between_is_not_followed(self, tmp_path: Path, parts: list[str]) -> None:
        """A path is resolved first; what is a link by the time it is opened came later, and is refused."""
        (tmp_path / "secret.csv").write_bytes(b"a\n1\n")
        (tmp_path / "root").mkdir()
        (tmp_path / "root" / "link.csv").symlink_to(tmp_path / "secret.csv")
        (tmp_path / "root" / "up").symlink_to(tmp_path)
        with pytest.raises(OSError, match=r"symbolic links|Not a directory"):
            open_below(str(tmp_path / "root"), parts, os.O_RDONLY)

    def test_links_that_stay_within_are_followed(self, local: Here, tmp_path: Path) -> None:
        """`current -> 2026-11-22` is how folders are versioned."""
        local.put("2026/a.csv", b"a\n1\n")
        (tmp_path / "root" / "current").symlink_to(tmp_path / "root" / "2026")
        assert joined(read_all(local.source("current/a.csv"), 9)).to_pydict() == {"a": [1]}
        assert joined(read_all(local.source("current/*.csv"), 9)).to_pydict() == {"a": [1]}

    def test_without_roots_there_is_no_file(self, tmp_path: Path) -> None:
        """The operator allows none unless said."""
        with pytest.raises(SourceError, match="BATCHLINE_DATA_ROOTS"):
            open_source(Input(uri=f"file://{tmp_path}/a.csv"), Places("file:///blobs"))

    def test_the_blob_store_is_out_of_reach(self, tmp_path: Path) -> None:
        """Other tenants' uploads lie there, also when it stands within a root."""
        (tmp_path / "blobs").mkdir()
        (tmp_path / "blobs" / "a.jsonl").write_bytes(b'{"a":1}\n')
        (tmp_path / "b.jsonl").write_bytes(b'{"a":2}\n')
        places = Places(f"file://{tmp_path}/blobs", (str(tmp_path),))
        with pytest.raises(SourceError, match="not below"):
            open_source(Input(uri=f"file://{tmp_path}/blobs/a.jsonl"), places).schema()
        assert joined(read_all(open_source(Input(uri=f"file://{tmp_path}/**/*.jsonl"), places), 9)).num_rows == 1
        with pytest.raises(SourceError, match="own store"):
            open_source(Input(uri="s3://bucket/blobs/a.jsonl"), Places("s3://bucket/blobs")).schema()

    @pytest.mark.parametrize("name", ["a b.csv", "ä%.csv", "[x]?.csv", "a#b.csv"])
    def test_names_are_percent_encoded(self, local: Here, name: str) -> None:
        """As RFC 8089 has it; encoded wildcards are letters."""
        local.put(name, b"a\n1\n")
        local.put("zz.csv", b"a\n2\n")
        assert joined(read_all(local.source(quote(name)), 9)).to_pydict() == {"a": [1]}
        assert joined(read_all(local.source("*.csv"), 9)).num_rows == 2

    def test_a_pipe_is_no_file(self, local: Here, tmp_path: Path) -> None:
        """It would be waited for without end."""
        os.mkfifo(tmp_path / "root" / "a.csv")
        with pytest.raises(SourceError, match="is no file"):
            local.source("a.csv").schema()

    @pytest.mark.parametrize("uri", ["http://x/a.csv", "file://a.csv", "s3://", "s3://A_b/c.csv", "file:///a\0.csv"])
    def test_what_is_no_uri_is_refused(self, uri: str) -> None:
        """Other schemes, relative paths, names no bucket can have."""
        with pytest.raises(SourceError):
            open_source(Input(uri=uri, format="csv"), Places("file:///blobs", ("/",))).schema()


class TestFaults:
    """An S3 that refuses, stalls or breaks off."""

    @pytest.fixture
    def proxy(self, s3: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Generator[FaultProxy]:
        monkeypatch.setattr(s3_client, "SILENCE_S", 0.5)
        monkeypatch.setattr(s3_client, "TRIES", 2)
        proxy = FaultProxy(s3.endpoint)
        yield proxy
        proxy.close()

    @pytest.fixture
    def uri(self, s3: ObjectStore) -> str:
        bucket = s3.bucket()
        s3.client.put_object(Bucket=bucket, Key="a.csv", Body=encoded(table(), "csv"))
        return f"s3://{bucket}/a.csv"

    @pytest.mark.parametrize(
        ("fate", "error"),
        [
            (403, SourceError),
            (404, SourceError),
            (500, SourceUnavailableError),
            (503, SourceUnavailableError),
            (429, SourceUnavailableError),
            ("stall", SourceUnavailableError),
            ("cut", SourceUnavailableError),
        ],
    )
    def test_refusals_are_final_and_silence_is_not(
        self, proxy: FaultProxy, uri: str, fate: int | str, error: type[Exception]
    ) -> None:
        """403 and 404 are the batch's fault; 5xx, 429, silence and broken answers may be tried again."""
        source = open_source(Input(uri=uri), Places("file:///blobs", s3_endpoint_url=proxy.endpoint))
        (piece,) = source.pieces(ROWS)
        proxy.seen.clear()
        proxy.rule = lambda method, _path: fate if method == "GET" else None
        with pytest.raises(error, match=r"a\.csv") as told:
            list(source.read(piece, None, batch_rows=1000))
        assert type(told.value) is error
        assert "http" not in str(told.value)
        assert len(proxy.seen) <= 1 + 3 * 2

    def test_one_broken_answer_costs_nothing(self, proxy: FaultProxy, uri: str) -> None:
        """A read that breaks off is tried again."""
        source = open_source(Input(uri=uri), Places("file:///blobs", s3_endpoint_url=proxy.endpoint))
        left = ["cut", 503]
        proxy.rule = lambda method, _path: left.pop() if method == "GET" and left else None
        assert joined(read_all(source, ROWS)).to_pydict() == table().to_pydict()
        assert not left

    def test_a_trickle_has_an_end(self, proxy: FaultProxy, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """However steadily bytes drip, one read has a deadline."""
        monkeypatch.setattr(s3_place, "BODY_S", -1.0)
        source = open_source(Input(uri=uri), Places("file:///blobs", s3_endpoint_url=proxy.endpoint))
        with pytest.raises(SourceUnavailableError):
            source.schema()
