"""The processor: pictures become rows and rows pictures, with the codec and the names of the model's folder."""

from __future__ import annotations

import json
import os
import resource
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoProcessor

from imagelm.data.arguments import PrepareArguments
from imagelm.data.load import load_codec_of, load_prepared
from imagelm.data.prepare import prepare
from imagelm.models.save import make_processor
from imagelm.remote_code.processing_imagelm import ImageLMProcessor
from imagelm.tokens.tokenizer import load_tokenizer
from tests.conftest import CLASSES, ROOT
from tests.images import class_folder, prepare_images, random_images, smooth_images, to_image


def files_of(home: Path, rows) -> list[Path]:
    """The picture files that prepared rows were made of."""
    files = {str(file.relative_to(home / "in")): file for file in (home / "in").rglob("*.png")}
    return [next(file for name, file in files.items() if source.endswith(name)) for source in rows["source"]]


def test_pictures_become_the_rows_of_the_prepared_dataset_up_to_the_question(home, processor):
    for rows in load_prepared(home / "data").values():
        batch = processor(images=files_of(home, rows))
        assert batch["input_ids"].dtype == torch.int64
        assert batch["input_ids"].tolist() == [row[:-2] for row in rows["input_ids"]]
        assert batch["attention_mask"].tolist() == [[1] * 7] * len(rows)
        tokens = processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())
        assert [tokens[0], *tokens[-2:]] == ["<IMG>", "</IMG>", "<CLS>"]


def test_a_picture_may_be_a_file_an_image_an_array_or_a_list_of_them(home, processor):
    file = next((home / "in/dog").iterdir())
    pixels = np.asarray(Image.open(file))
    expected = processor(images=str(file))["input_ids"]
    assert expected.shape == (1, 7)
    for images in (file, Image.open(file), pixels, [file], [pixels], pixels[None], [Image.open(file)]):
        assert torch.equal(processor(images=images)["input_ids"], expected)
    mixed = processor(images=[file, pixels, Image.open(file).convert("RGBA")])["input_ids"]
    assert torch.equal(mixed, expected.expand(3, -1))
    grey = random_images(1)[0]
    twins = processor(images=[grey, grey[..., 0], to_image(grey).convert("RGB")])["input_ids"]
    assert torch.equal(twins, twins[:1].expand(3, -1))
    assert torch.equal(processor(images=grey[..., 0])["input_ids"], twins[:1])


