"""Nightly churn scores: a schedule scores a Postgres table of customers into a table of scores, by upsert.

Run by `make demo-nightly`. The database with the customers is one of its own, as an operator's would be; Batchline
knows it by the name `shop`. Everything lives in temporary folders and on free ports, and is gone at the end. Exit 0
only if every score is what ONNX Runtime says when it is called directly.

No churn table ships with scikit-learn, so real rows of another kind stand in for customers: the 569 cases of its breast
cancer data, 30 measured numbers each and one yes-or-no outcome, which is what a churn table looks like to a model. The
outcome of three quarters is known and trains it; the others are scored.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import psycopg2
import psycopg2.extras
from numpy.typing import NDArray
from world import add_model, console, run_alone, tell

from batchline import Client
from batchline.client import BatchInfo
from batchline.errors import BatchlineError
from batchline.local import stack
from batchline.local.plan import Addresses
from batchline.testing import ephemeral_postgres

TOLERANCE = 1e-5
PATIENCE_S = 120.0
AHEAD = timedelta(seconds=3)
"""The least time from making the schedule to its first run."""


class Customers(NamedTuple):
    """N customers: ids, names of the 30 features, features [N, 30] float64, churned [N] bool, known [N] bool."""

    ids: list[str]
    names: list[str]
    features: NDArray[np.float64]
    churned: NDArray[np.bool_]
    known: NDArray[np.bool_]


def customers() -> Customers:
    """The stand-ins, always the same; `malignant` stands for churned, and a quarter is held out as not known yet."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import train_test_split

    data: Any = load_breast_cancer()
    churned = data.target == 0
    known = np.zeros(len(churned), np.bool_)
    known[train_test_split(np.arange(len(churned)), test_size=0.25, random_state=7, stratify=churned)[0]] = True
    names = [str(name).replace(" ", "_") for name in data.feature_names]
    return Customers([f"C{i:04}" for i in range(len(churned))], names, data.data, churned, known)


