"""Which known error of an evaluation gives a reported figure that the true evaluation doesn't.

One idea: every error is a way of scoring, or a choice of rows; the one that was made reproduces the reported number. It
must reproduce all figures of a group that one piece of code computes, so that a single changed digit isn't taken for an
error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from imagelm.hub.verification.figures import COLUMN, Scoring, main_figures, reduced_rows
from imagelm.hub.verification.published import PublishedModel, id_arrays
from imagelm.hub.verification.reported import Reported
from imagelm.metrics import ComputeMetrics

# Figures that an evaluation computes together.
GROUPS: tuple[tuple[str, ...], ...] = (
    ("perplexity", "loss"),
    ("image_perplexity",),
    ("next_token_accuracy",),
    ("cls_perplexity",),
    ("cls_accuracy", "cls_macro_f1", "cls_calibration_error"),
)
CLASSES = [COLUMN[name] for name in ("prediction", "reference", "confidence")]
Together = tuple[str, tuple[str, ...]]  # the source of figures, and their group
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
MAX_LENGTH = 2_048  # of padded rows
# Lengths that rows are usually cut or padded to.
USUAL_LENGTHS = sorted({*(2**i for i in range(3, 12)), *range(10, 100, 10), *range(100, MAX_LENGTH, 50)})
EVERY_LENGTH_TO = 48  # shorter rows are cut at every length


@dataclass(frozen=True)
class Candidate:
    """What a known error gives.

    Attributes:
        error: The error in words.
        columns: The reduced rows under it.
        only: The figures that it can explain; None: all.
    """

    error: str
    columns: np.ndarray
    only: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Subject:
    """What was measured: the model, the rows with their true columns, and which rows repeat an image."""

    published: PublishedModel
    rows: Sequence[np.ndarray]
    columns: np.ndarray
    in_other_split: np.ndarray
    repeated: np.ndarray
    other_splits: dict[str, Dataset]
    batch_size: int

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row; int64, shape (rows,)."""
        return np.array([len(row) for row in self.rows])

    @property
    def limit(self) -> int:
        """The longest sequence that the model takes."""
        return min(self.published.num_positions or MAX_LENGTH, MAX_LENGTH)

    def score(
        self, scorings: Sequence[Scoring], length: int | None = None, visible: np.ndarray | None = None
    ) -> list[np.ndarray]:
        """The columns of the rows for some ways of scoring."""
        model, grammar = self.published.model, self.published.grammar
        return reduced_rows(model, grammar, self.rows, scorings, self.batch_size, length, visible)


def explain(
    wrong: Sequence[Reported],
    all_reported: Sequence[Reported],
    subject: Subject,
    holds: Callable[[Reported, float], bool],
) -> tuple[list[str], list[Reported]]:
    """A sentence for each error that explains wrong figures, and the figures that no known error explains.

    Args:
        wrong: The reported figures that don't hold.
        all_reported: All of them.
        subject: What was measured.
        holds: Whether a reported figure is this number.
    """
    together: dict[Together, list[Reported]] = {}
    for one, group in ((one, group) for one in all_reported for group in GROUPS if one.figure in group):
        together.setdefault((one.source, group), []).append(one)
    together = {key: figures for key, figures in together.items() if any(one in wrong for one in figures)}
    sentences: list[str] = []
    for stage in (_rows_and_labels, _padding_and_cuts, _long_padding, _other_rows):
        if not together:
            break
        found = [(candidate, _explained(candidate, subject, together, holds)) for candidate in stage(subject)]
        while best := max((keys for _, keys in found), key=len, default=None):
            same = [candidate for candidate, keys in found if set(best) <= set(keys)]
            sentences.append(_sentence(same, [one for key in best for one in together.pop(key)]))
            found = [(candidate, [key for key in keys if key in together]) for candidate, keys in found]
    grouped = {figure for group in GROUPS for figure in group}
    left = {one for figures in together.values() for one in figures}
    return sentences, [one for one in wrong if one in left or one.figure not in grouped]


