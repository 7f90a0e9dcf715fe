"""What determines the weights of a run, and whether two runs are the same one.

One idea: a run resumes only what it would itself have written. A difference that changes no weight up to here, such as
a setting that only a newer library knows, or a longer run whose schedule doesn't depend on its length, is none.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from imagelm.training.launch import Launch
from imagelm.utils.errors import InputError

LENGTHS = ("max_steps", "num_train_epochs")
SHARES = ("gradient_accumulation_steps", "per_device_train_batch_size", "world_size")  # their product: rows per update
# The fields of TrainingArguments that determine the weights; the others are about files, logs and intervals.
DECISIVE_ARGUMENTS = (
    *("optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm"),
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_steps", "num_train_epochs"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "average_tokens_across_devices"),
    *("dataloader_drop_last", "train_sampling_strategy", "seed", "data_seed", "full_determinism"),
    *("label_smoothing_factor", "neftune_noise_alpha", "metric_for_best_model"),
)


def run_identity(
    launch: Launch, stats: dict, vocabulary: dict[str, int], config: PretrainedConfig, stream: dict | None = None
) -> dict:
    """What determines the weights of a run, ready for JSON; `stream` is the `order` of streamed rows."""
    args, run, arguments = launch.args, launch.run, launch.args.to_dict()
    architecture = {
        name: value
        for name, value in config.to_dict().items()
        if name not in ("transformers_version", "use_cache", "dtype") and not name.startswith("_")
    }
    decisive = {
        "data": stats["fingerprint"],
        "vocabulary": hashlib.sha256(json.dumps(vocabulary, sort_keys=True).encode()).hexdigest(),
        "world_size": args.world_size,
        "mixed_precision": args.mixed_precision,
        "started_from": launch.model.model_name_or_path,
        "augment": run.augment,
        "cls_loss_weight": run.cls_loss_weight,
        "optimizer": run.optimizer,
        "muon_learning_rate": run.muon_learning_rate if run.optimizer == "muon" else None,
        **{f"stream.{name}": value for name, value in (stream or {}).items()},
        **{f"model.{name}": value for name, value in architecture.items()},
        **{name: arguments[name] for name in sorted(DECISIVE_ARGUMENTS)},
    }
    return json.loads(json.dumps(decisive, default=str))


def check_same(what: str, earlier: dict, identity: dict, extend: bool, processes: bool = False) -> str | None:
    """Refuses to continue a run that another identity began.

    Args:
        what: The start of the message.
        earlier: The identity that began the run.
        identity: The identity of this run.
        extend: Whether the run may be longer, whatever its schedule.
        processes: Whether the rows of an update may be shared in another way among processes.

    Returns:
        A note if this run is a longer one, or has other processes; None if both are the same.

    Raises:
        InputError: They differ in something that changes the weights.
    """
    differing = {
        name: (earlier.get(name), identity.get(name))
        for name in sorted(earlier.keys() | identity.keys())
        if earlier.get(name) != identity.get(name) and not (name not in earlier and _is_default(name, identity))
    }
    lengths, shares = ({name: differing[name] for name in names if name in differing} for names in (LENGTHS, SHARES))
    if not differing:
        return None
    lines = [f"  {name}: {then} there, {now} now" for name, (then, now) in differing.items()]
    remedies = ["Choose another --output_dir", "or add --overwrite to delete that run"]
    if differing.keys() <= {*lengths, *shares}:
        longer = not lengths or _may_be_longer(identity, lengths, extend, remedies)
        shared = not shares or _may_be_shared(earlier, identity, processes, remedies)
        if longer and shared:
            changes = [f"{name} {then:g} is now {now:g}" for name, (then, now) in differing.items()]
            return f"the run continues: {' and '.join(changes)}"
    raise InputError("\n".join([f"{what} with other settings:", *lines, ", ".join(remedies)]))


def is_longer(earlier: dict, identity: dict) -> bool:
    """Whether a run that may continue an earlier one has more updates to do."""
    return any(earlier.get(name) != identity[name] for name in LENGTHS)


def _may_be_longer(identity: dict, lengths: dict[str, tuple[Any, Any]], extend: bool, remedies: list[str]) -> bool:
    if not all(0 < then < now for then, now in lengths.values()):
        return False
    if not (extend or _has_constant_rate(identity)):
        remedies.append("or --extend_run to continue it on the learning rates of the longer schedule")
        return False
    return True


def _may_be_shared(earlier: dict, identity: dict, processes: bool, remedies: list[str]) -> bool:
    """The order of the rows depends on the rows per update only, not on who computes them."""
    then, now = (math.prod(record.get(name) or 1 for name in SHARES) for record in (earlier, identity))
    if then != now:
        remedies.append(f"or set batch size x accumulation steps x processes to {then}, which is {now} now")
    elif not processes:
        remedies.append("or --change_processes to continue it: with the same rows, but other random numbers of dropout")
    return then == now and processes


def _is_default(name: str, identity: dict[str, Any]) -> bool:
    """Whether a setting of the architecture has its default, as when a newer library has added it."""
    kind, _, key = name.partition(".")
    defaults = AutoConfig.for_model(identity["model.model_type"]).to_dict() if kind == "model" else {}
    return key in defaults and json.loads(json.dumps(defaults[key], default=str)) == identity[name]


def _has_constant_rate(identity: dict[str, Any]) -> bool:
    """Whether the learning rate at a step doesn't depend on the number of steps; a warm-up below 1 is a share of it."""
    schedule, warmup = identity["lr_scheduler_type"], identity["warmup_steps"] or 0
    return schedule == "constant" or (schedule == "constant_with_warmup" and (warmup == 0 or warmup >= 1))
