"""serve and check, without starting anything."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tfpool import config
from tfpool.cli import serve
from tfpool.cli.main import main
from tfpool.settings import Settings


def run(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == status, (result.output, result.exception)
    return result


def _model(directory: Path, name: str) -> str:
    (directory / name / "1").mkdir(parents=True)
    (directory / name / "1" / "saved_model.pb").touch()
    return str(directory / name)


Served = list[tuple[Settings, serve._Starting, int | None]]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    """What the supervisor is called with."""
    seen: Served = []
    monkeypatch.setattr("tfpool.supervisor.main.serve", lambda *arguments: seen.append(arguments) or 0)
    return seen


def test_a_root_of_models(tmp_path: Path, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    run("serve", "--models-root", "models", "--state-file", "state")
    settings = served[0][0]
    assert settings.server.models_root == str(tmp_path / "models")
    assert settings.server.state_file == str(tmp_path / "state")
    assert settings.models == ()
    assert "does not exist" in run("serve", "--models-root", "none", status=2).stderr


def test_serve_needs_models(served: Served) -> None:
    assert "expected models" in run("serve", status=2).stderr
    assert "got --model a twice" in run("serve", "--model", "a=/a", "--model", "a=/b", status=2).stderr
    assert not served


def test_serve_reads_the_files_of_tensorflow_serving(tmp_path: Path, served: Served) -> None:
    models, batching = tmp_path / "models.config", tmp_path / "batching.config"
    models.write_text("model_config_list { config { name: 'm' base_path: '/m' } }")
    batching.write_text("max_batch_size { value: 16 }")
    files = ("--model-config-file", str(models), "--batching-parameters-file", str(batching))
    run("serve", *files, "--model", "n=/n")
    settings = served[0][0]
    assert [(model.name, model.batching.max_batch_size) for model in settings.models] == [("m", 16), ("n", 16)]
    models.write_text("model_config_list {\n config { name: 'm' } }")
    assert f"{models}:2: [model_config_list.config] base_path" in run("serve", *files, status=1).stderr
    assert "no such file" in run("serve", "--model-config-file", f"{tmp_path}/none", status=1).stderr


def test_serve_passes_its_options_on(tmp_path: Path, served: Served) -> None:
    options = (
        "--workers 3 --memory-budget 3GiB --shm-budget 64MiB --threads-per-worker 2 --log-level error --set pad=false"
    )
    listen = ("--listen", f"ipc://{tmp_path}/a", "--listen", "tcp://0.0.0.0:7000", "--insecure")
    run("serve", "--model", f"half={tmp_path}", *options.split(), *listen)
    ((settings, _, owner),) = served
    assert (settings.pool.workers, settings.pool.memory_budget, settings.pool.shm_budget) == (3, 3 << 30, 64 << 20)
    assert settings.server.listen == (f"ipc://{tmp_path}/a", "tcp://0.0.0.0:7000")
    assert settings.server.admin_listen == f"ipc://{tmp_path}/a-admin"
    assert (settings.server.log_level, settings.workers[0].threads, owner) == ("error", 2, None)
    assert not settings.batching.pad


def test_serve_refuses_to_be_exposed(tmp_path: Path) -> None:
    assert "--insecure" in run("serve", "--model", "a=x", "--listen", "tcp://0.0.0.0:7000", status=1).stderr


NO_GATEWAYS = {"gateways": 0, "gateways_ready": 0, "http": None, "grpc": None}


def test_start_up_is_told_with_its_ports(capsys: pytest.CaptureFixture[str]) -> None:
    starting = serve._Starting(config.build(listen=["ipc:///run/p"], admin_listen="ipc:///run/a"), watched=False)
    state = {"models": 1, "available": 1, "unloaded": 0, "failed": 0, "settled": True, "workers": 1, "workers_ready": 1}
    for ready in (0, 1, 2):
        starting(state | {"gateways": 2, "gateways_ready": ready, "http": "127.0.0.1:8501", "grpc": None})
        assert bool(said := capsys.readouterr().out) == (ready == 2)
    assert said == "serving 1 model on ipc:///run/p, http 127.0.0.1:8501 with 1 worker\n"


def test_serve_passes_the_options_of_gateways_on(tmp_path: Path, served: Served) -> None:
    options = "--http 127.0.0.1:0 --grpc 8500 --gateways 3 --tokens t --tls-cert c --tls-key k --tls-client-ca a"
    run("serve", "--model", f"half={tmp_path}", *options.split())
    ((settings, _, _),) = served
    assert (settings.server.http, settings.server.grpc) == ("127.0.0.1:0", "127.0.0.1:8500")
    front = settings.gateway
    files = (front.tokens, front.tls_cert, front.tls_key, front.tls_client_ca)
    assert (front.processes, files) == (3, tuple(os.path.abspath(name) for name in "tcka"))


def test_start_up_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    starting = serve._Starting(config.build(listen=["ipc:///run/p"], admin_listen="ipc:///run/a"), watched=False)
    state = {"models": 4, "available": 0, "unloaded": 1, "failed": 1, "settled": False, "workers": 2}
    state |= {"workers_ready": 0, **NO_GATEWAYS}
    for change in ({}, {"available": 2, "settled": True}, {"workers_ready": 2}, {"available": 1}):
        state |= change
        starting(state)
    said = capsys.readouterr()
    assert said.out == "serving 2 models on ipc:///run/p with 2 workers (1 not loaded, 1 failed: see tfpool models)\n"
    assert said.err == ""


def test_a_root_without_a_model_yet(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    settings = config.build(listen=["ipc:///run/p"], models_root=str(tmp_path))
    state = {"models": 0, "available": 0, "unloaded": 0, "failed": 0, "settled": True, "workers": 2, "workers_ready": 2}
    serve._Starting(settings, watched=False)(state | NO_GATEWAYS)
    said = f"serving 0 models on ipc:///run/p with 2 workers (no model in {tmp_path} yet)\n"
    assert capsys.readouterr().out == said


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


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "configs").glob("*.[ct]o*")), ids=lambda path: path.name
)
def test_check_accepts_the_examples(path: Path) -> None:
    result = run("check", str(path))
    assert "is not on disk" not in result.stderr
    assert "there is no model in it" not in result.stderr


def test_check_warns_of_what_will_not_be_served(tmp_path: Path) -> None:
    half = _model(tmp_path, "half")
    models = tmp_path / "models.config"
    models.write_text(
        f"model_config_list {{ config {{ name: 'half' base_path: '{half}' model_version_policy {{ latest {{}} }}\n"
        "version_labels { key: 'old' value: 1 } version_labels { key: 'new' value: 9 } } }"
    )
    (tmp_path / "half" / "2").mkdir()
    (tmp_path / "half" / "2" / "saved_model.pb").touch()
    result = run("check", str(models))
    assert "warning: half: label old: version 1 is not among those of version_policy latest:1" in result.stderr
    assert "warning: half: label new: version 9 is not on disk; found 1, 2" in result.stderr
    assert "old=1, new=9" in result.stdout
    (row,) = json.loads(run("check", str(models), "--json").stdout)["models"]
    assert (row["labels"], row["loading"], len(row["warnings"])) == ({"old": "1", "new": "9"}, "preload", 2)


def test_check_warns_of_an_empty_configuration(tmp_path: Path) -> None:
    path = tmp_path / "pool.toml"
    path.write_text("[pool]\nworkers = 1\n")
    assert run("check", str(path)).stderr == "warning: there is no model in it\n"
    path.write_text("[server]\nmodels_root = 'none'\n")
    assert run("check", str(path)).stderr == f"warning: models_root: {tmp_path}/none: no such directory\n"


def test_check_names_the_line(tmp_path: Path) -> None:
    bad = tmp_path / "pool.toml"
    bad.write_text("[pool]\nworkers = 0\n")
    assert f"{bad}:2: [pool] workers" in run("check", str(bad), status=1).stderr
    document = json.loads(run("check", str(bad), "--json", status=1).stdout)
    assert document["error"]["code"] == "INVALID_ARGUMENT"
    assert not document["valid"]
