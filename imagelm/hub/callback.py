"""Publishing from within a run: the same code as `push_to_hub.py`, at the end and, where asked, at each save.

One idea: a failed upload never costs a run. What was trained is on disk; the message says how to send it later.
"""

from __future__ import annotations

import logging
import shlex
import tempfile
from pathlib import Path

from huggingface_hub import HfApi
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainingArguments

from imagelm.hub.access import check_access
from imagelm.hub.arguments import RunPush
from imagelm.hub.push import push
from imagelm.training.model_folder import save_folder
from imagelm.training.trainer import ImageTrainer
from imagelm.utils.errors import HubError, InputError

logger = logging.getLogger(__name__)


def requested_push(args: TrainingArguments) -> RunPush | None:
    """What the arguments ask of the Hub, taken away from Trainer: it would publish pickles and a card of its own.

    Raises:
        InputError: The repository's name can't be one, or optimizer states should be published.
    """
    if not args.push_to_hub:
        return None
    if args.hub_strategy not in ("end", "every_save"):
        raise InputError(
            f"--hub_strategy {args.hub_strategy.value}: a checkpoint to resume from holds pickles, which aren't "
            "published; choose end or every_save"
        )
    repo_id = args.hub_model_id or Path(args.output_dir).resolve().name
    hub = RunPush(
        repo_id, args.hub_token, bool(args.hub_private_repo), args.hub_revision, args.hub_strategy == "every_save"
    )
    hub.options(Path(args.output_dir))  # checks the name
    args.push_to_hub, args.hub_token = False, None
    return hub


def check_hub(hub: RunPush) -> str:
    """Whether a push could succeed, asked before hours of training; a line for the log.

    Raises:
        InputError: There is no token, or it may not write.
        HubError: The Hub can't be reached.
    """
    user = check_access(HfApi(token=hub.token), hub.options(Path()))
    when = "at each save and at the end" if hub.each_save else "at the end"
    return f"Hub: logged in as {user}; the model goes to {hub.repo_id} {when}"


def publish_run(hub: RunPush, best: Path) -> None:
    """Pushes the finished run's `best_model`.

    Raises:
        HubError: It couldn't be sent; the message holds the command that sends it later.
    """
    try:
        push(hub.options(best))
    except (HubError, InputError) as error:
        words = ["python", "push_to_hub.py", "--model_dir", str(best), "--repo_id", hub.repo_id]
        words += ["--private"] if hub.private else []
        words += ["--revision", hub.revision] if hub.revision else []
        raise HubError(f"{error}\nThe run is complete; push it later with: {shlex.join(words)}") from error


class PushWhileTraining(TrainerCallback):
    """Pushes the weights at each save, as a commit without figures: these are measured at the end.

    Args:
        trainer: The trainer that this is a callback of.
        hub: Where to.
    """

    def __init__(self, trainer: ImageTrainer, hub: RunPush) -> None:
        self.trainer, self.hub = trainer, hub

    def on_save(self, args, state, control, **kwargs) -> None:
        """Sends the model of this step; training goes on whatever becomes of it."""
        step = f"step {state.global_step} of {state.max_steps}"
        try:
            with tempfile.TemporaryDirectory(prefix="imagelm-step-") as home:
                folder = Path(home) / "model"
                try:
                    save_folder(self.trainer, folder, {"step": state.global_step})
                except (OSError, SafetensorError):  # such as a full disk
                    # The other processes wait at the end of it.
                    self.trainer.accelerator.wait_for_everyone()
                    raise
                if state.is_world_process_zero:
                    options = self.hub.options(folder, num_drawings=0, commit_message=f"Weights of {step}")
                    push(options, level=logging.DEBUG)
                    logger.info("pushed %s to %s", step, self.hub.repo_id)
        except (HubError, InputError, OSError, SafetensorError) as error:
            logger.warning("%s couldn't be pushed, training goes on: %s", step, error)
