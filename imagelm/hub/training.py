"""Publishing from within a run: the same code as `push_to_hub.py`, at the end and, where asked, at each save.

One idea: a failed upload never costs a run. What was trained is on disk; the message says how to send it later.
"""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path

from huggingface_hub import HfApi
from safetensors import SafetensorError
from tqdm.auto import tqdm
from transformers import TrainerCallback

from imagelm.errors import HubError, InputError
from imagelm.hub.access import check_access
from imagelm.hub.options import RunPush
from imagelm.hub.push import push
from imagelm.training import ImageTrainer, save_folder


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
                    push(options, say=lambda text: None)
                    tqdm.write(f"pushed {step} to {self.hub.repo_id}")
        except (HubError, InputError, OSError, SafetensorError) as error:
            tqdm.write(f"warning: {step} couldn't be pushed, training goes on: {error}")
