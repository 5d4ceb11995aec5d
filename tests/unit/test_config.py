from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool import config
from tfpool.errors import InvalidArgument, NotFound
from tfpool.settings import (
    STORE_OFF,
    STORE_VARIABLE,
    BatchingSettings,
    Form,
    GatewaySettings,
    Loading,
    ModelSettings,
    PlacementPolicy,
    PlacementSettings,
    PoolSettings,
    Settings,
    StoreSettings,
    Transition,
    WorkerSettings,
)

CONFIGS = Path(__file__).parents[2] / "configs"
MODEL = "[[model]]\nname = 'm'\nbase_path = '/m'\n"


def parse(text: str) -> Settings:
    return config.parse(text, "pool.toml", cpus=range(8))


def model(text: str) -> ModelSettings:
    return parse(MODEL + text).models[0]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.[ct]o*")), ids=lambda path: path.name)
def test_examples_load(path: Path) -> None:
    settings = config.load(str(path))
    assert settings.models or settings.batching != BatchingSettings()


def test_the_full_example_tells_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STORE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    settings = config.load(str(CONFIGS / "pool.toml"))
    assert settings.pool == PoolSettings()
    assert settings.batching == BatchingSettings()
    assert settings.placement == PlacementSettings()
    assert settings.store == StoreSettings("/cache/tfpool/store")
    assert settings.gateway == GatewaySettings()
    assert settings.models[0] == ModelSettings("mnist", str(CONFIGS / "models/mnist"))


def test_an_empty_file_is_all_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    settings = parse("")
    assert settings.server.listen == ("ipc:///run/user/7/tfpool/pool",)
    assert settings.server.admin_listen == "ipc:///run/user/7/tfpool/pool-admin"
    assert [worker.cpus for worker in settings.workers] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert settings.models == ()


def test_every_placement_key() -> None:
    text = (
        "[placement]\npolicy = 'advise'\ninterval_s = 5\nhorizon_s = 30\nhysteresis = 3\nmax_replicas = 2\n"
        "moves_per_minute = 4\nbytes_per_minute = '1GiB'\nidle_s = 60\njournal = 'log.jsonl'\n"
    )
    wanted = PlacementSettings(PlacementPolicy.ADVISE, 5, 30, 3, 2, 4, 1 << 30, 60, "/etc/log.jsonl")
    assert config.parse(text, "/etc/pool.toml").placement == wanted


def test_every_store_key() -> None:
    text = "[store]\nenabled = false\ndirectory = 'store'\nbudget = '1GiB'\ninline = false\n"
    wanted = StoreSettings("/etc/store", enabled=False, budget=1 << 30, inline=False)
    assert config.parse(text, "/etc/pool.toml").store == wanted


def test_the_store_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STORE_VARIABLE, "/somewhere")
    assert parse("").store == StoreSettings("/somewhere")
    assert parse("[store]\ndirectory = '/here'").store == StoreSettings("/here")
    monkeypatch.setenv(STORE_VARIABLE, STORE_OFF)
    for text in ("", "[store]\nenabled = true"):
        assert not parse(text).store.enabled
    assert parse("[store]\ndirectory = '/here'").store == StoreSettings("/here")


def test_the_store_is_in_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STORE_VARIABLE, "")
    monkeypatch.setenv("HOME", "/home/ann")
    for cache in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
        assert parse("").store == StoreSettings("/home/ann/.cache/tfpool/store")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert parse("").store == StoreSettings("/cache/tfpool/store")


def test_a_store_of_the_environment_starts_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv(STORE_VARIABLE, "here")
    assert parse("").store.directory == str(tmp_path / "here")
    monkeypatch.setenv(STORE_VARIABLE, "~/there")
    assert parse("").store.directory == "/home/ann/there"


def test_who_has_no_home_has_no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STORE_VARIABLE)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for a number without a name
    assert not parse("").store.enabled


