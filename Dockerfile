# The service in a container; docs/how_to/serve.md shows how to build and start it. Not tried where it was written.
#
#   docker build --tag imagelm .
#   docker build --tag imagelm --build-arg WHEELHOUSE=wheelhouse --network none .    # from wheels, without a network
FROM python:3.13-slim AS build
# A folder beside this file with a wheel of every requirement; empty: pip asks its index.
ARG WHEELHOUSE=""
# A package index with torch's CPU builds; without it pip installs those for CUDA, several gigabytes.
ARG TORCH_INDEX=""
WORKDIR /source
COPY . .
RUN python -m venv /opt/imagelm \
 && if [ -n "$WHEELHOUSE" ]; then OPTIONS="--no-index --find-links $WHEELHOUSE"; \
    elif [ -n "$TORCH_INDEX" ]; then OPTIONS="--extra-index-url $TORCH_INDEX"; fi \
 && /opt/imagelm/bin/pip install --no-cache-dir $OPTIONS "setuptools>=77" -r requirements.txt -r requirements-serve.txt \
 && /opt/imagelm/bin/pip install --no-cache-dir --no-index --no-deps --no-build-isolation .

FROM python:3.13-slim
RUN useradd --create-home --uid 10001 imagelm
COPY --from=build /opt/imagelm /opt/imagelm
USER imagelm
WORKDIR /home/imagelm
ENV PATH=/opt/imagelm/bin:$PATH HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
EXPOSE 8000
HEALTHCHECK --start-period=60s --interval=10s --timeout=3s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
STOPSIGNAL SIGTERM
# The model is mounted at /model. The key of the clients is given by --env IMAGELM_API_KEY.
ENTRYPOINT ["imagelm", "serve", "--host", "0.0.0.0", "--port", "8000", "--model", "/model"]
