"""The model card: the template `model_card.md`, filled with what was measured of the published weights.

One idea: every figure comes from `eval_results.json`, which names the weights that it was measured on; if these are
other ones, there is no card. What isn't known is left out.
"""

from __future__ import annotations

from pathlib import Path

import jinja2
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import AutoModelForCausalLM, AutoTokenizer

from imagelm.hub.facts import CardFacts
from imagelm.models.processor import CODE_FILES, PIPELINE_TASK
from imagelm.remote_code.codec_imagelm import CODEC_CONFIG, load_codec
from imagelm.tokens.tokenizer import grammar_of
from imagelm.tokens.vocabulary import class_token
from imagelm.utils.artifacts import TEMPLATES_FOLDER
from imagelm.utils.errors import InputError
from imagelm.utils.text import table_cell

TEMPLATE = TEMPLATES_FOLDER / "model_card.md"
# The oldest versions that were tried, by tests/test_old_transformers.py.
OLDEST_TRANSFORMERS, OLDEST_FOR_PIPELINE = "4.41", "4.57"
MAX_LISTED_CLASSES = 30
METRICS = (  # figure, its identifier on the Hub, its name
    ("eval_cls_accuracy", "accuracy", "CLS-slot accuracy"),
    ("eval_cls_macro_f1", "f1", "Macro-F1 of the classes"),
    ("eval_perplexity", "perplexity", "Perplexity, all tokens"),
    ("eval_image_perplexity", "perplexity", "Perplexity, image tokens"),
    ("eval_next_token_accuracy", "accuracy", "Next-token accuracy"),
)


def model_card(facts: CardFacts) -> str:
    """The text of README.md, metadata included.

    Raises:
        InputError: The template isn't there or can't be filled.
    """
    try:
        card = ModelCard.from_template(_metadata(facts), template_path=str(TEMPLATE), **_values(facts))
    except jinja2.TemplateError as error:
        raise InputError(f"{TEMPLATE.name} can't be filled: {error}") from error
    return str(card)


def _metadata(facts: CardFacts) -> ModelCardData:
    options, results = facts.options, facts.results
    has_codec = (facts.folder / CODEC_CONFIG).is_file()
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=PIPELINE_TASK if has_codec else "text-generation",
        license=options.license,
        datasets=[options.dataset_repo_id] if options.dataset_repo_id else None,
        base_model=(facts.run or {}).get("base_model"),
        metrics=["accuracy", "perplexity"],
        tags=["imagelm", "image-tokens", "image-classification", "image-generation", "causal-lm"],
        model_name=options.repo_id.split("/")[-1] if results else None,
        eval_results=_eval_results(facts) if results else None,
    )


def _eval_results(facts: CardFacts) -> list[EvalResult]:
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
            metric_value=round(facts.results[figure], 6),
        )
        for figure, kind, name in METRICS
    ]


def _values(facts: CardFacts) -> dict[str, object]:
    """What the template's names stand for."""
    folder, options, results = facts.folder, facts.options, facts.results
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    grammar = grammar_of(tokenizer)
    codec = load_codec(folder) if (folder / CODEC_CONFIG).is_file() else None
    names = [str(model.config.id2label.get(label, label)) for label in range(grammar.num_classes)]
    tokens = [grammar.tokens[i] for i in (*grammar.code_ids[[0, -1]], *grammar.class_ids[[0, -1]])]
    values = {
        "name": options.repo_id.split("/")[-1],
        "repo_id": options.repo_id,
        "dataset_repo_id": options.dataset_repo_id,
        "introduction": _introduction(facts, model, codec, grammar.num_classes),
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
        "drawings": facts.drawings,
        "data": facts.stats,
        "lengths": _span(facts.stats["lengths"]) if facts.stats else None,
        "restored": _restored(facts.stats),
        "limits": _limits(facts, codec),
        **_question_and_answer(facts, model, tokenizer),
        **_training(facts),
    }
    if results:
        values |= {"n": results["eval_samples"], "interval": results["eval_cls_accuracy_interval"]}
        values["per_class"] = _per_class(results, names)
    return values


def _question_and_answer(facts: CardFacts, model, tokenizer) -> dict[str, object]:
    """A real row, the same up to `<CLS>`, and what the published model answers to it."""
    example = (facts.results or {}).get("example_row")
    if example is None:
        return {"example": None, "question": None}
    grammar = grammar_of(tokenizer)
    ids = torch.from_numpy(grammar.parse(example.split(), None, "example_row").question(grammar))
    logits = model(input_ids=ids[None]).logits[0, -1]
    return {"example": example, "question": tokenizer.decode(ids), "answer": tokenizer.decode(logits.argmax())}


def _introduction(facts: CardFacts, model, codec, num_classes: int) -> str:
    seen = f"{_image_words(codec)} into {codec.num_tokens} tokens" if codec else "each image into tokens"
    trained = "trained"
    if facts.run:
        trained = "fine-tuned" if facts.run["identity"]["started_from"] else "trained from scratch"
    kind = type(model).__name__
    return (
        f"This model reads images as sentences: a codebook turns {seen}, and a small language model ({kind}, "
        f"{model.num_parameters():,} parameters), {trained} on such rows, answers with one of {num_classes} classes as "
        "the next token after `<CLS>`. The same model completes images and draws new ones."
    )


