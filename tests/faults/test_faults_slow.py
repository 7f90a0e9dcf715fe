"""The long proofs: fifty kills at random moments, stops of two processes, the launcher, shuffled labels."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import signal
import termios
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from imagelm.evaluation.interval import accuracy_interval
from imagelm.training.manifest import inspect_checkpoint
from tests.conftest import run, train, write_jsonl
from tests.faults.common import DROPOUT, plan_of, same_weights, start, steps, wait_for
from tests.training.test_processes import LAUNCH

pytestmark = pytest.mark.slow
NUM_KILLS = 50
SAVE_STEPS = 5
RUN = ("--max_steps", 2000, "--save_strategy", "steps", "--save_steps", SAVE_STEPS, "--eval_strategy", "steps")
RUN = (*RUN, "--eval_steps", 50, "--save_total_limit", 2, "--config_overrides", DROPOUT, "--logging_steps", 50)
TWO = (*LAUNCH, "--mixed_precision", "no", "--multi_gpu", "--num_processes", 2, "--main_process_port", 0)


class Watched:
    """A run whose progress bar is read as it goes: the last step that it showed. It is shown on a terminal only."""

    def __init__(self, prepared: Path, output: Path, *words: object, **environment: str) -> None:
        self.terminal, shown = pty.openpty()
        termios.tcsetwinsize(shown, (24, 80))  # a bar of no width isn't shown
        self.process = start(prepared, output, *words, stderr=shown, **environment)
        os.close(shown)
        self.step, self.text, self.said = 0, "", ""
        self.threads = [threading.Thread(target=self._follow), threading.Thread(target=self._listen)]
        for thread in self.threads:
            thread.start()

    def _follow(self) -> None:
        with suppress(OSError):  # which Linux raises once nobody writes any more
            while part := os.read(self.terminal, 65536):
                self.text = (self.text + part.decode(errors="replace"))[-65536:]
                if found := re.findall(r"(\d+)/2000 \[", self.text):
                    self.step = int(found[-1])
        os.close(self.terminal)

    def _listen(self) -> None:
        for line in self.process.stdout:
            self.said += line

    def wait_for_step(self, step: int) -> None:
        wait_for(lambda: self.step >= step and "computing in" in self.said, self.process)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.end()

    def end(self) -> int:
        code = self.process.wait(timeout=600)
        for thread in self.threads:
            thread.join()
        return code


def test_fifty_kills_at_random_moments_lose_at_most_save_steps_each_and_not_a_bit_in_the_end(prepared, tmp_path):
    whole = train(prepared, tmp_path / "whole", *RUN)
    assert whole.returncode == 0, whole.stderr
    output, rng = tmp_path / "out", random.Random(0)
    words, quick = (*RUN, "--disable_tqdm", "false"), {"TQDM_MININTERVAL": "0"}
    shown, kills, resumed, early = 0, 0, 0, 0
    lost = []
    while kills < NUM_KILLS:
        watched = Watched(prepared, output, *words, **quick)
        if rng.random() < 0.8:
            goal = shown + rng.randrange(40)
            watched.wait_for_step(goal)
            time.sleep(rng.uniform(0, 0.1))  # a step takes about 20 ms, a checkpoint 60
        else:  # anywhere from the first import on
            time.sleep(rng.uniform(0, 10))
        assert watched.process.poll() is None, f"the run ended before the kills did: {watched.text}"
        watched.kill()
        kills += 1
        if match := re.search(r"resuming from \S+checkpoint-(\d+)", watched.said):
            resumed += 1
            lost.append(shown - int(match[1]))
            assert shown - int(match[1]) <= SAVE_STEPS
        else:
            early += 1
        assert "skipped" not in watched.said
        shown = max(shown, watched.step)
        whole_ones = [step for step in steps(output) if inspect_checkpoint(output / f"checkpoint-{step}").is_whole]
        assert whole_ones == steps(output)
        assert not whole_ones or shown - whole_ones[-1] <= SAVE_STEPS
        if (output / "best_model").exists():
            assert (output / "best_model/selection.json").exists()
    done = train(prepared, output, *RUN)
    assert done.returncode == 0, done.stderr
    assert same_weights(tmp_path / "whole", output)
    record = json.loads((output / "run.json").read_text())
    assert record["launches"][-1]["ended"] == "finished"
    print(
        f"{kills} kills, {resumed} resumed from a checkpoint, {early} before; "
        f"steps lost: mean {np.mean(lost):.1f}, at most {max(lost)}; last step seen {shown}; bitwise equal in the end"
    )


@pytest.mark.parametrize(("number", "unchecked"), [(signal.SIGTERM, 0), (signal.SIGINT, 3)])
def test_two_processes_stop_together_whichever_of_them_is_asked(prepared, tmp_path, number, unchecked):
    """The signal goes to one process alone; both save at the same step, and the run goes on bitwise.

    Updates that nobody waits for end in fours.
    """
    words = ("--max_steps", 200, "--save_strategy", "steps", "--save_steps", 20, "--eval_strategy", "no")
    words = (*words, "--config_overrides", DROPOUT, "--per_device_train_batch_size", 4)
    words = (*words, "--max_unchecked_steps", unchecked)
    environment = {"ACCELERATE_USE_CPU": "true"}
    outputs = tmp_path / "whole", tmp_path / "cut"
    process = start(prepared, outputs[0], *words, launcher=TWO, **environment)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    process = start(prepared, outputs[1], *words, launcher=TWO, **environment)
    wait_for((outputs[1] / "checkpoint-40").is_dir, process)
    workers = [pid for pid in children(process.pid) if "train.py" in Path(f"/proc/{pid}/cmdline").read_text()]
    assert len(workers) == 2
    os.kill(workers[1], number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1  # the launcher's
    step = steps(outputs[1])[-1]
    assert f"stopped by {number.name} at step {step}" in err
    assert step % (1 + unchecked) == 0
    checkpoint = outputs[1] / f"checkpoint-{step}"
    assert inspect_checkpoint(checkpoint).is_whole
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {file.name for file in checkpoint.iterdir()}
    process = start(prepared, outputs[1], *words, launcher=TWO, **environment)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert f"checkpoint-{step}" in out
    assert same_weights(*outputs)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_two_processes_stop_together_where_one_has_no_finite_loss_or_finds_no_space(prepared, tmp_path):
    words = ("--max_steps", 50, "--optim", "sgd", "--learning_rate", "1e20", "--warmup_steps", 3)
    process = start(prepared, tmp_path / "out", *words, launcher=TWO, ACCELERATE_USE_CPU="true")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "the run diverged and was stopped" in err
    rows = json.loads((tmp_path / "out/diverged.json").read_text())["training_rows"]
    assert len(rows) == len(set(rows)) == 16  # of both


def test_a_kill_of_the_launcher_alone_ends_its_process_with_a_checkpoint(prepared, tmp_path):
    output = tmp_path / "out"
    one = (*LAUNCH, "--mixed_precision", "no")
    process = start(prepared, output, *RUN, launcher=one, ACCELERATE_USE_CPU="true")
    wait_for((output / "checkpoint-10").is_dir, process)
    (worker,) = children(process.pid)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == -signal.SIGTERM
    end = time.monotonic() + 60
    while Path(f"/proc/{worker}").exists() and "Z" not in Path(f"/proc/{worker}/stat").read_text().split()[2]:
        assert time.monotonic() < end
        time.sleep(0.1)
    record = json.loads((output / "run.json").read_text())
    assert record["launches"][0]["ended"].startswith("StoppedError: stopped by SIGTERM")
    step = record["launches"][0]["to_step"]
    assert plan_of(output).checkpoint == str(output / f"checkpoint-{step}")
    process.communicate()


def test_labels_that_are_shuffled_bring_the_accuracy_down_to_chance(tmp_path, vocab_file):
    """Nothing but the label's own token tells the class then: more than chance would be a leak.

    The same images with their own labels show that the run could have learnt them.
    """
    rng, figures = np.random.default_rng(0), {}
    labels = rng.integers(0, 3, 3000)
    bodies = [" ".join(f"<Z_{code:03d}>" for code in rng.integers(0, 10, 8) + 10 * label) for label in labels]
    for name, given in (("shuffled", rng.permutation(labels)), ("true", labels)):
        rows = [
            {"tokens": f"<IMG> {body} </IMG> <CLS> <CLS_{label}> <EOS>", "label": int(label)}
            for body, label in zip(bodies, given, strict=True)
        ]
        files = ("--data_files", write_jsonl(tmp_path / f"{name}.jsonl", rows), "--vocab_file", vocab_file)
        done = run("prepare_dataset.py", *files, "--output_dir", tmp_path / f"{name}_data")
        assert done.returncode == 0, done.stderr
        words = ("--num_train_epochs", 8, "--per_device_train_batch_size", 32)
        done = train(tmp_path / f"{name}_data", tmp_path / name, *words)
        assert done.returncode == 0, done.stderr
        figures[name] = json.loads((tmp_path / name / "best_model/eval_results.json").read_text())
    n, accuracy = figures["shuffled"]["eval_samples"], figures["shuffled"]["eval_cls_accuracy"]
    low, high = accuracy_interval(accuracy, n)
    print(
        f"shuffled labels: {accuracy:.4f} on n = {n} (95 % interval {low:.3f} to {high:.3f}), chance 1/3; "
        f"true labels: {figures['true']['eval_cls_accuracy']:.4f}"
    )
    assert low < 1 / 3 < high
    assert figures["true"]["eval_cls_accuracy"] > 0.95