def _explained(
    candidate: Candidate,
    subject: Subject,
    together: dict[Together, list[Reported]],
    holds: Callable[[Reported, float], bool],
) -> list[Together]:
    """The figures that are all those of the error."""
    main, found = main_figures(candidate.columns), []
    for key, figures in together.items():
        if candidate.only is not None and not set(key[1]) & set(candidate.only):
            continue
        if all(holds(one, main.get(one.figure, np.nan)) for one in figures if one.figure in main):
            others = [one for one in figures if one.figure not in main]
            if others and np.array_equal(candidate.columns[:, CLASSES], subject.columns[:, CLASSES]):
                continue  # it changes no figure of the classes
            full = _all_figures(candidate.columns) if others else {}
            if all(holds(one, full.get(one.figure, np.nan)) for one in others):
                found.append(key)
    return found


def _all_figures(columns: np.ndarray) -> dict[str, float]:
    if (columns[:, COLUMN["reference"]] < 0).all():
        return {}
    return ComputeMetrics(int(columns[:, CLASSES].max()) + 1).from_rows(columns)


def _sentence(same: list[Candidate], figures: list[Reported]) -> str:
    """The likeliest of the errors that reproduce figures, and the kinds of the others."""
    shown = ", ".join(dict.fromkeys(f"{one.figure} {one.value:g}" for one in figures))
    kinds = list(dict.fromkeys(re.split(r":| \(|, and ", candidate.error)[0] for candidate in same))
    others = f" (so does: {'; '.join(kinds[1:])})" if kinds[1:] else ""
    return f"{same[0].error}: this reproduces {shown}{others}"


# The errors, the likeliest first


def _rows_and_labels(subject: Subject) -> Iterator[Candidate]:
    """Wrong shifts, wrong rows, wrong means: no padding, no cut."""
    length = int(subject.lengths.max())
    twice, never = subject.score([Scoring(shift=2), Scoring(shift=0)], length)
    yield Candidate("labels shifted twice (the data shift them, and the model shifts them again)", twice)
    yield Candidate(
        "a head that sees the answer: the class is read at the position of the class token itself, where it is visible",
        never,
        only=("cls_accuracy", "cls_perplexity"),
    )
    yield Candidate("labels never shifted: each position is asked for the token that it sees", never)
    for kept, words in (
        (~subject.in_other_split, "which are in another split, too"),
        (~subject.repeated, "which repeat another row of the split"),
        (~(subject.in_other_split | subject.repeated), "which are in another split or repeat a row"),
    ):
        if 0 < kept.sum() < len(kept):
            number = len(kept) - int(kept.sum())
            yield Candidate(f"duplicates: measured without {number} images {words}", subject.columns[kept])
    first = subject.columns.copy()
    first[:, COLUMN["num_tokens"]] += 1
    yield Candidate(
        "the loss is divided by one token too many of each row: the first one, which is never predicted",
        first,
        only=("perplexity",),
    )
    for size in BATCH_SIZES[: np.searchsorted(BATCH_SIZES, len(subject.rows)) + 1]:
        yield Candidate(
            f"averaged over batches of {size} rows, where tokens should count alike",
            _mean_of_batches(subject.columns, size),
            only=("perplexity", "next_token_accuracy"),
        )


def _mean_of_batches(columns: np.ndarray, size: int) -> np.ndarray:
    """Columns whose loss is the mean of the batches' mean losses: each batch is one row of one token."""
    starts = np.arange(0, len(columns), size)
    sums = np.add.reduceat(columns.astype(np.float64), starts)
    tokens = sums[:, [COLUMN["num_tokens"]]]
    sums[:, [COLUMN["nll"], COLUMN["num_correct"], COLUMN["num_tokens"]]] /= tokens
    return sums


def _padding_and_cuts(subject: Subject) -> Iterator[Candidate]:
    """Padding that is scored, to usual lengths; rows that are cut."""
    longest = int(subject.lengths.max())
    short = min(subject.limit, max(2 * longest, 64))
    yield from _padding(subject, [size for size in _pad_lengths(subject) if size <= short], batches=True)
    yield from _cut_rows(subject)


