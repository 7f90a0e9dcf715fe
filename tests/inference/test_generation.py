"""Generation, the grammar mask, and the answers of a model, each compared with brute force on tiny real models."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from imagelm.evaluation.similarity import bleu, rouge, similarity, token_accuracy
from imagelm.inference.generation import GrammarMask, complete_rows, generate_images, kept_tokens
from imagelm.inference.generation_arguments import ClassArguments, GenerationArguments
from imagelm.inference.loading import LoadedModel
from imagelm.inference.scoring import class_probabilities, log_likelihoods, next_tokens
from imagelm.models.arguments import ModelArguments
from imagelm.models.build import build_model
from imagelm.tokens.grammar import BadRow, Grammar
from imagelm.tokens.tokenizer import build_tokenizer
from imagelm.tokens.vocabulary import CLS, EOS, IMG, IMG_END, make_vocabulary
from imagelm.utils.image_grid import hide_unknown, image_grid

SIZE = "num_hidden_layers=2,hidden_size=32,num_attention_heads=2"


def shuffled(num_codes: int, num_classes: int) -> Grammar:
    tokens = list(make_vocabulary(num_codes, num_classes))
    order = np.random.default_rng(3).permutation(len(tokens))
    return Grammar({token: int(i) for token, i in zip(tokens, order, strict=True)})


def tiny(grammar: Grammar, positions: int, model_type: str = "gpt2", sharpness: float = 25.0) -> LoadedModel:
    """A model with random weights; `sharpness` makes its distributions far from flat."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(grammar, positions)
    model = build_model(ModelArguments(model_type=model_type, config_overrides=SIZE), tokenizer, positions, "eager")
    embeddings = model.get_output_embeddings().weight.data
    embeddings.mul_(sharpness / max(1.0, float(embeddings.norm(dim=1).mean())))
    return LoadedModel("tiny", model.eval(), tokenizer, grammar, None, None)


@pytest.fixture(scope="module")
def small() -> LoadedModel:
    """3 codes, 2 classes, images of up to 4 tokens."""
    return tiny(shuffled(3, 2), 9)


@pytest.fixture(scope="module")
def loaded(grammar: Grammar) -> LoadedModel:
    """The 30 codes and 3 classes of the other tests, images of up to 9 tokens."""
    return tiny(grammar, 14)


def logits_of(loaded: LoadedModel, ids) -> torch.Tensor:
    """All logits of one row, computed alone; float64, shape (length, vocabulary)."""
    with torch.no_grad():
        return loaded.model(torch.tensor([list(ids)])).logits[0].double()


def random_bodies(grammar: Grammar, count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.choice(grammar.code_ids, rng.integers(1, 10)) for _ in range(count)]


def questions_of(grammar: Grammar, bodies) -> list[np.ndarray]:
    return [np.array([grammar.id(IMG), *body, grammar.id(IMG_END), grammar.id(CLS)]) for body in bodies]


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


# Answers


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gpt_neox"])
def test_class_probabilities_are_those_of_a_plain_forward_pass_for_any_batch_size(grammar, model_type):
    loaded = tiny(grammar, 14, model_type)
    questions = questions_of(grammar, random_bodies(grammar, 23))
    expected = [logits_of(loaded, question)[-1, grammar.class_ids].softmax(-1).numpy() for question in questions]
    for batch_size in (1, 7, 64):
        assert class_probabilities(loaded, questions, batch_size) == pytest.approx(np.array(expected), abs=1e-5)


def test_classifying_computes_one_position_of_logits_a_row(loaded):
    shapes = []
    head = loaded.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    class_probabilities(loaded, questions_of(loaded.grammar, random_bodies(loaded.grammar, 10)), 4)
    hook.remove()
    assert shapes == [(rows, 1, loaded.grammar.size) for rows in (4, 4, 2)]


def test_next_tokens_are_the_most_probable_ones_of_a_plain_forward_pass(loaded):
    prompts = [np.array([loaded.grammar.id(IMG), *body]) for body in random_bodies(loaded.grammar, 9)]
    truths = [int(prompt[-1]) for prompt in prompts]
    ids, probabilities, ranks = next_tokens(loaded, prompts, truths, 4, 2)
    for prompt, truth, best, shares, rank in zip(prompts, truths, ids, probabilities, ranks, strict=True):
        expected = logits_of(loaded, prompt)[-1].softmax(-1).numpy()
        order = np.argsort(-expected)
        assert best.tolist() == order[:4].tolist()
        assert shares == pytest.approx(expected[order[:4]], abs=1e-5)
        assert rank == order.tolist().index(truth)


def test_the_likelihood_is_the_sum_over_the_image_and_its_end_for_any_batch_size(loaded):
    bodies, grammar = random_bodies(loaded.grammar, 11), loaded.grammar
    expected = []
    for body in bodies:
        row = [grammar.id(IMG), *body, grammar.id(IMG_END)]
        shares = logits_of(loaded, row).log_softmax(-1)
        expected.append(sum(shares[i, token].item() for i, token in enumerate(row[1:])))
    for batch_size in (1, 7, 64):
        assert log_likelihoods(loaded, bodies, batch_size) == pytest.approx(expected, abs=1e-4)


# Reading a row


