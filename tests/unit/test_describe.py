from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool.config import merge_batching
from tfpool.errors import FailedPrecondition, InvalidArgument, NotFound, TfpoolError
from tfpool.repository.describe import describe, fingerprint
from tfpool.settings import BatchingSettings
from tfpool.types import DType, SignatureSpec, TensorSpec


def field(number: int, inside: bytes) -> bytes:
    """A field of a message: strings, bytes and messages all look like this. Up to 127 bytes."""
    return bytes([number << 3 | 2, len(inside)]) + inside


def tensor(name: bytes, dtype: int, *dims: bytes) -> bytes:
    shape = field(3, b"".join(field(2, b"\x08" + dim) for dim in dims))
    return field(1, name) + bytes([2 << 3, dtype]) + shape


OPEN = b"\xff" * 9 + b"\x01"  # -1
X = field(1, field(1, b"x") + field(2, tensor(b"in:0", 1, OPEN, b"\x03")))
Y = field(2, field(1, b"y") + field(2, tensor(b"out:0", 7)))
SIGNATURE = field(5, field(1, b"s") + field(2, X + Y + field(3, b"m")))
SERVE = field(1, field(4, b"serve"))
GRAPH = field(2, b"\xff" * 100)  # not read: it need not even be a message
SAVED_MODEL = b"\x08\x01" + field(2, SERVE + GRAPH) + field(2, field(1, field(4, b"other")))

SPEC = SignatureSpec(
    "s",
    "m",
    (TensorSpec("x", DType.FLOAT, (-1, 3)),),
    (TensorSpec("y", DType.STRING, ()),),
    reason="it has not been loaded yet",
)