@pytest.mark.parametrize("form", list(Form))
def test_a_model_may_be_held_in_one_form(form: Form) -> None:
    assert model(f"form = '{form.value}'").form is form
    assert model("form = 'auto'").form is None
    assert model("").form is None


def test_a_least_of_no_replicas_lets_a_model_leave() -> None:
    assert model("replicas = [0, 2]").replicas == (0, 2)
    assert model("").replicas == (1, None)
    with pytest.raises(InvalidArgument, match="got 0, expected a whole number from 1"):
        model("replicas = 0")


def test_every_model_key() -> None:
    assert model(
        "version_policy = 'latest:2'\nlabels = {stable = 3, prod = '3:90,4:10'}\nshadow = '4:10'\npreload = false\n"
        "transition = 'resource'\nreplicas = [1, 2]\n"
        "slo_ms = 50\npriority = -1\nweight = 2\nstateful = ['s']\npin = ['cpu1']\n"
        "batching = {max_batch_size = 8, max_wait_ms = 1.5, pad = false, max_queue_rows = 9}"
    ) == ModelSettings(
        "m",
        "/m",
        "latest:2",
        (("stable", ((3, 1),)), ("prod", ((3, 90), (4, 10)))),
        (4, 0.1),
        Loading.LAZY,
        Transition.RESOURCE,
        (1, 2),
        BatchingSettings(8, 1.5, (), 9, pad=False),
        50.0,
        -1,
        2.0,
        ("s",),
        ("cpu1",),
    )


@pytest.mark.parametrize(
    ("written", "policy"),
    [("'latest'", "latest"), ("'all'", "all"), ("'latest:3'", "latest:3"), ("[5, 3, 5]", (3, 5))],
)
def test_version_policies(written: str, policy: object) -> None:
    assert model(f"version_policy = {written}").version_policy == policy


def test_relative_base_paths_start_at_the_file(tmp_path: Path) -> None:
    path = tmp_path / "pool.toml"
    path.write_text(MODEL.replace("/m", "models/m"))
    assert config.load(str(path)).models[0].base_path == str(tmp_path / "models/m")


def test_batching_of_a_model_is_merged_into_the_defaults() -> None:
    default = "[batching]\nallowed_batch_sizes = [1, 8, 32]\nmax_wait_ms = 2\n"
    assert parse(default).batching == BatchingSettings(32, 2.0, (1, 8, 32))
    cut, other = parse(
        default + MODEL + "batching = {max_batch_size = 16}\n"
        "[[model]]\nname = 'n'\nbase_path = '/n'\n[model.batching]\nallowed_batch_sizes = [4, 128]\n"
    ).models
    assert cut.batching == BatchingSettings(16, 2.0, (1, 8, 16))
    assert other.batching == BatchingSettings(128, 2.0, (4, 128))


def test_workers_by_hand() -> None:
    settings = parse(
        "[[worker]]\nname = 'a'\ncpus = [0, 1]\nmemory = '8GiB'\n[[worker]]\nname = 'g'\ndevice = 'gpu:0'\n"
    )
    assert settings.workers == (
        WorkerSettings("a", "cpu", (0, 1), 2, 8 << 30),
        WorkerSettings("g", "gpu:0", (2, 3, 4, 5, 6, 7), 6, None),
    )


@pytest.mark.parametrize(
    ("written", "loading"), [("true", Loading.PRELOAD), ("false", Loading.LAZY), ("'explicit'", Loading.EXPLICIT)]
)
def test_when_a_model_is_loaded(written: str, loading: Loading) -> None:
    assert model(f"preload = {written}").preload is loading


def test_paths_of_the_server_start_at_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    text = "[server]\nmodels_root = 'models'\nallowed_roots = ['~/models', '../b']\nstate_file = '/var/state'"
    server = config.parse(text, "/etc/tfpool/pool.toml", cpus=range(2)).server
    assert server.models_root == "/etc/tfpool/models"
    assert server.allowed_roots == ("/home/me/models", "/etc/b")
    assert server.state_file == "/var/state"


