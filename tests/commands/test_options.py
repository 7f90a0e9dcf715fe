"""The command line that users rely on: every option that was ever accepted, its default, the help, and YAML files."""

from __future__ import annotations

import importlib
import json
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from transformers import TrainingArguments

from imagelm.__main__ import COMMANDS
from imagelm.commands.older_names import TODAY
from imagelm.commands.parser import Command
from imagelm.commands.reference import render_reference
from imagelm.training.arguments import CommonTrainingArguments
from imagelm.utils.command_line import Option, options_of
from imagelm.utils.errors import InputError
from tests.conftest import ROOT, run

FROZEN = json.loads((Path(__file__).parent / "options.json").read_text())
SCRIPTS = {"prepare": "prepare_dataset.py", "train": "train.py", "infer": "inference.py", "push": "push_to_hub.py"}
OUR_TRAINING_DEFAULTS = {
    "eval_strategy",
    "save_strategy",
    "save_total_limit",
    "logging_steps",
    "metric_for_best_model",
    "hub_strategy",
    *("num_train_epochs", "per_device_train_batch_size", "learning_rate", "warmup_steps"),  # by the data's size
    "bf16",  # by the device
}


def command(name: str) -> Command:
    return importlib.import_module(f"imagelm.commands.{name}").COMMAND


def parse(name: str, *words: str) -> dict:
    return command(name).parse(list(words), library=TrainingArguments if name == "train" else None)


def required_words(name: str) -> list[str]:
    words = []
    for option in options_of(*command(name).groups):
        if option.is_required:
            words += [option.flag, option.choices[0] if option.choices else "x"]
    return words


def samples(option: Option, frozen: dict) -> list[tuple[list[str], object]]:
    """Words for an option, each with the value that they stand for."""
    if frozen["values"] == "several":
        return [([option.flag, "a", "b"], ["a", "b"])]
    if option.type is bool:
        return [([option.flag], True)]
    if option.choices:
        return [([option.flag, choice], choice) for choice in option.choices]
    found = [([f"{option.flag}=7"], option.type(7)), ([option.flag, "7"], option.type(7))]
    return [*found, ([option.flag], "")] if frozen["values"] == "optional" else found


def test_every_command_is_frozen():
    assert set(FROZEN) == set(COMMANDS)


@pytest.mark.parametrize("name", FROZEN)
def test_every_option_of_the_first_release_exists_with_its_choices_default_and_values(name):
    ours = {option.flag: option for option in options_of(*command(name).groups)}
    for flag, frozen in FROZEN[name].items():
        option = ours[flag]
        assert option.default == frozen["default"], flag
        assert list(option.choices or []) == frozen.get("choices", []), flag
        assert option.is_required or not frozen.get("required"), flag
        assert option.is_list == (frozen["values"] == "several"), flag
        assert option.is_bare == (frozen["values"] in ("none", "optional")), flag


@pytest.mark.parametrize("name", [name for name in FROZEN if name != "train"])
def test_every_frozen_option_is_parsed_and_both_spellings_are_one(name):
    ours = {option.flag: option for option in options_of(*command(name).groups)}
    for flag, frozen in FROZEN[name].items():
        for words, value in samples(ours[flag], frozen):
            assert parse(name, *required_words(name), *words)[ours[flag].name] == value
            hyphens = ["--" + words[0][2:].replace("_", "-"), *words[1:]]
            assert parse(name, *required_words(name), *hyphens)[ours[flag].name] == value


def test_train_takes_switches_in_every_form_and_all_of_training_arguments():
    words = required_words("train")
    assert parse("train", *words, "--overwrite")["overwrite"] is True
    assert parse("train", *words, "--overwrite", "false")["overwrite"] is False
    assert parse("train", *words, "--bf16", "true")["bf16"] is True
    assert parse("train", *words, "--no_dataloader_pin_memory")["dataloader_pin_memory"] is False
    assert {entry.name for entry in fields(TrainingArguments) if entry.init} <= set(parse("train", *words))


