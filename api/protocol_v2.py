"""/v2: the Open Inference Protocol over the same jobs; `infer` submits one and waits for it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from importlib.metadata import version as version_of
from typing import Any

import msgspec
from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse

from api import encodings, prefer
from api.admission import Wishes, idempotency_key
from api.http import answer, headers_of, read_body
from api.ops import Health
from api.services import Services
from api.shapes import job_json
from batchline import v2_tensors
from batchline.answers import infer_body
from batchline.errors import (
    ResultExpiredError,
)
from batchline.job import TERMINAL, JobView, show_id
from batchline.model import MODEL_FILE, TORCH_FILE, ModelRecord, TensorSpec
from batchline.rows import TEXT

AnyRequest = Request[Any, Any, Any]

_PLATFORMS = {MODEL_FILE: "onnxruntime_onnx", TORCH_FILE: "pytorch_pt2"}


class V2Routes:
    """The handlers."""

    def __init__(self, services: Services, health: Health) -> None:
        self._s = services
        self._health = health

    def handlers(self) -> list[HTTPRouteHandler]:
        model, versioned = "/v2/models/{model:str}", "/v2/models/{model:str}/versions/{version:str}"
        return [
            get("/v2", name="v2_server")(self.server),
            get("/v2/health/live", name="v2_live")(self.live),
            get("/v2/health/ready", name="v2_ready")(self.ready),
            get([model, versioned], name="v2_model")(self.model),
            get([f"{model}/ready", f"{versioned}/ready"], name="v2_model_ready")(self.model_ready),
            post([f"{model}/infer", f"{versioned}/infer"], name="v2_infer")(self.infer),
        ]

    async def server(self) -> ASGIResponse:
        body = {"name": "batchline", "version": version_of("batchline"), "extensions": ["binary_tensor_data"]}
        return answer(200, msgspec.json.encode(body))

    async def live(self) -> ASGIResponse:
        return answer(200, b'{"live":true}')

    async def ready(self) -> ASGIResponse:
        await self._health.check()
        return answer(200, b'{"ready":true}')

    async def model_ready(self, request: AnyRequest) -> ASGIResponse:
        await self._s.keys.check(headers_of(request.scope), "read")
        record = await self._model_of(request)
        return answer(200, msgspec.json.encode({"name": record.spec.name, "ready": True}))

    async def model(self, request: AnyRequest) -> ASGIResponse:
        await self._s.keys.check(headers_of(request.scope), "read")
        spec = (await self._model_of(request)).spec
        text = TensorSpec(TEXT, "BYTES", ())
        body = {
            "name": spec.name,
            "versions": [spec.version]
            if "version" in request.path_params
            else [r.spec.version for r in self._s.models.known.of(spec.name)],
            "platform": _PLATFORMS.get(spec.file, ""),
            "inputs": [_metadata(t) for t in (spec.inputs if spec.text is None else (text,))],
            "outputs": [_metadata(t) for t in spec.outputs],
        }
        return answer(200, msgspec.json.encode(body))

    async def infer(self, request: AnyRequest) -> ASGIResponse:
        s = self._s
        headers = headers_of(request.scope)
        principal = await s.keys.check(headers, "submit")
        key = idempotency_key(headers)
        preferences = prefer.parse(headers.get(b"prefer"))
        raw = await self._body(request, headers)
        path = request.path_params
        chosen = await s.admission.choose(path["model"], path.get("version"), key)
        record = chosen.model
        header_length = headers.get(b"inference-header-content-length")
        body, tail = v2_tensors.split(raw, header_length)
        wanted = v2_tensors.wanted_outputs(body, record.spec)
        count, payload = await s.admission.off_loop(
            len(raw),
            lambda: v2_tensors.pack(v2_tensors.read_inputs(body, tail, record.spec, max_rows=s.settings.max_rows)),
        )
        digest = hashlib.sha256(b"\0".join((request.scope["path"].encode(), header_length or b"", raw))).digest()
        wishes = Wishes(job_id=chosen.job_id, idempotency_key=key, body_hash=digest if key is not None else None)
        job = s.admission.mint(principal, record, count, payload, wishes)
        wait_s = preferences.wait_s or (0 if preferences.respond_async else prefer.MAX_WAIT_S)
        with s.reads.watch(job.id) as watch:
            admitted = await s.commit(job, chosen)
            if admitted.id == job.id and wait_s:
                view = await watch.wait(wait_s, request.receive) or await s.reads.read(job.id)
            else:
                view = await s.ended(admitted.id, wait_s, request.receive)
        if view is None or view.result_pruned:
            raise ResultExpiredError("This Idempotency-Key belongs to a job whose result has been deleted.")
        if preferences.respond_async and not (view.status in TERMINAL and preferences.wait_s):
            location = {"Location": f"/v1/jobs/{show_id(view.id)}", "Retry-After": "1", **preferences.applied}
            return answer(202, job_json(view, s.eta_s), location)
        return self._answer(view, body, wanted, headers, preferences)

    async def _model_of(self, request: AnyRequest) -> ModelRecord:
        path = request.path_params
        return await self._s.models.resolve(path["model"], path.get("version"))

    async def _body(self, request: AnyRequest, headers: Mapping[bytes, bytes]) -> bytes:
        limit = self._s.settings.max_body_bytes
        raw = await read_body(request.receive, headers, limit)
        encoding = headers.get(b"content-encoding", b"identity").decode("latin-1").strip().lower()
        if encoding == "identity":
            return raw
        return await asyncio.get_running_loop().run_in_executor(
            self._s.parsing, lambda: encodings.decompress(raw, encoding, limit)
        )

    def _answer(
        self,
        view: JobView,
        body: v2_tensors.InferBody,
        wanted: list[v2_tensors.Wanted],
        headers: Mapping[bytes, bytes],
        preferences: prefer.Preferences,
    ) -> ASGIResponse:
        told, tail = infer_body(view, body.id, wanted)
        text = msgspec.json.encode(told)
        packed, extra = encodings.compress(text + tail, encodings.accepted(headers.get(b"accept-encoding")))
        extra |= preferences.applied
        if any(want.binary for want in wanted):
            extra["Inference-Header-Content-Length"] = str(len(text))
            return answer(200, packed, extra, media_type="application/octet-stream")
        return answer(200, packed, extra)


def _metadata(tensor: TensorSpec) -> dict[str, object]:
    return {"name": tensor.name, "datatype": tensor.dtype, "shape": v2_tensors.signature_shape(tensor)}