@pytest.mark.parametrize(("written", "seconds"), [("'off'", None), ("0", 0.0), ("2.5", 2.5)])
def test_polling(written: str, seconds: float | None) -> None:
    pool = parse(f"[pool]\npoll_s = {written}\nload_retries = 0\nresidue_limit = '1GiB'").pool
    assert (pool.poll_s, pool.load_retries, pool.residue_limit) == (seconds, 0, 1 << 30)


@given(st.integers(1, 4096), st.sampled_from(["MiB", "GiB", "MB"]))
def test_sizes_in_a_file(number: int, unit: str) -> None:
    factor = {"MiB": 1 << 20, "GiB": 1 << 30, "MB": 10**6}[unit]
    text = f"[pool]\nshm_budget = '{number}{unit}'"
    if number * factor >= 1 << 20:
        assert parse(text).pool.shm_budget == number * factor
    else:
        with pytest.raises(
            InvalidArgument, match=r"^pool\.toml:2: \[pool\] shm_budget: got .*, expected at least 1MiB"
        ):
            parse(text)


BAD = [
    ("[pool]\n\nworkres = 1", "3: [pool] workres: got an unknown key, expected one of workers, ", "mean 'workers'?"),
    ("[sever]", "1: [sever]: got an unknown table, expected one of server, ", "did you mean 'server'?"),
    ("[placements]\npolicy = 'static'", "1: [placements]: got an unknown table", ""),
    ("[placement]\npolicy = 'greedy'", "2: [placement] policy: got 'greedy'", ""),
    ("[placement]\ninterval_s = 0", "2: [placement] interval_s: got 0", ""),
    ("[placement]\nhysteresis = 0.5", "2: [placement] hysteresis: got 0.5", ""),
    ("[placement]\nmax_replicas = 0", "2: [placement] max_replicas: got 0", ""),
    ("[placement]\nmove = 1", "2: [placement] move: got an unknown key", ""),
    ("[server]\nhttp = ':80'", "2: [server] http: got ':80', expected HOST:PORT", ""),
    ("[server]\nhttp = 'localhost:65536'", "2: [server] http: got 'localhost:65536', expected HOST:PORT", ""),
    ("[server]\ngrpc = '0.0.0.0:8500'", "2: [server] grpc: 0.0.0.0:8500 can be reached from other hosts", "--insecure"),
    ("[server]\nhttps = ':80'", "2: [server] https: got an unknown key", "did you mean 'http'?"),
    ("[gateway]\ntls_cert = 'a'", "2: [gateway] tls_cert: got it without the others", ""),
    ("[gateway]\ntls_client_ca = 'a'", "2: [gateway] tls_client_ca: got it without the others", ""),
    ("[gateway]\nprocesses = 0", "2: [gateway] processes: got 0", ""),
    ("[gateway]\nmax_body = 1", "2: [gateway] max_body: got 1, expected at least 1MiB", ""),
    ("[gateway]\ntimeout_s = -1", "2: [gateway] timeout_s: got -1", ""),
    ("# x\nserver = 3", "2: server: got 3, expected a table", ""),
    ("x = 1\ny = [", "2: not TOML: ", ""),
    ("[pool", "1: not TOML: ", ""),
    ("x = " + "1" * 5000, "1: not TOML: ", ""),
    ("[server]\nlisten = 'pool'", "2: [server] listen: got 'pool', expected ipc://PATH or tcp://", ""),
    ("[server]\nlisten = []", "2: [server] listen: got [], expected at least one", ""),
    ("[server]\nlisten = ['ipc:///a', 'ipc:///a']", "2: [server] listen: got [", "expected no text twice"),
    ("[server]\nlisten = 'tcp://0.0.0.0:1'", "2: [server] listen: tcp://0.0.0.0:1 can be reached", "--insecure"),
    ("[server]\nlisten = 'ipc:///a'\nadmin_listen = 'ipc:///a'", "3: [server] admin_listen: got 'ipc:///a'", "not in"),
    ("[server]\nlog_level = 'warn'", "2: [server] log_level: got 'warn', expected one of ", "did you mean 'warning'?"),
    ("[server]\nlog_format = 1", "2: [server] log_format: got 1, expected one of text, json", ""),
    ("[server]\ninsecure = 1", "2: [server] insecure: got 1, expected true or false", ""),
    ("[pool]\nworkers = 0", "2: [pool] workers: got 0, expected a whole number from 1 to 1024, or 'auto'", ""),
    ("[pool]\nworkers = true", "2: [pool] workers: got true, expected a whole number", ""),
    ("[pool]\nmemory_budget = '8 pounds'", "2: [pool] memory_budget: got '8 pounds', expected a size", ""),
    ("[pool]\nstart_method = 'frok'", "2: [pool] start_method: got 'frok', expected one of", "mean 'fork'?"),
    ("[pool]\nload_concurrency = 1.0", "2: [pool] load_concurrency: got 1.0, expected a whole number from 1 to 64", ""),
    (
        "[pool]\nmemory_budget = '2MiB'\n[[worker]]\nname = 'a'\nmemory = '2MiB'\n[[worker]]\nname = 'b'",
        "2: [pool] mem",
        "",
    ),
    ("[worker]\nname = 'a'", "1: [worker]: got {'name': 'a'}, expected [[worker]]", ""),
    ("[[worker]]\ndevice = 'cpu'", "1: [worker] name: got nothing, expected a value", ""),
    ("[[worker]]\nname = 'a'\n[[worker]]\nname = 'a'", "4: [worker] name: got 'a' twice", ""),
    ("[[worker]]\nname = 'a'\ndevice = 'gpu'", "3: [worker] device: got 'gpu', expected 'cpu' or 'gpu:N'", ""),
    ("[[worker]]\nname = 'a'\ncpus = [0, 8]", "3: [worker] cpus: got [0, 8], expected some of the CPUs 0, 1, ", ""),
    ("[[worker]]\nname = 'a'\ncpus = [1, 0]", "3: [worker] cpus: got [1, 0], expected increasing numbers", ""),
    ("[batching]\nmax_wait_ms = nan", "2: [batching] max_wait_ms: got nan, expected a number from 0 to 60000", ""),
    (
        "[batching]\nmax_queue_rows = 3",
        "2: [batching] max_queue_rows: got 3, expected at least max_batch_size (128)",
        "",
    ),
    (
        "[batching]\nmax_batch_size = 8\nallowed_batch_sizes = [1, 4]",
        "3: [batching] allowed_batch_sizes: got [1, 4], expected the last to be max_batch_size (8)",
        "",
    ),
    (
        "[batching]\nallowed_batch_sizes = [4, 1]",
        "2: [batching] allowed_batch_sizes: got [4, 1], expected increasing",
        "",
    ),
    ("model = [3]", "1: [model]: got 3, expected a table", ""),
    ("[[model]]\nname = 'm'", "1: [model] base_path: got nothing", ""),
    ("[[model]]\nbase_path = '/m'\nname = 'a:b'", "3: [model] name: got 'a:b', expected 1 to 512 characters", ""),
    (MODEL + MODEL, "5: [model] name: got 'm' twice", ""),
    (MODEL + "version_policy = 'lastest'", "4: [model] version_policy: got 'lastest', expected 'latest'", ""),
    (MODEL + "version_policy = [0]", "4: [model] version_policy: got '[0]', expected", ""),
    (MODEL + "labels = {a = 'b'}", "4: [model] labels: got 'b', expected a version, or versions and weights", ""),
    (MODEL + "labels = {a = '3:0'}", "4: [model] labels: got '3:0', expected a version", ""),
    (MODEL + "labels = ['a']", "4: [model] labels: got ['a'], expected a table of label = version", ""),
    (MODEL + "shadow = '4:0'", "4: [model] shadow: got '4:0', expected VERSION:PERCENT", ""),
    (MODEL + "preload = 1", "4: [model] preload: got 1, expected true, false or 'explicit'", ""),
    (MODEL + "preload = 'lazy'", "4: [model] preload: got 'lazy', expected true, false or 'explicit'", ""),
    (MODEL + "transition = 'resources'", "4: [model] transition: got 'resources', expected one of", "mean 'resource'?"),
    ("[pool]\npoll_s = 'never'", "2: [pool] poll_s: got 'never', expected a number from 0 to 86400, or 'off'", ""),
    ("[pool]\npoll_s = -1", "2: [pool] poll_s: got -1, expected a number", ""),
    ("[pool]\nload_retries = -1", "2: [pool] load_retries: got -1, expected a whole number", ""),
    ("[pool]\nresidue_limit = 'much'", "2: [pool] residue_limit: got 'much', expected a size", ""),
    ("[server]\nmodels_root = ''", "2: [server] models_root: got '', expected a text", ""),
    ("[server]\nallowed_roots = '/m'", "2: [server] allowed_roots: got '/m', expected a list of texts", ""),
    (
        MODEL + "replicas = [2, 1]",
        "4: [model] replicas: got [2, 1], expected a whole number from 1, or [least, most]",
        "",
    ),
    ("[server]\ncurve_key = 'k'", "2: [server] curve_key: got one without the other", ""),
    ("[server]\nauthorized_keys = 'k'", "2: [server] authorized_keys: got one without the other", ""),
    ("[store]\nbudget = '1kB'", "2: [store] budget: got '1kB', expected at least 1MiB", ""),
    ("[store]\nenabled = 'off'", "2: [store] enabled: got 'off', expected true or false", ""),
    ("[store]\ndirectory = ''", "2: [store] directory: got '', expected a text", ""),
    ("[store]\nplace = '/x'", "2: [store] place: got an unknown key, expected one of directory, enabled", ""),
    (
        MODEL + "form = 'mappd'",
        "4: [model] form: got 'mappd', expected one of auto, plain, mapped, inlined",
        "'mapped'?",
    ),
    (MODEL + "slo_ms = 0", "4: [model] slo_ms: got 0, expected a number from 0.001", ""),
    (MODEL + "priority = 101", "4: [model] priority: got 101, expected a whole number from -100 to 100", ""),
    (MODEL + "weight = inf", "4: [model] weight: got inf, expected a number", ""),
    (MODEL + "stateful = 's'", "4: [model] stateful: got 's', expected a list of texts", ""),
    (MODEL + "pin = ['cpu7']", "4: [model] pin: got 'cpu7', expected some of cpu0, cpu1", "did you mean"),
    (MODEL + "\n[model.batching]\npad = 1", "6: [model.batching] pad: got 1, expected true or false", ""),
    (MODEL + "batching.pda = true", "4: [model.batching] pda: got an unknown key", "did you mean 'pad'?"),
    (MODEL + "batching = 3", "4: [model] batching: got 3, expected a table", ""),
]


