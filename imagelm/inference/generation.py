"""Generation: new images, images of a class, and completed images.

One idea: transformers' `generate` does the sampling, and a mask built from the grammar allows only tokens that lead to
a complete row. The answer at `<CLS>` is not sampled: the mask keeps only the most probable class, so the class of a
generated row is the model's own prediction for its image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, set_seed

from imagelm.inference.generation_arguments import ClassArguments, GenerationArguments
from imagelm.inference.loading import LoadedModel
from imagelm.inference.scoring import class_probabilities
from imagelm.tokens.grammar import NUM_FRAME_TOKENS, NUM_QUESTION_TOKENS, BadRow, Grammar, Role, Row
from imagelm.tokens.vocabulary import EOS
from imagelm.utils.errors import InputError

FULL = len(Role)  # a row's state is the role of its last token, or FULL once its image is complete


class GrammarMask(LogitsProcessor):
    """Allows only the tokens that may follow: codebook tokens until the image is complete, then the tail.

    It depends on the rows alone, so it works with sampling and with beams. If options against repetition have excluded
    every token that may follow, the grammar takes precedence, and all of these tokens are equally probable.

    `vocab_size` is the width of the logits. With `num_image_tokens` None the model ends the image after one token or
    more, early enough for its tail to fit into `max_length` tokens.
    """

    def __init__(self, grammar: Grammar, vocab_size: int, num_image_tokens: int | None, max_length: int) -> None:
        self.num_image_tokens = num_image_tokens
        self.most = max_length - NUM_FRAME_TOKENS if num_image_tokens is None else num_image_tokens
        self.allowed = torch.zeros(len(Role) + 1, vocab_size, dtype=torch.bool)
        for role in Role:
            self.allowed[role, torch.from_numpy(grammar.followers(role))] = True
        codes = torch.from_numpy(grammar.code_ids)
        self.allowed[FULL] = self.allowed[Role.CODE]
        self.allowed[FULL, codes] = False
        if num_image_tokens is not None:
            self.allowed[Role.CODE] &= ~self.allowed[FULL]
        # A row that has ended gets the end again, until all rows of the batch have ended.
        self.allowed[~self.allowed.any(1), grammar.id(EOS)] = True
        self.state_after = torch.full((vocab_size,), int(Role.OTHER))
        self.state_after[: grammar.size] = torch.from_numpy(grammar.roles[:-1])

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores with all other tokens at minus infinity; shape (rows, vocabulary)."""
        if self.allowed.device != scores.device:
            self.allowed, self.state_after = self.allowed.to(scores.device), self.state_after.to(scores.device)
        states = self.state_after[input_ids]
        state = states[:, -1]
        state = state.where((state != Role.CODE) | ((states == Role.CODE).sum(1) < self.most), FULL)
        allowed = self.allowed[state]
        masked = scores.masked_fill(~allowed, -torch.inf)
        blocked = masked.isneginf().all(-1, keepdim=True)
        masked = torch.where(blocked & allowed, -allowed.sum(-1, keepdim=True).to(scores.dtype).log(), masked)
        best = torch.zeros_like(allowed).scatter(1, masked.argmax(-1, keepdim=True), True)
        return masked.masked_fill((state == Role.CLS)[:, None] & ~best, -torch.inf)


@dataclass
class GeneratedRow:
    """A generated row, and the model's class of its image if the image is complete."""

    ids: np.ndarray  # the whole row, up to `<EOS>` if it has one
    row: Row | None = None  # the same, parsed; None if it isn't in the grammar, which the mask rules out
    label: int | None = None
    probabilities: np.ndarray | None = None  # of all classes

    @property
    def probability(self) -> float | None:
        """Probability of the row's class among the classes; None if the image isn't complete."""
        return None if self.probabilities is None or self.label is None else float(self.probabilities[self.label])


