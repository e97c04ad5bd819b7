"""Files over HTTP: what may be uploaded, how it is listed, read and deleted."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import api_server
import pytest
import stack
from api_server import READER, SUBMITTER, Running

from batchline.local.servers import PostgresServer, ValkeyServer

LIMIT = 3 * 2**20


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("blobs")


@pytest.fixture(scope="module")
def api(postgres: PostgresServer, template: str, valkey: ValkeyServer, blobs: Path) -> Iterator[Running]:
    with (
        stack.database_from(postgres.url, template) as url,
        api_server.running_api(url, valkey.url, file_bytes=LIMIT, blobs=f"file://{blobs}") as running,
    ):
        yield running


def upload(api: Running, content: Any = b"{}\n", name: str = "in.jsonl", **fields: str) -> Any:
    return api.call("POST", "/v1/files", files={"file": (name, content)}, data={"purpose": "batch"} | fields)


def stored(blobs: Path) -> list[Path]:
    return sorted(path for path in blobs.rglob("*") if path.is_file())


def test_what_is_uploaded_is_what_is_read(api: Running) -> None:
    """Byte for byte, whatever the bytes, with its length and its name."""
    content = bytes(range(256)) * 8000 + b"\r\n--x\r\n"
    file = upload(api, content).json()
    assert file.keys() == {
        "id", "object", "bytes", "created_at", "expires_at", "filename", "purpose", "status", "status_details",
    }  # fmt: skip
    assert (file["object"], file["bytes"], file["purpose"], file["status"]) == (
        "file",
        len(content),
        "batch",
        "processed",
    )
    assert file["expires_at"] - file["created_at"] == 30 * 86400
    answer = api.call("GET", f"/v1/files/{file['id']}/content")
    assert answer.content == content
    assert int(answer.headers["content-length"]) == len(content)
    assert 'filename="in.jsonl"' in answer.headers["content-disposition"]
    assert api.call("GET", f"/v1/files/{file['id']}").json() == file


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\temp\\in.jsonl", "in.jsonl"),
        ("..", "upload"),
        ("a\x85b\u2028c.jsonl", "abc.jsonl"),
        ("ü" * 300 + ".jsonl", "ü" * 124 + ".jsonl"),
        ('"; filename=x', '"; filename=x'),
    ],
)
def test_names_are_cleaned(api: Running, name: str, shown: str) -> None:
    """No folders, no control characters, at most 255 bytes; and a header cannot be made of it."""
    file = upload(api, name=name).json()
    assert file["filename"] == shown
    told = api.call("GET", f"/v1/files/{file['id']}/content").headers["content-disposition"]
    assert told.count("filename=") == 1


def test_the_form_may_say_how_long(api: Running) -> None:
    """As OpenAI's does: from creation, an hour to thirty days."""
    expiry = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    file = upload(api, **expiry).json()
    assert file["expires_at"] - file["created_at"] == 3600
    refused = upload(api, **expiry | {"expires_after[seconds]": "60"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "expires_after.seconds")


def test_the_purpose_may_come_behind_the_file(api: Running) -> None:
    """The order of the parts of a form is nobody's business."""
    form = multipart([('form-data; name="file"; filename="a.jsonl"', b"{}"), ('form-data; name="purpose"', b"batch")])
    assert api.call("POST", "/v1/files", **form).status_code == 200


def multipart(parts: list[tuple[str, bytes]], end: bytes = b"--x--\r\n") -> dict[str, Any]:
    body = b"".join(b"--x\r\nContent-Disposition: %s\r\n\r\n%s\r\n" % (d.encode(), c) for d, c in parts) + end
    return {"content": body, "headers": {"Content-Type": "multipart/form-data; boundary=x"}}


FILE_PART = ('form-data; name="file"; filename="a"', b"{}")
PURPOSE_PART = ('form-data; name="purpose"', b"batch")
REFUSED: dict[str, tuple[dict[str, Any], int, str | None]] = {
    "no file": (multipart([PURPOSE_PART]), 400, "file"),
    "an empty file": (multipart([(FILE_PART[0], b""), PURPOSE_PART]), 400, "file"),
    "two files": (multipart([FILE_PART, FILE_PART, PURPOSE_PART]), 400, "file"),
    "a file without a name": (multipart([('form-data; name="file"', b"{}"), PURPOSE_PART]), 400, "file"),
    "no purpose": (multipart([FILE_PART]), 400, "purpose"),
    "another purpose": (multipart([FILE_PART, (PURPOSE_PART[0], b"vision")]), 400, "purpose"),
    "cut short": (multipart([FILE_PART, PURPOSE_PART], b""), 400, None),
    "a field that is large": (multipart([FILE_PART, (PURPOSE_PART[0], b"x" * 20_000)]), 413, None),
    "a field that is no text": (multipart([FILE_PART, (PURPOSE_PART[0], b"\xff")]), 400, None),
    "very many fields": (multipart([FILE_PART, *[PURPOSE_PART] * 30]), 400, None),
    "no form": ({"content": b"{}", "headers": {"Content-Type": "application/json"}}, 415, None),
    "no boundary": ({"content": b"{}", "headers": {"Content-Type": "multipart/form-data"}}, 415, None),
    "nothing": (multipart([], b""), 400, None),
}


@pytest.mark.parametrize("case", REFUSED)
def test_forms_that_are_refused_leave_nothing(api: Running, blobs: Path, case: str) -> None:
    """OpenAI's shape, the field that is at fault, no row and no blob."""
    before = stored(blobs), len(api.call("GET", "/v1/files").json()["data"])
    request, status, param = REFUSED[case]
    response = api.call("POST", "/v1/files", **request)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["type"]) == (status, param, "invalid_request_error")
    assert (stored(blobs), len(api.call("GET", "/v1/files").json()["data"])) == before