@pytest.mark.parametrize(("text", "start", "end"), BAD, ids=[start[:40] for _, start, _ in BAD])
def test_errors_say_file_line_and_key(text: str, start: str, end: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(text)
    message = str(caught.value)
    assert message.startswith(f"pool.toml:{start}")
    assert end in message


WORDS = st.sampled_from(
    ["[server]", "[pool]", "[[worker]]", "[[model]]", "[batching]", "[model.batching]", "[a.'b c']"]
    + [
        f"{key} = {value}"
        for key in ("name", "listen", "workers", "cpus", "batching", "labels")
        for value in (1, "'a'", "[]")
    ]
)


@given(st.one_of(st.text(), st.lists(WORDS, max_size=12).map("\n".join)))
def test_any_text_is_read_or_refused_with_its_line(text: str) -> None:
    try:
        parse(text)
    except InvalidArgument as error:
        message = str(error)
    else:
        return
    assert re.match(r"pool\.toml:\d+: ", message)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file"):
        config.load(str(tmp_path / "none.toml"))
    with pytest.raises(InvalidArgument, match="cannot be read"):
        config.load(str(tmp_path))
    path = tmp_path / "latin.toml"
    path.write_bytes(b"[pool]\nstart_method = '\xe9'\n")
    with pytest.raises(InvalidArgument, match=r"latin\.toml:2: got byte 0xe9, expected UTF-8"):
        config.load(str(path))


def test_a_command_line_lies_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "pool.toml"
    path.write_text("[pool]\nworkers = 3\nload_concurrency = 5\n[[worker]]\nname = 'a'\n" + MODEL + "priority = 2\n")
    built = config.build({"m": "/other", "n": "n"}, file=str(path), workers=2, log_level="debug", cpus=range(4))
    assert [(model.name, model.base_path, model.priority) for model in built.models] == [
        ("m", "/other", 2),
        ("n", str(tmp_path / "n"), 0),
    ]
    assert [worker.cpus for worker in built.workers] == [(0, 1), (2, 3)]
    assert built.pool.load_concurrency == 5
    assert built.server.log_level == "debug"
    kept = config.build(file=str(path), workers=None, cpus=range(4))
    assert [worker.name for worker in kept.workers] == ["a"]


def test_a_command_line_alone() -> None:
    built = config.build({"m": "/m"}, listen=["ipc:///x/pool"], memory_budget="2GiB", max_batch_size=8, cpus=[0, 1])
    assert built.server.admin_listen == "ipc:///x/pool-admin"
    assert [worker.memory for worker in built.workers] == [1 << 30, 1 << 30]
    assert built.models == (replace(ModelSettings("m", "/m"), batching=BatchingSettings(8)),)


def test_errors_of_a_command_line_say_so() -> None:
    with pytest.raises(InvalidArgument, match=r"^command line: \[pool\] workers: got 'many', expected a whole number"):
        config.build(workers="many")
    with pytest.raises(InvalidArgument, match=r"^command line: \[model\] name: got 'a b'"):
        config.build({"a b": "/x"})
    with pytest.raises(TypeError, match="wokers"):
        config.build(wokers=3)


def test_paths_of_a_command_line_start_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "etc").mkdir()
    path = tmp_path / "etc" / "pool.toml"
    path.write_text("[server]\nstate_file = 'state'\n")
    server = config.build(file=str(path), models_root="models", allowed_roots=["a", "/b"]).server
    assert (server.models_root, server.state_file) == (str(tmp_path / "models"), str(tmp_path / "etc" / "state"))
    assert server.allowed_roots == (str(tmp_path / "a"), "/b")


