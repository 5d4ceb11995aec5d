from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool import config, config_tfs
from tfpool.errors import InvalidArgument, TfpoolError, Unimplemented
from tfpool.settings import BatchingSettings, ModelSettings

MODELS = """\
# Two models.
model_config_list {
  config {
    name: 'half'  # a comment { with a brace
    base_path: "/models/ha" "lf/"
    model_platform: "tensorflow"
    model_version_policy { specific { versions: 4 versions: 3 } }
    version_labels { key: 'stable' value: 3 }
    version_labels: { key: 'canary', value: 4 }
    logging_config {
      log_collector_config { type: "x" filename_prefix: "/tmp/log" }
      sampling_config { sampling_rate: 0.1 }
    }
  }
  config: < name: "other"; base_path: "/models/other" model_type: TENSORFLOW model_version_policy: {latest: {}} >
}
"""


def models(inner: str) -> str:
    """One model, whose fields begin on the third line."""
    return f"model_config_list {{\n  config {{\n{inner}\n}} }}\n"


GOOD = "name: 'm' base_path: '/m'\n"


def read(tmp_path: Path, text: str) -> tuple[ModelSettings, ...]:
    path = tmp_path / "models.config"
    path.write_text(text)
    return config.load(str(path)).models


def test_a_model_config_file(tmp_path: Path) -> None:
    assert read(tmp_path, MODELS) == (
        ModelSettings("half", "/models/half", (3, 4), (("stable", ((3, 1),)), ("canary", ((4, 1),)))),
        ModelSettings("other", "/models/other", "latest:1"),
    )


@pytest.mark.parametrize(
    ("written", "policy"),
    [
        ("", "latest"),
        ("model_version_policy {}", "latest:1"),
        ("model_version_policy { latest { num_versions: 0 } }", "latest:1"),
        ("model_version_policy { latest { num_versions: 3 } }", "latest:3"),
        ("model_version_policy { all {} }", "all"),
        ("model_version_policy: { specific: { versions: [7, 5] } }", (5, 7)),
    ],
)
def test_version_policies(tmp_path: Path, written: str, policy: object) -> None:
    (model,) = read(tmp_path, models(GOOD + written))
    assert model.version_policy == policy


def test_a_list_of_messages(tmp_path: Path) -> None:
    text = "model_config_list: {\n config: [ { name: 'a' base_path: '/a' },\n {name: 'b' base_path: '/b' } ] }"
    assert [model.name for model in read(tmp_path, text)] == ["a", "b"]
    with pytest.raises(InvalidArgument, match=r":3: \[model_config_list.config\] base_path: got 'b'"):
        read(tmp_path, text.replace("/b", "b"))


def test_no_models(tmp_path: Path) -> None:
    assert read(tmp_path, "# nothing yet\nmodel_config_list {\n}\n") == ()


BAD = [
    (models("base_path: '/m'"), "2: [model_config_list.config] name: got nothing"),
    (models("name: 'm'"), "2: [model_config_list.config] base_path: got nothing"),
    (models("name: 'm'\nbase_path: 'm'"), "4: [model_config_list.config] base_path: got 'm', expected an absolute"),
    (models("name: 'm'\nbase_path: 'gs://m'"), "4: [model_config_list.config] base_path: got 'gs://m', expected an"),
    (models("name: 'a/b'\nbase_path: '/m'"), "3: [model_config_list.config] name: got 'a/b', expected"),
    (models(GOOD + "model_platform: 'onnx'"), "4: [model_config_list.config] model_platform: got 'onnx', expected one"),
    (models(GOOD + "model_type: OTHER"), "4: [model_config_list.config] model_type: got OTHER, expected TENSORFLOW"),
    (
        models(GOOD + "\nmodel_version_policy { specific {} }"),
        "5: [model_config_list.config] model_version_policy: got",
    ),
    (models(GOOD + "model_version_policy { specific { versions: 0 } }"), "4: [model_config_list.config] model_version"),
    (
        models(GOOD + "model_version_policy { latest { num_versions: 4000000000 } }"),
        "4: [model_config_list.config] model_version_policy: got 'latest:4000000000'",
    ),
    (
        models(GOOD + "version_labels { key: 'a' value: 1 }\nversion_labels {\n key: 'a' value: 2 }"),
        "6: [model_config_list.config.version_labels] key: got 'a' twice",
    ),
    (
        models(GOOD + "version_labels { key: 'a'\nvalue: 0 }"),
        "5: [model_config_list.config.version_labels] value: got 0 for 'a', expected a version from 1",
    ),
    (models(GOOD + "version_labels { value: 1 }"), "4: [model_config_list.config.version_labels] key: got ''"),
    (models(GOOD + "base_pth: '/m'"), "4: base_pth: got an unknown field, expected one of name, base_path"),
    (
        models(GOOD + "model_version_policy { lastest {} }"),
        "4: lastest: got an unknown field, expected one of latest, ",
    ),
    (models(GOOD + "name: 'n'"), "4: not protobuf text of a ModelServerConfig: "),
    (models("name: 3"), "3: not protobuf text of a ModelServerConfig: "),
    ("model_config_list {\n config {\n", "2: not protobuf text of a ModelServerConfig: "),
    ("\nmodel_config_lst {\n}", "2: model_config_lst: got an unknown field, expected one of model_config_list, "),
    ("max_batch_size: 3", "1: not protobuf text of a BatchingParameters: "),
    ("\nmax_batch_size { value: 0 }", "2: max_batch_size: got 0, expected a whole number from 1"),
    ("max_batch_size { value: 4 }\nallowed_batch_sizes: 2", "2: allowed_batch_sizes: got [2], expected the last to be"),
    ("max_batch_size { value: 4 }\nallowed_batch_sizes: [4, 2]", "2: allowed_batch_sizes: got [4, 2], expected incr"),
    ("batch_timeout_micros { value: -1 }", "1: batch_timeout_micros: got -1, expected a whole number from 0"),
    (
        "max_batch_size { value: 4 }\nmax_execution_batch_size { value: 8 }",
        "2: max_execution_batch_size: got 8, expected a whole number from 1 to 4",
    ),
    ("max_batch_size { value: 4 }\nmax_batch_sise { value: 8 }", "2: max_batch_sise: got an unknown field, expected"),
]


