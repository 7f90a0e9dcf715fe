"""Publishes from within a training run: at the end and, if asked, at each save, with the code of `imagelm push`.

One idea: a failed push never loses a training run. The model is on disk; the message shows how to push it later.
"""

from __future__ import annotations

import logging
import shlex
import tempfile
from pathlib import Path

from huggingface_hub import HfApi
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import HubStrategy

from imagelm.hub.arguments import RunPush
from imagelm.hub.client import check_access
from imagelm.hub.push import push, with_namespaces
from imagelm.hub.upload import check_owner, look_at
from imagelm.training.trainer import ImageTrainer
from imagelm.utils.errors import HubError, InputError

logger = logging.getLogger(__name__)


def requested_push(args: TrainingArguments) -> RunPush | None:
    """Takes the push options out of Trainer's arguments, because Trainer would publish pickles and its own card.

    Returns:
        How to publish the run; None if the arguments don't ask for it.

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
    hub = RunPush(
        repo_id=args.hub_model_id or output.resolve().name,
        token=args.hub_token,
        private=bool(args.hub_private_repo),
        revision=args.hub_revision,
        each_save=strategy == HubStrategy.EVERY_SAVE,
    )
    hub.options(output)  # checks the name
    args.push_to_hub, args.hub_token = False, None
    return hub


def check_hub(hub: RunPush) -> str:
    """Checks before training that a push can succeed.

    Returns:
        A line for the log.

    Raises:
        InputError: There is no token, it may not write, or the repository isn't ours.
        HubError: The Hub can't be reached.
    """
    api = HfApi(token=hub.token)
    user = check_access(api, hub.options(Path()))
    options = with_namespaces(hub.options(Path()), user)
    check_owner(api, look_at(api, "model", options.repo_id, options), options)
    when = "at each save and at the end" if hub.each_save else "at the end"
    return f"Hub: logged in as {user}; the model goes to {hub.repo_id} {when}"


def publish_run(hub: RunPush, best: Path) -> None:
    """Pushes the finished run's `best_model`.

    Raises:
        HubError: It couldn't be sent; the message contains the command that sends it later.
    """
    try:
        push(hub.options(best))
    except (HubError, InputError) as error:
        words = ["imagelm", "push", "--model_dir", str(best), "--repo_id", hub.repo_id]
        words += ["--private"] if hub.private else []
        words += ["--revision", hub.revision] if hub.revision else []
        raise HubError(f"{error}\nThe run is complete; push it later with: {shlex.join(words)}") from error


class PushWhileTraining(TrainerCallback):
    """Pushes the weights at each save, as a commit without figures, which are measured at the end.

    Args:
        trainer: The trainer that calls this callback.
        hub: How to publish.
    """

    def __init__(self, trainer: ImageTrainer, hub: RunPush) -> None:
        self.trainer, self.hub = trainer, hub

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
                    options = self.hub.options(folder, num_drawings=0, commit_message=f"Weights of {step}")
                    push(options, level=logging.DEBUG)
                    logger.info("pushed %s to %s", step, self.hub.repo_id)
        except (HubError, InputError, OSError, SafetensorError) as error:
            logger.warning("%s couldn't be pushed, training continues: %s", step, error)
