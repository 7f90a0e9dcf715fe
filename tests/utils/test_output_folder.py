"""Output folders: whole or absent, and nothing of the user's is deleted, whatever happens at which moment."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from imagelm.utils import renames
from imagelm.utils.artifacts import MANIFEST_FILE
from imagelm.utils.errors import InputError
from imagelm.utils.folder_lock import locked
from imagelm.utils.manifest import damaged_files, read_manifest
from imagelm.utils.output_folder import atomic_folder, check_outside, check_replaceable, remove_folder, remove_leftovers
from tests.conftest import ROOT

MARKER = "marker.txt"
WRITER = """
import os, sys, time
from functools import partial
from pathlib import Path
from imagelm.utils.errors import InputError
from imagelm.utils.output_folder import atomic_folder, check_replaceable
output, overwrite, content = Path(sys.argv[1]), sys.argv[2] == "True", sys.argv[3]
try:
    with atomic_folder(output, partial(check_replaceable, marker="marker.txt", overwrite=overwrite)) as staging:
        print("writing", flush=True)
        (staging / "train").mkdir()
        for name in ("marker.txt", "train/rows", "other"):
            time.sleep(float(sys.argv[4]))
            (staging / name).write_text(content)
except InputError as error:
    sys.exit(2)
"""


def write(path: Path, content: str = "new", overwrite: bool = False, meanwhile=lambda: None) -> None:
    """Writes a small output folder; `meanwhile` runs while it is being written."""
    with atomic_folder(path, partial(check_replaceable, marker=MARKER, overwrite=overwrite)) as staging:
        (staging / MARKER).write_text(content)
        (staging / "train").mkdir()
        (staging / "train/rows").write_text(content)
        meanwhile()


def contents(folder: Path) -> dict[str, str]:
    """Path to text of every file below a folder, without the manifest."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST_FILE)
    return {file.relative_to(folder).as_posix(): file.read_text() for file in files}


@pytest.fixture(params=[True, False], ids=["renameat2", "no renameat2"])
def exchange(request, monkeypatch):
    """Linux's exchange of two paths, and the way of the other systems."""
    if not request.param:
        monkeypatch.setattr(renames.ctypes, "CDLL", lambda *args, **kwargs: object())


def test_a_folder_is_written_with_a_manifest_of_its_files(tmp_path):
    write(tmp_path / "new/out")
    assert contents(tmp_path / "new/out") == {MARKER: "new", "train/rows": "new"}
    files = read_manifest(tmp_path / "new/out")
    assert set(files) == {MARKER, "train/rows"} and not list(damaged_files(tmp_path / "new/out", files))
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["out"]


def test_permissions_are_those_of_the_umask(tmp_path):
    with atomic_folder(tmp_path / "out") as staging:
        (staging / "train").mkdir(mode=0o700)
        (staging / "train/weights").touch(mode=0o600)
    (tmp_path / "like").mkdir()
    (tmp_path / "like/this").touch()
    for folder in ("out", "out/train"):
        assert (tmp_path / folder).stat().st_mode == (tmp_path / "like").stat().st_mode
    assert (tmp_path / "out/train/weights").stat().st_mode == (tmp_path / "like/this").stat().st_mode


def test_files_that_the_user_put_there_survive_overwriting(tmp_path, exchange):
    out = tmp_path / "out"
    write(out, "old")
    mine = {"notes.txt": "mine", "photos/a/cat.png": "cat", "train/notes.txt": "also mine"}
    for name, text in mine.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)
    (out / "empty").mkdir()
    (out / "link").symlink_to(tmp_path)
    (out / "dangling").symlink_to(tmp_path / "nowhere")
    for content in ("new", "newer"):
        write(out, content, overwrite=True)
        assert contents(out) == {MARKER: content, "train/rows": content, **mine}
        assert (out / "empty").is_dir() and (out / "link").is_symlink() and (out / "dangling").is_symlink()
        assert set(read_manifest(out)) == {MARKER, "train/rows"}
        assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_the_users_file_with_the_name_of_a_new_one_is_kept_aside(tmp_path):
    out = tmp_path / "out"
    with atomic_folder(out) as staging:
        (staging / MARKER).write_text("old")
    (out / "train").write_text("mine, and now the name of a folder")
    write(out, "new", overwrite=True)
    assert contents(out) == {MARKER: "new", "train/rows": "new"}
    (kept,) = (entry for entry in tmp_path.iterdir() if entry != out)
    assert kept.name.startswith("out.kept-") and (kept / "train").read_text().startswith("mine")


def write_with_readme(path: Path, content: str) -> None:
    with atomic_folder(path, partial(check_replaceable, marker=MARKER, overwrite=True)) as staging:
        (staging / "train").mkdir()
        for name in (MARKER, "README.md", "train/rows"):
            (staging / name).write_text(content)


