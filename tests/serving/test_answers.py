"""The service answers as the tasks do: every endpoint, rows and images, alone and in batches."""

from __future__ import annotations

import asyncio
import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter
from transformers import pipeline

from imagelm.inference.generation_arguments import ClassArguments, GenerationArguments
from imagelm.inference.inputs import InputRows
from imagelm.inference.tasks import classify, complete, generate
from imagelm.models.decision import save_decision
from imagelm.serving.schemas import ENDPOINTS
from imagelm.tokens.grammar import Row
from tests.serving.common import clients, held, in_base64, png, problem, row

BODIES = [[1, 2, 3, 4], [11, 12, 13, 29], [5, 5, 5, 5]]


def post(client, task: str, **content: object) -> list[dict]:
    response = client.post(f"/v1/{task}", json=content)
    assert response.status_code == 200, response.text
    TypeAdapter(ENDPOINTS[task].answer).validate_json(response.content, strict=True)  # as the description says
    return response.json()["results"]


def rows_of(loaded, bodies=BODIES) -> list[Row]:
    texts = [row(*body)["tokens"].split() for body in bodies]
    return [loaded.grammar.parse(tokens, None, f"inputs[{i}]") for i, tokens in enumerate(texts)]


def test_classify_gives_the_records_of_the_command_for_text_and_lists_of_tokens(client, loaded):
    inputs = [row(*BODIES[0]), *({"tokens": row(*body)["tokens"].split()} for body in BODIES[1:])]
    found = post(client, "classify", inputs=inputs, top=2, score=True)
    assert found == classify(loaded, rows_of(loaded), 2, True, 64).records
    assert [len(record["top"]) for record in found] == [2, 2, 2]


def test_an_image_is_classified_as_its_tokens_in_base64_and_as_files_of_a_form(client, loaded, grey_images):
    codes = loaded.codec.encode(grey_images[:3])
    by_tokens = post(client, "classify", inputs=[row(*body) for body in codes.tolist()], top=1)
    files = [png(image) for image in grey_images[:3]]
    assert post(client, "classify", inputs=list(map(in_base64, files)), top=1) == by_tokens
    form = [("image", (f"{i}.png", data, "image/png")) for i, data in enumerate(files)]
    response = client.post("/v1/classify", files=form, data={"top": "1", "score": "false"})
    assert response.json()["results"] == by_tokens


def test_score_is_the_sum_of_the_models_log_probabilities(client, loaded):
    (found,) = post(client, "score", inputs=[row(*BODIES[0])])
    ids = torch.from_numpy(loaded.grammar.prefix(loaded.grammar.code_ids[BODIES[0]], num_tail=1))[None]
    with torch.no_grad():
        shares = loaded.model(input_ids=ids).logits.double().log_softmax(-1)
    total = float(shares[0, torch.arange(5), ids[0, 1:]].sum())
    assert found["log_likelihood"] == pytest.approx(total, rel=1e-5)
    assert found["bits_per_token"] == pytest.approx(-total / np.log(2) / 5, rel=1e-5)
    assert found["bits_per_dim"] == pytest.approx(-total / np.log(2) / 64, rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"class_name": "owl", "condition": "likelihood", "num_candidates": 2}])
def test_generate_with_a_seed_gives_the_images_of_the_command(client, loaded, options):
    given = {("class" if name == "class_name" else name): value for name, value in options.items()}
    found = post(client, "generate", num_samples=3, seed=7, temperature=1.5, images=True, **given)
    pictures = [record.pop("image") for record in found]
    expected = generate(
        loaded, GenerationArguments(seed=7, temperature=1.5), ClassArguments(num_samples=3, **options), 64
    )
    assert found == expected.records
    for record, picture in zip(found, pictures, strict=True):
        codes = [int(token[3:-1]) for token in record["tokens"].split() if token.startswith("<Z_")]
        decoded = loaded.codec.decode(np.array([codes]))[0, ..., 0]
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(picture)))), decoded)


@pytest.mark.parametrize("options", [{}, {"num_return_sequences": 2, "top_k": 5, "seed": 3}])
def test_complete_gives_the_records_of_the_command(client, loaded, options):
    bodies = [[1], [7, 8], BODIES[0]]
    found = post(client, "complete", inputs=[row(*body) for body in bodies], **options)
    expected = complete(loaded, InputRows(rows_of(loaded, bodies)), GenerationArguments(**options), 64, 0).records
    assert found == expected
    assert {"token_accuracy", "true_remainder"} <= found[-1].keys()  # of the row that is a whole image


