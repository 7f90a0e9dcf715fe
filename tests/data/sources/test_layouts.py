"""Splits by every usual name, in every layout that people have; what is used, what isn't, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets.config import DATASET_STATE_JSON_FILENAME, DATASETDICT_JSON_FILENAME
from datasets.data_files import SPLIT_KEYWORDS
from PIL import Image

from imagelm.data.arguments import PrepareArguments
from imagelm.data.sources.decode import BadImage
from imagelm.data.sources.loading import STATE_FILES
from imagelm.data.sources.names import SPLIT_KINDS, split_word, without_split_word
from imagelm.data.sources.open import LabelledImages, open_images, open_labelled_images
from imagelm.utils.errors import InputError
from tests.data.sources.common import FEATURES, labelled
from tests.images import cats_and_dogs, class_folder, random_images, to_image


def test_the_words_for_splits_and_the_files_of_saved_datasets_are_those_of_the_library():
    assert {word: split for split, words in SPLIT_KEYWORDS.items() for word in words} == SPLIT_KINDS
    assert STATE_FILES == (DATASET_STATE_JSON_FILENAME, DATASETDICT_JSON_FILENAME)


def sizes(images: LabelledImages) -> list[int]:
    """The number of images of each source; every one of them can be read."""
    for source in images.sources:
        assert all(isinstance(image, Image.Image) for image in source.load(0, len(source)))
    return list(map(len, images.sources))


def parquet(file: Path, count: int, hidden: bool = False) -> Path:
    """A Parquet file of images of two classes; `hidden` labels are −1."""
    file.parent.mkdir(parents=True, exist_ok=True)
    labels = [-1 if hidden else i % 2 for i in range(count)]
    rows = {"image": list(map(to_image, random_images(count, seed=count))), "label": labels}
    datasets.Dataset.from_dict(rows, features=FEATURES).to_parquet(str(file))
    return file


@pytest.mark.parametrize(
    ("name", "word", "rest"),
    [
        ("train-00000-of-00002", "train", "*-00000-of-00002"),
        ("x_train", "train", "x_*"),
        ("Fashion-MNIST_Test", "test", "fashion-mnist_*"),
        ("val_images", "val", "*_images"),
        ("dev.2024", "dev", "*.2024"),
        ("train2017", "train", "*2017"),
        ("constraint", None, "constraint"),
        ("latest", None, "latest"),
        ("train_val", None, "*_*"),
        ("test_testing", "test", "*_*"),
    ],
)
def test_the_word_in_a_name_that_says_the_split_stands_between_separators(name, word, rest):
    assert (split_word(name), without_split_word(name)) == (word, rest)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory) -> Path:
    """What a download of a dataset from the Hub leaves: README.md and data/."""
    root = tmp_path_factory.mktemp("hub") / "owls"
    for name, count in (("train-00000-of-00002", 6), ("train-00001-of-00002", 4), ("test-00000-of-00001", 2)):
        parquet(root / "data" / f"{name}.parquet", count)
    (root / "README.md").write_text("---\nlicense: mit\n---\n# Owls\n")
    return root


def test_a_snapshot_of_a_hub_dataset_is_read_by_the_names_of_its_files(snapshot):
    images = labelled(snapshot)
    assert sizes(images) == [10, 2] and images.class_names == ["owl", "ant"]
    first, second = (f"{snapshot}/data/train-0000{i}-of-00002.parquet" for i in (0, 1))
    assert images.notes[:2] == [
        f"{snapshot} has a train and a test split, which are used as they are",
        f"{first}, {second}: the images are in image, the labels in label",
    ]
    assert images.sources[0].place(6) == f"{second}:0"
    assert len(open_images([str(snapshot)], split="TEST")) == 2
    assert len(open_images([str(snapshot)])) == 2  # what prepare holds out


def test_patterns_and_lists_of_files_are_split_by_their_names_too(snapshot):
    pattern = f"{snapshot}/data/*.parquet"
    images = labelled(pattern)
    assert sizes(images) == [10, 2] and "have a train and a test split" in images.notes[0]
    assert sizes(labelled(f"{snapshot}/data/train-*.parquet")) == [10]
    assert sizes(labelled(f"{snapshot}/data/train-*.parquet", test_images=[f"{snapshot}/data/test*"])) == [10, 2]
    assert len(open_images([pattern])) == 12  # inference reads what is named
    with pytest.raises(InputError, match=r"none\*\.parquet matches no file"):
        labelled(f"{snapshot}/none*.parquet")


def test_an_incomplete_download_is_refused(snapshot, tmp_path):
    shutil.copytree(snapshot, tmp_path / "in")
    (tmp_path / "in/data/train-00001-of-00002.parquet").unlink()
    with pytest.raises(InputError, match=r"is incomplete: .*train-00001-of-00002 is missing \(1 of 2 files\)"):
        labelled(tmp_path / "in")


def test_several_configurations_are_told_and_one_is_named(snapshot, tmp_path):
    test, train = snapshot / "data/test-00000-of-00001.parquet", snapshot / "data/train-00000-of-00002.parquet"
    for name, file in (("big/train.parquet", train), ("big/val.parquet", test), ("small/train.parquet", test)):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / "in" / name)
    with pytest.raises(InputError, match="holds several datasets: big, small; name one of the folders, or --config_"):
        labelled(tmp_path / "in")
    assert sizes(labelled(tmp_path / "in", config_name="big")) == [6, 2]
    with pytest.raises(InputError, match=r"--config_name none: .* has big, small"):
        labelled(tmp_path / "in", config_name="none")
    # The README's own list comes first, as on the Hub.
    config = "---\nconfigs:\n- config_name: mine\n  data_files:\n"
    config += "  - {{split: {}, path: {}}}\n" * 2 + "---\n"
    readme = tmp_path / "in/README.md"
    readme.write_text(config.format("train", "big/train.parquet", "dev", "small/*"))
    assert sizes(labelled(tmp_path / "in")) == sizes(labelled(tmp_path / "in", config_name="mine")) == [6, 2]
    for outside in ("../other/*", str(tmp_path), "hf://datasets/a/b/x.parquet", "https://127.0.0.1:9/x.parquet"):
        readme.write_text(config.format("train", outside, "dev", "small/*"))
        with pytest.raises(InputError, match=r"README\.md names .* outside the folder; nothing was read"):
            labelled(tmp_path / "in")


def test_files_of_a_split_in_any_case_and_form(snapshot, tmp_path):
    train, test = (snapshot / f"data/{name}.parquet" for name in ("train-00000-of-00002", "test-00000-of-00001"))
    for files in (
        ("Train.PARQUET", "TEST.Parquet"),
        ("Training/0.parquet", "eval/0.parquet"),
        ("pets_train.parquet", "dev.parquet"),
    ):
        for source, name in zip((train, test), files, strict=True):
            (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, tmp_path / "in" / name)
        assert sizes(labelled(tmp_path / "in")) == sizes(labelled(f"{tmp_path}/in/**/*.[pP]*")) == [6, 2]
        shutil.rmtree(tmp_path / "in")


def test_a_file_that_names_no_split_is_told_or_asked_for(snapshot, tmp_path):
    test = snapshot / "data/test-00000-of-00001.parquet"
    for name in ("birds.parquet", "test.parquet"):
        shutil.copy(test, tmp_path / name)
    with pytest.raises(InputError, match="holds the splits birds, test; name one of them, such as --split birds"):
        labelled(tmp_path)
    assert len(open_images([str(tmp_path)], split="birds")) == 2
    shutil.copy(snapshot / "data/train-00000-of-00002.parquet", tmp_path / "train.parquet")
    images = labelled(tmp_path)
    assert sizes(images) == [6, 2] and images.notes[0].endswith("; not used: birds")


def test_splits_that_could_be_mistaken_are_refused_by_both_names(snapshot, tmp_path):
    for name in ("train", "val", "validation"):
        shutil.copy(snapshot / "data/test-00000-of-00001.parquet", tmp_path / f"{name}.parquet")
    with pytest.raises(InputError, match=r"has 2 validation splits \(val, validation\); rename or remove"):
        labelled(tmp_path)
    with pytest.raises(InputError, match="2 validation splits"):
        open_images([str(tmp_path)], split="dev")
    assert len(open_images([str(tmp_path)], split="val")) == 2


def test_hidden_test_labels_leave_the_validation_split_or_none(tmp_path):
    parquet(tmp_path / "train.parquet", 6)
    parquet(tmp_path / "test.parquet", 4, hidden=True)
    images = labelled(tmp_path)
    assert sizes(images) == [6]
    assert images.notes[0] == f"{tmp_path} has a train split, which is used; not used: test (it has no labels)"
    parquet(tmp_path / "valid.parquet", 2)
    images = labelled(tmp_path)
    assert sizes(images) == [6, 2] and images.notes[0].endswith("; not used: test (it has no labels)")


def test_a_folder_of_test_images_without_classes_is_not_held_out(tmp_path):
    cats_and_dogs(tmp_path / "train", per_class=3)
    class_folder(tmp_path, {"test": random_images(4, seed=2)})
    images = labelled(tmp_path)
    assert sizes(images) == [6] and "not used: test (it has no labels)" in images.notes[0]
    assert len(open_images([str(tmp_path)], split="test")) == 4
    (tmp_path / "test/images").mkdir()
    for file in (tmp_path / "test").glob("*.png"):
        file.rename(tmp_path / "test/images" / file.name)  # as in Tiny ImageNet
    assert sizes(labelled(tmp_path)) == [6]
    class_folder(tmp_path / "dev", {"cat": random_images(1, seed=3), "dog": random_images(2, seed=4)})
    assert sizes(labelled(tmp_path)) == [6, 3]


def test_folders_that_are_called_as_one_dataset_are_its_splits(tmp_path):
    for name, count in (("seg_train/seg_train", 3), ("seg_test/seg_test", 2)):
        cats_and_dogs(tmp_path / "in" / name, per_class=count, seed=count)
    class_folder(tmp_path / "in/seg_pred", {"seg_pred": random_images(2, seed=9)})
    images = labelled(tmp_path / "in")
    assert sizes(images) == [6, 4] and images.class_names == ["cat", "dog"]
    assert "has a seg_train and a seg_test split" in images.notes[0]
    assert images.notes[0].endswith("; not used: seg_pred")
    class_folder(tmp_path / "things", {name: random_images(2, seed=len(name)) for name in ("train_car", "test_tube")})
    assert labelled(tmp_path / "things").class_names == ["test_tube", "train_car"]


def test_splits_inside_the_class_folders_are_splits(tmp_path):
    for name, seed in (("cat", 1), ("dog", 2)):
        class_folder(tmp_path / name, {"Train": random_images(3, seed=seed), "val": random_images(1, seed=9 + seed)})
    images = labelled(tmp_path)
    assert sizes(images) == [6, 2] and images.class_names == ["cat", "dog"]
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1, 0, 1]
    assert images.sources[1].place(1) == f"{tmp_path}/dog/val/0.png"


def test_one_folder_around_the_data_is_looked_into(tmp_path):
    cats_and_dogs(tmp_path / "a/archive/pets", per_class=2)
    assert labelled(tmp_path / "a").class_names == ["cat", "dog"]
    for side in ("train", "test"):
        shutil.copytree(tmp_path / "a/archive/pets", tmp_path / "b/download/pets" / side)
    assert sizes(labelled(tmp_path / "b")) == [4, 4]
    class_folder(tmp_path / "c", {"cat": random_images(2)})
    with pytest.raises(InputError, match=r"all images are of one class \(cat\)"):
        labelled(tmp_path / "c")


def test_a_split_that_is_asked_for_is_the_only_one_used(tmp_path):
    for i, side in enumerate(("train", "valid", "test"), start=1):
        cats_and_dogs(tmp_path / "in" / side, per_class=i, seed=i)
    assert sizes(labelled(tmp_path / "in", split="valid")) == sizes(labelled(tmp_path / "in", split="dev")) == [4]
    images = labelled(tmp_path / "in", test_images=[str(tmp_path / "in")])  # each side takes its own split
    assert sizes(images) == [2, 6]
    with pytest.raises(InputError, match="has no split 'none'; it has test, train, valid"):
        open_images([str(tmp_path / "in")], split="none")
    with pytest.raises(InputError, match=r"--split cat has no effect on .* which has no splits; give --images .*/cat"):
        open_images([str(tmp_path / "in/train")], split="cat")


@pytest.mark.parametrize("option", ["revision", "config_name"])
def test_options_of_the_hub_are_refused_elsewhere(tmp_path, option):
    cats_and_dogs(tmp_path / "in", per_class=2)
    for name in ("in", "in/cat/0.png"):
        with pytest.raises(InputError, match=r"'main'|--config_name main"):
            open_images([str(tmp_path / name)], **{option: "main"})


# Lists of files


def listing(folder: Path, name: str, rows: list[tuple[str, str]], header: str = "file_name,label") -> Path:
    (folder / name).write_text("\n".join([header, *map(",".join, rows)]) + "\n", encoding="utf-8-sig")
    return folder / name


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Six images in a subfolder, each of one grey, and one beside the folder."""
    (tmp_path / "in/pics").mkdir(parents=True)
    for i in range(6):
        Image.new("L", (8, 8), 10 * i).save(tmp_path / f"in/pics/{i}.JPG", "PNG")
    Image.new("L", (8, 8), 99).save(tmp_path / "private.png")
    return tmp_path / "in"


