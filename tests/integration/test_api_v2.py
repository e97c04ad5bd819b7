"""/v2 as tritonclient, unchanged, sees it."""

from __future__ import annotations

import gzip
import json
import re
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from api_server import ALICE, ROW, Running
from tritonclient.utils import InferenceServerException, np_to_triton_dtype


def auth() -> dict[str, str]:
    """A fresh one each time: tritonclient writes into it."""
    return {"Authorization": f"Bearer {ALICE}"}


@pytest.fixture
def client(api: Running) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(api.url.removeprefix("http://"), concurrency=4)
    yield client
    client.close()


def an_input(name: str, array: np.ndarray[Any, Any], *, binary: bool = True, datatype: str = "") -> triton.InferInput:
    tensor = triton.InferInput(name, list(array.shape), datatype or np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def typed_inputs(*, binary: bool) -> dict[str, triton.InferInput]:
    arrays = {
        "bool": np.array([[True, False]] * 3),
        "uint8": np.array([[0, 255]] * 3, dtype="uint8"),
        "int64": np.array([[-(2**62), 5]] * 3),
        "fp16": np.array([[0.1, -2]] * 3, dtype="float16"),
        "fp32": np.array([[0.1, 1e30]] * 3, dtype="float32"),
        "fp64": np.array([[0.1, 1e300]] * 3),
        "bytes": np.array([["", "grün\n"]] * 3, dtype=object),
    }
    return {name: an_input(name, array, binary=binary or name == "fp16") for name, array in arrays.items()}


def test_health_and_metadata(client: triton.InferenceServerClient) -> None:
    """The health routes are open; metadata tells tensors with the batch axis first, -1."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits", headers=auth())
    assert not client.is_model_ready("nosuch", headers=auth())
    assert client.get_server_metadata()["name"] == "batchline"
    metadata = client.get_model_metadata("digits", headers=auth())
    assert metadata["versions"] == ["1", "2"]
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 64]}]
    assert client.get_model_metadata("words", headers=auth())["inputs"][0]["datatype"] == "BYTES"


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_every_type_goes_there_and_back(client: Any, binary_in: bool, binary_out: bool) -> None:
    """Every data type comes back as it was sent, in JSON and in binary."""
    inputs = typed_inputs(binary=binary_in)
    outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in inputs]
    result = client.infer("typed", list(inputs.values()), outputs=outputs, request_id="r-1", headers=auth())
    response = result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("r-1", "typed", "1")
    for name, dtype in [("bool", "bool"), ("uint8", "uint8"), ("int64", "int64"), ("fp64", "float64")]:
        got = result.as_numpy(name)
        assert got.dtype == dtype
        assert got.shape == (3, 2)
    assert result.as_numpy("fp32").tolist() == np.array([[0.1, 1e30]] * 3, dtype="float32").tolist()
    assert result.as_numpy("int64").tolist() == [[-(2**62), 5]] * 3
    assert np.array_equal(result.as_numpy("fp16"), np.array([[0.1, -2]] * 3, dtype="float16"))
    texts = [v.decode() if isinstance(v, bytes) else v for v in result.as_numpy("bytes").ravel()]
    assert texts == ["", "grün\n"] * 3


def test_defaults_are_all_outputs_in_binary_and_the_highest_version(client: Any) -> None:
    """tritonclient's defaults work: binary in, binary out, no version."""
    result = client.infer("digits", [an_input("x", np.array([ROW, ROW], dtype="float32"))], headers=auth())
    assert result.as_numpy("label").tolist() == [7, 7]
    assert result.get_response()["model_version"] == "2"
    old = client.infer("digits", [an_input("x", np.array([ROW], dtype="float32"))], model_version="1", headers=auth())
    assert old.get_response()["model_version"] == "1"


def test_async_infer(client: Any) -> None:
    """Several requests of one client are in flight at once."""
    tensor = an_input("x", np.array([ROW], dtype="float32"))
    flying = [client.async_infer("digits", [tensor], headers=auth()) for _ in range(8)]
    assert [f.get_result().as_numpy("label").tolist() for f in flying] == [[7]] * 8


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compression_both_ways(client: Any, encoding: str) -> None:
    """Compressed requests are read, and answers are compressed when asked for."""
    array = np.zeros((400, 64), dtype="float32")
    result = client.infer(
        "digits",
        [an_input("x", array)],
        headers=auth(),
        request_compression_algorithm=encoding,
        response_compression_algorithm=encoding,
    )
    assert result.as_numpy("label").shape == (400,)


def test_text_in_and_non_finite_out(client: Any) -> None:
    """Text models take BYTES [B] or [B, 1]; a NaN output is NaN in binary and the string in JSON."""
    for shape in ((2,), (2, 1)):
        texts = np.array(["ab", "abc"], dtype=object).reshape(shape)
        result = client.infer("words", [an_input("text", texts)], headers=auth())
        assert result.as_numpy("e")[:, 0].tolist() == [2.0, 3.0]
        assert np.isnan(result.as_numpy("e")[:, 1]).all()
    plain = triton.InferRequestedOutput("e", binary_data=False)
    result = client.infer("words", [an_input("text", texts)], outputs=[plain], headers=auth())
    assert result.get_response()["outputs"][0]["data"] == [2.0, "NaN", 3.0, "NaN"]


WRONG = {
    "name": ("y", np.zeros((1, 64), dtype="float32")),
    "columns": ("x", np.zeros((1, 63), dtype="float32")),
    "axes": ("x", np.zeros((64,), dtype="float32")),
    "datatype": ("x", np.zeros((1, 64), dtype="float64")),
    "no rows": ("x", np.zeros((0, 64), dtype="float32")),
    "too many rows": ("x", np.zeros((1001, 64), dtype="float32")),
    "NaN": ("x", np.full((1, 64), np.nan, dtype="float32")),
    "Inf": ("x", np.full((1, 64), np.inf, dtype="float32")),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_with_the_protocols_error(api: Running, client: Any, case: str) -> None:
    """A wrong name, shape, type or value is 400 {"error"}, says where, and queues nothing."""
    before = api.jobs()
    name, array = WRONG[case]
    with pytest.raises(InferenceServerException) as caught:
        client.infer("digits", [an_input(name, array)], headers=auth())
    assert caught.value.status() == "400"
    assert "/inputs" in caught.value.message()
    assert api.jobs() == before


def good(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": ROW}]} | changes


TOLD = {
    "not JSON": "byte|truncated",
    "deep": "object",
    "deep data": "deep",
    "ragged": "nesting",
    "string": "Expected `float`",
    "null": "Expected `float`",
    "no data": "missing",
    "no inputs": "lacks x",
    "twice": "/inputs/1/name",
    "huge shape": "/inputs/0/shape",
    "overflow": "finite",
    "unknown output": "/outputs/0/name",
    "an output twice": "/outputs/1/name",
    "unknown parameter": "/parameters/sequence_id",
    "shared memory": "/inputs/0/parameters/shared_memory_region",
    "unknown field": "/nix",
    "header length": "Content-Length",
    "header length in words": "Content-Length",
    "not gzip": "gzip",
    "brotli": "gzip",
    "a bomb": "larger",
}

BROKEN: dict[str, tuple[Any, dict[str, str], int]] = {
    "not JSON": (b"{", {}, 400),
    "deep": (b"[" * 100_000, {}, 400),
    "deep data": (
        b'{"inputs":[{"name":"x","shape":[1,64],"datatype":"FP32","data":' + b"[" * 50_000 + b"]" * 50_000 + b"}]}",
        {},
        400,
    ),
    "ragged": (good(inputs=[{"name": "x", "shape": [2, 64], "datatype": "FP32", "data": [ROW, ROW[1:]]}]), {}, 400),
    "string": (good(inputs=[{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": ["1"] * 64}]), {}, 400),
    "null": (good(inputs=[{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [None] * 64}]), {}, 400),
    "no data": (good(inputs=[{"name": "x", "shape": [1, 64], "datatype": "FP32"}]), {}, 400),
    "no inputs": (good(inputs=[]), {}, 400),
    "twice": (good(inputs=good()["inputs"] * 2), {}, 400),
    "huge shape": (good(inputs=[{"name": "x", "shape": [2**40, 64], "datatype": "FP32", "data": []}]), {}, 400),
    "overflow": (good(inputs=[{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [1e300] * 64}]), {}, 400),
    "unknown output": (good(outputs=[{"name": "nix"}]), {}, 400),
    "an output twice": (good(outputs=[{"name": "label"}] * 100_000), {}, 400),
    "unknown parameter": (good(parameters={"sequence_id": 3}), {}, 400),
    "shared memory": (
        good(inputs=[{"name": "x", "shape": [1, 64], "datatype": "FP32", "parameters": {"shared_memory_region": "r"}}]),
        {},
        400,
    ),
    "unknown field": (good(nix=1), {}, 400),
    "header length": (good(), {"Inference-Header-Content-Length": "9999999"}, 400),
    "header length in words": (good(), {"Inference-Header-Content-Length": "ten"}, 400),
    "not gzip": (good(), {"Content-Encoding": "gzip"}, 400),
    "brotli": (good(), {"Content-Encoding": "br"}, 415),
    "a bomb": (gzip.compress(bytes(50_000_000)), {"Content-Encoding": "gzip"}, 413),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_requests(api: Running, case: str) -> None:
    """Whatever the body, the answer is a 4xx of the protocol's shape, at once, and nothing is queued."""
    content, headers, status = BROKEN[case]
    before = api.jobs()
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    response = api.call("POST", "/v2/models/digits/infer", content=body, headers=headers)
    assert (response.status_code, list(response.json())) == (status, ["error"])
    assert re.search(TOLD[case], response.json()["error"])
    assert response.elapsed.total_seconds() < 5
    assert api.jobs() == before


@pytest.mark.parametrize("tail", [b"\1\0\0", struct.pack("<I", 99) + b"x", struct.pack("<I", 2) + b"\xff\xfe"])
def test_broken_bytes_tensors(api: Running, tail: bytes) -> None:
    """BYTES that end too early or are no UTF-8 are refused."""
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(tail)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    response = api.call("POST", "/v2/models/words/infer", content=head + tail, headers=headers)
    assert response.status_code == 400
    assert "/inputs/0/data" in response.json()["error"]


def test_unknown_model_and_version(api: Running) -> None:
    """Unknown models, versions and routes under /v2 are 404 in the protocol's shape."""
    for path in ("models/nix", "models/digits/versions/9", "models/digits/versions/x/ready", "nix"):
        response = api.call("GET", f"/v2/{path}")
        assert (response.status_code, list(response.json())) == (404, ["error"])


def test_free_axes(api: Running) -> None:
    """An input with a free axis takes any length of it."""
    tensor = {"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [[1, 2, 3], [4, 5, 6]]}
    response = api.call("POST", "/v2/models/free/infer", json={"inputs": [tensor]})
    assert response.json()["outputs"] == [
        {"name": "y", "datatype": "FP32", "shape": [2, 3], "data": [1, 2, 3, 4, 5, 6]}
    ]


def test_respond_async_gives_a_job(api: Running) -> None:
    """With Prefer: respond-async the answer is 202 and a job, which /v1/jobs knows."""
    response = api.call("POST", "/v2/models/digits/infer", json=good(), headers={"Prefer": "respond-async"})
    assert response.status_code == 202
    again = api.call("GET", response.headers["location"], headers={"Prefer": "wait=10"})
    assert again.json()["outputs"][0]["label"] == 7


def test_respond_async_gives_a_job_also_when_it_has_ended(api: Running) -> None:
    """The shape of the answer is what was asked for, however quick the worker is."""
    headers = {"Idempotency-Key": "quick"}
    ended = api.call("POST", "/v2/models/digits/infer", json=good(), headers=headers)
    assert (ended.status_code, "model_name" in ended.json()) == (200, True)
    again = api.call("POST", "/v2/models/digits/infer", json=good(), headers=headers | {"Prefer": "respond-async"})
    assert (again.status_code, again.json()["status"]) == (202, "succeeded")
    assert again.headers["location"].endswith(ended.json()["parameters"]["job_id"])


def test_a_key_used_again_with_another_body_is_422(api: Running) -> None:
    """As on every other route, in the protocol's shape; what does not fit the model is 400 there."""
    headers = {"Idempotency-Key": "twice"}
    assert api.call("POST", "/v2/models/digits/infer", json=good(), headers=headers).status_code == 200
    other = api.call("POST", "/v2/models/digits/infer", json=good() | {"id": "other"}, headers=headers)
    assert (other.status_code, other.json().keys()) == (422, {"error"})
    assert "Idempotency-Key" in other.json()["error"]
    assert api.call("POST", "/v2/models/digits/infer", json={"inputs": []}).status_code == 400
