"""Shared by all benchmarks: contestants in separate processes, by turns; medians and ratios; the machine.

One idea: on a shared machine, only runs from the same minutes can be compared. Each round runs every contestant once
(A B C A B C …), and CPU time is reported with wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import shlex
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def environment(threads: int) -> dict[str, str]:
    """The environment of a contestant: offline, with this number of threads."""
    own = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return os.environ | own | {"PYTHONPATH": str(ROOT)}


def run(words: list[str], threads: int, cwd: Path = ROOT, cores: int | None = None) -> dict[str, float]:
    """Runs a command; wall seconds, CPU seconds of it and its children, peak resident MiB of its largest process.

    `peak_anonymous_mib` is that of the command's own process, looked at 20 times a second; 0 but on Linux.

    Raises:
        SystemExit: It failed; the message shows the end of its output.
    """
    cores = threads if cores is None else cores
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    pinned = ["taskset", "-c", f"0-{cores - 1}"] if cores < len(os.sched_getaffinity(0)) else []
    measured = ["/usr/bin/env", *pinned, *words]
    process = subprocess.Popen(
        measured, cwd=cwd, env=environment(threads), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    output, peak, anonymous = _watch(process)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        sys.exit(f"{shlex.join(words)}\nfailed with {process.returncode}:\n{output[-3000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peaks = {"peak_resident_mib": peak, "peak_anonymous_mib": anonymous}
    return {"wall_seconds": wall, "cpu_seconds": cpu, **peaks, "output": output}


def _watch(process: subprocess.Popen) -> tuple[str, float, float]:
    peaks, ended = [0.0], threading.Event()
    watcher = threading.Thread(target=_look_at_memory, args=(process.pid, peaks, ended))
    watcher.start()
    output = process.stdout.read()
    ended.set()
    watcher.join()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return output, usage.ru_maxrss / 1024, max(peaks)


def _look_at_memory(pid: int, peaks: list[float], ended: threading.Event) -> None:
    """Adds a process's anonymous memory in MiB, again and again."""
    while not ended.wait(0.05):
        try:
            found = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
        except OSError:
            return
        if found:
            peaks[0] = max(peaks[0], int(found[1]) / 1024)


def rounds(contestants: dict[str, Callable[[], dict]], num_rounds: int) -> dict[str, list[dict]]:
    """Runs every contestant once per round, and prints its figures."""
    results: dict[str, list[dict]] = {name: [] for name in contestants}
    for i in range(num_rounds):
        for name, contest in contestants.items():
            results[name].append(contest())
            shown = {key: round(value, 4) for key, value in results[name][-1].items() if isinstance(value, float)}
            print(f"round {i + 1} {name}: {shown}", flush=True)
    return results


def median(results: list[dict], key: str) -> float:
    """The median of a figure over the rounds."""
    return statistics.median(result[key] for result in results)


def ratios(results: dict[str, list[dict]], key: str, ours: str) -> dict[str, float]:
    """How many times longer the others take: median of theirs over median of ours."""
    own = median(results[ours], key)
    return {name: round(median(values, key) / own, 3) for name, values in results.items() if name != ours}


def peak_gflops(dtype: str, threads: int, device: str = "cpu") -> float:
    """The best rate of a matrix product on this machine now, in GFLOP a second, over some shapes.

    On a CPU the rate is per second of CPU time, so that other processes don't lower it; with several threads it is that
    of one core.
    """
    import torch

    torch.set_num_threads(threads)
    on_gpu, best = device == "cuda", 0.0
    sizes = ((8192, 8192, 8192), (16384, 4096, 4096)) if on_gpu else ((1608, 384, 1536), (1608, 1536, 384), (2048,) * 3)
    for m, k, n in sizes:
        first, second = (torch.randn(size).to(device, getattr(torch, dtype)) for size in ((m, k), (k, n)))
        seconds = []
        for _ in range(15):
            started = time.perf_counter() if on_gpu else time.process_time()
            first @ second
            if on_gpu:
                torch.cuda.synchronize()
            seconds.append((time.perf_counter() if on_gpu else time.process_time()) - started)
        best = max(best, 2 * m * k * n / statistics.median(seconds) / 1e9)
    return best


def save(name: str, results: dict, output: Path | None = None) -> None:
    """Writes `benchmarks/results/NAME.json` with machine, versions, date and command, and prints it."""
    import torch

    from imagelm.training.run_record import hardware

    libraries = (
        "accelerate",
        "datasets",
        "numpy",
        "onnxruntime",
        "openvino",
        "pyarrow",
        "scikit-learn",
        "torch",
        "transformers",
    )
    versions = {"python": platform.python_version()}
    for library in libraries:
        try:
            versions[library] = version(library)
        except ModuleNotFoundError:
            continue
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {**hardware(torch.device("cpu"), 1, 1), "cores": len(os.sched_getaffinity(0))},
        "gpu": "not measured" if not torch.cuda.is_available() else torch.cuda.get_device_name(),
        "versions": versions,
        **results,
    }
    file = output or RESULTS / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


def random_rows(folder: Path, num_rows: int, length: int, seed: int = 0, num_codes: int = 500) -> Path:
    """Raw JSONL of random rows of 10 classes, and their `vocab.json`; the reference vocabulary has 500 codes."""
    from imagelm.tokens.grammar import NUM_FRAME_TOKENS, Grammar
    from imagelm.tokens.vocabulary import make_vocabulary

    folder.mkdir(parents=True, exist_ok=True)
    grammar, rng = Grammar(make_vocabulary(num_codes, 10)), np.random.default_rng(seed)
    (folder / "vocab.json").write_text(json.dumps(grammar.vocabulary))
    with open(folder / "rows.jsonl", "w", encoding="utf-8") as file:
        for start in range(0, num_rows, 10_000):
            entries = rng.integers(0, num_codes, (min(10_000, num_rows - start), length - NUM_FRAME_TOKENS))
            bodies, labels = grammar.code_ids[entries].reshape(-1), np.arange(len(entries)) % 10
            lengths = np.full(len(entries), entries.shape[1])
            for tokens, label in zip(grammar.sentences(bodies, lengths, labels), labels.tolist(), strict=True):
                file.write(json.dumps({"tokens": tokens, "label": label}) + "\n")
    return folder / "rows.jsonl"


def parser(text: str) -> argparse.ArgumentParser:
    """A parser with the options of all benchmarks."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--rounds", type=int, default=5, help="rounds of each contestant")
    made.add_argument("--threads", type=int, default=1, help="threads and cores of a contestant")
    made.add_argument("--output", type=Path, help="JSON file, instead of one in benchmarks/results")
    return made
