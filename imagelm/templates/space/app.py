"""A demo that reads what you draw, completes it and draws new images.

Runs as a Space, or on your machine: MODEL_ID=outputs/mine/best_model python imagelm/templates/space/app.py
`model.py` answers, `pictures.py` reads pictures, `parts.py` shows them; this file is the page.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from huggingface_hub.constants import ENDPOINT
from model import (
    BEFORE,
    MAX_DRAWS,
    MODEL_ID,
    class_ids,
    class_names,
    class_probabilities,
    draw,
    model,
    paper,
    processor,
    published_datasets,
    published_results,
    sample,
    surprise,
    tokenizer,
)
from parts import BARS, HEAT, drawings, entry_colours, figures, grid, heat_colours, html, pixels, sheet
from pictures import UserError, data_url, negative, open_picture, picture_of
from PIL import Image

HERE = Path(__file__).parent
MAX_IMAGES = 12
MAX_SEED = 2**31 - 1
NUM_EXAMPLES = 6
ANY = "any class"
WELCOME = "Draw on the sheet, upload a picture or press one of the images below the sheet."
HONEST = "The model always answers with one of its classes, also for a picture of something else."
codec: Any = processor.codec if processor else None
can_draw = codec is not None and codec.can_decode
colours: Any = entry_colours(codec) if codec else None
most_bits = math.log2(len(processor.code_ids) if processor else max(2, model.config.vocab_size - len(class_ids) - 6))


def read_file(file: str) -> tuple[str, str]:
    """An uploaded file as a picture as large as the model's images, so that nothing is resized twice; and a hint."""
    image = open_picture(file)
    try:
        array = codec.pixels(image)
    except ValueError as error:  # pixels whose white isn't known
        raise UserError(f"This picture can't be used: {error}.") from error
    picture = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    scores = [sum(surprise(processor(images=one)["input_ids"])) for one in (picture, negative(picture))]
    hint = "The model finds the negative of this picture more likely: try *Invert*." if scores[1] < scores[0] else ""
    return data_url(picture), hint


def invert(picture: str) -> tuple[str, str]:
    """The negative of a picture, and no hint."""
    return data_url(negative(picture_of(picture))), ""


def classify(picture: str) -> tuple[dict[str, Any], str]:
    """The classes of a picture with their probabilities, best first, and how the model reads it."""
    row = processor(images=picture_of(picture))["input_ids"]
    return answer(row), reading(row)


def answer(row: torch.Tensor) -> dict[str, Any]:
    pairs = zip(class_names, class_probabilities(row)[0].tolist(), strict=True)
    best = [{"label": name, "confidence": share} for name, share in sorted(pairs, key=lambda pair: -pair[1])]
    return {"label": best[0]["label"], "confidences": best}


def reading(row: torch.Tensor) -> str:
    """A row as pictures: decoded, as numbered tokens, and how surprising each token was."""
    start, stop = len(BEFORE), len(BEFORE) + codec.num_tokens
    bits = surprise(row)[start - 1 : stop - 1]
    entry_of_id = {int(i): entry for entry, i in enumerate(processor.code_ids)}
    entries = [entry_of_id[i] for i in row[0, start:stop].tolist()]
    names = tokenizer.convert_ids_to_tokens(row[0, start:stop].tolist())
    hints = [f"{name}: {bit:.1f} bits, probability {percent(2**-bit)}" for name, bit in zip(names, bits, strict=True)]
    tokens = grid(list(map(str, entries)), colours[entries], hints, codec.grid[1])
    parts = [("As the model sees it", pixels(processor.decode_images(row)[0]))] if can_draw else []
    return figures(*parts, (f"Its {len(entries)} tokens", tokens), heat_map(bits, hints, codec.grid[1]))


def heat_map(bits: list[float], hints: list[str], num_columns: int) -> tuple[str, str]:
    stops = ",".join(f"rgb({red},{green},{blue})" for red, green, blue in HEAT)
    scale = f'<span class="heat" style="background:linear-gradient(90deg,{stops})"></span>'
    caption = (
        f"Bits of each token: expected {scale} surprising ({most_bits:.0f} and above). "
        f"{sum(bits) / len(bits):.2f} bits a token on average."
    )
    return caption, grid([f"{bit:.1f}" for bit in bits], heat_colours(bits, most_bits), hints, num_columns)


