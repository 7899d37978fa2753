"""Downloads, from a server of our own."""

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest

from eval.errors import EvaluationError
from eval.fetch import SYNONYMS_SHA256, download
from tests.eval.command import command
from tests.eval.test_chair_words import OFFICIAL

CONTENT = b"person, man\n"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "synonyms.txt").write_bytes(OFFICIAL.read_bytes() if OFFICIAL.exists() else CONTENT)
    (tmp_path / "site" / "other.txt").write_bytes(CONTENT)
    server = HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "site")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_file_that_is_known_is_kept(site: str, tmp_path: Path) -> None:
    download(f"{site}/other.txt", hashlib.sha256(CONTENT).hexdigest(), tmp_path / "new" / "file.txt")
    assert (tmp_path / "new" / "file.txt").read_bytes() == CONTENT
    assert [each.name for each in (tmp_path / "new").iterdir()] == ["file.txt"]


def test_another_file_is_refused_and_what_was_there_stays(site: str, tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("old")
    with pytest.raises(EvaluationError, match="is not the file we know"):
        download(f"{site}/other.txt", SYNONYMS_SHA256, tmp_path / "file.txt")
    assert (tmp_path / "file.txt").read_text() == "old"


def test_no_file_and_no_server(site: str, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="cannot be fetched"):
        download(f"{site}/none.txt", SYNONYMS_SHA256, tmp_path / "file.txt")
    with pytest.raises(EvaluationError, match="cannot be fetched"):
        download("http://127.0.0.1:9/x", SYNONYMS_SHA256, tmp_path / "file.txt")


@pytest.mark.skipif(not OFFICIAL.exists(), reason="the official table of synonyms is not here")
def test_the_command(site: str, tmp_path: Path) -> None:
    done = command("fetch", "chair", "--out", tmp_path / "s.txt", "--url", f"{site}/synonyms.txt")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 's.txt'}\n")
    done = command("fetch", "chair", "--out", tmp_path / "s.txt", "--url", f"{site}/other.txt")
    assert done.returncode == 1
    assert "SHA-256" in done.stderr
