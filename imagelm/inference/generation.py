"""GeneratedRow: new images, images of a class, and the rest of images.

One idea: transformers' `generate` draws, and a mask built from the grammar leaves only tokens from which a whole row
can come. The answer at `<CLS>` isn't drawn: of the classes the most probable stays, so a drawn row says what the model
itself would say of its image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, set_seed

from imagelm.inference.arguments import ClassArguments, GenerationArguments
from imagelm.inference.loading import LoadedModel
from imagelm.inference.scoring import class_probabilities
from imagelm.tokens.grammar import CLS, EOS, IMG, IMG_END, NUM_FRAME_TOKENS, Grammar
from imagelm.tokens.row import NUM_QUESTION_TOKENS, BadRow, Row, parse_row
from imagelm.utils.errors import InputError

# What the next token may be, by what the row holds so far.
EMPTY, INSIDE, FULL, CLOSED, ASKED, ANSWERED = range(6)


class GrammarMask(LogitsProcessor):
    """Leaves only the tokens that may follow: codebook tokens until the image is full, then the tail.

    It looks at nothing but the rows, so it serves sampling and beams alike. Where options against repetition have
    forbidden every token that may follow, the grammar wins, and all of these are equally probable.

    Args:
        grammar: The model's.
        vocab_size: Width of the logits.
        num_image_tokens: Tokens of an image; None lets the model end it after one token or more.
        max_length: Longest row; an image is ended in time for its tail to fit.
    """

    def __init__(self, grammar: Grammar, vocab_size: int, num_image_tokens: int | None, max_length: int) -> None:
        self.num_image_tokens = num_image_tokens
        self.most = max_length - NUM_FRAME_TOKENS if num_image_tokens is None else num_image_tokens
        codes, end, eos = grammar.code_ids, grammar.id(IMG_END), grammar.id(EOS)
        followers = {
            EMPTY: codes,
            INSIDE: [*codes, end] if num_image_tokens is None else codes,
            FULL: [end],
            CLOSED: [grammar.id(CLS)],
            ASKED: grammar.class_ids,
            ANSWERED: [eos],  # and after it again, until all rows of the batch have ended
        }
        self.allowed = torch.zeros(len(followers), vocab_size, dtype=torch.bool)
        for state, ids in followers.items():
            self.allowed[state, torch.as_tensor(np.array(ids))] = True
        self.state_after = torch.full((vocab_size,), EMPTY)
        self.state_after[torch.from_numpy(grammar.code_ids)] = INSIDE
        self.state_after[torch.from_numpy(grammar.class_ids)] = ANSWERED
        for token, state in ((IMG_END, CLOSED), (CLS, ASKED), (EOS, ANSWERED)):
            self.state_after[grammar.id(token)] = state

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores with everything else at minus infinity; shape (rows, vocabulary)."""
        if self.allowed.device != scores.device:
            self.allowed, self.state_after = self.allowed.to(scores.device), self.state_after.to(scores.device)
        states = self.state_after[input_ids]
        state = states[:, -1]
        state = state.where((state != INSIDE) | ((states == INSIDE).sum(1) < self.most), FULL)
        allowed = self.allowed[state]
        masked = scores.masked_fill(~allowed, -torch.inf)
        blocked = masked.isneginf().all(-1, keepdim=True)
        masked = torch.where(blocked & allowed, -allowed.sum(-1, keepdim=True).to(scores.dtype).log(), masked)
        best = torch.zeros_like(allowed).scatter(1, masked.argmax(-1, keepdim=True), True)
        return masked.masked_fill((state == ASKED)[:, None] & ~best, -torch.inf)


@dataclass
class GeneratedRow:
    """A drawn row.

    Attributes:
        ids: All of it, up to `<EOS>` where it has one.
        row: The same in the grammar; None where it isn't in it (only without the grammar mask).
        label: The model's class of the image; None where the image isn't whole.
        probability: Of this class among the classes; None where there is none.
        probabilities: Of all classes; None where there are none.
    """

    ids: np.ndarray
    row: Row | None = None
    label: int | None = None
    probability: float | None = None
    probabilities: np.ndarray | None = None


