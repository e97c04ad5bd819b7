"""Columns in the paths of files: as usable as those in the files, where they are named."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from object_store import ObjectStore, object_store

from batchline.batch import DataSet, Input, Output
from batchline.data import open_source
from batchline.data.columns import Mapper, check
from batchline.data.contract import Places, Source, typeless
from batchline.errors import SourceError
from batchline.model import ModelSpec, TensorSpec, TextFront

PATHS = ["dt=2026-01-01/country=de/n=01", "dt=2026-01-02/country=a%2Fb/n=2", "dt=2026-01-02/country=x y/n=3",
         "dt=__HIVE_DEFAULT_PARTITION__/country=ü/n=4"]  # fmt: skip
COUNTRIES = ["de", "a/b", "x y", "ü"]
PAIR = ModelSpec("pair", "1", "d", 1, inputs=(TensorSpec("x", "FP32", (2,)),), outputs=(TensorSpec("y", "FP32", ()),))


@dataclass
class Here:
    """Where a test's files lie."""

    places: Places
    root: str
    put: Callable[[str, bytes], object]

    def source(self, name: str) -> Source:
        return open_source(Input(uri=f"{self.root}/{name}"), self.places)


@pytest.fixture(scope="module")
def s3() -> Generator[ObjectStore]:
    with object_store() as store:
        yield store


@pytest.fixture(params=["file", "s3"])
def here(request: pytest.FixtureRequest, tmp_path: Path) -> Here:
    def put(name: str, data: bytes) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)

    if request.param == "file":
        return Here(Places(f"file://{tmp_path}/blobs", (str(tmp_path),)), f"file://{tmp_path}", put)
    store: ObjectStore = request.getfixturevalue("s3")
    bucket = store.bucket()
    places = Places("file:///nowhere/blobs", (), {}, store.endpoint)
    return Here(places, f"s3://{bucket}",
                lambda name, data: store.client.put_object(Bucket=bucket, Key=name, Body=data))  # fmt: skip


def encoded(data: pa.Table, ending: str) -> bytes:
    out = io.BytesIO()
    if ending == "parquet":
        pq.write_table(data, out)
    elif ending.startswith("csv"):
        pacsv.write_csv(data, out)
    else:
        out.write(b"".join(json.dumps(row).encode() + b"\n" for row in data.to_pylist()))
    return gzip.compress(out.getvalue()) if ending.endswith(".gz") else out.getvalue()


@pytest.fixture
def parts(here: Here, request: Any) -> Here:
    """Four files of two rows; the first column of each is its own."""
    for at, path in enumerate(PATHS):
        data = pa.table({"id": [2 * at, 2 * at + 1], "f": [0.5, 1.5]})
        here.put(f"{path}/part-0.{request.param}", encoded(data, request.param))
    return here


KINDS = pytest.mark.parametrize("parts", ["parquet", "csv", "jsonl", "csv.gz"], indirect=True)


