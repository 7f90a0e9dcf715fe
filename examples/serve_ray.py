"""The service of `imagelm serve` as a deployment of Ray Serve: several copies of it behind one address.

    pip install "imagelm[serve]" "ray[serve]==2.60.0"
    python -m examples.serve_ray --model outputs/mine/best_model --copies 2

It starts Ray on this machine; with RAY_ADDRESS set it uses that cluster, whose machines need both packages and the
model, by a path that all of them have or by its name on the Hub.
"""

from __future__ import annotations

import argparse

MAX_WAITING = 256  # requests that a copy holds at once; others wait at Ray's proxy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="a trained folder, or its name on the Hub")
    parser.add_argument("--copies", type=int, default=2, help="each loads the model")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on")
    given = parser.parse_args()

    from ray import serve
    from starlette.applications import Starlette

    from imagelm.inference.arguments import LoadArguments
    from imagelm.inference.loading import load_for_inference
    from imagelm.serving.app import make_app
    from imagelm.serving.arguments import ServeArguments

    def app() -> Starlette:  # called in the process of each copy
        model = LoadArguments(model=given.model)
        return make_app(load_for_inference(model), ServeArguments(max_waiting=MAX_WAITING), model.batch_size, None)

    @serve.deployment(num_replicas=given.copies, max_ongoing_requests=MAX_WAITING)
    @serve.ingress(app)
    class ImageLM:
        """Everything is in the application."""

    serve.start(http_options={"host": given.host, "port": given.port})
    serve.run(ImageLM.bind(), blocking=True)


if __name__ == "__main__":
    main()
