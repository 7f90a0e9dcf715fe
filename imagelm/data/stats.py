"""What a prepared dataset holds, as numbers (`stats.json`) and as a page (the dataset card).

One idea: every row that was repaired, dropped, cut or skipped is counted here, so that no later figure can hide it.
"""

from __future__ import annotations

import platform
from collections import Counter
from importlib.metadata import version

import numpy as np

from imagelm.data.integrity import content_digests, fingerprint
from imagelm.data.row_splits import Duplicates
from imagelm.data.rows import SPLITS, ProblemLog, RowTable
from imagelm.data.splits import present_splits
from imagelm.tokens.grammar import NUM_FRAME_TOKENS, ROW_FORM
from imagelm.tokens.vocabulary import class_token
from imagelm.utils.artifacts import BAD_ROWS_FILE, TEMPLATES_FOLDER
from imagelm.utils.text import display_names, number_of, printable, table_cell

CUT_WARNING_SHARE = 0.01
LIBRARIES = ("datasets", "numpy", "pyarrow", "scikit-learn", "tokenizers", "transformers")


def describe(
    options: dict,
    command: str,
    table: RowTable,
    problems: ProblemLog,
    duplicates: Duplicates,
    sides: np.ndarray,
    split_notes: list[str],
    split_digests: dict[str, dict[str, str]],
) -> dict:
    """The statistics of a prepared dataset, ready for JSON.

    `sides` and `split_notes` are the result of `split_rows`, `split_digests` holds the digest of each column of each
    split.
    """
    source, splits = table.source, present_splits(sides)
    grammar = source.grammar
    lengths, classes = _count_rows(table, sides)
    num_rows = {name: int(classes[side].sum()) for name, side in splits.items()}
    digests = content_digests(grammar, source.class_names, split_digests)
    return {
        "command": command,
        "options": options,
        "fingerprint": fingerprint(digests),
        "digests": digests,
        "num_rows": num_rows,
        "num_rows_read": len(sides) + problems.counts.total(),
        "bad_rows": {"total": problems.counts.total(), "by_kind": dict(problems.counts), "first": problems.shown},
        "repaired_tails": table.counts.repaired,
        "duplicates_dropped": len(sides) - sum(num_rows.values()),
        "label_conflicts": {"total": duplicates.num_conflicts, "first": _conflicts(table, duplicates)},
        "truncation": _truncation(table, options["truncation_side"]),
        "max_length": max(lengths),
        "lengths": _distribution(lengths),
        "classes": {name: classes[side].tolist() for name, side in splits.items()},
        "num_classes": grammar.num_classes,
        "class_names": source.class_names,
        "split": source.split,
        "split_notes": split_notes,
        "vocabulary_size": grammar.size,
        "codebook": _codebook_use(table.counts.codes[grammar.code_ids]),
        "id_dtype": str(grammar.id_dtype),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
    }


def summary(stats: dict) -> list[str]:
    """What was prepared, one line per step."""
    cut = stats["truncation"]
    return [
        *(printable(f"images: {note}") for note in stats.get("images", {}).get("notes", [])),
        *_codec_in_words(stats),
        f"rows: {stats['num_rows_read']} read, {stats['bad_rows']['total']} bad, "
        f"{stats['repaired_tails']} tails repaired, {stats['duplicates_dropped']} duplicates dropped",
        f"split: {rows_in_words(stats['num_rows'])} ({stats['split']})",
        f"length: {stats['lengths']['min']} to {stats['lengths']['max']} tokens; {cut['rows_cut']} rows cut, "
        f"{100 * cut['share_of_image_tokens_cut']:.2f} % of image tokens",
        f"codebook: {stats['codebook']['used']} of {stats['codebook']['size']} entries used, "
        f"perplexity {stats['codebook']['usage_perplexity']:.1f}",
    ]


def warnings(stats: dict) -> list[str]:
    """What the user should look at; places, if there are any, follow on lines of their own."""
    found, bad, conflicts = [], stats["bad_rows"], stats["label_conflicts"]
    if bad["total"]:
        found.append([f"skipped {number_of(bad['total'], 'bad row')}, all listed in {BAD_ROWS_FILE}:", *bad["first"]])
    if (share := stats["truncation"]["share_of_image_tokens_cut"]) > CUT_WARNING_SHARE:
        found.append([f"truncation cut {100 * share:.1f} % of all image tokens; a larger --max_length keeps them"])
    present = [label for label, count in enumerate(stats["classes"]["train"]) if count]
    if len(present) == 1:
        name = display_names(stats["class_names"])[present[0]]
        found.append([f"all training rows have the class {name}; there is nothing to classify"])
    if conflicts["total"]:
        what = f"dropped {number_of(conflicts['total'], 'row')} with the image of another row, but another label:"
        found.append([what, *conflicts["first"]])
    found += [[note] for note in stats["split_notes"]]
    return ["\n  ".join(map(printable, lines)) for lines in found]


def rows_in_words(num_rows: dict[str, int]) -> str:
    """The rows of each split, such as `720 train, 80 validation, 200 test`."""
    return ", ".join(f"{count} {split}" for split, count in num_rows.items())