def generate_images(
    loaded: LoadedModel, options: GenerationArguments, classes: ClassArguments, label: int | None, batch_size: int
) -> tuple[list[GeneratedRow], int]:
    """New images, of the class `label` or of any, and how many were generated to get them.

    With rejection there may be fewer than asked for.
    """
    set_seed(options.seed)
    sampling, wanted = options.samples("generate"), classes.num_samples
    if not sampling:
        return generate_rows(loaded, _image_starts(loaded, 1), options, False, wanted), wanted
    if label is None:
        return list(_sample_images(loaded, options, wanted, batch_size)), wanted
    if classes.condition == "likelihood":
        num_generated = wanted * classes.num_candidates
        candidates = [
            (float(image.probabilities[label]), image)
            for image in _sample_images(loaded, options, num_generated, batch_size)
            if image.probabilities is not None
        ]
        return [image for _, image in sorted(candidates, key=lambda pair: -pair[0])[:wanted]], num_generated
    found: list[GeneratedRow] = []
    most, num_generated = wanted * classes.max_draws, 0
    for image in _sample_images(loaded, options, most, batch_size):
        num_generated += 1
        found += [image] if image.label == label else []
        if len(found) == wanted:
            break
    return found, num_generated


def complete_rows(
    loaded: LoadedModel, prompts: Sequence[np.ndarray], options: GenerationArguments, batch_size: int
) -> list[list[GeneratedRow]]:
    """`num_return_sequences` completions of each prompt: ids from `<IMG>` on, of shape (length,) and any length.

    Prompts of equal length form a batch of at most `batch_size` sequences, so nothing is padded.
    """
    set_seed(options.seed)
    sampling, several = options.samples("continue"), options.num_return_sequences
    at_once = max(1, batch_size // max(several, options.num_beams))
    completions: list[list[GeneratedRow]] = [[] for _ in prompts]
    lengths = np.array([len(prompt) for prompt in prompts])
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        for start in range(0, len(rows), at_once):
            chunk = rows[start : start + at_once]
            batch = torch.from_numpy(np.stack([prompts[row] for row in chunk]))
            generated = generate_rows(loaded, batch, options, sampling, several)
            for i, row in enumerate(chunk):
                completions[row] = generated[i * several : (i + 1) * several]
    return completions


def generate_rows(
    loaded: LoadedModel, prompts: Tensor, options: GenerationArguments, sampling: bool, num_sequences: int = 1
) -> list[GeneratedRow]:
    """Continues prompts, ids of shape (prompts, length), until their rows end.

    Gives `num_sequences` rows of the first prompt, then those of the second, and so on, with the classes of complete
    images.
    """
    max_length, grammar = longest_row(loaded, options), loaded.grammar
    processors = LogitsProcessorList()
    if not options.no_grammar:
        width = loaded.model.config.vocab_size
        processors.append(GrammarMask(grammar, width, image_length(loaded, options), max_length))
    prompts = prompts.to(loaded.device)
    if prompts.shape[1] >= max_length:
        generated = prompts.repeat_interleave(num_sequences, 0)
    else:
        try:
            generated = loaded.model.generate(  # type: ignore[operator]  # every causal model has GenerationMixin
                prompts,
                attention_mask=torch.ones_like(prompts),
                generation_config=_generation_config(loaded, options, sampling, num_sequences, max_length),
                logits_processor=processors,
            )
        # Such as beams for an architecture whose state can't be reordered, or probabilities that aren't finite.
        except (ValueError, RuntimeError) as error:
            raise InputError(f"{loaded.name} can't generate with these options: {error}") from error
    rows = [GeneratedRow(ids[: grammar.find(ids, Role.EOS) + 1]) for ids in generated.cpu().numpy()]
    _classify(loaded, rows)
    return rows


def kept_tokens(num_image_tokens: int, keep_percent: float, grid: tuple[int, int] | None) -> int:
    """Number of tokens in the top `keep_percent` of an image: whole rows of its grid if it has one, at least one token.

    The grid is (rows, columns).
    """
    if grid is not None and grid[0] * grid[1] == num_image_tokens and (rows := int(grid[0] * keep_percent / 100)):
        return rows * grid[1]
    return max(1, int(num_image_tokens * keep_percent / 100))


def image_length(loaded: LoadedModel, options: GenerationArguments) -> int | None:
    """Tokens of a generated image; None if the model ends the image itself.

    Raises an InputError if the option contradicts the codec, or such an image doesn't fit into the model.
    """
    length = options.num_image_tokens or loaded.num_image_tokens
    if loaded.num_image_tokens not in (None, length):
        raise InputError(
            f"--num_image_tokens {length}: the model's codec makes images of {loaded.num_image_tokens} tokens; "
            "remove the option"
        )
    positions = loaded.num_positions
    if length is not None and positions is not None and length + NUM_FRAME_TOKENS > positions:
        raise InputError(
            f"an image of {length} tokens and its frame take {length + NUM_FRAME_TOKENS} positions, and the model has "
            f"{positions}; give --num_image_tokens {positions - NUM_FRAME_TOKENS} or fewer"
        )
    return length


def longest_row(loaded: LoadedModel, options: GenerationArguments) -> int:
    """Maximum number of tokens of a generated row; raises an InputError if nothing limits it."""
    length = image_length(loaded, options)
    if loaded.num_positions is not None and (length is None or options.no_grammar):
        return loaded.num_positions
    if length is None:
        raise InputError("this architecture does not limit the length of a row; give --num_image_tokens")
    return length + NUM_FRAME_TOKENS


def _generation_config(
    loaded: LoadedModel, options: GenerationArguments, sampling: bool, num_sequences: int, max_length: int
) -> GenerationConfig:
    # Without a top_k the library would use 50.
    sampling_options = {
        "temperature": 1.0 if options.temperature is None else options.temperature,
        "top_k": options.top_k or 0,
        "top_p": 1.0 if options.top_p is None else options.top_p,
    }
    return GenerationConfig(
        do_sample=sampling,
        num_beams=options.num_beams,
        num_return_sequences=num_sequences,
        repetition_penalty=options.repetition_penalty,
        no_repeat_ngram_size=options.no_repeat_ngram_size,
        max_length=max_length,
        use_cache=True,
        bos_token_id=loaded.tokenizer.bos_token_id,
        eos_token_id=loaded.grammar.id(EOS),
        pad_token_id=loaded.tokenizer.pad_token_id,
        **sampling_options if sampling else {},
    )


def _image_starts(loaded: LoadedModel, count: int) -> Tensor:
    return torch.from_numpy(loaded.grammar.prefix(np.empty(0, np.int64))).repeat(count, 1)


def _sample_images(
    loaded: LoadedModel, options: GenerationArguments, count: int, batch_size: int
) -> Iterator[GeneratedRow]:
    """`count` images, sampled a batch at a time."""
    for start in range(0, count, batch_size):
        prompts = _image_starts(loaded, min(batch_size, count - start))
        yield from generate_rows(loaded, prompts, options, sampling=True)


def _classify(loaded: LoadedModel, generated: list[GeneratedRow]) -> None:
    """Adds the parsed rows and, if the images are complete, their classes."""
    most, complete = loaded.num_positions or np.inf, []
    for one in generated:
        tokens = [loaded.grammar.tokens[i] if i < loaded.grammar.size else "" for i in one.ids]
        try:
            one.row = loaded.grammar.parse(tokens, None, "")
        except BadRow:
            continue
        if one.row.num_tail and len(one.row.body) + NUM_QUESTION_TOKENS <= most:
            complete.append((one, one.row))
    questions = [row.question(loaded.grammar) for _, row in complete]
    shares = class_probabilities(loaded, questions, max(1, len(complete)))
    for (one, row), probabilities in zip(complete, shares, strict=True):
        one.probabilities = probabilities
        # The row's own answer; without the mask it may differ from the most probable one, or be missing.
        one.label = int(probabilities.argmax()) if row.label is None else row.label
