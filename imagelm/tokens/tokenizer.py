"""`vocab.json` → a `PreTrainedTokenizerFast` whose ids are the file's.

One idea: the published tokenizer is a standard class that every `transformers` reads. Saving corrects what the library
writes: transformers 5 writes a class name that 4.x refuses, 4.x would feed GPT-2 type ids, and `GPT2Tokenizer`, which
the predecessor's users call, needs two more files.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from imagelm.tokens.grammar import Grammar
from imagelm.tokens.vocabulary import CLS, EOS, IMG, PAD, SPECIAL_TOKENS, UNK
from imagelm.utils.artifacts import TOKENIZER_CONFIG, VOCABULARY_FILE
from imagelm.utils.atomic_io import read_json, write_json, write_text
from imagelm.utils.errors import InputError
from imagelm.utils.text import first_line

if TYPE_CHECKING:  # transformers imports torch, which writing a tokenizer doesn't need
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

# The class name that transformers 4.x and 5.x both know; 5.x alone would write "TokenizersBackend".
PORTABLE_CLASS = "PreTrainedTokenizerFast"


def build_tokenizer(grammar: Grammar, max_length: int) -> PreTrainedTokenizerFast:
    """A word-level tokenizer over the grammar's vocabulary.

    Text is split at white space. Each token is also an added token, with the same id, so that slow and byte-level
    tokenizers keep it whole. `max_length`, the longest row in tokens, becomes `model_max_length`.
    """
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=_backend(grammar), **_settings(max_length))


def write_tokenizer(grammar: Grammar, max_length: int, folder: Path) -> None:
    """Writes the same files as `save_tokenizer(build_tokenizer(…), folder)`, without loading transformers."""
    folder.mkdir(parents=True, exist_ok=True)
    _backend(grammar).save(str(folder / "tokenizer.json"))
    settings = {"backend": "tokenizers", "tokenizer_class": PORTABLE_CLASS, **_settings(max_length)}
    _write_files(dict(sorted(settings.items())), grammar.tokens, folder)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Saves the tokenizer into `folder` so that transformers 4.x and 5.x and `GPT2Tokenizer` read the same ids.

    Call it last: any later `save_pretrained` of the library writes its own class name again.
    """
    tokenizer.save_pretrained(folder)
    _write_files(read_json(folder / TOKENIZER_CONFIG), grammar_of(tokenizer).tokens, folder)


def _backend(grammar: Grammar) -> Tokenizer:
    backend = Tokenizer(models.WordLevel(grammar.vocabulary, unk_token=UNK))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_tokens([AddedToken(token, **_added_token(token)) for token in grammar.tokens])
    backend.post_processor = processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])
    return backend


def _settings(max_length: int) -> dict[str, object]:
    return {
        "bos_token": IMG,
        "eos_token": EOS,
        "pad_token": PAD,
        "unk_token": UNK,
        "cls_token": CLS,
        "model_max_length": max_length,
        "padding_side": "right",
        # The tail must stay; `imagelm prepare` cuts rows before, so this only affects other callers.
        "truncation_side": "left",
        "clean_up_tokenization_spaces": False,
    }


def _write_files(config: dict[str, object], tokens: list[str], folder: Path) -> None:
    config["tokenizer_class"] = PORTABLE_CLASS
    # 4.x would add token_type_ids, whose embeddings GPT-2 adds as if they were tokens: silently wrong logits.
    config["model_input_names"] = ["input_ids", "attention_mask"]
    for name in ("is_local", "local_files_only"):  # how it was loaded here
        config.pop(name, None)
    config["added_tokens_decoder"] = {str(i): {"content": t, **_added_token(t)} for i, t in enumerate(tokens)}
    write_json(folder / TOKENIZER_CONFIG, config)
    write_json(folder / VOCABULARY_FILE, {token: i for i, token in enumerate(tokens)})
    write_text(folder / "merges.txt", "#version: 0.2\n")


def load_grammar(folder: Path) -> Grammar:
    """The grammar of the tokenizer in a folder, without loading transformers.

    Raises:
        InputError: There is none, or it is damaged.
    """
    file = folder / "tokenizer.json"
    try:
        return Grammar(Tokenizer.from_file(str(file)).get_vocab())
    except Exception as error:  # tokenizers raises nothing more specific
        raise InputError(
            f"{file} can't be read: {first_line(error)}; write the data again with imagelm prepare"
        ) from error


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Loads the tokenizer that `imagelm prepare` left in `folder`.

    Raises:
        InputError: There is none, or it is damaged.
    """
    from transformers import AutoTokenizer

    folder = Path(folder)
    if not (folder / TOKENIZER_CONFIG).is_file():
        raise InputError(f"{folder} holds no {TOKENIZER_CONFIG}; prepare the dataset with imagelm prepare first")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise whatever goes wrong inside them
        raise InputError(
            f"the tokenizer in {folder} can't be read ({first_line(error)}); copy or write the folder again"
        ) from error


def grammar_of(tokenizer: PreTrainedTokenizerBase) -> Grammar:
    """The grammar of a tokenizer's vocabulary."""
    return Grammar(tokenizer.get_vocab())


def _added_token(token: str) -> dict[str, bool]:
    # Only the frame is special, so that decoding with skip_special_tokens=True keeps the image and the answer.
    return {
        "lstrip": True,
        "rstrip": True,
        "normalized": False,
        "single_word": False,
        "special": token in SPECIAL_TOKENS,
    }
