"""The `openai` package, unchanged, against our files and batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import api_server
import batch_stack
import openai
import pytest
import stack
from api_server import ALICE, BOB, READER, ROW, Running
from openai.types import Batch, FileObject

from batchline.batch import BatchFault, BatchStatus, parse_batch_id, show_file_id
from batchline.job import new_job_id
from batchline.local.servers import PostgresServer, ValkeyServer
from batchline.store.batch_contract import FileView

LIMIT = 2**20


@pytest.fixture(scope="module")
def api(postgres: PostgresServer, template: str, valkey: ValkeyServer) -> Iterator[Running]:
    with (
        stack.database_from(postgres.url, template) as url,
        api_server.running_api(url, valkey.url, file_bytes=LIMIT) as running,
    ):
        yield running


@pytest.fixture
def client(api: Running) -> Iterator[openai.OpenAI]:
    with client_of(api) as client:
        yield client


def client_of(api: Running, key: str = ALICE) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key=key, max_retries=0)


def lines(count: int = 2) -> bytes:
    body = {"model": "digits", "inputs": [ROW]}
    requests = [{"custom_id": f"r{n}", "method": "POST", "url": "/v1/jobs", "body": body} for n in range(count)]
    return b"".join(json.dumps(request).encode() + b"\n" for request in requests)


def uploaded(client: openai.OpenAI, content: bytes | None = None) -> FileObject:
    return client.files.create(file=("in.jsonl", lines() if content is None else content), purpose="batch")


def created(client: openai.OpenAI, **changes: Any) -> Batch:
    fields = {"endpoint": "/v1/jobs", "completion_window": "24h", **changes}
    if "input_file_id" not in fields:
        fields["input_file_id"] = uploaded(client).id
    return client.batches.create(**fields)


def whole(model: openai.BaseModel) -> None:
    """Every field has its declared type: the client itself does not look."""
    type(model).model_validate_json(model.to_json(), strict=True)


def test_files(client: openai.OpenAI, tmp_path: Path) -> None:
    """create (bytes, a path, with an expiry), retrieve, list, content, delete."""
    path = tmp_path / "requests.jsonl"
    path.write_bytes(lines(3))
    file = client.files.create(file=path, purpose="batch", expires_after={"anchor": "created_at", "seconds": 7200})
    whole(file)
    assert (file.object, file.bytes, file.filename) == ("file", len(lines(3)), "requests.jsonl")
    assert file.expires_at == file.created_at + 7200
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == lines(3)
    with client.files.with_streaming_response.content(file.id) as streamed:
        assert b"".join(streamed.iter_bytes(100)) == lines(3)
    others = [uploaded(client).id for _ in range(3)]
    assert [f.id for f in client.files.list(limit=2)][:4] == [*reversed(others), file.id]
    assert file.id in [f.id for f in client.files.list(purpose="batch", order="asc")]
    deleted = client.files.delete(file.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (file.id, "file", True)
    with pytest.raises(openai.NotFoundError, match="No such File object"):
        client.files.retrieve(file.id)


def test_batches(client: openai.OpenAI) -> None:
    """create, retrieve, list over pages, cancel."""
    batch = created(client, metadata={"k": "v"}, output_expires_after={"anchor": "created_at", "seconds": 3600})
    whole(batch)
    assert (batch.object, batch.status, batch.metadata) == ("batch", "validating", {"k": "v"})
    assert batch.expires_at == batch.created_at + 86400
    assert (batch.request_counts.total, batch.errors, batch.usage) == (0, None, None)
    assert client.batches.retrieve(batch.id) == batch
    made = [created(client).id for _ in range(3)]
    assert [b.id for b in client.batches.list(limit=2)][:4] == [*reversed(made), batch.id]
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    whole(client.batches.retrieve(batch.id))


def test_a_batch_to_its_end(client: openai.OpenAI, api: Running) -> None:
    """Counts while it runs, then its output file and what the other statuses fill in."""
    batch = created(client)
    model_id = api.store.catalogue.models()[0].id
    plan_all(api, model_id)
    job = batch_stack.claimed(api.store, worker := stack.a_worker(api.store), model_id)[0]
    assert client.batches.retrieve(batch.id).status == "in_progress"
    api.store.slices.finish(worker, batch_stack.finished(job))
    view = api.store.batches.take_to_end(batch_stack.HOLDER, lease_s=30.0)
    assert view is not None
    found = client.batches.retrieve(batch.id)
    assert (found.status, found.request_counts.completed) == ("finalizing", 2)
    output = FileView(new_job_id(), view.tenant_id, "batch_output", "out.jsonl", 9, "x", view.created_at, None)
    api.store.files.add(output)
    api.store.batches.end(batch_stack.HOLDER, view.id, BatchStatus.COMPLETED, output_file_id=output.id)
    found = client.batches.retrieve(batch.id)
    whole(found)
    assert (found.status, found.output_file_id) == ("completed", show_file_id(output.id))
    assert client.files.retrieve(found.output_file_id).purpose == "batch_output"
    with pytest.raises(openai.ConflictError, match="Cannot cancel a batch with status 'completed'"):
        client.batches.cancel(batch.id)


def plan_all(api: Running, model_id: int) -> None:
    """The newest batch gets a slice of two rows, all that wait before it none."""
    newest = api.store.batches.list(tenant(api), after=None, limit=1).batches[0].id
    while (found := api.store.batches.take_to_plan(batch_stack.HOLDER, lease_s=30.0)) is not None:
        slices = batch_stack.slices_of(found.id, [2] if found.id == newest else [])
        api.store.batches.plan(batch_stack.HOLDER, found.id, slices, model_id=model_id, note="{}")
    while True:
        found = api.store.batches.take_to_end(batch_stack.HOLDER, lease_s=30.0)
        if found is None:
            return
        status = BatchStatus.CANCELLED if found.cancelling_at else BatchStatus.COMPLETED
        api.store.batches.end(batch_stack.HOLDER, found.id, status)


def tenant(api: Running) -> int:
    principal = api.store.catalogue.find_key(ALICE)
    assert principal is not None
    return principal.tenant_id


def test_a_batch_that_failed_tells_its_lines(client: openai.OpenAI, api: Running) -> None:
    """errors.data has code, line, message and param."""
    batch = created(client)
    wanted = parse_batch_id(batch.id)
    while (found := api.store.batches.take_to_plan(batch_stack.HOLDER, lease_s=30.0)) is not None:
        fault = BatchFault("invalid_json_line", "This line is not parseable as valid JSON.", 2, None)
        api.store.batches.refuse(batch_stack.HOLDER, found.id, [fault])
        if found.id == wanted:
            break
    failed = client.batches.retrieve(batch.id)
    whole(failed)
    assert failed.status == "failed"
    assert failed.failed_at is not None
    assert failed.errors is not None
    assert failed.errors.object == "list"
    assert [(e.code, e.line) for e in failed.errors.data or []] == [("invalid_json_line", 2)]


def test_error_classes(client: openai.OpenAI, api: Running) -> None:
    """Each status is the class that OpenAI's client has for it, with message, param and code."""
    with pytest.raises(openai.NotFoundError) as unknown:
        client.batches.retrieve("batch_nix")
    assert unknown.value.body == {
        "message": "No batch found with id 'batch_nix'.",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
        "errors": [],
    }
    with pytest.raises(openai.NotFoundError):
        client.batches.cancel("batch_nix")
    with pytest.raises(openai.NotFoundError) as no_file:
        client.files.content("file-nix")
    assert no_file.value.param == "id"
    for changes, param in (
        ({"endpoint": "/v1/chat/completions"}, "endpoint"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"input_file_id": "file-nix"}, "input_file_id"),
        ({"metadata": {"k": "x" * 513}}, "metadata"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            created(client, **changes)
        assert (refused.value.param, refused.value.code) == (param, "invalid_value")
    with pytest.raises(openai.BadRequestError) as purpose:
        client.files.create(file=b"{}", purpose="vision")
    assert purpose.value.param == "purpose"
    with pytest.raises(openai.AuthenticationError) as nobody, client_of(api, "nix") as other:
        other.batches.list()
    assert nobody.value.code == "invalid_api_key"
    with pytest.raises(openai.PermissionDeniedError), client_of(api, READER) as reader:
        created(reader, input_file_id="file-nix")
    with pytest.raises(openai.APIStatusError) as large:
        uploaded(client, b"x" * (LIMIT + 1))
    assert large.value.status_code == 413


def test_others_see_nothing(client: openai.OpenAI, api: Running) -> None:
    """Another tenant's ids are none, and lists are one's own."""
    batch = created(client)
    with client_of(api, BOB) as other:
        for call in (
            lambda: other.batches.retrieve(batch.id),
            lambda: other.batches.cancel(batch.id),
            lambda: other.files.retrieve(batch.input_file_id),
            lambda: other.files.content(batch.input_file_id),
            lambda: other.files.delete(batch.input_file_id),
        ):
            with pytest.raises(openai.NotFoundError):
                call()
        with pytest.raises(openai.BadRequestError):
            created(other, input_file_id=batch.input_file_id)
        assert not other.batches.list().data
        assert not other.files.list().data


async def _async_round(api: Running) -> Batch:
    async with openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key=ALICE, max_retries=0) as client:
        file = await client.files.create(file=("in.jsonl", lines()), purpose="batch")
        return await client.batches.create(input_file_id=file.id, endpoint="/v1/jobs", completion_window="24h")


def test_the_async_client(api: Running) -> None:
    """The same from asyncio."""
    import asyncio

    assert asyncio.run(_async_round(api)).status == "validating"
