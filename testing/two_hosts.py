"""Two hosts on one machine: two network namespaces, joined by a virtual cable, with processes of their own.

    python -m testing.two_hosts --fail none|kill|cut -- --dataset_dir data/mine --output_dir outputs/two [options]

trains with one CPU process on each host. `kill` ends all processes of the second host once a checkpoint is saved; `cut`
takes the cable away then. It needs Linux, iproute2 and the right to make namespaces (root, or CAP_SYS_ADMIN).
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parent.parent
ADDRESSES = ("10.213.7.1", "10.213.7.2")
PORT = "29511"
PAUSE = 0.05


class TwoHosts:
    """Two namespaces while the context lasts; afterwards they and everything that ran in them are gone."""

    def __init__(self) -> None:
        self.names = [f"imagelm-{os.getpid()}-{rank}" for rank in (0, 1)]
        self.cables = [f"il{os.getpid() % 100_000}{side}" for side in "ab"]

    def __enter__(self) -> TwoHosts:
        with ExitStack() as stack:
            stack.callback(self.remove)
            for name in self.names:
                ip("netns", "add", name)
            ip("link", "add", self.cables[0], "type", "veth", "peer", "name", self.cables[1])
            for name, cable, address in zip(self.names, self.cables, ADDRESSES, strict=True):
                ip("link", "set", cable, "netns", name)
                ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
                ip("-n", name, "link", "set", cable, "up")
                ip("-n", name, "link", "set", "lo", "up")
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Ends what still runs in the namespaces, and removes them."""
        for rank, name in enumerate(self.names):
            with suppress(subprocess.CalledProcessError):
                self.kill(rank)
                ip("netns", "delete", name)

    def launch(self, rank: int, words: list[str], log: IO[str]) -> subprocess.Popen[str]:
        """Starts a host's part of a training: `accelerate launch` with one process, its output into a file."""
        machines = ("--num_machines", "2", "--machine_rank", str(rank), "--num_processes", "2", "--multi_gpu")
        where = ("--main_process_ip", ADDRESSES[0], "--main_process_port", PORT, "--mixed_precision", "no")
        config = ("--config_file", str(ROOT / "accelerate_config.yaml"))
        launcher = (sys.executable, "-m", "accelerate.commands.launch", *config, *machines, *where)
        environment = os.environ | {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": self.cables[rank]}
        command = ["ip", "netns", "exec", self.names[rank], *launcher, str(ROOT / "train.py"), *words]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, text=True)

    def kill(self, rank: int) -> None:
        """Ends all processes of a host at once, as a power failure does."""
        for pid in map(int, ip("netns", "pids", self.names[rank]).split()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def cut(self) -> None:
        """Takes the cable away: nothing arrives any more, and nobody is told."""
        ip("-n", self.names[1], "link", "set", self.cables[1], "down")


def ip(*words: str) -> str:
    """The output of iproute2's `ip`."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def why_impossible() -> str | None:
    """Why no two hosts can be made here; None if they can."""
    if shutil.which("ip") is None:
        return "two hosts need iproute2's ip"
    try:
        with TwoHosts():
            return None
    except subprocess.CalledProcessError as error:
        return f"two hosts need the right to make network namespaces: {error.stderr.strip()}"


def train_together(words: list[str], folder: Path, fail: str = "none", seconds: float = 600) -> list[tuple[int, str]]:
    """Trains on both hosts; the exit code and the output of each.

    Args:
        words: The options of `imagelm train`, with `--output_dir`.
        folder: For the logs.
        fail: What happens to the second host when the first checkpoint is there: none, kill or cut.
        seconds: How long it may take.

    Raises:
        TimeoutExpired: It took longer.
    """
    output, logs = Path(words[words.index("--output_dir") + 1]), [folder / f"host{rank}.txt" for rank in (0, 1)]
    until = time.monotonic() + seconds
    with TwoHosts() as hosts, ExitStack() as files:
        running = [hosts.launch(rank, words, files.enter_context(log.open("w"))) for rank, log in enumerate(logs)]
        while fail != "none" and not any(output.glob("checkpoint-*/complete.json")):
            if running[0].poll() is not None or time.monotonic() > until:
                break
            time.sleep(PAUSE)
        if fail == "kill":
            hosts.kill(1)
        elif fail == "cut":
            hosts.cut()
        codes = [process.wait(max(1, until - time.monotonic())) for process in running]
    return [(code, log.read_text()) for code, log in zip(codes, logs, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fail", choices=("none", "kill", "cut"), default="none")
    parser.add_argument("--logs", type=Path, default=Path("."), help="folder for host0.txt and host1.txt")
    parser.add_argument("words", nargs="+", help="options of imagelm train, after --")
    options = parser.parse_args()
    if reason := why_impossible():
        sys.exit(f"error: {reason}")
    for rank, (code, text) in enumerate(train_together(options.words, options.logs, options.fail)):
        print(f"--- host {rank}: exit code {code}\n{text}")


if __name__ == "__main__":
    main()
