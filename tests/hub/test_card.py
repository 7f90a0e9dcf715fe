"""The model's card: known facts only, figures of these weights, and names of classes that can be told apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from matplotlib import get_data_path
from matplotlib.font_manager import fontManager

from imagelm.hub.checks import check_staged
from imagelm.utils.errors import InputError
from tests.hub.common import stage


def test_a_card_without_results_shows_no_figures(folder: Path, tmp_path: Path):
    (folder / "eval_results.json").unlink()
    staged = stage(folder, tmp_path)
    check_staged([staged], None)
    card = (staged.folder / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert "## Results" not in card and "model-index" not in metadata and "confusion_matrix" not in card
    assert any("the card shows no figures" in note for note in staged.notes)


@pytest.mark.parametrize("name", ["run.json", "stats.json", "training_args.json", "selection.json", "log_history.json"])
def test_a_card_omits_a_record_that_is_missing_or_incomplete(folder: Path, tmp_path: Path, name: str):
    if name == "run.json":
        (folder / name).write_text("{}")
    else:
        (folder / name).unlink()
    staged = stage(folder, tmp_path)
    check_staged([staged], None)
    card = (staged.folder / "README.md").read_text()
    gone = {
        "run.json": ["## Training", "trained from scratch"],
        "stats.json": ["## Data"],
        "training_args.json": ["## Training"],
        "selection.json": ["were chosen", "those of the last step"],
        "log_history.json": ["loss.png"],
    }
    assert "## Results" in card and not [words for words in gone[name] if words in card]
    assert any("run.json lacks command" in note for note in staged.notes) == (name == "run.json")


def edit(file: Path, **more: object) -> dict:
    """Changes entries of a record; gives the record as it was."""
    record = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in (record | more).items() if value is not None}))
    return record


def test_a_card_tells_what_was_done_and_which_baseline_is_not_clearly_beaten(folder: Path, tmp_path: Path):
    done = {"steps": 8, "planned_steps": 60, "epochs": 8 / 9, "planned_epochs": 60 / 9}
    base = {"kept_classes": ["dog"], "new_classes": ["cat", "snow owl"], "test_rows_seen": 2}
    identity = json.loads((folder / "run.json").read_text())["identity"] | {"started_from": "someone/pets"}
    stopped = {"stopped": "3 evaluations without a better cls_accuracy"}
    edit(folder / "run.json", trained=done | stopped, base=base, identity=identity)
    options = json.loads((folder / "stats.json").read_text())["options"] | {"output_dir": "data/my pets (v2)"}
    edit(folder / "stats.json", duplicates_dropped=5, label_conflicts={"total": 2, "first": []}, options=options)
    edit(folder / "training_args.json", warmup_steps=0.05)
    test = {"only_model": 5, "only_baseline": 2, "p_value": 0.453125, "clearly_better": False}
    better = {"versus_bag_of_tokens": test, "versus_majority": test | {"clearly_better": True}}
    n = edit(folder / "eval_results.json", **better)["eval_samples"]
    card = stage(folder, tmp_path).files["README.md"].read_text()
    assert "\n| dropped | 5 duplicates (2 of them with another label than the row that stays), 0 bad rows |\n" in card
    assert "\n| warmup | 5 % of the steps |\n" in card
    assert "Classes matched by name: dog. Classes with new embeddings: cat, snow owl." in card
    assert "**2 test rows show images that pets was trained on:**" in card
    kinds = {result.dataset_type for result in ModelCard(card).data.eval_results}
    assert kinds == {"my-pets-v2"}  # as the Hub's ids are spelled
    length = "8 of 60 planned steps (0.889 of 6.67 epochs), stopped early: 3 evaluations without a better cls_accuracy"
    assert f"\n| length | {length} |\n" in card
    counts = f"of {n} rows 5 are right by the model only, 2 by the baseline only; exact sign test, p = 0.45"
    assert f"\n\n**The model is not clearly better than a bag of tokens ({counts}).**\n\n" in card


def test_a_card_of_an_older_run_calls_its_length_planned_and_compares_nothing(folder: Path, tmp_path: Path):
    edit(folder / "run.json", trained=None)
    edit(folder / "eval_results.json", versus_bag_of_tokens=None, versus_majority=None)
    (folder / "training_images.safetensors").unlink()
    card = stage(folder, tmp_path).files["README.md"].read_text()
    assert "\n| length | 3 epochs planned |\n" in card
    assert "clearly better" not in card and "training_images" not in card


def test_the_record_of_the_training_images_is_published_and_explained(folder: Path, tmp_path: Path):
    staged = stage(folder, tmp_path)
    card = staged.files["README.md"].read_text()
    assert "(3 epochs), as planned |" in card and "clearly better than" in card
    assert (
        "`training_images.safetensors` holds a 64-bit digest" in card and "training_images.safetensors" in staged.files
    )


def test_figures_that_name_no_weights_are_not_shown(folder: Path, tmp_path: Path):
    results = json.loads((folder / "eval_results.json").read_text())
    del results["weights_sha256"]
    (folder / "eval_results.json").write_text(json.dumps(results))
    staged = stage(folder, tmp_path)
    assert "## Results" not in (staged.folder / "README.md").read_text() and "eval_results.json" not in staged.files
    assert any("eval_results.json lacks weights_sha256" in note for note in staged.notes)


@pytest.mark.parametrize(("started_from", "base"), [("/mnt/base/best_model", None), ("me/base", "me/base")])
def test_a_base_model_is_named_only_if_others_can_find_it(folder: Path, tmp_path: Path, started_from: str, base: str):
    run = json.loads((folder / "run.json").read_text())
    run["identity"]["started_from"] = started_from
    (folder / "run.json").write_text(json.dumps(run | {"base_model": base}))
    card = (stage(folder, tmp_path).folder / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1]).get("base_model") == base
    assert "fine-tuned on such rows" in card and f"From the checkpoint {base or 'best_model'}" in card


def rename_classes(folder: Path, names: list[str]) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: label for label, name in enumerate(names)}}
    (folder / "config.json").write_text(json.dumps(config))
    results = json.loads((folder / "eval_results.json").read_text())
    (folder / "eval_results.json").write_text(json.dumps(results | {"class_names": names}))


def test_a_model_whose_classes_cannot_be_told_apart_is_not_published(folder: Path, tmp_path: Path):
    rename_classes(folder, ["cat", "cat\u200b", "dog"])
    with pytest.raises(InputError, match="classes 0 and 1 have names that look the same"):
        stage(folder, tmp_path)


def test_a_card_holds_no_control_characters_and_no_over_long_names(folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(fontManager, "ttflist", [e for e in fontManager.ttflist if get_data_path() in e.fname])
    rename_classes(folder, ["c\x1b[2Jat猫", "d\u202eog", "x" * 500])
    card = (stage(folder, tmp_path).folder / "README.md").read_text()
    assert not set(card) & set("\x1b\u202e") and "x" * 40 not in card
    assert all(name in card for name in ("c\\\\x1b\\[2Jat猫", "d\\\\u202eog", "x" * 39 + "…"))
    assert "confusion_matrix.png)\n\nPictures show numbers for classes" in card  # and not boxes
    assert card.count("class 0 is c\\\\x1b\\[2Jat猫.") == 1
