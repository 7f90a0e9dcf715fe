"""What transformers' own decision pipeline needs to ask a saved model for a class, without code of this project.

One idea: the pipeline reads the logits of label tokens before a mark; with the mark after `<CLS>` these are the logits
of the CLS slot. It pairs labels and options by position. So the template refuses a question whose options aren't all of
the model's classes in their order, because its answer would name another class.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from imagelm.models.build import named_classes
from imagelm.tokens.tokenizer import grammar_of
from imagelm.utils.atomic_io import write_json, write_text

DECISION_CONFIG, DECISION_TEMPLATE = "decision.json", "decision_template.jinja"  # the names that transformers reads
DECISION_TASK = "decision"
TEMPLATE = """\
{{%- set classes, row = {classes}, (state if state is string else "").split() | join(" ") -%}}
{{%- if question.type != "choice" or question.options != classes -%}}
    {{{{- raise_exception("The question must be a choice with the criteria " ~ classes | tojson) -}}}}
{{%- elif not row.startswith({start}) or not row.endswith(({image_end}, {row_end})) -%}}
    {{{{- raise_exception("The state must be a row of tokens from " ~ {start} ~ " to " ~ {row_end}) -}}}}
{{%- endif -%}}
{{{{- row.removesuffix({cls}) }}}} {{{{ {cls} }}}} <|mark|>"""


def save_decision(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes the settings of the decision pipeline into a model's folder; classes without names are numbered."""
    grammar = grammar_of(tokenizer)
    labels = [grammar.tokens[i] for i in grammar.class_ids]
    # Sanitizing is for text around a chat's control tokens; here the state consists of special tokens.
    write_json(folder / DECISION_CONFIG, {"labels": {"choice": labels}, "sanitize_control_tokens": False})
    start, *end = (grammar.tokens[i] for i in grammar.question(np.empty(0, np.int64)))
    texts = {"start": start, "image_end": end[0], "row_end": " ".join(end), "cls": end[-1]}
    classes = named_classes(model, len(labels)) or [str(label) for label in range(len(labels))]
    literals = {name: json.dumps(text, ensure_ascii=False) for name, text in {**texts, "classes": classes}.items()}
    write_text(folder / DECISION_TEMPLATE, TEMPLATE.format(**literals))
