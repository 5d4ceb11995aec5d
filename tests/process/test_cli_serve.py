"""serve and check, without starting anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tfpool import config
from tfpool.cli import serve
from tfpool.cli.main import main


def run(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == status, (result.output, result.exception)
    return result


def _model(directory: Path, name: str) -> str:
    (directory / name / "1").mkdir(parents=True)
    (directory / name / "1" / "saved_model.pb").touch()
    return str(directory / name)


def test_a_root_of_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half, other = _model(tmp_path, "half"), str(tmp_path / "elsewhere")
    _model(tmp_path, "a name")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert serve._models((("other", other),), str(tmp_path)) == {"half": half, "other": other}
    assert "a name is left out" in capsys.readouterr().err
    assert serve._models((("half", other),), str(tmp_path)) == {"half": other}


def test_a_root_without_models(tmp_path: Path) -> None:
    assert "no directory that holds a model" in run("serve", "--models-root", str(tmp_path), status=1).stderr


def test_serve_passes_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("tfpool.supervisor.main.serve", lambda *arguments: seen.append(arguments) or 0)
    options = (
        "--workers 3 --memory-budget 3GiB --shm-budget 64MiB --threads-per-worker 2 --log-level error --set pad=false"
    )
    listen = ("--listen", f"ipc://{tmp_path}/a", "--listen", "tcp://0.0.0.0:7000", "--insecure")
    run("serve", "--model", f"half={tmp_path}", *options.split(), *listen)
    ((settings, _, owner),) = seen
    assert (settings.pool.workers, settings.pool.memory_budget, settings.pool.shm_budget) == (3, 3 << 30, 64 << 20)
    assert settings.server.listen == (f"ipc://{tmp_path}/a", "tcp://0.0.0.0:7000")
    assert settings.server.admin_listen == f"ipc://{tmp_path}/a-admin"
    assert (settings.server.log_level, settings.workers[0].threads, owner) == ("error", 2, None)
    assert not settings.batching.pad


def test_serve_refuses_to_be_exposed(tmp_path: Path) -> None:
    assert "--insecure" in run("serve", "--model", "a=x", "--listen", "tcp://0.0.0.0:7000", status=1).stderr


def test_start_up_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    starting = serve._Starting(config.build(listen=["ipc:///run/p"], admin_listen="ipc:///run/a"), watched=False)
    state = {"models": 3, "available": 0, "failed": 1, "workers": 2, "workers_ready": 0}
    for change in ({}, {"available": 2}, {"workers_ready": 2}, {"available": 1}):
        state |= change
        starting(state)
    said = capsys.readouterr()
    assert said.out == "serving 2 models on ipc:///run/p with 2 workers (1 failed: see tfpool models)\n"
    assert said.err == ""


def test_check(tmp_path: Path) -> None:
    good = tmp_path / "pool.toml"
    half = _model(tmp_path, "half")
    good.write_text(f'model = [{{name = "half", base_path = "{half}"}}, {{name = "gone", base_path = "x"}}]\n')
    document = json.loads(run("check", str(good), "--json").stdout)
    assert document["valid"]
    assert [(m["name"], m["versions"]) for m in document["models"]] == [("half", [1]), ("gone", [])]
    result = run("check", str(good))
    assert "half" in result.stdout
    assert "warning: gone" in result.stderr


def test_check_names_the_line(tmp_path: Path) -> None:
    bad = tmp_path / "pool.toml"
    bad.write_text("[pool]\nworkers = 0\n")
    assert f"{bad}:2: [pool] workers" in run("check", str(bad), status=1).stderr
    document = json.loads(run("check", str(bad), "--json", status=1).stdout)
    assert document["error"]["code"] == "INVALID_ARGUMENT"
    assert not document["valid"]
