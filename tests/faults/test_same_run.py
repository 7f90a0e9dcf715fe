"""The same run, a longer one, one of other processes, and one that never began: what continues and what doesn't."""

from __future__ import annotations

import json
import shutil

import pytest

from imagelm.training.identity import check_same
from imagelm.training.run_record import earlier_launches, read_record
from imagelm.utils.errors import InputError
from imagelm.utils.manifest import write_manifest
from tests.faults.common import changed, plan_of


def test_a_longer_run_goes_on_with_a_constant_rate_or_where_it_is_asked_for(uninterrupted, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(uninterrupted, output)
    assert changed(output)["max_steps"] == 120 and changed(output)["lr_scheduler_type"] == "linear"
    with pytest.raises(InputError, match=r"(?s)max_steps: 120 there, 160 now.*--extend_run"):
        plan_of(output, changed(output, max_steps=160))
    plan = plan_of(output, changed(output, max_steps=160), extend=True)
    assert plan.checkpoint == str(output / "checkpoint-120") and "max_steps 120 is now 160" in plan.notes[0]
    for other in ({"max_steps": 80}, {"max_steps": 160, "seed": 1}, {"max_steps": -1, "num_train_epochs": 9.0}):
        with pytest.raises(InputError, match="with other settings") as error:
            plan_of(output, changed(output, **other), extend=True)
        assert "--extend_run" not in str(error.value)
    rates = {"constant": [0, 0.1, 5], "constant_with_warmup": [0, 5]}
    for schedule, warmups in rates.items():
        for warmup in warmups:
            settings = {"lr_scheduler_type": schedule, "warmup_steps": warmup}
            for file in [output / "run.json", *output.glob("checkpoint-*/data_state.json")]:
                content = json.loads(file.read_text())
                file.write_text(json.dumps(content | {"identity": content["identity"] | settings}))
            for folder in output.glob("checkpoint-*"):
                write_manifest(folder)
            assert plan_of(output, changed(output, max_steps=160)).checkpoint == str(output / "checkpoint-120")
    with pytest.raises(InputError, match="--extend_run"):  # this warm-up would be longer, too
        settings = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.1}
        check_same("run", changed(output, **settings), changed(output, **settings, max_steps=160), extend=False)


def test_other_processes_continue_a_run_with_the_same_rows_per_update_where_it_is_asked_for(cut):
    batch = changed(cut)["per_device_train_batch_size"]
    halves = changed(cut, world_size=2, per_device_train_batch_size=batch // 2)
    with pytest.raises(InputError, match=r"(?s)world_size: 1 there, 2 now.*--change_processes"):
        plan_of(cut, halves)
    plan = plan_of(cut, halves, processes=True)
    assert plan.checkpoint and not plan.finished and "world_size 1 is now 2" in plan.notes[0]
    with pytest.raises(InputError, match=f"accumulation steps x processes to {batch}, which is {2 * batch} now"):
        plan_of(cut, changed(cut, world_size=2), processes=True)
    with pytest.raises(InputError, match="with other settings") as error:
        plan_of(cut, halves | {"seed": 1}, processes=True)
    assert "--change_processes" not in str(error.value)


def test_a_setting_that_only_a_newer_library_knows_is_no_difference_at_its_default(cut):
    name = "model.scale_attn_by_inverse_layer_idx"
    now = changed(cut)
    assert now[name] is False
    assert check_same("run", changed(cut, **{name: None}), now, extend=False) is None
    for earlier, later in [
        (changed(cut, **{name: None}), now | {name: True}),  # not at its default
        (now, changed(cut, **{name: None})),  # an older library, which ignores it
        (changed(cut, seed=None), now),  # not of the architecture
    ]:
        with pytest.raises(InputError, match="with other settings"):
            check_same("run", earlier, later, extend=False)


def test_a_run_that_saved_nothing_does_not_block_its_folder(cut):
    for folder in cut.glob("*/"):
        shutil.rmtree(folder)
    (cut / "mine.txt").write_text("mine")
    plan = plan_of(cut, changed(cut, seed=1))
    assert plan.checkpoint is None and not plan.finished and "saved nothing" in plan.notes[0]
    assert [file.name for file in cut.iterdir()] == ["mine.txt"]


def test_a_damaged_record_is_no_reason_to_lose_a_run(cut):
    identity = json.loads((cut / "run.json").read_text())["identity"]
    (cut / "run.json").write_text('{"identity": {"da')
    plan = plan_of(cut, identity)
    assert plan.checkpoint == str(cut / "checkpoint-120")
    assert plan.notes == [f"{cut / 'run.json'} is damaged and is written again"]
    with pytest.raises(InputError, match="seed: 42 there, 7 now"):
        plan_of(cut, identity | {"seed": 7})


def test_the_launches_of_a_record_of_an_earlier_version_count_on(tmp_path):
    """It called them legs."""
    (tmp_path / "run.json").write_text('{"legs": [{"train_seconds": 1.0, "seconds": 2.0}]}')
    assert earlier_launches(read_record(tmp_path)) == [{"train_seconds": 1.0, "seconds": 2.0}]
