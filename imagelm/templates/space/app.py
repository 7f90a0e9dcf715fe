"""The demo: an image's class, the rest of an image, new images.

Runs as a Space, or on your machine: MODEL_ID=outputs/mine/best_model python imagelm/templates/space/app.py
It needs only the model; the code that turns images into tokens comes with it.
"""

from __future__ import annotations

import os
from pathlib import Path

import gradio as gr
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer, LogitsProcessorList
from transformers.utils import cached_file

MODEL_ID = os.environ.get("MODEL_ID") or Path(__file__).with_name("model_id.txt").read_text().strip()
SHOWN_PIXELS = 224  # side of an image on the page
MAX_IMAGES = 12


def has_codec() -> bool:
    """Whether the model reads pictures, or rows of tokens alone."""
    return cached_file(MODEL_ID, "processor_config.json", _raise_exceptions_for_missing_entries=False) is not None


model = AutoModelForCausalLM.from_pretrained(MODEL_ID).eval()
tokenizer = AutoTokenizer.from_pretrained(MODEL_ID)
processor = AutoProcessor.from_pretrained(MODEL_ID, trust_remote_code=True) if has_codec() else None
vocabulary = tokenizer.get_vocab()
# Without a codec there is no processor; the names of the classes' tokens are all that tells them then.
class_tokens = [token for label in range(len(vocabulary)) if (token := f"<CLS_{label}>") in vocabulary]
class_ids = processor.class_ids if processor else [vocabulary[token] for token in class_tokens]
class_names = [model.config.id2label.get(label, str(label)) for label in range(len(class_ids))]


@torch.inference_mode()
def class_probabilities(input_ids: torch.Tensor) -> dict[str, float]:
    """Probabilities among the classes, of a row that ends at `<CLS>`."""
    logits = model(input_ids=input_ids).logits[0, -1, class_ids].float()
    return dict(zip(class_names, logits.softmax(-1).tolist(), strict=True))


class OnlyCodes:
    """Leaves only codebook tokens, so that what is drawn is an image."""

    def __init__(self) -> None:
        self.forbidden = torch.ones(model.config.vocab_size, dtype=torch.bool)
        self.forbidden[torch.as_tensor(processor.code_ids)] = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.masked_fill(self.forbidden, -torch.inf)


@torch.inference_mode()
def draw(prompt: torch.Tensor, count: int, temperature: float, seed: int) -> list[Image.Image]:
    """`count` images that begin with the prompt; its ids, shape (1, 1 + known tokens)."""
    torch.manual_seed(int(seed))
    missing = processor.codec.num_tokens + 1 - prompt.shape[1]
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
    """An image as it can be looked at, without smoothing."""
    factor = max(1, SHOWN_PIXELS // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def classify(image: Image.Image | None) -> tuple[dict[str, float], Image.Image]:
    """The classes of an image, and the image as the model sees it."""
    if image is None:
        raise gr.Error("Choose an image first.")
    rows = processor(images=image)["input_ids"]
    return class_probabilities(rows), enlarged(processor.decode_images(rows)[0])


def complete(image: Image.Image | None, keep: float, count: int, temperature: float, seed: int) -> list[Image.Image]:
    """What the rest of an image may look like, when only its top is given."""
    if image is None:
        raise gr.Error("Choose an image first.")
    rows, columns = processor.codec.grid
    known = round(rows * keep / 100) * columns
    return draw(processor(images=image)["input_ids"][:, : 1 + known], count, temperature, seed)


def new_images(count: int, temperature: float, seed: int) -> list[Image.Image]:
    """Images from nothing."""
    return draw(torch.tensor([processor.layout["before_image"]]), count, temperature, seed)


def classify_tokens(text: str) -> dict[str, float]:
    """The classes of a row of tokens; what follows `<CLS>` is cut off, so that no answer is seen."""
    ids = tokenizer(text.split("<CLS>")[0] + " <CLS>", return_tensors="pt")["input_ids"]
    longest = getattr(model.config, "max_position_embeddings", ids.shape[1])
    if not text.strip() or tokenizer.unk_token_id in ids or ids.shape[1] > longest:
        raise gr.Error(f"Give a row such as <IMG> … </IMG>, of known tokens, {longest} at most.")
    return class_probabilities(ids)


def drawing_options() -> list[gr.components.Component]:
    return [
        gr.Slider(1, MAX_IMAGES, value=4, step=1, label="Images"),
        gr.Slider(0.1, 2.0, value=1.0, step=0.1, label="Temperature"),
        gr.Number(value=0, precision=0, label="Seed"),
    ]


def page() -> gr.Blocks:
    """The page; without a codec it takes rows of tokens."""
    with gr.Blocks(title=MODEL_ID) as demo:
        gr.Markdown(
            f"# {MODEL_ID.rstrip('/').split('/')[-1]}\nA language model that reads images as sentences, and draws them."
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
                keep = gr.Slider(0, 100, value=50, step=5, label="Given: the top, in %")
                options = drawing_options()
                button = gr.Button("Complete", variant="primary")
            button.click(complete, [image, keep, *options], gr.Gallery(label="Completions", columns=4))
        with gr.Tab("Draw"), gr.Row():
            with gr.Column():
                options = drawing_options()
                button = gr.Button("Draw", variant="primary")
            button.click(new_images, options, gr.Gallery(label="Drawn", columns=4))
    return demo


if __name__ == "__main__":
    page().launch()