def _cut_rows(subject: Subject) -> Iterator[Candidate]:
    """Rows that are cut, and what becomes of those that lose their answer."""
    cuts, ways = list(_cuts(subject)), []
    for kept, _ in cuts:
        last, third = (np.maximum(kept - back, 0) for back in (1, 3))
        ways += [Scoring(kept), Scoring(kept, shift=2), Scoring(kept, class_at=last), Scoring(kept, class_at=third)]
    columns = iter(subject.score(ways, int(subject.lengths.max())))
    for kept, words in cuts:
        lost, what = kept < subject.lengths - 1, f"answer cut off: rows cut to {words}"
        plain = next(columns)
        yield Candidate(f"{what}, so {int(lost.sum())} of {len(lost)} rows have no answer", plain)
        yield Candidate(f"{what}, and labels shifted twice", next(columns))
        for where in ("last", "third last"):
            read = f"{what}, and the class read at the {where} position"
            yield Candidate(read, next(columns), only=("cls_accuracy",))
        if not lost.all():
            left_out = f"{what}, and the {int(lost.sum())} rows without an answer left out"
            yield Candidate(left_out, plain[~lost], only=GROUPS[-1])


def _cuts(subject: Subject) -> Iterator[tuple[np.ndarray, str]]:
    """How many tokens of each row stay, for every length that loses an answer."""
    longest, own = int(subject.lengths.max()), [subject.published.max_length, subject.published.num_positions]
    sizes = {*(USUAL_LENGTHS if longest > EVERY_LENGTH_TO else range(4, longest)), *filter(None, own)}
    for size in sorted(size for size in sizes if 2 <= size <= longest - 2):
        yield np.minimum(subject.lengths, size), f"{size} tokens"
    for lost in (2, 3, 4):
        yield subject.lengths - lost, f"all but their last {lost} tokens"


def _long_padding(subject: Subject) -> Iterator[Candidate]:
    """Padding to the model's own length and other long ones."""
    longest = int(subject.lengths.max())
    long = [size for size in _pad_lengths(subject) if size > min(subject.limit, max(2 * longest, 64))]
    yield from _padding(subject, long, batches=False)


def _pad_lengths(subject: Subject) -> list[int]:
    longest, own = int(subject.lengths.max()), [subject.published.max_length, subject.published.num_positions]
    sizes = {
        *range(longest, longest + 17),
        *USUAL_LENGTHS,
        *filter(None, own),
        *(-(-longest // m) * m for m in (8, 16, 32, 64, 128)),
    }
    return sorted(size for size in sizes if longest <= size <= subject.limit)


def _padding(subject: Subject, sizes: list[int], batches: bool) -> Iterator[Candidate]:
    """Padding that is scored, hidden from attention or not, with labels shifted once or twice."""
    ends = [(np.full(len(subject.rows), size), f"rows padded to {size} tokens") for size in sizes]
    for size in BATCH_SIZES[1:] if batches else ():
        longest = np.maximum.reduceat(subject.lengths, np.arange(0, len(subject.rows), size))
        ends.append((np.repeat(longest, size)[: len(subject.rows)], f"batches of {size} rows"))
    ends = [(end, words) for end, words in ends if (end > subject.lengths).any()]
    if not ends:
        return
    length = max(int(end.max()) for end, _ in ends)
    ways = [Scoring(end, shift) for end, _ in ends for shift in (1, 2)]
    words = [f"padding scored ({words}){also}" for _, words in ends for also in ("", ", and labels shifted twice")]
    for visible in (None, np.full(len(subject.rows), length)):
        for what, columns in zip(words, subject.score(ways, length, visible), strict=True):
            yield Candidate(what, columns)


def _other_rows(subject: Subject) -> Iterator[Candidate]:
    """The rows of another split."""
    model, grammar = subject.published.model, subject.published.grammar
    for name, rows in subject.other_splits.items():
        (columns,) = reduced_rows(model, grammar, id_arrays(rows), [Scoring()], subject.batch_size)
        yield Candidate(f"other rows: measured on the split {name}", columns)
