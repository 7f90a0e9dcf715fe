"""The options of `imagelm serve`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from imagelm.utils.command_line import OptionGroup, option
from imagelm.utils.errors import InputError

API_KEY = "IMAGELM_API_KEY"  # variable of the environment


@dataclass(kw_only=True)
class ServeArguments(OptionGroup):
    """Where the service listens, and what it accepts."""

    host: str = option(
        f"address to listen on; 0.0.0.0 is every network, where clients should need a key ({API_KEY})",
        "127.0.0.1",
        group="Service",
        metavar="ADDRESS",
    )
    port: int = option("port to listen on; 0: a free one, which the log names", 8000, minimum=0, maximum=65535)
    batch_wait: float = option(
        "milliseconds to wait for further requests of the same batch (--batch_size); 0: what waits is computed at once",
        0.0,
        minimum=0,
        maximum=1000,
    )
    max_rows: int = option("rows, images or samples of one request", 64, minimum=1, group="Limits of the service")
    max_megapixels: float = option("size of one image, in millions of pixels", 16.0)
    max_body_mb: int = option("size of one request, in MiB", 8, minimum=1, maximum=1024)
    max_memory_mb: int = option("size of all requests that are held at once, in MiB", 256, minimum=1)
    max_waiting: int = option("requests that wait or are computed; more get status 429", 256, minimum=1)
    max_connections: int = option("open connections; more get status 503", 2048, minimum=1)
    rate: float = option("requests a second of one address, on average over ten seconds; 0: no limit", 0.0, minimum=0)
    timeout: float = option("seconds that a request may take, from its first byte to its answer", 30.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_megapixels", "timeout"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"--{name} {getattr(self, name)}: give a positive number")
        if not self.rate < math.inf:
            raise InputError(f"--rate {self.rate}: give a number, or 0 for no limit")
        if self.max_memory_mb < self.max_body_mb:
            raise InputError(
                f"--max_memory_mb {self.max_memory_mb} is less than --max_body_mb {self.max_body_mb}; raise it"
            )
