"""Answers requests over HTTP with a trained model: classify, score, generate, complete.

    imagelm serve --model outputs/mine/best_model
    imagelm serve --model outputs/mine/best_model --host 0.0.0.0 --port 80 --rate 5 --timeout 10

Clients must send the key in the variable IMAGELM_API_KEY, if it is set. SIGTERM and Ctrl-C end the service when it has
answered the requests that it took; log lines on standard error are JSON.
"""

from __future__ import annotations

import importlib.util
import os

from imagelm.commands.parser import Command, fill
from imagelm.inference.arguments import LoadArguments
from imagelm.serving.arguments import API_KEY, ServeArguments
from imagelm.utils.errors import InputError, run_script
from imagelm.utils.imports import imports_kept

COMMAND = Command("serve", __doc__, (LoadArguments, ServeArguments))
LIBRARIES = ("prometheus_client", "pydantic", "python_multipart", "starlette", "uvicorn")


def main() -> None:
    values = COMMAND.parse()
    model, options = fill(LoadArguments, values), fill(ServeArguments, values)
    if missing := [name for name in LIBRARIES if importlib.util.find_spec(name) is None]:
        raise InputError(f'serving needs {missing[0]}, which isn\'t installed: pip install "imagelm[serve]"')
    if (api_key := os.environ.pop(API_KEY, None)) is not None and len(api_key) < 16:
        raise InputError(f"{API_KEY} has {len(api_key)} characters; choose a key of at least 16, or unset the variable")
    # Imported late, so that --help answers at once.
    with imports_kept():
        from imagelm.inference.loading import load_for_inference
        from imagelm.serving.app import make_app
        from imagelm.serving.server import bind, log_json_lines, serve
        from imagelm.utils.quiet import quiet_transformers

    log_json_lines()
    listener = bind(options)  # before the model is loaded, which takes longer
    app = make_app(load_for_inference(model), options, model.batch_size, api_key)
    with quiet_transformers(errors_only=True):  # once, not at each batch
        serve(app, options, listener)


if __name__ == "__main__":
    run_script(main)
