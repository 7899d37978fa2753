# The server with the transformers engine. On a CPU with the embedded model unless told otherwise.
FROM python:3.11.13-slim-bookworm

RUN useradd --uid 1000 --create-home onlyseen && mkdir /models /data && chown onlyseen /data
WORKDIR /app
# torch by itself: the layer changes seldom, and the index of its CPU packages may be given at build time.
ARG TORCH_INDEX=
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} torch==2.13.0
COPY pyproject.toml README.md LICENSE ./
COPY server server
COPY decoding decoding
COPY eval eval
COPY embedded embedded
RUN pip install --no-cache-dir --editable '.[otel]'

# Weights are mounted at /models, and nothing is fetched unless HF_HUB_OFFLINE=0 is set when the container is run.
ENV HF_HUB_OFFLINE=1 HF_HOME=/models ONLYSEEN_HOST=0.0.0.0 PYTHONUNBUFFERED=1
USER 1000
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=3)"]
ENTRYPOINT ["onlyseen-server"]
