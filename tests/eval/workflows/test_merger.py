"""Merge of shards."""

from __future__ import annotations

from pathlib import Path

from tests.eval.cli_driver import invoke, invoke_run, output_of, read_results_without_costs
from tests.eval.fake_server import ScriptedServer


def test_merged_shards_equal_a_run_without_shards(server: ScriptedServer, data: Path, tmp_path: Path) -> None:
    unsharded, shards = tmp_path / "unsharded", [tmp_path / f"{number}" for number in (1, 2, 3)]
    invoke_run(server, data, unsharded, "--strategies", "agla")
    for number, shard in enumerate(shards, 1):
        invoke_run(server, data, shard, "--strategies", "agla", "--shard", f"{number}/3")
    assert invoke("merge", *shards, "--out", tmp_path / "merged").exit_code == 0
    assert read_results_without_costs(tmp_path / "merged") == read_results_without_costs(unsharded)
    assert invoke("verify", tmp_path / "merged").exit_code == 0
    assert "is one of the shards" in output_of(invoke("merge", *shards, "--out", shards[0]))
    assert "run of 3 shards" in output_of(invoke("merge", *shards[:2], "--out", tmp_path / "other"))
