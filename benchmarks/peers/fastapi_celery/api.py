"""The peer's HTTP half: submit with delay(), read with AsyncResult, as the manuals of both projects have it.

Two manners of the same endpoints. FastAPI's manual sends blocking calls to its thread pool (`def`, under /threads);
calling a near Redis straight from the loop (`async def`, under /loop) is bolder and, on
few cores, faster.
"""

from typing import Any

from celery.result import AsyncResult
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from tasks import app as celery
from tasks import predict

app = FastAPI()


class Predict(BaseModel):
    inputs: list[list[float]]


@app.get("/livez")
async def livez() -> dict[str, bool]:
    return {"live": True}


@app.post("/threads/predict", status_code=202)
def submit_in_thread(body: Predict) -> dict[str, str]:
    """Queue the rows."""
    return {"id": predict.delay(body.inputs).id}


@app.get("/threads/result/{job_id}")
def result_in_thread(job_id: str) -> dict[str, Any]:
    """Say the task's state, and its result once it has one."""
    found = AsyncResult(job_id, app=celery)
    state = found.state
    if state == "FAILURE":
        raise HTTPException(500, str(found.result))
    return {"id": job_id, "state": state, "result": found.result if state == "SUCCESS" else None}


@app.post("/loop/predict", status_code=202)
async def submit_on_loop(body: Predict) -> dict[str, str]:
    return submit_in_thread(body)


@app.get("/loop/result/{job_id}")
async def result_on_loop(job_id: str) -> dict[str, Any]:
    return result_in_thread(job_id)