def test_the_store_of_a_command_line_lies_over_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "pool.toml"
    path.write_text("[store]\nenabled = false\ndirectory = '/x'\nbudget = '1GiB'\n")
    assert config.build(file=str(path)).store == StoreSettings("/x", enabled=False, budget=1 << 30)
    assert config.build(file=str(path), store="s").store == StoreSettings(str(tmp_path / "s"), budget=1 << 30)
    path.write_text("[store]\ndirectory = '/x'\n")
    assert config.build(file=str(path), store=STORE_OFF).store == StoreSettings("/x", enabled=False)
    assert not config.build({"m": "/m"}, store=STORE_OFF).store.enabled
    assert config.build({"m": "/m"}, store="/y").store == StoreSettings("/y")


# -- changes at run time -------------------------------------------------------------------------------------------


def test_tables_of_a_file_are_read_as_the_file_is(tmp_path: Path) -> None:
    path = tmp_path / "pool.toml"
    path.write_text(
        "[server]\nlog_level = 'debug'\n[pool]\nworkers = 3\n[batching]\nmax_batch_size = 32\n"
        "[[model]]\nname = 'm'\nbase_path = 'models/m'\nlabels = { a = 3 }\nbatching = { pad = false }\n"
        "pin = ['cpu2']\n"
    )
    tables = config.model_tables(str(path))
    assert set(tables) == {"batching", "model"}
    assert tables["model"][0]["base_path"] == str(tmp_path / "models" / "m")
    sent = json.loads(json.dumps(tables))
    assert config.read_models(sent, "reload", BatchingSettings(), ["cpu2"]) == config.load(str(path)).models
    with pytest.raises(InvalidArgument, match=r"^reload: 'm': \[model\] pin: got 'cpu2', expected some of cpu0"):
        config.read_models(sent, "reload", BatchingSettings(), ["cpu0"])


