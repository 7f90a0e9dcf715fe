"""The scores of a model, worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


def scores_by_hand(folder: Path, ids: list[int]) -> dict[str, float]:
    """Softmax over the class tokens' logits after `<CLS>`; the tokens and names from vocabulary and config."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    vocabulary = AutoTokenizer.from_pretrained(folder).get_vocab()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double().numpy()
    names = AutoConfig.from_pretrained(folder).id2label
    powers = {name: np.exp(logits[vocabulary[f"<CLS_{label}>"]]) for label, name in names.items()}
    return {name: power / sum(powers.values()) for name, power in powers.items()}
