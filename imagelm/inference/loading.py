"""A folder or Hub id → everything that inference needs: model, tokenizer, grammar, codec and class names.

One idea: a Hub id is first downloaded as one snapshot. All parts then come from one local folder and belong together,
even if someone pushes at the same time.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from imagelm.accel.attention import CAUSAL_PRODUCT, use_attention
from imagelm.accel.compile import keep_memory
from imagelm.accel.gelu import use_fast_gelu
from imagelm.data.training_images import load_training_images
from imagelm.inference.arguments import LoadArguments
from imagelm.inference.exported import choose_export, load_export
from imagelm.models.build import load_model, named_classes
from imagelm.models.foreign import check_config
from imagelm.remote_code.codec_imagelm import Codec, load_codec
from imagelm.tokens.grammar import Grammar
from imagelm.tokens.tokenizer import grammar_of
from imagelm.tokens.vocabulary import class_number, class_token
from imagelm.utils.device import choose_device
from imagelm.utils.errors import InputError
from imagelm.utils.fonts import drawable_names
from imagelm.utils.quiet import quiet_transformers
from imagelm.utils.text import display_names, first_line, join_first, normalized, reason

logger = logging.getLogger(__name__)

# The files of a snapshot; a repository may also hold other formats and images.
SNAPSHOT_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model"]
PATH_LIKE = re.compile(r"^[./~\\]|\\|/.*/|\s|^[A-Za-z]:")


@dataclass
class LoadedModel:
    """A model that is ready for inference, with its tokenizer and codec.

    Attributes:
        name: The folder or Hub id that the user gave.
        model: In evaluation mode, on its device; with `--backend` an `ExportedCausalLM`.
        tokenizer: Its tokenizer.
        grammar: Of the tokenizer's vocabulary.
        codec: Images to codebook entries and back; None if the folder holds no codec.
        class_names: Indexed by label; None if the config names no classes.
        training_images: Digests of the images that the model was trained on, sorted; None if they aren't known.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    grammar: Grammar
    codec: Codec | None
    class_names: list[str] | None
    training_images: np.ndarray | None = None

    @property
    def device(self) -> torch.device:
        """The device that the model is on."""
        return self.model.device

    @property
    def num_positions(self) -> int | None:
        """Longest sequence, in tokens; None if the architecture sets no limit."""
        return getattr(self.model.config, "max_position_embeddings", None)

    @property
    def num_image_tokens(self) -> int | None:
        """Tokens of a complete image; None if the model has no codec."""
        return None if self.codec is None else self.codec.num_tokens

    def text(self, ids: np.ndarray) -> str:
        """Ids as tokens, separated by spaces; an id without a token (embeddings may be wider) is shown as a number."""
        tokens = self.grammar.tokens
        return " ".join(tokens[i] if i < len(tokens) else f"<{i}>" for i in ids.tolist())

    def class_name(self, label: int) -> str:
        """The name of a class as the model has it, or its number if it has no name."""
        return str(label) if self.class_names is None else self.class_names[label]

    @cached_property
    def shown_names(self) -> list[str]:
        """The names for tables, which other names neither cut nor control; indexed by label."""
        return display_names(self.class_names or [str(label) for label in range(self.grammar.num_classes)])

    @cached_property
    def drawn_names(self) -> list[str]:
        """The names in pictures, indexed by label; a warning names those that no font can draw."""
        names, notes = drawable_names(self.class_names or self.shown_names)
        for note in notes:
            logger.warning("%s", note)
        return names

    def class_text(self, label: int) -> str:
        """A class in a table: `cat (<CLS_3>)`, or `3` if it has no name."""
        return str(label) if self.class_names is None else f"{self.shown_names[label]} ({class_token(label)})"

    def label_named(self, name: str) -> int | None:
        """The label of the class with this name; None if there is no such class, or several.

        Only the name counts: the numbers of other data may start at 1 or follow another order.
        """
        names = [normalized(self.class_name(label)) for label in range(self.grammar.num_classes)]
        return names.index(normalized(name)) if names.count(normalized(name)) == 1 else None

    def require_label(self, name: str) -> int:
        """The label of a class by name, by number or as a token; raises an InputError if there is no such class."""
        label = self.label_named(name)
        if label is None:
            label = int(name) if name.isdecimal() else class_number(name)
        if label is None or label >= self.grammar.num_classes:
            known = join_first(self.shown_names)
            raise InputError(f"class {name!r} is unknown to the model; it knows {known}")
        return label


