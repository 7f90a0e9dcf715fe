"""Limits, keys and bad input: every refusal is a problem that says what to do, and the service goes on."""

from __future__ import annotations

import asyncio
import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from imagelm.serving.arguments import ServeArguments
from imagelm.utils.errors import InputError
from tests.serving.common import clients, held, in_base64, png, problem, row

QUESTION = {"inputs": [row(1, 2, 3, 4)]}
NESTED = '{"inputs":' + "[" * 100_000 + "]" * 100_000 + "}"


def picture(**options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(stream, **options)
    return stream.getvalue()


def bomb() -> bytes:
    """A PNG of 14 kB that would take 100 MB."""
    stream = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(stream, "PNG", optimize=True)
    return stream.getvalue()


BAD_JSON = {
    "cut": ('{"inputs": [', "Invalid JSON"),
    "empty": ("", "Invalid JSON"),
    "no_utf8": (b'{"inputs": [{"tokens": "\xff"}]}', "Invalid JSON"),
    "half_a_surrogate": ('{"inputs": [{"tokens": "\\ud800"}]}', "Invalid JSON"),
    "deep": (NESTED, "recursion limit"),
    "a_list": ("[]", "should be an object"),
    "no_inputs": ("{}", "/inputs: Field required"),
    "no_rows": ('{"inputs": []}', "/inputs: List should have at least 1 item"),
    "unknown_field": ('{"inputs": [{"tokens": "<IMG>"}], "tpo": 1}', "/tpo: Extra inputs are not permitted"),
    "a_word_for_a_number": ('{"inputs": [{"tokens": "<IMG>"}], "top": "5"}', "/top: Input should be a valid integer"),
    "nan": ('{"inputs": [{"tokens": "<IMG>"}], "top": NaN}', "/top: Input should be a valid integer"),
    "below_1": ('{"inputs": [{"tokens": "<IMG>"}], "top": 0}', "/top: Input should be greater than or equal to 1"),
    "huge_number": ('{"inputs": [{"tokens": "<IMG>"}], "top": ' + "9" * 10_000 + "}", "number out of range"),
    "numbers_for_tokens": ('{"inputs": [{"tokens": [' + "1," * 1_000_000 + "1]}]}", "/inputs/0/tokens"),
    "no_base64": ('{"inputs": [{"image": "=&"}]}', "isn't base64"),
}
BAD_IMAGES = {
    "text": (b"hello, I am a picture", "not an image of a known format"),
    "nothing": (b"", "not an image of a known format"),
    "cut": (picture(format="PNG")[:-30], "can't be decoded"),
    "cut_jpeg": (picture(format="JPEG")[:-200], "an image"),
    "bomb": (bomb(), "100.0 million pixels, the service reads up to 16 million"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image of a known format"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "not an image of a known format"),
}
BAD_ROWS = {
    "unknown": ("<IMG> <Z_001> <foo>", "inputs[0]: token 3 is '<foo>', which isn't among the model's 39 tokens"),
    "order": ("<IMG> <CLS>", "token 2 is <CLS>, expected"),
    "empty": ("", "no token at all"),
    "short": ("<IMG> <Z_001>", "the image has 1 tokens, the model's images have 4"),
    "long": ("<IMG>" + " <Z_001>" * 50_000, "the image has 50000 tokens"),
}


def is_alive(client: TestClient) -> bool:
    return client.post("/v1/classify", json=QUESTION).status_code == 200


@pytest.mark.parametrize("kind", BAD_JSON)
def test_json_that_breaks_the_schema_is_refused_with_its_place(client, kind):
    content, said = BAD_JSON[kind]
    response = client.post("/v1/classify", content=content, headers={"content-type": "application/json"})
    detail = problem(response, 400)
    assert said in detail or said in response.text
    assert len(response.content) < 5_000
    assert is_alive(client)


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_bad_image_is_named_in_json_and_in_a_form(client, kind):
    data, said = BAD_IMAGES[kind]
    inputs = [in_base64(picture(format="PNG")), in_base64(data)]
    by_json = client.post("/v1/classify", json={"inputs": inputs})
    form = [("image", ("a.png", picture(format="PNG"), "image/png")), ("image", ("b.png", data, "image/png"))]
    by_form = client.post("/v1/classify", files=form)
    assert said in problem(by_json, 422) and problem(by_json, 422) == problem(by_form, 422)
    assert "inputs[1]" in problem(by_json, 422)
    assert is_alive(client)


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_row_that_the_model_cannot_use_is_named(client, kind):
    tokens, said = BAD_ROWS[kind]
    assert said in problem(client.post("/v1/classify", json={"inputs": [{"tokens": tokens}]}), 422)
    assert is_alive(client)


@pytest.mark.parametrize(
    ("task", "content", "said"),
    [
        ("generate", {"greedy": True, "temperature": 1}, "temperature without effect: greedy doesn't sample"),
        ("generate", {"class": "yak"}, "class 'yak' is unknown to the model; it knows cat, dog, owl"),
        ("generate", {"num_samples": 65}, "65 samples are asked for, the service makes up to 64 at once"),
        ("generate", {"class": "cat", "max_draws": 10**9}, "sequences would be generated, the service allows 1024"),
        ("generate", {"num_image_tokens": 7}, "num_image_tokens 7: the model's codec makes images of 4 tokens"),
        ("complete", QUESTION | {"num_beams": 10**6}, "sequences would be generated"),
        ("complete", QUESTION | {"num_return_sequences": 65}, "65 samples are asked for"),
        ("classify", {"inputs": [row(1, 2, 3, 4)] * 65}, "65 are given, the service takes up to 64 at once"),
        ("classify", {"inputs": [{"tokens": "x"}] * 65}, "65 are given, the service takes up to 64 at once"),
    ],
)
def test_options_that_this_model_or_service_cannot_follow_are_refused(client, task, content, said):
    assert said in problem(client.post(f"/v1/{task}", json=content), 422)


def test_other_content_types_forms_paths_and_methods_are_refused(client):
    for headers in ({"content-type": "text/plain"}, {}, {"content-type": "application/jsonp"}):
        assert "send application/json" in problem(client.post("/v1/classify", content=b"{}", headers=headers), 415)
    files = {"image": ("a.png", picture(format="PNG"))}
    assert "send application/json" in problem(client.post("/v1/generate", files=files), 415)
    assert "field 'photo'" in problem(client.post("/v1/classify", files={"photo": b"x"}), 400)
    assert "field 'inputs'" in problem(client.post("/v1/classify", files=files, data={"inputs": "[]"}), 400)
    assert "/top" in problem(client.post("/v1/classify", files=files, data={"top": "many"}), 400)
    many = [("image", (f"{i}.png", b"x")) for i in range(65)]
    assert "65 are given" in problem(client.post("/v1/classify", files=many), 422)
    for kind in ("multipart/form-data", "multipart/form-data; boundary=x; charset=undefined"):
        problem(client.post("/v1/classify", content=b"--x\r\n", headers={"content-type": kind}), 400)
    problem(client.get("/v1/nothing"), 404)
    assert client.get("/v1/classify").headers["allow"] == "POST"
    problem(client.get("/v1/classify"), 405)
    assert is_alive(client)


def test_a_large_body_is_refused_by_its_header_and_without_one(service):
    with TestClient(service(max_body_mb=1)) as client:
        large = json.dumps({"inputs": [{"tokens": "x" * 2**20}]}).encode()
        headers = {"content-type": "application/json"}
        assert "more than 1 MiB" in problem(client.post("/v1/classify", content=large, headers=headers), 413)
        pieces = (large[i : i + 9999] for i in range(0, len(large), 9999))
        assert "more than 1 MiB" in problem(client.post("/v1/classify", content=pieces, headers=headers), 413)
        assert is_alive(client)
        assert "imagelm_held_bytes 0.0" in client.get("/metrics").text


def test_requests_beyond_the_limit_get_429_and_those_that_were_taken_are_answered(service):
    app = service(max_waiting=3)

    async def ask() -> None:
        async with clients(app) as client:
            with held(app):
                taken = [asyncio.ensure_future(client.post("/v1/classify", json=QUESTION)) for _ in range(3)]
                while app.state.gate.num_waiting < 3:
                    await asyncio.sleep(0.001)
                for _ in range(20):
                    refused = await client.post("/v1/classify", json=QUESTION)
                    assert "too many requests wait" in problem(refused, 429)
                    assert 1 <= int(refused.headers["retry-after"]) <= 60
                assert (await client.get("/healthz")).json() == {"status": "ok"}
                assert len(app.state.gate.batcher.jobs) <= 3
            assert [(await response).status_code for response in taken] == [200] * 3
            assert (await client.post("/v1/classify", json=QUESTION)).status_code == 200

    asyncio.run(ask())


def test_bodies_that_arrive_at_the_same_time_share_a_limit(service):
    app = service(max_body_mb=1, max_memory_mb=1)
    headers, half = {"content-type": "application/json"}, b" " * (600 << 10)

    async def ask() -> None:
        go_on = asyncio.Event()

        async def slow():
            yield half
            await go_on.wait()
            yield json.dumps(QUESTION).encode()

        async with clients(app) as client:
            first = asyncio.ensure_future(client.post("/v1/classify", content=slow(), headers=headers))
            while not app.state.gate.budget.held:
                await asyncio.sleep(0.001)
            problem(await client.post("/v1/classify", content=half, headers=headers), 429)
            go_on.set()
            assert (await first).status_code == 200

    asyncio.run(ask())


def test_slow_bodies_and_slow_answers_end_after_the_timeout(service):
    app = service(timeout=0.2)

    async def ask() -> None:
        async def endless():
            while True:
                yield b" "
                await asyncio.sleep(0.01)

        async with clients(app) as client:
            headers = {"content-type": "application/json"}
            response = await client.post("/v1/classify", content=endless(), headers=headers)
            assert "didn't arrive in time" in problem(response, 408)
            with held(app):
                response = await client.post("/v1/classify", json=QUESTION)
                assert "took too long" in problem(response, 503)
                assert response.headers["retry-after"]
            assert app.state.gate.num_waiting == 0 and not app.state.gate.batcher.jobs

    asyncio.run(ask())


def test_a_client_that_goes_away_is_dropped_from_the_queue(service):
    app = service()
    scope = {"type": "http", "method": "POST", "path": "/v1/classify", "query_string": b"", "client": ("1.2.3.4", 5)}
    scope |= {"headers": [(b"content-type", b"application/json")], "asgi": {"version": "3.0"}, "http_version": "1.1"}
    sent = []

    async def ask() -> None:
        gone = asyncio.Event()
        messages = [{"type": "http.request", "body": json.dumps(QUESTION).encode()}]

        async def receive() -> dict:
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict) -> None:
            sent.append(message)

        async with clients(app) as client:
            with held(app):
                first = asyncio.ensure_future(client.post("/v1/classify", json=QUESTION))
                while app.state.gate.num_waiting < 1 or app.state.gate.batcher.jobs:
                    await asyncio.sleep(0.001)
                asked = asyncio.ensure_future(app(scope, receive, send))
                while not app.state.gate.batcher.jobs:
                    await asyncio.sleep(0.001)
                gone.set()
                await asked
                assert not app.state.gate.batcher.jobs and app.state.gate.num_waiting == 1
            await first

    asyncio.run(ask())
    assert sent[0]["status"] == 499


def test_the_rate_of_an_address_is_limited(service):
    with TestClient(service(rate=0.2)) as client:
        codes = [client.post("/v1/classify", json=QUESTION) for _ in range(3)]
        assert [response.status_code for response in codes] == [200, 200, 429]
        assert "0.2 requests a second from this address" in problem(codes[-1], 429)
        assert 1 <= int(codes[-1].headers["retry-after"]) <= 6
        assert client.get("/healthz").status_code == 200


def test_a_key_is_needed_where_one_is_set_but_not_for_probes_and_the_description(service):
    with TestClient(service(api_key="correct horse battery")) as client:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "correct horse battery"}):
            response = client.post("/v1/classify", json=QUESTION, headers=headers)
            assert "API key is missing or wrong" in problem(response, 401)
            assert response.headers["www-authenticate"] == "Bearer"
            problem(client.get("/metrics", headers=headers), 401)
        headers = {"authorization": "bearer correct horse battery"}
        assert client.post("/v1/classify", json=QUESTION, headers=headers).status_code == 200
        assert client.get("/metrics", headers=headers).status_code == 200
        for path in ("/healthz", "/readyz", "/openapi.json"):
            assert client.get(path).status_code == 200


