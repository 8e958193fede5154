"""Who may ask, and what the server says of itself."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from recycle_onnx.errors import InputError
from recycle_onnx.runtime.model import Model
from recycle_onnx.serve.access import host_name, is_loopback
from recycle_onnx.serve.limits import Limits
from recycle_onnx.serve.server import Address
from tests.helpers.patience import PATIENCE
from tests.serve.conftest import ENDLESS, NAME, Running, serving, wait_until

TOKEN = "open sesame"
APP = "https://app.example"


@pytest.fixture(scope="module")
def closed(endless_model: Model) -> Iterator[Running]:
    with serving(endless_model, token=TOKEN) as running:
        yield running


def get(running: Running, path: str, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(running.url.removeprefix("http://"), timeout=PATIENCE)
    try:
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def test_the_token_opens(closed: Running) -> None:
    assert closed.client(TOKEN).completions.create(model=NAME, prompt="the").choices[0].text


@pytest.mark.parametrize("wrong", ["another", TOKEN + "x", TOKEN[:-1], "é"])
def test_another_token_does_not(wrong: str, closed: Running) -> None:
    response, body = get(closed, "/v1/models", Authorization=f"Bearer {wrong}".encode().decode("latin-1"))
    assert response.status == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert json.loads(body)["error"]["code"] == "invalid_api_key"
    if wrong.isascii():
        with pytest.raises(openai.AuthenticationError, match="token"):
            closed.client(wrong).completions.create(model=NAME, prompt="the")


@pytest.mark.parametrize("path", ["/metrics", "/v1/models", "/v1/completions", "/else", "//", "/health/"])
def test_without_a_token_almost_nothing_is_told(path: str, closed: Running) -> None:
    assert get(closed, path)[0].status == 401


@pytest.mark.parametrize("path", ["/", "/health", "/openapi.json"])
def test_what_tells_nothing_needs_no_token(path: str, closed: Running) -> None:
    assert get(closed, path)[0].status == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil", ""])
def test_a_foreign_name_for_this_machine_is_refused(host: str, server: Running) -> None:
    """DNS rebinding: a page on the web makes its own name mean 127.0.0.1."""
    response, body = get(server, "/v1/models", Host=host)
    assert response.status == 403
    assert json.loads(body)["error"]["code"] == "host_not_allowed"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:80", "[::1]"])
def test_names_of_this_machine_are_allowed(host: str, server: Running) -> None:
    assert get(server, "/v1/models", Host=host)[0].status == 200


def test_other_sites_cannot_read_answers(server: Running) -> None:
    response, _ = get(server, "/v1/models", Origin="https://evil.example")
    assert not [name for name in response.headers if name.lower().startswith("access-control")]
    assert response.headers["cross-origin-resource-policy"] == "same-origin"
    assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/v1/completions", "/"])
@pytest.mark.parametrize("origin", ["https://evil.example", "http://localhost:1", "http://127.0.0.1", "null", ""])
def test_pages_of_other_sites_are_refused(origin: str, path: str, server: Running) -> None:
    response, body = get(server, path, Origin=origin)
    assert response.status == 403
    assert json.loads(body)["error"]["code"] == "origin_not_allowed"


def test_its_own_page_is_not(server: Running) -> None:
    assert get(server, "/v1/models", Origin=server.url)[0].status == 200
    behind_a_proxy = {"Origin": "https://chat.example", "Sec_Fetch_Site": "same-origin"}
    assert get(server, "/v1/models", **behind_a_proxy)[0].status == 200


@pytest.fixture(scope="module")
def shared(endless_model: Model) -> Iterator[Running]:
    with serving(endless_model, token=TOKEN, origins=frozenset({APP, "http://[::1]:80/"})) as running:
        yield running


@pytest.mark.parametrize("origin", [APP, "http://[::1]"])
def test_an_allowed_site_reads_answers_and_errors(origin: str, shared: Running) -> None:
    for headers, status in (({"Authorization": f"Bearer {TOKEN}"}, 200), ({}, 401)):
        response, _ = get(shared, "/v1/models", Origin=origin, **headers)
        assert response.status == status
        assert response.headers["access-control-allow-origin"] == origin
        assert "Origin" in response.headers["vary"]


def test_another_site_does_not(shared: Running) -> None:
    response, _ = get(shared, "/v1/models", Origin=APP + ".evil.example", Authorization=f"Bearer {TOKEN}")
    assert response.status == 403
    assert "access-control-allow-origin" not in response.headers


def test_a_browser_may_ask_first_without_the_token(shared: Running) -> None:
    asks = {
        "Origin": APP,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
    }
    connection = http.client.HTTPConnection(shared.url.removeprefix("http://"), timeout=PATIENCE)
    connection.request("OPTIONS", "/v1/chat/completions", headers=asks)
    response = connection.getresponse()
    connection.close()
    assert response.status == 200
    assert response.headers["access-control-allow-origin"] == APP
    assert "POST" in response.headers["access-control-allow-methods"]
    assert response.headers["access-control-allow-headers"] == asks["Access-Control-Request-Headers"]


@pytest.mark.parametrize("origin", ["*", "null", "app.example", "https://", "https://a.example/b", "http://a:b", ""])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(InputError, match="--allow-origin"):
        Address(origins=frozenset({origin}))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
def test_other_machines_are_let_in_with_a_token_only(host: str) -> None:
    with pytest.raises(InputError, match="--token"):
        Address(host)
    assert not Address(host, token="t").is_local


@pytest.mark.parametrize("token", ["", " ", "né", "a\nb", "abc ", " abc"])
def test_a_token_that_no_header_can_hold_is_refused(token: str) -> None:
    with pytest.raises(InputError, match="token"):
        Address(token=token)


def test_addresses_of_this_machine() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost", "LocalHost.")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "localhost.example", "", "1")))
    assert [host_name(name) for name in ("a:1", "[::1]:1", "a", "[::1]")] == ["a", "::1", "a", "::1"]


@pytest.mark.parametrize("field", ["slots", "queue", "caches", "body_bytes", "body_seconds", "generation_seconds"])
def test_limits_that_let_nobody_in_are_refused(field: str) -> None:
    for value in (-1, float("nan")):
        with pytest.raises(InputError, match=field.replace("_", " ")):
            Limits(**{field: value})


def test_health_tells_how_busy_it_is(server: Running) -> None:
    _, body = get(server, "/health")
    assert json.loads(body) == {"status": "ok", "slots": 2, "slots_busy": 0, "queue_waiting": 0}


def test_metrics_count_what_was_made(endless_model: Model) -> None:
    with serving(endless_model) as running:
        answers = [
            running.client().completions.create(
                model=NAME, prompt="the cat sat " * 20, max_tokens=20, extra_body={"strategy": "alternate"}
            )
            for _ in range(2)
        ]
        with pytest.raises(openai.BadRequestError):
            running.client().completions.create(model=NAME, prompt="")
        stream = running.client().completions.create(
            model=NAME, prompt="a dog", max_tokens=ENDLESS, stream=True, extra_body={"strategy": "full"}
        )
        begun = [next(stream) for _ in range(5)]
        stream.close()
        wait_until(lambda: running.busy == 0)
        for path in ("/health", f"/v1/models/{NAME}", "/v1/models/no/such", "/nowhere"):
            get(running, path)
        response, body = get(running, "/metrics")
        assert response.headers["content-type"].startswith("text/plain; version=")
        found = {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(body.decode())
            for sample in family.samples
        }
    assert found["recycle_onnx_requests_total", "/v1/completions", "200"] == 3
    assert found["recycle_onnx_requests_total", "/v1/completions", "400"] == 1
    assert found["recycle_onnx_requests_total", "/v1/models/{model:path}", "200"] == 1
    assert found["recycle_onnx_requests_total", "/v1/models/{model:path}", "404"] == 1
    assert found["recycle_onnx_requests_total", "other", "404"] == 1
    assert found["recycle_onnx_tokens_total", "new"] >= 40 + len(begun)  # what was broken off counts too
    assert found["recycle_onnx_request_seconds_count",] == 4  # and what is no completion does not
    usages = [answer.usage for answer in answers]
    recycled = [usage.model_extra["recycle"]["recycled_tokens"] for usage in usages if usage and usage.model_extra]
    assert found["recycle_onnx_tokens_total", "recycled"] == sum(recycled) == 20
    details = [usage.prompt_tokens_details for usage in usages if usage]
    cached = [detail.cached_tokens or 0 for detail in details if detail]
    assert found["recycle_onnx_tokens_total", "cached"] == sum(cached) > 0
    assert found["recycle_onnx_first_token_seconds_count",] == 3
    assert found["recycle_onnx_slots_busy",] == 0
