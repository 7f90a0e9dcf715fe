"""Muon for the weight matrices, AdamW for everything else, as one optimizer.

One idea: a small model on small data learns faster when each update of a matrix is made orthogonal. PyTorch's own
`torch.optim.Muon` orthogonalizes one matrix at a time and always in bfloat16, which a CPU without bfloat16
instructions emulates at 1 GFLOP/s instead of 60; here matrices of one shape are processed together, and in float32 on
such a CPU.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from transformers import PreTrainedModel, TrainingArguments
from transformers.pytorch_utils import Conv1D

from imagelm.training.arguments import RunArguments
from imagelm.utils.device import has_fast_bfloat16

# Coefficients and steps of the quintic Newton-Schulz iteration, Nesterov momentum and the scale by a matrix's sides:
# Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NUM_NEWTON_SCHULZ_STEPS = 5


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon on the matrices of the blocks, AdamW on embeddings, biases and norms.

    Args:
        model: `hidden_matrices` decides which parameters go to Muon.
        lr: AdamW's learning rate; `betas` and `eps` are AdamW's, too.
        muon_lr: Muon's learning rate, the spectral norm of an update of a square matrix.
        weight_decay: Decoupled weight decay, for Muon's matrices only.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        lr: float,
        muon_lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        matrices = hidden_matrices(model)
        chosen = {id(p) for p in matrices}
        others = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
        # GPT-2 keeps its matrices as (in, out), all others as (out, in).
        self._input_first = {id(m.weight) for m in model.modules() if isinstance(m, Conv1D)}
        groups = [
            # AdamW's group first: a log shows the first group's learning rate, which is then --learning_rate.
            # "fused" tells torch to keep the step counts on the parameters' device when a checkpoint is loaded.
            {"params": others, "lr": lr, "muon": False, "weight_decay": 0.0, "fused": True},
            {"params": matrices, "lr": muon_lr, "muon": True, "weight_decay": weight_decay},
        ]
        super().__init__(
            [group for group in groups if group["params"]], {"momentum": momentum, "betas": betas, "eps": eps}
        )

        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # Trainer passes no closure
        """One update from the current gradients; none if `found_inf` is 1, as in torch's fused optimizers."""
        for group in self.param_groups:
            gradients = [(p, p.grad) for p in group["params"] if p.grad is not None]
            if group["muon"]:
                self._step_muon(group, gradients)
            else:
                self._step_adamw(group, gradients)

    def _step_muon(self, group: dict, gradients: list[tuple[Tensor, Tensor]]) -> None:
        skipped = None if self.found_inf is None else self.found_inf > 0
        alike: dict[tuple[torch.Size, bool], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for p, gradient in gradients:
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p)
            if skipped is not None:  # momentum that meets itself stays what it is
                gradient = torch.where(skipped, state["momentum"], gradient)
            state["momentum"].lerp_(gradient, 1 - group["momentum"])
            alike[p.shape, id(p) in self._input_first].append((p, gradient.lerp(state["momentum"], group["momentum"])))
        for (shape, input_first), pairs in alike.items():
            directions = orthogonalize(torch.stack([direction for _, direction in pairs]))
            fan_out, fan_in = reversed(shape) if input_first else shape
            scale = group["lr"] * math.sqrt(max(1.0, fan_out / fan_in))
            for (p, _), direction in zip(pairs, directions, strict=True):
                before = p if skipped is None else p.clone()
                p.mul_(1 - group["lr"] * group["weight_decay"])
                if isinstance(scale, Tensor):  # a captured update reads the learning rate from the device
                    p.sub_(direction * scale)
                else:
                    p.add_(direction, alpha=-scale)
                if skipped is not None:
                    p.copy_(torch.where(skipped, before, p))

    def _step_adamw(self, group: dict, gradients: list[tuple[Tensor, Tensor]]) -> None:
        params = [p for p, _ in gradients]
        for p in params:
            if not self.state[p]:
                zeros = [torch.zeros_like(p) for _ in range(2)]
                step = torch.zeros((), dtype=torch.float32, device=p.device)
                self.state[p] = {"exp_avg": zeros[0], "exp_avg_sq": zeros[1], "step": step}
        states = [self.state[p] for p in params]
        beta1, beta2 = group["betas"]
        adamw(
            params,
            [gradient for _, gradient in gradients],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=group["fused"],
            found_inf=self.found_inf,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def hidden_matrices(model: PreTrainedModel) -> list[Tensor]:
    """The parameters that Muon updates: trainable matrices between hidden layers, neither embedding nor output."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    output = model.get_output_embeddings()
    if output is not None:
        tables.add(id(output.weight))
    return [p for p in model.parameters() if p.requires_grad and p.ndim == 2 and id(p) not in tables]


def orthogonalize(matrices: Tensor) -> Tensor:
    """The nearest matrices with singular values of about 1 (0.7 to 1.2), by Newton-Schulz iteration.

    Shape (batch, rows, columns) and dtype stay.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices.to(torch.bfloat16 if has_fast_bfloat16(matrices.device) else torch.float32)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(NUM_NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def muon_options(args: TrainingArguments, run: RunArguments) -> tuple[Any, dict[str, Any]]:
    """Trainer's `optimizer_cls_and_kwargs`; the class comes from a function, since this optimizer takes the model."""
    options = {
        "lr": args.learning_rate,
        "muon_lr": run.muon_learning_rate,
        "weight_decay": args.weight_decay,
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
    }
    return lambda: MuonWithAdamW, options
