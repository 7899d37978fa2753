"""The settings of the server. Precedence: flags, environment variables (ONLYSEEN_*), a TOML file, defaults."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliImplicitFlag,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from server.host_names import EVERY_ORIGIN, check_allowed_host, check_origin
from server.process_setup import check_certificate

PREFIX = "ONLYSEEN_"
EMBEDDED_DIR = Path(__file__).resolve().parents[1] / "embedded"
EMBEDDED_NAME = "onlyseen-tiny"
HUB_ID_PATTERN = r"\w[\w.-]*(/\w[\w.-]*)?"


class Settings(BaseSettings):
    """Serve a vision-language model over the OpenAI API, with hallucination mitigation chosen per request.

    `--version` prints the version.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        extra="forbid",
        frozen=True,
        cli_prog_name="onlyseen-server",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    config: Annotated[Path | None, Field(description="a TOML file with any of these settings")] = None
    host: Annotated[str, Field(description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="port to listen on; 0 selects a free port")] = 8000
    model: Annotated[str, Field(min_length=1, description="folder or hub id of the model")] = str(
        EMBEDDED_DIR / "model"
    )
    served_name: Annotated[
        str | None,
        Field(
            pattern=r"^[^:\s]+$",
            description="name of the model in the API; default: 'onlyseen-tiny', the folder's name or the hub id",
        ),
    ] = None
    engine: Annotated[
        Literal["hf", "vllm"], Field(description="hf: the transformers engine; vllm: the vLLM engine, for throughput")
    ] = "hf"
    strategy: Annotated[str, Field(description="default strategy of requests, such as 'vhr' or 'agla+vhr'")] = "plain"
    device: Annotated[str, Field(description="hf: auto, cpu, cuda, cuda:1 ...; auto selects a GPU if there is one")] = (
        "auto"
    )
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Field(description="auto: float32 on a CPU, bfloat16 on a GPU"),
    ] = "auto"
    matcher: Annotated[
        str | None,
        Field(description="folder or hub id of the image-text matcher (AGLA); the embedded model has its own"),
    ] = None
    attention_statistics: Annotated[
        Path | None,
        Field(description="file with statistics of the model's attention heads (adaiat), see docs/operations.md"),
    ] = None
    steering_vectors: Annotated[
        Path | None,
        Field(description="folder with steering vectors as safetensors files, which clients select by name"),
    ] = None
    chat_template: Annotated[
        Path | None, Field(description="file with a Jinja chat template, in place of the checkpoint's")
    ] = None
    quantization: Annotated[
        Literal["4bit", "8bit"] | None, Field(description="hf: quantization of the weights with bitsandbytes")
    ] = None
    prefix_cache_mb: Annotated[
        int, Field(ge=0, description="hf: size of the prefix cache of image prompts, megabytes")
    ] = 128
    max_rows: Annotated[
        int | None,
        Field(ge=1, description="prompts and branches in one batch; default: 32 with engine hf, 64 with vllm"),
    ] = None
    max_waiting: Annotated[int, Field(ge=1, description="rows that may wait; further requests get a 429")] = 256
    context: Annotated[
        int | None, Field(ge=16, description="vllm: maximum tokens of prompt and answer together; default: the model's")
    ] = None
    tensor_parallel: Annotated[
        int, Field(ge=1, description="vllm: GPUs that share each layer of the model, or processes on a CPU")
    ] = 1
    async_scheduling: Annotated[
        bool, Field(description="vllm: plan the next step while this one runs, which a CPU build of vLLM cannot")
    ] = False
    cache_gb: Annotated[
        float | None,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="size of the KV cache, GiB; default: 7 full contexts with engine hf; with vllm 1 on a CPU, all "
            "free memory of a GPU",
        ),
    ] = None
    api_keys: Annotated[
        SecretStr | None,
        Field(description="comma-separated API keys; set them in the environment rather than as a flag"),
    ] = None
    api_keys_file: Annotated[
        Path | None, Field(description="file with further API keys, one a line; # starts a comment line")
    ] = None
    ssl_certfile: Annotated[
        Path | None, Field(description="file with the TLS certificate and its chain; the server then speaks HTTPS only")
    ] = None
    ssl_keyfile: Annotated[
        Path | None, Field(description="file with the private key of the certificate; default: the certificate's file")
    ] = None
    ssl_keyfile_password: Annotated[
        SecretStr | None, Field(description="password of the private key; set it in the environment, not as a flag")
    ] = None
    metrics_key: Annotated[
        SecretStr | None,
        Field(
            min_length=1,
            description="API key of /metrics alone, for the operator; with two or more API keys no other key opens it",
        ),
    ] = None
    rate_limit: Annotated[str | None, Field(description="rate limit of each API key, such as '60/minute'")] = None
    key_share: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="share of rows, queue, memory and storage that one of several API keys may hold",
        ),
    ] = 0.5
    otlp_endpoint: Annotated[
        str | None,
        Field(pattern="^https?://", description="collector of OpenTelemetry traces, such as http://localhost:4318"),
    ] = None
    playground: Annotated[
        Literal["on", "open", "off"],
        Field(description="the page at /; open: the page itself needs no API key, and has a field for the key"),
    ] = "on"
    strict: Annotated[
        CliImplicitFlag[bool],
        Field(
            description="refuse fields of OpenAI's and vLLM's requests that have no effect, instead of ignoring them"
        ),
    ] = False
    max_body_mb: Annotated[int, Field(ge=1, description="maximum size of a request body, megabytes")] = 20
    max_buffered_mb: Annotated[
        int, Field(ge=1, description="maximum size of all request bodies in memory together, megabytes")
    ] = 256
    header_timeout: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="time limit of the headers of a request, seconds")
    ] = 30
    body_timeout: Annotated[
        float,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="time limit of a request body, seconds; every 100 kB that arrive add a second",
        ),
    ] = 30
    allowed_hosts: Annotated[
        str,
        Field(
            description="comma-separated names without ports that the Host header of requests may have, beside IP "
            "addresses and localhost; *: every name, which is the default with API keys and on an address that is not "
            "loopback"
        ),
    ] = ""
    cors_origins: Annotated[
        str,
        Field(
            description="comma-separated origins, such as https://example.org, whose pages may use the server from a "
            "browser; *: every origin, which needs API keys"
        ),
    ] = ""
    max_images: Annotated[int, Field(ge=0, description="maximum number of images in a request")] = 16
    image_hosts: Annotated[
        str,
        Field(description="comma-separated hosts (host or host:port) of image URLs; empty: data URLs only"),
    ] = ""
    share_caches: Annotated[
        CliImplicitFlag[bool],
        Field(
            description="let API keys share the caches of images, prompts and relevance maps; faster if they send "
            "the same images, but response times then reveal the images of other keys"
        ),
    ] = False
    image_cache_mb: Annotated[int, Field(ge=0, description="size of the cache of decoded images, megabytes")] = 128
    image_memory_mb: Annotated[
        int,
        Field(
            ge=1,
            description="size of the decoded images of all requests that wait or run, megabytes; other requests wait",
        ),
    ] = 128
    pixel_memory_mb: Annotated[
        int,
        Field(
            ge=1,
            description="size of the images of all requests as the model reads them, megabytes, estimated from their "
            "sizes and the number of rows; other requests wait",
        ),
    ] = 4096
    grammar_memory_mb: Annotated[
        int,
        Field(
            ge=1,
            description="size of the compiled schemas of all requests that wait or run, megabytes; other requests wait",
        ),
    ] = 256
    data_dir: Annotated[
        Path | None,
        Field(
            description="folder of one server's files and batches, which survive a restart; default: a temporary folder"
        ),
    ] = None
    max_file_mb: Annotated[int, Field(ge=1, description="maximum size of an uploaded file, megabytes")] = 512
    max_data_mb: Annotated[
        int, Field(ge=1, description="maximum size of all files together, with results and running uploads, megabytes")
    ] = 4096
    batch_requests: Annotated[int, Field(ge=1, description="requests of batches that run concurrently")] = 8
    request_timeout: Annotated[
        float,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="time limit of a request, from loading its images to its last token, seconds",
        ),
    ] = 600
    shutdown_timeout: Annotated[
        int, Field(ge=0, description="time limit of running requests after a stop signal, seconds")
    ] = 30

    @field_validator("strategy")
    @classmethod
    def _check_strategy(cls, strategy: str) -> str:
        if not all(strategy.split("+")):
            raise ValueError("must be the name of a strategy, or names joined by '+', such as 'agla+vhr'")
        return strategy

    @field_validator("model", "matcher")
    @classmethod
    def _check_model_source(cls, source: str | None) -> str | None:
        if source is not None and not Path(source).is_dir() and not re.fullmatch(HUB_ID_PATTERN, source):
            raise ValueError(f"there is no folder {source}, and a hub id has the form OWNER/NAME")
        return source

    @field_validator("chat_template", "attention_statistics")
    @classmethod
    def _check_file(cls, file: Path | None) -> Path | None:
        if file is not None and not file.is_file():
            raise ValueError(f"there is no file {file}")
        return file

    @field_validator("steering_vectors")
    @classmethod
    def _check_steering_vectors(cls, folder: Path | None) -> Path | None:
        if folder is not None and not folder.is_dir():
            raise ValueError(f"there is no folder {folder}")
        return folder

    @field_validator("allowed_hosts")
    @classmethod
    def _check_allowed_hosts(cls, hosts: str) -> str:
        for host in split_list(hosts):
            check_allowed_host(host)
        return hosts

    @field_validator("cors_origins")
    @classmethod
    def _check_cors_origins(cls, origins: str) -> str:
        for origin in split_list(origins):
            check_origin(origin)
        return origins

    @field_validator("image_hosts")
    @classmethod
    def _check_image_hosts(cls, hosts: str) -> str:
        from server.media.host_allowlist import HostAllowlist

        HostAllowlist(split_list(hosts))
        return hosts

    @model_validator(mode="after")
    def _check_access(self) -> Settings:
        """Reject an empty list of keys: an empty variable or file must not open the server to everyone."""
        has_key_source = self.api_keys is not None or self.api_keys_file is not None
        if has_key_source and not self.load_api_keys():
            raise ValueError("api_keys: there is no key in the list; omit the setting for a server without keys")
        if EVERY_ORIGIN in self.list_cors_origins() and not has_key_source:
            raise ValueError("cors_origins: '*' needs api_keys, because every page could use the server; list origins")
        if self.rate_limit is None:
            return self
        if not has_key_source:
            raise ValueError("rate_limit: the limit counts per API key; set api_keys too")
        from limits import parse

        try:
            parse(self.rate_limit)
        except ValueError:
            raise ValueError("rate_limit: must have a form such as '60/minute' or '5 per second'") from None
        return self

    @model_validator(mode="after")
    def _check_tls(self) -> Settings:
        if self.ssl_certfile is not None:
            check_certificate(self.ssl_certfile, self.ssl_keyfile, self.ssl_password)
        elif self.ssl_keyfile is not None or self.ssl_keyfile_password is not None:
            raise ValueError("ssl_certfile: a private key needs a certificate; set ssl_certfile too")
        return self

    @model_validator(mode="after")
    def _check_body_memory(self) -> Settings:
        if self.max_buffered_mb < self.max_body_mb:
            raise ValueError("max_buffered_mb: must hold at least one body of max_body_mb")
        return self

    @model_validator(mode="after")
    def _check_engine_options(self) -> Settings:
        """Reject settings that the selected engine would ignore."""
        if self.engine != "vllm" and self.context is not None:
            raise ValueError("context: only with engine vllm")
        if self.engine != "vllm" and self.tensor_parallel > 1:
            raise ValueError("tensor_parallel: only with engine vllm")
        if self.engine != "vllm" and self.async_scheduling:
            raise ValueError("async_scheduling: only with engine vllm")
        if self.engine != "hf" and self.device != "auto":
            raise ValueError("device: only with engine hf; vLLM runs on the device that it was built for")
        if self.engine != "hf" and "prefix_cache_mb" in self.model_fields_set:
            raise ValueError("prefix_cache_mb: only with engine hf; vLLM has its own prefix cache")
        return self

    @property
    def cache_bytes(self) -> int | None:
        """Size of the KV cache; None: the engine's default."""
        return None if self.cache_gb is None else int(self.cache_gb * (1 << 30))

    @property
    def ssl_password(self) -> str | None:
        """Password of the private key of the TLS certificate."""
        return None if self.ssl_keyfile_password is None else self.ssl_keyfile_password.get_secret_value()

    @classmethod
    def load(cls, arguments: Sequence[str] = ()) -> Settings:
        """Load settings from arguments, the environment and the file that either of them names.

        Args:
            arguments: Command-line arguments. `--help` and unknown flags exit.

        Returns:
            Validated settings.
        """
        reject_unknown_variables(os.environ)
        return CliApp.run(cls, cli_args=list(arguments))

    @property
    def is_embedded(self) -> bool:
        """Whether the model is the embedded one."""
        return Path(self.model).resolve() == (EMBEDDED_DIR / "model").resolve()

    @property
    def name(self) -> str:
        """The name of the model in the API."""
        if self.served_name:
            return self.served_name
        if self.is_embedded:
            return EMBEDDED_NAME
        return Path(self.model).resolve().name if Path(self.model).is_dir() else self.model

    def load_api_keys(self) -> list[str]:
        """Load the API keys of the setting and of the file."""
        keys = split_list(self.api_keys.get_secret_value()) if self.api_keys else []
        lines = self.api_keys_file.read_text().splitlines() if self.api_keys_file else []
        return keys + [key for line in lines if (key := line.strip()) and not key.startswith("#")]

    @cached_property  # the keys may be in a file
    def has_shares(self) -> bool:
        """Whether one API key may hold a share only, because there are two or more keys."""
        return len(self.load_api_keys()) > 1

    def compute_key_share(self, units: int) -> int:
        """Compute the units that one API key may hold.

        Args:
            units: Units of all keys, such as rows or bytes.

        Returns:
            The share, rounded up, so that each key has at least one unit. With fewer than two keys it is all units.
        """
        return math.ceil(self.key_share * units) if self.has_shares else units

    @property
    def resolved_max_rows(self) -> int:
        """The rows of a batch, with the engine's default.

        The transformers engine has fewer, because they occupy a CPU's cores and need half the cache memory.
        """
        return self.max_rows or {"hf": 32, "vllm": 64}[self.engine]

    def list_allowed_hosts(self) -> list[str]:
        return split_list(self.allowed_hosts)

    def list_cors_origins(self) -> list[str]:
        """Return the origins whose pages may use the server, in the form in which browsers send them."""
        return [origin.lower() for origin in split_list(self.cors_origins)]

    def list_image_hosts(self) -> list[str]:
        return split_list(self.image_hosts)

    @property
    def matcher_source(self) -> str | None:
        """The folder or hub id of the matcher, if there is one."""
        embedded = EMBEDDED_DIR / "matcher"
        return self.matcher or (str(embedded) if self.is_embedded and embedded.is_dir() else None)

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], *args: Any, **sources: PydanticBaseSettingsSource
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources in the order of precedence."""
        return (sources["init_settings"], sources["env_settings"], ConfigFileSource(settings_cls))


class ConfigFileSource(TomlConfigSettingsSource):
    """The TOML file that an earlier source has set as `config`."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls, toml_file=None)

    def __call__(self) -> dict[str, Any]:
        file = self.current_state.get("config")
        return self._read_file(Path(file)) if file else {}


def split_list(text: str) -> list[str]:
    return [entry for part in text.split(",") if (entry := part.strip())]


def reject_unknown_variables(environment: Iterable[str]) -> None:
    """Reject variables with the prefix that are no settings: a misspelt ONLYSEEN_API_KEY must not leave a server open.

    Args:
        environment: The environment variables.

    Raises:
        ValueError: A variable is unknown.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    unknown = sorted(name for name in environment if name.upper().startswith(PREFIX) and name.upper() not in known)
    if unknown:
        raise ValueError(
            f"Unknown setting {unknown[0]} in the environment. Known settings: {', '.join(sorted(known))}."
        )
