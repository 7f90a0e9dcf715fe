"""The modes next_token, continue and generate, and the PNG grids of their images."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

from imagelm.remote_code.codec_imagelm import load_codec
from imagelm.tokens.tokenizer import grammar_of
from imagelm.tokens.vocabulary import IMG
from imagelm.utils.image_grid import hide_unknown
from tests.inference.fixtures import NAMES, records, rows_of_test


def test_next_tokens_of_cut_images_are_measured_against_the_true_ones(best, prepared, tmp_path, infer):
    words = ("--mode", "next_token", "--model", best, "--keep_percent", 40, "--top", 4)
    printed = infer(*words, "--dataset_dir", prepared, "--output", tmp_path / "o")
    found, bodies = records(tmp_path / "o"), [row.split()[1:-4] for row in rows_of_test(prepared)]
    for record, body in zip(found, bodies, strict=True):
        kept = max(1, int(len(body) * 0.4))
        assert record["tokens"].split() == [IMG, *body[:kept]]
        assert record["true"] == body[kept]
    first = np.mean([record["next"][0]["token"] == record["true"] for record in found])
    any_of_4 = np.mean([record["true"] in [entry["token"] for entry in record["next"]] for record in found])
    assert f"true next token: first {first:.4f}, among the first 4 {any_of_4:.4f} (n = {len(found)} rows)" in printed


def test_continuations_keep_their_beginning_and_are_whole_rows(best, prepared, grammar, tmp_path, infer):
    words = ("--mode", "continue", "--model", best, "--num_return_sequences", 2, "--temperature", 1.5)
    printed = infer(*words, "--dataset_dir", prepared, "--output", tmp_path / "o")
    rows, found = rows_of_test(prepared), records(tmp_path / "o")
    assert len(found) == 2 * len(rows)
    hits = total = others = 0
    remainders = [body[max(1, len(body) // 2) :] for body in (row.split()[1:-4] for row in rows)]
    for other, true in zip([*remainders[1:], remainders[0]], remainders, strict=True):
        others += 2 * sum(a == b for a, b in zip(other, true, strict=False))
    for record, row in zip(found, [row for row in rows for _ in range(2)], strict=True):
        body = row.split()[1:-4]
        kept = max(1, len(body) // 2)
        assert record["prompt"].split() == [IMG, *body[:kept]]
        assert record["tokens"] == f"{record['prompt']} {record['completion']}"
        assert record["true_remainder"].split() == body[kept:]
        assert grammar.explain(record["tokens"].split(), record["label"]) is None
        drawn = record["completion"].split()[:-4]
        hits += sum(a == b for a, b in zip(drawn, body[kept:], strict=False))
        total += len(body) - kept
    assert f"completion            token accuracy {hits / total:.4f}" in printed
    assert f"another row's truth   token accuracy {others / total:.4f}" in printed


def test_a_cut_row_is_continued_as_given_and_has_no_truth(best, infer, tmp_path):
    words = ("--mode", "continue", "--model", best, "--tokens", "<IMG> <Z_001> <Z_002>", "<Z_003>", IMG)
    printed = infer(*words, "--output", tmp_path / "o")
    assert [record["prompt"] for record in records(tmp_path / "o")] == ["<IMG> <Z_001> <Z_002>", "<IMG> <Z_003>", IMG]
    assert "truth" not in printed
    again = infer(*words, "--output", tmp_path / "o", "--overwrite")
    assert again == printed  # greedy


def test_generated_rows_are_valid_input_of_prepare(artist, grammar, tmp_path, infer):
    words = ("--mode", "generate", "--model", artist, "--num_samples", 6, "--batch_size", 4)
    printed = infer(*words, "--output", tmp_path / "o")
    found = records(tmp_path / "o")
    assert len({record["tokens"] for record in found}) > 1
    for record in found:
        assert grammar.explain(record["tokens"].split(), record["label"]) is None
        assert len(record["tokens"].split()) == 4 + 5
        assert record["class"] == NAMES[record["label"]]
        assert f"{record['class']} (<CLS_{record['label']}>)" in printed
    assert "to see the images, add --output_image" in printed


@pytest.mark.parametrize("condition", ["rejection", "likelihood"])
def test_a_class_is_asked_for_by_name_number_or_token(artist, tmp_path, infer, condition):
    words = ("--mode", "generate", "--model", artist, "--num_samples")
    infer(*words, 20, "--output", tmp_path / "o")
    label = records(tmp_path / "o")[0]["label"]  # random weights may never draw some other class
    words = (*words, 2, "--condition", condition, "--class")
    printed = [infer(*words, name) for name in (NAMES[label], label, f"<CLS_{label}>")]
    assert printed[0] == printed[1] == printed[2]
    assert f"p({NAMES[label]})" in printed[0]
    way = {"rejection": "the first of the class", "likelihood": "the most probable"}[condition]
    assert f"2 kept ({way}); the model classifies 2 of them as {NAMES[label]} (<CLS_{label}>)" in printed[0]


def test_rejection_reports_that_it_found_too_few(artist, infer, tmp_path):
    words = ("--mode", "generate", "--model", artist, "--num_samples", 20)
    infer(*words, "--output", tmp_path / "all")
    labels = [record["label"] for record in records(tmp_path / "all")]
    label = min(range(3), key=labels.count)
    printed = infer(*words, "--class", label, "--max_draws", 1, "--output", tmp_path / "some")
    assert len(records(tmp_path / "some")) == labels.count(label)
    assert f"20 images generated, {labels.count(label)} kept" in printed
    assert "fewer than the 20 asked for" in printed


# Image grids


def test_the_grid_shows_the_given_part_the_completion_and_the_original(artist, photos, grey_images, tmp_path, infer):
    words = ("--mode", "continue", "--model", artist, "--images", photos / "owl", "--num_rows", 2)
    infer(*words, "--output_image", tmp_path / "c.png", "--output", tmp_path / "o")
    grid = np.asarray(Image.open(tmp_path / "c.png"))
    vocabulary = grammar_of(AutoTokenizer.from_pretrained(artist))
    codec = load_codec(artist)
    for record, original in zip(records(tmp_path / "o"), grey_images[[0, 3]], strict=True):
        entries = [[int(token[3:-1]) for token in record["tokens"].split()[1:5]]]
        assert [vocabulary.tokens[vocabulary.code_ids[entry]] for entry in entries[0]] == record["tokens"].split()[1:5]
        completed = codec.decode(np.array(entries))[0]
        # the given half, and the same half of the completion; the other halves of completion and original
        assert [count_of(grid, completed[:4]), count_of(grid, completed[4:])] == [2, 1]
        assert count_of(grid, original) == 1
        stripes = hide_unknown(completed, 2, (2, 2))[48:]
        assert count_of(grid, np.concatenate([enlarged(completed[:4]), stripes]), enlarge=False) == 1


def enlarged(image: np.ndarray) -> np.ndarray:
    return image.repeat(3, 2).repeat(12, 0).repeat(12, 1)


def count_of(grid: np.ndarray, image: np.ndarray, enlarge: bool = True) -> int:
    """How often a grid contains an image of 8 pixels' width, enlarged 12 times."""
    large = enlarged(image) if enlarge else image
    height, width = large.shape[:2]
    places = np.argwhere((grid[: 1 - height, : 1 - width] == large[0, 0]).all(-1))
    return sum((grid[y : y + height, x : x + width] == large).all() for y, x in places)


def test_the_grid_shows_generated_images_as_the_codec_decodes_them(artist, tmp_path, infer):
    words = ("--mode", "generate", "--model", artist, "--num_samples", 3)
    infer(*words, "--output_image", tmp_path / "g.png", "--output", tmp_path / "o")
    grid, codec = np.asarray(Image.open(tmp_path / "g.png")), load_codec(artist)
    for record in records(tmp_path / "o"):
        entries = [int(token[3:-1]) for token in record["tokens"].split()[1:5]]
        assert count_of(grid, codec.decode(np.array([entries]))[0]) >= 1
