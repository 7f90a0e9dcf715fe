"""The demo without a server, as it is published: headless Chromium opens the pushed page and gives Python's answers.

The hosts of the Hub and of the CDN are answered by the local Hub and by npm's files of the runtime.
"""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from PIL import Image

from imagelm.codecs.kmeans import fit_patch_codec, fit_unified_codec
from imagelm.inference.arguments import LoadArguments
from imagelm.inference.generation import complete_rows
from imagelm.inference.generation_arguments import GenerationArguments
from imagelm.inference.loading import load_for_inference
from imagelm.inference.scoring import class_probabilities
from imagelm.remote_code.codec_imagelm import Codec, PatchCodec
from testing.local_hub import LocalHub
from tests.browser import draw, new_page
from tests.conftest import CLASSES, ROOT, run
from tests.images import random_images, smooth_images, to_image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

pytestmark = pytest.mark.slow
pytest.importorskip("onnxruntime", reason="requirements-onnx.txt isn't installed")
PAGE = ROOT / "imagelm/templates/space_static"
MODEL, DEMO, SITE = "alice/animals", "alice/animals-demo", "alice-animals-demo.static.hf.space"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".mjs": "text/javascript"}
Answers = dict[str, Callable[["Route"], None]]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of onnxruntime-web in the version that the page names, from npm."""
    home = tmp_path_factory.mktemp("runtime")
    version = re.search(r"onnxruntime-web@[\d.]+", (PAGE / "index.html").read_text()).group()
    if shutil.which("npm") is None:
        pytest.skip("npm isn't installed")
    done = subprocess.run(["npm", "pack", "--silent", version], cwd=home, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"npm can't load {version}: {done.stderr}")
    with tarfile.open(next(home.glob("*.tgz"))) as archive:
        archive.extractall(home, filter="data")
    return home / "package"


@pytest.fixture(scope="module")
def best(pictured: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small trained model of colour images, with its export."""
    folder = Path(shutil.copytree(pictured / "out/best_model", tmp_path_factory.mktemp("page") / "best_model"))
    done = run("-m", "imagelm", "export", "--model", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def hub(best: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A Hub to which the model and the page were pushed."""
    home = tmp_path_factory.mktemp("hub")
    with LocalHub(home) as hub:
        words = ["--repo_id", MODEL, "--space_repo_id", DEMO, "--space_sdk", "static", "--num_drawings", 0]
        environment = hub.environment(home / "client") | {"HF_HUB_OFFLINE": "0"}
        done = run("push_to_hub.py", "--model_dir", best, *words, **environment)
        assert done.returncode == 0, done.stderr
        yield hub


@pytest.fixture(scope="module")
def answers(hub: LocalHub, runtime: Path) -> Answers:
    """What the hosts answer that the published page asks."""

    def send(route: Route, name: str, content: bytes | None) -> None:
        kind = TYPES.get(Path(name).suffix, "application/wasm" if name.endswith(".wasm") else "text/plain")
        headers = {"access-control-allow-origin": "*", "content-type": kind}
        route.fulfill(status=200 if content is not None else 404, body=content or b"", headers=headers)

    def site(route: Route) -> None:
        name = urlsplit(route.request.url).path[1:] or "index.html"
        space = hub.repo(DEMO, "space")
        send(route, name, space.read(name) if name in space.files() else None)

    def models(route: Route) -> None:
        path = urlsplit(route.request.url).path
        try:
            with urlopen(hub.endpoint + path) as response:
                send(route, path, response.read())
        except HTTPError:
            send(route, path, None)

    def cdn(route: Route) -> None:
        name = re.fullmatch(r"/npm/onnxruntime-web@[\d.]+/(.*)", urlsplit(route.request.url).path)[1]
        send(route, name, (runtime / name).read_bytes())

    return {SITE: site, "huggingface.co": models, "cdn.jsdelivr.net": cdn}


def opened(page: Page) -> Page:
    """The page with its model, or with the reason why there is none."""
    page.goto(f"https://{SITE}/")
    page.locator("#facts:not([hidden]), #loading.error").wait_for()
    return page


def draw_new(page: Page, seed: int) -> None:
    """Draws new pictures; the message of those before goes first, as a tap comes a moment later."""
    page.evaluate("document.querySelector('#draw-message').textContent = ''")
    page.get_by_role("button", name="Draw", exact=True).tap()
    page.locator("#draw-message", has_text=f"Seed {seed}:").wait_for()


def draw_by_touch(page: Page, *points: tuple[float, float]) -> None:
    """A stroke with a finger; x and y in shares of the paper's sides."""
    box = page.locator("#paper").bounding_box()
    session = page.context.new_cdp_session(page)
    for i, (x, y) in enumerate(points):
        place = {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]}
        session.send("Input.dispatchTouchEvent", {"type": "touchMove" if i else "touchStart", "touchPoints": [place]})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def canvas_pixels(page: Page, selector: str) -> np.ndarray:
    """What a canvas holds; uint8, shape (height, width, 4)."""
    url = page.locator(selector).evaluate("canvas => canvas.toDataURL()")
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        return np.array(image.convert("RGBA"))


def shown_answer(page: Page) -> tuple[list[int], dict[str, float]]:
    """The tokens and the probability of each class that the page shows."""
    page.locator("#bars li").first.wait_for()
    tokens = page.locator("#tokens").get_attribute("aria-label").removeprefix("Token grid: ").split()
    bars = page.locator("#bars li").evaluate_all(
        "items => items.map((item) => [item.firstChild.textContent, Number(item.dataset.probability)])"
    )
    return list(map(int, tokens)), dict(bars)


def test_a_drawing_gets_pythons_tokens_class_and_completion(
    chromium: Browser, answers: Answers, best: Path, tmp_path: Path
):
    loaded = load_for_inference(LoadArguments(model=str(best), device="cpu"))
    with new_page(chromium, answer=answers) as page:
        opened(page)
        page.get_by_role("button", name="Classify").click()
        assert "The paper is empty" in page.locator("#input-message").inner_text()
        page.get_by_label("Ink").fill("#f0a020")
        draw(page, "#paper", (0.2, 0.2), (0.8, 0.3), (0.3, 0.9))
        page.get_by_role("button", name="Classify").click()
        tokens, shares = shown_answer(page)
        pixels = canvas_pixels(page, "#paper")[..., :3]
        entries = loaded.codec.encode(loaded.codec.pixels(Image.fromarray(pixels))[None])
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 2 and tokens == entries[0].tolist()
        question = loaded.grammar.question(loaded.grammar.code_ids[entries[0]])
        expected = class_probabilities(loaded, [question], 1)[0]
        assert shares == pytest.approx(dict(zip(CLASSES, expected.tolist(), strict=True)), abs=1e-5)
        assert (canvas_pixels(page, "#seen")[..., :3] == loaded.codec.decode(entries)[0]).all()
        page.screenshot(path=tmp_path / "desktop.png", full_page=True)

        page.get_by_label("Temperature").fill("0")
        page.get_by_label("Pictures", exact=True).fill("1")
        page.get_by_role("button", name="Complete").click()
        page.locator("#completions figcaption", has_text="%").wait_for()
        kept = loaded.grammar.prefix(loaded.grammar.code_ids[entries[0][: loaded.codec.grid[1]]])
        ((row,),) = complete_rows(loaded, [kept], GenerationArguments(greedy=True), 1)
        (image,) = loaded.codec.decode((loaded.grammar.code_ids[None] == row.row.body[:, None]).argmax(1)[None])
        assert (canvas_pixels(page, "#completions figure:nth-child(2) canvas")[..., :3] == image).all()
        caption = page.locator("#completions figcaption").last.inner_text()
        assert caption == f"{CLASSES[row.label]}, {100 * row.probability:.1f} %"


def test_new_pictures_follow_from_the_seed_and_have_the_class(chromium: Browser, answers: Answers, tmp_path: Path):
    with new_page(chromium, phone=True, dark=True, answer=answers) as page:
        opened(page)
        draw_by_touch(page, (0.2, 0.2), (0.5, 0.5), (0.8, 0.8))
        assert (canvas_pixels(page, "#paper")[[100, 224, 320], [100, 224, 320], 0] == 255).all()
        page.get_by_role("button", name="Classify").tap()
        assert len(shown_answer(page)[1]) == len(CLASSES)
        page.get_by_label("Pictures", exact=True).fill("3")
        drawn = []
        for seed in (5, 5, 6):
            page.get_by_label("Seed").fill(str(seed))
            draw_new(page, seed)
            drawn.append([canvas_pixels(page, f"#drawings figure:nth-child({i}) canvas").tolist() for i in (1, 2, 3)])
        assert drawn[0] == drawn[1] != drawn[2] and drawn[0][0] != drawn[0][1]
        name = page.locator("#drawings figcaption").first.inner_text().rpartition(",")[0]
        page.get_by_label("Class", exact=True).select_option(name)
        draw_new(page, 6)
        captions = page.locator("#drawings figcaption").all_inner_texts()
        assert captions and all(caption.startswith(f"{name}, ") for caption in captions)
        assert canvas_pixels(page, "#drawings figure:nth-child(1) canvas").tolist() == drawn[2][0]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.screenshot(path=tmp_path / "phone.png", full_page=True)


def test_uploads_are_read_as_in_python_or_refused_in_one_sentence(
    chromium: Browser, answers: Answers, best: Path, tmp_path: Path
):
    loaded = load_for_inference(LoadArguments(model=str(best), device="cpu"))
    (tmp_path / "text.png").write_text("no picture")
    Image.new("1", (9000, 2000)).save(tmp_path / "huge.png")
    to_image(random_images(1, (37, 90), 3)[0]).save(tmp_path / "small.png")
    with new_page(chromium, answer=answers) as page:
        opened(page)
        message = page.locator("#input-message.error")
        for name, text in (
            ("text.png", "is no picture that this browser can read"),
            ("huge.png", "9000 × 2000 pixels"),
        ):
            page.get_by_label("Upload a picture").set_input_files(tmp_path / name)
            message.filter(has_text=text).wait_for()
            assert page.locator("#bars li").count() == 0
        page.get_by_label("Upload a picture").set_input_files(tmp_path / "small.png")
        tokens, _ = shown_answer(page)
        assert not message.count()
        with Image.open(tmp_path / "small.png") as image:
            assert tokens == loaded.codec.encode(loaded.codec.pixels(image)[None])[0].tolist()
        page.get_by_label("Temperature").fill("9")
        page.get_by_role("button", name="Draw", exact=True).click()
        page.locator("#draw-message.error", has_text="Temperature must be a number from 0 to 2.").wait_for()


def test_a_model_without_an_export_or_codec_or_connection_is_named(chromium: Browser, answers: Answers):
    def without(*names: str) -> Answers:
        def models(route: Route) -> None:
            if route.request.url.endswith(names):
                return route.fulfill(status=404, headers={"access-control-allow-origin": "*"})
            return answers["huggingface.co"](route)

        return answers | {"huggingface.co": models}

    for given, text in (
        (without("onnx/imagelm.json"), "The model has no ONNX export"),
        (without("processor_config.json"), "The model has no codec"),
        ({SITE: answers[SITE]}, "could not be loaded: check the connection"),
        ({name: answers[name] for name in (SITE, "huggingface.co")}, "The runtime could not be loaded from its CDN"),
    ):
        with new_page(chromium, answer=given) as page:
            assert text in opened(page).locator("#loading").inner_text()
            assert page.get_by_role("button", name="Classify").is_disabled()


def codecs() -> dict[str, Codec]:
    """Codecs of each kind that the page computes, in grey and colour, stretched and padded."""
    colour, grey = smooth_images(30, (12, 8), channels=3), smooth_images(30, (9, 9))
    features = ["x", "y", "R", "G", "B", "A", "Gx", "Gy"]
    tied = torch.tensor([[10] * 4, [20] * 4, [10] * 4], dtype=torch.uint8)  # the first of equal entries wins
    return {
        "patches": fit_patch_codec(colour, 4, 24, 0, fit="resize", background=0),
        "padded": fit_patch_codec(grey, 3, 16, 0, fit="pad", background=200),
        "tied": PatchCodec({"image_size": [6, 6], "channels": 1, "patch_size": 2}, {"codebook": tied}),
        "pixels": fit_unified_codec(colour, 40, 0, features, "standardize"),
    }


def test_the_codec_in_the_page_is_the_one_in_python(chromium: Browser, answers: Answers, tmp_path: Path):
    code = """async ([config, weights, pixels, width, height]) => {
        const { openCodec, readSafetensors } = await import("./codec.js");
        const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
        const codec = openCodec(config, readSafetensors(bytes(weights).buffer));
        const image = new ImageData(new Uint8ClampedArray(bytes(pixels)), width, height);
        const read = codec.pixels(image), entries = codec.encode(read);
        return [Array.from(read), entries, Array.from(codec.decode(entries).data)];
    }"""
    with new_page(chromium, answer=answers) as page:
        page.goto(f"https://{SITE}/style.css")
        for name, codec in codecs().items():
            codec.save(tmp_path / name)
            weights = base64.b64encode((tmp_path / name / "codec.safetensors").read_bytes()).decode()
            config = json.loads((tmp_path / name / "codec.json").read_text())
            for seed, size in enumerate([(12, 8), (9, 9), (5, 7), (61, 40), (40, 133), (1, 3), (12, 30)]):
                make = random_images if seed % 2 else smooth_images
                image = to_image(make(1, size, 3, seed)[0])
                given = base64.b64encode(image.convert("RGBA").tobytes()).decode()
                read, entries, decoded = page.evaluate(code, [config, weights, given, image.width, image.height])
                pixels = codec.pixels(image)
                assert read == pixels.ravel().tolist(), (name, size)
                expected = codec.encode(pixels[None])
                assert entries == expected[0].tolist(), (name, size)
                (shown,) = codec.decode(expected)
                shown = np.broadcast_to(shown, (*shown.shape[:2], 3))
                assert (np.reshape(decoded, (*shown.shape[:2], 4))[..., :3] == shown).all()
