"""Generation and the grammar mask, compared with brute force on tiny real models."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from imagelm.inference.generation import GrammarMask, complete_rows, generate_images, kept_tokens
from imagelm.inference.generation_arguments import ClassArguments, GenerationArguments
from imagelm.inference.loading import LoadedModel
from imagelm.inference.scoring import class_probabilities
from imagelm.tokens.grammar import Grammar
from imagelm.tokens.vocabulary import CLS, EOS, IMG, IMG_END, make_vocabulary
from tests.inference.tiny import logits_of, questions_of, random_bodies, tiny


def shuffled(num_codes: int, num_classes: int) -> Grammar:
    tokens = list(make_vocabulary(num_codes, num_classes))
    order = np.random.default_rng(3).permutation(len(tokens))
    return Grammar({token: int(i) for token, i in zip(tokens, order, strict=True)})


@pytest.fixture(scope="module")
def small() -> LoadedModel:
    """3 codes, 2 classes, images of up to 4 tokens."""
    return tiny(shuffled(3, 2), 9)


# The grammar mask


def walk(mask: GrammarMask, grammar: Grammar, favourite: int, longest: int) -> set[tuple[str, ...]]:
    """Every row that the mask lets come into being."""
    rows, open_rows = set(), [[grammar.id(IMG)]]
    while open_rows:
        row = open_rows.pop()
        scores = torch.zeros(1, grammar.size)
        scores[0, favourite] = 1.0
        for i in torch.isfinite(mask(torch.tensor([row]), scores))[0].nonzero()[:, 0].tolist():
            if i == grammar.id(EOS):
                rows.add(tuple(grammar.tokens[i] for i in [*row, i]))
            else:
                assert len(row) < longest
                open_rows.append([*row, i])
    return rows


@pytest.mark.parametrize(("num_image_tokens", "lengths"), [(3, [3]), (1, [1]), (None, [1, 2, 3])])
def test_the_mask_lets_through_exactly_the_rows_of_the_grammar(num_image_tokens, lengths):
    grammar = shuffled(2, 3)
    mask = GrammarMask(grammar, grammar.size, num_image_tokens, max_length=8)
    for label in range(3):
        expected = {
            (IMG, *body, IMG_END, CLS, f"<CLS_{label}>", EOS)
            for length in lengths
            for body in itertools.product(["<Z_000>", "<Z_001>"], repeat=length)
        }
        assert walk(mask, grammar, grammar.class_ids[label], 8) == expected


def test_the_mask_looks_at_each_row_alone_and_a_row_once_ended_stays_ended():
    grammar = shuffled(2, 2)
    words = [
        [IMG, "<Z_001>", "<Z_000>", IMG_END],
        [IMG, "<Z_001>", "<Z_000>", "<Z_000>"],
        [IMG_END, CLS, "<CLS_1>", EOS],
        [IMG, "<Z_000>", IMG_END, CLS],
    ]
    rows = torch.tensor([[grammar.id(token) for token in row] for row in words])
    scores = torch.zeros(4, grammar.size)
    scores[3, grammar.class_ids[1]] = 1
    masked = GrammarMask(grammar, grammar.size, 2, 20)(rows, scores)
    allowed = [[grammar.tokens[i] for i in row.isfinite().nonzero()[:, 0]] for row in masked]
    assert allowed == [[CLS], [IMG_END], [EOS], ["<CLS_1>"]]
    assert (scores == 0).sum() == scores.numel() - 1  # the caller's scores stay as they were


def test_where_repetition_rules_forbid_all_the_grammar_allows_the_grammar_wins():
    grammar = shuffled(2, 2)
    scores = torch.randn(1, grammar.size)
    scores[0, torch.from_numpy(grammar.code_ids)] = -torch.inf
    masked = GrammarMask(grammar, grammar.size, 3, 20)(torch.tensor([[grammar.id(IMG)]]), scores)
    assert masked[0, torch.from_numpy(grammar.code_ids)].exp().tolist() == pytest.approx([0.5, 0.5])
    assert masked.isfinite().sum() == 2


# Generation


@pytest.mark.parametrize(
    "options",
    [
        {"greedy": True},
        {"temperature": 5.0},
        {"top_k": 2, "top_p": 0.3},
        {"num_beams": 3, "num_return_sequences": 3},
        {"num_beams": 3, "num_return_sequences": 2, "do_sample": True, "top_k": 1},
        {"do_sample": True, "no_repeat_ngram_size": 1},
        {"num_beams": 2, "no_repeat_ngram_size": 1, "repetition_penalty": 3.0},
        {"num_image_tokens": 2, "num_return_sequences": 4},
    ],
    ids=str,
)
def test_every_way_of_generating_gives_complete_rows(small, options):
    draw = GenerationArguments(**options)
    first = [small.grammar.id(IMG)]
    prompts = [first, [*first, small.grammar.code_ids[0]], [*first, *small.grammar.code_ids[:2]]]
    generated = complete_rows(small, [np.array(prompt) for prompt in prompts], draw, batch_size=4)
    assert [len(several) for several in generated] == [draw.num_return_sequences] * 3
    for prompt, several in zip(prompts, generated, strict=True):
        for image in several:
            tokens = small.text(image.ids).split()
            assert image.ids[: len(prompt)].tolist() == [int(i) for i in prompt]
            assert small.grammar.explain(tokens, image.label) is None
            assert len(image.row.body) == (draw.num_image_tokens or len(image.row.body))
            assert image.label == image.probabilities.argmax()


def test_greedy_generation_takes_the_most_probable_allowed_token_at_each_step(loaded):
    grammar, row = loaded.grammar, [loaded.grammar.id(IMG)]
    steps = [grammar.code_ids] * 9 + [[grammar.id(IMG_END)], [grammar.id(CLS)], grammar.class_ids, [grammar.id(EOS)]]
    for allowed in steps:
        row.append(int(max(allowed, key=lambda i: logits_of(loaded, row)[-1, i])))
    draw = GenerationArguments(greedy=True, num_image_tokens=9)
    image = complete_rows(loaded, [np.array(row[:1])], draw, 1)[0][0]
    assert image.ids.tolist() == row


def test_beam_search_finds_the_most_probable_image_of_all(small):
    grammar, scores = small.grammar, {}
    for body in itertools.product(grammar.code_ids, repeat=2):
        row = [grammar.id(IMG), *body, grammar.id(IMG_END), grammar.id(CLS)]
        label = grammar.class_ids[int(logits_of(small, row)[-1, grammar.class_ids].argmax())]
        row += [label, grammar.id(EOS)]
        shares = logits_of(small, row).log_softmax(-1)
        scores[tuple(int(i) for i in row)] = sum(shares[i, token].item() for i, token in enumerate(row[1:]))
    expected = sorted(scores, key=scores.get, reverse=True)
    options = GenerationArguments(num_beams=9, num_image_tokens=2)
    generated, _ = generate_images(small, options, ClassArguments(num_samples=4), None, 4)
    assert [tuple(image.ids.tolist()) for image in generated] == expected[:4]


@pytest.mark.parametrize(
    ("options", "num_kept"), [({}, 30), ({"top_k": 3}, 3), ({"temperature": 0.5}, 30), ({"top_p": 1e-6}, 1)]
)
def test_sampling_follows_the_models_probabilities_among_the_allowed_tokens(loaded, options, num_kept):
    codes, count = loaded.grammar.code_ids, 1500
    logits = logits_of(loaded, [loaded.grammar.id(IMG)])[0, codes] / options.get("temperature", 1.0)
    logits[logits < logits.sort(descending=True).values[num_kept - 1]] = -torch.inf
    expected = logits.softmax(-1).numpy()
    draw, classes = GenerationArguments(num_image_tokens=1, **options), ClassArguments(num_samples=count)
    drawn = Counter(int(d.row.body[0]) for d in generate_images(loaded, draw, classes, None, 500)[0])
    shares = np.array([drawn[int(code)] for code in codes]) / count
    assert shares[expected == 0].sum() == 0
    assert np.abs(shares - expected).max() < 4 * np.sqrt(0.25 / count)


def test_by_default_any_token_may_be_sampled():
    many = tiny(shuffled(80, 2), 7, sharpness=0.01)  # nearly flat; the library alone would leave 50
    draw, classes = GenerationArguments(num_image_tokens=1), ClassArguments(num_samples=1500)
    assert len({int(d.row.body[0]) for d in generate_images(many, draw, classes, None, 500)[0]}) == 80


def test_a_seed_gives_the_same_images_again_and_another_seed_others(loaded):
    def bodies(seed: int) -> list[str]:
        draw = GenerationArguments(seed=seed, num_image_tokens=9, temperature=3.0)
        return [loaded.text(d.ids) for d in generate_images(loaded, draw, ClassArguments(num_samples=5), None, 2)[0]]

    assert bodies(1) == bodies(1)
    assert bodies(1) != bodies(2)


def test_prompts_of_any_lengths_are_completed_as_if_each_were_alone(loaded):
    first = loaded.grammar.id(IMG)
    prompts = [np.array([first, *body[:5]]) for body in random_bodies(loaded.grammar, 12)]
    draw = GenerationArguments(greedy=True, num_image_tokens=7)
    together = [several[0].ids.tolist() for several in complete_rows(loaded, prompts, draw, 5)]
    assert together == [complete_rows(loaded, [prompt], draw, 1)[0][0].ids.tolist() for prompt in prompts]


def test_rejection_keeps_the_first_of_the_class_and_counts_the_samples(loaded):
    draw = GenerationArguments(num_image_tokens=4, temperature=3.0)
    everything, _ = generate_images(loaded, draw, ClassArguments(num_samples=64), None, 16)
    label = Counter(image.label for image in everything).most_common()[-1][0]
    hits = [i for i, image in enumerate(everything) if image.label == label]
    wanted = min(len(hits), 3)
    found, num_draws = generate_images(loaded, draw, ClassArguments(num_samples=wanted), label, 16)
    assert [d.ids.tolist() for d in found] == [everything[i].ids.tolist() for i in hits[:wanted]]
    assert num_draws == hits[wanted - 1] + 1
    short, num_draws = generate_images(loaded, draw, ClassArguments(num_samples=40, max_draws=1), label, 16)
    assert (len(short), num_draws) == (sum(i < 40 for i in hits), 40)


def test_likelihood_keeps_those_with_the_highest_probability_of_the_class(loaded):
    draw = GenerationArguments(num_image_tokens=4, temperature=3.0)
    everything, _ = generate_images(loaded, draw, ClassArguments(num_samples=20), None, 8)
    shares = class_probabilities(loaded, questions_of(loaded.grammar, [d.row.body for d in everything]), 4)[:, 1]
    classes = ClassArguments(num_samples=4, num_candidates=5, condition="likelihood")
    kept, num_draws = generate_images(loaded, draw, classes, 1, 8)
    assert num_draws == 20
    assert [float(d.probabilities[1]) for d in kept] == pytest.approx(sorted(shares, reverse=True)[:4], abs=1e-6)


def test_without_the_mask_an_invalid_image_has_no_class(loaded):
    draw = GenerationArguments(no_grammar=True, temperature=8.0)
    generated, _ = generate_images(loaded, draw, ClassArguments(num_samples=30), None, 30)
    explained = [loaded.grammar.explain(loaded.text(d.ids).split(), 0) for d in generated]
    assert sum(reason is not None for reason in explained) > 20  # random weights don't know the grammar
    assert any(image.label is None for image in generated)
    assert all(image.row is not None and image.row.num_tail for image in generated if image.label is not None)


@pytest.mark.parametrize(
    ("tokens", "percent", "grid", "kept"),
    [
        (16, 50, (4, 4), 8),
        (16, 40, (4, 4), 4),  # 1.6 rows: whole rows only
        (16, 10, (4, 4), 1),  # not a row, but one token at least
        (49, 50, (7, 7), 21),
        (49, 100, (7, 7), 49),
        (49, 50, None, 24),
        (9, 50, (4, 4), 4),  # not an image of that grid
        (1, 0.1, None, 1),
    ],
)
def test_the_top_of_an_image_is_whole_rows_of_its_grid(tokens, percent, grid, kept):
    assert kept_tokens(tokens, percent, grid) == kept
