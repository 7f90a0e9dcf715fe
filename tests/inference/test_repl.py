"""The interactive prompt."""

from __future__ import annotations

import builtins
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import run
from tests.inference.fixtures import NAMES


@pytest.fixture
def converse(infer, monkeypatch):
    """Types lines into the prompt, then Ctrl-D; a line of ^C is Ctrl-C."""

    def call(model: Path, *lines: str) -> str:
        typed = iter(lines)

        def read(prompt: str = "") -> str:
            line = next(typed, None)
            if line is None:
                raise EOFError
            if line == "^C":
                raise KeyboardInterrupt
            print(f"> {line}")
            return line

        monkeypatch.setattr(builtins, "input", read)
        return infer("--mode", "interactive", "--model", model)

    return call


def test_the_prompt_answers_survives_bad_input_and_ends_on_ctrl_d(artist, photos, tmp_path, converse):
    image = next((photos / "owl").iterdir())
    row = "<IMG> <Z_001> <Z_002> <Z_003> <Z_004>"
    bad = {
        "": None,
        "foo": "there is no command 'foo'; help lists them",
        "classify": "give a row of tokens or an image file after the command",
        "classify <IMG> <Z_1>": "row 1: token 2 is '<Z_1>'",
        "classify absent.png": "absent.png is neither a file nor a row of tokens",
        f"classify {__file__}": "not an image of a known format",
        "next </IMG>": "row 1: token 1 is </IMG>, expected <IMG>",
        "generate 1 yak": "'yak' is unknown to the model",
        "generate 0": "--num_samples 0: give 1 or more",
        'generate "': "close the quotes",
        "set temperature 0": "--temperature 0.0: give 0.001 or more",
        "set temperature 1e-40": "--temperature 1e-40: give 0.001 or more",
        "set top_k many": "set top_k many: invalid int value",
        "set foo 1": "set takes one of top",
        "set condition x": "--condition x is unknown; choose one of rejection, likelihood",
        "set greedy maybe": "neither true nor false",
        "image x.png": "nothing has been generated yet",
        "help foo": "there is no command 'foo'",
    }
    good = [f"classify {row}", f"classify {image}", f"next {row}", "generate 2", "set seed 42", "generate 2"]
    good += [f"continue {image}", f"image {tmp_path / 'p.png'}", "set top_k none", "help", "set"]
    printed = converse(artist, *bad, "^C", *good)
    answers = dict(zip([*bad, *good], printed.split("\n> ")[1:], strict=True))
    for line, message in bad.items():
        if message is not None:
            answer = answers[line].strip().split("\n")[1]
            assert answer.startswith("error: ")
            assert message in answer
            assert len(answers[line].strip().split("\n")) == 2 + ("^C" in answers[line])
    assert "Traceback" not in printed
    for name in NAMES:
        assert name in answers[f"classify {row}"]
    assert "top_k" in answers["set"]
    assert "written" in answers[f"image {tmp_path / 'p.png'}"]
    assert Image.open(tmp_path / "p.png").width > 3 * 96
    assert "classify TOKENS | FILE" in answers["help"]


def test_the_prompt_generates_other_images_each_time_and_the_same_for_the_same_seed(artist, converse):
    answers = converse(artist, "generate 3", "generate 3", "set seed 42", "generate 3").split("> ")
    drawn = [answer.partition("\n")[2] for answer in answers if answer.startswith("generate")]
    assert drawn[0] != drawn[1]
    assert drawn[0].replace("\n", "") == drawn[2].replace("\n", "")


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_the_prompt_survives_bytes_that_arent_utf_8(best, errors):
    words = ("inference.py", "--mode", "interactive", "--model", best)
    given = b"classify <IMG> <Z_000> \xc3\nfoo\xff\nclassify <IMG> <Z_000>\n"
    done = run(*words, given=given, PYTHONIOENCODING=f"utf-8:{errors}")
    answers = done.stdout.split("imagelm> ")[1:]
    assert (done.returncode, done.stderr) == (0, "")
    assert answers[0].startswith("error: row 1: token 3 is '\ufffd', which isn't among the model's 39 tokens")
    assert answers[1] == "error: there is no command 'foo\ufffd'; help lists them\n"
    assert "row 1" in answers[2]
    assert "<CLS_" in answers[2]


def test_a_setting_without_effect_in_a_mode_waits_for_another(artist, photos, tmp_path, converse):
    shutil.copytree(photos / "owl", tmp_path / "some")
    (tmp_path / "some/x.png").write_bytes(b"no image")
    lines = (
        "set num_return_sequences 2",
        "set keep_percent 50",
        f"classify {tmp_path / 'some'}",
        "generate",
        "next <IMG>",
    )
    lines += (f"continue {tmp_path / 'some'}", f"image {tmp_path / 'p.png'}")
    answers = converse(artist, *lines).split("\n> ")[1:]
    assert not [answer for answer in answers if "error" in answer]
    assert f"skipped: {tmp_path}/some/x.png: not an image" in answers[2]  # as on the command line
    assert answers[5].count("some/") == 2 * 3 + 1
    # a line of four images each of 96 pixels for each of three grey_images: the prompt's image shows all rows
    assert Image.open(tmp_path / "p.png").height > 3 * 96


def test_a_piped_prompt_ends_with_code_0(best):
    done = run("inference.py", "--mode", "interactive", "--model", best, given=b"next <IMG>\nnonsense\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert "<Z_" in done.stdout
    assert "error: there is no command 'nonsense'" in done.stdout
