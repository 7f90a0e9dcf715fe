"""Images in, classes and images out, for a causal language model over image tokens.

    from transformers import pipeline
    classify = pipeline("image-classification", model="USER/NAME", trust_remote_code=True)
    classify("cat.png")  # [{"label": "cat", "score": 0.93}, …]

`AutoModelForCausalLM` and `AutoTokenizer` don't need this file: it only adds the way from images to tokens and back.
"""

from __future__ import annotations

import base64
import io
import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, BatchFeature, Pipeline, PreTrainedTokenizerBase
from transformers.dynamic_module_utils import custom_object_save
from transformers.processing_utils import ProcessorMixin
from transformers.utils import cached_file

from .codec_imagelm import Codec, load_codec
from .pixels_imagelm import image_formats, image_from_array, peak, range_problem
from .vectors_imagelm import nearest  # noqa: F401 (of a local folder, transformers 4 copies only what is named here)

URL_TIMEOUT = 60.0  # seconds
SHORTEST_IMAGE = 48  # characters of base64: a GIF of one pixel
# From the classes' logits to their scores, by the names of transformers' image-classification pipeline.
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: logits.softmax(-1),
    "sigmoid": torch.sigmoid,
    "none": torch.clone,
}
PROCESSOR_CONFIG = "processor_config.json"
OWN_CLASS = "processing_imagelm.ImageLMProcessor"
# The options of a Hub download that are passed on.
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class ImageLMProcessor(ProcessorMixin):
    """Images ↔ rows of token ids.

    Args:
        tokenizer: The model's tokenizer.
        codec: Images ↔ codebook entries.
        layout: What `processor_config.json` holds: `before_image` and `after_image`, the ids around an image's in a row
            that asks for its class; `code_ids` (by entry), `class_ids` (by label), and `class_names`.
    """

    attributes = ["tokenizer"]  # noqa: RUF012 (transformers 4 reads it so)
    tokenizer_class = "AutoTokenizer"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, codec: Codec, layout: dict[str, Any]) -> None:
        super().__init__(tokenizer)
        if "image_start_id" in layout:  # written by version 0.1
            first, last, cls = (layout.pop(name) for name in ("image_start_id", "image_end_id", "cls_id"))
            layout |= {"before_image": [first], "after_image": [last, cls]}
        self.codec, self.layout = codec, layout
        self.code_ids = np.array(layout["code_ids"])
        self.class_ids, self.class_names = list(layout["class_ids"]), list(layout["class_names"])

    def __call__(self, images: Any, return_tensors: str = "pt") -> BatchFeature:
        """Rows of ids that end at `<CLS>`: the next token is the class.

        Args:
            images: One image or several: Pillow images, files, URLs, base64 text, the bytes of a file, or arrays
                (height, width[, channels]) of uint8, of uint16 in grey, or of floats from 0 to 1.
            return_tensors: "pt" for torch, "np" for numpy.

        Returns:
            `input_ids` and `attention_mask`, int64, shape (images, num_tokens + 3).
        """
        alone = isinstance(images, str | Path | bytes | Image.Image) or getattr(images, "ndim", 0) in (2, 3)
        opened = [open_image(image) for image in ([images] if alone else images)]
        if problem := range_problem(list(map(peak, opened)), self.codec.config["max_value"]):
            warnings.warn(problem, stacklevel=2)
        pixels = list(map(self.codec.pixels, opened))
        codes = self.code_ids[self.codec.encode(np.stack(pixels))]
        before, after = (np.tile(self.layout[name], (len(codes), 1)) for name in ("before_image", "after_image"))
        input_ids = np.concatenate([before, codes, after], axis=1)
        rows = {"input_ids": input_ids, "attention_mask": np.ones_like(input_ids)}
        return BatchFeature(rows, tensor_type=return_tensors)

    def decode_images(self, input_ids: Tensor | np.ndarray | Sequence) -> list[Image.Image]:
        """The images that rows of ids encode.

        Args:
            input_ids: One row or several; each holds one complete image, with or without the tokens around it.

        Raises:
            ValueError: A row has more or fewer codebook tokens than an image.
        """
        entry_of_id = {int(i): entry for entry, i in enumerate(self.code_ids)}
        input_ids = [input_ids] if np.ndim(input_ids[0]) == 0 else input_ids
        rows = [[entry_of_id[i] for i in map(int, row) if i in entry_of_id] for row in input_ids]
        for number, row in enumerate(rows):
            if len(row) != self.codec.num_tokens:
                raise ValueError(f"row {number} has {len(row)} codebook tokens, an image has {self.codec.num_tokens}")
        images = self.codec.decode(np.array(rows))
        return [Image.fromarray(image[..., 0] if image.shape[2] == 1 else image) for image in images]

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **_: Any) -> None:
        """Writes tokenizer, codec, `processor_config.json` and the code."""
        self.tokenizer.save_pretrained(save_directory)
        self.codec.save(save_directory)
        custom_object_save(self, save_directory)
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"
        (Path(save_directory) / PROCESSOR_CONFIG).write_text(text, encoding="utf-8")

    @classmethod
    def from_pretrained(  # type: ignore[override]  # all options go by name
        cls, pretrained_model_name_or_path: str | Path, **options: Any
    ) -> ImageLMProcessor:
        """Loads the processor of a model: a folder, or a model id on the Hub."""
        name = str(pretrained_model_name_or_path)
        hub = {option: options[option] for option in HUB_OPTIONS if options.get(option) is not None}
        layout = json.loads(Path(str(cached_file(name, PROCESSOR_CONFIG, **hub))).read_text(encoding="utf-8"))["layout"]
        return cls(AutoTokenizer.from_pretrained(name, **hub), load_codec(name, **hub), layout)

    def to_dict(self) -> dict[str, Any]:
        """The content of `processor_config.json`; `auto_map` names the class in this file."""
        # `processor_class` is what callers get who don't trust this code, such as the decision pipeline: the tokenizer.
        classes = {"processor_class": "PreTrainedTokenizerFast", "auto_map": {"AutoProcessor": OWN_CLASS}}
        return {**classes, "layout": self.layout}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.codec.describe()}; classes {self.class_names})"


