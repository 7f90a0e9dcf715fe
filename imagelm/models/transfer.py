"""A checkpoint for rows of other classes: which weights it keeps, and which it makes anew.

One idea: a token keeps its embedding where it means the same: special tokens, codebook entries of the same codec,
classes of the same recorded name. Everything else is refused, or made anew and said.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from imagelm.codecs.compare import codec_differences
from imagelm.models.foreign import check_model_files
from imagelm.remote_code.codec_imagelm import Codec, load_codec
from imagelm.tokens.grammar import Grammar
from imagelm.tokens.tokenizer import grammar_of
from imagelm.utils.errors import InputError
from imagelm.utils.text import display_names, join_first, normalized, number_of, reason

NO_NAME = re.compile(r"(LABEL_)?[0-9]+")  # what classes are called that nobody named


@dataclass(frozen=True)
class Transfer:
    """What a run takes over from a checkpoint.

    Attributes:
        name: The checkpoint: a folder or Hub id.
        sources: For each id of the data the id whose rows it takes in the checkpoint, −1 for a new token; int64, shape
            (tokens,). None where all stay as they are.
        kept: Names of the classes that keep their rows.
        new: Names of the classes with new embeddings.
    """

    name: str
    sources: np.ndarray | None
    kept: list[str]
    new: list[str]

    def record(self) -> dict[str, object]:
        """What `run.json` says about it."""
        return {"kept_classes": self.kept, "new_classes": self.new}

    def note(self) -> str | None:
        """What is kept and what isn't, in words; None where all is."""
        if self.sources is None:
            return None
        entries = number_of(int((self.sources >= 0).sum()) - len(self.kept), "embedding")
        kept = f"{number_of(len(self.kept), 'class')} of equal name ({join_first(display_names(self.kept), 5)})"
        return (
            f"{self.name} keeps the {entries} of special tokens and codebook"
            + (f" and those of {kept}" if self.kept else "")
            + (
                f"; {number_of(len(self.new), 'class')} with new embeddings: {join_first(display_names(self.new), 5)}"
                if self.new
                else ""
            )
        )


def plan_transfer(
    name: str, tokenizer: PreTrainedTokenizerBase, class_names: Sequence[str] | None = None, codec: Codec | None = None
) -> Transfer:
    """What a checkpoint can keep for rows of this tokenizer.

    Args:
        name: A folder or Hub id.
        tokenizer: The data's.
        class_names: The data's, indexed by label; None if they aren't known.
        codec: The codec that made the rows; None if it isn't known.

    Raises:
        InputError: The checkpoint can't be read, has another codebook, or isn't a model of images as token sentences.
    """
    try:
        check_model_files(name)
        theirs = AutoTokenizer.from_pretrained(name, trust_remote_code=False).get_vocab()
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        own_codec = _codec(name)
    except Exception as error:  # a stranger's config can make a library fail in any way
        raise InputError(f"--model_name_or_path {name} can't be loaded: {reason(error)}") from error
    ours = grammar_of(tokenizer)
    _check_vocabulary(name, theirs, ours, config)
    if own_codec and codec and (differences := codec_differences(own_codec, codec)):
        raise InputError(
            f"{name} was trained on tokens of another codec ({join_first(differences, 3)}), so its embeddings mean "
            f"something else; prepare the data with imagelm prepare --codec {name}, or train from scratch"
        )
    num_rows = config.get_text_config().vocab_size
    return _plan(name, Grammar(theirs), num_rows, _class_names(config), ours, class_names)


