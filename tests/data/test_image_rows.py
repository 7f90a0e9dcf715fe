"""`prepare_dataset.py --images`: what the rows hold, with variants, and that both routes give the same ones."""

from __future__ import annotations

import functools

import datasets
import numpy as np
import pytest

from imagelm.data.arguments import PrepareArguments
from imagelm.data.load import load_prepared
from imagelm.data.prepare import prepare
from imagelm.data.sources import open as opening
from imagelm.data.sources.open import batches
from imagelm.remote_code.codec_imagelm import load_codec
from imagelm.utils.errors import InputError
from tests.data.common import few_levels, keys, number_of, rows_of
from tests.images import (
    cats_and_dogs,
    class_folder,
    entries_in,
    prepare_images,
    random_images,
    restored,
    smooth_images,
    to_image,
)


def test_rows_hold_their_images_and_the_split_is_stratified(tmp_path, lossless):
    images = random_images(60, (6, 8))
    class_folder(tmp_path / "in", {"cat": images[:40], "dog": images[40:]})
    data, stats = prepare_images(tmp_path / "out", tmp_path / "in", codec=str(lossless))
    # A fifth of 60, and of the other 48, which are 32 and 16, a tenth, rounded up.
    assert stats["num_rows"] == {"train": 43, "validation": 5, "test": 12}
    assert stats["classes"] == {"train": [29, 14], "validation": [3, 2], "test": [8, 4]}
    assert "stratified, seed 42" in stats["split"]
    for rows in data.values():
        for image, label, source in zip(restored(rows, tmp_path / "out"), rows["label"], rows["source"], strict=True):
            assert (image == images[number_of(source) + 40 * label]).all()
    assert not (tmp_path / "out/bad_rows.jsonl").exists()
    assert len({row["source"] for row in rows_of(data)}) == 60


def test_the_same_seed_gives_the_same_folder_and_another_seed_another(tmp_path):
    cats_and_dogs(tmp_path / "in")
    options = {"augment": "shift=1,rotate=9", "variants": 2}
    found = [
        prepare_images(tmp_path / name, tmp_path / "in", seed=seed, **options)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    a, b, c = (stats["fingerprint"] for _, stats in found)
    assert a == b != c
    assert rows_of(found[0][0]) == rows_of(found[1][0])
    for file in ("codec/codec.json", "codec/codec.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert {row["source"] for row in found[0][0]["test"]} != {row["source"] for row in found[2][0]["test"]}


def test_t_is_the_index_within_the_class_without_a_column_t(tmp_path):
    images, labels = smooth_images(12, (4, 4)), np.array([1, 0, 0, 1, 1, 0, 1, 0, 0, 1, 1, 0])
    t = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5])
    np.savez(tmp_path / "x.npz", image=images, label=labels)
    options = {"codebook": "unified", "features": "x,t,R,G,B", "codebook_size": 10}
    data, _ = prepare_images(tmp_path / "out", tmp_path / "x.npz", **options)
    expected = load_codec(tmp_path / "out/codec").encode(images, t=t)
    for rows in data.values():
        numbers = [int(source.split(":")[-1]) for source in rows["source"]]
        assert (entries_in(rows, tmp_path / "out") == expected[numbers]).all()


@pytest.mark.parametrize("t", [np.full(20, np.nan), np.zeros((20, 2)), np.array(["a"] * 20)])
def test_a_column_t_that_is_not_a_finite_number_per_image_is_refused(tmp_path, t):
    np.savez(tmp_path / "x.npz", image=random_images(20), label=np.arange(20) % 2, t=t)
    with pytest.raises(InputError, match="isn't a finite number for each image"):
        prepare_images(tmp_path / "out", tmp_path / "x.npz", codebook="unified", features="R,G,B,t")
    assert not (tmp_path / "out").exists()


# Variants


def shifted(image: np.ndarray, limit: int, background: int) -> set[bytes]:
    height, width, _ = image.shape
    framed = np.pad(image, ((limit, limit), (limit, limit), (0, 0)), constant_values=background)
    places = [(y, x) for y in range(2 * limit + 1) for x in range(2 * limit + 1)]
    return {framed[y : y + height, x : x + width].tobytes() for y, x in places}


def test_each_training_image_gets_its_variants_and_no_other_image_does(tmp_path):
    originals = few_levels(20)
    class_folder(tmp_path / "in", {"cat": originals[:10], "dog": originals[10:]})
    options = {"patch_size": 1, "codebook_size": 4, "augment": "shift=2", "variants": 3, "background": 0}
    data, stats = prepare_images(tmp_path / "out", tmp_path / "in", **options)
    assert (len(data["validation"]), len(data["test"])) == (2, 4)
    assert len(data["train"]) + stats["duplicates_dropped"] == 14 * 4
    sources = [set(rows["source"]) for rows in data.values()]
    assert list(map(len, sources)) == [14, 2, 4] and len(set.union(*sources)) == 20
    images = restored(data["train"], tmp_path / "out")
    for image, label, source in zip(images, data["train"]["label"], data["train"]["source"], strict=True):
        assert image.tobytes() in shifted(originals[number_of(source) + 10 * label], 2, 0)
    assert len(keys(images) - keys(originals)) > 25