def test_a_text_that_the_user_edited_is_kept_aside(tmp_path, exchange, caplog):
    out = tmp_path / "out"
    write_with_readme(out, "old")
    caplog.set_level("INFO", "imagelm")
    kept = {"README.md.kept": "own", "README.md.kept-2": "longer text of my own"}
    for number, text in enumerate(kept.values()):  # of the same and of another size
        (out / "README.md").write_text(text)
        (out / "train/rows").write_text(text)
        os.utime(out / "README.md", (time.time() + 5,) * 2)
        os.utime(out / "train/rows", (time.time() + 5,) * 2)
        write_with_readme(out, "new")
        written = dict.fromkeys((MARKER, "README.md", "train/rows"), "new")
        assert contents(out) == {**written, **dict([*kept.items()][: number + 1])}
        assert f"kept in {out}, because this program didn't write it:\n  README.md.kept" in caplog.text
        assert f"{out / 'train/rows'} was changed since it was written, and is replaced" in caplog.text
    (out / "README.md").write_text("edited again")
    remove_folder(out)
    assert contents(out) == {**kept, "README.md.kept-3": "edited again"}


def test_a_text_that_was_only_touched_is_replaced(tmp_path):
    write_with_readme(tmp_path / "out", "old")
    os.utime(tmp_path / "out/README.md", (time.time() + 5,) * 2)
    write_with_readme(tmp_path / "out", "new")
    assert set(contents(tmp_path / "out").values()) == {"new"}


def test_a_folder_made_meanwhile_is_not_replaced(tmp_path, exchange):
    out = tmp_path / "out"

    def make() -> None:
        out.mkdir()
        (out / "thesis.txt").write_text("precious")

    for overwrite in (False, True):  # --overwrite replaces only what this program wrote
        with pytest.raises(InputError, match="wasn't written by this program"):
            write(out, overwrite=overwrite, meanwhile=make)
        assert contents(tmp_path) == {"out/thesis.txt": "precious"}
        (out / "thesis.txt").unlink()
        out.rmdir()


def test_an_empty_folder_made_meanwhile_is_filled(tmp_path):
    write(tmp_path / "out", meanwhile=(tmp_path / "out").mkdir)
    assert contents(tmp_path / "out")[MARKER] == "new"


def test_a_file_made_meanwhile_stays(tmp_path):
    with pytest.raises(InputError, match="is a file"):
        write(tmp_path / "out", meanwhile=lambda: (tmp_path / "out").write_text("mine"))
    assert contents(tmp_path) == {"out": "mine"}


def test_a_file_that_comes_before_the_rename_survives(tmp_path, exchange):
    out = tmp_path / "out"
    write(out, "old")
    write(out, "new", overwrite=True, meanwhile=lambda: (out / "late.txt").write_text("mine"))
    assert contents(out) == {MARKER: "new", "train/rows": "new", "late.txt": "mine"}


def test_a_foreign_folder_that_takes_the_place_at_the_last_moment_is_put_back(tmp_path, exchange):
    out = tmp_path / "out"
    write(out, "old")
    checks = []

    def check(folder: Path) -> None:
        checks.append(folder)
        if len(checks) == 3:  # after the exchange: the user replaced the folder between the two last checks
            raise InputError("not ours")

    with pytest.raises(InputError, match="not ours"), atomic_folder(out, check) as staging:
        (staging / MARKER).write_text("new")
    assert contents(tmp_path) == {f"out/{MARKER}": "old", "out/train/rows": "old"}


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_folder_without_a_valid_manifest_is_not_overwritten(tmp_path, damage):
    out = tmp_path / "out"
    write(out, "old")
    manifest = out / MANIFEST_FILE
    manifest.unlink() if damage == "missing" else manifest.write_text(manifest.read_text().replace("rows", "rowz"))
    with pytest.raises(InputError, match=MANIFEST_FILE):
        write(out, "new", overwrite=True)
    assert contents(out)[MARKER] == "old"


def test_an_error_while_writing_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "new/deep/out", meanwhile=lambda: 1 / 0)
    assert list(tmp_path.iterdir()) == []


def test_only_one_process_writes_a_folder(tmp_path):
    def again() -> None:
        with pytest.raises(InputError, match="another process is writing"):
            write(tmp_path / "out")

    write(tmp_path / "out", meanwhile=again)
    assert contents(tmp_path / "out")[MARKER] == "new"


