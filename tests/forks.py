"""Commands in forks of a process that has imported their libraries, which takes a new process 10 s of computing.

A fork has what a new process has: memory, environment, signals, standard streams and an exit code of its own. Python's
own options, and variables that libraries read when they are loaded, need a new process.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
SECONDS = 500  # a command takes at most
# What reads no variable of a Hub when it is loaded, and the rest of what commands load.
LIBRARIES = (
    *("torch", "torch._dynamo", "numpy", "pandas", "pyarrow.dataset", "pyarrow.parquet", "aiohttp", "httpx2", "fsspec"),
    *("sklearn.linear_model", "sklearn.metrics", "scipy.stats", "skimage.metrics", "PIL.Image", "tokenizers", "yaml"),
    *("matplotlib.backends.backend_agg", "matplotlib.pyplot", "orjson", "jinja2"),
)
OF_THE_HUB = (
    *("huggingface_hub", "datasets", "evaluate", "accelerate", "transformers.trainer", "transformers.generation"),
    *("transformers.models.gpt2.modeling_gpt2", "transformers.models.gpt2.tokenization_gpt2"),
    "imagelm",  # with all of its modules
)


class Fork:
    """A command that runs, much like `subprocess.Popen`; a new one runs Python with these words.

    Args:
        words: A script, or `-m` or `-c`, and what follows.
        cwd: Where it runs.
        environment: All of its variables.
        given: Its standard input.
    """

    def __init__(self, words: list[str], cwd: Path, environment: dict[str, str], given: bytes = b"") -> None:
        self.args, self.returncode = words, None
        self.folder = tempfile.TemporaryDirectory()
        streams = [Path(self.folder.name, name) for name in ("stdin", "stdout", "stderr")]
        streams[0].write_bytes(given)
        names = environment.keys() | os.environ.keys()
        differing = [name for name in names if environment.get(name) != os.environ.get(name)]
        at_home = not any(name.startswith(("HF_", "TRANSFORMERS_")) for name in differing)
        self.server = server(LIBRARIES + OF_THE_HUB if at_home else LIBRARIES)
        self.streams = list(map(str, streams))
        self.pid = self.ask(words=words, cwd=str(cwd), environment=environment, streams=self.streams)

    def ask(self, **request: object) -> int | None:
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        answer = self.server.stdout.readline()
        assert answer, "the process that forks has ended; its standard error says why"
        return json.loads(answer)

    def poll(self, options: int = os.WNOHANG) -> int | None:
        if self.returncode is None:
            self.returncode = self.ask(pid=self.pid, options=options)
        return self.returncode

    def communicate(self) -> tuple[str, str]:
        """Waits; returns standard output and standard error."""
        self.poll(options=0)
        out, err = (Path(file).read_text("utf-8") for file in self.streams[1:])
        return out, err

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)


@functools.cache
def server(modules: tuple[str, ...]) -> subprocess.Popen[str]:
    """A process that imports the modules and then forks at each request."""
    command = [sys.executable, "-m", "tests.forks", *modules]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.communicate)  # closes its input, at which it ends
    return process


def serve() -> None:
    for name in sys.argv[1:]:
        module = importlib.import_module(name)
        for found in pkgutil.walk_packages(module.__path__, "imagelm.") if name == "imagelm" else ():
            if not found.name.endswith("__main__"):
                importlib.import_module(found.name)
    gc.freeze()  # so that no fork looks through what was imported
    for line in sys.stdin:
        request = json.loads(line)
        if "pid" in request:
            pid, status = os.waitpid(request["pid"], request["options"])
            answer = os.waitstatus_to_exitcode(status) if pid else None
        elif not (answer := os.fork()):
            return become(**request)
        print(json.dumps(answer), flush=True)
    return None


def become(words: list[str], cwd: str, environment: dict[str, str], streams: list[str]) -> None:
    """Does in this process what a new Python would do; what it raises ends the process as it would end that one."""
    signal.alarm(SECONDS)
    for number, file in enumerate(streams):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdin = os.fdopen(0, closefd=False)
    if coding := environment.get("PYTHONIOENCODING"):
        encoding, _, errors = coding.partition(":")
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            stream.reconfigure(encoding=encoding, errors=errors or "strict")
    kind, *rest = words
    if kind == "-m":
        sys.argv, sys.path[0] = rest, cwd
        sys.modules.pop(f"{rest[0]}.__main__", None)  # runpy would warn
        if not hasattr(sys.modules.get(rest[0]), "__path__"):
            sys.modules.pop(rest[0], None)
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = words, str(Path(kind).resolve().parent)
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    serve()
