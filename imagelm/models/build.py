"""Config → a causal language model from scratch, or a checkpoint to fine-tune.

One idea: any causal architecture of transformers works; vocabulary and special tokens always come from the data's
tokenizer, positions from the data's longest row, and anything that doesn't fit is refused before training starts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from imagelm.accel.attention import CAUSAL_PRODUCT, CAUSAL_SDPA, use_attention
from imagelm.models.arguments import DEFAULT_SIZE, ModelArguments
from imagelm.models.foreign import check_config, check_model_files, check_size
from imagelm.models.transfer import Transfer, plan_transfer, take_over
from imagelm.utils.errors import InputError
from imagelm.utils.text import join_first, reason

# tanh GELU as one operation: the same function as GPT-2's own "gelu_new", which needs several.
GPT2_ACTIVATION = "gelu_pytorch_tanh"
# Dropout slows every step and helps only with few data; recipes that need it set it.
GPT2_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def build_model(
    arguments: ModelArguments,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    attention: str | None,
    transfer: Transfer | None = None,
) -> PreTrainedModel:
    """The model to train.

    Args:
        arguments: From scratch (type, overrides or a config file), or a checkpoint.
        tokenizer: The data's.
        max_length: The data's longest row, in tokens.
        attention: transformers' `attn_implementation`; None leaves the choice to the architecture.
        transfer: What is taken over from the checkpoint; None finds it out without the names of classes.

    Raises:
        InputError: The architecture isn't causal, an override is unknown, or a checkpoint's vocabulary or positions
            don't fit the data.
    """
    stock = None if attention in (CAUSAL_PRODUCT, CAUSAL_SDPA) else attention
    if arguments.model_name_or_path:
        transfer = transfer or plan_transfer(arguments.model_name_or_path, tokenizer)
        model = _load_checkpoint(transfer, tokenizer, stock)
    else:
        model = _from_scratch(arguments, tokenizer, max_length, stock)
    if attention and attention != stock:
        use_attention(model, attention)
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and positions < max_length:
        raise InputError(
            f"the model has {positions} positions, but the longest row has {max_length} tokens; "
            f"prepare the data with --max_length {positions}, or give the model more positions"
        )
    fix_loss_scale(model)
    skip_padding_check(model)
    return model


def load_model(folder: str | Path) -> PreTrainedModel:
    """Loads a saved model in fp32, ready to be evaluated.

    Raises:
        RuntimeError: The folder's weights don't match its architecture; transformers would fill missing ones with
            random numbers.
        ValueError: As for `check_model_files`; an architecture may raise others.
    """
    check_model_files(folder)
    loaded: Any = AutoModelForCausalLM.from_pretrained(  # a pair, which its annotation doesn't say
        folder, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
    )
    model, loading = loaded
    if wrong := [*loading["missing_keys"], *loading["unexpected_keys"], *loading["mismatched_keys"]]:
        raise RuntimeError(f"{folder} doesn't hold the weights of its architecture: {join_first(wrong, 3)}")
    fix_loss_scale(model)
    skip_padding_check(model)
    return model


def name_classes(model: PreTrainedModel, class_names: list[str]) -> None:
    """Writes the classes' names into the config, so that `<CLS_3>` can be read as "cat" without our code."""
    model.config.id2label = dict(enumerate(class_names))
    model.config.label2id = {name: label for label, name in enumerate(class_names)}


def named_classes(model: PreTrainedModel, num_classes: int) -> list[str] | None:
    """The classes' names by label; None if the config names no classes, or others."""
    names = {int(label): str(name) for label, name in (model.config.id2label or {}).items()}
    placeholders = {label: f"LABEL_{label}" for label in names}
    if sorted(names) != list(range(num_classes)) or names == placeholders:
        return None
    return [names[label] for label in range(num_classes)]


def fix_loss_scale(model: PreTrainedModel) -> None:
    """Makes Trainer count the scored tokens correctly.

    GPT-2's class has no loss type, so Trainer also counts the first position, which is never predicted: loss and
    gradients are too small by (L−1)/L. Setting the type before the Trainer is built fixes it.
    """
    model.loss_type = "ForCausalLM"


