"""transformers' own decision pipeline answers as the CLS slot does, without code of this project."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jinja2
import pytest
from transformers import AutoProcessor, PreTrainedTokenizerBase, pipeline

from imagelm.data.load import load_prepared
from tests.conftest import CLASSES, run_anew
from tests.models.common import scores_by_hand


def question(classes: list[str], **changes: object) -> dict:
    return {"class": {"type": "choice", "criteria": dict.fromkeys(classes), **changes}}


@pytest.fixture(scope="module")
def folder(pictured) -> Path:
    return pictured / "out/best_model"


@pytest.fixture(scope="module")
def decide(folder):
    return pipeline("decision", model=str(folder))


def test_every_test_row_has_the_probabilities_of_its_cls_slot(pictured, folder, decide):
    for ids in load_prepared(pictured / "data")["test"]["input_ids"][:]:
        expected = scores_by_hand(folder, ids[:-2])
        for end in (-2, -3):  # up to `<CLS>`, up to `</IMG>`
            answer = decide({"state": decide.tokenizer.decode(ids[:end]), "questions": question(CLASSES)})["class"]
            assert list(answer["probabilities"]) == CLASSES
            assert answer["probabilities"] == pytest.approx(expected, abs=2e-6)
            assert answer["choice"] == max(expected, key=expected.get)


@pytest.mark.parametrize(
    ("state", "asked", "message"),
    [
        (None, question(CLASSES[::-1]), "criteria"),  # paired by position, it would name another class
        (None, question(CLASSES[:2]), "criteria"),
        (None, {"class": {"type": "noul"}}, "criteria"),
        ("<IMG> <Z_001> </IMG> <CLS> <CLS_1>", question(CLASSES), "from <IMG> to </IMG> <CLS>"),  # holds the answer
        ("a cat", question(CLASSES), "from <IMG> to </IMG> <CLS>"),
        ({"row": "<IMG> <Z_001> </IMG>"}, question(CLASSES), "from <IMG> to </IMG> <CLS>"),
    ],
)
def test_a_question_that_would_get_a_wrong_answer_is_refused(decide, state, asked, message):
    state = "<IMG> <Z_001> <Z_002> <Z_003> <Z_004> </IMG>" if state is None else state
    with pytest.raises(jinja2.TemplateError, match=message):
        decide({"state": state, "questions": asked})


@pytest.mark.parametrize("names", [['a "quoted" }} name', "ü\\n{% x %}", "猫"], None])
def test_any_class_names_are_asked_for_as_they_are(folder, tmp_path, names):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from imagelm.models.build import name_classes
    from imagelm.models.decision import save_decision

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    name_classes(model, names or [f"LABEL_{label}" for label in range(3)])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    save_decision(tmp_path, model, tokenizer)
    state, names = "<IMG> <Z_001> <Z_002> <Z_003> <Z_004> </IMG>", names or ["0", "1", "2"]
    answer = pipeline("decision", model=str(tmp_path))({"state": state, "questions": question(names)})["class"]
    assert list(answer["probabilities"]) == names


def test_without_trust_the_processor_is_the_tokenizer(folder):
    assert isinstance(AutoProcessor.from_pretrained(folder), PreTrainedTokenizerBase)


@pytest.mark.slow  # a process of its own; tests/hub/test_published.py runs the card's snippet from a cold cache
def test_without_trust_a_folder_with_a_codec_gives_its_tokenizer_and_asks_nothing(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    for code in (tmp_path / "model").glob("*.py"):
        code.write_text("raise RuntimeError('run without trust')")
    row = {"state": "<IMG> <Z_001> <Z_002> <Z_003> <Z_004> </IMG>", "questions": question(CLASSES)}
    program = "import json, sys\nfrom transformers import pipeline\n"
    program += "print(json.dumps(pipeline('decision', model='model')(json.loads(sys.argv[1]))))"
    done = run_anew("-I", "-c", program, json.dumps(row), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["class"]["probabilities"]) == set(CLASSES)
    assert "trust" not in done.stderr and "custom code" not in done.stderr
