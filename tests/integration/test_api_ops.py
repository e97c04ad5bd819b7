"""What operators ask: metrics and models."""

from __future__ import annotations

from api_server import READER, Running
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus


def test_the_api_has_its_metrics_on_its_own_port(api: Running) -> None:
    """In the text format, or in OpenMetrics for a scraper that prefers it; operators only."""
    api.http.get("/livez")
    text = api.call("GET", "/metrics")
    assert text.headers["Content-Type"].startswith("text/plain; version=")
    assert text.text.endswith("\n")
    open_text = api.call("GET", "/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0,*/*;q=0.1"})
    assert open_text.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    for families in (prometheus(text.text), openmetrics(open_text.text)):
        requests = [sample for family in families for sample in family.samples if "http_requests" in sample.name]
        assert any(s.labels == {"route": "/livez", "status": "200"} and s.value >= 1 for s in requests)
    assert api.call("GET", "/metrics", READER).status_code == 403
    assert api.http.get("/metrics").status_code == 401


def test_a_model_tells_who_gets_its_traffic(api: Running) -> None:
    """All of it goes to the production version; the list has the same fields."""
    model = api.call("GET", "/v1/models/digits").json()
    assert model["traffic"] == {"production": "2", "canary": None, "shadow": None}
    assert model["aliases"] == {"production": "2", "latest": "2"}
    assert model in api.call("GET", "/v1/models").json()["data"]
