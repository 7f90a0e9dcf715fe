"""Fills the template `model_card.md` with the facts of the published weights.

One idea: every figure comes from `eval_results.json`, which names the weights it was measured on; for other weights
there is no card. Unknown facts are omitted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from imagelm.hub.facts import CardFacts
from imagelm.inference.loading import LoadedModel
from imagelm.models.save import CODE_FILES, PIPELINE_TASK
from imagelm.remote_code.codec_imagelm import Codec
from imagelm.tokens.vocabulary import class_token
from imagelm.utils.artifacts import TEMPLATES_FOLDER
from imagelm.utils.errors import InputError
from imagelm.utils.text import printable, processes, table_cell

TEMPLATE = TEMPLATES_FOLDER / "model_card.md"
# The oldest versions that work, as tests/hub/test_old_transformers.py shows.
OLDEST_TRANSFORMERS, OLDEST_FOR_PIPELINE = "4.41", "4.57"
MAX_LISTED_CLASSES = 30
METRICS = (  # figure, its identifier on the Hub, its name
    ("eval_cls_accuracy", "accuracy", "CLS-slot accuracy"),
    ("eval_cls_macro_f1", "f1", "Macro-F1 of the classes"),
    ("eval_perplexity", "perplexity", "Perplexity, all tokens"),
    ("eval_image_perplexity", "perplexity", "Perplexity, image tokens"),
    ("eval_next_token_accuracy", "accuracy", "Next-token accuracy"),
)


def model_card(facts: CardFacts, loaded: LoadedModel) -> str:
    """Returns the text of README.md, metadata included.

    Raises:
        InputError: The template is missing or can't be filled.
    """
    metadata = _metadata(facts, loaded.codec is not None)
    try:
        card = ModelCard.from_template(metadata, template_path=str(TEMPLATE), **_values(facts, loaded))
    except jinja2.TemplateError as error:
        raise InputError(f"{TEMPLATE.name} can't be filled: {error}; restore the template") from error
    return printable(card, keep="\n")


def _metadata(facts: CardFacts, has_codec: bool) -> ModelCardData:
    options, results = facts.options, facts.results
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=PIPELINE_TASK if has_codec else "text-generation",
        license=options.license,
        datasets=[options.dataset_repo_id] if options.dataset_repo_id else None,
        base_model=(facts.run or {}).get("base_model"),
        metrics=["accuracy", "perplexity"],
        tags=["imagelm", "image-tokens", "image-classification", "image-generation", "causal-lm"],
        model_name=options.repo_id.split("/")[-1] if results else None,
        eval_results=_eval_results(facts, results) if results else None,
    )


def _eval_results(facts: CardFacts, results: dict[str, Any]) -> list[EvalResult]:
    dataset = facts.options.dataset_repo_id or _dataset_name(facts)
    return [
        EvalResult(
            task_type=PIPELINE_TASK,
            task_name="Image classification by the next token",
            dataset_type=dataset,
            dataset_name=_dataset_name(facts),
            dataset_split="test",
            metric_type=kind,
            metric_name=name,
            metric_value=round(results[figure], 6),
        )
        for figure, kind, name in METRICS
    ]


def _values(facts: CardFacts, loaded: LoadedModel) -> dict[str, Any]:
    """The values of the template's variables."""
    options, results = facts.options, facts.results
    model, grammar, codec = loaded.model, loaded.grammar, loaded.codec
    names = loaded.shown_names
    tokens = [grammar.tokens[i] for i in (*grammar.code_ids[[0, -1]], *grammar.class_ids[[0, -1]])]
    values: dict[str, Any] = {
        "name": options.repo_id.split("/")[-1],
        "repo_id": options.repo_id,
        "dataset_repo_id": options.dataset_repo_id,
        "introduction": _introduction(facts, loaded),
        "class_list": _class_list(names),
        "codec": codec is not None,
        "codec_words": codec.describe() if codec else "",
        "image_words": _image_words(codec) if codec else "",
        "code_files": CODE_FILES,
        "model_type": model.config.model_type,
        "oldest_transformers": OLDEST_TRANSFORMERS,
        "oldest_for_pipeline": OLDEST_FOR_PIPELINE,
        "row_words": _row_words(facts, codec),
        "code_range": f"`{tokens[0]}` to `{tokens[1]}`",
        "class_range": f"`{tokens[2]}` to `{tokens[3]}`",
        "codebook_size": grammar.codebook_size,
        "results": results,
        "weights_sha256": facts.sha256,
        "plots": facts.plots,
        "samples": facts.samples,
        "data": facts.stats,
        "lengths": _span(facts.stats["lengths"]) if facts.stats else None,
        "restored": _restored(facts.stats),
        "limits": _limits(facts, codec),
        **_question_and_answer(facts, loaded),
        **_training(facts),
    }
    if results:
        values |= {"n": results["eval_samples"], "interval": results["eval_cls_accuracy_interval"]}
        values["per_class"] = _per_class(results, names)
    return values


