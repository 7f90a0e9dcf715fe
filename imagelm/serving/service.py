"""The tasks behind the endpoints: requests become rows, batches of rows become records.

One idea: nothing is computed here. `imagelm.inference.tasks` answers, as for the command; this file says which requests
can share a call, and gives each one its part of the records.
"""

from __future__ import annotations

import base64
import io
import secrets
from collections.abc import Hashable, Sequence
from dataclasses import fields, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagelm.data.sources.decode import BadImage, read_image
from imagelm.inference import tasks
from imagelm.inference.generation import longest_row
from imagelm.inference.generation_arguments import ClassArguments, GenerationArguments, check_samples
from imagelm.inference.inputs import InputRows, check_rows, encode_pixels, require_codec
from imagelm.inference.loading import LoadedModel
from imagelm.inference.results import decode_bodies
from imagelm.remote_code.pixels_imagelm import image_formats
from imagelm.serving.batching import Job
from imagelm.serving.schemas import Classify, Complete, Generate, ImageInput, Score, SystemOne, TokenInput
from imagelm.tokens.grammar import BadRow, Row
from imagelm.utils.command_line import MAX_SEED
from imagelm.utils.errors import InputError
from imagelm.utils.text import list_first

MAX_SEQUENCES = 16  # generated for each row that a request may ask for: candidates, draws that are rejected, beams
MAX_TOKENS = 4096  # of an image, where neither codec nor positions limit it
Records = list[dict[str, Any]]