def classify_tokens(text: str) -> tuple[dict[str, Any], str]:
    """The class probabilities of a row of tokens, cut after `<CLS>` so that the model doesn't see the answer."""
    ids = tokenizer(f"{text.split(tokenizer.cls_token)[0]} {tokenizer.cls_token}", return_tensors="pt")["input_ids"]
    longest = getattr(model.config, "max_position_embeddings", ids.shape[1])
    if not text.strip() or tokenizer.unk_token_id in ids or ids.shape[1] > longest:
        raise UserError(f"Enter a row such as <IMG> … </IMG>, with known tokens, at most {longest}.")
    bits = surprise(ids)[:-1]
    hints = tokenizer.convert_ids_to_tokens(ids[0, 1:-1].tolist())
    return answer(ids), figures(heat_map(bits, hints, min(8, len(bits)))) if bits else ""


def kept(picture: str, keep: int) -> str:
    """The part of a picture that is given for its completion."""
    if not picture:
        return WELCOME
    row = processor(images=picture_of(picture))["input_ids"]
    hidden = codec.grid[0] - int(keep)
    caption = f"Given: the first {int(keep)} of {codec.grid[0]} rows. The model draws the striped part."
    return figures((caption, pixels(processor.decode_images(row)[0], hidden, codec.grid[0])))


def complete(
    picture: str, keep: int, count: int, temperature: float, seed: int | None, renew: bool
) -> tuple[list[dict[str, str]], int, str]:
    """Completions of a picture of which only the first rows are given."""
    row = processor(images=picture_of(picture))["input_ids"]
    seed = next_seed(seed, renew)
    torch.manual_seed(seed)
    rows, shares = sample(row[:, : len(BEFORE) + int(keep) * codec.grid[1]], int(count), float(temperature))
    return gallery(list(zip(rows, shares, strict=True))), seed, f"Seed {seed}."


def new_images(
    name: str, count: int, temperature: float, seed: int | None, renew: bool
) -> Iterator[tuple[list[dict[str, str]], int, str]]:
    """New images of a class; the page shows them as they are found."""
    seed = next_seed(seed, renew)
    label = None if name == ANY else class_names.index(name)
    for found, num_drawn in draw(label, int(count), float(temperature), seed):
        note = f"Seed {seed}."
        if label is not None:
            note += f" Kept {len(found)} of {num_drawn} drawings: those that the model itself classifies as {name}."
        if num_drawn >= MAX_DRAWS and len(found) < count:
            note += " It rarely draws this class: press again, or try a higher temperature."
        yield gallery(found), seed, note


def next_seed(seed: int | None, renew: bool) -> int:
    return random.randrange(MAX_SEED) if renew or seed is None else seed


def gallery(found: list) -> list[dict[str, str]]:
    """Images with the model's own answers as captions."""
    images = processor.decode_images([row for row, _ in found]) if found else []
    captions = [f"{class_names[int(shares.argmax())]} · {percent(shares.max(), 0)}" for _, shares in found]
    return [{"picture": data_url(image), "caption": caption} for image, caption in zip(images, captions, strict=True)]


def pick(event: gr.EventData) -> str:
    """The image of a gallery that was pressed."""
    return event.picture


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * float(share):.{digits}f}\u00a0%"


def examples() -> list[dict[str, str]]:
    """Images that the model drew, so that no training image is published: the clearest one of each of some classes."""
    ((found, _),) = draw(None, 4 * NUM_EXAMPLES, 0.8, 0)
    best: dict[int, tuple] = {}
    for row, shares in sorted(found, key=lambda one: -float(one[1].max())):
        best.setdefault(int(shares.argmax()), (row, shares))
    labels = sorted(best)[:NUM_EXAMPLES]
    images = gallery([best[label] for label in labels])
    return [{**image, "caption": class_names[label]} for image, label in zip(images, labels, strict=True)]


def introduction() -> str:
    """What the model is, how good it is by its published figures, and where it comes from."""
    name = MODEL_ID.rstrip("/").split("/")[-1]
    lines = [f"# {name}", "A language model that reads and draws images as sentences of tokens."]
    results = published_results()
    if "eval_cls_accuracy_interval" in results:
        low, high = results["eval_cls_accuracy_interval"]
        others = {"majority class": "majority_accuracy", "bag of tokens": "bag_of_tokens_accuracy"}
        facts = [f"95\u00a0% interval {percent(low)} to {percent(high)}"]
        facts += [f"{other} {percent(results[key])}" for other, key in others.items() if key in results]
        lines.append(
            f"**{percent(results['eval_cls_accuracy'])}** of {results['eval_samples']:,} "
            f"{results.get('split', 'test')} images classified correctly ({'; '.join(facts)})."
        )
    if not Path(MODEL_ID).is_dir():
        page = f"{ENDPOINT}/{MODEL_ID}"
        links = [f"[Model card]({page})", f"[Model files]({page}/tree/main)"]
        links += [f"[Data: {one}]({'/'.join((ENDPOINT, 'datasets', one))})" for one in published_datasets()]
        lines.append(" · ".join(links))
    return "\n\n".join(lines)