def test_requests_that_wait_together_share_a_batch_and_get_the_answers_that_they_get_alone(service, grey_images):
    questions = [
        *(("classify", {"inputs": [row(*body)], "top": top}) for top, body in enumerate(BODIES, start=1)),
        ("classify", {"inputs": [in_base64(png(image)) for image in grey_images[:2]]}),
        *(("score", {"inputs": [row(*body)]}) for body in BODIES),
        *(("complete", {"inputs": [row(*body[:2])]}) for body in BODIES),
        *(("generate", {"num_samples": 2, "seed": seed}) for seed in (1, 1)),
    ]
    app = service()

    async def ask_all() -> tuple[list, list]:
        async with clients(app) as client:
            alone = [(await client.post(f"/v1/{task}", json=content)).json()["results"] for task, content in questions]
            with held(app) as sizes:
                first = asyncio.ensure_future(client.post("/v1/score", json={"inputs": [row(1, 2, 3, 4)]}))
                while app.state.gate.num_waiting < 1 or app.state.gate.batcher.jobs:
                    await asyncio.sleep(0.001)
                asked = [asyncio.ensure_future(client.post(f"/v1/{task}", json=content)) for task, content in questions]
                while len(app.state.gate.batcher.jobs) < len(questions):
                    await asyncio.sleep(0.001)
            together = [(await response).json()["results"] for response in asked]
            await first
            metrics = (await client.get("/metrics")).text
        assert sizes == [1]
        return alone, together, metrics

    alone, together, metrics = asyncio.run(ask_all())
    for first, second in zip(alone, together, strict=True):
        assert_close(first, second)
    # Alone 4, together 1 batch of classify; a seed is computed alone.
    assert 'imagelm_batch_rows_count{task="classify"} 5.0' in metrics
    assert 'imagelm_batch_rows_count{task="complete"} 4.0' in metrics
    assert 'imagelm_batch_rows_count{task="generate"} 4.0' in metrics


def assert_close(first: object, second: object) -> None:
    """Equal but for the rounding of sums."""
    if isinstance(first, float):
        assert second == pytest.approx(first, abs=1e-5)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        [assert_close(first[name], second[name]) for name in first]
    elif isinstance(first, list):
        [assert_close(*pair) for pair in zip(first, second, strict=True)]
    else:
        assert first == second


def test_samples_without_a_seed_share_a_batch_and_differ(service):
    app = service()

    async def ask() -> list[list[dict]]:
        async with clients(app) as client:
            with held(app):
                first = asyncio.ensure_future(client.post("/v1/generate", json={"num_samples": 1, "seed": 1}))
                while app.state.gate.num_waiting < 1 or app.state.gate.batcher.jobs:
                    await asyncio.sleep(0.001)
                body = {"num_samples": 2, "temperature": 5}
                asked = [asyncio.ensure_future(client.post("/v1/generate", json=body)) for _ in range(3)]
                while len(app.state.gate.batcher.jobs) < 3:
                    await asyncio.sleep(0.001)
            await first
            answers = [(await response).json()["results"] for response in asked]
            assert 'imagelm_batch_rows_count{task="generate"} 2.0' in (await client.get("/metrics")).text
            return answers

    answers = asyncio.run(ask())
    assert [[record["sample"] for record in answer] for answer in answers] == [[1, 2]] * 3
    assert len({record["tokens"] for answer in answers for record in answer}) > 1


def test_a_request_that_fails_takes_no_other_with_it(service):
    app = service()
    batcher = app.state.gate.batcher
    compute = batcher.compute

    def fail(jobs):
        if any(job.num_rows == 2 for job in jobs):
            raise RuntimeError("broken")
        return compute(jobs)

    async def ask() -> list[int]:
        async with clients(app) as client:
            with held(app):
                contents = [{"inputs": [row(*body) for body in BODIES[:n]]} for n in (1, 2, 3)]
                asked = [asyncio.ensure_future(client.post("/v1/classify", json=content)) for content in contents]
                while app.state.gate.num_waiting < 3:
                    await asyncio.sleep(0.001)
            return [(await response).status_code for response in asked]

    batcher.compute = fail
    assert asyncio.run(ask()) == [200, 500, 200]


def test_systemone_answers_as_transformers_decision_pipeline(client, loaded, tmp_path):
    save_decision(tmp_path, loaded.model, loaded.tokenizer)
    decide = pipeline("decision", model=loaded.model, tokenizer=loaded.tokenizer, decision_config=str(tmp_path))
    state, criteria = row(*BODIES[0])["tokens"], dict.fromkeys(loaded.class_names)
    request = {"state": state, "questions": {name: {"type": "choice", "criteria": criteria} for name in ("a", "b")}}
    response = client.post("/v1/systemone", json=request | {"model": "mine"})
    TypeAdapter(ENDPOINTS["systemone"].answer).validate_json(response.content, strict=True)
    content = response.json()
    assert content["model"] == "mine"
    assert content["usage"] == {"input_tokens": 2 * len((state + " <CLS>").split()), "output_tokens": 0}
    expected = decide(request)
    assert list(content["answers"]) == list(expected) == ["a", "b"]
    for name, answer in expected.items():
        found = content["answers"][name]
        assert list(found) == list(answer) and list(found["probabilities"]) == list(answer["probabilities"])
        assert_close(found, answer)
    for change, said in [
        ({"state": state + " <CLS> <CLS_1>"}, "doesn't end with </IMG> or <CLS>"),
        ({"state": "a cat"}, "state: token 1 is 'a'"),
        (
            {"questions": {"a": {"type": "choice", "criteria": dict.fromkeys(loaded.class_names[::-1])}}},
            "in this order",
        ),
    ]:
        assert said in problem(client.post("/v1/systemone", json=request | change), 422)
