"""What S3 is asked for: each test counts requests and bytes, as these are what S3 costs and what a batch waits for."""

from __future__ import annotations

import gzip
import io
import json
import uuid
from collections import Counter
from collections.abc import Generator, Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError, CredentialRetrievalError
from object_store import FaultProxy, ObjectStore, Passed, object_store

from batchline.batch import Input, Output, Piece
from batchline.data import open_sink, open_source, parquet_files, read_ahead, s3_client, s3_folder
from batchline.data.blobs import Blobs
from batchline.data.contract import Places, SinkContext, Source
from batchline.data.many_pieces import read_pieces
from batchline.data.remembered import Remembered
from batchline.errors import SinkError, SourceError, SourceUnavailableError

ROWS, GROUP_ROWS, COLUMNS = 20_000, 5000, 30
WANTED = ["f3", "f14", "f27"]


@pytest.fixture(scope="module")
def s3() -> Generator[ObjectStore]:
    with object_store() as store:
        yield store


@pytest.fixture
def proxy(s3: ObjectStore) -> Generator[FaultProxy]:
    proxy = FaultProxy(s3.endpoint)
    yield proxy
    proxy.close()


@pytest.fixture
def bucket(s3: ObjectStore) -> str:
    return s3.bucket()


def places(proxy: FaultProxy, blobs: str = "file:///nowhere") -> Places:
    return Places(blobs, (), {}, proxy.endpoint)


def source(proxy: FaultProxy, uri: str) -> Source:
    return open_source(Input(uri=uri, format="parquet" if uri.endswith("/") else None), places(proxy))


def table(rows: int = ROWS) -> pa.Table:
    random = np.random.default_rng(3)
    return pa.table({"id": np.arange(rows), **{f"f{n}": random.random(rows) for n in range(COLUMNS)}})


def parquet(data: pa.Table, group_rows: int = GROUP_ROWS) -> bytes:
    out = io.BytesIO()
    pq.write_table(data, out, row_group_size=group_rows, compression="none", use_dictionary=False)
    return out.getvalue()


def text(data: pa.Table, ending: str) -> bytes:
    out = io.BytesIO()
    if ending.startswith("csv"):
        pacsv.write_csv(data, out)
    else:
        out.write(b"".join(json.dumps(row).encode() + b"\n" for row in data.to_pylist()))
    return gzip.compress(out.getvalue(), 1) if ending.endswith(".gz") else out.getvalue()


def kinds(passed: Iterable[Passed]) -> dict[str, int]:
    return dict(Counter(request.kind for request in passed))


def size(passed: Iterable[Passed]) -> int:
    return sum(request.bytes for request in passed)


def read(from_: Source, piece: Piece, columns: Sequence[str] = WANTED) -> pa.Table:
    return pa.Table.from_batches([rows.batch for rows in from_.read(piece, columns, batch_rows=2000)])


def test_planning_many_parquet_files_reads_a_listing_and_their_footers_side_by_side(
    s3: ObjectStore, proxy: FaultProxy, bucket: str
) -> None:
    """The listing tells versions and sizes: no HEAD. One GET a file for schema and plan together, several at once."""
    data = parquet(table(2000), 500)
    for n in range(8):
        s3.client.put_object(Bucket=bucket, Key=f"in/{n:02}.parquet", Body=data)
    proxy.delay_s = 0.05
    planned = source(proxy, f"s3://{bucket}/in/")
    planned.schema()
    assert sum(piece.rows for piece in planned.pieces(500)) == 8 * 2000
    passed = proxy.take()
    assert kinds(passed) == {"LIST": 2, "GET": 8}
    footers = [request for request in passed if request.kind == "GET"]
    assert max(request.bytes for request in footers) <= 64 << 10 < len(data)
    assert proxy.most_at_once >= 4


