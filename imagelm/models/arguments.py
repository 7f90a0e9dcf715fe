"""The options that choose the model of a training run."""

from __future__ import annotations

from dataclasses import dataclass

from imagelm.utils.command_line import option
from imagelm.utils.errors import InputError

# Of a model from scratch, in the names that transformers shares between architectures.
DEFAULT_SIZE = {"num_hidden_layers": 6, "num_attention_heads": 8, "hidden_size": 384}


@dataclass
class ModelArguments:
    """A model from scratch, or a checkpoint to fine-tune."""

    model_type: str = option(
        "architecture of a model from scratch: any causal language model of transformers",
        "gpt2",
        group="Model",
        metavar="NAME",
    )
    config_overrides: str | None = option(
        "config fields to change; a model from scratch has "
        f"{','.join(f'{name}={value}' for name, value in DEFAULT_SIZE.items())} if not given",
        None,
        metavar="FIELDS",
    )
    model_config_file: str | None = option(
        "a config.json, or its folder, instead of --model_type", None, metavar="FILE"
    )
    model_name_or_path: str | None = option(
        "checkpoint to fine-tune (folder or Hub id) instead of a model from scratch", None, metavar="FOLDER|ID"
    )

    def __post_init__(self) -> None:
        if self.model_name_or_path and (self.model_config_file or self.config_overrides):
            raise InputError(
                "--model_name_or_path brings its own config; remove --model_config_file and --config_overrides"
            )
