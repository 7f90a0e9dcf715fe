"""Which model is trained."""

from __future__ import annotations

from dataclasses import dataclass, field

from imagelm.utils.errors import InputError


@dataclass
class ModelArguments:
    """The model."""

    model_type: str = field(default="gpt2", metadata={"help": "architecture of a model from scratch: any causal one"})
    config_overrides: str | None = field(
        default=None, metadata={"help": "fields of its config, such as num_hidden_layers=4,hidden_size=128"}
    )
    model_config_file: str | None = field(
        default=None, metadata={"help": "a config.json (or its folder) instead of --model_type"}
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "checkpoint to fine-tune (folder or Hub id) instead of a model from scratch"}
    )

    def __post_init__(self) -> None:
        if self.model_name_or_path and (self.model_config_file or self.config_overrides):
            raise InputError(
                "--model_name_or_path brings its own config; leave out --model_config_file and --config_overrides"
            )