def draw(
    loaded: LoadedModel, prompts: Tensor, options: GenerationArguments, sampling: bool, num_sequences: int = 1
) -> list[GeneratedRow]:
    """Continues prompts of one length until their rows end.

    Args:
        loaded: The model.
        prompts: Ids, shape (prompts, length).
        options: How to draw.
        sampling: Whether to sample.
        num_sequences: Continuations of each prompt.

    Returns:
        The continuations of the first prompt, then those of the second, and so on, with the classes of whole images.
    """
    max_length, grammar = longest_row(loaded, options), loaded.grammar
    processors = LogitsProcessorList()
    if not options.no_grammar:
        width = loaded.model.config.vocab_size
        processors.append(GrammarMask(grammar, width, image_length(loaded, options), max_length))
    prompts = prompts.to(loaded.device)
    if prompts.shape[1] >= max_length:
        drawn = prompts.repeat_interleave(num_sequences, 0)
    else:
        try:
            drawn = loaded.model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                generation_config=_generation_config(loaded, options, sampling, num_sequences, max_length),
                logits_processor=processors,
            )
        # Such as beams for an architecture whose state can't be reordered, or probabilities that aren't finite.
        except (ValueError, RuntimeError) as error:
            raise InputError(f"{loaded.name} can't draw with these options: {error}") from error
    return _classified(loaded, [GeneratedRow(_until_end(ids, grammar)) for ids in drawn.cpu().numpy()])


def generate_images(
    loaded: LoadedModel, options: GenerationArguments, classes: ClassArguments, label: int | None, batch_size: int
) -> tuple[list[GeneratedRow], int]:
    """New images.

    Args:
        loaded: The model.
        options: How to draw.
        classes: How many, and how to come by those of a class.
        label: Draw this class; None draws any.
        batch_size: Images drawn at once.

    Returns:
        The images, and how many were drawn for them. With rejection there may be fewer than asked for.
    """
    set_seed(options.seed)
    sampling, wanted = options.samples("generate"), classes.num_samples
    if not sampling:
        return draw(loaded, _begin(loaded, 1), options, False, wanted), wanted
    if label is None:
        return list(_stream(loaded, options, wanted, batch_size)), wanted
    if classes.condition == "likelihood":
        num_draws = wanted * classes.num_candidates
        candidates = [d for d in _stream(loaded, options, num_draws, batch_size) if d.probabilities is not None]
        return sorted(candidates, key=lambda d: -d.probabilities[label])[:wanted], num_draws
    found: list[GeneratedRow] = []
    most, num_draws = wanted * classes.max_draws, 0
    for drawing in _stream(loaded, options, most, batch_size):
        num_draws += 1
        found += [drawing] if drawing.label == label else []
        if len(found) == wanted:
            break
    return found, num_draws


