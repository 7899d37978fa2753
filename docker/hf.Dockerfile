# The server with the transformers engine, on a CPU, with the embedded model.
FROM python:3.11-slim-bookworm

RUN useradd --create-home onlyseen
WORKDIR /app
# torch by itself: the layer changes seldom, and the index of its CPU packages may be given at build time.
ARG TORCH_INDEX=
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} torch==2.13.0
COPY pyproject.toml README.md LICENSE ./
COPY server server
COPY decoding decoding
COPY eval eval
COPY embedded embedded
RUN pip install --no-cache-dir --editable .

USER onlyseen
EXPOSE 8000
HEALTHCHECK --interval=10s --start-period=60s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/ready', timeout=3)"]
ENTRYPOINT ["onlyseen-server", "--host", "0.0.0.0"]
