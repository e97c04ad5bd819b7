"""What a new machine on EC2 does by itself: user data, the installation, a worker that knows who and where it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import small_models
from aws_cloud import ENVIRONMENT, REGION, cloud
from fake_imds import FakeImds
from worker_process import ROOT, Worker, until
from worker_rig import Rig

from autoscaler import worker_start
from autoscaler.providers import user_data
from autoscaler.providers.user_data import Worker as Setup
from batchline.data.blobs import Blobs
from batchline.data.contract import Places
from batchline.data.model_blobs import ModelBlobs
from batchline.errors import SettingsError, UnreachableError
from batchline.registry import import_model
from batchline.store import Store
from batchline.store.instance_contract import NewInstance

SETUP = Setup(
    package="batchline[worker-cpu,data]==0.1.0",
    environment={"BATCHLINE_BLOBS": "s3://models/b", "BATCHLINE_LOG_LEVEL": 'a "quoted" $value \\ `x`'},
    parameters="/batchline/test",
    secrets=("batchline/worker",),
)


def parsed(setup: Setup) -> dict[str, Any]:
    text = user_data.user_data(setup, pool="cpu", region=REGION)
    first, _, rest = text.partition("\n")
    assert first == "#cloud-config"
    return json.loads(rest)


def environment(text: str) -> dict[str, str]:
    """An EnvironmentFile, as a shell reads it: systemd has the same rules within double quotes."""
    done = subprocess.run(
        ["env", "-i", "bash", "-c", "set -a; . /dev/stdin; exec /usr/bin/env -0"],
        input=text.encode(),
        capture_output=True,
        check=True,
    )
    read = dict(entry.split("=", 1) for entry in done.stdout.decode().split("\0") if entry)
    return {name: value for name, value in read.items() if name.startswith(("AWS_", "BATCHLINE_"))}


def test_user_data_is_a_cloud_config_without_secrets() -> None:
    """Three files and one command; what it sets is what was given; the unit ends its machine when it is done."""
    config = parsed(SETUP)
    assert set(config) == {"users", "write_files", "runcmd"}
    files = {file["path"]: file["content"] for file in config["write_files"]}
    assert environment(files["/etc/batchline/worker.env"]) == {
        "AWS_REGION": REGION,
        "BATCHLINE_POOL": "cpu",
        "BATCHLINE_MODELS": "/var/lib/batchline/models",
        "BATCHLINE_SPOT_NOTICE": "imds",
        "BATCHLINE_START_PARAMETERS": "/batchline/test",
        "BATCHLINE_START_SECRETS": "batchline/worker",
        **SETUP.environment,
    }
    unit = files["/etc/systemd/system/batchline-worker.service"]
    assert {"SuccessAction=poweroff", "Restart=on-failure"} <= set(unit.splitlines())
    assert config["runcmd"] == [["/usr/local/sbin/batchline-install"]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"environment": {"lower": "x"}},
        {"environment": {"X": "two\nlines"}},
        {"parameters": "relative"},
        {"user": "a b"},
        {"environment": {"DATABASE_URL": "postgresql://batchline:hunter2@db/batchline"}},
        {"environment": {"AWS_SECRET_ACCESS_KEY": "x"}},
        {"index_url": "https://token@pypi.example.com/simple"},
        {"package": "batchline @ https://me:hunter2@example.com/batchline.whl"},
    ],
)
def test_settings_that_no_machine_could_read_are_refused(wrong: dict[str, Any]) -> None:
    """Before a machine is paid for; so are secrets, which do not belong into user data."""
    with pytest.raises(ValueError, match=r"\w"):
        Setup(**wrong)


def installed(tmp_path: Path, setup: Setup, *, failures: int) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run the installation with commands that only write down what they were asked."""
    (script,) = (f["content"] for f in parsed(setup)["write_files"] if f["path"].endswith("install"))
    home, stubs, log = tmp_path / "opt", tmp_path / "stubs", tmp_path / "log"
    stubs.mkdir(exist_ok=True)
    count = tmp_path / "count"
    count.write_text("0")
    pip = f"""#!/bin/bash
echo pip "$@" >> {log}
n=$(($(cat {count}) + 1)); echo $n > {count}
[ $n -gt {failures} ] && touch {home}/bin/batchline && chmod +x {home}/bin/batchline
"""
    bodies = {name: f'#!/bin/bash\necho {name} "$@" >> {log}\n' for name in ("install", "systemctl", "sleep")}
    bodies["python3"] = f"""#!/bin/bash
echo python3 "$@" >> {log}
mkdir -p {home}/bin; cp {stubs}/pip {home}/bin/pip
"""
    for name, body in (bodies | {"pip": pip}).items():
        (stubs / name).write_text(body)
        (stubs / name).chmod(0o755)
    text = script.replace("/opt/batchline", str(home))
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    env = {"PATH": f"{stubs}:/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", text], env=env, capture_output=True, text=True, timeout=60, check=False)
    return done, log.read_text().splitlines()


