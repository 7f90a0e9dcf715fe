"""The commands as a user types them: help, recipes, error messages, and what a finished folder holds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from imagelm.commands.parser import expand_config
from imagelm.commands.train import parse_launch
from imagelm.data.load import load_prepared
from imagelm.evaluation.leakage import prove_no_leak
from imagelm.models.arguments import ModelArguments
from imagelm.models.build import build_model
from imagelm.tokens.grammar import Grammar
from imagelm.tokens.tokenizer import build_tokenizer, grammar_of, load_tokenizer, save_tokenizer
from imagelm.tokens.vocabulary import load_vocabulary, make_vocabulary
from imagelm.utils.command_line import call_text
from imagelm.utils.errors import InputError
from tests.conftest import ROOT, SHARED, TINY, run, run_anew, train

HELP_SECONDS = 5  # on a busy machine; about 0.1 s otherwise, while importing torch alone takes longer


@pytest.mark.parametrize("script", ["prepare_dataset.py", "train.py"])
def test_help_names_every_option_without_loading_torch(script):
    code = (
        f"import sys, runpy; sys.argv = ['{script}', '--help']\n"
        f"try: runpy.run_path('{script}', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=HELP_SECONDS)
    assert done.returncode == 0, done.stderr
    names = {
        "prepare_dataset.py": "data_files vocab_file output_dir max_length truncation_side test_size split_by seed "
        "on_bad_rows overwrite",
        "train.py": "dataset_dir output_dir model_type config_overrides model_config_file model_name_or_path "
        "cls_loss_weight optimizer early_stopping_patience attention num_threads learning_rate seed",
    }[script]
    assert [name for name in names.split() if name not in done.stdout] == []


@pytest.mark.parametrize(
    "benchmark",
    sorted(file.stem for file in (ROOT / "benchmarks").glob("[!_]*.py") if "__main__" in file.read_text("utf-8")),
)
def test_every_benchmark_finds_what_it_needs_of_the_library(benchmark):
    done = run("-m", f"benchmarks.{benchmark}", "--help")
    assert done.returncode == 0 and done.stdout.startswith("usage: "), done.stderr


def test_the_full_help_lists_every_training_argument():
    done = run("train.py", "--help_all")
    assert done.returncode == 0
    assert "--neftune_noise_alpha" in done.stdout


KNOWN = {"config", "learning_rate", "seed", "bf16", "lr_scheduler_kwargs", "include_for_metrics", "run_name"}


def test_a_recipe_becomes_words_before_the_users_own(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "learning_rate: 3e-4\nbf16: true\nlr_scheduler_kwargs: {a: 1}\nrun_name:\ninclude_for_metrics: [a, b]"
    )
    words = expand_config(["--seed", "1", "--config", str(recipe), "--learning_rate=1"], KNOWN)
    assert words == [
        *("--learning_rate", "3e-4", "--bf16", "true", "--lr_scheduler_kwargs", '{"a": 1}'),
        *("--include_for_metrics", "a", "b", "--seed", "1", "--learning_rate=1"),
    ]


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("lerning_rate: 1", [], "unknown key 'lerning_rate'; did you mean 'learning_rate'?"),
        (
            "",
            ["--lerning-rate", "1"],
            "there is no option '--lerning_rate'; did you mean '--learning_rate'? --help lists the options",
        ),
        ("- a", [], "holds no mapping"),
        ("a: [", [], "isn't YAML"),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path, text, words, said):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(text or "seed: 1")
    with pytest.raises(InputError) as error:
        expand_config(["--config", str(recipe), *words], KNOWN)
    assert said in str(error.value)


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*/config.yaml")), ids=lambda path: path.parent.name)
def test_every_recipe_parses_and_the_command_line_wins(recipe, tmp_path):
    words = ["--config", str(recipe), "--dataset_dir", "d", "--output_dir", str(tmp_path), "--use_cpu"]
    content = yaml.safe_load(recipe.read_text())
    plain = parse_launch(words)
    assert plain.args.learning_rate == float(content["learning_rate"])
    assert plain.run.cls_loss_weight == content.get("cls_loss_weight", 0.0)
    assert parse_launch([*words, "--learning_rate", "0.125"]).args.learning_rate == 0.125


def test_both_spellings_of_an_option_and_yamls_no_are_understood(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("eval_strategy: no\nsave_strategy: no")
    words = ["--config", str(recipe), "--dataset-dir", "d", "--output-dir=o", "--use-cpu", "--learning-rate", "1e-9"]
    launch = parse_launch(words)
    assert (launch.data.dataset_dir, launch.args.output_dir, launch.args.learning_rate) == ("d", "o", 1e-9)
    assert launch.args.eval_strategy == launch.args.save_strategy == "no"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--dataset_dir is missing"),
        (("--dataset_dir", "d", "--cls_loss_weight", "2"), "--cls_loss_weight 2.0: give 0 to 1"),
        (("--dataset_dir", "d", "--num_threads", "-1"), "--num_threads -1: give 0 or more"),
        (("--dataset_dir", "d", "--metric_for_best_model", "f1"), "'f1' isn't a figure"),
        (("--dataset_dir", "d", "--load_best_model_at_end"), "--load_best_model_at_end"),
        (("--dataset_dir", "d", "--label_smoothing_factor", "0.1"), "--label_smoothing_factor 0.1: remove it"),
        (("--dataset_dir", "d", "--eval_do_concat_batches", "false"), "--eval_do_concat_batches False"),
        (("--dataset_dir", "d", "--bf16_full_eval"), "figures are reported in fp32"),
        (
            ("--dataset_dir", "d", "--per_device_train_batch_size", "0"),
            "--per_device_train_batch_size 0: give 1 or more",
        ),
        (("--dataset_dir", "d", "--eval_strategy", "steps", "--eval_steps", "-1"), "--eval_steps -1"),
        (("--dataset_dir", "d", "--output_dir", ""), "--output_dir is empty"),
        (("--dataset_dir", "d", "--output_dir", f"{__file__}/sub"), "is a file"),
        (("--dataset_dir", "d", "--eval_strategy", "sometimes"), "sometimes"),
        (("--config", "absent.yaml"), "--config absent.yaml: No such file"),
        (("--config",), "--config needs a YAML file"),
    ],
)
def test_wrong_arguments_are_refused(words, said, tmp_path):
    with pytest.raises(InputError) as error:
        parse_launch(["--output_dir", str(tmp_path), "--use_cpu", *words])
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--dataset_dir", "nowhere"), "--dataset_dir nowhere holds no stats.json"),
        (("--dataset_dir", "nowhere", "--learning_rate", "fast"), "fast"),
    ],
)
def test_wrong_input_ends_with_code_2_and_no_traceback(words, said, tmp_path):
    done = run(ROOT / "train.py", *words, "--output_dir", "o", "--use_cpu", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"model_type": "gpt17"}, "--model_type gpt17 is unknown"),
        ({"model_type": "vit"}, "model type vit has no causal language model"),
        ({"config_overrides": "n_layre=2"}, "'n_layre=2' names no field of GPT2Config"),
        ({"config_overrides": "n_layer=two"}, "'n_layer=two' isn't a valid int"),
        ({"config_overrides": "hidden_size=30,num_attention_heads=4"}, "can't be shared among 4 heads"),
        ({"config_overrides": "num_attention_heads=0"}, "no gpt2 model can be built like this"),
        ({"config_overrides": "activation_function=foo"}, "no gpt2 model can be built like this"),
        ({"config_overrides": "n_positions=8"}, "the model has 8 positions, but the longest row has 14 tokens"),
        ({"model_config_file": "absent"}, "--model_config_file absent"),
        ({"model_name_or_path": "absent"}, "--model_name_or_path absent can't be loaded"),
        ({"model_name_or_path": "a", "config_overrides": "n_layer=2"}, "brings its own config"),
    ],
)
def test_a_wrong_model_is_refused(prepared, arguments, said):
    with pytest.raises(InputError) as error:
        build_model(ModelArguments(**arguments), load_tokenizer(prepared / "tokenizer"), 14, "eager")
    assert said in str(error.value)


def test_a_model_from_scratch_has_the_default_size_and_the_tokenizers_ids(prepared):
    tokenizer = load_tokenizer(prepared / "tokenizer")
    config = build_model(ModelArguments(), tokenizer, 14, "eager").config
    assert (config.n_layer, config.n_head, config.n_embd, config.n_positions) == (6, 8, 384, 14)
    assert config.vocab_size == len(tokenizer)
    ids = [tokenizer.convert_tokens_to_ids(token) for token in ("<IMG>", "<EOS>", "<PAD>")]
    assert [config.bos_token_id, config.eos_token_id, config.pad_token_id] == ids


@pytest.mark.skipif(not (SHARED / "predecessor1000").is_dir(), reason="the predecessor's data aren't here")
def test_the_default_model_has_the_predecessors_size_at_its_vocabulary_and_positions():
    tokenizer = build_tokenizer(Grammar(load_vocabulary(SHARED / "predecessor1000/vocab.json")), 1024)
    assert build_model(ModelArguments(), tokenizer, 1024, "eager").num_parameters() == 11_238_912


def test_a_finished_folder_is_whole(trained):
    for name in ("best_model", "final_model"):
        files = {file.name for file in (trained / name).iterdir()}
        assert files == {
            *("config.json", "generation_config.json", "model.safetensors", "training_args.json", "selection.json"),
            *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "eval_results.json"),
            *("run.json", "stats.json", "log_history.json", "training_images.safetensors", "complete.json"),
            *("decision.json", "decision_template.jinja"),
        }
        assert json.loads((trained / name / "config.json").read_text())["use_cache"] is True
        results = json.loads((trained / name / "eval_results.json").read_text())
        for key in ("eval_perplexity", "eval_next_token_accuracy", "eval_cls_accuracy", "eval_samples"):
            assert results[key] > 0
        # The classes have 24 training rows each; 6 of 18 test and 3 of 8 validation rows are of the first one.
        assert results["majority_accuracy"] == pytest.approx({"best_model": 6 / 18, "final_model": 3 / 8}[name])
        assert results["bag_of_tokens_accuracy"] > 0.5


def test_the_report_shows_the_figures_and_all_its_pictures(trained):
    report = (trained / "report/training_report.md").read_text()
    results = json.loads((trained / "best_model/eval_results.json").read_text())
    assert f"**{results['eval_cls_accuracy']:.4f}** (n = 18" in report
    assert f"| majority class | {results['majority_accuracy']:.4f} |" in report
    test = results["versus_bag_of_tokens"]
    difference = results["eval_cls_accuracy"] - results["bag_of_tokens_accuracy"]
    assert (test["only_model"] - test["only_baseline"]) / 18 == pytest.approx(difference)
    verdict = "is clearly better than both" if test["clearly_better"] else "than a bag of tokens"
    assert verdict in report
    assert "Trained for 54 steps (6 epochs), as planned." in report
    pictures = sorted(file.name for file in (trained / "report").glob("*.png"))
    assert pictures == ["accuracy.png", "confusion_matrix.png", "learning_rate.png", "loss.png", "perplexity.png"]
    for name in pictures:
        assert f"({name})" in report
        with Image.open(trained / "report" / name) as picture:
            extrema = picture.convert("L").getextrema()
            assert picture.size[0] > 600
            assert extrema[0] < 100 < extrema[1]  # something is drawn


BARE_SCRIPT = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel
tokenizer = AutoTokenizer.from_pretrained("model")
classes = [tokenizer.convert_tokens_to_ids(f"<CLS_{label}>") for label in range(3)]
answers = []
for loader in (AutoModelForCausalLM, GPT2LMHeadModel):
    model = loader.from_pretrained("model").eval()
    for row in open("rows.txt"):
        question = tokenizer(row[: row.index("<CLS>") + len("<CLS>")], return_tensors="pt")
        answers.append(model(**question).logits[0, -1, classes].argmax().item())
    drawn = model.generate(**tokenizer("<IMG>", return_tensors="pt"), do_sample=False)
    assert drawn.shape[1] > 3
assert "imagelm" not in sys.modules
print(json.dumps(answers))
"""