def test_a_worker_that_outlives_its_killed_parent_does_not_keep_the_lock(tmp_path):
    code = (
        "import os, signal, sys, time; from pathlib import Path; from imagelm.utils.folder_lock import locked\n"
        "with locked(Path(sys.argv[1])) as ours:\n"
        "    assert ours\n"
        "    child = os.fork()\n"
        "    if child == 0: os.close(1); time.sleep(600)\n"
        "    print(child, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    parent = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=60)
    assert parent.returncode == -signal.SIGKILL
    worker = int(parent.stdout)
    try:
        os.kill(worker, 0)  # it lives
        with locked(tmp_path, patience=10) as ours:
            assert ours
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_source_inside_the_output_is_refused(tmp_path):
    (tmp_path / "out/photos").mkdir(parents=True)
    for source in (tmp_path / "out/photos", tmp_path / "out", tmp_path / "out/*.jsonl"):
        with pytest.raises(InputError, match=r"--images .* is inside the output folder"):
            check_outside(tmp_path / "out", "--images", source)
    check_outside(tmp_path / "out", "--images", tmp_path / "outside")
    check_outside(tmp_path / "out", "--images", tmp_path)


def test_removing_a_folder_leaves_what_is_not_ours(tmp_path):
    write(tmp_path / "out")
    (tmp_path / "out/train/mine").write_text("mine")
    remove_folder(tmp_path / "out")
    assert contents(tmp_path) == {"out/train/mine": "mine"}
    write(tmp_path / "other")
    remove_folder(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(tmp_path):
    mine = {".out.partial-is my own name": "mine", ".other.partial-abcd1234": "another path's", "notes": "mine"}
    for name, text in mine.items():
        (tmp_path / name).write_text(text)
    (tmp_path / ".out.partial-abcd1234").mkdir()
    (tmp_path / ".out.partial-abcd1234/rows").write_text("half")
    (tmp_path / ".out.partial-4711").write_text("half")
    (tmp_path / ".out.old-abcd1234/out").mkdir(parents=True)
    (tmp_path / ".out.old-abcd1234/out" / MARKER).write_text("moved aside when the kill came")
    assert not remove_leftovers(tmp_path, re.compile("out"))
    assert contents(tmp_path) == {**mine, f"out/{MARKER}": "moved aside when the kill came"}


def test_a_second_writer_leaves_the_first_ones_exchanged_folder_alone(tmp_path):
    """While the earlier folder has a leftover's name, it isn't emptied by two processes at once."""
    out, answers = tmp_path / "out", []
    write(out, "old")

    def check(folder: Path) -> None:
        if folder.name != "out":  # the earlier folder, after the exchange
            answers.append(remove_leftovers(tmp_path, re.compile("out")))
            assert (folder / MARKER).read_text() == "old"

    with atomic_folder(out, check) as staging:
        (staging / MARKER).write_text("new")
    assert answers == [True]
    assert contents(out) == {MARKER: "new"} and os.listdir(tmp_path) == ["out"]


def test_writers_that_start_together_write_or_are_refused(tmp_path):
    """One at a time writes; the others are told, even when its hidden folder vanishes as they look at it."""
    writer = WRITER.replace("output, overwrite", "sys.stdin.readline()\noutput, overwrite", 1)
    words = [sys.executable, "-c", writer, str(tmp_path / "out"), "True", "text", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for _ in range(3):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        writers = [subprocess.Popen(words, env=environment, text=True, **pipes) for _ in range(4)]
        for each in writers:
            each.stdin.write("\n")
            each.stdin.flush()
        ends = [(each.communicate()[1], each.returncode) for each in writers]
        assert all(code in (0, 2) for _, code in ends) and ("", 0) in ends, ends


@pytest.mark.parametrize("num_trials", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_nothing_foreign_is_lost_in_random_interleavings(tmp_path, num_trials):
    """Writers, a second writer, kills and the user's own files, at random moments."""
    draw, environment = random.Random(num_trials), os.environ | {"PYTHONPATH": str(ROOT)}

    def start(out: Path, overwrite: bool, content: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-c", WRITER, str(out), str(overwrite), content, str(draw.choice([0, 0.002, 0.01]))]
        return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    outcomes = {"written": 0, "refused": 0, "killed": 0}
    for trial in range(num_trials):
        home = tmp_path / str(trial)
        home.mkdir()
        out, foreign = home / "out", {}
        if draw.random() < 0.6:
            write(out, "old")
        writers = [start(out, draw.random() < 0.7, f"{trial}.{i}") for i in range(draw.choice([1, 1, 2]))]
        if draw.random() < 0.8:
            writers[0].stdout.readline()  # until it writes, or ended
        for i in range(draw.randrange(4)):
            time.sleep(draw.random() * 0.01)
            name = draw.choice(["notes.txt", "train/mine", "photos/cat.png", "other", "thesis.txt"])
            file = out / f"{i}-{name}" if draw.random() < 0.5 else out / name
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                with open(file, "x") as stream:
                    stream.write(f"mine {trial}.{i}")
            except OSError:
                continue  # the writer's own file, or a folder that was exchanged at this moment
            foreign[f"mine {trial}.{i}"] = file
        if draw.random() < 0.5:
            time.sleep(draw.random() * 0.02)
            draw.choice(writers).kill()
        for writer in writers:
            errors = writer.communicate()[1].decode()
            assert writer.returncode in (0, 2, -9), errors
            outcomes[{0: "written", 2: "refused", -9: "killed"}[writer.returncode]] += 1
        found = {file.read_text() for file in home.rglob("*") if file.is_file()}
        assert foreign.keys() <= found, (trial, foreign)
        # The next writer removes what killed ones left, and still loses nothing.
        last = start(out, True, "last")
        last.communicate()
        assert foreign.keys() <= {file.read_text() for file in home.rglob("*") if file.is_file()}, (trial, foreign)
        if last.returncode == 0:
            assert not [entry for entry in home.iterdir() if ".partial-" in entry.name]
            assert {text for name, text in contents(out).items() if text in ("old", "last")} == {"last"}
    assert min(outcomes.values()) >= num_trials // 20, outcomes
