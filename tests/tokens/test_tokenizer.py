"""The tokenizer: ids equal the vocabulary file's, with and without our code."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

from imagelm.tokens.grammar import Grammar
from imagelm.tokens.tokenizer import build_tokenizer, load_tokenizer, save_tokenizer, write_tokenizer
from imagelm.utils.errors import InputError

ROW = "<IMG> <Z_003> <Z_029> <Z_003> </IMG> <CLS> <CLS_2> <EOS>"


@pytest.fixture
def folder(tmp_path, grammar: Grammar):
    save_tokenizer(build_tokenizer(grammar, 20), tmp_path)
    return tmp_path


def test_ids_equal_the_vocabulary_before_saving(grammar: Grammar):
    tokenizer = build_tokenizer(grammar, 20)
    assert tokenizer.get_vocab() == grammar.vocabulary
    assert tokenizer(ROW)["input_ids"] == [grammar.vocabulary[token] for token in ROW.split()]


@pytest.mark.parametrize("loader", [AutoTokenizer, PreTrainedTokenizerFast, GPT2Tokenizer])
def test_ids_equal_the_vocabulary_after_loading(folder, grammar: Grammar, loader):
    tokenizer = loader.from_pretrained(folder)
    assert tokenizer.get_vocab() == grammar.vocabulary
    assert tokenizer(ROW)["input_ids"] == [grammar.vocabulary[token] for token in ROW.split()]
    for name, token in (("pad", "<PAD>"), ("bos", "<IMG>"), ("eos", "<EOS>"), ("unk", "<UNK>")):
        assert getattr(tokenizer, f"{name}_token_id") == grammar.vocabulary[token]


def test_decoding_gives_the_row_back_and_without_its_frame_the_image_and_answer(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(ROW)["input_ids"]
    assert tokenizer.decode(ids) == ROW
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<Z_003> <Z_029> <Z_003> <CLS_2>"


def test_the_saved_class_name_is_one_that_transformers_4_knows(folder):
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_the_vocabulary_file_is_saved_beside_in_the_order_of_ids(folder, grammar: Grammar):
    saved = json.loads((folder / "vocab.json").read_text())
    assert saved == grammar.vocabulary
    assert list(saved.values()) == list(range(grammar.size))


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(InputError, match="imagelm prepare"):
        load_tokenizer(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_tokenizer_is_an_input_error(grammar, tmp_path, name):
    write_tokenizer(grammar, 16, tmp_path)
    (tmp_path / name).write_text((tmp_path / name).read_text()[:-20])
    with pytest.raises(InputError, match="can't be read"):
        load_tokenizer(tmp_path)


def test_what_is_written_without_transformers_is_what_it_would_save(folder, grammar: Grammar, tmp_path):
    write_tokenizer(grammar, 20, tmp_path / "written")
    saved = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    written = {file.name: file.read_bytes() for file in (tmp_path / "written").iterdir()}
    assert written == saved
