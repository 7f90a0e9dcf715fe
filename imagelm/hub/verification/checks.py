"""What must be true of a published model beside its figures: its weights, its rows, no leak, no image twice."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
from datasets import Dataset

from imagelm.data.integrity import ColumnDigests, content_digests, fingerprint
from imagelm.data.load import image_bodies
from imagelm.data.training_images import image_digests, load_training_images
from imagelm.evaluation.leakage import LEAK_TOLERANCE, answer_influence, leak_proof_rows
from imagelm.hub.verification.figures import Scoring, main_figures, question_lengths
from imagelm.hub.verification.hypotheses import Subject
from imagelm.hub.verification.outcome import SHOWN, Verdict, Verification, number_text
from imagelm.hub.verification.published import PublishedData, PublishedModel
from imagelm.hub.verification.reported import Records
from imagelm.models.save import weights_sha256
from imagelm.utils.artifacts import STATS_FILE
from imagelm.utils.text import number_of

LEAK_SEED = 42


def weights_check(published: PublishedModel, records: Records) -> Iterator[Verdict]:
    """Whether the weights are those that the figures were measured on."""
    found = weights_sha256(published.folder)
    for source, recorded in records.weights.items():
        holds = found.startswith(recorded)
        yield Verdict("SHA-256 of the weights", source, recorded[:16], found[:16], "exact", holds)


def fingerprint_check(
    data: PublishedData, published: PublishedModel, records: Records, result: Verification
) -> Iterator[Verdict]:
    """Whether the rows are those that the records, and the dataset's own statistics, name."""
    recorded, stats = dict(records.fingerprints), data.stats or {}
    if "digests" not in stats:
        if recorded:
            result.notes.append(
                f"not checked: the fingerprint of the rows, as the dataset has no {STATS_FILE} with digests"
            )
        return
    recorded[f"{STATS_FILE} of the dataset"] = stats["fingerprint"]
    splits = {}
    for name, table in data.tables.items():
        columns = ColumnDigests()
        for batch in table.with_format("arrow").iter(1_000):
            columns.add(batch)
        splits[name] = columns.hexdigests()
    digests = content_digests(published.grammar, stats["class_names"], splits)
    found, own = fingerprint(digests), stats["digests"]
    changed = [f"{name} changed" for name in sorted({*digests, *own}) if digests.get(name) != own.get(name)]
    for source, value in recorded.items():
        what = found[:16] if found == value else f"{found[:16]} {', '.join(changed)}".strip()
        yield Verdict("fingerprint of the rows", source, value[:16], what, "exact", found == value)


def other_content(identities: list[Verdict]) -> list[str]:
    """Why figures can't hold, if weights or rows are others."""
    wrong = {verdict.figure for verdict in identities if not verdict.holds}
    what = {
        "SHA-256 of the weights": "other weights: these aren't the weights that the figures were measured on",
        "fingerprint of the rows": "other rows: these aren't the rows that were prepared and measured",
    }
    return [text for name, text in what.items() if name in wrong]


def answer_check(subject: Subject, test: Dataset, result: Verification) -> None:
    """Whether the class depends on the answer; if it does, finds the accuracy without the answer."""
    published = subject.published
    influence = answer_influence(published.model, published.grammar, leak_proof_rows(test), LEAK_SEED)
    holds, tolerance = influence <= LEAK_TOLERANCE, f"±{LEAK_TOLERANCE:.0e}"
    row = ("influence of the answer", "leak check", "0", f"{influence:.1e}", tolerance, holds)
    result.verdicts.append(Verdict(*row))
    if not holds:
        questions = question_lengths(subject.rows, published.grammar)
        (hidden,) = subject.score([Scoring()], visible=questions)
        seen, honest = (main_figures(columns)["cls_accuracy"] for columns in (subject.columns, hidden))
        result.findings.append(
            "a head that sees the answer: the tokens after <CLS> change the logits at <CLS>; cls_accuracy is "
            f"{number_text(seen)} with the answer in the row, and {number_text(honest)} when it is hidden"
        )


def equal_images(
    splits: dict[str, Dataset], name: str, folder: Path, result: Verification
) -> tuple[np.ndarray, np.ndarray]:
    """Searches for images that are in two splits, or twice in one.

    Args:
        splits: The rows of all splits.
        name: The split that is measured.
        folder: The model's, which may hold the digests of the images that it was trained on.
        result: To which verdicts and notes are added.

    Returns:
        Which rows of the measured split are elsewhere, too, and which repeat an earlier row; bool, shape (rows,).
    """
    digests = {split: image_digests(image_bodies(rows)) for split, rows in splits.items()}
    own = digests[name]
    pairs = [(name, f"split {split}", found) for split, found in digests.items() if split != name]
    if (seen := load_training_images(folder)) is not None:
        pairs.append((name, "the model's training", seen))
    if not pairs:
        result.notes.append("not checked without training rows: equal images across the split")
    elsewhere = np.zeros(len(own), bool)
    for _, _, found in pairs:
        elsewhere |= np.isin(own, found)
    others = combinations([split for split in splits if split != name], 2)
    for first, where, found in [*pairs, *((one, f"split {two}", digests[two]) for one, two in others)]:
        both = np.isin(digests[first], found)
        row = (f"{first} images in {where}", "search", "0", f"{both.sum()} of {len(both)}", "exact")
        result.verdicts.append(Verdict(*row, not both.any()))
    repeated = np.ones(len(own), bool)
    repeated[np.unique(own, return_index=True)[1]] = False
    if repeated.any():
        result.notes.append(f"{repeated.sum()} of {len(own)} rows of {name} repeat an image of the same split")
    return elsewhere, repeated


def effect_of_duplicates(subject: Subject, name: str) -> Iterator[str]:
    """What the figures would be without the rows whose image is elsewhere, too."""
    elsewhere = subject.in_other_split
    where = "also in another split or in the model's training"
    number = f"{number_of(int(elsewhere.sum()), 'image')} of {len(elsewhere)} in {name}: {where}"
    if elsewhere.all():
        yield f"duplicates across the split: {number}; no figure tells anything about new images"
    elif elsewhere.any():
        full, kept = main_figures(subject.columns), main_figures(subject.columns[~elsewhere])
        changes = ", ".join(f"{one} {number_text(full[one])} becomes {number_text(kept[one])}" for one in SHOWN)
        yield f"duplicates across the split: {number}; without them {changes}"
