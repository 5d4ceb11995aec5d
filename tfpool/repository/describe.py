"""What a version directory holds, read without TensorFlow: signatures, batching parameters, size and fingerprint.

The graph is never read: of saved_model.pb only the tags and the signatures are, the rest is passed over on disk.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from tfpool import config_tfs
from tfpool.config_toml import read_text
from tfpool.errors import FailedPrecondition, InvalidArgument, NotFound, TfpoolError
from tfpool.repository.scan import check_inside
from tfpool.types import DType, SignatureSpec, TensorSpec

BATCHING_FILE = "batching_params.pbtxt"
_UNLOADED = "it has not been loaded yet"
_META_GRAPHS, _META_INFO, _SIGNATURES = 2, 1, 5  # field numbers of SavedModel, and of a meta graph
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class Description:
    """A version directory. ``skipped`` tells, by signature, why it cannot be served.

    ``batching`` is the ``[batching]`` table of the version's own batching_params.pbtxt, empty where there is none.
    ``fingerprint`` changes with any file; ``nbytes`` are those of all files.
    """

    signatures: tuple[SignatureSpec, ...]
    skipped: dict[str, str]
    batching: dict[str, Any]
    fingerprint: str
    nbytes: int


def describe(directory: str, tags: Sequence[str] = ("serve",), roots: Sequence[str] = ()) -> Description:
    """Read a version directory; no signature is known to be batchable yet, nor whether it mutates.

    Its files must lie in one of ``roots`` (empty: anywhere), their links followed; else PermissionDenied is raised.

    Raises NotFound where it or its graph is missing, InvalidArgument where a file is damaged, FailedPrecondition for
    other tags, a file that cannot be read, and a symbolic link that leads back.
    """
    mark, nbytes = fingerprint(directory, roots)
    meta = _meta_graph(directory, frozenset(tags))
    found: list[SignatureSpec] = []
    skipped: dict[str, str] = {}
    for name in sorted(meta.signature_def):
        if name.startswith("__"):
            continue
        try:
            found.append(signature_spec(name, meta.signature_def[name]))
        except TfpoolError as error:
            skipped[name] = error.message
    return Description(tuple(found), skipped, _batching(directory), mark, nbytes)


def signature_spec(name: str, definition: Any) -> SignatureSpec:
    """The spec of a SignatureDef, TensorFlow's message or ours. Raises FailedPrecondition where it cannot be served."""
    inputs = tuple(_tensor_spec(key, definition.inputs[key]) for key in sorted(definition.inputs))
    outputs = tuple(_tensor_spec(key, definition.outputs[key]) for key in sorted(definition.outputs))
    if not outputs:
        raise FailedPrecondition("it has no output")
    if len({definition.inputs[spec.name].name for spec in inputs}) != len(inputs):
        raise FailedPrecondition("two inputs are the same tensor")
    return SignatureSpec(name, definition.method_name, inputs, outputs, reason=_UNLOADED)


def _tensor_spec(name: str, info: Any) -> TensorSpec:
    encoding = info.WhichOneof("encoding")
    if encoding != "name":
        raise FailedPrecondition(f"{name!r} is a {encoding}, only dense tensors are served")
    try:
        dtype = DType(info.dtype)
    except ValueError:
        raise FailedPrecondition(f"{name!r} has dtype number {info.dtype}, which has no counterpart in numpy") from None
    shape = None if info.tensor_shape.unknown_rank else tuple(dim.size for dim in info.tensor_shape.dim)
    return TensorSpec(name, dtype, shape)


def _batching(directory: str) -> dict[str, Any]:
    path = os.path.join(directory, BATCHING_FILE)
    try:
        table: dict[str, Any] = config_tfs.parse_batching(read_text(path), path).tables["batching"]
    except NotFound:
        return {}
    return table


# -- the meta graph ------------------------------------------------------------------------------------------------


def _meta_graph(directory: str, tags: frozenset[str]) -> Any:
    """The meta graph that has these tags and no others, without its graph."""
    path = next((path for path in _graphs(directory) if os.path.isfile(path)), None)
    if path is None:
        inside = ", ".join(sorted(os.listdir(directory))[:8]) or "nothing"
        raise NotFound(f"{directory}: no saved_model.pb in it; found {inside}")
    try:
        metas = list(_text_metas(path) if path.endswith(".pbtxt") else _metas(path))
    except OSError as error:
        raise FailedPrecondition(f"{path}: cannot be read: {error.strerror}") from None
    for meta in metas:
        if set(meta.meta_info_def.tags) == tags:
            return meta
    seen = ", ".join(f"[{', '.join(meta.meta_info_def.tags)}]" for meta in metas)
    raise FailedPrecondition(
        f"{path}: no meta graph has the tags [{', '.join(sorted(tags))}]; found {seen or 'no meta graph'}"
    )


def _graphs(directory: str) -> tuple[str, str]:
    return os.path.join(directory, "saved_model.pb"), os.path.join(directory, "saved_model.pbtxt")


