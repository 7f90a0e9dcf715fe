"""Predicts speed, memory and network traffic of larger models on more GPUs, as the tables of docs/how_to/scale.md.

    python -m benchmarks.cost          # prints the tables
    python -m benchmarks.cost --write  # writes them into the page

One idea: one measured step gives the two constants of a model of time. What the matrix products would take at the
measured peak is proportional to their operations; the rest of the step (elementwise kernels, gaps) is taken to be
proportional to layers x width x tokens. Everything else is arithmetic on sizes. All of it is predicted, not measured.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs/how_to/scale.md"

# Measured on one H100, torch 2.11, bf16, the default model with compiled blocks: 256 rows of 201 tokens.
MEASURED_STEP, MEASURED_ROWS, LENGTH, VOCABULARY = 26.4e-3, 256, 201, 516
MATRIX_RATE = 790e12  # operations a second of large bf16 products, measured on the same card
# Assumed: bytes a second that a GPU sends, 2/3 of NVLink's 450 GB/s in a host and of a 400 Gb/s card between hosts.
IN_HOST, BETWEEN_HOSTS, GPUS_PER_HOST = 300e9, 33e9, 8
BACKWARD_SHARE = 2 / 3  # of a step; gradients are exchanged meanwhile
# Bytes per parameter: fp32 weight and gradient, Adam's two moments, and autocast's copy in bf16.
STATE_BYTES, GRADIENT_BYTES, CHECKPOINT_BYTES = 18, 4, 12
ACTIVATION_BYTES = (
    34  # per token, layer and unit of width, in bf16 without attention weights (Korthikanti et al., 2022)
)
LOGIT_BYTES = 10  # per token and vocabulary entry: bf16 logits, and fp32 logits and their gradient
GPUS = (1, 8, 64)
IMAGES, IMAGE_ROW_BYTES, SHARD_BYTES = 10**10, 2 * LENGTH + 12, 500e6  # uint16 ids, a label and an offset
# Of a row while it is prepared: the table, its copy in parts, and side, class and flag, on the disk; and in memory
# while its part is sorted, one of 512.
TABLE_BYTES, SORTED_BYTES, NUM_PARTS = 53 + 61 + 3, 130, 512


@dataclass(frozen=True)
class Shape:
    """A GPT-2 of this size, and the rows that a GPU trains on at once."""

    name: str
    layers: int
    width: int
    rows: int

    @property
    def parameters(self) -> int:
        """Of the blocks (12 d² + 13 d each), the embeddings and the last norm; the output layer is the embedding."""
        return self.layers * (12 * self.width**2 + 13 * self.width) + (VOCABULARY + LENGTH + 2) * self.width

    @property
    def tokens(self) -> int:
        return self.rows * LENGTH

    @property
    def operations(self) -> float:
        """Per token, forward and backward: 6 a parameter, and the products of attention."""
        return 6 * self.parameters + 12 * self.layers * self.width * LENGTH

    @property
    def seconds(self) -> float:
        """A step on one GPU."""
        return self.tokens * (self.operations / MATRIX_RATE + rest_per_unit() * self.layers * self.width)

    @property
    def memory(self) -> float:
        """Bytes on a GPU that holds the whole model."""
        activations = ACTIVATION_BYTES * self.layers * self.width + LOGIT_BYTES * VOCABULARY
        return STATE_BYTES * self.parameters + self.tokens * activations

    def traffic(self, gpus: int) -> float:
        """Bytes that a GPU sends for an update: a ring's all-reduce of the gradients."""
        return 2 * (gpus - 1) / gpus * GRADIENT_BYTES * self.parameters

    def update_seconds(self, gpus: int) -> float:
        """A step with its exchange of gradients, as far as the backward pass doesn't hide it."""
        bandwidth = IN_HOST if gpus <= GPUS_PER_HOST else BETWEEN_HOSTS
        return self.seconds + max(0.0, self.traffic(gpus) / bandwidth - BACKWARD_SHARE * self.seconds)


SHAPES = (Shape("11 M", 6, 384, 256), Shape("100 M", 14, 768, 256), Shape("1 B", 20, 2048, 64))


def rest_per_unit() -> float:
    """Seconds per token, layer and unit of width that a measured step takes beside its matrix products."""
    shape = SHAPES[0]
    tokens = MEASURED_ROWS * LENGTH
    return (MEASURED_STEP / tokens - shape.operations / MATRIX_RATE) / (shape.layers * shape.width)


def speed_table() -> str:
    titles = ("model", "GPUs", "tokens/s", "a GPU", "of the peak", "memory a GPU", "sent a GPU and update", "waiting")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for shape in SHAPES:
        for gpus in GPUS:
            seconds = shape.update_seconds(gpus)
            rate = shape.tokens / seconds
            cells = (
                f"{shape.name} ({shape.layers} x {shape.width})",
                f"{gpus}",
                f"{si(gpus * rate)}",
                f"{si(rate)}",
                f"{rate * shape.operations / MATRIX_RATE:.0%}",
                f"{shape.memory / 1e9:.0f} GB",
                f"{shape.traffic(gpus) / 1e9:.2g} GB",
                f"{1 - shape.seconds / seconds:.0%}",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def images_table() -> str:
    """Ten billion images of the default length."""
    size, tokens = IMAGES * IMAGE_ROW_BYTES, IMAGES * LENGTH
    rates = {s.name: 64 * s.tokens / s.update_seconds(64) for s in SHAPES}
    rows = {
        "rows on disk": f"{size / 1e12:.1f} TB ({IMAGE_ROW_BYTES} bytes each)",
        "shards of 500 MB": f"{size / SHARD_BYTES:,.0f}",
        f"disk of deduplication and split, {TABLE_BYTES} bytes a row": f"{IMAGES * TABLE_BYTES / 1e9:,.0f} GB",
        "memory of the merge, which sorts a 512th at once": f"{IMAGES / NUM_PARTS * SORTED_BYTES / 1e9:.1f} GB",
        "one epoch on 64 GPUs": ", ".join(f"{name}: {tokens / rate / 86_400:.1f} days" for name, rate in rates.items()),
        "reading, all GPUs together": ", ".join(
            f"{name}: {rate / LENGTH * IMAGE_ROW_BYTES / 1e6:.0f} MB/s" for name, rate in rates.items()
        ),
        "a checkpoint": ", ".join(f"{s.name}: {CHECKPOINT_BYTES * s.parameters / 1e9:.2g} GB" for s in SHAPES),
    }
    return "\n".join(["| what | how much |", "|---|---|", *(f"| {what} | {much} |" for what, much in rows.items())])


TABLES = {"speed": speed_table, "images": images_table}


def si(value: float) -> str:
    """Two digits with k or M."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.2g} {name}" if value < 100 * unit else f"{value / unit:.0f} {name}"
    return f"{value:.0f}"


def filled(page: str) -> str:
    """The page with the tables between its markers."""
    for name, table in TABLES.items():
        start, end = page.index(f"<!-- cost: {name} -->"), page.index(f"<!-- end: {name} -->")
        page = f"{page[:start]}<!-- cost: {name} -->\n\n{table()}\n\n{page[end:]}"
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the tables into docs/how_to/scale.md")
    if parser.parse_args().write:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print("\n\n".join(table() for table in TABLES.values()))


if __name__ == "__main__":
    main()