class ImageLMPipeline(Pipeline):
    """`pipe(image)` → the classes with their scores, the best first; options and images as in the stock pipeline.

    Args:
        top_k: How many classes; None for all.
        function_to_apply: "softmax" gives probabilities among all classes, "sigmoid" one for each class by itself,
            "none" the logits.
        timeout: Seconds to wait for an image behind a URL.
    """

    # Pipeline's seams: transformers' own pipelines narrow the signatures in the same way.
    processor: ImageLMProcessor
    _load_processor = True  # type: ignore[assignment]
    _load_tokenizer = _load_image_processor = _load_feature_extractor = False  # type: ignore[assignment]

    def _sanitize_parameters(  # type: ignore[override]
        self, top_k: int | None = 5, function_to_apply: str | None = None, timeout: float | None = None
    ) -> tuple[dict, dict, dict]:
        function = str(getattr(function_to_apply, "value", function_to_apply or "softmax")).lower()
        if function not in FUNCTIONS:
            raise ValueError(
                f"function_to_apply {function_to_apply!r} is unknown; choose one of {', '.join(FUNCTIONS)}"
            )
        return {"timeout": timeout or URL_TIMEOUT}, {}, {"top_k": top_k, "function_to_apply": function}

    def preprocess(self, image: object, timeout: float) -> BatchFeature:  # type: ignore[override]
        return self.processor(images=open_image(image, timeout))

    def _forward(self, model_inputs: BatchFeature) -> dict[str, Tensor]:  # type: ignore[override]
        logits = self.model(input_ids=model_inputs["input_ids"]).logits[:, -1]
        return {"logits": logits[:, self.processor.class_ids].float()}

    def postprocess(  # type: ignore[override]
        self, outputs: dict[str, Tensor], top_k: int | None, function_to_apply: str
    ) -> list[dict]:
        scores, labels = FUNCTIONS[function_to_apply](outputs["logits"][0]).sort(descending=True)
        names = self.processor.class_names
        pairs = list(zip(labels.tolist(), scores.tolist(), strict=True))[:top_k]
        return [{"label": names[label], "score": score} for label, score in pairs]

    def save_pretrained(self, save_directory: str | os.PathLike[Any], **_: Any) -> None:
        """Writes model, processor and code; the folder can be loaded as a pipeline again."""
        self.model.save_pretrained(save_directory)
        self.processor.save_pretrained(Path(save_directory))


def open_image(image: Any, timeout: float = URL_TIMEOUT) -> Image.Image:
    """A Pillow image, from a file, a URL, base64 text, the bytes of a file, an array or a Pillow image."""
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, str):
        image = _content(image, timeout)
    if isinstance(image, str | Path | bytes):
        # Not transformers' load_image, which opens every format and makes transparent pixels black.
        with (
            io.BytesIO(image) if isinstance(image, bytes) else open(image, "rb") as file,
            Image.open(file, formats=image_formats()) as opened,
        ):
            opened.load()
            return opened
    return image_from_array(np.asarray(image))


def _content(text: str, timeout: float) -> str | bytes:
    """What a URL or base64 text holds; any other text is the name of a file, and comes back."""
    if text.startswith(("http://", "https://")):
        request = Request(text, headers={"User-Agent": "Mozilla/5.0"})  # some servers refuse Python's own
        with urlopen(request, timeout=timeout) as response:
            return response.read()
    if text.startswith("data:"):
        return base64.b64decode(text.partition(",")[2])
    if len(text) >= SHORTEST_IMAGE and not os.path.isfile(text):
        try:
            return base64.b64decode("".join(text.split()), validate=True)
        except ValueError:
            pass
    return text