@pytest.mark.parametrize(("text", "start"), BAD, ids=[start[:60] for _, start in BAD])
def test_errors_say_file_line_and_field(tmp_path: Path, text: str, start: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path}/models.config:{start}")


def test_two_models_of_one_name(tmp_path: Path) -> None:
    text = models(GOOD).replace("} }", "}\nconfig {\n base_path: '/n'\n name: 'm' } }")
    with pytest.raises(InvalidArgument, match=r"models\.config:8: \[model\] name: got 'm' twice"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("custom_model_config {\n [type.googleapis.com/a.B] { x: 1 }\n}", "1: custom_model_config: "),
        ("max_batch_size { value: 4 }\npad_variable_length_inputs: true", "2: pad_variable_length_inputs: got true"),
    ],
)
def test_what_is_not_done(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(Unimplemented, match=re.escape(f"models.config:{line}")):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("num_batch_threads { value: 8 } thread_pool_name { value: 'pool' }", BatchingSettings(1000, 0, (), 10_000)),
        ("pad_variable_length_inputs: false max_batch_size { value: 32 }", BatchingSettings(32, 0, (), 320)),
        ("allowed_batch_sizes: 8 allowed_batch_sizes: 64", BatchingSettings(64, 0, (8, 64), 640)),
        (
            "max_batch_size { value: 4 } batch_timeout_micros { value: 1500 } max_enqueued_batches { value: 100 }",
            BatchingSettings(4, 1.5, (), 400),
        ),
        (
            "enable_large_batch_splitting { value: true } max_batch_size { value: 64 }\n"
            "max_execution_batch_size { value: 16 } allowed_batch_sizes: [4, 16]",
            BatchingSettings(16, 0, (4, 16), 640),
        ),
        (
            "max_batch_size { value: 65536 } max_enqueued_batches { value: 1000000 }",
            BatchingSettings(65536, 0, (), 1 << 24),
        ),
    ],
)
def test_a_batching_file(tmp_path: Path, text: str, expected: BatchingSettings) -> None:
    path = tmp_path / "batching.config"
    path.write_text(text)
    assert config.load(str(path)).batching == expected
    assert config.build(batching_file=str(path), file=None).batching == expected


def test_a_model_config_file_beside_a_configuration(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "pool.toml", tmp_path / "models.config"
    ours.write_text("[batching]\nmax_batch_size = 8\n[[model]]\nname = 'own'\nbase_path = 'own'\n")
    theirs.write_text(models(GOOD))
    built = config.build({"m": "/elsewhere"}, file=str(ours), model_config_file=str(theirs))
    assert [(m.name, m.base_path, m.batching.max_batch_size) for m in built.models] == [
        ("own", f"{tmp_path}/own", 8),
        ("m", "/elsewhere", 8),
    ]
    theirs.write_text(models("name: 'own'\nbase_path: '/m'"))
    with pytest.raises(InvalidArgument, match=r"models\.config:3: \[model\] name: got 'own' twice"):
        config.build(file=str(ours), model_config_file=str(theirs))


def test_its_tables_can_be_sent(tmp_path: Path) -> None:
    path = tmp_path / "models.config"
    path.write_text(MODELS)
    tables = config.model_tables(str(path))
    assert config.read_models(tables, "reload", BatchingSettings(), []) == config.load(str(path)).models


@pytest.mark.parametrize(
    ("text", "tfs"),
    [
        ("model_config_list {", True),
        ("# x\n\n  max_batch_size\n{", True),
        ("allowed_batch_sizes: 3", True),
        ("model_config_list <", True),
        ("", False),
        ("# model_config_list {", False),
        ("[pool]\nx = {a = 1}", False),
        ("model = [{name = 'm'}]", False),
        ("'a' = 1", False),
    ],
)
def test_files_are_told_apart_by_their_beginning(text: str, tfs: bool) -> None:
    assert config_tfs.is_tfs(text) == tfs


def test_a_toml_file_is_toml(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("model_config_list {}")
    with pytest.raises(InvalidArgument, match=r"x\.toml:1: not TOML"):
        config.load(str(path))


_FIELDS = ("model_config_list", "config", "name", "base_path", "version_labels", "key", "value", "model_version_policy")
_OTHERS = (
    "specific",
    "versions",
    "max_batch_size",
    "allowed_batch_sizes",
    "'m'",
    "'/m'",
    "3",
    "-1",
    "1e9",
    *"{}<>[]:,;'#",
)
_WORDS = st.sampled_from(_FIELDS + _OTHERS)


@given(st.one_of(st.text(), st.lists(_WORDS, max_size=20).map(" ".join), st.lists(_WORDS).map("config {".join)))
def test_any_text_is_read_or_refused_with_its_line(text: str) -> None:
    try:
        config_tfs.parse(text, "f")
    except TfpoolError as error:
        message = str(error)
    else:
        return
    assert re.match(r"f:\d+: ", message)


def test_protobuf_is_imported_when_a_file_needs_it() -> None:
    code = "import sys, tfpool.config; print('google.protobuf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout == "False\n"