def continue_rows(
    loaded: LoadedModel, prompts: Sequence[np.ndarray], options: GenerationArguments, batch_size: int
) -> list[list[GeneratedRow]]:
    """Continuations of prompts of any lengths; those of equal length are drawn together, so nothing is padded.

    Args:
        loaded: The model.
        prompts: Ids that begin with `<IMG>`; each of shape (length,).
        options: How to draw.
        batch_size: Sequences drawn at once.

    Returns:
        For each prompt its continuations, `num_return_sequences` many.
    """
    set_seed(options.seed)
    sampling, several = options.samples("continue"), options.num_return_sequences
    at_once = max(1, batch_size // max(several, options.num_beams))
    drawn: list[list[GeneratedRow]] = [[] for _ in prompts]
    lengths = np.array([len(prompt) for prompt in prompts])
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        for start in range(0, len(rows), at_once):
            chunk = rows[start : start + at_once]
            batch = torch.from_numpy(np.stack([prompts[row] for row in chunk]))
            drawings = draw(loaded, batch, options, sampling, several)
            for i, row in enumerate(chunk):
                drawn[row] = drawings[i * several : (i + 1) * several]
    return drawn


def kept_tokens(num_image_tokens: int, keep_percent: float, grid: tuple[int, int] | None) -> int:
    """How many tokens the top `keep_percent` of an image has: whole rows of its grid, but one token at least.

    Args:
        num_image_tokens: Tokens of the whole image.
        keep_percent: Above 0, up to 100.
        grid: Rows and columns of tokens; None counts tokens alone.
    """
    if grid is not None and grid[0] * grid[1] == num_image_tokens and (rows := int(grid[0] * keep_percent / 100)):
        return rows * grid[1]
    return max(1, int(num_image_tokens * keep_percent / 100))


def image_length(loaded: LoadedModel, options: GenerationArguments) -> int | None:
    """Tokens of a drawn image; None where the model ends it itself.

    Raises:
        InputError: The option contradicts the codec, or such an image doesn't fit into the model.
    """
    length = options.num_image_tokens or loaded.num_image_tokens
    if loaded.num_image_tokens not in (None, length):
        raise InputError(
            f"--num_image_tokens {length}: the model's codec makes images of {loaded.num_image_tokens} tokens; "
            "leave the option out"
        )
    positions = loaded.num_positions
    if length is not None and positions is not None and length + NUM_FRAME_TOKENS > positions:
        raise InputError(
            f"an image of {length} tokens and its frame take {length + NUM_FRAME_TOKENS} positions, and the model has "
            f"{positions}; give --num_image_tokens {positions - NUM_FRAME_TOKENS} or fewer"
        )
    return length


def longest_row(loaded: LoadedModel, options: GenerationArguments) -> int:
    """Most tokens a drawn row can have.

    Raises:
        InputError: Nothing says it.
    """
    length = image_length(loaded, options)
    if length is not None and not options.no_grammar:
        return length + NUM_FRAME_TOKENS
    if loaded.num_positions is not None:
        return loaded.num_positions
    if length is None:
        raise InputError("this architecture sets no longest row; give --num_image_tokens")
    return length + NUM_FRAME_TOKENS


def _generation_config(
    loaded: LoadedModel, options: GenerationArguments, sampling: bool, num_sequences: int, max_length: int
) -> GenerationConfig:
    # The library would take 50 for a top_k that isn't named.
    warpers = {
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
        **warpers if sampling else {},
    )


def _begin(loaded: LoadedModel, count: int) -> Tensor:
    return torch.full((count, 1), loaded.grammar.id(IMG))


def _stream(loaded: LoadedModel, options: GenerationArguments, count: int, batch_size: int) -> Iterator[GeneratedRow]:
    """`count` images, drawn a batch at a time."""
    for start in range(0, count, batch_size):
        yield from draw(loaded, _begin(loaded, min(batch_size, count - start)), options, sampling=True)


def _until_end(ids: np.ndarray, grammar: Grammar) -> np.ndarray:
    ends = np.flatnonzero(ids == grammar.id(EOS))
    return ids[: ends[0] + 1] if ends.size else ids


def _classified(loaded: LoadedModel, drawings: list[GeneratedRow]) -> list[GeneratedRow]:
    """The drawings with their rows and, where the images are whole, their classes."""
    for drawing in drawings:
        tokens = [loaded.grammar.tokens[i] if i < loaded.grammar.size else "" for i in drawing.ids]
        try:
            drawing.row = parse_row(tokens, None, "", loaded.grammar)
        except BadRow:
            continue
    most = loaded.num_positions or np.inf
    whole = [d for d in drawings if d.row and d.row.num_tail and len(d.row.body) + NUM_QUESTION_TOKENS <= most]
    questions = [drawing.row.question(loaded.grammar) for drawing in whole]
    for drawing, probabilities in zip(whole, class_probabilities(loaded, questions, max(1, len(whole))), strict=True):
        drawing.probabilities = probabilities
        # The row's own answer; without the mask it may be another than the most probable one, or be missing.
        drawing.label = int(probabilities.argmax()) if drawing.row.label is None else drawing.row.label
        drawing.probability = float(probabilities[drawing.label])
    return drawings