@KINDS
def test_columns_of_the_path_are_read_like_others(parts: Here, request: pytest.FixtureRequest) -> None:
    """By any order of columns, alone too; as text, decoded, null where Hive writes so, and numbers for a model."""
    ending = request.node.callspec.params["parts"]
    source = parts.source(f"**/part-*.{ending}")
    schema = source.schema()
    assert schema.names == ["id", "f", "dt", "country", "n"]
    pieces = list(source.pieces(10))
    for columns in (["country", "id", "dt"], ["country"], None):
        got = [row for p in pieces for rows in source.read(p, columns, batch_rows=1) for row in rows.batch.to_pylist()]
        assert sorted(r["country"] for r in got) == sorted(2 * COUNTRIES)
        if columns and "id" in columns:
            assert list(got[0]) == columns
            assert {r["id"]: (r["country"], r["dt"]) for r in got}[5] == ("x y", "2026-01-02")
            assert {r["id"]: r["dt"] for r in got}[7] is None
    wanted = DataSet("pair", "1", Input(key="id", columns=["f", "n"]), Output(uri="s3://b/x", keep=["n", "country"]))
    mapper = Mapper(PAIR, wanted, schema)
    for piece in pieces:
        for rows in source.read(piece, mapper.reads, batch_rows=10, texts=mapper.texts):
            x = mapper.arrays(rows).columns["x"]
            out = mapper.output(rows.batch, None, 0, {"y": np.zeros(2, np.float32)}).to_pylist()
            assert [r["country"] for r in out] == 2 * [COUNTRIES[out[0]["id"] // 2]]
            assert [[0.5, float(out[0]["n"])], [1.5, float(out[0]["n"])]] == np.asarray(x).tolist()
            assert out[0]["n"] in ("01", "2", "3", "4")


@KINDS
def test_nobody_who_does_not_name_them_sees_them(parts: Here, request: pytest.FixtureRequest) -> None:
    """Columns that a model reads when none are named are those in the files."""
    source = parts.source(f"**/part-*.{request.node.callspec.params['parts']}")
    mapper = Mapper(PAIR, DataSet("pair", "1", Input(), Output(uri="s3://b/x")), source.schema())
    assert mapper.reads == ["id", "f"]
    [fault] = check(PAIR, DataSet("pair", "1", Input(columns=["f", "nope"]), Output()), source.schema())
    assert "country" in fault.message


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_the_files_own_column_wins(here: Here, ending: str) -> None:
    """It has the values and the type."""
    here.put(f"n=7/n=8/a.{ending}", encoded(pa.table({"n": [1, 2]}), ending))
    source = here.source(f"n=7/n=8/a.{ending}")
    assert source.schema().field("n").type == pa.int64()
    [piece] = source.pieces(10)
    assert next(iter(source.read(piece, ["n"], batch_rows=10))).batch.to_pylist() == [{"n": 1}, {"n": 2}]


def test_a_file_elsewhere_is_told(here: Here) -> None:
    """One whose path lacks the column that is asked for; those of the innermost folder win."""
    here.put("a=1/a=2/x.csv", b"id\n1\n")
    here.put("b/x.csv", b"id\n2\n")
    source = here.source("**/x.csv")
    source.schema()
    good, bad = sorted(source.pieces(10), key=lambda p: "b/x" in p.uri)
    assert next(iter(source.read(good, ["a"], batch_rows=10))).batch.to_pylist() == [{"a": "2"}]
    with pytest.raises(SourceError, match="its path has no folder a="):
        list(source.read(bad, ["id", "a"], batch_rows=10))
    assert next(iter(source.read(bad, ["id"], batch_rows=10))).batch.to_pylist() == [{"id": 2}]


def test_no_rows_have_no_types_with_a_path_either(here: Here) -> None:
    """A file that is a header alone."""
    here.put("a=1/x.csv", b"id,f\n")
    assert typeless(here.source("a=1/x.csv").schema())


def test_a_text_model_reads_the_one_text_of_the_files(here: Here) -> None:
    """Texts of the path beside it do not confuse it."""
    here.put("lang=de/x.jsonl", b'{"id": 1, "said": "hallo"}\n')
    text = ModelSpec("t", "1", "d", 1, inputs=(TensorSpec("input_ids", "INT64", (None,)),),
                     outputs=(TensorSpec("y", "FP32", ()),), text=TextFront())  # fmt: skip
    data = DataSet("t", "1", Input(key="id"), Output(uri="s3://b/x", keep=["lang"]))
    assert Mapper(text, data, here.source("lang=de/x.jsonl").schema()).reads == ["said", "id", "lang"]


def test_paths_are_taken_as_they_stand(tmp_path: Path) -> None:
    """No name and no value is no column."""
    from batchline.data.path_columns import values

    assert values("s3://b/=x/a/c=d=e/f=/g=1.csv") == {"c": "d=e", "f": ""}
    assert values(f"file://{tmp_path}/k%20l=m%2520n/x") == {"k l": "m n"}