def message(*metas: bytes) -> bytes:
    """A SavedModel of these meta graphs."""
    return b"\x08\x01" + b"".join(b"\x12" + varint(len(meta)) + meta for meta in metas)


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A version directory with one signature."""
    (tmp_path / "1" / "variables").mkdir(parents=True)
    (tmp_path / "1" / "saved_model.pb").write_bytes(message(SERVE + GRAPH + SIGNATURE))
    (tmp_path / "1" / "variables" / "variables.index").write_bytes(b"1234")
    return tmp_path / "1"


def test_a_version_directory(version: Path) -> None:
    found = describe(str(version))
    assert found.signatures == (SPEC,)
    assert (found.skipped, found.batching) == ({}, {})
    assert found.nbytes == (version / "saved_model.pb").stat().st_size + 4
    assert (found.fingerprint, found.nbytes) == fingerprint(str(version))


def test_a_text_graph(version: Path) -> None:
    (version / "saved_model.pb").unlink()
    (version / "saved_model.pbtxt").write_text(
        """
        saved_model_schema_version: 1
        meta_graphs {
          meta_info_def { stripped_op_list { op { name: "Abs" } } tags: "serve" tensorflow_version: "2.21" }
          graph_def { node { name: "in" op: "Placeholder" attr { key: "dtype" value { type: DT_FLOAT } } } }
          signature_def {
            key: "s"
            value {
              inputs {
                key: "x" value { name: "in:0" dtype: DT_FLOAT tensor_shape { dim { size: -1 } dim { size: 3 } } }
              }
              outputs { key: "y" value { name: "out:0" dtype: DT_STRING tensor_shape { } } }
              method_name: "m"
            }
          }
        }
        """
    )
    assert describe(str(version)).signatures == (SPEC,)
    (version / "saved_model.pbtxt").write_text("saved_model_schema_version: 1\nmeta_graphs: 3\n")
    with pytest.raises(InvalidArgument, match=r"saved_model\.pbtxt:2: not a SavedModel: "):
        describe(str(version))
    (version / "saved_model.pbtxt").write_text("unknown { " * 10_000 + "}" * 10_000)
    with pytest.raises(InvalidArgument, match=r"saved_model\.pbtxt: not a SavedModel: nested too deeply"):
        describe(str(version))


@pytest.mark.parametrize(
    ("tags", "problem"),
    [
        ([b"train"], r"no meta graph has the tags \[serve\]; found \[train\]"),
        ([b"serve", b"gpu"], r"found \[serve, gpu\]"),
        ([], r"found \[\]"),
        (None, "found no meta graph"),
    ],
)
def test_other_tags(version: Path, tags: list[bytes] | None, problem: str) -> None:
    metas = [] if tags is None else [field(1, b"".join(field(4, tag) for tag in tags)) + SIGNATURE]
    (version / "saved_model.pb").write_bytes(message(*metas))
    with pytest.raises(FailedPrecondition, match=problem) as caught:
        describe(str(version))
    assert str(version / "saved_model.pb") in str(caught.value)


def test_the_meta_graph_that_is_meant(version: Path) -> None:
    train = field(1, field(4, b"train"))
    (version / "saved_model.pb").write_bytes(message(train, SERVE + SIGNATURE))
    assert describe(str(version)).signatures == (SPEC,)
    assert describe(str(version), ["train"]).signatures == ()


def test_every_truncation_is_refused(version: Path) -> None:
    graph = version / "saved_model.pb"
    whole = graph.read_bytes()
    for size in range(len(whole)):
        graph.write_bytes(whole[:size])
        with pytest.raises((InvalidArgument, FailedPrecondition), match=r"saved_model\.pb: ") as caught:
            describe(str(version))
        assert isinstance(caught.value, FailedPrecondition) == (size in (0, 2)), size


@given(data=st.data())
def test_a_damaged_graph_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    whole = bytearray(message(SERVE + GRAPH + SIGNATURE))
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=3)):
        whole[place] = data.draw(st.integers(0, 255))
    version = tmp_path_factory.getbasetemp() / "damaged"
    version.mkdir(exist_ok=True)
    (version / "saved_model.pb").write_bytes(whole)
    try:
        describe(str(version))
    except TfpoolError as error:
        message_ = str(error)
    else:
        return
    assert message_.startswith(f"{version}/saved_model.pb: ")


def test_its_own_batching(version: Path) -> None:
    path = version / "batching_params.pbtxt"
    path.write_text("max_batch_size { value: 4 }")
    table = describe(str(version)).batching
    merged = merge_batching(BatchingSettings(128, 3.0, (1, 128), pad=False), table, str(path))
    assert merged == BatchingSettings(4, 0.0, (), 40, pad=False)
    path.write_text("\nmax_batch_size { value: 0 }")
    with pytest.raises(InvalidArgument, match=r"batching_params\.pbtxt:2: max_batch_size: got 0"):
        describe(str(version))


# -- what lies on disk ---------------------------------------------------------------------------------------------


def test_a_fingerprint_changes_with_any_file(version: Path) -> None:
    seen = {fingerprint(str(version))[0]}
    index = version / "variables" / "variables.index"
    index.write_bytes(b"12345")
    seen.add(fingerprint(str(version))[0])
    os.utime(index, ns=(1, 1))
    seen.add(fingerprint(str(version))[0])
    index.rename(version / "variables" / "other")
    seen.add(fingerprint(str(version))[0])
    (version / "assets").mkdir()
    (version / "assets" / "words").touch()
    seen.add(fingerprint(str(version))[0])
    assert len(seen) == 5


def test_a_fingerprint_is_that_of_a_copy(version: Path, tmp_path: Path) -> None:
    shutil.copytree(version, tmp_path / "copy")
    assert fingerprint(str(tmp_path / "copy")) == fingerprint(str(version))


def test_symbolic_links_are_followed(version: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(version)
    assert describe(str(tmp_path / "linked")) == describe(str(version))
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "big").write_bytes(b"x" * 1000)
    before = fingerprint(str(version))[1]
    (version / "assets").symlink_to(tmp_path / "far")
    (version / "again").symlink_to(tmp_path / "far")
    (version / "dangling").symlink_to(tmp_path / "nowhere")
    assert fingerprint(str(version))[1] == before + 1000


def test_links_upon_links_are_read_once(version: Path) -> None:
    """Read each time they are led to, they would be 2 ** 60 directories."""
    inner = version
    for _ in range(60):
        (inner / "d").mkdir()
        (inner / "e").symlink_to(inner / "d")
        inner = inner / "d"
    assert fingerprint(str(version))[1] > 0


@pytest.mark.parametrize("target", [".", "..", "../variables", "loop"])
def test_a_link_that_leads_back(version: Path, target: str) -> None:
    (version / "variables" / "loop").symlink_to(target)
    with pytest.raises(FailedPrecondition, match="variables/loop: a symbolic link that leads back to itself"):
        describe(str(version))


def test_what_is_missing(version: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nowhere: no such directory"):
        describe(str(tmp_path / "nowhere"))
    with pytest.raises(NotFound, match=r"saved_model\.pb: got a file"):
        describe(str(version / "saved_model.pb"))
    (version / "saved_model.pb").unlink()
    with pytest.raises(NotFound, match=r"1: no saved_model\.pb in it; found variables"):
        describe(str(version))
    (version / "saved_model.pb").mkdir()
    with pytest.raises(NotFound, match=r"no saved_model\.pb in it"):
        describe(str(version))


def test_what_cannot_be_read(version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> list[str]:
        raise PermissionError(13, "Permission denied", path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "listdir", refuse)
        with pytest.raises(FailedPrecondition, match="1: cannot be read: Permission denied"):
            fingerprint(str(version))
    monkeypatch.setattr("builtins.open", lambda path, *_: refuse(path))
    with pytest.raises(FailedPrecondition, match=r"saved_model\.pb: cannot be read: Permission denied"):
        describe(str(version))


def test_a_large_graph_is_passed_over(version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 1 << 30
    head = SERVE + SIGNATURE + b"\x12" + varint(size)
    with open(version / "saved_model.pb", "wb") as file:
        file.write(b"\x12" + varint(len(head) + size) + head)
        file.truncate(file.tell() + size)  # a hole: nothing is written, and nothing must be read
    found = describe(str(version))
    assert found.signatures == (SPEC,)
    assert found.nbytes > size
