"""What follows the training of `imagelm train`: baselines, the figures of the saved models, the report.

One idea: everything is measured on what was saved, as others will load it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagelm.commands.logs import logger
from imagelm.utils.artifacts import BEST_FOLDER, FINAL_FOLDER, REPORT_FOLDER, RESULTS_FILE

if TYPE_CHECKING:  # everything heavy is imported where it is used
    import numpy as np

    from imagelm.training.inputs import TrainingInputs
    from imagelm.training.launch import Launch
    from imagelm.training.run_record import RunRecord


def baselines(data: TrainingInputs) -> dict[str, dict[str, np.ndarray]]:
    """Which rows the baselines get right, by split: after the training, which needn't wait for them."""
    from imagelm.evaluation.interval import fitted_in_words

    hits = data.baseline_hits()
    majority, bag = (hits["test"][name].mean() for name in ("majority", "bag_of_tokens"))
    fitted = fitted_in_words(data.fitted_record())
    logger.info("baselines on the test rows: majority class %.4f, bag of tokens %.4f%s", majority, bag, fitted)
    return hits


def evaluate(
    launch: Launch, data: TrainingInputs, hits: dict[str, dict[str, np.ndarray]], record: RunRecord
) -> dict[str, dict[str, Any]]:
    """Measures the saved models beside the baselines' hits; the results by folder name.

    best_model is measured on the test rows, once, and on the rows that chose it; final_model only on the latter.
    """
    from imagelm.training.callbacks import read_selection
    from imagelm.training.evaluate import evaluate_folder
    from imagelm.utils.manifest import add_json

    def measure(folder: Path, split: str) -> dict[str, Any]:
        rows = data.dataset[split]
        return evaluate_folder(folder, launch.args, launch.run, data.tokenizer, rows, hits.get(split), split)

    results, selections = {}, {}
    for name in (BEST_FOLDER, FINAL_FOLDER):
        folder = launch.output / name
        selections[name] = read_selection(folder) or {}
        found = measure(folder, data.eval_split)
        if name == BEST_FOLDER and data.eval_split != "test":
            found = measure(folder, "test") | {data.eval_split: found}
        results[name] = found | {"step": selections[name]["step"], "class_names": data.stats["class_names"]}
        results[name] |= data.fitted_record()
        if launch.args.process_index == 0:
            add_json(folder, {RESULTS_FILE: results[name]})
    record.measured(results[BEST_FOLDER], selections[BEST_FOLDER])
    return results


def report(launch: Launch, data: TrainingInputs, history: list, record: RunRecord, results: dict[str, Any]) -> None:
    """Writes the report, and the records of the run into the models' folders."""
    from imagelm.evaluation.interval import baseline_warning
    from imagelm.evaluation.report import summary, trained_length, write_report
    from imagelm.training.run_record import write_records

    output, run = launch.output, record.update(ended="finished")
    write_report(output / REPORT_FOLDER, results[BEST_FOLDER], results[FINAL_FOLDER], history, run, data.stats)
    for name in results:
        write_records(output / name, run, data.stats, history)
    logger.info("\n%s", summary(results[BEST_FOLDER], run, output / REPORT_FOLDER))
    if run["trained"]["stopped"]:
        logger.info("trained %s", trained_length(run))
    if warning := baseline_warning(results[BEST_FOLDER]):
        logger.warning("%s; more epochs, a higher learning rate or more data may help", warning)