def _question_and_answer(facts: CardFacts, loaded: LoadedModel) -> dict[str, Any]:
    """A real row, its part up to `<CLS>`, and the published model's answer to it."""
    example = (facts.results or {}).get("example_row")
    if example is None:
        return {"example": None, "question": None}
    row = loaded.grammar.parse(example.split(), None, "example_row")
    question = torch.from_numpy(row.question(loaded.grammar))
    with torch.no_grad():
        answer = loaded.model(input_ids=question[None].to(loaded.device)).logits[0, -1].argmax()
    decode = loaded.tokenizer.decode
    return {"example": example, "question": decode(question), "answer": decode(answer)}


def _introduction(facts: CardFacts, loaded: LoadedModel) -> str:
    codec = loaded.codec
    encoded = f"{_image_words(codec)} into {codec.num_tokens} tokens" if codec else "each image into tokens"
    trained = "trained"
    if facts.run:
        trained = "fine-tuned" if facts.run["identity"]["started_from"] else "trained from scratch"
    return (
        f"This model reads images as sentences. A codebook turns {encoded}, and a small language model "
        f"({type(loaded.model).__name__}, {loaded.model.num_parameters():,} parameters), {trained} on such rows, "
        f"predicts one of {loaded.grammar.num_classes} classes as the next token after `<CLS>`. The same model "
        "completes images and generates new ones."
    )


def _class_list(names: list[str]) -> str:
    """The class names; empty if they only repeat their numbers, or are too many to read."""
    if names == [str(label) for label in range(len(names))] or len(names) > MAX_LISTED_CLASSES:
        return ""
    return ", ".join(f"{table_cell(name)} (`{class_token(label)}`)" for label, name in enumerate(names))


def _image_words(codec: Codec) -> str:
    height, width = codec.image_size
    return f"{'a grey' if codec.channels == 1 else 'an RGB'} image of {height}×{width} pixels"


def _row_words(facts: CardFacts, codec: Codec | None) -> str:
    if codec:
        rows, columns = codec.grid
        return f"{rows} rows of {columns} codebook tokens, from left to right and from top to bottom"
    lengths = (facts.stats or {}).get("lengths")
    return f"{_span(lengths)} tokens long" if lengths else "codebook tokens in reading order"


def _span(lengths: dict[str, Any]) -> str:
    low, high = lengths["min"], lengths["max"]
    return f"{low}" if low == high else f"{low} to {high}"


def _restored(stats: dict[str, Any] | None) -> str | None:
    kept = (stats or {}).get("codec", {}).get("reconstruction")
    if kept is None:
        return None
    psnr = "no error" if kept["psnr"] is None else f"PSNR {kept['psnr']:.2f} dB"
    ssim = "" if kept["ssim"] is None else f", SSIM {kept['ssim']:.4f}"
    return f"MSE {kept['mse']:.1f} (values 0 to 255), {psnr}{ssim}, on {kept['num_images']} held-out images"