@quiet_transformers(errors_only=True)
def load_for_inference(options: LoadArguments) -> LoadedModel:
    """Loads a trained folder or Hub id.

    Raises:
        InputError: The model doesn't exist, isn't complete, or isn't a model of images as token sentences.
    """
    device = choose_device(options.device)
    beside = [f"{name}/*" for name in options.exports()]
    try:
        folder = model_folder(options.model, options.revision, beside)
    except OSError as error:  # such as a name that is too long
        raise InputError(f"--model {options.model}: {error.strerror or error}") from error
    try:
        check_config(folder)  # which AutoTokenizer reads, too
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        grammar = grammar_of(tokenizer)
    except InputError as error:
        raise InputError(f"--model {options.model} isn't a model of images as token sentences: {error}") from error
    except Exception as error:  # tokenizers raises the plain class if a file is damaged
        raise InputError(f"--model {options.model} can't be loaded: {reason(error)}") from error
    export = choose_export(options, folder)
    try:
        if export is None:
            model = load_model(folder)
        else:
            model = load_export(export, AutoConfig.from_pretrained(folder, trust_remote_code=False), options.dtype)
    except InputError:
        raise
    except Exception as error:  # a stranger's config can make a library fail in any way
        raise InputError(f"--model {options.model} can't be loaded: {reason(error)}") from error
    codec = _codec(options.model, folder)
    _check_fit(options.model, model, grammar, codec)
    if export is None:
        model.eval().to(device=device, dtype=getattr(torch, options.dtype))
        if device.type == "cpu":
            use_attention(model, CAUSAL_PRODUCT)
            use_fast_gelu(model)
            keep_memory()
    names, seen = named_classes(model, grammar.num_classes), load_training_images(folder)
    return LoadedModel(options.model, model, tokenizer, grammar, codec, names, seen)


def model_folder(name: str, revision: str | None, more: Sequence[str] = ()) -> Path:
    """The folder behind `--model`; of a Hub id its snapshot, with files of `more` patterns.

    Raises:
        InputError: There is none, or it holds no model.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision:
            raise InputError(f"--revision {revision} belongs to a Hub id, but --model {name} is a folder")
        if not (folder / "config.json").is_file():
            inner = sorted(folder.glob("*/config.json"))  # best_model comes before checkpoint-N and final_model
            remedy = f"--model {inner[0].parent} does" if inner else "name a folder that training wrote (…/best_model)"
            raise InputError(f"--model {name} holds no config.json; {remedy}")
        return folder
    if folder.exists():
        raise InputError(f"--model {name} is a file; name its folder")
    if PATH_LIKE.search(name):
        raise InputError(f"--model {name}: no such folder; training writes one to …/best_model")
    return download("--model", name, revision, [*SNAPSHOT_PATTERNS, *more])


def download(option: str, name: str, revision: str | None, patterns: list[str], repo_type: str | None = None) -> Path:
    """The snapshot of a Hub id, of its files that match a pattern; `option` is what named it.

    Raises:
        InputError: There is none, or it can't be reached.
    """
    where = f"{option} {name} isn't a local folder, and as a Hub id"
    try:
        return Path(snapshot_download(name, repo_type=repo_type, revision=revision, allow_patterns=patterns))
    except HFValidationError as error:
        raise InputError(f"{where} it isn't valid: {error}") from error
    except RevisionNotFoundError as error:
        raise InputError(f"{where} it has no revision {revision!r}; see its branches and tags on the Hub") from error
    except GatedRepoError as error:
        raise InputError(f"{where} it is gated; accept its terms on the Hub, then run `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise InputError(f"{where} it doesn't exist or is private; check the name, or run `hf auth login`") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        reason = first_line(error).split(". ")[0]
        raise InputError(
            f"{where} it can't be reached ({reason}); check the name and the network, or name a folder"
        ) from error


def _codec(name: str, folder: Path) -> Codec | None:
    try:
        return load_codec(folder)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"--model {name}: its codec can't be loaded: {error}") from error


def _check_fit(name: str, model: PreTrainedModel, grammar: Grammar, codec: Codec | None) -> None:
    vocab_size = model.config.get_text_config().vocab_size
    if vocab_size < grammar.size:
        raise InputError(
            f"--model {name}: the model has {vocab_size} tokens, its tokenizer {grammar.size}; "
            "the folder mixes two models; use the folder that training wrote"
        )
    if codec is not None and codec.codebook_size != grammar.codebook_size:
        raise InputError(
            f"--model {name}: its codec has {codec.codebook_size} entries, its vocabulary {grammar.codebook_size} "
            "codebook tokens; replace it by the codec that the data were made with"
        )
