# The server with the vLLM engine, on an NVIDIA GPU.
FROM nvidia/cuda:12.9.1-runtime-ubuntu24.04

# vLLM compiles kernels at start, which needs a C compiler and Python's headers.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3.12-venv python3.12-dev gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/* \
 && userdel --remove ubuntu \
 && useradd --uid 1000 --create-home onlyseen && mkdir /models /data && chown onlyseen /data
ENV PATH=/venv/bin:$PATH
WORKDIR /app
RUN python3.12 -m venv /venv && pip install --no-cache-dir vllm==0.32.0
COPY pyproject.toml README.md LICENSE ./
COPY onlyseen onlyseen
COPY server server
COPY decoding decoding
COPY eval eval
COPY embedded embedded
# Extras of pyproject.toml. KubeRay needs ray as well.
ARG EXTRAS=vllm,otel
RUN pip install --no-cache-dir --editable ".[${EXTRAS}]"

ENV HF_HUB_OFFLINE=1 HF_HOME=/models ONLYSEEN_HOST=0.0.0.0 ONLYSEEN_ENGINE=vllm PYTHONUNBUFFERED=1
USER 1000
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=3)"]
ENTRYPOINT ["onlyseen-server"]