def test_the_training_defaults_in_the_help_are_transformers_own_but_for_eleven():
    theirs = {entry.name: entry.default for entry in fields(TrainingArguments)}
    ours = {option.name: option.default for option in options_of(CommonTrainingArguments)}
    assert {name for name, default in ours.items() if default != theirs[name]} == OUR_TRAINING_DEFAULTS
    values = parse("train", *required_words("train"))
    assert {name: values[name] for name in OUR_TRAINING_DEFAULTS} == {
        name: ours[name] for name in OUR_TRAINING_DEFAULTS
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_lists_every_option_with_its_default(name):
    text = " ".join(command(name).help().split())
    for option in options_of(*command(name).groups):
        assert f" {option.flag} {option.values}".rstrip() + " " in text
        if option.default not in (None, False):
            assert f"(default: {option.default})" in text
        if modes := option.field.metadata.get("modes"):
            assert f"{option.field.metadata['help']} (modes: {', '.join(modes)})" in text
    stopped = "130 and 143 stopped by Ctrl-C and SIGTERM"
    assert f"Exit codes: 0 done, 2 the input is wrong, {stopped}, 1 " in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_of_a_command_parses(name):
    lines = (command(name).doc or "").replace("\\\n", " ").splitlines()
    examples = [shlex.split(line) for line in lines if line.startswith("    ")]
    assert examples
    for words in examples:
        if "--config" in words:
            words[words.index("--config") + 1] = str(ROOT / words[words.index("--config") + 1])
        start = next(i for i, word in enumerate(words) if word in (name, f"imagelm.commands.{name}"))
        assert parse(name, *words[start + 1 :])


@pytest.mark.parametrize("script", SCRIPTS.values())
@pytest.mark.parametrize("way", ["script", "module"])
def test_the_help_names_the_program_as_it_was_started_and_loads_nothing_heavy(script, way):
    name = next(name for name, file in SCRIPTS.items() if file == script)
    target = {"script": f"run_path('{script}'", "module": f"run_module('imagelm.commands.{name}'"}[way]
    code = (
        f"import sys, runpy; sys.argv = ['{script}', '--help']\n"
        f"try: runpy.{target}, run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'transformers', 'datasets', 'tqdm'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {script} ")
    assert f" {script} --" in done.stdout.partition("\n\n")[2]


def test_the_imagelm_command_names_itself_and_suggests_a_command():
    done = run("-m", "imagelm", "push", "--help")
    assert done.stdout.startswith("usage: imagelm push --model_dir FOLDER --repo_id REPOSITORY [options]")
    assert "    imagelm push --model_dir" in done.stdout
    done = run("-m", "imagelm", "trian")
    assert (done.returncode, done.stderr) == (2, "error: imagelm has no command 'trian'; did you mean 'train'?\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_runs_as_a_module_and_reports_a_mistake_in_one_line(name):
    module = f"imagelm.commands.{name}"
    assert run("-m", module, "--help").stdout.startswith(f"usage: python -m {module} --")
    done = run("-m", module, "--ovrwrite")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: there is no option '--ovrwrite'")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_a_required_option_may_come_from_the_yaml_file(tmp_path, name):
    with pytest.raises(InputError, match=r"is missing; give it on the command line or in the --config file"):
        parse(name)
    words = required_words(name)
    lines = [f"{words[i][2:]}: {words[i + 1]}" for i in range(0, len(words), 2)]
    (tmp_path / "c.yaml").write_text("\n".join(lines))
    values = parse(name, "--config", str(tmp_path / "c.yaml"))
    assert all(values[words[i][2:]] == words[i + 1] for i in range(0, len(words), 2))


def test_the_command_line_wins_over_the_yaml_file_of_every_kind(tmp_path):
    (tmp_path / "p.yaml").write_text("output_dir: o\nimages: [a, b]\noverwrite: true\npatch_size: 8\ntest_size: 0.5")
    file = ("--config", str(tmp_path / "p.yaml"))
    values = parse("prepare", *file)
    assert (values["images"], values["overwrite"], values["patch_size"]) == (["a", "b"], True, 8)
    values = parse("prepare", "--overwrite", "false", "--patch_size", "2", *file)
    assert (values["overwrite"], values["patch_size"], values["test_size"]) == (False, 2, 0.5)


@pytest.mark.parametrize(("text", "value"), [("true", ""), ("false", None), ("folder", "folder")])
def test_a_dry_run_in_a_yaml_file_may_be_a_switch_or_a_folder(tmp_path, text, value):
    (tmp_path / "p.yaml").write_text(f"model_dir: m\nrepo_id: me/x\ndry_run: {text}")
    assert parse("push", "--config", str(tmp_path / "p.yaml"))["dry_run"] == value


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--patch_size", "four"), "argument --patch_size: invalid int value: 'four'; --help lists the options"),
        (("--overwrite", "maybe"), "argument --overwrite: 'maybe' is neither true nor false"),
        (("--fit", "crop"), "argument --fit: invalid choice: 'crop'"),
        (("stray",), "unrecognized arguments: stray; --help lists the options"),
        (
            ("--patchsize", "4"),
            "there is no option '--patchsize'; did you mean '--patch_size'? --help lists the options",
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_named_with_a_remedy(words, said):
    with pytest.raises(InputError) as error:
        parse("prepare", "--output_dir", "o", *words)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--overwrite_output_dir",),
            "there is no option '--overwrite_output_dir'; today it is '--overwrite'. --help lists",
        ),
        (("--no-cuda",), "today it is '--use_cpu'. "),
        (("--evaluation_strategy=epoch",), "today it is '--eval_strategy'. "),
        (("--group_by_length", "true"), "today it is '--train_sampling_strategy group_by_length'. "),
        (("--warmup_ratio", "0.1"), "today it is '--warmup_steps'. "),
        (("--save_safetensors",), "today's transformers does without it: remove it. "),
    ],
)
def test_an_option_of_older_versions_is_answered_with_its_name_today(words, said):
    with pytest.raises(InputError) as error:
        parse("train", "--dataset_dir", "d", "--output_dir", "o", *words)
    assert said in str(error.value)


def test_every_name_of_today_is_an_option_of_training_and_no_older_name_is():
    ours = {entry.flag[2:] for entry in options_of(*command("train").groups)}
    training = ours | {entry.name for entry in fields(TrainingArguments)}
    of_infer = ("model_name_or_path", "onnx")
    older = {name: today for name, today in TODAY.items() if name not in of_infer}
    assert {today.split()[0] for today in older.values() if today} <= training
    assert not older.keys() & training


@pytest.mark.parametrize(
    ("command", "typo", "near"),
    [
        ("prepare", "codebok_size", "codebook_size"),
        ("prepare", "imagse", "images"),
        ("infer", "num_beam", "num_beams"),
        ("infer", "model_name_or_path", "--model"),
        ("push", "repoid", "repo_id"),
        ("export", "outputdir", "output_dir"),
    ],
)
def test_a_typo_gets_the_nearest_option_in_every_command(command, typo, near):
    with pytest.raises(InputError) as error:
        parse(command, f"--{typo}", "x")
    assert f"{near}'" in str(error.value)


def test_the_reference_in_the_docs_is_what_the_options_say():
    assert (ROOT / "docs/reference.md").read_text(encoding="utf-8") == render_reference()