def _class_list(names: list[str]) -> str:
    """The classes' names; nothing where these only repeat their numbers, or are too many to read."""
    if names == [str(label) for label in range(len(names))] or len(names) > MAX_LISTED_CLASSES:
        return ""
    return ", ".join(f"{table_cell(name)} (`{class_token(label)}`)" for label, name in enumerate(names))


def _image_words(codec) -> str:
    height, width = codec.image_size
    return f"{'a grey' if codec.channels == 1 else 'an RGB'} image of {height}×{width} pixels"


def _row_words(facts: CardFacts, codec) -> str:
    if codec:
        rows, columns = codec.grid
        return f"{rows} rows of {columns} codebook tokens, from left to right and from top to bottom"
    lengths = (facts.stats or {}).get("lengths")
    return f"{_span(lengths)} tokens long" if lengths else "codebook tokens in reading order"


def _span(lengths: dict) -> str:
    low, high = lengths["min"], lengths["max"]
    return f"{low}" if low == high else f"{low} to {high}"


def _restored(stats: dict | None) -> str | None:
    kept = (stats or {}).get("codec", {}).get("reconstruction")
    if kept is None:
        return None
    psnr = "no error" if kept["psnr"] is None else f"PSNR {kept['psnr']:.2f} dB"
    ssim = "" if kept["ssim"] is None else f", SSIM {kept['ssim']:.4f}"
    return f"MSE {kept['mse']:.1f} (values 0 to 255), {psnr}{ssim}, on {kept['num_images']} held-out images"


def _per_class(results: dict, names: list[str]) -> list[dict[str, object]]:
    if len(names) > MAX_LISTED_CLASSES:
        return []
    rows = zip(names, results["eval_confusion_matrix"], results["eval_per_class_accuracy"], strict=True)
    return [
        {
            "name": table_cell(name),
            "count": sum(counts),
            "accuracy": "–" if accuracy is None else f"{accuracy:.4f}",
        }
        for name, counts, accuracy in rows
    ]


def _training(facts: CardFacts) -> dict[str, object]:
    """The recipe as a table, and the commands that make the model again."""
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
        ("rows an update", batch),
        ("optimizer", optimizer),
        ("learning rate", f"{arguments['learning_rate']:g}, {arguments['lr_scheduler_type']}"),
        ("warmup steps", f"{arguments['warmup_steps']:g}"),
        ("weight decay", f"{arguments['weight_decay']:g}"),
        ("weight of the CLS slot in the loss", f"{own['cls_loss_weight']:g}" if own["cls_loss_weight"] else None),
        ("augmentation", this["augment"]),
        ("mixed precision", this["mixed_precision"]),
        ("seed", this["seed"]),
        (
            "machine",
            f"{hardware['device']}, {hardware['num_processes']} process(es) of {hardware['num_threads']} thread(s)",
        ),
        ("time", f"{run['durations']['train']:.0f} s" if "train" in run["durations"] else None),
        ("versions", ", ".join(f"{name} {number}" for name, number in run["versions"].items())),
    ]
    return {
        "recipe": [(name, table_cell(str(value))) for name, value in recipe if value is not None],
        "commands": [*([facts.stats["command"]] if facts.stats else []), run["command"]],
        "git_commit": run["git_commit"],
        "started_from": this["started_from"],
    }


def _limits(facts: CardFacts, codec) -> list[str]:
    """What the figures do not show."""
    results, limits = facts.results, []
    if results:
        if facts.selection:
            metric = facts.selection.get("metric", "").removeprefix("eval_")
            chosen = f"were chosen among several evaluations by {metric} on the same rows, which favours them a little"
            limits.append(
                f"The published weights {chosen if metric else 'are the last of the run, chosen by no figure'}."
            )
        limits.append("The interval covers the draw of the held-out rows, not another seed.")
        high = results["eval_cls_accuracy_interval"][1]
        if high < max(results["majority_accuracy"], results["bag_of_tokens_accuracy"]):
            limits.append("**The model is worse than a baseline above:** take it as an example of the format alone.")
    limits.append(
        "Perplexity and next-token accuracy are those of this codebook's tokens; models with another codebook, or "
        "models of pixels, can't be compared by them."
    )
    what = "picture" if codec else "row"
    limits.append(f"Any {what} gets one of the classes, also one that shows none; the probabilities don't tell.")
    limits.append(
        "Held-out rows come from the same source as the training rows: images made otherwise may be read much worse. "
        "Nothing was measured about people, and the model shouldn't decide about them."
    )
    if codec:
        limits.append("Images are seen through the codebook: what it can't restore, the model can't know.")
    return limits


def _dataset_name(facts: CardFacts) -> str:
    if facts.options.dataset_repo_id:
        return facts.options.dataset_repo_id.split("/")[-1]
    output = (facts.stats or {}).get("options", {}).get("output_dir")
    return Path(output).name if output else "held-out rows"
