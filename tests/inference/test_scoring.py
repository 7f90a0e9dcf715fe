"""The answers of a model, compared with plain forward passes of one row each."""

from __future__ import annotations

import numpy as np
import pytest

from imagelm.inference.scoring import class_probabilities, log_likelihoods, next_tokens
from imagelm.tokens.vocabulary import IMG, IMG_END
from tests.inference.tiny import logits_of, questions_of, random_bodies, tiny


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