def _per_class(results: dict[str, Any], names: list[str]) -> list[dict[str, Any]]:
    if len(names) > MAX_LISTED_CLASSES:
        return []
    rows = zip(names, results["eval_confusion_matrix"], results["eval_per_class_accuracy"], strict=True)
    return [
        {"name": table_cell(name), "count": sum(counts), "accuracy": "–" if accuracy is None else f"{accuracy:.4f}"}
        for name, counts, accuracy in rows
    ]


def _training(facts: CardFacts) -> dict[str, Any]:
    """The recipe as a table, and the commands that reproduce the model."""
    run, arguments, results = facts.run, facts.arguments, facts.results
    if run is None or arguments is None:
        return {"recipe": None}
    own, this = arguments["imagelm"], run["identity"]
    steps, epochs = arguments["max_steps"], arguments["num_train_epochs"]
    batch = arguments["per_device_train_batch_size"] * arguments["gradient_accumulation_steps"] * this["world_size"]
    optimizer = arguments["optim"]
    if own["optimizer"] == "muon":
        optimizer = f"Muon ({own['muon_learning_rate']:g}) for the matrices, AdamW for the rest"
    hardware = run["hardware"]
    recipe = [
        ("length", f"{steps} steps" if steps > 0 else f"{epochs:g} epochs"),
        ("published step", results["step"] if results else None),
        ("rows per update", batch),
        ("optimizer", optimizer),
        ("learning rate", f"{arguments['learning_rate']:g}, {arguments['lr_scheduler_type']}"),
        ("warmup steps", f"{arguments['warmup_steps']:g}"),
        ("weight decay", f"{arguments['weight_decay']:g}"),
        ("weight of the CLS slot in the loss", f"{own['cls_loss_weight']:g}" if own["cls_loss_weight"] else None),
        ("augmentation", this["augment"]),
        ("mixed precision", this["mixed_precision"]),
        ("seed", this["seed"]),
        ("machine", f"{hardware['device']}, {processes(hardware)}"),
        ("time", f"{run['durations']['train']:.0f} s" if "train" in run["durations"] else None),
        ("versions", ", ".join(f"{name} {number}" for name, number in run["versions"].items())),
    ]
    return {
        "recipe": [(name, table_cell(str(value))) for name, value in recipe if value is not None],
        "commands": [printable(record["command"]) for record in (facts.stats, run) if record],
        "git_commit": run["git_commit"],
        "started_from": this["started_from"],
    }


def _limits(facts: CardFacts, codec: Codec | None) -> list[str]:
    """The limits of model and figures, a sentence or two each."""
    results = facts.results
    limits: list[str] = []
    if results:
        if facts.selection:
            metric = facts.selection.get("metric", "").removeprefix("eval_")
            chosen = f"were chosen among several evaluations by {metric} on the same rows, which favours them slightly"
            last = "are those of the last step; no figure was used to choose them"
            limits.append(f"The published weights {chosen if metric else last}.")
        limits.append("The interval covers the choice of held-out rows, not the training seed.")
        high = results["eval_cls_accuracy_interval"][1]
        if high < max(results["majority_accuracy"], results["bag_of_tokens_accuracy"]):
            limits.append("**The model is worse than a baseline above:** use it only as an example of the format.")
    limits.append(
        "Perplexity and next-token accuracy depend on this codebook's tokens; don't compare them with models of "
        "another codebook or of pixels."
    )
    limits.append(
        f"The model always predicts one of its classes, even for {'images' if codec else 'rows'} that show none of "
        "them; a high probability is not evidence."
    )
    limits.append(
        "Held-out rows come from the same source as the training rows; accuracy on images from other sources may be "
        "much lower. Nothing was measured about people, and the model shouldn't be used to make decisions about them."
    )
    if codec:
        limits.append("The model sees images through the codebook; details that the codebook can't restore are lost.")
    return limits


def _dataset_name(facts: CardFacts) -> str:
    if facts.options.dataset_repo_id:
        return facts.options.dataset_repo_id.split("/")[-1]
    output = (facts.stats or {}).get("options", {}).get("output_dir")
    return Path(output).name if output else "held-out rows"
