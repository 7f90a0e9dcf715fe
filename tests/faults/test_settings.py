"""Strange vocabularies, recipes and numbers are refused with a message before anything is written."""

from __future__ import annotations

import json

import pytest

from imagelm.commands.parser import expand_config
from imagelm.commands.train import parse_launch
from imagelm.tokens.grammar import Grammar
from imagelm.tokens.vocabulary import load_vocabulary
from imagelm.utils.errors import InputError
from tests.faults.common import LONG, strange_files


def test_an_invalid_vocabulary_is_refused(tmp_path, grammar):
    good = json.dumps(grammar.vocabulary)
    strange = {name: file for name, (file, _) in strange_files(tmp_path).items()}
    texts = {
        "huge number": good.replace('": 4', f'": {LONG}', 1),
        "infinite": good.replace('": 4', '": 1e999', 1),
        "nan": good.replace('": 4', '": NaN', 1),
        "true": good.replace('": 4', '": true', 1),
        "twice": good[:-1] + ', "<PAD>": 99}',
        "nested": "[" * 100_000,
        "nested objects": '{"a":' * 100_000,
        "NUL": good.replace("<PAD>", "<P\0AD>"),
        "huge code": good[:-1] + f', "<Z_{LONG}>": {len(grammar.vocabulary)}}}',
        "long token": good[:-1] + f', "{LONG} ": {len(grammar.vocabulary)}}}',
    }
    for name, text in texts.items():
        strange[name] = tmp_path / "vocab.json"
        strange[name].write_text(text)
        if name == "huge code":  # an unknown word, of no role
            assert Grammar(load_vocabulary(strange[name])).codebook_size == grammar.codebook_size
            continue
        with pytest.raises(InputError) as error:
            load_vocabulary(strange[name])
        assert len(str(error.value)) < 500, name
    for name in ("empty", "folder", "dangling", "circle", "pipe", "zero", "no.gz", "absent"):
        with pytest.raises(InputError):
            load_vocabulary(strange[name])
    for text in ("\0", "x" * 300):
        with pytest.raises(InputError):
            load_vocabulary(text)


@pytest.mark.parametrize("number", [10**5, pytest.param(10**6, marks=pytest.mark.slow)])
def test_a_vocabulary_of_many_tokens_is_read_in_seconds(tmp_path, grammar, number):
    many = {**grammar.vocabulary, **{f"<Z_{i + 1000}>": len(grammar.vocabulary) + i for i in range(number)}}
    many |= {"<Z_01000>": len(many)}
    (tmp_path / "vocab.json").write_text(json.dumps(many))
    with pytest.raises(InputError, match="two codebook tokens have the number 1000"):
        load_vocabulary(tmp_path / "vocab.json")


STRANGE_RECIPES = {
    "laughs": ("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: &d [*c, *c]", "anchors"),
    "itself": ("seed: &a [*a]", "anchors"),
    "twice": ("seed: 1\nlearning_rate: 1\nseed: 2", "key 'seed' occurs twice"),
    "twice inside": ("lr_scheduler_kwargs: {a: 1, a: 2}", "key 'a' occurs twice"),
    "nested": ("seed: " + "[" * 20_000, "isn't YAML"),
    "object": ("seed: !!python/object/apply:os.system [ls]", "isn't YAML"),
    "huge": (f"seed: {LONG}", "isn't YAML"),
    "date": ("seed: 2020-99-99", "isn't YAML"),
    "NUL": ("seed: 1\0", "isn't YAML"),
    "large": ("#" * 100_000, "expected at most"),
    "list": ("- seed", "holds no mapping"),
    "several": ("seed: 1\n---\nseed: 2", "isn't YAML"),
    "key": ("[1, 2]: 3", "isn't YAML"),
}


@pytest.mark.parametrize("name", STRANGE_RECIPES)
def test_a_strange_recipe_is_refused(tmp_path, name):
    text, message = STRANGE_RECIPES[name]
    (tmp_path / "r.yaml").write_text(text)
    known = {"seed", "learning_rate", "lr_scheduler_kwargs", "config", *"abcd"}
    with pytest.raises(InputError) as error:
        expand_config(["--config", str(tmp_path / "r.yaml")], known)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["empty", "folder", "dangling", "pipe", "zero", "absent"])
def test_a_recipe_that_isnt_a_file_is_refused(tmp_path, name):
    file = strange_files(tmp_path)[name][0]
    with pytest.raises(InputError, match="--config"):
        expand_config(["--config", str(file)], {"seed", "config"})


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_a_number_that_is_not_finite_is_refused_before_anything_is_trained(tmp_path, value):
    words = ["--dataset_dir", "d", "--output_dir", str(tmp_path), "--use_cpu", f"--learning_rate={value}"]
    with pytest.raises(InputError, match=r"--learning_rate .*: give a finite number"):
        parse_launch(words)
