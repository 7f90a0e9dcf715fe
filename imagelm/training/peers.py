"""What happens to a run of several processes when one of them is gone.

One idea: the others learn it from a failing transfer, which says nothing to a user; here it becomes a message with what
is saved and how to continue.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed import DistError

from imagelm.training.checkpoint import checkpoints
from imagelm.training.launch import Launch
from imagelm.utils.errors import PeerLostError
from imagelm.utils.text import first_line

GLOO = "gloo"  # in the text of its RuntimeErrors, which have no class of their own


@contextmanager
def lost_peers_named(launch: Launch) -> Iterator[None]:
    """Wraps what several processes do together.

    Raises:
        PeerLostError: A transfer failed, or took longer than `--ddp_timeout`.
    """
    try:
        yield
    except RuntimeError as error:
        args, output = launch.args, launch.output
        if args.world_size == 1 or not (isinstance(error, DistError) or GLOO in str(error).lower()):
            raise
        kept = [folder.name for folder in checkpoints(output)] if output.is_dir() else []
        saved = f"{kept[-1]} is its newest checkpoint" if kept else "no checkpoint was saved yet"
        why = first_line(str(error).partition("] ")[2] or error)  # without the place in PyTorch's source
        rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        raise PeerLostError(
            f"process {args.process_index} of {args.world_size} can't reach another one, which has ended, or whose "
            f"host or network is down ({why}). The run in {output} stopped; {saved}. Look at the messages of "
            "the other processes, then run the same command again on all hosts; on fewer, keep the batch "
            f"with --global_batch_size {rows} and add --change_processes"
        ) from error
