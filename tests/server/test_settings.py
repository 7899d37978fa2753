"""Settings: precedence of sources, refusals, and the texts of the command."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from decoding.errors import Unsupported
from server.engine_factory import create_engine
from server.settings import EMBEDDED_NAME, Settings
from server.startup_banner import format_banner, format_curl_example

HELP = """
import sys
from server.__main__ import main
sys.argv = ["onlyseen-server", "--help"]
try:
    main()
except SystemExit:
    print({"torch", "transformers", "fastapi", "openai"} & set(sys.modules))
"""


def test_flags_precede_environment_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "onlyseen.toml"
    file.write_text('host = "file"\nport = 1\nstrategy = "vcd"\n')
    monkeypatch.setenv("ONLYSEEN_CONFIG", str(file))
    monkeypatch.setenv("ONLYSEEN_PORT", "2")
    monkeypatch.setenv("ONLYSEEN_HOST", "environment")
    settings = Settings.load(["--host", "flag"])
    assert (settings.host, settings.port, settings.strategy, settings.device) == ("flag", 2, "vcd", "auto")
    assert Settings.load(["--config", str(file), "--port", "3"]).port == 3


def test_unknown_settings_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "onlyseen.toml"
    file.write_text("ports = 1\n")
    with pytest.raises(ValidationError, match="ports"):
        Settings.load(["--config", str(file)])
    with pytest.raises(OSError, match="nothing"):
        Settings.load(["--config", str(tmp_path / "nothing")])
    with pytest.raises(SystemExit):
        Settings.load(["--ports", "1"])
    with pytest.raises(ValidationError, match="strategy"):
        Settings.load(["--strategy", "vcd+"])
    monkeypatch.setenv("ONLYSEEN_API_KEY", "secret")
    with pytest.raises(ValueError, match="ONLYSEEN_API_KEY"):
        Settings.load()


@pytest.mark.parametrize(
    ("keys", "units", "share"), [(None, 10, 10), ("one", 10, 10), ("one,two", 10, 4), ("one,two", 1, 1)]
)
def test_key_has_a_share_beside_other_keys(keys: str | None, units: int, share: int) -> None:
    settings = Settings(api_keys=None if keys is None else SecretStr(keys), key_share=0.35)
    assert settings.has_shares == (keys == "one,two")
    assert settings.compute_key_share(units) == share


def test_default_max_rows_depends_on_the_engine() -> None:
    assert (Settings().resolved_max_rows, Settings(engine="vllm").resolved_max_rows) == (32, 64)
    assert Settings(max_rows=5).resolved_max_rows == 5


@pytest.mark.parametrize(
    ("engine", "options"),
    [
        ("hf", {"context": 512}),
        ("hf", {"async_scheduling": True}),
        ("vllm", {"device": "cuda:1"}),
        ("vllm", {"device": "cpu"}),
        ("vllm", {"prefix_cache_mb": 0}),
    ],
)
def test_settings_of_the_other_engine_are_refused(engine: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=f"{next(iter(options))}: only with engine"):
        Settings(engine=engine, **options)


def test_model_name_in_the_api(tmp_path: Path) -> None:
    assert Settings().name == EMBEDDED_NAME
    assert Settings(model="llava-hf/llava-1.5-7b-hf").name == "llava-hf/llava-1.5-7b-hf"
    assert Settings(model=str(tmp_path)).name == tmp_path.name
    assert Settings(model=str(tmp_path), served_name="mine").name == "mine"
    with pytest.raises(ValidationError, match="served_name"):
        Settings(served_name="a:b")


@pytest.mark.parametrize("field", ["model", "matcher"])
@pytest.mark.parametrize("source", ["/models/llava", "./llava", "models/llava/7b", "~/llava"])
def test_missing_folder_is_refused(field: Any, source: str) -> None:
    with pytest.raises(ValidationError, match=f"{field}\n.*no folder {source}"):
        Settings(**{field: source})


@pytest.mark.parametrize("field", ["chat_template", "attention_statistics"])
def test_missing_file_is_refused(field: Any, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=f"{field}\n.*no file {tmp_path}/missing"):
        Settings(**{field: tmp_path / "missing"})


def test_embedded_matcher_is_the_default_of_the_embedded_model_only(tmp_path: Path) -> None:
    assert Settings(model=str(tmp_path)).matcher_source is None
    assert Settings(model=str(tmp_path), matcher="hub/id").matcher_source == "hub/id"


def test_missing_engine_is_refused() -> None:
    with pytest.raises(Unsupported, match="vLLM"):
        create_engine(Settings(engine="vllm"))


def test_help_imports_no_heavy_library() -> None:
    process = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
    assert "--strategy" in process.stdout
    assert process.stdout.rstrip().endswith("set()")


def test_version_is_printed_without_a_server() -> None:
    process = subprocess.run([sys.executable, "-m", "server", "--version"], capture_output=True, text=True, check=True)
    assert process.stdout == f"OnlySeen {version('onlyseen')}\n"


def test_banner_of_a_server_with_keys_sends_one() -> None:
    for needs_key in (False, True):
        banner = format_banner("https://box:1", "tiny", "vcd", is_embedded=False, needs_key=needs_key)
        assert "curl https://box:1/v1/chat/completions" in banner
        assert ('-H "Authorization: Bearer $API_KEY"' in banner) == needs_key


def test_invalid_setting_exits_with_one_line() -> None:
    process = subprocess.run([sys.executable, "-m", "server", "--port", "x"], capture_output=True, text=True)
    assert process.returncode == 1
    assert process.stderr.startswith("port: ")
    assert "Traceback" not in process.stderr


def test_curl_example_sends_one_request(tmp_path: Path) -> None:
    import json

    (tmp_path / "a.png").write_bytes(b"picture" * 1000)
    for folder in (tmp_path, tmp_path / "nothing"):
        command = "cat " + format_curl_example("http://server", "tiny:vcd", folder).partition("@- ")[2]
        request = json.loads(subprocess.run(["bash", "-c", command], capture_output=True, check=True).stdout)
        assert request["model"] == "tiny:vcd"
        assert request["messages"][0]["content"][-1]["type"] == "text"