def sampling_options() -> list[gr.components.Component]:
    count = gr.Slider(1, MAX_IMAGES, value=6, step=1, precision=0, label="Images")
    with gr.Accordion("Temperature and seed", open=False):
        temperature = gr.Slider(0.1, 2.0, value=1.0, step=0.1, label="Temperature")
        with gr.Row(equal_height=True):
            seed = gr.Number(value=0, precision=0, minimum=0, maximum=MAX_SEED, label="Seed", min_width=120)
            renew = gr.Checkbox(value=True, label="New seed at each press", min_width=120)
    return [count, temperature, seed, renew]


def page() -> gr.Blocks:
    """The page; without a codec it accepts rows of tokens."""
    with gr.Blocks(title=MODEL_ID, fill_width=True, delete_cache=(600, 600)) as demo:  # uploads stay ten minutes
        gr.Markdown(introduction())
        if processor is None:
            text = gr.Textbox(label="Row of tokens", placeholder="<IMG> <Z_012> … </IMG>", lines=4)
            button = gr.Button("Classify", variant="primary")
            button.click(classify_tokens, text, [html(html_template=BARS), html()])
            gr.Markdown(HONEST)
            return demo
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                picture = sheet(codec, paper())
                with gr.Row():
                    upload = gr.UploadButton("Upload a picture", file_types=["image"], size="sm", min_width=100)
                    turn = gr.Button("Invert", size="sm", min_width=100)
                hint = gr.Markdown()
                galleries = [drawings(examples(), elem_id="examples")] if can_draw else []
            with gr.Column(scale=3, min_width=300), gr.Tabs() as tabs:
                results = reading_tab(picture)
                galleries += drawing_tabs(picture) if can_draw else []
        # Progress, and the mark of an error, would lie on the sheet.
        upload.upload(read_file, upload, [picture, hint], show_progress="hidden")
        turn.click(invert, picture, [picture, hint], show_progress="hidden")
        for one in galleries:
            pressed = one.select(pick, None, picture, show_progress="hidden", api_visibility="private")
            pressed = pressed.then(lambda: gr.Tabs(selected="read"), None, tabs, api_visibility="private")
            pressed.then(classify, picture, results, api_visibility="private")
    return demo


def reading_tab(picture: gr.HTML) -> list[gr.components.Component]:
    with gr.Tab("Read", id="read"):
        button = gr.Button("Classify", variant="primary")
        results = [html(html_template=BARS), html(WELCOME)]
        gr.Markdown(HONEST)
    button.click(classify, picture, results)
    return results


def drawing_tabs(picture: gr.HTML) -> list[gr.HTML]:
    # One at a time, also with several visitors: a seed gives the same images only if nobody else draws random numbers.
    alone: dict[str, Any] = {"concurrency_id": "drawing", "concurrency_limit": 1}
    rows = codec.grid[0]
    with gr.Tab("Complete", id="complete") as tab:
        given = html()
        keep = gr.Slider(0, rows, value=rows // 2, step=1, precision=0, label="Rows of tokens that are given")
        options = sampling_options()
        button, note, completed = gr.Button("Complete", variant="primary"), gr.Markdown(), drawings()
    button.click(complete, [picture, keep, *options], [completed, options[2], note], **alone)
    gr.on([keep.change, picture.change, tab.select], kept, [picture, keep], given, show_progress="hidden")
    with gr.Tab("Draw", id="draw"):
        name = gr.Dropdown([ANY, *class_names], value=ANY, label="Class")
        options = sampling_options()
        button, note, drawn = gr.Button("Draw", variant="primary"), gr.Markdown(), drawings()
    button.click(new_images, [name, *options], [drawn, options[2], note], **alone)
    return [completed, drawn]


if __name__ == "__main__":
    page().queue(max_size=64).launch(
        theme=gr.themes.Default(
            primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ),
        css=(HERE / "style.css").read_text(encoding="utf-8"),
        max_file_size="25mb",
    )