def _text_metas(path: str) -> Iterator[Any]:
    from google.protobuf import text_format

    from tfpool.protos.saved_model_pb2 import SavedModel

    try:
        yield from text_format.Parse(read_text(path), SavedModel(), allow_unknown_field=True).meta_graphs
    except text_format.ParseError as error:
        raise InvalidArgument(f"{path}:{error.GetLine() or 1}: not a SavedModel: {error}") from None
    except RecursionError:
        raise InvalidArgument(f"{path}: not a SavedModel: nested too deeply") from None


def _metas(path: str) -> Iterator[Any]:
    from google.protobuf.message import DecodeError

    from tfpool.protos.saved_model_pb2 import MetaGraph

    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            for number, _, inside, end in _fields(file, 0, size):
                if number == _META_GRAPHS:
                    fields = _fields(file, inside, end)
                    wanted = [(a, b) for field, a, _, b in fields if field in (_META_INFO, _SIGNATURES)]
                    yield MetaGraph.FromString(b"".join(_read(file, a, b) for a, b in wanted))
        except (DecodeError, _Damaged):
            raise InvalidArgument(f"{path}: truncated, or not a SavedModel ({size} bytes)") from None


class _Damaged(Exception):
    """These bytes are no protobuf message."""


def _fields(file: BinaryIO, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """The fields of the message at [position, end): number, and where the field, what is inside and what follows lie.

    Fields are found by their lengths; what they hold is not read. Raises _Damaged.
    """
    while position < end:
        start = position
        tag, position = _varint(file, position)
        kind = tag & 7
        inside = position
        if kind == _BYTES:
            length, inside = _varint(file, position)
            position = inside + length
        elif kind == _VARINT:
            _, position = _varint(file, position)
        elif kind in (_FIXED32, _FIXED64):
            position += 4 if kind == _FIXED32 else 8
        else:
            raise _Damaged
        if position > end:
            raise _Damaged
        yield tag >> 3, start, inside, position


def _varint(file: BinaryIO, position: int) -> tuple[int, int]:
    """The number at ``position``, and where it ends."""
    file.seek(position)
    value = 0
    for i, byte in enumerate(file.read(10)):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, position + i + 1
    raise _Damaged


def _read(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


# -- the fingerprint -----------------------------------------------------------------------------------------------


def fingerprint(directory: str, roots: Sequence[str] = ()) -> tuple[str, int]:
    """A hash over the path, size and time of every file in ``directory``, and how many bytes they are together.

    Symbolic links are followed; a directory that several lead to is read once. Raises NotFound where the directory is
    missing, FailedPrecondition where something cannot be read and for a link that leads back, PermissionDenied for one
    that leads out of ``roots`` (empty: anywhere).
    """
    if roots:
        check_inside(directory, roots)
    try:
        top = os.stat(directory)
    except OSError as error:
        raise _unreadable(directory, error) from None
    if not stat.S_ISDIR(top.st_mode):
        raise NotFound(f"{directory}: got a file, expected a directory")
    lines: list[str] = []
    sizes: dict[tuple[int, int], int] = {}
    seen: set[tuple[int, int]] = set()
    stack: list[tuple[str, str, tuple[tuple[int, int], ...]]] = [(directory, "", ((top.st_dev, top.st_ino),))]
    while stack:
        place, inner, chain = stack.pop()
        if chain[-1] in seen:
            continue
        seen.add(chain[-1])
        for name, found in _entries(place):
            path = os.path.join(inner, name)
            if roots and os.path.islink(os.path.join(place, name)):
                check_inside(os.path.join(place, name), roots)
            identity = found.st_dev, found.st_ino
            if not stat.S_ISDIR(found.st_mode):
                sizes[identity] = found.st_size
                lines.append(f"{path}\0{found.st_size}\0{found.st_mtime_ns}")
            elif identity in chain:
                raise FailedPrecondition(f"{os.path.join(directory, path)}: a symbolic link that leads back to itself")
            else:  # by its real path: the kernel follows only so many links at once
                stack.append((os.path.realpath(os.path.join(place, name)), path, (*chain, identity)))
    text = "\n".join(sorted(lines))
    return hashlib.sha256(os.fsencode(text)).hexdigest(), sum(sizes.values())


def _entries(directory: str) -> Iterator[tuple[str, os.stat_result]]:
    """What lies in a directory; a link to nothing is left out."""
    try:
        for name in sorted(os.listdir(directory)):
            path = os.path.join(directory, name)
            try:
                yield name, os.stat(path)
            except FileNotFoundError:
                continue
    except OSError as error:
        raise _unreadable(error.filename or directory, error) from None


def _unreadable(path: str, error: OSError) -> TfpoolError:
    if isinstance(error, FileNotFoundError):
        return NotFound(f"{path}: no such directory")
    if error.errno == errno.ELOOP:
        return FailedPrecondition(f"{path}: a symbolic link that leads back to itself")
    return FailedPrecondition(f"{path}: cannot be read: {error.strerror}")
