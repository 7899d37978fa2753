# The server with the transformers engine. By default it runs the embedded model on a CPU.
FROM python:3.11.13-slim-bookworm

RUN useradd --uid 1000 --create-home onlyseen && mkdir /models /data && chown onlyseen /data
WORKDIR /app
# torch has a layer of its own, which seldom changes. TORCH_INDEX may name the index of its CPU packages.
ARG TORCH_INDEX=
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} torch==2.13.0
COPY pyproject.toml README.md LICENSE ./
COPY onlyseen onlyseen
COPY server server
COPY decoding decoding
COPY eval eval
COPY embedded embedded
# Extras of pyproject.toml. KubeRay needs ray as well.
ARG EXTRAS=otel
RUN pip install --no-cache-dir --editable ".[${EXTRAS}]"

# Weights are mounted at /models. The server downloads nothing unless the container runs with HF_HUB_OFFLINE=0.
ENV HF_HUB_OFFLINE=1 HF_HOME=/models ONLYSEEN_HOST=0.0.0.0 PYTHONUNBUFFERED=1
USER 1000
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=3)"]
ENTRYPOINT ["onlyseen-server"]
