"""deploy/nginx and the profiles of docker-compose.yml: nginx lets through what the API takes, nobody gains by them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.connection import MAX_HEAD_BYTES, Connection
from api.prefer import MAX_WAIT_S
from batchline.settings import Settings

ROOT = Path(__file__).parents[2]
NGINX = re.sub(r"#.*", "", (ROOT / "deploy/nginx/nginx.conf").read_text())
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


def values(directive: str) -> list[str]:
    return re.findall(rf"\b{directive} ([^;]+);", NGINX)


def test_bodies_may_be_as_large_as_the_api_takes_them() -> None:
    """Equal for jobs and batches; for files, with what multipart puts around them."""
    sizes = [int(size.removesuffix("m")) * 2**20 for size in values("client_max_body_size")]
    assert sizes[0] == Settings.max_body_bytes
    (files,) = sizes[1:]
    assert Settings.file_bytes < files <= Settings.file_bytes + 2**20
    assert Connection.head_s == float(values("client_header_timeout")[0].removesuffix("s"))
    number, each = values("large_client_header_buffers")[0].split()
    assert int(number) * int(each.removesuffix("k")) * 1024 >= MAX_HEAD_BYTES


def test_nobody_who_waits_is_cut_off() -> None:
    """Every location waits for longer than `Prefer: wait` may; results are passed on as they come."""
    assert all(float(each.removesuffix("s")) > MAX_WAIT_S + 5 for each in values("proxy_read_timeout"))
    for location in (r"/v1/files", r"~ ^/v1/batches/[^/]+/results"):
        (body,) = re.findall(rf"location {re.escape(location)} \{{(.*?)\n    \}}", NGINX, re.DOTALL)
        assert "proxy_buffering off;" in body


def test_metrics_stay_inside_and_nobody_claims_to_be_somebody_else() -> None:
    """/metrics is answered by nginx; X-Forwarded headers of clients are replaced."""
    assert re.search(r"location /metrics \{\s*return 404;", NGINX)
    told = {value.split()[0]: value.split()[1] for value in values("proxy_set_header")}
    assert told["X-Forwarded-For"] == "$remote_addr"
    assert {"X-Forwarded-Proto", "X-Forwarded-Host"} <= told.keys()


@pytest.mark.parametrize(("name", "profile"), [("prometheus", "monitoring"), ("nginx", "proxy")])
def test_what_a_profile_adds_is_as_hardened_as_the_rest(name: str, profile: str) -> None:
    """Off by default, on loopback, no root, nothing to write or to gain; its files are there."""
    service = SERVICES[name]
    assert service["profiles"] == [profile]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert int(service["user"].split(":")[0]) > 0
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    for volume in service["volumes"]:
        source, *_, mode = volume.split(":")
        assert not source.startswith("./") or ((ROOT / source).is_file() and mode == "ro")


def test_nothing_else_is_published() -> None:
    """Without a profile API and Flower are all that can be reached, and none of them waits for a profile's service."""
    default = {name: service for name, service in SERVICES.items() if "profiles" not in service}
    assert {name for name, service in default.items() if "ports" in service} == {"api", "flower"}
    assert all(set(service.get("depends_on", {})) <= default.keys() for service in default.values())