@pytest.mark.parametrize("size", [1, 7])
def test_rows_do_not_depend_on_how_many_images_are_read_at_a_time(tmp_path, monkeypatch, size):
    cats_and_dogs(tmp_path / "in")
    options = {"augment": "shift=1,rotate=20,scale=0.2", "variants": 2, "keep_images": True}
    data, stats = prepare_images(tmp_path / "a", tmp_path / "in", **options)
    monkeypatch.setattr(opening, "batches", functools.partial(batches, size=size))
    again, stats_again = prepare_images(tmp_path / "b", tmp_path / "in", **options)
    assert stats["fingerprint"] == stats_again["fingerprint"]
    assert rows_of(again) == rows_of(data)


def test_kept_images_are_those_that_were_encoded(tmp_path, lossless):
    originals = random_images(12, (6, 8))
    class_folder(tmp_path / "in", {"cat": originals[:6], "dog": originals[6:]})
    options = {"augment": "shift=1,rotate=30", "variants": 2, "keep_images": True, "codec": str(lossless)}
    data, _ = prepare_images(tmp_path / "out", tmp_path / "in", **options)
    assert isinstance(data["train"].features["image"], datasets.Image)
    for rows in data.values():
        images = np.stack([np.asarray(image) for image in rows["image"]])[..., None]
        assert (images == restored(rows, tmp_path / "out")).all()
    without, _ = prepare_images(tmp_path / "without", tmp_path / "in", codec=str(lossless))
    assert set(without["train"].features) == {"input_ids", "label", "source"}


# Both routes


def test_rows_written_as_jsonl_and_read_again_are_the_same(tmp_path):
    """With variants, a duplicate, a conflict, an unreadable image, an empty class and names with odd characters."""
    images = smooth_images(24)
    class_folder(tmp_path / "in", {"cat & co": images[:12], "dög": images[11:], "10": images[:0]})
    to_image(images[3]).save(tmp_path / "in/cat & co/again.bmp")
    (tmp_path / "in/dög/bad.png").touch()
    options = {"augment": "shift=1,hflip", "variants": 2, "write_jsonl": True, "codebook_size": 12}
    data, stats = prepare_images(tmp_path / "images", tmp_path / "in", **options)
    raw = tmp_path / "images/raw"
    for codec in (str(tmp_path / "images/codec"), None):
        rows = PrepareArguments(
            data_files=[str(raw / "rows.jsonl")],
            vocab_file=str(raw / "vocab.json"),
            output_dir=str(tmp_path / "rows"),
            **{"class_names": str(raw / "class_names.json"), "split_by": "field", "codec": codec, "overwrite": True},
        )
        stats_again = prepare(rows, command="test")
        again = load_prepared(tmp_path / "rows")
        for split in ("train", "test"):
            assert again[split].features == data[split].features
            assert again[split][:] == data[split][:]
        for name in (
            "fingerprint",
            "class_names",
            "num_rows",
            "classes",
            "codebook",
            "duplicates_dropped",
            "max_length",
        ):
            assert stats_again[name] == stats[name]
        assert stats_again["label_conflicts"]["total"] == stats["label_conflicts"]["total"] >= 1
        tokenizers = [(tmp_path / name / "tokenizer/tokenizer.json").read_bytes() for name in ("images", "rows")]
        assert tokenizers[0] == tokenizers[1]
        assert (tmp_path / "rows/codec").is_dir() == (codec is not None)
    assert stats["class_names"] == ["cat & co", "dög"]


def test_rows_that_do_not_fit_the_codec_are_refused(tmp_path):
    cats_and_dogs(tmp_path / "in")
    prepare_images(tmp_path / "a", tmp_path / "in", write_jsonl=True)
    prepare_images(tmp_path / "b", tmp_path / "in", patch_size=2)
    prepare_images(tmp_path / "c", tmp_path / "in", codebook_size=9)
    raw = {
        "data_files": [str(tmp_path / "a/raw/rows.jsonl")],
        "vocab_file": str(tmp_path / "a/raw/vocab.json"),
        "output_dir": str(tmp_path / "out"),
    }
    for name, said in (
        ("b", r"rows\.jsonl:1: 4 image tokens, but an image of the codec has 4×4"),
        ("c", "has 9 entries"),
    ):
        with pytest.raises(InputError, match=said):
            prepare(PrepareArguments(**raw, codec=str(tmp_path / name / "codec")), command="test")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [('["a"]', "holds 1 names"), ('["a", "a"]', "2 different"), ('{"a": 0}', "a list of names"), ("[", "isn't JSON")],
)
def test_invalid_class_names_are_refused(tmp_path, content, said):
    cats_and_dogs(tmp_path / "in")
    prepare_images(tmp_path / "a", tmp_path / "in", write_jsonl=True)
    (tmp_path / "names.json").write_text(content)
    raw = {
        "data_files": [str(tmp_path / "a/raw/rows.jsonl")],
        "vocab_file": str(tmp_path / "a/raw/vocab.json"),
        "output_dir": str(tmp_path / "out"),
    }
    with pytest.raises(InputError, match=said):
        prepare(PrepareArguments(**raw, class_names=str(tmp_path / "names.json")), command="test")
