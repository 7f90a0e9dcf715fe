"""Publishes from within a training run: at the end and, if asked, at each save, with the code of `imagelm push`.

One idea: a failed push never loses a training run. The model is on disk; the message shows how to push it later.
"""

from __future__ import annotations

import logging
import shlex
import tempfile
from dataclasses import replace
from pathlib import Path

from huggingface_hub import HfApi
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import HubStrategy

from imagelm.hub.arguments import PushArguments
from imagelm.hub.client import check_access
from imagelm.hub.push import push, with_namespaces
from imagelm.hub.upload import check_owner, look_at
from imagelm.training.trainer import ImageTrainer
from imagelm.utils.artifacts import BEST_FOLDER
from imagelm.utils.errors import HubError, InputError

logger = logging.getLogger(__name__)


def requested_push(args: TrainingArguments) -> PushArguments | None:
    """Takes the push options out of Trainer's arguments, because Trainer would publish pickles and its own card.

    Returns:
        How to publish the run's `best_model`; None if the arguments don't ask for it.

    Raises:
        InputError: The repository's name isn't valid, or the options ask to publish optimizer states.
    """
    if not args.push_to_hub:
        return None
    strategy, output = HubStrategy(args.hub_strategy), Path(args.output_dir or ".")
    if strategy not in (HubStrategy.END, HubStrategy.EVERY_SAVE):
        raise InputError(
            f"--hub_strategy {strategy.value}: a checkpoint to resume from holds pickles, which aren't "
            "published; choose end or every_save"
        )
    options = PushArguments(
        model_dir=str(output / BEST_FOLDER),
        repo_id=args.hub_model_id or output.resolve().name,
        token=args.hub_token,
        private=bool(args.hub_private_repo),
        revision=args.hub_revision,
    )
    args.push_to_hub, args.hub_token = False, None
    return options


def check_hub(options: PushArguments, args: TrainingArguments) -> str:
    """Checks before training that a push can succeed; returns a line for the log.

    Raises:
        InputError: There is no token, it may not write, or the repository isn't ours.
        HubError: The Hub can't be reached.
    """
    api = HfApi(token=options.token)
    user = check_access(api, options)
    check_owner(api, look_at(api, "model", with_namespaces(options, user).repo_id, options), options)
    when = "at each save and at the end" if args.hub_strategy == HubStrategy.EVERY_SAVE else "at the end"
    return f"Hub: logged in as {user}; the model goes to {options.repo_id} {when}"


def publish_run(options: PushArguments) -> None:
    """Pushes the finished run's `best_model`.

    Raises:
        HubError: It couldn't be sent; the message contains the command that sends it later.
    """
    try:
        push(options)
    except (HubError, InputError) as error:
        words = ["imagelm", "push", "--model_dir", options.model_dir, "--repo_id", options.repo_id]
        words += ["--private"] if options.private else []
        words += ["--revision", options.revision] if options.revision else []
        raise HubError(f"{error}\nThe run is complete; push it later with: {shlex.join(words)}") from error


class PushWhileTraining(TrainerCallback):
    """Pushes the weights at each save, as a commit without figures, which are measured at the end."""

    def __init__(self, trainer: ImageTrainer, options: PushArguments) -> None:
        self.trainer, self.options = trainer, options

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Sends the model of this step; training continues even if this fails."""
        step = f"step {state.global_step} of {state.max_steps}"
        try:
            with tempfile.TemporaryDirectory(prefix="imagelm-step-") as home:
                folder = Path(home) / "model"
                try:
                    self.trainer.save_folder(folder, {"step": state.global_step})
                except (OSError, SafetensorError):  # such as a full disk
                    # The other processes wait at the end of save_folder.
                    self.trainer.accelerator.wait_for_everyone()
                    raise
                if state.is_world_process_zero:
                    message = f"Weights of {step}"
                    options = replace(self.options, model_dir=str(folder), num_drawings=0, commit_message=message)
                    push(options, level=logging.DEBUG)
                    logger.info("pushed %s to %s", step, options.repo_id)
        except (HubError, InputError, OSError, SafetensorError) as error:
            logger.warning("%s couldn't be pushed, training continues: %s", step, error)