@pytest.mark.parametrize("announced", [True, False])
def test_a_file_above_the_limit_is_413(api: Running, blobs: Path, announced: bool) -> None:
    """Whether or not the length is known beforehand; a file of exactly the limit is taken."""
    assert upload(api, b"x" * LIMIT).status_code == 200
    before = stored(blobs)
    form = multipart([(FILE_PART[0], b"x" * (LIMIT + 1)), PURPOSE_PART])
    pieces = [form["content"][i : i + 65536] for i in range(0, len(form["content"]), 65536)]
    content = form["content"] if announced else iter(pieces)
    response = api.call("POST", "/v1/files", content=content, headers=form["headers"])
    assert (response.status_code, response.json()["error"]["code"]) == (413, "too_large")
    assert stored(blobs) == before


def test_a_client_that_goes_away_leaves_nothing(api: Running, blobs: Path) -> None:
    """Half an upload is no file."""
    before = stored(blobs)
    form = multipart([(FILE_PART[0], b"x" * 2**20)])

    def half() -> Iterator[bytes]:
        yield form["content"]
        until(lambda: len(stored(blobs)) > len(before))
        raise ConnectionError

    with pytest.raises(ConnectionError):
        api.call("POST", "/v1/files", content=half(), headers=form["headers"])
    until(lambda: stored(blobs) == before)


def until(condition: Callable[[], bool]) -> None:
    """Poll until the condition holds; fail after five seconds."""
    deadline = time.monotonic() + 5
    tick = threading.Event()
    while not condition():
        assert time.monotonic() < deadline
        tick.wait(0.01)


def test_lists(api: Running) -> None:
    """Newest first or oldest first, in pages, by purpose; odd parameters are refused."""
    made = [upload(api, name=f"{n}.jsonl").json()["id"] for n in range(3)]
    page = api.call("GET", "/v1/files", params={"limit": 2}).json()
    assert [file["id"] for file in page["data"]] == made[:0:-1]
    assert (page["object"], page["has_more"], page["last_id"]) == ("list", True, made[1])
    after = api.call("GET", "/v1/files", params={"limit": 1, "after": made[1]}).json()
    assert after["data"][0]["id"] == made[0]
    rising = api.call("GET", "/v1/files", params={"order": "asc", "after": made[0]}).json()
    assert [file["id"] for file in rising["data"]] == made[1:]
    assert api.call("GET", "/v1/files", params={"purpose": "batch_output"}).json()["data"] == []
    for odd in ({"limit": 0}, {"limit": 10_001}, {"order": "up"}, {"after": "file-nix"}, {"nix": 1}):
        response = api.call("GET", "/v1/files", params=odd)
        assert (response.status_code, response.json()["error"]["param"]) == (400, next(iter(odd)))


def test_what_is_deleted_is_gone(api: Running) -> None:
    """For all routes; deleting it again is 404, in OpenAI's words."""
    file_id = upload(api).json()["id"]
    deleted = api.call("DELETE", f"/v1/files/{file_id}")
    assert (deleted.status_code, deleted.json()) == (200, {"id": file_id, "object": "file", "deleted": True})
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        response = api.call(method, f"/v1/files/{file_id}{path}")
        error = response.json()["error"]
        assert (response.status_code, error["message"], error["param"], error["code"]) == (
            404,
            f"No such File object: {file_id}",
            "id",
            None,
        )


def test_scopes(api: Running) -> None:
    """Uploading and deleting need `submit`, reading needs `read`."""
    file_id = upload(api).json()["id"]
    assert api.call("GET", f"/v1/files/{file_id}", SUBMITTER).status_code == 403
    assert api.call("DELETE", f"/v1/files/{file_id}", READER).status_code == 403
    refused = api.call("POST", "/v1/files", READER, files={"file": ("a", b"{}")}, data={"purpose": "batch"})
    assert (refused.status_code, refused.json()["error"]["type"]) == (403, "permission_error")


def test_a_blob_that_is_lost_is_404(api: Running, blobs: Path) -> None:
    """Nothing of the place where it was is told."""
    file_id = upload(api).json()["id"]
    for path in stored(blobs):
        if file_id in path.name:
            path.unlink()
    response = api.call("GET", f"/v1/files/{file_id}/content")
    assert response.status_code == 404
    assert str(blobs) not in json.dumps(response.json())