def test_best_model_gives_its_reported_accuracy_in_a_bare_script_without_this_project(trained, prepared, tmp_path):
    tokenizer, test = load_tokenizer(prepared / "tokenizer"), load_prepared(prepared)["test"]
    shutil.copytree(trained / "best_model", tmp_path / "model")
    (tmp_path / "script.py").write_text(BARE_SCRIPT)
    (tmp_path / "rows.txt").write_text("\n".join(tokenizer.decode(row) for row in test["input_ids"]))
    done = run_anew("-I", "script.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    reported = json.loads((trained / "best_model/eval_results.json").read_text())["eval_cls_accuracy"]
    assert answers[: len(test)] == answers[len(test) :]
    assert np.mean(np.array(answers[: len(test)]) == np.array(test["label"])) == pytest.approx(reported)


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gpt_neox", "gemma2"])
def test_other_architectures_are_built_from_a_size_alone_and_are_causal(prepared, model_type):
    tokenizer = load_tokenizer(prepared / "tokenizer")
    arguments = ModelArguments(
        model_type=model_type, config_overrides="num_hidden_layers=2,hidden_size=48,num_attention_heads=6"
    )
    model = build_model(arguments, tokenizer, 14, None)
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (2, 48)
    rows = [torch.tensor(row) for row in load_prepared(prepared)["test"]["input_ids"][:3]]
    assert prove_no_leak(model, grammar_of(tokenizer), rows, seed=0) < 1e-4


def test_another_architecture_trains_and_is_saved(prepared, tmp_path):
    words = ("--config_overrides", "num_hidden_layers=1,hidden_size=32,num_attention_heads=2", "--max_steps", 2)
    done = train(prepared, tmp_path / "out", "--model_type", "qwen3", *words)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out/best_model/config.json").read_text())["model_type"] == "qwen3"


def test_a_secret_on_the_command_line_is_not_recorded(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--hub_token", "hf_abc", "--hub_token=hf_abc", "--seed", "1"])
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    launch = parse_launch(["--dataset_dir", "d", "--output_dir", "o", "--use_cpu"])
    assert "hf_abc" not in launch.command
    assert launch.command.endswith("--seed 1")


def test_a_secret_in_a_call_from_python_is_not_recorded():
    assert call_text("train", {"hub_token": "hf_abc", "seed": 1}) == "imagelm.train(hub_token='<hidden>', seed=1)"


def test_a_checkpoint_is_fine_tuned_and_refused_for_another_vocabulary(prepared, trained, tmp_path, grammar):
    base = TINY[2:]
    words = ("--dataset_dir", prepared, "--output_dir", tmp_path / "tuned", *base)
    done = run("train.py", *words, "--model_name_or_path", trained / "best_model", "--max_steps", 1)
    assert done.returncode == 0, done.stderr
    before = json.loads((trained / "best_model/eval_results.json").read_text())["eval_loss"]
    after = json.loads((tmp_path / "tuned/final_model/eval_results.json").read_text())["eval_loss"]
    assert abs(after - before) < 0.5  # it began where the other ended, not at random
    assert json.loads((tmp_path / "tuned/run.json").read_text())["base_model"] is None  # a folder, nobody else's
    other = tmp_path / "other"
    shutil.copytree(trained / "best_model", other)
    swapped = dict(grammar.vocabulary)
    swapped["<Z_000>"], swapped["<Z_001>"] = swapped["<Z_001>"], swapped["<Z_000>"]
    save_tokenizer(build_tokenizer(Grammar(swapped), 16), other)
    refused = run("train.py", *words[:3], tmp_path / "refused", *base, "--model_name_or_path", other)
    assert refused.returncode == 2
    assert "has a vocabulary" in refused.stderr
    assert "<Z_000> has id" in refused.stderr


def test_digits_are_written_with_whole_classes_and_variants_on_one_side(tmp_path):
    done = run("-m", "examples.digits", "--output_dir", tmp_path / "raw", "--codebook_size", 16)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "raw/rows.jsonl").read_text().splitlines()]
    assert json.loads((tmp_path / "raw/vocab.json").read_text()) == make_vocabulary(16, 10)
    # A fifth of 1,797 images, rounded up, and a tenth of the other 1,437.
    counts = {"train": 1293, "validation": 144, "test": 360}
    sources = {split: {row["source"] for row in rows if row["split"] == split} for split in counts}
    assert {split: len(found) for split, found in sources.items()} == counts
    assert len(set.union(*sources.values())) == 1797
    assert len(rows) == 1293 * 9 + 144 + 360
    assert {len(row["tokens"].split()) for row in rows} == {21}


@pytest.mark.skipif(not (SHARED / "predecessor1000").is_dir(), reason="the predecessor's data aren't here")
def test_a_short_training_run_works_on_the_predecessors_rows_as_they_stand(tmp_path):
    folder = SHARED / "predecessor1000"
    files = ("--data_files", folder / "sequences_labels_fixed.jsonl.gz", "--vocab_file", folder / "vocab.json")
    done = run("prepare_dataset.py", *files, "--output_dir", tmp_path / "data", "--max_length", 128)
    assert done.returncode == 0, done.stderr
    done = train(tmp_path / "data", tmp_path / "out", "--max_steps", 4, "--per_device_eval_batch_size", 32)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out/best_model/eval_results.json").read_text())
    assert results["eval_samples"] == pytest.approx(200, abs=5)  # some images become equal by the cut
    assert results["eval_cls_accuracy"] < 0.9  # near 1 on these rows is the mark of a leak