def skip_padding_check(model: PreTrainedModel) -> None:
    """Keeps transformers from looking for padding, and from warning of it, where there is no attention mask.

    It would do so in each forward pass, and a GPU would wait for it. Our padding is on the right, where no position
    that is read sees it.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.warn_if_padding_and_no_attention_mask = _accept  # type: ignore[method-assign]


def _accept(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> None:
    """In place of the check."""


def _from_scratch(
    arguments: ModelArguments, tokenizer: PreTrainedTokenizerBase, max_length: int, attention: str | None
) -> PreTrainedModel:
    blank = _blank_config(arguments)
    if type(blank) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(f"model type {blank.model_type} has no causal language model; try gpt2, llama or qwen3")
    values = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    values |= {"pad_token_id": tokenizer.pad_token_id, "vocab_size": len(tokenizer)}
    # One name per field: GPT-2 also takes num_hidden_layers for n_layer, and both at once could contradict each other.
    aliases = {own: shared for shared, own in (blank.attribute_map or {}).items()}
    try:
        overrides = _parse_overrides(arguments.config_overrides, blank)
        overrides = {aliases.get(name, name): value for name, value in overrides.items()}
        if arguments.model_config_file:
            config = type(blank).from_dict({**blank.to_dict(), **overrides, **values})
        else:
            sizes = _sizes(blank, overrides) | {"max_position_embeddings": max_length}
            config = type(blank)(**{**sizes, **overrides, **values})
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(
                f"{config.hidden_size} dimensions can't be shared among {config.num_attention_heads} heads"
            )
        check_size(config)
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    except InputError:
        raise
    except Exception as error:  # configs check themselves, each in its own way
        raise InputError(
            f"no {blank.model_type} model can be built like this: {reason(error)}; see --config_overrides"
        ) from error


def _blank_config(arguments: ModelArguments) -> PretrainedConfig:
    """The config to start from: the user's file, or the defaults of the architecture."""
    if arguments.model_config_file:
        try:
            check_config(arguments.model_config_file)
            return AutoConfig.from_pretrained(arguments.model_config_file, trust_remote_code=False)
        except Exception as error:  # as above
            raise InputError(f"--model_config_file {arguments.model_config_file}: {reason(error)}") from error
    if arguments.model_type not in CONFIG_MAPPING:
        raise InputError(f"--model_type {arguments.model_type} is unknown to transformers; try gpt2, llama or qwen3")
    try:
        return CONFIG_MAPPING[arguments.model_type]()
    except Exception as error:  # as above
        raise InputError(f"--model_type {arguments.model_type} has no default config: {reason(error)}") from error


def _sizes(blank: PretrainedConfig, overrides: dict[str, Any]) -> dict[str, Any]:
    """Our default size; fields that an architecture derives from its size follow the user's size if one is given."""
    chosen = DEFAULT_SIZE | overrides
    sizes: dict[str, Any] = {name: chosen[name] for name in DEFAULT_SIZE}
    if blank.model_type == "gpt2":
        return {**sizes, **GPT2_DROPOUT, "activation_function": GPT2_ACTIVATION}
    derived = {
        "num_key_value_heads": sizes["num_attention_heads"],
        "intermediate_size": 4 * sizes["hidden_size"],
        "head_dim": sizes["hidden_size"] // max(sizes["num_attention_heads"], 1),
    }
    return sizes | {name: value for name, value in derived.items() if hasattr(blank, name)}


def _parse_overrides(text: str | None, blank: PretrainedConfig) -> dict[str, Any]:
    """`"n_layer=4,n_embd=128"` → values of the types in the config; read as YAML if the config holds None."""
    overrides: dict[str, Any] = {}
    for entry in filter(None, (text or "").split(",")):
        name, equals, value = entry.strip().partition("=")
        if not equals or not hasattr(blank, name):
            raise InputError(f"--config_overrides: {entry.strip()!r} names no field of {type(blank).__name__}")
        current = getattr(blank, name)
        try:
            if isinstance(current, bool):
                overrides[name] = {"true": True, "false": False}[value.lower()]
            elif isinstance(current, int | float | str):
                overrides[name] = type(current)(value)
            else:
                overrides[name] = yaml.safe_load(value)
        except (ValueError, KeyError, yaml.YAMLError) as error:
            raise InputError(f"--config_overrides: {entry.strip()!r} isn't a valid {type(current).__name__}") from error
    return overrides


def _load_checkpoint(transfer: Transfer, tokenizer: PreTrainedTokenizerBase, attention: str | None) -> PreTrainedModel:
    try:
        model = AutoModelForCausalLM.from_pretrained(
            transfer.name, dtype=torch.float32, attn_implementation=attention, trust_remote_code=False
        )
    except Exception as error:  # a stranger's config can make a library fail in any way
        raise InputError(f"--model_name_or_path {transfer.name} can't be loaded: {reason(error)}") from error
    if transfer.sources is not None:
        take_over(model, transfer.sources, tokenizer)
    return model