def test_log_lines_and_metrics_hold_no_content(service, caplog):
    caplog.set_level("INFO", "imagelm.serving")
    data = base64.b64encode(png(np.full((8, 8, 1), 7, np.uint8))).decode()
    with TestClient(service()) as client:
        answer = client.post("/v1/classify?secret=1", json={"inputs": [{"image": data}]})
        client.post("/v1/classify", json={"inputs": [{"tokens": "<IMG> <secret>"}]})
        client.get("/secret")
        metrics = client.get("/metrics").text
    records = [record for record in caplog.records if record.name == "imagelm.serving.app"]
    assert [record.facts["status"] for record in records] == [200, 422, 404, 200]
    assert records[0].facts["request"] == answer.headers["x-request-id"]
    assert (records[0].facts["rows"], records[0].facts["route"]) == (1, "/v1/classify")
    logged = " ".join(str(vars(record)) for record in records)
    assert "secret" not in logged + metrics and data not in logged and "Z_" not in logged


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"port": 70000}, "--port 70000: give 0 to 65535"),
        ({"timeout": 0.0}, "--timeout 0.0: give a positive number"),
        ({"rate": float("nan")}, "--rate nan"),
        ({"max_memory_mb": 4}, "--max_memory_mb 4 is less than --max_body_mb 8; raise it"),
    ],
)
def test_options_that_make_no_service_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        ServeArguments(**options)
