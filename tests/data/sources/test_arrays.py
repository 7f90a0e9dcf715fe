"""NPZ and NPY files: which of their arrays are read, in bounded memory, and what is refused."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from imagelm.data.arguments import PrepareArguments
from imagelm.data.sources.open import batches, open_images, open_labelled_images
from imagelm.utils.errors import InputError
from tests.data.sources.common import check_source, labelled, sizes
from tests.images import prepare_images, random_images


@pytest.mark.parametrize(
    ("images", "labels"), [("image", "label"), ("x", "y"), ("data", "target"), ("images", "labels")]
)
@pytest.mark.parametrize("channels", [0, 1, 3])
def test_an_npz_file_is_read_by_the_usual_names_of_its_arrays(tmp_path, images, labels, channels):
    originals = random_images(7, (4, 6), max(channels, 1))
    numbers = np.array([30, 4, 4, 100, 30, 4, 100])
    arrays = {images: originals if channels else originals[..., 0], labels: numbers, "other": np.zeros(3)}
    np.savez(tmp_path / "x.npz", **arrays)
    check_source(open_images([str(tmp_path / "x.npz")]), originals, ["4", "30", "100"], [1, 0, 0, 2, 1, 0, 2])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_the_images_of_an_npz_file_are_never_all_in_memory(tmp_path, save):
    images = np.zeros((64, 1024, 1024), np.uint8)
    images[:, 0, 0] = np.arange(64)
    save(tmp_path / "x.npz", image=images, label=np.arange(64) % 2)
    del images
    tracemalloc.start()
    try:
        source = open_images([str(tmp_path / "x.npz")])
        seen = [np.asarray(image)[0, 0] for _, part in batches(source) for image in part]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seen == list(range(64))
    assert peak < 16 << 20  # of 64 MiB


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["cat", "ant", "cat"], ["ant", "cat"]),
        ([b"cat", b"ant", b"cat"], ["ant", "cat"]),
        ([True, False, True], ["False", "True"]),
        (["10", "9", "10"], ["9", "10"]),
        ([3, -1, 3], None),
    ],
)
def test_labels_of_an_npz_file_may_be_words_or_any_whole_numbers(tmp_path, labels, names):
    np.savez(tmp_path / "x.npz", image=random_images(3), label=np.array(labels))
    source = open_images([str(tmp_path / "x.npz")])
    assert [source.class_names[label] for label in source.labels] == [
        label.decode() if isinstance(label, bytes) else str(label) for label in labels
    ]
    assert names is None or source.class_names == names


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"image": np.zeros((3, 4, 4), np.int32), "label": [0, 1, 0]}, "'image' is int32 of shape"),
        ({"image": np.zeros((3, 4, 4, 2), np.uint8), "label": [0, 1, 0]}, "expected uint8 of shape"),
        ({"image": np.zeros((3, 16), np.uint8), "label": [0, 1, 0]}, "expected uint8 of shape"),
        ({"image": np.zeros((3, 4, 4), np.uint8), "label": [0, 1]}, "3 images, but 'label' has shape"),
        ({"image": np.zeros((3, 4, 4), np.uint8), "label": [0.5, 1, 0]}, "the labels are of type float64"),
        ({"image": np.zeros((3, 4, 4), np.uint8)}, "x.npz: an array of images without their labels"),
        ({"pictures": np.zeros((3, 4, 4), np.uint8), "label": [0, 1, 0]}, "choose one of them with --image_column"),
        ({"image": np.zeros((3, 4, 4), np.uint8), "label": np.array([0, "a", None], object)}, "can't be read"),
        ({"image": np.zeros((0, 4, 4), np.uint8), "label": np.zeros(0, int)}, "x.npz"),
        ({"image": np.zeros((3, 4, 4), np.uint8), "label": [5, 5, 5]}, r"all images are of one class \(5\)"),
    ],
)
def test_arrays_that_are_no_labelled_images_are_refused(tmp_path, arrays, said):
    np.savez(tmp_path / "x.npz", **{name: np.asarray(values) for name, values in arrays.items()})
    with pytest.raises(InputError, match=said):
        prepare_images(tmp_path / "out", tmp_path / "x.npz")
    assert [file.name for file in tmp_path.iterdir()] == ["x.npz"]


MEDMNIST = [f"{split}_{kind}" for split in ("train", "val", "test") for kind in ("images", "labels")]


@pytest.mark.parametrize(
    ("names", "used", "validation_size"),
    [
        (["x_train", "y_train", "x_test", "y_test"], ["train", "test"], 0.1),
        (["X_train", "y_train", "X_val", "y_val"], ["train", "val"], 0.1),
        (MEDMNIST, ["train", "val", "test"], 0.1),
        (MEDMNIST, ["train", "test"], 0),
    ],
)
def test_archives_with_arrays_for_each_split_are_read(tmp_path, names, used, validation_size):
    images, labels = random_images(12), np.arange(12)[:, None] % 3
    parts = {"train": slice(0, 6), "val": slice(6, 9), "test": slice(9, 12)}
    arrays = {}
    for name in names:
        part = next(part for part in parts if part in name)
        arrays[name] = (labels if "label" in name or "y" in name else images)[parts[part]]
    path = str(tmp_path / "x.npz")
    np.savez(path, **arrays)
    found = labelled(path, validation_size=validation_size)
    for source, part in zip(found.sources, used, strict=True):
        check_source(source, images[parts[part]], ["0", "1", "2"], (np.arange(12) % 3)[parts[part]].tolist())
    note = f"{path} has a {', a '.join(used[:-1])} and a {used[-1]} split, which are used as they are"
    assert found.notes[0] == (note if validation_size else f"{note}; not used: val")
    # Every image is found by its number in the whole.
    numbers = np.concatenate([np.arange(12)[parts[part]] for part in used])
    for i, number in enumerate(numbers):
        assert (np.asarray(found.load(i)) == images[number, ..., 0]).all()
    alone = open_images([path])  # as inference opens it
    check_source(alone, images[parts[used[-1]]], ["0", "1", "2"], [0, 1, 2])
    assert alone.notes[0].startswith(f"{path}: split {used[-1]} is used; it also has train")
    image_key = next(name for name in names if "train" in name)
    check_source(open_images([path], image_key), images[:6], ["0", "1", "2"], [0, 1, 2] * 2)


def test_arrays_can_be_named(tmp_path):
    images = random_images(4)
    arrays = {"image": np.zeros(3), "pics": images, "label": np.zeros(4), "kind": np.array([2, 1, 2, 1])}
    np.savez(tmp_path / "x.npz", **arrays)
    check_source(open_images([str(tmp_path / "x.npz")], "pics", "kind"), images, ["1", "2"], [1, 0, 1, 0])
    with pytest.raises(InputError, match="has no 'pictures'; it has image, pics, label, kind; see --image_column"):
        open_images([str(tmp_path / "x.npz")], "pictures")


def test_a_pickled_object_is_never_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    np.savez(tmp_path / "x.npz", image=np.array([Trap()], dtype=object))
    with pytest.raises(InputError, match="can't be read"):
        open_images([str(tmp_path / "x.npz")])
    assert not (tmp_path / "sprung").exists()


# NPY files


def arrays() -> dict[str, np.ndarray]:
    images, labels = random_images(12), np.arange(12)[:, None] % 3
    parts = {"train": slice(0, 6), "val": slice(6, 9), "test": slice(9, 12)}
    return {f"{s}_{n}": a[part] for s, part in parts.items() for n, a in (("images", images), ("labels", labels))}


def test_npy_files_in_a_folder_are_read_as_the_arrays_of_an_archive(tmp_path):
    for name, values in arrays().items():
        np.save(tmp_path / f"{name}.npy", values)
    (tmp_path / "test_labels.npy").rename(tmp_path / "test_labels.NPY")
    for names in ([tmp_path], [f"{tmp_path}/*.[nN]*"]):
        images = labelled(*names)
        assert sizes(images) == [6, 3, 3] and images.splits == ("train", "validation", "test")
        assert images.labels.tolist() == [0, 1, 2] * 4
    note = f"{tmp_path}: the images are in test_images, the labels in test_labels"
    for source in (
        open_images([f"{tmp_path}/test_images.npy"]),
        open_images([str(tmp_path)], split="test"),
        open_images([f"{tmp_path}/test_images.npy", f"{tmp_path}/test_labels.NPY"]),
    ):
        assert source.labels.tolist() == [0, 1, 2] and source.columns == [note]
        assert (np.asarray(source.load(1, 2)[0]) == arrays()["test_images"][1, ..., 0]).all()


@pytest.mark.parametrize(("images", "labels"), [("x", "y"), ("images", "labels"), ("X", "Y")])
def test_a_pair_of_npy_files_is_read_from_its_folder_or_the_images(tmp_path, images, labels):
    np.save(tmp_path / f"{images}.npy", random_images(4, channels=3))
    np.save(tmp_path / f"{labels}.npy", ["b", "a", "b", "a"])
    for name in (tmp_path, tmp_path / f"{images}.npy"):
        source = open_images([str(name)])
        assert (source.class_names, source.labels.tolist()) == (["a", "b"], [1, 0, 1, 0])
    (tmp_path / f"{labels}.npy").unlink()
    assert open_images([str(tmp_path)]).labels is None


def test_an_array_without_labels_is_named_with_the_remedy(tmp_path):
    np.save(tmp_path / "pictures.npy", random_images(4))
    arguments = PrepareArguments(images=[f"{tmp_path}/pictures.npy"], output_dir="out")
    with pytest.raises(
        InputError, match=r"pictures\.npy: an array of images without their labels; save these as y\.npy"
    ):
        open_labelled_images(arguments)


def test_an_npy_file_that_is_none_is_refused_and_no_pickle_is_opened(tmp_path):
    (tmp_path / "x.npy").write_bytes(b"anything")
    with pytest.raises(InputError, match=r"x\.npy can't be read: .*magic string"):
        open_images([str(tmp_path / "x.npy")])
    np.save(tmp_path / "x.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(InputError, match=r"x\.npy can't be read: .*Python objects"):
        open_images([str(tmp_path / "x.npy")])


def test_npz_files_of_the_splits_and_splits_in_an_npz_file(tmp_path):
    both = arrays()
    np.savez(tmp_path / "all.npz", **both)
    assert open_images([str(tmp_path / "all.npz")], split="validation").labels.tolist() == [0, 1, 2]
    for split in ("train", "val"):
        one_hot = np.eye(3, dtype=int)[both[f"{split}_labels"][:, 0]]
        torch_like = np.moveaxis(both[f"{split}_images"], -1, 1)
        np.savez(tmp_path / f"in_{split}.npz", image=torch_like, label=one_hot)
    images = labelled(tmp_path / "in_train.npz", tmp_path / "in_val.npz")
    assert sizes(images) == [6, 3] and images.labels.tolist() == [0, 1, 2] * 3
    assert (np.asarray(images.sources[1].load(0, 1)[0]) == both["val_images"][0, ..., 0]).all()
    both["test_labels"] = np.full(3, -1)
    np.savez(tmp_path / "all.npz", **both)
    images = labelled(tmp_path / "all.npz")
    assert sizes(images) == [6, 3] and images.notes[0].endswith("not used: test (it has no labels)")
