"""The demo Space, run as the Hub runs it: the pushed files in a folder of their own, with gradio, in a browser."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoProcessor

from imagelm.hub.arguments import PushArguments
from imagelm.hub.stage_space import SDK_VERSION, stage_space
from testing.local_hub import LocalHub
from tests.browser import draw, new_page
from tests.conftest import CLASSES, run
from tests.hub.common import DEMO, MODEL, ROWS, online_environment, push_words
from tests.separate import environment, install

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow
CLIENT = """
import json, sys
from gradio_client import Client, handle_file

client, kind, value = Client(sys.argv[1], verbose=False), sys.argv[2], sys.argv[3]
if kind == "rows":
    print(json.dumps(client.predict(value, api_name="/classify_tokens")))
else:
    picture, hint = client.predict(handle_file(value), api_name="/read_file")
    answer, html = client.predict(picture, api_name="/classify")
    completed, _, _ = client.predict(picture, 1, 3, 1.0, 5, False, api_name="/complete")
    drawn, seed, _ = client.predict("any class", 2, 0.8, 1, False, api_name="/new_images")
    print(json.dumps([picture, answer, completed, drawn]))
"""


@pytest.fixture(scope="module")
def gradio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("gradio"), f"gradio=={SDK_VERSION}", dependencies=True)


@contextmanager
def started(folder: Path, variables: dict[str, str], home: Path) -> Iterator[str]:
    """The demo's address while it runs in its folder."""
    variables |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(home), "NO_PROXY": "127.0.0.1,localhost"}
    log = home / "log.txt"
    home.mkdir()
    with open(log, "w") as stream:
        words = [sys.executable, "-u", "app.py"]
        process = subprocess.Popen(words, cwd=folder, env=variables, stdout=stream, stderr=subprocess.STDOUT)
    try:
        while not (address := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        yield address.group()
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def demo(gradio: Path, pictured: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the demo of a model on a Hub; its files are those that were pushed."""
    home = tmp_path_factory.mktemp("space")
    words = push_words(pictured, "--dataset_dir", pictured / "data", "--dataset_repo_id", ROWS, "--space_repo_id", DEMO)
    with LocalHub(home / "hub") as hub:
        done = run(*words, "--num_drawings", "0", **online_environment(hub, home / "home"))
        assert done.returncode == 0, done.stderr
        (home / "files").mkdir()
        for name, content in hub.repo(DEMO, "space").files().items():
            (home / "files" / name).write_bytes(content)
        with started(
            home / "files", hub.environment(home / "cold") | {"PYTHONPATH": str(gradio)}, home / "run"
        ) as found:
            yield found


@contextmanager
def opened(browser: Browser, address: str, **options: bool) -> Iterator[Page]:
    with new_page(browser, **options) as page:
        page.goto(address)
        page.locator("#sheet canvas").wait_for(timeout=60_000)
        page.locator("#examples button").first.wait_for()
        yield page


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def bars(page: Page) -> dict[str, float]:
    """Probabilities by class, as long as the bars are."""
    page.locator(".bars h2").wait_for()
    names = page.locator(".bars span").all_inner_texts()
    widths = page.locator(".bars i").evaluate_all("bars => bars.map((bar) => parseFloat(bar.style.width) / 100)")
    return dict(zip(names, widths, strict=True))


def sources(page: Page, place: str = "") -> list[str]:
    """The pictures of the gallery that is shown."""
    images = page.locator(f"{place} .gallery:visible img")
    images.first.wait_for()
    return images.evaluate_all("images => images.map((image) => image.src)")


def decoded(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def expected(folder: Path, image: Image.Image) -> tuple[dict[str, float], list[int]]:
    """The probabilities of a picture and its codebook entries, with the processor and the model alone."""
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    ids = processor(images=image)["input_ids"]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids).logits[0, -1, processor.class_ids]
    codes = list(processor.code_ids)
    return dict(zip(CLASSES, logits.softmax(-1).tolist(), strict=True)), [codes.index(i) for i in ids[0, 1:-2].tolist()]


@pytest.mark.parametrize("phone", [False, True])
def test_a_drawing_gets_the_probabilities_that_python_gives_it(
    chromium: Browser, demo: str, pictured: Path, tmp_path: Path, phone: bool
):
    with opened(chromium, demo, phone=phone) as page:
        page.get_by_role("button", name="Colour #e03131").click()
        draw(page, "#sheet canvas", (0.2, 0.2), (0.8, 0.3), (0.4, 0.8))
        picture = page.locator("#sheet canvas").evaluate("canvas => canvas.toDataURL('image/png')")
        press(page, "Classify")
        shown = bars(page)
        tokens = page.locator(".figures svg").first.locator("text").all_text_contents()
        for name in ("Complete", "Draw"):
            page.screenshot(path=tmp_path / f"before_{name}.png", full_page=True)
            page.get_by_role("tab", name=name).click()
            press(page, name)
            assert len(sources(page, "[role=tabpanel]")) == 6
        page.screenshot(path=tmp_path / "drawn.png", full_page=True)
        assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    shares, entries = expected(pictured / "out/best_model", decoded(picture))
    assert shown == pytest.approx(shares, abs=1e-5)
    assert list(shown.values()) == sorted(shown.values(), reverse=True)
    assert tokens == list(map(str, entries))


def test_undo_and_clear_take_strokes_back(chromium: Browser, demo: str):
    with opened(chromium, demo) as page:
        sheet = page.locator("#sheet canvas")
        look = "canvas => canvas.toDataURL()"
        empty = sheet.evaluate(look)
        draw(page, "#sheet canvas", (0.2, 0.2), (0.8, 0.2))
        first = sheet.evaluate(look)
        draw(page, "#sheet canvas", (0.2, 0.8), (0.8, 0.8))
        second = sheet.evaluate(look)
        page.get_by_role("button", name="Undo").click()
        page.wait_for_function("first => document.querySelector('#sheet canvas').toDataURL() === first", arg=first)
        page.get_by_role("button", name="Clear").click()
        assert sheet.evaluate(look) == empty != first != second
        press(page, "Classify")
        page.get_by_text("Draw something or upload a picture first.").wait_for()


def test_files_that_are_no_pictures_get_one_sentence_and_the_demo_goes_on(
    chromium: Browser, demo: str, pictured: Path, tmp_path: Path
):
    Image.new("1", (9_000, 9_000)).save(tmp_path / "huge.png")
    (tmp_path / "text.png").write_text("not a picture")
    good = Image.effect_mandelbrot((40, 30), (-2, -1, 1, 1), 20).convert("RGB")
    good.save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:200])
    with opened(chromium, demo) as page:
        for name, message in [
            ("huge", "This picture has 9,000 × 9,000 pixels; upload one of at most 50,000,000 pixels."),
            ("text", "This file isn't a picture; upload a PNG, JPEG, WebP, GIF, BMP or TIFF."),
            ("cut", "This picture is damaged and can't be read; upload an intact copy."),
        ]:
            page.locator("input[type=file]").first.set_input_files(tmp_path / f"{name}.png")
            page.get_by_text(message).wait_for()
        page.locator("input[type=file]").first.set_input_files(tmp_path / "good.png")
        page.wait_for_function(
            "() => new Set(document.querySelector('#sheet canvas').getContext('2d')"
            ".getImageData(0, 0, 320, 320).data).size > 2"
        )
        press(page, "Classify")
        shown = bars(page)
        page.screenshot(path=tmp_path / "uploaded.png", full_page=True)
    assert shown == pytest.approx(expected(pictured / "out/best_model", good)[0], abs=1e-5)


def test_two_visitors_draw_the_same_images_from_a_seed_at_the_same_time(chromium: Browser, demo: str, pictured: Path):
    with ExitStack() as stack:
        pages = [stack.enter_context(opened(chromium, demo)) for _ in range(2)]
        for page in pages:
            page.get_by_role("tab", name="Draw").click()
            page.get_by_role("button", name="Temperature and seed").last.click()
            page.get_by_label("New seed at each press").last.uncheck()
            page.get_by_label("Seed", exact=True).last.fill("7")
        for page in pages:
            press(page, "Draw")
        found = [sources(page, "[role=tabpanel]") for page in pages]
        assert found[0] == found[1] and len(set(found[0])) > 1
        # A press on an image reads it: each visitor another one.
        for page, place in zip(pages, (0, 1), strict=True):
            page.locator("[role=tabpanel] .gallery:visible img").nth(place).click()
        for page, url in zip(pages, found[0], strict=False):
            assert bars(page) == pytest.approx(expected(pictured / "out/best_model", decoded(url))[0], abs=1e-5)


def test_drawings_of_a_class_are_those_that_the_model_gives_it_with_a_new_seed_each_time(
    chromium: Browser, demo: str, pictured: Path
):
    with opened(chromium, demo) as page:
        name = page.locator("#examples button").first.inner_text()
        page.get_by_role("tab", name="Draw").click()
        page.get_by_label("Class", exact=True).fill(name)
        page.get_by_role("option", name=name).click()
        seeds, kept = [], re.compile(rf"Seed (\d+)\. Kept \d of \d+ drawings: .* classifies as {name}\.")
        for _ in range(2):
            press(page, "Draw")
            page.wait_for_function(
                "old => { const found = document.body.innerText.match(/Seed (\\d+)\\. Kept/);"
                "return found && found[1] !== old; }",
                arg=seeds[-1] if seeds else None,
            )
            seeds.append(kept.search(page.locator("body").inner_text()).group(1))
        for url in sources(page, "[role=tabpanel]"):
            shares = expected(pictured / "out/best_model", decoded(url))[0]
            assert max(shares, key=shares.get) == name
    assert seeds[0] != seeds[1]


def test_the_page_names_its_sources_and_its_accuracy(chromium: Browser, demo: str, pictured: Path):
    results = json.loads((pictured / "out/best_model/eval_results.json").read_text())
    with opened(chromium, demo) as page:
        text = page.locator("body").inner_text().replace("\u00a0", " ")
        links = page.locator("a").evaluate_all("links => links.map((link) => new URL(link.href).pathname)")
    low, high = (f"{100 * share:.1f} %" for share in results["eval_cls_accuracy_interval"])
    accuracy = f"{100 * results['eval_cls_accuracy']:.1f} % of {results['eval_samples']} test images"
    assert f"{accuracy} classified correctly (95 % interval {low} to {high}" in text
    assert {f"/{MODEL}", f"/{MODEL}/tree/main", f"/datasets/{ROWS}"} <= set(links)


def ask(gradio: Path, address: str, kind: str, value: str, tmp_path: Path) -> list:
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, address, kind, value],
        env=environment(gradio, tmp_path / "home", NO_PROXY="127.0.0.1,localhost", TMPDIR=os.fspath(tmp_path)),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_programs_can_classify_complete_and_generate(gradio: Path, demo: str, pictured: Path, tmp_path: Path):
    Image.new("RGB", (40, 30), (200, 30, 90)).save(tmp_path / "picture.png")
    picture, answer, completed, drawn = ask(gradio, demo, "images", str(tmp_path / "picture.png"), tmp_path)
    shares, _ = expected(pictured / "out/best_model", Image.open(tmp_path / "picture.png"))
    assert {one["label"]: one["confidence"] for one in answer["confidences"]} == pytest.approx(shares, abs=1e-5)
    assert answer["label"] == max(shares, key=shares.get)
    processor = AutoProcessor.from_pretrained(pictured / "out/best_model", trust_remote_code=True)
    rows = processor(images=[decoded(one["picture"]) for one in [*completed, *drawn]])["input_ids"].numpy()
    given = processor(images=decoded(picture))["input_ids"].numpy()
    assert len(rows) == 5 and np.array_equal(rows[:3, :3], given[:, :3].repeat(3, axis=0))  # the first of two rows


def test_without_a_codec_the_demo_accepts_rows_and_hides_the_answer(gradio: Path, trained: Path, tmp_path: Path):
    options = PushArguments(model_dir=str(trained / "best_model"), repo_id="me/model", space_repo_id="me/demo")
    folder = stage_space(options, tmp_path / "space").folder
    variables = environment(gradio, tmp_path / "home", MODEL_ID=str(trained / "best_model"))
    with started(folder, variables, tmp_path / "run") as address:
        answers = [
            ask(gradio, address, "rows", f"<IMG> <Z_001> <Z_002> </IMG> {tail}", tmp_path)
            for tail in ("", "<CLS> <CLS_0> <EOS>", "<CLS> <CLS_2> <EOS>")
        ]
    assert answers[0] == answers[1] == answers[2]
    assert len(answers[0][0]["confidences"]) == 3