def test_pins_are_the_pools_to_check(tmp_path: Path) -> None:
    path = tmp_path / "pool.toml"
    path.write_text(MODEL + "pin = ['elsewhere']")
    assert config.model_tables(str(path))["model"][0]["pin"] == ["elsewhere"]


def test_a_batching_file_is_laid_over_the_tables(tmp_path: Path) -> None:
    models, batching = tmp_path / "pool.toml", tmp_path / "batching.config"
    models.write_text("[batching]\nmax_batch_size = 4\npad = false\n" + MODEL)
    batching.write_text("max_batch_size { value: 16 }\nmax_enqueued_batches { value: 5 }")
    (read,) = config.read_models(config.model_tables(str(models), str(batching)), "x", BatchingSettings(), [])
    assert read.batching == BatchingSettings(16, 0.0, (), 80, pad=False)


def test_a_reload_needs_models(tmp_path: Path) -> None:
    path = tmp_path / "some"
    for text in ("[batching]\nmax_batch_size = 4", "max_batch_size { value: 4 }", ""):
        path.write_text(text)
        with pytest.raises(InvalidArgument, match="got no models"):
            config.model_tables(str(path))
    path.write_text("model = []")
    assert config.model_tables(str(path)) == {"batching": {}, "model": []}
    path.write_text("[pool]\nworkers = 0\n" + MODEL)
    with pytest.raises(InvalidArgument, match=r"some:2: \[pool\] workers"):
        config.model_tables(str(path))


