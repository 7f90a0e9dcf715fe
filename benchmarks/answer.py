#!/usr/bin/env python
"""Classification and generation by imagelm, compared with `model(ids).logits` and `model.generate` in float32.

    python -m benchmarks.answer --model outputs/mine/best_model --dataset_dir data/mine

Use a trained model with rows of one length: the results list accuracies and the share of equal answers with the times.
Seconds exclude loading. `--growth` also classifies with batches of 1 to 64.
"""

from __future__ import annotations

import json
import sys
import tempfile

from benchmarks.common import ROOT, median, parser, ratios, rounds, run, save

CONTESTANT = str(ROOT / "benchmarks" / "contestants" / "answers.py")
GROWTH = (1, 4, 16, 64)


def main() -> None:
    made = parser(__doc__.split("\n")[0])
    made.add_argument("--model", required=True, help="trained folder")
    made.add_argument("--dataset_dir", required=True, help="its data")
    made.add_argument("--num_rows", type=int, default=1000, help="rows to classify")
    made.add_argument("--num_images", type=int, default=64, help="images to generate, in one batch")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to answer")
    made.add_argument("--batch_size", type=int, default=32, help="rows to classify at once")
    made.add_argument("--growth", action="store_true", help="also batches of 1 to 64")
    arguments = made.parse_args()

    def contest(task: str, who: str, dtype: str, batch_size: int, num_rows: int, export: str | None = None):
        words = [sys.executable, CONTESTANT, "--model", arguments.model, "--dataset_dir", arguments.dataset_dir]
        words += ["--task", task, "--who", who, "--dtype", dtype, "--threads", str(arguments.threads)]
        words += ["--batch_size", str(batch_size), "--num_rows", str(num_rows), "--device", arguments.device]
        words += ["--export_dir", export] if export else []

        def go() -> dict:
            done = run(words, arguments.threads)
            line = next(line for line in done["output"].splitlines() if line.startswith("RESULT "))
            return {"peak_resident_mib": done["peak_resident_mib"], **json.loads(line.removeprefix("RESULT "))}

        return go

    found = {"threads": arguments.threads, "rounds": arguments.rounds}
    with tempfile.TemporaryDirectory() as home:
        rows, size = arguments.num_rows, arguments.batch_size
        classify = {
            "inference.py, bfloat16": contest("classify", "ours", "bfloat16", size, rows),
            "inference.py, float32": contest("classify", "ours", "float32", size, rows),
            "model(ids).logits, float32": contest("classify", "stock", "float32", size, rows),
        }
        if arguments.device == "cpu":
            words = ["--model", arguments.model, "--output_dir", home, "--int8"]
            run([sys.executable, "-m", "imagelm", "export", *words], arguments.threads)
            classify["inference.py, ONNX int8"] = contest("classify", "ours", "float32", size, rows, home)
        found["classify"] = table(rounds(classify, arguments.rounds), "model(ids).logits, float32")
        if arguments.growth:
            found["classify_rows_per_cpu_second_by_batch"] = {}
            for size in GROWTH:
                count = min(rows, 16 * size)
                seconds = contest("classify", "ours", "bfloat16", size, count)()["answer_cpu_seconds"]
                found["classify_rows_per_cpu_second_by_batch"][str(size)] = round(count / seconds, 1)
    images = arguments.num_images
    generate = {
        "inference.py, bfloat16": contest("generate", "ours", "bfloat16", images, images),
        "inference.py, float32": contest("generate", "ours", "float32", images, images),
        "model.generate, float32": contest("generate", "stock", "float32", images, images),
    }
    found["generate"] = table(rounds(generate, arguments.rounds), "model.generate, float32")
    save("answer" if arguments.device == "cpu" else "gpu_answer", found, arguments.output)


def table(results: dict[str, list[dict]], baseline: str) -> dict:
    stock = results[baseline][0].get("predictions")
    lines = {}
    for name, values in results.items():
        lines[name] = {
            key: round(median(values, key), 3) for key in values[0] if key not in ("predictions", "accuracy")
        }
        if stock is not None:
            own = values[0]["predictions"]
            equal = sum(a == b for a, b in zip(own, stock, strict=True)) / len(stock)
            lines[name] |= {"accuracy": values[0]["accuracy"], "share_of_equal_answers": equal}
    for key in ("answer_wall_seconds", "answer_cpu_seconds"):
        for name in results:
            if name != baseline:
                lines[name][f"times_as_fast_{key.split('_')[1]}"] = ratios(results, key, name)[baseline]
    return lines


if __name__ == "__main__":
    main()