def take_over(model: PreTrainedModel, sources: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> None:
    """Gives a model the rows of `Transfer.sources`; new ones start as the architecture starts them.

    Raises:
        InputError: The architecture can't have another number of tokens.
    """
    try:
        size = len(_rows_of(model)[0])
        # Larger first: the library starts the added rows, tied or not, with or without a bias.
        model.resize_token_embeddings(size + len(sources), mean_resizing=False)
        rows = np.where(sources >= 0, sources, size + np.arange(len(sources)))
        values = [weights.data[rows].clone() for weights in _rows_of(model)]
        model.resize_token_embeddings(len(sources), mean_resizing=False)
        for weights, kept in zip(_rows_of(model), values, strict=True):
            weights.data.copy_(kept)
    except Exception as error:  # each architecture fails in its own way
        raise InputError(
            f"a {model.config.model_type} model can't be given other classes: {reason(error)}; train from scratch"
        ) from error
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.config, token, getattr(tokenizer, token))


def _rows_of(model: PreTrainedModel) -> list[nn.Parameter]:
    """The parameters with one row per token: those of the embeddings first."""
    inputs: Any = model.get_input_embeddings()
    outputs: Any = model.get_output_embeddings()
    found = [inputs.weight, outputs.weight, getattr(outputs, "bias", None)]
    return list({id(weights): weights for weights in found if weights is not None}.values())


def _codec(name: str) -> Codec | None:
    try:
        return load_codec(name)
    except FileNotFoundError:
        return None


def _class_names(config: PretrainedConfig) -> list[str]:
    names = {int(label): str(name) for label, name in (config.id2label or {}).items()}
    return [names[label] for label in sorted(names)] if sorted(names) == list(range(len(names))) else []


def _check_vocabulary(name: str, theirs: dict[str, int], ours: Grammar, config: PretrainedConfig) -> None:
    """Refuses a checkpoint in which anything but the classes has another id."""
    try:
        classes = {Grammar(theirs).tokens[i] for i in Grammar(theirs).class_ids}
        codebook = f"a codebook of {Grammar(theirs).codebook_size} entries, the data of {ours.codebook_size}"
    except InputError:  # a model of text, for example
        classes, codebook = set(), ""
    classes |= {ours.tokens[i] for i in ours.class_ids}
    num_tokens = config.get_text_config().vocab_size
    differing = sorted(
        token
        for token in theirs.keys() | ours.vocabulary.keys()
        if token not in classes and theirs.get(token) != ours.vocabulary.get(token)
    )
    if differing or not codebook or num_tokens < len(theirs):
        examples = (
            f"; {token} has id {theirs.get(token)} there, {ours.vocabulary.get(token)} here" for token in differing
        )
        sizes = f" ({codebook})" if codebook else ""
        raise InputError(
            f"{name} has a vocabulary of {num_tokens} tokens that differs from the data's {ours.size}{sizes}"
            f"{next(examples, '')}. Prepare the data with the model's codebook (imagelm prepare --codec {name}, or "
            "--vocab_file with its vocab.json for rows of tokens), or train from scratch"
        )


def _plan(
    name: str,
    theirs: Grammar,
    num_rows: int,
    their_names: Sequence[str],
    ours: Grammar,
    our_names: Sequence[str] | None,
) -> Transfer:
    names = [str(label) for label in range(ours.num_classes)] if our_names is None else list(our_names)
    are_named = not all(map(NO_NAME.fullmatch, names)) and not all(map(NO_NAME.fullmatch, their_names))
    if are_named and len(their_names) == theirs.num_classes:
        known = {normalized(name): label for label, name in enumerate(their_names)}
        labels: list[int | None] = [known.get(normalized(name)) for name in names]
    elif theirs.num_classes == ours.num_classes:  # the same classes, as far as anyone can know
        labels = list(range(ours.num_classes))
    else:
        labels = [None] * ours.num_classes
    sources = np.array([theirs.vocabulary.get(token, -1) for token in ours.tokens])
    sources[ours.class_ids] = [-1 if label is None else theirs.class_ids[label] for label in labels]
    kept = [name for name, label in zip(names, labels, strict=True) if label is not None]
    new = [name for name, label in zip(names, labels, strict=True) if label is None]
    same = ours.size == num_rows and bool((sources == np.arange(ours.size)).all())
    return Transfer(name, None if same else sources, kept, new)