class Service:
    """The tasks of a loaded model, for requests of `imagelm.serving.schemas`.

    Args:
        loaded: The model.
        batch_size: Sequences that are computed at once.
        max_rows: Rows, images or samples of one request.
        max_pixels: Pixels of one image.
    """

    def __init__(self, loaded: LoadedModel, batch_size: int, max_rows: int, max_pixels: float) -> None:
        self.loaded, self.batch_size, self.max_rows, self.max_pixels = loaded, batch_size, max_rows, max_pixels

    def read(self, request: Any) -> tuple[Hashable, int, Sequence[Row | np.ndarray]]:
        """The key, number of rows and rows of a job; `request` then no longer holds the inputs.

        Images are decoded here, in the caller's thread.

        Raises:
            InputError: The request is understood, but this model can't answer it; says where and why.
        """
        if isinstance(request, Generate):
            return self._generation_key(request), request.num_samples, ()
        if isinstance(request, SystemOne):
            return ("classify", False), 1, [self._state(request)]
        if len(request.inputs) > self.max_rows:
            raise InputError(
                f"inputs: {len(request.inputs)} are given, the service takes up to {self.max_rows} at once"
            )
        key: Hashable = ("score",)
        if isinstance(request, Classify):
            key = ("classify", request.score)
        elif isinstance(request, Complete):
            key = self._generation_key(request)
        rows, problems = [], []
        for i, given in enumerate(request.inputs):
            try:
                rows.append(self._row(given, f"inputs[{i}]"))
            except (BadRow, ValueError) as error:
                problems.append(str(error) if isinstance(error, InputError) else f"inputs[{i}]: {error}")
        if problems:
            raise InputError(problems[0] if len(problems) == 1 else "\n".join(["bad inputs:", *list_first(problems)]))
        completes, whole = isinstance(request, Complete), [row for row in rows if isinstance(row, Row)]
        check_rows(whole, "continue" if completes else "classify", self.loaded, cut=completes)
        request.inputs = []
        return key, len(rows) * (request.num_return_sequences if completes else 1), rows

    def compute(self, jobs: Sequence[Job]) -> list[Records]:
        """The records of each job; all have the same key."""
        request = jobs[0].request
        if isinstance(request, Generate):
            return self._generate(jobs)
        rows = self._encoded(jobs)
        if isinstance(request, Classify | SystemOne):
            tops = [getattr(job.request, "top", self.loaded.grammar.num_classes) for job in jobs]
            score = isinstance(request, Classify) and request.score
            records = tasks.classify(self.loaded, rows, max(tops), score, self.batch_size).records
            shares = _split(records, [len(job.rows) for job in jobs])
            for top, share in zip(tops, shares, strict=True):
                for record in share:
                    record["top"] = record["top"][:top]
            return shares
        if isinstance(request, Score):
            likelihoods = tasks.likelihoods(self.loaded, rows, self.batch_size)
            texts = (self.loaded.text(row.question(self.loaded.grammar)) for row in rows)
            records = [
                {"place": row.place, "tokens": text, **scores}
                for row, text, scores in zip(rows, texts, likelihoods, strict=True)
            ]
            return _split(records, [len(job.rows) for job in jobs])
        options = _options(GenerationArguments, request)
        records = tasks.complete(self.loaded, InputRows(rows), options, self.batch_size, 0).records
        several = options.num_return_sequences
        return self._with_images(jobs, _split(records, [len(job.rows) * several for job in jobs]))

    def content(self, request: Any, records: Records) -> dict[str, Any]:
        """The whole answer to a request, from its records."""
        if not isinstance(request, SystemOne):
            return {"results": records}
        (record,) = records
        shares = {entry["label"]: entry["probability"] for entry in record["top"]}
        even = 1 / len(shares)
        answer = {
            "type": "choice",
            "choice": record["class"],
            "confidence": 1.0 if even == 1 else max(0.0, (record["probability"] - even) / (1 - even)),
            "probabilities": {self.loaded.class_name(label): shares[label] for label in sorted(shares)},
        }
        num_tokens = len(record["tokens"].split()) * len(request.questions)
        return {
            "model": request.model or Path(self.loaded.name).name,
            "answers": dict.fromkeys(request.questions, answer),
            "usage": {"input_tokens": num_tokens, "output_tokens": 0},
        }

    def _state(self, request: SystemOne) -> Row:
        """The row of a decision; a question that doesn't name all classes in their order would get another's answer."""
        classes = [self.loaded.class_name(label) for label in range(self.loaded.grammar.num_classes)]
        for name, question in request.questions.items():
            if list(question.criteria) != classes:
                raise InputError(
                    f"questions[{name!r}]: the criteria aren't the model's classes {classes}, in this order"
                )
        try:
            row = self.loaded.grammar.parse(request.state.split(), None, "state")
        except BadRow as error:
            raise InputError(f"state: {error}") from error
        check_rows([row], "classify", self.loaded)
        if row.num_tail not in (1, 2):
            raise InputError("state: the row doesn't end with </IMG> or <CLS>; give it whole, without an answer")
        return row

    def _generate(self, jobs: Sequence[Job]) -> list[Records]:
        request = jobs[0].request
        counts = [job.num_rows for job in jobs]
        classes = replace(_options(ClassArguments, request), num_samples=sum(counts))
        options = _options(GenerationArguments, request)
        records = tasks.generate(self.loaded, options, classes, self.batch_size).records
        # Rejection may find fewer images than asked for; such a request is alone.
        shares = _split(records, counts) if len(jobs) > 1 else [records]
        for share in shares:
            for sample, record in enumerate(share, start=1):
                record["sample"] = sample
        return self._with_images(jobs, shares)

    def _row(self, given: TokenInput | ImageInput, place: str) -> Row | np.ndarray:
        """The row, or an image's pixels in the codec's format, which are encoded with those of the whole batch."""
        if isinstance(given, TokenInput):
            tokens = given.tokens.split() if isinstance(given.tokens, str) else given.tokens
            return self.loaded.grammar.parse(tokens, None, place)
        codec = require_codec(self.loaded, "an image")
        data = base64.b64decode(given.image)
        try:
            with Image.open(io.BytesIO(data), formats=image_formats()) as image:
                num_pixels = image.width * image.height
        except Exception:  # reported below, with the reason
            num_pixels = 0
        if num_pixels > self.max_pixels:
            raise InputError(
                f"{place}: the image has {num_pixels / 1e6:.1f} million pixels, the service reads up to "
                f"{self.max_pixels / 1e6:g} million; shrink it"
            )
        found = read_image(io.BytesIO(data))
        if isinstance(found, BadImage):
            raise InputError(f"{place}: {found.reason}")
        return codec.pixels(found)

    def _encoded(self, jobs: Sequence[Job]) -> list[Row]:
        """The rows of all jobs, one after the other; all images are encoded at once."""
        given = [(f"inputs[{i}]", row) for job in jobs for i, row in enumerate(job.rows)]
        pixels = [row for _, row in given if not isinstance(row, Row)]
        bodies = iter(encode_pixels(pixels, require_codec(self.loaded, "an image"), self.loaded) if pixels else ())
        return [row if isinstance(row, Row) else Row(next(bodies), 0, None, place) for place, row in given]

    def _generation_key(self, request: Any) -> tuple:
        """Equal for requests that one call can answer: those with the same options, and without a seed and a class."""
        options, generates = _options(GenerationArguments, request), isinstance(request, Generate)
        if request.images:
            require_codec(self.loaded, "images", decodes=True)
        longest_row(self.loaded, options)  # refuses contradicting options
        if self.loaded.num_positions is None and (options.num_image_tokens or 0) > MAX_TOKENS:
            raise InputError(f"num_image_tokens {options.num_image_tokens}: the service allows up to {MAX_TOKENS}")
        several = request.num_samples if generates else len(request.inputs) * options.num_return_sequences
        if several > self.max_rows:
            raise InputError(f"{several} samples are asked for, the service makes up to {self.max_rows} at once")
        samples, alone = options.samples("generate" if generates else "continue"), False
        num_sequences = several * options.num_beams
        if generates:
            classes = _options(ClassArguments, request)
            check_samples("generate", options, classes)
            if classes.class_name is not None:
                self.loaded.require_label(classes.class_name)
                num_sequences *= classes.max_draws if classes.condition == "rejection" else classes.num_candidates
            alone = classes.class_name is not None or not samples
        else:
            check_samples("continue", options, ClassArguments())
        if num_sequences > MAX_SEQUENCES * self.max_rows:
            raise InputError(
                f"up to {num_sequences} sequences would be generated, the service allows "
                f"{MAX_SEQUENCES * self.max_rows}; lower num_samples, num_beams, max_draws or num_candidates"
            )
        if alone or (samples and request.seed is not None):
            return (object(),)
        shared = request.model_dump(exclude={"inputs", "seed", "num_samples", "images"})
        return (type(request).__name__, *shared.values())

    def _with_images(self, jobs: Sequence[Job], shares: list[Records]) -> list[Records]:
        """Adds the PNG of each complete image where a request asks for them."""
        for job, share in zip(jobs, shares, strict=True):
            for record in share if job.request.images else ():
                row = _parse(self.loaded, record["tokens"])
                codec = require_codec(self.loaded, "images", decodes=True)
                if row is not None and len(row.body) == codec.num_tokens:
                    record["image"] = _png(decode_bodies(self.loaded, codec, [row.body])[0])
        return shares


def _options(cls: type, request: Any) -> Any:
    """The options of the command that a request stands for; a request without a seed gets one of its own."""
    names = {entry.name for entry in fields(cls)} & set(type(request).model_fields)
    values = {name: getattr(request, name) for name in names}
    if values.get("seed", 0) is None:
        values["seed"] = secrets.randbelow(MAX_SEED)
    return cls(**values)


def _split(records: Records, counts: Sequence[int]) -> list[Records]:
    ends = list(accumulate(counts))
    return [records[end - count : end] for end, count in zip(ends, counts, strict=True)]


def _parse(loaded: LoadedModel, text: str) -> Row | None:
    try:
        return loaded.grammar.parse(text.split(), None, "")
    except BadRow:  # without the grammar's mask
        return None


def _png(pixels: np.ndarray) -> str:
    """A PNG in base64, of uint8 of shape (height, width, channels)."""
    stream = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()
