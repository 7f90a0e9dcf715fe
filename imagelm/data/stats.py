"""What a prepared dataset holds, as numbers (`stats.json`) and as a page (the dataset card).

One idea: every row that was repaired, dropped, cut or skipped is counted here, so that no later figure can hide it.
"""

from __future__ import annotations

import platform
from importlib.metadata import version

import numpy as np
import xxhash

from imagelm.data.rows import SPLITS, ProblemLog, RowTable
from imagelm.data.splits import Duplicates
from imagelm.tokens.grammar import NUM_FRAME_TOKENS, ROW_FORM, Grammar
from imagelm.tokens.vocabulary import class_token
from imagelm.utils.text import NUM_LISTED, table_cell

CUT_WARNING_SHARE = 0.01
LIBRARIES = ("datasets", "numpy", "pyarrow", "scikit-learn", "tokenizers", "transformers")


def describe(
    options: dict,
    command: str,
    table: RowTable,
    problems: ProblemLog,
    duplicates: Duplicates,
    sides: np.ndarray,
) -> dict:
    """The statistics of a prepared dataset, ready for JSON.

    Args:
        options: The options it was prepared with.
        command: The command line.
        table: The rows read.
        problems: The bad rows.
        duplicates: Which rows repeat an image.
        sides: Index into `SPLITS` of each row, `DROPPED` for duplicates; shape (rows,).
    """
    source = table.source
    conflicts = np.flatnonzero(duplicates.conflicting)
    kept, grammar = sides >= 0, source.grammar
    return {
        "command": command,
        "options": options,
        "fingerprint": _fingerprint(grammar, table, sides),
        "num_rows": {name: int((sides == side).sum()) for side, name in enumerate(SPLITS)},
        "num_rows_read": len(sides) + problems.counts.total(),
        "bad_rows": {
            "total": problems.counts.total(),
            "by_kind": dict(problems.counts),
            "first": problems.shown,
        },
        "repaired_tails": table.num_repaired,
        "duplicates_dropped": int((~kept).sum()),
        "label_conflicts": {
            "total": len(conflicts),
            "first": [
                f"{table.place(row)}: label {table.labels[row]}, but the same image is in "
                f"{table.place(duplicates.kept_twin[row])} with label {table.labels[duplicates.kept_twin[row]]}"
                for row in conflicts[:NUM_LISTED]
            ],
        },
        "truncation": {
            "side": options["truncation_side"],
            "rows_cut": table.num_cut_rows,
            "image_tokens_cut": table.num_cut_tokens,
            "share_of_image_tokens_cut": table.num_cut_tokens / max(table.num_read_tokens, 1),
        },
        "max_length": int(table.lengths[kept].max()) + NUM_FRAME_TOKENS,
        "lengths": _lengths(table.lengths[kept] + NUM_FRAME_TOKENS),
        "classes": {
            name: np.bincount(table.labels[sides == side], minlength=grammar.num_classes).tolist()
            for side, name in enumerate(SPLITS)
        },
        "num_classes": grammar.num_classes,
        "class_names": source.class_names,
        "split": source.split,
        "vocabulary_size": grammar.size,
        "codebook": _codebook_use(table.code_counts[grammar.code_ids]),
        "id_dtype": str(grammar.id_dtype),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        **source.statistics(table.lines[kept]),
    }


def summary(stats: dict) -> list[str]:
    """The summary that `prepare_dataset.py` prints: one line per step, then warnings."""
    cut, conflicts = stats["truncation"], stats["label_conflicts"]
    lines = [
        *(f"images: {note}" for note in stats.get("images", {}).get("notes", [])),
        *_codec_in_words(stats),
        f"rows: {stats['num_rows_read']} read, {stats['bad_rows']['total']} bad, "
        f"{stats['repaired_tails']} tails repaired, "
        f"{stats['duplicates_dropped']} duplicates dropped",
        f"split: {stats['num_rows']['train']} train, {stats['num_rows']['test']} test ({stats['split']})",
        f"length: {stats['lengths']['min']} to {stats['lengths']['max']} tokens; {cut['rows_cut']} rows cut, "
        f"{cut['share_of_image_tokens_cut']:.2%} of image tokens",
        f"codebook: {stats['codebook']['used']} of {stats['codebook']['size']} entries used, "
        f"perplexity {stats['codebook']['usage_perplexity']:.1f}",
    ]
    if stats["bad_rows"]["total"]:
        lines.append(f"warning: {stats['bad_rows']['total']} bad rows were skipped; bad_rows.jsonl lists them all:")
        lines.extend(f"  {place}" for place in stats["bad_rows"]["first"])
    if cut["share_of_image_tokens_cut"] > CUT_WARNING_SHARE:
        lines.append(
            f"warning: truncation cut {cut['share_of_image_tokens_cut']:.1%} of all image tokens; "
            "a larger --max_length keeps them"
        )
    present = [label for label, count in enumerate(stats["classes"]["train"]) if count]
    if len(present) == 1:
        name = stats["class_names"][present[0]]
        lines.append(f"warning: all training rows are of class {name}; there is nothing to classify")
    if conflicts["total"]:
        lines.append(f"warning: {conflicts['total']} rows repeat an image under another label; they were dropped:")
        lines.extend(f"  {place}" for place in conflicts["first"])
    return lines


