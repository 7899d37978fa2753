"""What the server is started with: flags before environment (ONLYSEEN_*) before a TOML file before the defaults."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    CliApp,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

PREFIX = "ONLYSEEN_"
EMBEDDED = Path(__file__).resolve().parents[1] / "embedded"
EMBEDDED_NAME = "onlyseen-tiny"
HUB_ID = r"\w[\w.-]*(/\w[\w.-]*)?"


class Settings(BaseSettings):
    """Serve a vision-language model over the OpenAI API, with hallucination mitigation chosen per request."""

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
    port: Annotated[int, Field(ge=0, le=65535, description="port to listen on; 0 takes a free one")] = 8000
    model: Annotated[str, Field(min_length=1, description="folder or hub id of the model")] = str(EMBEDDED / "model")
    served_name: Annotated[
        str | None,
        Field(pattern=r"^[^:\s]+$", description="what clients call the model; else 'onlyseen-tiny' or the hub id"),
    ] = None
    engine: Annotated[Literal["hf", "vllm"], Field(description="hf: transformers; vllm: throughput")] = "hf"
    strategy: Annotated[str, Field(description="for requests that name none, as in 'vhr' or 'agla+vhr'")] = "plain"
    device: Annotated[
        str, Field(description="hf: auto, cpu, cuda, cuda:1 ...; auto takes a GPU where there is one")
    ] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Field(description="auto: float32 on a CPU, bfloat16 on a GPU"),
    ] = "auto"
    matcher: Annotated[
        str | None,
        Field(description="folder or hub id of the image-text matcher (AGLA); the embedded model brings its own"),
    ] = None
    quantization: Annotated[Literal["4bit", "8bit"] | None, Field(description="through bitsandbytes")] = None
    prefix_cache_mb: Annotated[
        int, Field(ge=0, description="hf: keys and values of pictures kept for the next question, megabytes")
    ] = 128
    max_rows: Annotated[
        int | None,
        Field(ge=1, description="prompts and branches that run at once; else 32 with engine hf, 64 with vllm"),
    ] = None
    max_waiting: Annotated[int, Field(ge=1, description="rows that may wait; beyond them requests get a 429")] = 256
    context: Annotated[
        int | None, Field(ge=16, description="vllm: most tokens of a request, prompt and answer; else the model's")
    ] = None
    cache_gb: Annotated[
        float | None,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="vllm: GiB of cached keys and values; else 1 on a CPU, or all of a GPU",
        ),
    ] = None
    api_keys: Annotated[
        SecretStr | None,
        Field(description="comma-separated keys, one of which every request needs; better in the environment"),
    ] = None
    api_keys_file: Annotated[Path | None, Field(description="a file with more of them, one a line, # for remarks")] = (
        None
    )
    rate_limit: Annotated[str | None, Field(description="requests with one API key, as in '60/minute'")] = None
    otlp_endpoint: Annotated[
        str | None,
        Field(pattern="^https?://", description="collector for OpenTelemetry traces, as in http://localhost:4318"),
    ] = None
    playground: Annotated[
        Literal["on", "open", "off"],
        Field(description="the page at /; open: without an API key too, it then asks for one"),
    ] = "on"
    max_body_mb: Annotated[int, Field(ge=1, description="largest request body, megabytes")] = 20
    max_images: Annotated[int, Field(ge=0, description="most images in one request")] = 16
    image_hosts: Annotated[
        str,
        Field(description="comma-separated host or host:port that images are fetched from; empty: data URLs only"),
    ] = ""
    image_cache_mb: Annotated[int, Field(ge=0, description="decoded pictures kept for the next turn, megabytes")] = 256
    data_dir: Annotated[
        Path | None,
        Field(
            description="folder of files and batches, which go on after a restart; without it they end with the server"
        ),
    ] = None
    max_file_mb: Annotated[int, Field(ge=1, description="largest file of a batch, megabytes")] = 512
    max_data_mb: Annotated[int, Field(ge=1, description="all files together, megabytes")] = 4096
    batch_requests: Annotated[int, Field(ge=1, description="requests of a batch that run at once")] = 8
    request_timeout: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="seconds that a request gets, from its images to its end")
    ] = 600
    shutdown_timeout: Annotated[int, Field(ge=0, description="seconds that running answers get to finish")] = 30

    @field_validator("strategy")
    @classmethod
    def _is_named(cls, strategy: str) -> str:
        if not all(strategy.split("+")):
            raise ValueError("name strategies as in 'vhr' or 'agla+vhr'")
        return strategy

    @field_validator("model", "matcher")
    @classmethod
    def _can_be_found(cls, source: str | None) -> str | None:
        if source is not None and not Path(source).is_dir() and not re.fullmatch(HUB_ID, source):
            raise ValueError(f"there is no folder {source}, and a hub id looks like OWNER/NAME")
        return source

    @field_validator("image_hosts")
    @classmethod
    def _are_hosts(cls, hosts: str) -> str:
        from server.address import AllowList

        AllowList(listed(hosts))
        return hosts

    @model_validator(mode="after")
    def _closes_the_door(self) -> Settings:
        """A door that is to be locked is not left open because a variable or a file is empty."""
        named = self.api_keys is not None or self.api_keys_file is not None
        if named and not self.known_keys():
            raise ValueError("api_keys: there is no key in it; leave it out for a server that is open to all")
        if self.rate_limit is None:
            return self
        if not named:
            raise ValueError("rate_limit: it counts per API key; set api_keys too")
        from limits import parse

        try:
            parse(self.rate_limit)
        except ValueError:
            raise ValueError("rate_limit: write it as in '60/minute' or '5 per second'") from None
        return self

    @model_validator(mode="after")
    def _ignores_nothing(self) -> Settings:
        for name in ("context", "cache_gb"):
            if self.engine != "vllm" and getattr(self, name) is not None:
                raise ValueError(f"{name}: only with engine vllm")
        if self.engine != "hf" and self.device != "auto":
            raise ValueError("device: only with engine hf; vLLM runs on what it was built for")
        if self.engine != "hf" and "prefix_cache_mb" in self.model_fields_set:
            raise ValueError("prefix_cache_mb: only with engine hf; vLLM keeps prefixes in its own cache")
        return self

    @classmethod
    def load(cls, arguments: Sequence[str] = ()) -> Settings:
        """From command-line arguments, the environment and the file that either of them names.

        Raises:
            SystemExit: --help, or a bad flag.
            ValueError: a bad value, or an environment variable that looks like a setting and is none.
        """
        refuse_unknown(os.environ)
        return CliApp.run(cls, cli_args=list(arguments))

    @property
    def is_embedded(self) -> bool:
        return Path(self.model).resolve() == (EMBEDDED / "model").resolve()

    @property
    def name(self) -> str:
        """What clients call the model."""
        if self.served_name:
            return self.served_name
        if self.is_embedded:
            return EMBEDDED_NAME
        return Path(self.model).resolve().name if Path(self.model).is_dir() else self.model

    def known_keys(self) -> list[str]:
        """Raises:
        OSError: the file cannot be read.
        """
        keys = listed(self.api_keys.get_secret_value()) if self.api_keys else []
        lines = self.api_keys_file.read_text().splitlines() if self.api_keys_file else []
        return keys + [key for line in lines if (key := line.strip()) and not key.startswith("#")]

    @property
    def rows(self) -> int:
        """A CPU's cores are busy with half as many rows, and the caches take half the memory."""
        return self.max_rows or {"hf": 32, "vllm": 64}[self.engine]

    def allowed_hosts(self) -> list[str]:
        return listed(self.image_hosts)

    @property
    def matcher_source(self) -> str | None:
        brought = EMBEDDED / "matcher"
        return self.matcher or (str(brought) if self.is_embedded and brought.is_dir() else None)

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], *args: Any, **sources: PydanticBaseSettingsSource
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (sources["init_settings"], sources["env_settings"], ConfigFile(settings_cls))


class ConfigFile(TomlConfigSettingsSource):
    """The TOML file that a source before this one has named as `config`."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls, toml_file=None)

    def __call__(self) -> dict[str, Any]:
        file = self.current_state.get("config")
        return self._read_file(Path(file)) if file else {}


def listed(text: str) -> list[str]:
    return [entry for part in text.split(",") if (entry := part.strip())]


def refuse_unknown(environment: Any) -> None:
    """A misspelt ONLYSEEN_API_KEY must not leave a door open without a word."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    unknown = sorted(name for name in environment if name.upper().startswith(PREFIX) and name.upper() not in known)
    if unknown:
        raise ValueError(f"Unknown setting {unknown[0]} in the environment. Known: {', '.join(sorted(known))}.")
