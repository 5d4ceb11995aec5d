"""What is read of a SavedModel without TensorFlow is what the loader finds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tfpool.repository.describe import describe
from tfpool.types import DType

pytestmark = pytest.mark.tf

NAMES = ("half_plus_two", "identity", "string_length", "two_signatures", "no_batch", "scalar", "counter", "dtypes")

_LOAD = """
import json, os, sys
from tfpool.testing import models
directory = sys.argv[1]
for name in sys.argv[2:]:
    models.MAKERS[name](directory)

import tensorflow as tf
saved, info = tf.compat.v1.saved_model, tf.compat.v1.saved_model.utils.build_tensor_info
for as_text in (False, True):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.placeholder(tf.float32, [None, 3], "x")
        open_rank = tf.compat.v1.placeholder(tf.string, None, "open")
        sparse = tf.compat.v1.sparse_placeholder(tf.float32, [None, 3])
        sign = lambda **inputs: saved.signature_def_utils.build_signature_def(
            {key: info(value) for key, value in inputs.items()}, {"y": info(tf.abs(x))}, "a/method")
        signatures = {"good": sign(x=x), "rank": sign(x=open_rank), "sparse": sign(x=sparse), "twice": sign(a=x, b=x),
                      "resource": sign(x=tf.compat.v1.placeholder(tf.resource, [])), "__hidden": sign(x=x),
                      "none": saved.signature_def_utils.build_signature_def({"x": info(x)}, {}, "m")}
        builder = saved.builder.SavedModelBuilder(f"{directory}/odd/{1 + as_text}")
        builder.add_meta_graph_and_variables(session, ["train"], {"train": sign(x=x)})
        builder.add_meta_graph(["serve"], signatures)
        builder.save(as_text)

from tfpool.worker import loader
config = loader.session_config(1, None)
found = {}
for path in [*(f"{name}/1" for name in sys.argv[2:]), "odd/1", "odd/2"]:
    loaded = loader.load(f"{directory}/{path}", config)
    rows = [[s.spec.name, s.spec.method, *([[t.name, t.dtype, t.shape] for t in side] for side in
             (s.spec.inputs, s.spec.outputs))] for s in loaded.signatures]
    found[path] = [rows, loaded.skipped]
    loaded.close()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The models' directory, and what the loader says of each version: signatures and why some are skipped."""
    directory = tmp_path_factory.mktemp("models")
    command = [sys.executable, "-c", _LOAD, str(directory), *NAMES]
    made = subprocess.run(
        command, capture_output=True, text=True, timeout=90, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    )
    assert made.returncode == 0, made.stderr[-2000:]
    return directory, json.loads(made.stdout.splitlines()[-1])


@pytest.mark.parametrize("version", [*(f"{name}/1" for name in NAMES), "odd/1", "odd/2"])
def test_signatures_are_those_of_the_loader(loaded: tuple[Path, dict[str, Any]], version: str) -> None:
    directory, by_version = loaded
    found = describe(str(directory / version))
    rows = [
        [
            s.name,
            s.method,
            *([[t.name, t.dtype, t.shape and list(t.shape)] for t in side] for side in (s.inputs, s.outputs)),
        ]
        for s in found.signatures
    ]
    signatures, skipped = by_version[version]
    assert json.loads(json.dumps(rows)) == signatures
    assert found.skipped == skipped
    assert found.nbytes > 0


def test_the_odd_model_has_each_kind(loaded: tuple[Path, dict[str, Any]]) -> None:
    found = describe(str(loaded[0] / "odd" / "1"))
    assert [s.name for s in found.signatures] == ["good", "rank"]
    assert found.signatures[1].inputs[0].shape is None
    assert found.signatures[1].inputs[0].dtype is DType.STRING
    assert sorted(found.skipped) == ["none", "resource", "sparse", "twice"]


def test_other_tags_are_found_too(loaded: tuple[Path, dict[str, Any]]) -> None:
    assert [s.name for s in describe(str(loaded[0] / "odd" / "1"), ["train"]).signatures] == ["train"]