def test_16_bit_pixels_and_floats_are_scaled_by_the_range_of_the_codec(folder, tmp_path):
    own = Path(shutil.copytree(folder, tmp_path / "model"))
    config = json.loads((own / "codec.json").read_text())
    (own / "codec.json").write_text(json.dumps(config | {"max_value": 4095}))
    processor = ImageLMProcessor.from_pretrained(own)
    deep = np.random.default_rng(0).integers(0, 4095, (8, 8), endpoint=True, dtype=np.uint16)
    deep[0, 0] = 4095
    expected = processor(images=np.rint(deep / 4095 * 255).astype(np.uint8))["input_ids"]
    Image.fromarray(deep).save(tmp_path / "deep.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for image in (deep, deep[..., None], deep / 4095, tmp_path / "deep.png"):
            assert torch.equal(processor(images=image)["input_ids"], expected)
    with pytest.warns(UserWarning, match="1 of 1 images with 16-bit pixels have values above 4095"):
        processor(images=deep * 2)
    with pytest.warns(UserWarning, match="use values up to 255, but white is 4095"):
        processor(images=deep // 16)
    with pytest.raises(ValueError, match="floats outside 0 to 1"):
        processor(images=deep.astype(float))


def test_many_files_are_not_held_open_at_once(home, processor):
    files = sorted((home / "in").rglob("*.png"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 20, hard))
    try:
        assert processor(images=files * 10)["input_ids"].shape == (450, 7)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_rows_become_the_pictures_that_their_tokens_stand_for(home, processor):
    rows = load_prepared(home / "data")["test"]
    drawn = processor.decode_images(rows["input_ids"][:])
    codec = load_codec_of(home / "data")
    images = np.stack([codec.pixels(Image.open(file)) for file in files_of(home, rows)])
    assert (np.stack([np.asarray(image) for image in drawn]) == codec.decode(codec.encode(images))).all()
    assert all(image.mode == "RGB" and image.size == (8, 8) for image in drawn)
    again = processor(images=drawn)["input_ids"]
    assert again.tolist() == [row[:-2] for row in rows["input_ids"]]
    for ids in (again, again.numpy(), again[:, 1:5]):
        assert [np.asarray(one).tolist() for one in processor.decode_images(ids)] == [
            np.asarray(one).tolist() for one in drawn
        ]
    with pytest.raises(ValueError, match="row 1 has 3 codebook tokens, an image has 4"):
        processor.decode_images([again[0], again[1, :4]])


def test_the_processor_gives_numpy_where_asked_and_takes_a_single_row(home, processor):
    files = sorted((home / "in/cat").iterdir())[:2]
    rows = processor(images=files, return_tensors="np")["input_ids"]
    assert isinstance(rows, np.ndarray)
    assert (rows == processor(images=files)["input_ids"].numpy()).all()
    (one,) = processor.decode_images(rows[0])
    assert (np.asarray(one) == np.asarray(processor.decode_images(rows)[0])).all()
    with pytest.raises(TypeError, match="text"):
        processor(images=files, text="<IMG>")


def test_a_saved_processor_is_the_same_and_stands_alone(processor, picture, tmp_path):
    processor.save_pretrained(tmp_path / "saved")
    loaded = AutoProcessor.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    assert torch.equal(loaded(images=picture)["input_ids"], processor(images=picture)["input_ids"])
    assert loaded.layout == processor.layout
    for name in ("codec.json", "codec.safetensors", "processor_config.json", "tokenizer.json"):
        assert (tmp_path / "saved" / name).exists()


def test_a_grey_codec_with_another_order_of_ids_makes_and_reads_its_own_rows(tmp_path):
    """A vocabulary whose ids are shuffled: entries and ids aren't the same numbers."""
    pictures = smooth_images(20)
    class_folder(tmp_path / "in", {"a": pictures[:10], "b": pictures[10:]})
    data, _ = prepare_images(tmp_path / "images", tmp_path / "in", write_jsonl=True)
    raw = tmp_path / "images/raw"
    vocabulary = json.loads((raw / "vocab.json").read_text())
    order = np.random.default_rng(0).permutation(len(vocabulary)).tolist()
    (raw / "vocab.json").write_text(json.dumps(dict(zip(vocabulary, order, strict=True))))
    files = {"data_files": [str(raw / "rows.jsonl")], "vocab_file": str(raw / "vocab.json")}
    options = {"split_by": "field", "codec": str(tmp_path / "images/codec"), "output_dir": str(tmp_path / "rows")}
    prepare(PrepareArguments(**files, **options), command="test")
    rows = load_prepared(tmp_path / "rows")["train"]
    assert rows["input_ids"][:] == [[order[i] for i in row] for row in data["train"]["input_ids"]]
    tokenizer, codec = load_tokenizer(tmp_path / "rows/tokenizer"), load_codec_of(tmp_path / "rows")
    processor = make_processor(tokenizer, codec, ["a", "b"])
    drawn = processor.decode_images(rows["input_ids"][:])
    assert processor(images=drawn)["input_ids"].tolist() == [row[:-2] for row in rows["input_ids"]]
    assert drawn[0].mode == "L"


def test_a_codec_with_t_refuses_a_bare_picture(tmp_path):
    pictures = smooth_images(12)
    class_folder(tmp_path / "in", {"a": pictures[:6], "b": pictures[6:]})
    prepare_images(tmp_path / "data", tmp_path / "in", codebook="unified", features="t,R,G,B")
    tokenizer = load_tokenizer(tmp_path / "data/tokenizer")
    processor = make_processor(tokenizer, load_codec_of(tmp_path / "data"), ["a", "b"])
    with pytest.raises(ValueError, match="fitted with t, the number of an image's file, which an image alone doesn't"):
        processor(images=pictures[0])


# A model's folder


def test_classes_have_their_names_in_config_report_and_results(home, folder):
    config = AutoConfig.from_pretrained(folder)
    assert config.id2label == dict(enumerate(CLASSES))
    assert config.label2id == {name: label for label, name in enumerate(CLASSES)}
    assert json.loads((folder / "eval_results.json").read_text())["class_names"] == CLASSES
    (report,) = (home / "out").rglob("training_report.md")
    lines = [line for line in report.read_text().splitlines() if line.startswith("|")]
    counts = np.bincount(load_prepared(home / "data")["test"]["label"], minlength=3)
    for name, count in zip(CLASSES, counts, strict=True):
        assert any(line.startswith(f"| {name} | {count} |") for line in lines)


@pytest.mark.parametrize("name", ["best_model", "final_model"])
def test_a_models_folder_holds_codec_processor_and_the_published_code(home, name):
    folder = home / "out" / name
    for file in ("codec_imagelm.py", "pixels_imagelm.py", "processing_imagelm.py", "vectors_imagelm.py"):
        assert (folder / file).read_bytes() == (ROOT / "imagelm/remote_code" / file).read_bytes()
    for file in ("codec.json", "codec.safetensors"):
        assert (folder / file).read_bytes() == (home / "data/codec" / file).read_bytes()
    pipelines = json.loads((folder / "config.json").read_text())["custom_pipelines"]
    assert list(pipelines) == ["image-classification"]