@pytest.mark.parametrize(
    ("text", "num_tail", "label"),
    [
        ("<IMG> <Z_001> <Z_002>", 0, None),
        ("<Z_001> <Z_002>", 0, None),
        ("<IMG> <Z_001> <Z_002> </IMG>", 1, None),
        ("<IMG> <Z_001> <Z_002> </IMG> <CLS> <CLS_1>", 3, 1),
        ("<IMG> <Z_001> <Z_002> </IMG> <CLS> <CLS_1> <EOS>", 4, 1),
        ("<IMG> <Z_001> <Z_002> </IMG> <CLS> <CLS> <EOS>", 4, None),  # the predecessor's tail
    ],
)
def test_a_row_cut_anywhere_is_its_body_and_a_part_of_the_tail(grammar, text, num_tail, label):
    row = grammar.parse(text.split(), None, "here")
    assert row.body.tolist() == [grammar.id("<Z_001>"), grammar.id("<Z_002>")]
    assert (row.num_tail, row.label) == (num_tail, label)
    assert row.question(grammar).tolist() == [grammar.id(t) for t in ["<IMG>", "<Z_001>", "<Z_002>", "</IMG>", "<CLS>"]]
    if num_tail < 4:
        whole = text if text.startswith(IMG) else f"{IMG} {text}"
        assert row.prefix(grammar).tolist() == [grammar.id(token) for token in whole.split()]


@pytest.mark.parametrize(
    ("text", "label", "message"),
    [
        ("", None, "no token at all"),
        ("<IMG> <Z_1>", None, "token 2 is '<Z_1>', which isn't among the model's 39 tokens"),
        ("<IMG> <Z_001> <CLS_1> </IMG>", None, "token 3 is <CLS_1>, expected a codebook token or </IMG>"),
        ("<IMG> <Z_001> </IMG> <Z_001>", None, "token 4 is <Z_001>, expected <CLS>"),
        ("<IMG> <Z_001> </IMG> <CLS> <EOS>", None, "token 5 is <EOS>, expected a class token"),
        ("<IMG> <Z_001> </IMG> <CLS> <CLS_0> <EOS> <EOS>", None, "token 7 is <EOS>, expected nothing more"),
        ("<IMG> <Z_001> </IMG> <CLS> <CLS_0> <EOS>", 2, "the class token is <CLS_0>, but the label is 2"),
        ("</IMG> <CLS>", None, "token 1 is </IMG>, expected <IMG>"),
        ("<IMG> </IMG> <CLS>", None, "token 2 is </IMG>, expected a codebook token"),
    ],
)
def test_an_invalid_row_is_refused_with_the_first_wrong_token(grammar, text, label, message):
    with pytest.raises(BadRow) as error:
        grammar.parse(text.split(), label, "here")
    assert str(error.value).startswith(message)


# Similarity and image grids


def test_continuations_are_compared_token_by_token():
    true, drawn = ["<Z_001>", "<Z_002>", "<Z_003>", "<Z_004>"], ["<Z_001>", "<Z_002>", "<Z_009>", "<Z_004>"]
    assert token_accuracy(drawn, true) == 0.75
    assert token_accuracy(drawn[:2], true) == 0.5
    # 3 of 4 words, 1 of 3 pairs, a common subsequence of 3; <Z_001> and <Z_009> share nothing
    assert rouge(drawn, true) == pytest.approx({"rouge1": 0.75, "rouge2": 1 / 3, "rougeL": 0.75})
    words, reference = ["a", "b", "c", "d", "e"], ["a", "b", "c", "d", "f"]
    score, signature = bleu([words], [reference])
    assert score == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert "tok:none" in signature
    both = similarity([drawn, words], [true, words])
    assert (both["num_continuations"], both["num_tokens"]) == (2, 9)
    assert both["token_accuracy"] == pytest.approx(8 / 9)
    assert both["rouge1"] == pytest.approx((0.75 + 1) / 2)
    assert bleu([["a", "b"]], [["a", "b"]])[0] == pytest.approx(100)  # shorter than four words


def test_a_grid_shows_every_pixel_enlarged_by_a_whole_factor():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (8, 8, 1), dtype=np.uint8), rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)]
    grid = image_grid(images, 2, titles=["a", "b"], captions=["1", "2"])
    assert (grid.dtype, grid.shape[2]) == (np.uint8, 3)
    for image in images:
        large = np.broadcast_to(image, (8, 8, 3)).repeat(12, 0).repeat(12, 1)
        windows = np.lib.stride_tricks.sliding_window_view(grid, large.shape)[:, :, 0]
        first = np.argwhere((windows[:, :, ::12, ::12] == large[::12, ::12]).all((2, 3, 4)))
        assert any((windows[top, left] == large).all() for top, left in first)
    assert image_grid(images * 3, 2).shape[0] > 3 * 96


def test_what_is_not_known_is_covered_and_the_rest_is_not():
    image = np.full((8, 8, 1), 130, dtype=np.uint8)
    shown = hide_unknown(image, 6, (4, 4))  # a row and a half of 2×2 patches
    assert shown.shape == (96, 96, 3)
    known = (shown == 130).all(-1)
    expected = np.zeros((4, 4), dtype=bool)
    expected.flat[:6] = True
    assert (known == expected.repeat(24, 0).repeat(24, 1)).all()
