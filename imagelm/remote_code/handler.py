"""Classification on Hugging Face's Inference Endpoints, which load this file from a model's repository.

    {"inputs": "<base64 of an image, or a row of tokens>", "parameters": {"top_k": 3}}

Several inputs are given as a list; an image may also be the body of the request. It needs no package but transformers,
torch, safetensors, numpy and Pillow.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoProcessor


class EndpointHandler:
    """Loads a model with its processor, and answers requests.

    Args:
        path: Folder of the repository.
    """

    def __init__(self, path: str = "") -> None:
        self.processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model: Any = AutoModelForCausalLM.from_pretrained(path)
        self.model = model.to(device).eval()

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """The classes with their probabilities, the most probable first; a list of such lists for a list of inputs.

        Args:
            data: `inputs`: a Pillow image, the base64 of an image file, a row of tokens, or a list of these;
                `parameters`, optional: `top_k`, the number of classes to give (5).

        Raises:
            ValueError: An input is neither an image nor a row of this model.
        """
        inputs, parameters = data["inputs"], data.get("parameters") or {}
        given = inputs if isinstance(inputs, list) else [inputs]
        answers = [self._answer(row, int(parameters.get("top_k", 5))) for row in map(self._row, given)]
        return answers if isinstance(inputs, list) else answers[0]

    def _row(self, given: Any) -> torch.Tensor:
        """The ids of a row up to `<CLS>`; shape (1, length)."""
        if isinstance(given, str) and given.lstrip().startswith("<"):
            known = set(self.processor.code_ids.tolist())
            ids = self.processor.tokenizer.convert_tokens_to_ids(given.split())
            codes = [i for i in ids if i in known]
            if len(codes) != self.processor.codec.num_tokens:
                raise ValueError(
                    f"the row has {len(codes)} codebook tokens of this model, an image has "
                    f"{self.processor.codec.num_tokens}"
                )
            layout = self.processor.layout
            return torch.tensor([[*layout["before_image"], *codes, *layout["after_image"]]])
        if isinstance(given, str):
            try:
                given = base64.b64decode(given, validate=True)  # never an address or the name of a file
            except (binascii.Error, ValueError):
                raise ValueError("the input is neither base64 nor a row of tokens, such as <IMG> <Z_012>") from None
        elif not isinstance(given, Image.Image):
            raise ValueError(f"the input is a {type(given).__name__}; send an image or a row of tokens")
        return self.processor(images=[given])["input_ids"]

    def _answer(self, row: torch.Tensor, top_k: int) -> list[dict[str, Any]]:
        with torch.no_grad():
            logits = self.model(input_ids=row.to(self.model.device)).logits[0, -1]
        scores, labels = logits[self.processor.class_ids].float().softmax(-1).sort(descending=True)
        names = self.processor.class_names
        pairs = list(zip(labels.tolist(), scores.tolist(), strict=True))[:top_k]
        return [{"label": names[label], "score": score} for label, score in pairs]
