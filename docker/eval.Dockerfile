# The evaluation. It uses HTTP only, so it has neither torch nor a model. Results are written to /runs.
FROM python:3.11.13-slim-bookworm

RUN useradd --uid 1000 --create-home onlyseen && mkdir /runs && chown onlyseen /runs
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY eval eval
COPY embedded/scenes embedded/scenes
# Without the dependencies of the server, which include torch.
COPY docker/extra.py docker/extra.py
RUN python docker/extra.py eval > /tmp/eval.txt \
 && pip install --no-cache-dir --requirement /tmp/eval.txt \
 && pip install --no-cache-dir --no-deps --editable .

USER 1000
WORKDIR /runs
HEALTHCHECK NONE
ENTRYPOINT ["onlyseen-eval"]
