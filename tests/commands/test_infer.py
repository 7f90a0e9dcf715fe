"""`imagelm infer` as a command: wrong input, output files, pipes, exit codes.

Most tests call its `main` in this process, because importing torch in a new process takes seconds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from imagelm.commands.infer import COMMAND
from imagelm.tokens.grammar import Grammar
from imagelm.tokens.tokenizer import build_tokenizer, save_tokenizer
from imagelm.tokens.vocabulary import IMG
from imagelm.utils.command_line import options_of
from imagelm.utils.errors import InputError
from tests.conftest import ROOT, run
from tests.inference.fixtures import records, rows_of_test


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--mode", "classify"), "--model is missing; give it on the command line"),
        (("--mode", "draw"), "argument --mode: invalid choice: 'draw'"),
        (("--mode", "classify", "--model", "./absent"), "--model ./absent: no such folder"),
        (("--mode", "classify", "--model", "absent/model"), "absent/model isn't a local folder, and as a Hub id"),
        (("--mode", "classify", "--model", "{out}"), "holds no config.json; --model {out}/best_model does"),
        (("--mode", "classify", "--model", "{best}", "--revision", "v1"), "--revision v1 belongs to a Hub id"),
        (("--mode", "classify", "--model", "{best}", "--device", "tpu"), "--device tpu is unknown"),
        (("--mode", "classify", "--model", "{best}", "--device", "cuda:99"), "GPUs are visible"),
        (("--mode", "classify", "--model", "{best}", "--data_files", "absent"), "--data_files absent: no such file"),
        (("--mode", "classify", "--model", "{best}", "--tokens", ""), "row 1: no token at all"),
        (("--mode", "classify", "--model", "{best}", "--tokens", IMG), "nothing to classify"),
        (("--mode", "classify", "--model", "{best}", "--tokens", "<Z_001> <Z_77>"), "token 2 is '<Z_77>'"),
        (
            ("--mode", "classify", "--model", "{best}", "--tokens", " ".join(["<Z_001>"] * 12)),
            "the row takes 15 positions",
        ),
        (("--mode", "classify", "--model", "{artist}", "--tokens", "<Z_001>"), "the image has 1 tokens, the model's"),
        (("--mode", "next_token", "--model", "{best}", "--dataset_dir", "{data}"), "nothing follows; cut it, or"),
        (("--mode", "classify", "--model", "{best}", "--dataset_dir", "absent"), "--dataset_dir absent holds no"),
        (
            ("--mode", "classify", "--model", "{best}", "--dataset_dir", "{data}", "--split", "x"),
            "has train, validation, test",
        ),
        (("--mode", "classify", "--model", "{best}", "--images", "absent.png"), "--images needs a codec"),
        (("--mode", "classify", "--model", "{artist}", "--images", "./absent.png"), "./absent.png: no such file"),
        (("--mode", "classify", "--model", "{artist}", "--images", __file__), "not an image of a known format"),
        (("--mode", "classify", "--model", "{artist}", "--images", "{long}"), "File name too long"),
        (("--mode", "classify", "--model", "{long}"), "--model {long}: File name too long"),
        (("--mode", "classify", "--model", "m", "--output", "{long}"), "--output {long}: File name too long"),
        (("--mode", "classify", "--model", "{best}", "--data_files", "{long}"), "no such file"),
        (("--mode", "classify", "--model", "{best}", "--dataset_dir", "{long}"), "can't be read: File name too long"),
        (
            ("--mode", "classify", "--model", "{artist}", "--images", "{photos}", "--split", "yak"),
            "--split yak has no effect on --images {photos}, which has no splits; give --images {photos}/yak",
        ),
        (
            ("--mode", "classify", "--model", "{artist}", "--images", __file__, "--split", "yak"),
            "which has no splits; remove --split",
        ),
        (("--mode", "classify", "--model", "{best}", "--tokens", "<IMG> \udcff"), "row 1: not UTF-8 text"),
        (("--mode", "classify", "--model", "m", "--tokens", "a", "--images", "b"), "--tokens and --images are given"),
        (("--mode", "classify", "--model", "m", "--top", "0"), "--top 0: give 1 or more"),
        (("--mode", "classify", "--model", "m", "--top_k", "3"), "--top_k has no effect in --mode classify"),
        (("--mode", "generate", "--model", "m", "--score"), "--score has no effect in --mode generate"),
        (("--mode", "generate", "--model", "m", "--temperature", "0"), "--temperature 0.0: give 0.001 or more"),
        (("--mode", "generate", "--model", "m", "--temperature", "1e-40"), "--greedy always takes the most probable"),
        (("--mode", "generate", "--model", "m", "--temperature", "nan"), "--temperature nan"),
        (
            ("--mode", "generate", "--model", "{best}", "--repetition_penalty", "1e-40"),
            "best_model can't generate with these options",
        ),
        (("--mode", "generate", "--model", "m", "--top_p", "1.5"), "--top_p 1.5 isn't a share"),
        (("--mode", "generate", "--model", "m", "--top_k", "-1"), "--top_k -1: give 0 or more"),
        (("--mode", "generate", "--model", "m", "--seed", "-1"), "--seed -1: give 0 to 4294967295"),
        (("--mode", "generate", "--model", "m", "--greedy", "--top_k", "2"), "--top_k without effect"),
        (("--mode", "generate", "--model", "m", "--greedy"), "gives at most 1 different images"),
        (("--mode", "generate", "--model", "m", "--greedy", "--class", "cat"), "--class needs many different images"),
        (
            ("--mode", "generate", "--model", "{artist}", "--class", "yak"),
            "'yak' is unknown to the model; it knows cat",
        ),
        (("--mode", "generate", "--model", "{artist}", "--num_image_tokens", "5"), "makes images of 4 tokens"),
        (("--mode", "generate", "--model", "{best}", "--num_image_tokens", "10"), "take 15 positions, and the model"),
        (("--mode", "generate", "--model", "{best}", "--output_image", "g.png"), "--output_image needs a codec"),
        (("--mode", "generate", "--model", "m", "--output_image", "g.jpg"), "give a name that ends in .png"),
        (("--mode", "generate", "--model", "m", "--output", "absent/o"), "there is no folder absent"),
        (("--mode", "generate", "--model", "m", "--output", __file__), "add --overwrite to replace it"),
        (("--mode", "continue", "--model", "m", "--keep_percent", "0"), "--keep_percent 0.0: give a number above 0"),
        (("--mode", "continue", "--model", "m", "--num_beams", "2", "--num_return_sequences", "3"), "a beam gives one"),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, tuple) else "",
)
def test_wrong_input_is_an_error_and_leaves_no_file(
    words, message, trained, best, artist, prepared, photos, tmp_path, infer, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    places = {"out": trained, "best": best, "artist": artist, "data": prepared, "photos": photos}
    places["long"] = "x" * 300
    with pytest.raises(InputError) as error:
        infer(*(word.format(**places) for word in words))
    assert message.format(**places) in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_all_bad_lines_are_named_with_their_place_before_anything_is_computed(best, tmp_path, infer):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(
        b'{"tokens": "<IMG> <Z_001> </IMG>", "label": 1}\n'
        b'{"tokens": "<IMG> <Z_001> </IMG>", "label": 3}\n\n'
        b'{"tokens": "<IMG> <Z_001>\n{"tokens": ["<IMG>", 3]}\n{"tokens": 5}\n{"label": 1}\n\xff\n'
        b"<IMG> <Z_001> <CLS_1>\n<IMG> <Z_1>\n"
    )
    with pytest.raises(InputError) as error:
        infer("--mode", "classify", "--model", best, "--data_files", file, "--output", tmp_path / "o")
    lines = str(error.value).split("\n")
    assert lines[0] == "8 bad rows"
    assert [line.partition(": ")[0] for line in lines[1:]] == [f"  {file}:{i}" for i in (2, 4, 5, 6, 7, 8, 9, 10)]
    for line, message in zip(
        lines[1:], ["label 3", "not JSON", "holds 3", "is 5", "'tokens'", "UTF-8", "<CLS_1>", "<Z_1>"], strict=True
    ):
        assert message in line
    assert not (tmp_path / "o").exists()


def test_rows_of_another_vocabulary_are_refused(best, prepared, grammar, tmp_path, infer):
    other = tmp_path / "other"
    shutil.copytree(best, other)
    vocabulary = dict(grammar.vocabulary)
    vocabulary["<Z_000>"], vocabulary["<Z_001>"] = vocabulary["<Z_001>"], vocabulary["<Z_000>"]
    save_tokenizer(build_tokenizer(Grammar(vocabulary), 14), other)
    with pytest.raises(InputError, match="has another vocabulary than the model: <Z_000> has id"):
        infer("--mode", "classify", "--model", other, "--dataset_dir", prepared)


@pytest.mark.parametrize("broken", ["model.safetensors", "config.json", "tokenizer.json", "codec.json"])
def test_a_damaged_model_folder_is_an_error(artist, tmp_path, infer, broken):
    copy = tmp_path / "copy"
    shutil.copytree(artist, copy)
    (copy / broken).write_text("{")
    with pytest.raises(InputError, match=f"--model {copy}"):
        infer("--mode", "generate", "--model", copy)


def test_a_file_is_replaced_only_when_asked_and_then_whole(best, tmp_path, infer):
    file = tmp_path / "o.jsonl"
    words = ("--mode", "classify", "--model", best, "--tokens", "<Z_001>", "--output", file)
    infer(*words)
    before = file.read_text()
    with pytest.raises(InputError, match="add --overwrite"):
        infer(*words)
    assert file.read_text() == before
    infer(*words[:-2], "<Z_002> <Z_003>", "--output", file, "--overwrite")
    assert len(records(file)) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["o.jsonl"]


@pytest.mark.parametrize("flag", ["--output", "--output_image"])
def test_only_regular_files_are_replaced(tmp_path, infer, flag):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link.png").symlink_to(tmp_path / "file")
    (tmp_path / "loose.png").symlink_to(tmp_path / "absent")
    for name in ("pipe.png", "link.png", "loose.png", "/dev/null"):
        with pytest.raises(InputError, match="is a link, a pipe or a device; name a regular file"):
            infer("--mode", "generate", "--model", "m", flag, tmp_path / name, "--overwrite")
    assert (tmp_path / "pipe.png").is_fifo()
    assert (tmp_path / "link.png").is_symlink()


def test_help_names_every_option_without_loading_torch():
    code = (
        "import sys, runpy; sys.argv = ['inference.py', '--help']\n"
        "try: runpy.run_path('inference.py', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=5)
    assert done.returncode == 0, done.stderr
    options = [option.flag for option in options_of(*COMMAND.groups)]
    assert [option for option in options if f"{option} " not in done.stdout.replace("\n", " ")] == []


def test_rows_come_through_a_pipe_and_the_reader_may_leave_early(best, prepared, tmp_path):
    (tmp_path / "rows").write_text("\n".join(rows_of_test(prepared) * 40))
    command = f"{sys.executable} inference.py --mode classify --model {best} < {tmp_path}/rows"
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -3"], cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=100
    )
    assert done.stdout.split("\n")[0].split() == ["row", "class", "probability", "then", "label"]
    assert done.stdout.split("\n")[2].startswith("stdin:1 ")
    assert done.stderr == ""


def test_wrong_input_ends_with_code_2_and_no_traceback(best, tmp_path):
    words = ("--mode", "classify", "--model", best, "--tokens", "<Z_1>", "--output", tmp_path / "o")
    done = run("inference.py", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: row 1: token 1 is '<Z_1>', which isn't among the model's 39 tokens\n"
    assert list(tmp_path.iterdir()) == []


def test_names_that_arent_utf_8_are_printed_and_written_escaped(artist, photos, tmp_path):
    odd = os.fsdecode(b"caf\xe9")
    shutil.copytree(photos / "owl", tmp_path / odd / "owl")
    (tmp_path / f"{odd}.txt").write_text("<Z_001> <Z_002> <Z_003> <Z_004>")
    for words in (("--images", tmp_path / odd), ("--data_files", tmp_path / f"{odd}.txt")):
        output = tmp_path / f"{odd}.jsonl"
        words = ("--mode", "classify", "--model", artist, *words, "--output", output, "--overwrite")
        done = run("inference.py", *words, PYTHONIOENCODING="utf-8:strict")
        assert (done.returncode, done.stderr) == (0, "")
        assert f"{tmp_path}/caf\\xe9" in done.stdout
        assert records(output)[0]["place"].startswith(f"{tmp_path}/caf\\xe9")