def build(folder: Path) -> Customers:
    """Train on the known customers and write `model.onnx` into a folder.

    The model takes "features" FP32 [N, 30] as they are, scaling included, and gives "label" INT64 [N] and
    "probabilities" FP32 [N, 2].
    """
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    found = customers()
    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    fitted.fit(found.features[found.known].astype(np.float32), found.churned[found.known].astype(np.int64))
    model = to_onnx(
        fitted,
        initial_types=[("features", FloatTensorType([None, len(found.names)]))],
        options={"zipmap": False},
        target_opset={"": 17, "ai.onnx.ml": 3},
        name="churn",
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return found


def fill(url: str, found: Customers) -> None:
    """The table `customers`; `churned` is null where it is not known yet."""
    with psycopg2.connect(url) as connection, connection.cursor() as cursor:
        columns = ", ".join(f'"{name}" double precision NOT NULL' for name in found.names)
        cursor.execute(f"CREATE TABLE customers (customer_id text PRIMARY KEY, churned boolean, {columns})")
        rows = [
            (customer, bool(churned) if known else None, *map(float, features))
            for customer, churned, known, features in zip(
                found.ids, found.churned, found.known, found.features, strict=True
            )
        ]
        psycopg2.extras.execute_values(cursor, "INSERT INTO customers VALUES %s", rows)
    connection.close()


def truth(url: str, names: list[str], model: Path) -> dict[str, tuple[int, NDArray[np.float32]]]:
    """What ONNX Runtime says of the customers as the table has them now, called directly."""
    import onnxruntime

    columns = ", ".join(f'"{name}"' for name in names)
    with psycopg2.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT customer_id, {columns} FROM customers WHERE churned IS NULL")
        rows = cursor.fetchall()
    connection.close()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    features = np.array([row[1:] for row in rows], np.float32)
    labels, probabilities = cast("Any", session.run(["label", "probabilities"], {"features": features}))
    return {row[0]: (int(label), p) for row, label, p in zip(rows, labels, probabilities, strict=True)}


def compare(url: str, expected: dict[str, tuple[int, NDArray[np.float32]]]) -> tuple[float, list[str]]:
    """The largest difference of the table `scores` from the truth, and what is wrong with it."""
    with psycopg2.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT customer_id, label, probabilities FROM scores")
        rows = cursor.fetchall()
    connection.close()
    wrong = [f"scores has {len(rows)} rows, not {len(expected)}"] if len(rows) != len(expected) else []
    largest = 0.0
    for customer, label, probabilities in rows:
        if customer not in expected:
            wrong.append(f"{customer} should not be there")
            continue
        difference = float(np.abs(np.array(probabilities) - expected[customer][1]).max())
        largest = max(largest, difference)
        if label != expected[customer][0] or difference > TOLERANCE:
            wrong.append(f"{customer}: {label} {probabilities}, not {expected[customer]}")
    return largest, wrong


def batch_body(found: Customers) -> dict[str, object]:
    """What the schedule submits each night."""
    return {
        "model": "churn",
        "input": {
            "database": "shop", "table": "customers", "key": "customer_id", "columns": found.names,
            "where": [["churned", "is null"]],
        },
        "output": {"database": "shop", "table": "scores", "mode": "upsert"},
        "metadata": {"night": "{fire_time:%Y-%m-%d %H:%M}"},
    }  # fmt: skip


def make_schedule(client: Client, found: Customers) -> dict[str, Any]:
    """A schedule of every night, whose night is the next full minute."""
    at = (datetime.now(UTC) + AHEAD).replace(second=0, microsecond=0) + timedelta(minutes=1)
    body = {"name": "nightly-churn", "cron": f"{at.minute} {at.hour} * * *", "timezone": "UTC"}
    return cast("dict[str, Any]", client.request("POST", "/v1/schedules", body | {"batch": batch_body(found)}))


def await_run(client: Client, schedule: dict[str, Any]) -> dict[str, Any]:
    """The first run of the schedule, once it has come."""
    fires_at = datetime.fromisoformat(schedule["next_fire_at"])
    until = fires_at + timedelta(seconds=PATIENCE_S)
    with console.status("") as status:
        while datetime.now(UTC) < until:
            left_s = (fires_at - datetime.now(UTC)).total_seconds()
            status.update(f"asleep until {fires_at:%H:%M:%S} UTC: {max(0.0, left_s):.0f} s")
            runs = cast("dict[str, Any]", client.request("GET", f"/v1/schedules/{schedule['id']}/runs"))["data"]
            if runs:
                return runs[0]
            time.sleep(min(1.0, max(0.1, left_s)))
    raise BatchlineError(f"The schedule has not run by {until:%H:%M:%S}.")


def night(client: Client, run: dict[str, Any], url: str, found: Customers, model: Path) -> bool:
    """Wait for the batch of a run, tell what it did; True when the scores are right."""
    if run["batch_id"] is None:
        tell("failed", f"the run was {run['outcome']}: {run['detail']}")
        return False
    batch = client.get_batch(run["batch_id"])
    done = batch.wait(PATIENCE_S, progress=True)
    tell_batch(done)
    largest, wrong = compare(url, truth(url, found.names, model)) if done.rows.succeeded else (0.0, ["nothing scored"])
    for why in wrong[:10]:
        tell("wrong", why)
    if not wrong:
        tell(
            "checked",
            f"every score equals ONNX Runtime called directly: difference {largest:.1g}, allowed {TOLERANCE:g}",
        )
    return not wrong and done.status == "completed" and done.rows.failed == 0


def tell_batch(done: BatchInfo) -> None:
    rows = done.rows
    tell("batch", f"{done.id} {done.status}: {rows.succeeded} of {rows.total} rows in {done.slices.total} slices")
    for fault in done.faults:
        tell("", f"{fault.code}: {fault.message}")


def tell_scores(url: str, found: Customers) -> None:
    """How good the scores are, and the customers most likely to go."""
    truly = dict(zip(found.ids, found.churned.tolist(), strict=True))
    with psycopg2.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT customer_id, label, probabilities[2] FROM scores ORDER BY probabilities[2] DESC")
        rows = cursor.fetchall()
    connection.close()
    right = sum(bool(label) == truly[customer] for customer, label, _ in rows)
    tell(
        "scores", f"{right} of {len(rows)} outcomes that the model never saw foretold: accuracy {right / len(rows):.1%}"
    )
    tell("", "most likely to go: " + ", ".join(f"{customer} {p:.3f}" for customer, _, p in rows[:3]))


def change(url: str, found: Customers) -> None:
    """A day passes: the numbers of one customer change, and a new one comes."""
    first, second = [i for i, known in zip(found.ids, found.known, strict=True) if not known][:2]
    columns = ", ".join(f'"{name}"' for name in found.names)
    with psycopg2.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute(
            f'UPDATE customers SET "{found.names[0]}" = "{found.names[0]}" * 1.1 WHERE customer_id = %s', (first,)
        )
        cursor.execute(
            f"INSERT INTO customers (customer_id, churned, {columns}) SELECT 'N0001', NULL, {columns} FROM customers"
            " WHERE customer_id = %s",
            (second,),
        )
    connection.close()


def score(addresses: Addresses, url: str, found: Customers, model: Path) -> bool:
    """Two nights: the first when the schedule fires, the second by hand after the table has changed."""
    key = addresses.key_path.read_text(encoding="utf-8").strip()
    with Client(",".join(addresses.api_urls), key) as client:
        schedule = make_schedule(client, found)
        tell("schedule", f"{schedule['name']}: cron {schedule['cron']!r}, next at {schedule['next_fire_at']}")
        first = night(client, await_run(client, schedule), url, found, model)
        if first:
            tell_scores(url, found)
        change(url, found)
        tell("next day", "one customer has changed, one has come; the schedule is run once more, by hand")
        run = cast("dict[str, Any]", client.request("POST", f"/v1/schedules/{schedule['id']}/run"))
        second = night(client, run, url, found, model)
        runs = cast("dict[str, Any]", client.request("GET", f"/v1/schedules/{schedule['id']}/runs"))["data"]
        for told in reversed(runs):
            tell("history", f"{told['fire_at']} {told['outcome']} {told['batch_id']} {told['batch_status']}")
        return first and second and len(runs) == 2


def start(folder: Path) -> tuple[Addresses, Customers]:
    """Train the model, start the system and put the model into it."""
    began = time.perf_counter()
    with console.status("training, starting servers …"):
        found = build(folder / "built")
        addresses = stack.up(folder, detach=True, flower=False)
        spec = add_model(folder, addresses, "churn", folder / "built", None)
    tell("data", f"{len(found.ids)} real rows of scikit-learn's breast cancer data stand in for customers,")
    unknown = int((~found.known).sum())
    tell("", f"{len(found.names)} numbers each; the outcome of {unknown} is not known yet: these are scored")
    spent_s = time.perf_counter() - began
    tell("up", f"PostgreSQL, Valkey, API, worker, scheduler, and the shop's own PostgreSQL, in {spent_s:.1f} s")
    tell("model", f"{spec.ref}, trained on the {int(found.known.sum())} others")
    return addresses, found


def run_in(folder: Path) -> bool:
    """The whole demo with all its files in a folder."""
    with ephemeral_postgres(durable=True) as shop:
        os.environ |= {"BATCHLINE_DATABASES": f"shop={shop.url}", "BATCHLINE_SLICE_ROWS": "50"}
        try:
            addresses, found = start(folder)
            fill(shop.url, found)
            return score(addresses, shop.url, found, folder / "built" / "model.onnx")
        finally:
            with console.status("stopping …"):
                stack.down(folder)


if __name__ == "__main__":
    sys.exit(run_alone("churn", run_in))