def test_a_path_sent_to_a_pool_is_absolute() -> None:
    for path in ("m", "~/m", "./m"):
        with pytest.raises(InvalidArgument, match=r"add: 'm': \[model\] base_path: got .*, expected an absolute path"):
            config.read_models({"model": [{"name": "m", "base_path": path}]}, "add", BatchingSettings(), [])


def test_defaults_of_a_pool_lie_below() -> None:
    tables = {"model": [{"name": "m", "base_path": "/m"}]}
    (read,) = config.read_models(tables, "add", BatchingSettings(8), [])
    assert read == ModelSettings("m", "/m", batching=BatchingSettings(8))
    with pytest.raises(InvalidArgument, match=r"^add: \[pool\]: got an unknown table, expected one of batching, model"):
        config.read_models(tables | {"pool": {}}, "add", BatchingSettings(), [])


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
_SENT = st.dictionaries(st.sampled_from([field.name for field in fields(ModelSettings)]) | st.integers(), _VALUES)


@given(_VALUES | st.lists(_SENT.map(lambda table: {"name": "m", "base_path": "/m"} | table), max_size=3), _VALUES)
def test_whatever_is_sent_is_read_or_refused(models: Any, batching: Any) -> None:
    try:
        read = config.read_models({"model": models, "batching": batching}, "sent", BatchingSettings(), [])
    except InvalidArgument as error:
        message = str(error)
    else:
        assert len(read) == len(models)
        return
    assert message.startswith("sent: ")


def test_merged_batching_names_its_file() -> None:
    assert config.merge_batching(BatchingSettings(8, pad=False), {"max_batch_size": 4}, "x") == BatchingSettings(
        4, pad=False
    )
    with pytest.raises(InvalidArgument, match=r"^/m/1/b: \[batching\] max_batch_size: got 0"):
        config.merge_batching(BatchingSettings(), {"max_batch_size": 0}, "/m/1/b")
