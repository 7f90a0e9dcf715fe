#!/usr/bin/env python
"""Requests a second and latencies of `imagelm serve` on loopback, with dynamic batching and without it.

    python -m benchmarks.serve --model outputs/digits/best_model

Both services run during the whole benchmark and are asked by turns: 1, 8 and 64 clients, each of which sends its next
request, one row to classify, when it has the answer. Clients and services share the cores; without other work on the
machine the clients take about a third of them.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from statistics import median

import numpy as np

from benchmarks.common import ROOT, environment, parser, save

CLIENTS = (1, 8, 64)
SERVICES = {"batched": 64, "unbatched": 1}  # --batch_size


def main() -> None:
    made = parser(__doc__.split("\n")[0])
    made.add_argument("--model", required=True, help="trained folder with its codec")
    made.add_argument("--seconds", type=float, default=3, help="of each measurement")
    arguments = made.parse_args()
    services = {name: start(arguments.model, size, arguments.threads) for name, size in SERVICES.items()}
    try:
        requests = {name: request_of(port, arguments.model) for name, (_, port) in services.items()}
        found: dict = {str(clients): {name: [] for name in SERVICES} for clients in CLIENTS}
        for _ in range(arguments.rounds):
            for clients in CLIENTS:
                for name, (process, port) in services.items():
                    before = cpu_seconds(process.pid)
                    measured = asyncio.run(ask(port, requests[name], clients, arguments.seconds))
                    measured["service_cpu_ms"] = 1e3 * (cpu_seconds(process.pid) - before) / measured.pop("answers")
                    found[str(clients)][name].append(measured)
                    print(clients, name, {key: round(value, 2) for key, value in measured.items()}, flush=True)
    finally:
        for process, _ in services.values():
            process.terminate()
            process.wait()
    save("serve", {"threads": arguments.threads, "rounds": arguments.rounds, "clients": table(found)}, arguments.output)


def table(found: dict) -> dict:
    """Medians over the rounds; the ratio of the answers is the median of the rounds' ratios."""
    lines: dict = {}
    for clients, services in found.items():
        lines[clients] = {
            name: {key: round(median(values[key] for values in rounds), 3) for key in rounds[0]}
            for name, rounds in services.items()
        }
        pairs = zip(services["batched"], services["unbatched"], strict=True)
        ratios = [first["answers_a_second"] / second["answers_a_second"] for first, second in pairs]
        lines[clients]["times_as_many_answers"] = round(median(ratios), 2)
    return lines


def start(model: str, batch_size: int, threads: int) -> tuple[subprocess.Popen, int]:
    """A service, once it listens; gives its process and port."""
    words = ["--model", model, "--port", "0", "--batch_size", str(batch_size)]
    process = subprocess.Popen(
        [sys.executable, "-m", "imagelm", "serve", *words],
        cwd=ROOT,
        env=environment(threads),
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if json.loads(line)["event"] == "listening":
            # The log goes on into a pipe that a thread empties, as a collector of logs would.
            subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
            return process, int(json.loads(line)["url"].rpartition(":")[2])
    sys.exit("the service ended")


def request_of(port: int, model: str) -> bytes:
    """A request that classifies a random row of the model's length."""
    from imagelm.inference.arguments import LoadArguments
    from imagelm.inference.loading import load_for_inference

    loaded = load_for_inference(LoadArguments(model=model, device="cpu"))
    body = np.random.default_rng(0).choice(loaded.grammar.code_ids, loaded.num_image_tokens)
    content = json.dumps({"inputs": [{"tokens": loaded.text(loaded.grammar.question(body))}]}).encode()
    head = f"POST /v1/classify HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
    return head.encode() + f"content-length: {len(content)}\r\n\r\n".encode() + content


async def ask(port: int, request: bytes, num_clients: int, seconds: float) -> dict[str, float]:
    """Answers a second, and the median and 99th percentile of their latency in milliseconds."""
    latencies: list[float] = []
    end = time.perf_counter() + seconds + 0.5

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (started := time.perf_counter()) < end:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 "), head
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))
            if started > end - seconds:  # the first half second warms up
                latencies.append(time.perf_counter() - started)
        writer.close()

    await asyncio.gather(*(client() for _ in range(num_clients)))
    p50, p99 = np.quantile(latencies, [0.5, 0.99]) * 1e3
    return {
        "answers_a_second": len(latencies) / seconds,
        "p50_ms": p50,
        "p99_ms": p99,
        "answers": float(len(latencies)),
    }


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        user, system = file.read().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / 100


if __name__ == "__main__":
    main()
