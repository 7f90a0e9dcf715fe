"""Arbitrary and damaged input for every reader: an answer or a clear error, whatever the bytes.

A fixed seed makes every run try the same examples; `tests/faults/fuzz_jsonl.py` searches on, guided by coverage.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from imagelm.commands.parser import expand_config
from imagelm.data.sources.decode import BadImage, read_image
from imagelm.data.sources.open import open_images
from imagelm.remote_code.codec_imagelm import CODEC_CONFIG, CODEC_WEIGHTS, load_codec
from imagelm.remote_code.pixels_imagelm import flatten
from imagelm.tokens.grammar import Grammar
from imagelm.tokens.vocabulary import load_vocabulary, make_vocabulary
from imagelm.utils.errors import InputError
from tests.conftest import ROOT, sentence
from tests.data.jsonl.test_parser import read
from tests.images import grey_levels_codec, prepare_images, smooth_images

FUZZ = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", 150)),
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
KEYS = st.sampled_from(["tokens", "label", "split", "source", "x"]) | st.text(max_size=3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)
WORDS = st.sampled_from(
    ["<IMG>", "</IMG>", "<CLS>", "<CLS_1>", "<CLS_9>", "<EOS>", "<PAD>", "<Z_001>", "<Z_1>", " ", "x"]
)
STRANGE = st.sampled_from([b"9" * 30, b"\xff" * 8, b"[" * 50, b'"', b"{"])
TOKENS = st.lists(WORDS, max_size=12)
ROWS = st.fixed_dictionaries(
    {"tokens": TOKENS | TOKENS.map(" ".join) | st.just(sentence([1, 2], 1)) | JSON, "label": st.integers(-2, 4) | JSON},
    optional={"split": st.sampled_from(["train", "test"]) | JSON, "source": JSON},
)


def bytes_of(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    """The bytes, with changes, cuts, repetitions or insertions at a few places."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        kind = draw(st.sampled_from(["change", "cut", "insert", "double", "end"]))
        if kind == "change" and content:
            content[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del content[at : at + draw(st.integers(1, 40))]
        elif kind == "insert":
            content[at:at] = draw(
                st.binary(max_size=12) | st.sampled_from([b"9" * 30, b"\xff" * 8, b"[" * 50, b'"', b"{"])
            )
        elif kind == "double":
            content[at:at] = content[at : at + draw(st.integers(1, 60))]
        else:
            del content[at:]
    return bytes(content)


@FUZZ
@given(st.lists(st.binary(max_size=40) | ROWS.map(bytes_of) | ROWS.map(bytes_of).flatmap(damaged), max_size=4))
def test_rows_are_read_or_reported(tmp_path_factory, grammar, parts):
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_bytes(b"\n".join(parts))
    for need_split in (False, True):
        rows, problems = read(file, grammar, need_split)
        given = [line for line in file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
        assert len(rows) + sum(problems.counts.values()) == len(given)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@FUZZ
@given(st.data())
def test_archives_are_read_or_reported(tmp_path_factory, grammar, suffix, data):
    import gzip

    import zstandard

    pack = gzip.compress if suffix == ".gz" else zstandard.compress
    whole = pack(b"\n".join([bytes_of({"tokens": sentence([1, 2], 1), "label": 1})] * 5))
    file = tmp_path_factory.mktemp("rows") / f"rows.jsonl{suffix}"
    file.write_bytes(data.draw(damaged(whole) | st.binary(max_size=60)))
    try:
        read(file, grammar)
    except InputError as error:
        assert str(file) in str(error)


VOCABULARY = json.dumps(make_vocabulary(3, 2))


@FUZZ
@given(
    st.binary(max_size=60)
    | damaged(VOCABULARY.encode())
    | st.dictionaries(WORDS | st.text(max_size=5), JSON).map(bytes_of)
)
def test_vocabularies_are_read_or_reported(tmp_path_factory, content):
    file = tmp_path_factory.mktemp("vocabulary") / "vocab.json"
    file.write_bytes(content)
    try:
        assert Grammar(load_vocabulary(file)).num_classes >= 2
    except InputError as error:
        assert str(file) in str(error)
        assert len(str(error)) < 1000


RECIPE = (ROOT / "recipes/digits/config.yaml").read_bytes()
KNOWN = {line.split(":")[0] for line in RECIPE.decode().splitlines() if ":" in line} | {"config"}


@FUZZ
@given(st.binary(max_size=60) | damaged(RECIPE) | st.text("ab:-[]{}&*!|>#'\"% \n\t0.1e", max_size=40).map(str.encode))
def test_recipes_are_read_or_reported(tmp_path_factory, content):
    file = tmp_path_factory.mktemp("recipe") / "r.yaml"
    file.write_bytes(content)
    try:
        assert all(isinstance(word, str) for word in expand_config(["--config", str(file)], KNOWN))
    except InputError as error:
        assert str(file) in str(error)


def image_files() -> dict[str, bytes]:
    files = {}
    image = Image.fromarray(smooth_images(1, (16, 16), channels=3)[0])
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA", "JPEG2000"):
        stream = io.BytesIO()
        image.save(stream, kind)
        files[kind] = stream.getvalue()
    return files


IMAGES = image_files()


@pytest.mark.parametrize("kind", IMAGES)
@settings(FUZZ, max_examples=FUZZ.max_examples // 3)
@given(st.data())
def test_images_are_read_or_reported(kind, data):
    found = read_image(io.BytesIO(data.draw(damaged(IMAGES[kind]))))
    if isinstance(found, BadImage):
        assert 0 < len(found.reason) < 500
    else:
        try:
            assert flatten(found, 0).mode in ("L", "RGB")
        except ValueError as error:
            assert "32-bit" in str(error)


@FUZZ
@given(st.data())
def test_arrays_are_read_or_reported(tmp_path_factory, data):
    stream = io.BytesIO()
    np.savez_compressed(stream, image=smooth_images(3), label=np.arange(3))
    file = tmp_path_factory.mktemp("arrays") / "x.npz"
    file.write_bytes(data.draw(damaged(stream.getvalue())))
    try:
        list(open_images([str(file)]).load(0, 1))
    except InputError as error:
        assert str(file) in str(error)


@pytest.fixture(scope="module")
def codecs(tmp_path_factory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("codecs")
    images = home / "x.npz"
    np.savez(images, image=smooth_images(40), label=np.arange(40) % 2)
    prepare_images(home / "u", images, codebook="unified", codebook_size=8)
    prepare_images(home / "l", images, codebook="learned", codebook_size=8, codec_steps=2, device="cpu")
    return {"patch": grey_levels_codec(home / "p", (8, 8)), "unified": home / "u/codec", "learned": home / "l/codec"}


@pytest.mark.parametrize("kind", ["patch", "unified", "learned"])
@pytest.mark.parametrize("name", [CODEC_CONFIG, CODEC_WEIGHTS])
@settings(FUZZ, max_examples=FUZZ.max_examples // 2)
@given(st.data())
def test_codec_files_are_read_or_reported(tmp_path_factory, codecs, kind, name, data):
    folder = tmp_path_factory.mktemp("codec")
    for file in (CODEC_CONFIG, CODEC_WEIGHTS):
        (folder / file).write_bytes((codecs[kind] / file).read_bytes())
    content = damaged((codecs[kind] / name).read_bytes())
    if name == CODEC_CONFIG:
        config = json.loads((codecs[kind] / name).read_text())
        numbers = JSON | st.sampled_from([0, -1, 2**31, 2**62, 10**30, 1.5, float("nan"), [10**9, 10**9], [0, 4], "8"])
        content |= st.sampled_from(sorted(config)).flatmap(
            lambda key: numbers.map(lambda value: bytes_of(config | {key: value}))
        )
    (folder / name).write_bytes(data.draw(content))
    try:
        codec = load_codec(folder)
    except ValueError as error:
        assert "aren't a codec" in str(error)
        return
    height, width = codec.image_size
    if height * width < 10_000 and "t" not in codec.config.get("features", ()):
        entries = codec.encode(np.zeros((1, height, width, codec.channels), dtype=np.uint8))
        assert entries.shape == (1, codec.num_tokens)
        assert (entries < codec.codebook_size).all()


def test_a_codec_config_with_more_blocks_than_weights_is_refused_before_they_are_built(tmp_path, codecs):
    folder = tmp_path / "codec"
    shutil.copytree(codecs["learned"], folder)
    config = json.loads((folder / CODEC_CONFIG).read_text())
    (folder / CODEC_CONFIG).write_bytes(bytes_of(config | {"num_blocks": 2**31}))
    with pytest.raises(ValueError, match="num_blocks is 2147483648"):
        load_codec(folder)


@pytest.mark.slow
def test_a_minute_of_fuzzing_led_by_coverage_finds_nothing_in_the_reader_of_rows(tmp_path):
    pytest.importorskip("atheris")
    words = ("-max_total_time=60", "-timeout=20", "-rss_limit_mb=4096", f"-artifact_prefix={tmp_path}/", "-seed=1")
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.fuzz_jsonl", *words], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Done " in done.stderr
    print(done.stderr.strip().splitlines()[-1])
