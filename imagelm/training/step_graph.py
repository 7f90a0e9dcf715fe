"""A whole update as one CUDA graph.

One idea: on a GPU a small model's update is hundreds of short kernels, and the host needs longer to launch them than
the GPU to run them. Captured once, all of them (forward pass, loss, backward pass, clipping, finite check, optimizer)
are launched by one call. The same function also runs uncaptured, which is how it warms up, with real updates.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from imagelm.training.safety import finite_figures
from imagelm.utils.text import first_line

logger = logging.getLogger(__name__)

NUM_WARM_UP_UPDATES = 4  # they make the optimizer's state and compile the blocks, which a capture can't


class StepGraph:
    """The update of a full batch: rows of one length without padding, on one GPU, without accumulation.

    Learning rates and the batch are copied to fixed places on the device before each update. After a failed capture
    nothing is taken any more.

    Args:
        model: Its gradients are None before and after an update.
        optimizer: One that reads `found_inf` (`imagelm.training.safety.FiniteSteps`).
        batch: Rows and length of a full batch.
        forward_backward: Computes the gradients of a batch; returns its loss, and the sums that belong to it.
        max_grad_norm: Of clipping; 0 for none.
        not_finite: bool, shape (); set by the first update that isn't finite, after which none changes anything.

    Attributes:
        graph: What is replayed; None before the capture.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batch: tuple[int, int],
        forward_backward: Callable[[dict[str, Tensor]], tuple[Tensor, Tensor | None]],
        max_grad_norm: float,
        not_finite: Tensor,
    ) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer, self.forward_backward = optimizer, forward_backward
        self.max_grad_norm = max_grad_norm or float("inf")
        device = self.parameters[0].device
        ids = torch.zeros(batch, dtype=torch.int64, device=device)
        self.batch = {"input_ids": ids, "labels": ids.clone()}
        self.rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self.not_finite = not_finite
        self.num_updates, self.failed = 0, False
        self.graph: torch.cuda.CUDAGraph | None = None
        self.outputs: tuple[Tensor, Tensor | None] | None = None

    def takes(self, inputs: dict[str, Tensor]) -> bool:
        """Whether a batch is a full one."""
        return not self.failed and inputs["labels"].shape == self.batch["labels"].shape

    def __call__(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor | None] | None:
        """Takes the update; None if the capture failed and nothing was computed.

        Returns:
            The figures of `finite_figures`, and the sums of `forward_backward`; both change with the next update.
        """
        for name, place in self.batch.items():
            place.copy_(inputs[name], non_blocking=True)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            rate.fill_(group["lr"])
        if self.num_updates >= NUM_WARM_UP_UPDATES and not self.graph and not self._capture():
            return None
        self.num_updates += 1
        if self.graph:
            self.graph.replay()
            return self.outputs
        with _side_stream(self.not_finite.device):
            return self.update()

    def update(self) -> tuple[Tensor, Tensor | None]:
        """One update from the batch and the learning rates on the device; nothing in it asks for a value."""
        loss, sums = self.forward_backward(self.batch)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        figures = finite_figures(loss, norm)
        self.not_finite.logical_or_(figures[2:].sum() > 0)
        self.optimizer.found_inf = self.not_finite.float()  # type: ignore[attr-defined]
        with self._rates_on_device():
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return figures, sums

    def _capture(self) -> bool:
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.outputs = self.update()
        except RuntimeError as error:
            self.failed = True
            self.optimizer.zero_grad(set_to_none=True)
            logger.warning("--cuda_graph: updates run uncaptured; the capture failed: %s", first_line(error))
            return False
        self.graph = graph
        return True

    @contextmanager
    def _rates_on_device(self) -> Iterator[None]:
        """Schedulers and checkpoints want numbers; the captured optimizer reads the learning rates from the device."""
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        names = ("lr", "capturable")
        before: list[dict[str, Any]] = [{name: group[name] for name in names if name in group} for group in groups]
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"] = rate
            if "capturable" in group:
                group["capturable"] = rate.is_cuda and torch.cuda.is_current_stream_capturing()
        try:
            yield
        finally:
            for group, values in zip(groups, before, strict=True):
                group.update(values)


@contextmanager
def _side_stream(device: torch.device) -> Iterator[None]:
    """Off the default stream, as everything must run that is captured later."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)
