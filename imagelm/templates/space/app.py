"""A demo that classifies images, completes them and generates new ones.

Runs as a Space, or on your machine: MODEL_ID=outputs/mine/best_model python imagelm/templates/space/app.py
It needs only the model, which contains the code that turns images into tokens.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer, LogitsProcessorList
from transformers.utils import has_file

MODEL_ID = os.environ.get("MODEL_ID") or Path(__file__).with_name("model_id.txt").read_text().strip()
SHOWN_PIXELS = 224  # side of an image on the page
MAX_IMAGES = 12

model = AutoModelForCausalLM.from_pretrained(MODEL_ID).eval()
tokenizer = AutoTokenizer.from_pretrained(MODEL_ID)
# Without a codec, and so without a processor, the model accepts only rows of tokens.
has_codec = has_file(MODEL_ID, "processor_config.json")
processor: Any = AutoProcessor.from_pretrained(MODEL_ID, trust_remote_code=True) if has_codec else None
vocabulary = tokenizer.get_vocab()
# Without a processor the classes are known only by the names of their tokens.
class_tokens = [token for label in range(len(vocabulary)) if (token := f"<CLS_{label}>") in vocabulary]
class_ids = processor.class_ids if processor else [vocabulary[token] for token in class_tokens]
BEFORE = len(processor.layout["before_image"]) if processor else 0
# Names are shown without control and zero-width characters; equal ones get their number.
class_names = [
    "".join(c for c in str(model.config.id2label.get(label, label)) if c.isprintable()).strip()
    for label in range(len(class_ids))
]
class_names = [
    name if name and class_names.count(name) == 1 else f"{name} ({label})" for label, name in enumerate(class_names)
]


@torch.inference_mode()
def class_probabilities(input_ids: torch.Tensor) -> dict[str, float]:
    """The class probabilities of a row that ends with `<CLS>`."""
    logits = model(input_ids=input_ids).logits[0, -1, class_ids].float()
    return dict(zip(class_names, logits.softmax(-1).tolist(), strict=True))


class OnlyCodes:
    """Allows only codebook tokens, so that the generated tokens are an image."""

    def __init__(self) -> None:
        self.forbidden = torch.ones(model.config.vocab_size, dtype=torch.bool)
        self.forbidden[torch.as_tensor(processor.code_ids)] = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.masked_fill(self.forbidden, -torch.inf)


@torch.inference_mode()
def generate(prompt: torch.Tensor, count: int, temperature: float, seed: int) -> list[Image.Image]:
    """`count` images that begin with the prompt: ids up to the last known token, shape (1, length)."""
    torch.manual_seed(int(seed))
    missing = BEFORE + processor.codec.num_tokens - prompt.shape[1]
    rows = prompt.repeat(int(count), 1)
    if missing:
        rows = model.generate(
            rows,
            attention_mask=torch.ones_like(rows),
            max_new_tokens=missing,
            min_new_tokens=missing,
            do_sample=True,
            temperature=float(temperature),
            top_k=0,
            logits_processor=LogitsProcessorList([OnlyCodes()]),
        )
    return [enlarged(image) for image in processor.decode_images(rows)]


def enlarged(image: Image.Image) -> Image.Image:
    """An image enlarged for display, without smoothing."""
    factor = max(1, SHOWN_PIXELS // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def classify(image: Image.Image | None) -> tuple[dict[str, float], Image.Image]:
    """The class probabilities of an image, and the image as the model sees it."""
    if image is None:
        raise gr.Error("Choose an image first.")
    rows = processor(images=image)["input_ids"]
    return class_probabilities(rows), enlarged(processor.decode_images(rows)[0])


def complete(image: Image.Image | None, keep: float, count: int, temperature: float, seed: int) -> list[Image.Image]:
    """Completions of an image of which only the top is given."""
    if image is None:
        raise gr.Error("Choose an image first.")
    rows, columns = processor.codec.grid
    known = round(rows * keep / 100) * columns
    return generate(processor(images=image)["input_ids"][:, : BEFORE + known], count, temperature, seed)


def new_images(count: int, temperature: float, seed: int) -> list[Image.Image]:
    """Images generated from `<IMG>` alone."""
    return generate(torch.tensor([processor.layout["before_image"]]), count, temperature, seed)


def classify_tokens(text: str) -> dict[str, float]:
    """The class probabilities of a row of tokens, cut after `<CLS>` so that the model doesn't see the answer."""
    ids = tokenizer(f"{text.split(tokenizer.cls_token)[0]} {tokenizer.cls_token}", return_tensors="pt")["input_ids"]
    longest = getattr(model.config, "max_position_embeddings", ids.shape[1])
    if not text.strip() or tokenizer.unk_token_id in ids or ids.shape[1] > longest:
        raise gr.Error(f"Enter a row such as <IMG> … </IMG>, with known tokens, at most {longest}.")
    return class_probabilities(ids)


def sampling_options() -> list[gr.components.Component]:
    return [
        gr.Slider(1, MAX_IMAGES, value=4, step=1, label="Images"),
        gr.Slider(0.1, 2.0, value=1.0, step=0.1, label="Temperature"),
        gr.Number(value=0, precision=0, label="Seed"),
    ]


def page() -> gr.Blocks:
    """The page; without a codec it accepts rows of tokens."""
    with gr.Blocks(title=MODEL_ID) as demo:
        gr.Markdown(
            f"# {MODEL_ID.rstrip('/').split('/')[-1]}\nA language model that reads and generates images as sentences."
        )
        if processor is None:
            text = gr.Textbox(label="Row of tokens", placeholder="<IMG> <Z_012> … </IMG>", lines=4)
            gr.Button("Classify", variant="primary").click(classify_tokens, text, gr.Label(num_top_classes=5))
            return demo
        with gr.Tab("Classify"), gr.Row():
            with gr.Column():
                image = gr.Image(type="pil", label="Image", height=320)
                button = gr.Button("Classify", variant="primary")
            with gr.Column():
                label, seen = (
                    gr.Label(num_top_classes=5, label="Class"),
                    gr.Image(label="As the model sees it", height=240),
                )
            button.click(classify, image, [label, seen])
        with gr.Tab("Complete"), gr.Row():
            with gr.Column():
                image = gr.Image(type="pil", label="Image", height=320)
                keep = gr.Slider(0, 100, value=50, step=5, label="Top part that is given, in %")
                options = sampling_options()
                button = gr.Button("Complete", variant="primary")
            button.click(complete, [image, keep, *options], gr.Gallery(label="Completions", columns=4))
        with gr.Tab("Generate"), gr.Row():
            with gr.Column():
                options = sampling_options()
                button = gr.Button("Generate", variant="primary")
            button.click(new_images, options, gr.Gallery(label="Samples", columns=4))
    return demo


if __name__ == "__main__":
    page().launch()
