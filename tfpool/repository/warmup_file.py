"""Warm-up files: requests that lie beside a model, to be run once before it serves.

``assets.extra/tf_serving_warmup_requests`` of a version's directory, as TensorFlow Serving knows it: a TFRecord file of
PredictionLog messages.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tfpool.errors import InvalidArgument
from tfpool.repository import tfrecord
from tfpool.wire.tensor_proto import set_tensor, to_array
from tfpool.wire.tensors import Array

if TYPE_CHECKING:
    from tfpool.protos import inference_pb2

MAX_RECORDS = 1000


@dataclass(frozen=True, slots=True)
class Sample:
    """A request: of a signature ("" is the default one), with inputs by name.

    ``examples`` are serialized tf.Examples [n] in place of named inputs: those of classify and regress.
    """

    signature: str
    inputs: dict[str, Array] = field(default_factory=dict)
    examples: Array | None = None


def path_in(directory: str) -> str:
    """Where the warm-up file of a version's directory is, or would be."""
    return os.path.join(directory, "assets.extra", "tf_serving_warmup_requests")


def read(path: str) -> Iterator[list[Sample]]:
    """What each record of a file asks for: one request, or several signatures on the same examples.

    Raises InvalidArgument, with path and record number (from 1), for what is no such file, a request of a kind that is
    not run here, and a record after the 1000th.
    """
    from google.protobuf.message import DecodeError

    from tfpool.protos import inference_pb2

    for number, record in enumerate(tfrecord.read(path), 1):
        if number > MAX_RECORDS:
            raise InvalidArgument(f"{path}: got more than {MAX_RECORDS} records, expected at most {MAX_RECORDS}")
        try:
            samples = _samples(inference_pb2.PredictionLog.FromString(record))
        except DecodeError:
            raise InvalidArgument(
                f"{path}, record {number}: got {len(record)} bytes that are no PredictionLog"
            ) from None
        except InvalidArgument as error:
            raise InvalidArgument(f"{path}, record {number}: {error.message}") from None
        yield samples


def write(path: str, model: str, version: int, samples: Iterable[Sample]) -> int:
    """Make a file of requests with named inputs, in place of any that is there, whole or not at all; their number.

    Raises InvalidArgument where it cannot be written.
    """
    directory = os.path.dirname(path) or "."
    try:
        os.makedirs(directory, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".tfpool-", delete=False) as file:
            try:
                records = [_record(model, version, sample) for sample in samples]
                tfrecord.write(file, records)
                file.flush()
                os.fsync(file.fileno())
                os.fchmod(file.fileno(), 0o644)
                os.replace(file.name, path)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(file.name)
                raise
    except OSError as error:
        raise InvalidArgument(f"{path}: cannot be written: {error.strerror}") from None
    return len(records)


def _record(model: str, version: int, sample: Sample) -> bytes:
    from tfpool.protos import inference_pb2

    log = inference_pb2.PredictionLog()
    request = log.predict_log.request
    request.model_spec.name = model
    request.model_spec.version.value = version
    request.model_spec.signature_name = sample.signature
    for name in sorted(sample.inputs):
        set_tensor(request.inputs[name], sample.inputs[name])
    data: bytes = log.SerializeToString(deterministic=True)
    return data


def _samples(log: inference_pb2.PredictionLog) -> list[Sample]:
    kind = log.WhichOneof("log_type")
    if kind == "predict_log":
        request = log.predict_log.request
        inputs = {name: to_array(tensor, name) for name, tensor in request.inputs.items()}
        return [Sample(request.model_spec.signature_name, inputs)]
    if kind == "classify_log":
        return [_of_examples(log.classify_log.request.model_spec, log.classify_log.request.input)]
    if kind == "regress_log":
        return [_of_examples(log.regress_log.request.model_spec, log.regress_log.request.input)]
    if kind == "multi_inference_log":
        many = log.multi_inference_log.request
        return [_of_examples(task.model_spec, many.input) for task in many.tasks]
    expected = "predict_log, classify_log, regress_log or multi_inference_log"
    raise InvalidArgument(f"got {kind or 'no known kind of request'}, expected {expected}")


def _of_examples(spec: inference_pb2.ModelSpec, given: inference_pb2.Input) -> Sample:
    examples = serialized(given)
    if not len(examples):
        raise InvalidArgument("got no example, expected one or more")
    return Sample(spec.signature_name, examples=examples)


def serialized(given: inference_pb2.Input) -> Array:
    """Serialized tf.Examples, an object array [n], each with the features of the context.

    Merging is appending: of two features of one name, the example's own comes last and counts.
    """
    if given.WhichOneof("kind") == "example_list_with_context":
        shared = given.example_list_with_context.context.SerializeToString()
        examples = given.example_list_with_context.examples
    else:
        shared = b""
        examples = given.example_list.examples
    array = np.empty(len(examples), object)
    array[:] = [shared + example.SerializeToString() for example in examples]
    return array