def dataset_card(stats: dict) -> str:
    """The dataset card (README.md) with its metadata, from the statistics."""
    counts = zip(*(stats["classes"][name] for name in SPLITS), strict=True)
    classes = [
        f"| `{class_token(label)}` | {table_cell(name)} | {train} | {test} |"
        for label, (name, (train, test)) in enumerate(zip(stats["class_names"], counts, strict=True))
    ]
    cut, codebook, lengths = stats["truncation"], stats["codebook"], stats["lengths"]
    return f"""---
task_categories:
- image-classification
tags:
- image-tokens
- imagelm
---

# Images as token sequences

Each row is one image as a sentence: `{ROW_FORM}`. Column `input_ids` holds the ids of
the tokenizer in `tokenizer/`, `label` the class y.

| | |
|---|---|
| rows | {stats["num_rows"]["train"]} train, {stats["num_rows"]["test"]} test |
| split | {stats["split"]}; no image on both sides |
| length in tokens | {lengths["min"]} to {lengths["max"]}, mean {lengths["mean"]:.1f} |
| rows read, bad, tails repaired | {stats["num_rows_read"]}, {stats["bad_rows"]["total"]}, {stats["repaired_tails"]} |
| duplicates dropped, label conflicts | {stats["duplicates_dropped"]}, {stats["label_conflicts"]["total"]} |
| truncation | {cut["rows_cut"]} rows, {cut["share_of_image_tokens_cut"]:.2%} of image tokens, {cut["side"]} side |
| codebook | {codebook["used"]} of {codebook["size"]} entries used, perplexity {codebook["usage_perplexity"]:.1f} |
| vocabulary | {stats["vocabulary_size"]} tokens |
| fingerprint | `{stats["fingerprint"]}` |

| token | class | train | test |
|---|---|---|---|
{chr(10).join(classes)}
{_codec_section(stats)}
Made by `{stats["command"]}`.
"""


def _codec_section(stats: dict) -> str:
    kept = stats.get("codec", {}).get("reconstruction")
    if kept is None:
        return ""
    psnr = "without error" if kept["psnr"] is None else f"{kept['psnr']:.2f} dB"
    ssim = "–" if kept["ssim"] is None else f"{kept['ssim']:.4f}"
    return f"""
## Codec

{stats["codec"]["description"]}.
On {kept["num_images"]} held-out images: MSE {kept["mse"]:.1f} (values 0 to 255), PSNR {psnr}, SSIM {ssim}.
{stats["codec"]["origin"]}.

![Held-out images, and their reconstructions from tokens](reconstructions.png)

![The codebook](codebook.png)
"""


def _fingerprint(grammar: Grammar, table: RowTable, sides: np.ndarray) -> str:
    """Identifies vocabulary, rows and split: equal data and options give an equal fingerprint."""
    digest = xxhash.xxh3_128("\n".join(grammar.tokens).encode())
    for column in (table.digests, table.labels, sides):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()


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


def _lengths(lengths: np.ndarray) -> dict[str, float]:
    p50, p95 = np.percentile(lengths, [50, 95])
    return {
        "min": int(lengths.min()),
        "mean": float(lengths.mean()),
        "p50": float(p50),
        "p95": float(p95),
        "max": int(lengths.max()),
    }


def _codebook_use(counts: np.ndarray) -> dict[str, float]:
    """Entries in use, and the perplexity exp(−Σ p ln p) of their use (all entries equally often: the size)."""
    share = counts[counts > 0] / counts.sum()
    return {
        "size": len(counts),
        "used": int((counts > 0).sum()),
        "dead": int((counts == 0).sum()),
        "usage_perplexity": float(np.exp(-(share * np.log(share)).sum())),
    }
