"""Variants of images: shifts, turns, flips and scales by hand; rows made anew in each epoch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel, TrainerState, TrainingArguments

from imagelm.data.augmentation import Augmentation, AugmentedRows, augment, parse_augmentation
from imagelm.data.load import augmented, load_codec_of, load_prepared
from imagelm.tokens.tokenizer import grammar_of, load_tokenizer
from imagelm.training.arguments import RunArguments
from imagelm.training.callbacks import EpochOfRows
from imagelm.training.loss import RowCollator
from imagelm.training.trainer import ImageTrainer
from imagelm.utils.errors import InputError
from tests.conftest import train
from tests.images import class_folder, prepare_images, random_images, smooth_images


def map_of(angle: float = 0.0, size: float = 1.0, shift: tuple[int, int] = (0, 0)) -> np.ndarray:
    """One map, shape (1, 2, 3): a variant's coordinates (x to the right, y down, from the centre) to its image's."""
    cos, sin = np.cos(np.radians(angle)) / size, np.sin(np.radians(angle)) / size
    return np.array([[[cos, sin, shift[0]], [-sin, cos, shift[1]]]])


def moved(image: np.ndarray, right: int, down: int, background: int) -> np.ndarray:
    """Pixel by pixel: what comes from (y − down, x − right), or the background."""
    out = np.full_like(image, background)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            if 0 <= y - down < image.shape[0] and 0 <= x - right < image.shape[1]:
                out[y, x] = image[y - down, x - right]
    return out


def sampled(image: np.ndarray, matrix: np.ndarray, background: int) -> np.ndarray:
    """Bilinear interpolation pixel by pixel; not rounded."""
    height, width, _ = image.shape
    out = np.empty(image.shape)
    for y in range(height):
        for x in range(width):
            u, v = matrix[:, :2] @ [x + 0.5 - width / 2, y + 0.5 - height / 2] + matrix[:, 2]
            u, v = u + width / 2 - 0.5, v + height / 2 - 0.5
            left, top = int(np.floor(u)), int(np.floor(v))
            total = 0.0
            for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
                weight = (1 - abs(u - column)) * (1 - abs(v - row))
                inside = 0 <= row < height and 0 <= column < width
                total = total + weight * (image[row, column].astype(float) if inside else float(background))
            out[y, x] = total
    return out


@pytest.mark.parametrize(("size", "channels", "background"), [((7, 7), 1, 0), ((6, 11), 3, 200), ((28, 28), 1, 255)])
def test_whole_shifts_move_every_pixel_exactly_and_bring_the_background_in(size, channels, background):
    images = random_images(30, size, channels)
    maps = Augmentation(shift=3).draw(30, (1,))
    found = augment(images, maps, background)
    for image, matrix, variant in zip(images, maps, found, strict=True):
        right, down = (-matrix[:, 2]).astype(int)
        assert (variant == moved(image, right, down, background)).all()
    shifts = maps[..., 2]
    assert (shifts == shifts.round()).all() and shifts.min() == -3 and shifts.max() == 3
    assert (maps[..., :2] == np.eye(2)).all()


@pytest.mark.parametrize("side", [4, 7, 28])
def test_quarter_turns_of_a_square_are_exact(side):
    image = random_images(1, (side, side), 3)
    turns = [augment(image, map_of(angle))[0] for angle in (90, -90)]
    expected = [np.rot90(image[0], times) for times in (1, -1)]
    assert any(all((a == b).all() for a, b in zip(turns, order, strict=True)) for order in (expected, expected[::-1]))


@pytest.mark.parametrize("size", [(4, 4), (5, 8), (9, 4)])
def test_a_half_turn_is_exact_for_any_sides(size):
    image = random_images(1, size)
    assert (augment(image, map_of(180))[0] == image[0, ::-1, ::-1]).all()


@pytest.mark.parametrize(
    ("angle", "size", "shift"),
    [(90, 1, (0, 0)), (30, 1, (0, 0)), (0, 1.25, (0, 0)), (0, 0.7, (2, -1)), (-17, 1.1, (1, 3))],
)
def test_any_map_of_an_oblong_image_is_bilinear_interpolation(angle, size, shift):
    image = random_images(1, (8, 13), 3)
    matrix = map_of(angle, size, shift)
    found = augment(image, matrix, 90)[0]
    assert np.abs(found - sampled(image[0], matrix[0], 90)).max() <= 0.5 + 1e-6


@pytest.mark.parametrize(("name", "axis"), [("hflip", 2), ("vflip", 1)])
def test_flips_are_exact_and_half_of_the_variants_have_one(name, axis):
    images = random_images(200, (5, 8), 3)
    found = augment(images, Augmentation(**{name: True}).draw(200, (0,)))
    mirrored = np.flip(images, axis)
    is_mirrored = (found == mirrored).all((1, 2, 3))
    assert (is_mirrored ^ (found == images).all((1, 2, 3))).all()
    assert 70 < is_mirrored.sum() < 130


def test_scaling_keeps_the_centre_and_changes_the_size():
    image = np.zeros((1, 16, 16, 1), dtype=np.uint8)
    image[:, 6:10, 6:10] = 200
    larger, smaller = (augment(image, map_of(size=size))[0, ..., 0] for size in (2, 0.5))
    assert (larger[5:11, 5:11] == 200).all() and larger[:3].max() == larger[13:].max() == 0
    assert (smaller[7:9, 7:9] == 200).all() and smaller[:6].max() == smaller[10:].max() == 0
    odd = random_images(1, (9, 13))
    for maps in (map_of(size=1.3), map_of(size=0.6), map_of(angle=25, size=0.9)):
        assert augment(odd, maps)[0, 4, 6] == odd[0, 4, 6]


def test_angles_and_sizes_stay_within_what_was_asked_for_and_fill_it():
    maps = Augmentation(rotate=20, scale=0.1).draw(2000, (5,))
    angles = np.degrees(np.arctan2(maps[:, 0, 1], maps[:, 0, 0]))
    sizes = np.linalg.det(maps[..., :2]) ** -0.5
    assert -20 <= angles.min() < -19 and 19 < angles.max() <= 20
    assert 0.9 <= sizes.min() < 0.91 and 1.09 < sizes.max() <= 1.1
    assert abs(angles.mean()) < 1 and abs(sizes.mean() - 1) < 0.005
    assert (maps[..., 2] == 0).all()


def test_an_image_of_the_background_stays_what_it_is():
    images = np.full((50, 6, 9, 3), 131, dtype=np.uint8)
    maps = Augmentation(shift=3, rotate=180, scale=0.5, hflip=True, vflip=True).draw(50, (0,))
    assert (augment(images, maps, 131) == 131).all()


def test_maps_depend_on_the_seed_alone():
    recipe = Augmentation(shift=3, rotate=10, scale=0.2, hflip=True)
    assert (recipe.draw(4, (1, 2)) == recipe.draw(4, (1, 2))).all()
    assert (recipe.draw(4, (1, 2)) != recipe.draw(4, (2, 1))).any()


def test_a_recipe_is_read_from_words():
    assert parse_augmentation("shift=2,rotate=10,scale=0.1,hflip") == Augmentation(2, 10.0, 0.1, True, False)
    assert parse_augmentation(" vflip, shift=1") == Augmentation(shift=1, vflip=True)
    assert parse_augmentation(None) is None
    assert parse_augmentation("") is None


@pytest.mark.parametrize(
    "text",
    ["zoom=2", "shift=x", "shift=1.5", "shift", "shift=-1", "scale=1", "rotate=181", "rotate=nan", "shift=2;hflip"],
)
def test_a_recipe_that_cannot_be_is_refused(text):
    with pytest.raises(InputError, match="--augment"):
        parse_augmentation(text)


@pytest.mark.parametrize("value", ["0", "false", "no", "2"])
def test_a_flip_that_is_given_a_value_is_never_taken_for_a_yes(value):
    """Refused, or (0, false, no) understood."""
    try:
        recipe = parse_augmentation(f"hflip={value},shift=1")
    except InputError:
        return
    assert recipe == Augmentation(shift=1, hflip=False)


# Rows made anew


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> tuple[Path, np.ndarray]:
    """A prepared dataset with its images, of three classes; and the images."""
    folder = tmp_path_factory.mktemp("kept")
    originals = smooth_images(36, (8, 12), 3)
    class_folder(folder / "in", {name: originals[i::3] for i, name in enumerate(("ant", "bee", "cow"))})
    prepare_images(folder / "data", folder / "in", keep_images=True, background=9, test_size=0.25)
    return folder / "data", originals


def augmented_rows(folder: Path, recipe: str = "shift=2,rotate=20", seed: int = 0) -> AugmentedRows:
    grammar = grammar_of(load_tokenizer(folder / "tokenizer"))
    return augmented(load_prepared(folder)["train"], load_codec_of(folder), grammar, recipe, seed)


def as_lists(rows: list[dict]) -> list[list[int]]:
    return [row["input_ids"].tolist() for row in rows]


def test_a_row_depends_on_seed_epoch_and_number_and_never_on_the_batch(kept):
    rows = augmented_rows(kept[0])
    rows.set_epoch(3)
    whole = as_lists(rows.__getitems__(list(range(len(rows)))))
    assert as_lists([rows[i] for i in range(len(rows))]) == whole
    assert as_lists(rows.__getitems__([5, 1, 20, 1])) == [whole[i] for i in (5, 1, 20, 1)]
    again = augmented_rows(kept[0])
    again.set_epoch(3)
    assert as_lists(again.__getitems__(list(range(len(rows))))) == whole
    for other, epoch in ((augmented_rows(kept[0], seed=1), 3), (rows, 4)):
        other.set_epoch(epoch)
        assert sum(a != b for a, b in zip(as_lists([other[i] for i in range(len(rows))]), whole, strict=True)) > 15


def test_rows_stay_in_the_grammar_and_only_their_image_changes(kept):
    folder = kept[0]
    rows, plain = augmented_rows(folder), load_prepared(folder)["train"]
    code_ids = set(grammar_of(load_tokenizer(folder / "tokenizer")).code_ids.tolist())
    for row, before in zip(as_lists([rows[i] for i in range(len(rows))]), plain["input_ids"], strict=True):
        assert len(row) == len(before) == 1 + 6 + 4
        assert row[:1] + row[7:] == before[:1] + before[7:]
        assert set(row[1:7]) <= code_ids
    same = augmented_rows(folder, recipe="shift=0")
    assert as_lists([same[i] for i in range(len(same))]) == plain["input_ids"][:]


def test_a_row_is_its_shifted_image_in_tokens(kept):
    """Each row is the row of one of the 25 shifts of its image, the background coming in."""
    folder, _ = kept
    codec, rows, plain = load_codec_of(folder), augmented_rows(folder, "shift=2"), load_prepared(folder)["train"]
    code_ids = grammar_of(load_tokenizer(folder / "tokenizer")).code_ids
    moves = [(right, down) for right in range(-2, 3) for down in range(-2, 3)]
    for i in range(len(rows)):
        image = np.asarray(plain[i]["image"])
        shifted = np.stack([moved(image, right, down, 9) for right, down in moves])
        assert rows[i]["input_ids"][1:7].tolist() in code_ids[codec.encode(shifted)].tolist()


@pytest.mark.parametrize("num_processes", [1, 2])
def test_the_training_loader_of_each_process_makes_other_rows_in_each_epoch(kept, num_processes):
    rows = augmented_rows(kept[0])
    collator = RowCollator(load_tokenizer(kept[0] / "tokenizer"))
    loader = prepare_data_loader(
        DataLoader(rows, batch_size=4, shuffle=True, collate_fn=collator),
        num_processes=num_processes,
        process_index=num_processes - 1,
        put_on_device=False,
        use_seedable_sampler=True,
    )
    seen = []
    for epoch in range(3):
        # As Trainer calls it; accelerate's loader alone wouldn't tell the rows where there are several processes.
        EpochOfRows(rows).on_epoch_begin(None, TrainerState(epoch=float(epoch)), None)
        loader.set_epoch(epoch)
        seen.append(sorted(row for batch in loader for row in map(tuple, batch["input_ids"].tolist())))
        assert rows.epoch == epoch
    assert seen[0] != seen[1] != seen[2]


def test_augmenting_needs_the_images(kept, tmp_path):
    folder = kept[0]
    grammar = grammar_of(load_tokenizer(folder / "tokenizer"))
    plain = load_prepared(folder)["train"]
    assert augmented(plain, None, grammar, None, 0) is plain
    for rows, codec in ((plain, None), (plain.remove_columns("image"), load_codec_of(folder))):
        with pytest.raises(InputError, match=r"--augment needs the images: .* --keep_images"):
            augmented(rows, codec, grammar, "shift=1", 0)


def trainer(folder: Path, output: Path) -> ImageTrainer:
    """9 steps in 3 epochs over 27 rows with checkpoints at every second: that at step 4 stands within an epoch."""
    tokenizer, data = load_tokenizer(folder / "tokenizer"), load_prepared(folder)
    torch.manual_seed(0)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_positions=16, n_embd=32, n_layer=1, n_head=2, **ids)
    )
    args = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=9,
        num_train_epochs=3,
        save_strategy="steps",
        save_steps=2,
        learning_rate=1e-2,
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
    )
    return ImageTrainer(model, args, RunArguments(), tokenizer, augmented_rows(folder), data["test"])


def test_a_run_resumed_within_an_epoch_sees_the_same_rows(kept, tmp_path):
    whole = trainer(kept[0], tmp_path / "whole")
    whole.train()
    resumed = trainer(kept[0], tmp_path / "resumed")
    shutil.copytree(tmp_path / "whole/checkpoint-4", tmp_path / "resumed/checkpoint-4")
    resumed.train(resume_from_checkpoint=str(tmp_path / "resumed/checkpoint-4"))
    assert whole.state.global_step == resumed.state.global_step == 9
    for (name, one), two in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, two), name


def test_train_takes_a_recipe_which_belongs_to_the_identity_of_the_run(kept, tmp_path):
    words = ("--max_steps", 4, "--eval_strategy", "no", "--save_strategy", "no", "--augment", "shift=2,hflip")
    done = train(kept[0], tmp_path / "out", *words)
    assert done.returncode == 0, done.stderr
    identity = json.loads((tmp_path / "out/run.json").read_text())["identity"]
    assert "shift=2,hflip" in json.dumps(identity)