ROWS = [(f"pics/{i}.JPG", "NA" if i % 2 else "yes") for i in (3, 0, 2, 5)]


@pytest.mark.parametrize("form", ["csv", "semicolons", "tsv", "jsonl", "json", "CSV"])
def test_a_list_of_paths_and_classes_is_read(pictures, form):
    if form.startswith("json"):
        rows = [{"image": path, "kind": 3, "class": name} for path, name in ROWS]
        text = json.dumps(rows) if form == "json" else "\n".join(map(json.dumps, rows))
        file = pictures / f"list.{form}"
        file.write_text(text)
    else:
        file = listing(pictures, f"list.{form.replace('semicolons', 'csv')}", ROWS, "image,class")
        sign = {"semicolons": ";", "tsv": "\t"}.get(form, ",")
        file.write_text(file.read_text().replace(",", sign))
    source = open_images([str(file)])
    assert (source.class_names, source.labels.tolist()) == (["NA", "yes"], [0, 1, 1, 0])
    assert [int(np.asarray(image)[0, 0]) for image in source.load(0, 4)] == [30, 0, 20, 50]
    assert source.notes == [f"4 of 4 rows of {file} name a file, which is read from {pictures}"]
    assert source.columns == [f"{file}: the images are in image, the labels in class"]


def test_a_list_reads_no_file_beside_it_unless_its_folder_is_named(pictures):
    (pictures / "0.png").write_bytes((pictures / "pics/0.JPG").read_bytes())
    rows = [("0.png", "a"), ("pics/1.JPG", "b"), ("../private.png", "b"), ("http://127.0.0.1:9/x.png", "a")]
    file = str(
        listing(pictures.parent, "x.csv", [(f"in/{path}" if "://" not in path else path, k) for path, k in rows])
    )
    assert all(isinstance(image, BadImage) for image in open_images([file]).load(0, 4))  # not all are in subfolders
    file = str(listing(pictures, "y.csv", rows))
    assert all("--image_root" in image.reason for image in open_images([file]).load(0, 3))
    found = open_images([file], image_root=str(pictures)).load(0, 4)
    assert [isinstance(image, Image.Image) for image in found] == [True, True, False, False]
    assert "leads out of" in found[2].reason and "URLs aren't opened" in found[3].reason
    found = open_images([str(pictures)]).load(0, 4)  # the folder of the list is named
    assert [isinstance(image, Image.Image) for image in found] == [True, True, False, False]


def test_lists_of_the_splits_in_their_folder(pictures):
    listing(pictures, "train.csv", ROWS)
    listing(pictures, "test.csv", [("pics/1.JPG", "yes"), ("pics/4.JPG", "NA")])
    assert sizes(labelled(pictures)) == sizes(labelled(f"{pictures}/*.csv")) == [4, 2]
    listing(pictures, "test.csv", [("pics/1.JPG", ""), ("pics/4.JPG", "")])  # hidden labels
    images = labelled(pictures)
    assert sizes(images) == [4] and "not used: test (it has no labels)" in images.notes[0]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.csv", "label," + ",".join(f"pixel{i}" for i in range(64)) + "\n" + "1," * 64 + "1\n", "pixels; save them"),
        ("x.csv", "a,b\n1,2\n", "holds a, b; choose one of them with --image_column"),
        ("x.csv", "", "can't be read: No columns"),
        ("x.json", '{"images": [], "annotations": []}', "holds images, annotations; choose one"),
        ("x.jsonl", "{", "can't be read: JSON parse error"),
    ],
)
def test_lists_without_paths_are_refused(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=said):
        open_images([str(tmp_path / name)])


# Arrays


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