def dataset_card(stats: dict, repo_id: str | None = None, model_id: str | None = None) -> str:
    """The dataset card (README.md) with its metadata; with ids on the Hub it shows how to load the data."""
    import jinja2  # late: only the card needs it

    rows = zip(display_names(stats["class_names"]), *stats["classes"].values(), strict=True)
    classes = [(class_token(label), table_cell(name), counts) for label, (name, *counts) in enumerate(rows)]
    text = (TEMPLATES_FOLDER / "dataset_card.md").read_text(encoding="utf-8")
    template = jinja2.Template(text, keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    text = template.render(
        row_form=ROW_FORM,
        stats=stats,
        dropped=dropped_rows(stats),
        command=printable(stats["command"]),
        rows=rows_in_words(stats["num_rows"]),
        classes=classes,
        reconstruction=stats.get("codec", {}).get("reconstruction"),
        repo_id=repo_id,
        model_id=model_id,
    )
    return printable(text, keep="\n")


def dropped_rows(stats: dict) -> str:
    """How many rows were dropped, each counted once: `5 duplicates (2 of them with another label), 3 bad rows`."""
    conflicts = stats["label_conflicts"]["total"]
    labelled = f" ({conflicts} of them with another label than the row that stays)" if conflicts else ""
    duplicates = number_of(stats["duplicates_dropped"], "duplicate")
    return f"{duplicates}{labelled}, {number_of(stats['bad_rows']['total'], 'bad row')}"


def _codec_in_words(stats: dict) -> list[str]:
    """The codec and, if images were encoded, its reconstruction error and its speed."""
    codec = stats.get("codec")
    if codec is None:
        return []
    lines = [f"codec: {codec['description']}"]
    if "origin" in codec:
        lines.append(f"codec: {codec['origin'][0].lower()}{codec['origin'][1:]}")
    if kept := codec.get("reconstruction"):
        psnr = "no error" if kept["psnr"] is None else f"PSNR {kept['psnr']:.2f} dB"
        ssim = "" if kept["ssim"] is None else f", SSIM {kept['ssim']:.4f}"
        lines.append(
            f"reconstruction of {kept['num_images']} held-out images: MSE {kept['mse']:.1f} (0 to 255²), {psnr}{ssim}"
        )
    if "images_encoded" in codec:
        lines.append(
            f"encoded: {codec['images_encoded']} images in {codec['encode_seconds']:.1f} s, "
            f"{codec['images_per_second']:.0f} images/s on {codec['device']}"
        )
    return lines


def _conflicts(table: RowTable, duplicates: Duplicates) -> list[str]:
    return [
        f"{table.place(row)}: label {table.row(row)['labels']}, but the same image is in "
        f"{table.place(twin)} with label {table.row(twin)['labels']}"
        for row, twin in duplicates.conflicts
    ]


def _truncation(table: RowTable, side: str) -> dict:
    counts = table.counts
    return {
        "side": side,
        "rows_cut": counts.cut_rows,
        "image_tokens_cut": counts.cut_tokens,
        "share_of_image_tokens_cut": counts.cut_tokens / max(counts.read_tokens, 1),
    }


def _count_rows(table: RowTable, sides: np.ndarray) -> tuple[Counter[int], np.ndarray]:
    """How many of the rows that stay have each length, in tokens; and each side and class, shape (sides, classes)."""
    lengths: Counter[int] = Counter()
    classes = np.zeros((len(SPLITS), table.source.grammar.num_classes), dtype=np.int64)
    for span, rows in table.chunks():
        stays = sides[span] >= 0
        values, counts = np.unique(rows["lengths"][stays] + NUM_FRAME_TOKENS, return_counts=True)
        lengths.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        np.add.at(classes, (sides[span][stays], rows["labels"][stays]), 1)
    return lengths, classes


def _distribution(counts: Counter[int]) -> dict[str, float]:
    """Of values that occur so many times; percentiles are interpolated linearly, as numpy does."""
    values = np.array(sorted(counts))
    ends = np.cumsum([counts[value] for value in values.tolist()])
    places = np.array([0.5, 0.95]) * (ends[-1] - 1)
    low, high = (values[np.searchsorted(ends, place, side="right")] for place in (np.floor(places), np.ceil(places)))
    share = places - np.floor(places)
    p50, p95 = np.where(share < 0.5, low + (high - low) * share, high - (high - low) * (1 - share)).tolist()
    mean = sum(value * count for value, count in counts.items()) / int(ends[-1])
    return {"min": int(values[0]), "mean": mean, "p50": p50, "p95": p95, "max": int(values[-1])}


def _codebook_use(counts: np.ndarray) -> dict[str, float]:
    """Entries in use, and the perplexity exp(−Σ p ln p) of their use (all entries equally often: the size)."""
    used = int((counts > 0).sum())
    share = counts[counts > 0] / counts.sum()
    perplexity = float(np.exp(-(share * np.log(share)).sum()))
    return {"size": len(counts), "used": used, "dead": len(counts) - used, "usage_perplexity": perplexity}