def test_the_installation_tries_again_and_may_run_again(tmp_path: Path) -> None:
    """Two failures of the index are waited out; the second run of cloud-init installs nothing anew."""
    done, log = installed(tmp_path, SETUP, failures=2)
    assert done.returncode == 0, done.stderr
    assert sum(line.startswith("pip install") for line in log) == 3
    assert "batchline[worker-cpu,data]==0.1.0" in log[2]
    assert log[-1] == "systemctl enable --now batchline-worker.service"
    done, again = installed(tmp_path, SETUP, failures=0)
    assert done.returncode == 0
    assert not any(line.startswith("pip") for line in again[len(log) :])


def test_an_installation_that_fails_starts_nothing(tmp_path: Path) -> None:
    """Nor does an image that should have brought it: the reason is in the machine's log."""
    done, log = installed(tmp_path, SETUP, failures=9)
    assert done.returncode == 1
    assert not any(line.startswith("systemctl") for line in log)
    done, _ = installed(tmp_path, Setup(), failures=0)
    assert "bake it into the image" in done.stderr


def test_a_worker_starts_itself_on_an_empty_disk(
    store: Store, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    """From the machine's settings, its metadata (version 2), Parameter Store, Secrets Manager and the blob store alone:
    the worker registers under the instance's id and serves a model that was imported elsewhere."""
    imds = FakeImds("i-0abc0abc0abc0abc0")
    with cloud(time.monotonic) as aws:
        bucket, path, name = (
            f"b{uuid.uuid4().hex[:12]}",
            f"/batchline/{uuid.uuid4().hex[:8]}",
            f"s-{uuid.uuid4().hex[:8]}",
        )
        s3 = aws.client("s3")
        s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
        blobs = ModelBlobs(Blobs(Places(f"s3://{bucket}/b", s3_endpoint_url=aws.target)))
        model = small_models.double(tmp_path / "double.onnx")
        import_model(tmp_path / "imported", "double", model, store.catalogue.register_model, publish=blobs.publish)
        aws.client("ssm").put_parameter(Name=f"{path}/DATABASE_URL", Value=database_url, Type="SecureString")
        aws.client("secretsmanager").create_secret(Name=name, SecretString=json.dumps({"REDIS_URL": redis_url}))
        setup = Setup(environment={"BATCHLINE_BLOBS": f"s3://{bucket}/b"}, parameters=path, secrets=(name,))
        given = environment(user_data.settings(setup, pool="cpu", region=REGION))
        here = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "AWS_ENDPOINT_URL": aws.endpoint,
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": imds.url,
            "BATCHLINE_SPOT_NOTICE": imds.url,
            "BATCHLINE_S3_ENDPOINT_URL": aws.target,
            "BATCHLINE_MODELS": str(tmp_path / "disk" / "models"),
        }
        worker = Worker(given | here | ENVIRONMENT, tmp_path / "worker.log")
        try:
            worker.start(("-m", "autoscaler.worker_start"))
            rig = Rig(store, redis_url, tmp_path / "unused")
            (registered,) = store.catalogue.models()
            job = rig.pixels(registered.id, [1, 2])
            until(lambda: rig.statuses([job]) == ["succeeded"], worker)
            assert rig.outputs(job) == [{"y": [2.0, 4.0]}]
            store.instances.adopt("cpu", "ec2-spot", None, NewInstance("i-0abc0abc0abc0abc0"))
            assert [(i.id, i.workers) for i in store.instances.list()] == [("i-0abc0abc0abc0abc0", 1)]
            assert worker.end(signal.SIGTERM) == 0
        finally:
            if worker.alive:
                worker.end(signal.SIGKILL)
            imds.close()
    asked = {(method, path) for method, path, _ in imds.seen}
    assert ("PUT", "/latest/api/token") in asked


def test_what_cannot_be_learnt_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """No metadata service: not on EC2. A secret that is no object of variables: which one."""
    with pytest.raises(UnreachableError, match="metadata"):
        worker_start.instance_id("http://127.0.0.1:9")
    with cloud(time.monotonic) as aws:
        name = f"s-{uuid.uuid4().hex[:8]}"
        aws.client("secretsmanager").create_secret(Name=name, SecretString="[]")
        place = {"AWS_REGION": REGION, "BATCHLINE_START_SECRETS": name, "BATCHLINE_INSTANCE": "i-0"}
        monkeypatch.setenv("AWS_ENDPOINT_URL", aws.endpoint)
        with pytest.raises(SettingsError, match=name):
            worker_start.environment(place)