def test_a_slice_of_parquet_is_its_column_chunks_and_nothing_else(
    s3: ObjectStore, proxy: FaultProxy, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One GET a column chunk, several on their way at once; footer and size were read with the first slice."""
    s3.client.put_object(Bucket=bucket, Key="a.parquet", Body=parquet(table(), GROUP_ROWS))
    uri = f"s3://{bucket}/a.parquet"
    first, second = source(proxy, uri).pieces(2 * GROUP_ROWS)
    monkeypatch.setattr(parquet_files, "_footers", Remembered[pq.FileMetaData](1000))  # as in another process
    proxy.take()
    reader, proxy.delay_s = source(proxy, uri), 0.05
    expected = table().select(WANTED)
    assert read(reader, first).equals(expected.slice(0, 2 * GROUP_ROWS))
    assert kinds(proxy.take()) == {"GET": 1 + 2 * len(WANTED)}
    assert read(source(proxy, uri), second).equals(expected.slice(2 * GROUP_ROWS))
    passed = proxy.take()
    assert kinds(passed) == {"GET": 2 * len(WANTED)}
    assert size(passed) <= 1.02 * 2 * GROUP_ROWS * len(WANTED) * 8
    assert proxy.most_at_once >= 2 * len(WANTED)


def test_columns_that_lie_side_by_side_come_by_one_request(s3: ObjectStore, proxy: FaultProxy, bucket: str) -> None:
    """Also across row groups, up to a window's size."""
    data = parquet(table(), GROUP_ROWS)
    s3.client.put_object(Bucket=bucket, Key="a.parquet", Body=data)
    uri = f"s3://{bucket}/a.parquet"
    (piece,) = source(proxy, uri).pieces(ROWS)
    proxy.take()
    names = [f"f{n}" for n in range(COLUMNS)]
    assert read(source(proxy, uri), piece, names).equals(table().select(names))
    passed = proxy.take()
    assert kinds(passed) == {"GET": len(passed)}
    assert -(-len(data) // read_ahead.WINDOW_BYTES) <= len(passed) <= 3
    assert size(passed) < len(data) * 1.01


def test_a_row_group_larger_than_memory_is_read_in_windows(
    s3: ObjectStore, proxy: FaultProxy, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its chunks are cut and fetched side by side; no byte comes twice, and the rows are the same."""
    monkeypatch.setattr(parquet_files, "_BUFFERS_BYTES", 64 << 10)
    monkeypatch.setattr(parquet_files, "_MIN_BUFFER_BYTES", 16 << 10)
    monkeypatch.setattr(parquet_files, "WINDOW_BYTES", 16 << 10)
    s3.client.put_object(Bucket=bucket, Key="a.parquet", Body=parquet(table(), ROWS))
    uri = f"s3://{bucket}/a.parquet"
    pieces = list(source(proxy, uri).pieces(GROUP_ROWS))
    proxy.take()
    reader = source(proxy, uri)
    assert pa.concat_tables(read(reader, piece) for piece in pieces).equals(table().select(WANTED))
    passed = proxy.take()
    assert len(passed) == len(WANTED) * -(-ROWS * 8 // (16 << 10))
    assert size(passed) <= 1.02 * ROWS * len(WANTED) * 8


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_slice_of_text_is_one_range(s3: ObjectStore, proxy: FaultProxy, bucket: str, ending: str) -> None:
    """The bytes of its rows and no more: the first rows, which tell the types, are looked at once a process."""
    s3.client.put_object(Bucket=bucket, Key=f"a.{ending}", Body=text(table(4000), ending))
    uri = f"s3://{bucket}/a.{ending}"
    pieces = list(source(proxy, uri).pieces(1000))
    assert kinds(proxy.take()) == {"HEAD": 1, "GET": 2 if ending == "csv" else 1}
    reader = source(proxy, uri)
    read(reader, pieces[0])
    proxy.take()
    for piece in pieces[1:]:
        assert read(reader, piece).num_rows == 1000
        (passed,) = proxy.take()
        low, high = piece.span
        assert (passed.kind, passed.bytes) == ("GET", int(str(high)) - int(str(low)))


@pytest.mark.parametrize("ending", ["csv.gz", "jsonl.gz"])
def test_gzip_is_one_slice_that_reads_the_file_once(
    s3: ObjectStore, proxy: FaultProxy, bucket: str, ending: str
) -> None:
    """It cannot be entered in the middle, so it is never cut: no slice reads what another one has read."""
    data = text(table(4000), ending)
    s3.client.put_object(Bucket=bucket, Key=f"a.{ending}", Body=data)
    reader = source(proxy, f"s3://{bucket}/a.{ending}")
    reader.schema()
    (piece,) = reader.pieces(1000)
    proxy.take()
    assert read(reader, piece).num_rows == 4000
    (passed,) = proxy.take()
    assert (passed.kind, passed.bytes) == ("GET", len(data))


def many(s3: ObjectStore, bucket: str, ending: str, files: int) -> pa.Table:
    """So many small files of 200 rows each; returns all rows."""
    data = table(200 * files)
    for n in range(files):
        part = data.slice(200 * n, 200)
        body = parquet(part) if ending == "parquet" else text(part, ending)
        s3.client.put_object(Bucket=bucket, Key=f"in/{n:03}.{ending}", Body=body)
    return data


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl", "csv.gz"])
def test_small_files_are_read_while_those_before_are_used(
    s3: ObjectStore, proxy: FaultProxy, bucket: str, ending: str
) -> None:
    """Planned and read side by side, bounded; one GET a file as ever, rows in order, and the rows that they were."""
    data = many(s3, bucket, ending, 24)
    kind = ending.partition(".")[0]
    reader = open_source(Input(uri=f"s3://{bucket}/in/", format=kind), places(proxy))  # type: ignore[arg-type]
    proxy.delay_s = 0.02
    pieces = list(reader.pieces(1000))
    assert proxy.most_at_once >= 4
    reader.schema()
    list(read_pieces(reader, pieces, WANTED, batch_rows=8192))  # looks at what tells the types, once a process
    proxy.take()
    proxy.most_at_once = 0
    got = list(read_pieces(reader, pieces, WANTED, batch_rows=8192))
    assert [at for at, _ in got] == list(range(24))
    assert pa.Table.from_batches([rows.batch for _, rows in got]).equals(data.select(WANTED))
    assert kinds(proxy.take()) == {"GET": 24}
    assert 4 <= proxy.most_at_once <= reader.at_once
    proxy.most_at_once = 0
    list(read_pieces(reader, pieces, WANTED, batch_rows=400))
    assert proxy.most_at_once <= 3, "the rows ahead are bounded, too"


def test_what_is_wrong_with_a_file_ahead_is_told_in_its_turn(s3: ObjectStore, proxy: FaultProxy, bucket: str) -> None:
    """Rows of the files before it come first; the error names the file that has changed."""
    data = many(s3, bucket, "parquet", 6)
    reader = source(proxy, f"s3://{bucket}/in/")
    pieces = list(reader.pieces(1000))
    s3.client.put_object(Bucket=bucket, Key="in/003.parquet", Body=parquet(data.slice(0, 200)))
    got: list[pa.RecordBatch] = []
    with pytest.raises(SourceError, match=r"in/003\.parquet has changed"):
        got.extend(rows.batch for _, rows in read_pieces(reader, pieces, WANTED, batch_rows=8192))
    assert pa.Table.from_batches(got).equals(data.select(WANTED).slice(0, 600))


def test_long_text_is_fetched_ahead(
    s3: ObjectStore, proxy: FaultProxy, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next chunks are on their way while one is parsed."""
    monkeypatch.setattr("batchline.data.text_blocks.chunks.__defaults__", (64 << 10,))
    data = text(table(4000), "csv")
    s3.client.put_object(Bucket=bucket, Key="a.csv", Body=data)
    reader = source(proxy, f"s3://{bucket}/a.csv")
    (piece,) = reader.pieces(4000)
    proxy.take()
    proxy.most_at_once, proxy.delay_s = 0, 0.02
    assert read(reader, piece).num_rows == 4000
    low, high = (int(str(at)) for at in piece.span)
    passed = proxy.take()
    assert (len(passed), size(passed)) == (-(-(high - low) // (64 << 10)), high - low)
    assert proxy.most_at_once > 1


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl.gz"])
def test_what_is_remembered_of_a_file_is_not_taken_for_its_next_version(
    s3: ObjectStore, proxy: FaultProxy, bucket: str, ending: str
) -> None:
    """Nobody asks whether the file has changed; the range itself is refused."""
    uri, key = f"s3://{bucket}/a.{ending}", f"a.{ending}"

    def put(data: pa.Table) -> None:
        body = parquet(data, 1000) if ending == "parquet" else text(data, ending)
        s3.client.put_object(Bucket=bucket, Key=key, Body=body)

    put(table(4000))
    reader = source(proxy, uri)
    pieces = list(reader.pieces(1000))
    read(reader, pieces[0])
    put(table(4000).set_column(1, "f0", pa.array(np.zeros(4000))))
    with pytest.raises(SourceError, match="has changed"):
        read(reader, pieces[-1])
    s3.client.delete_object(Bucket=bucket, Key=key)
    with pytest.raises(SourceError, match=r"There is no s3://"):
        read(reader, pieces[-1])


def test_ranges_in_flight_survive_throttling_and_resets(s3: ObjectStore, proxy: FaultProxy, bucket: str) -> None:
    """503 SlowDown, a connection that ends and one that is reset in the middle of a range: each is read again."""
    s3.client.put_object(Bucket=bucket, Key="a.parquet", Body=parquet(table(), GROUP_ROWS))
    reader = source(proxy, f"s3://{bucket}/a.parquet")
    (piece,) = reader.pieces(ROWS)
    proxy.take()
    fates = ["reset", 503, "cut", "reset", 503]
    proxy.rule = lambda method, _path: fates.pop() if method == "GET" and fates else None
    assert read(reader, piece).equals(table().select(WANTED))
    assert not fates
    assert len(proxy.take()) == 4 * len(WANTED) + 3


def test_a_range_that_cannot_be_had_is_told_and_may_be_tried_again(
    s3: ObjectStore, proxy: FaultProxy, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a thread that fetches ahead runs into is raised where its bytes are needed."""
    monkeypatch.setattr(s3_client, "TRIES", 1)
    s3.client.put_object(Bucket=bucket, Key="a.parquet", Body=parquet(table(), GROUP_ROWS))
    reader = source(proxy, f"s3://{bucket}/a.parquet")
    (piece,) = reader.pieces(ROWS)
    proxy.rule = lambda method, _path: 503 if method == "GET" else None
    with pytest.raises(SourceUnavailableError, match=r"a\.parquet"):
        read(reader, piece)
    proxy.rule = lambda _method, _path: None
    assert read(reader, piece).equals(table().select(WANTED))


def test_a_part_is_three_requests_and_a_small_blob_is_one(
    s3: ObjectStore, proxy: FaultProxy, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody may see a part before it is published, which S3 only does for multipart uploads; a blob need not wait."""
    sink = open_sink(
        Output(uri=f"s3://{bucket}/out/", format="parquet"), places(proxy), SinkContext(uuid.uuid4(), "id")
    )
    (batch,) = table(1000).to_batches()
    part = sink.open(0, 1, batch.schema)
    part.write(batch)
    staged = part.stage()
    assert s3.keys(bucket) == []
    assert kinds(proxy.take()) == {"POST": 1, "PUT": 1}
    sink.publish(0, staged)
    assert kinds(proxy.take()) == {"POST": 1}

    blobs = Blobs(places(proxy, f"s3://{bucket}/blobs"))
    blobs.put("input/small", [b"x" * 1000, b"y" * 1000])
    assert kinds(proxy.take()) == {"PUT": 1}
    monkeypatch.setattr(s3_folder, "PART_BYTES", 5 << 20)
    blobs.put("input/large", [b"x" * (3 << 20)] * 4)
    assert kinds(proxy.take()) == {"POST": 2, "PUT": 3}
    for key, count in (("input/small", 2000), ("input/large", 12 << 20)):
        with blobs.open(key) as blob:
            assert len(blob.read()) == count


def test_an_upload_that_is_given_up_costs_nothing(s3: ObjectStore, proxy: FaultProxy, bucket: str) -> None:
    """S3 has heard of none of it."""
    upload = Blobs(places(proxy, f"s3://{bucket}/blobs")).create("input/none")
    upload.write(b"x" * 1000)
    upload.abort()
    assert proxy.take() == []
    assert s3.uploads(bucket) == []


def _answer(code: str, status: int) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")


@pytest.mark.parametrize(
    ("fault", "words", "retryable"),
    [
        (_answer("ExpiredToken", 400), "credentials have expired", False),
        (_answer("InvalidToken", 400), "credentials are not valid", False),
        (_answer("InvalidAccessKeyId", 403), "credentials are not valid", False),
        (_answer("SignatureDoesNotMatch", 403), "credentials are not valid", False),
        (_answer("RequestTimeTooSkewed", 403), "clock", False),
        (_answer("AccessDenied", 403), "denies access", False),
        (_answer("SlowDown", 503), "S3 answers 503", True),
        (CredentialRetrievalError(provider="imds", error_msg="?"), "credentials cannot be had", True),
    ],
)
def test_what_is_wrong_with_credentials_is_told(fault: Exception, words: str, retryable: bool) -> None:
    """Each in its own words, for reading and writing; only what may pass is tried again."""
    for told in (s3_client.source_error("s3://b/a.csv", fault), s3_client.sink_error("s3://b/a.csv", fault)):
        assert "s3://b/a.csv" in told.detail
        assert words in told.detail
        assert told.retryable is retryable


def test_a_server_without_credentials_says_so(
    s3: ObjectStore, proxy: FaultProxy, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading, writing and planning; S3 is not asked at all."""
    del s3
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with pytest.raises(SourceError, match="the server has no AWS credentials"):
        source(proxy, f"s3://{bucket}/a.csv").schema()
    with pytest.raises(SinkError, match="the server has no AWS credentials"):
        open_sink(Output(uri=f"s3://{bucket}/out/"), places(proxy), SinkContext(uuid.uuid4(), None)).check(
            pa.schema([])
        )
    assert proxy.take() == []
