"""The messages of Classify, Regress and MultiInference, read and written. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tfpool.client.examples import CLASSIFY, REGRESS, Classes, Method, Target
from tfpool.errors import InvalidArgument, Unimplemented
from tfpool.gateway.rpc.asked import spec_of
from tfpool.gateway.rpc.responses import DEFAULT_SIGNATURE
from tfpool.protos import inference_pb2
from tfpool.repository.warmup_file import serialized
from tfpool.wire.tensors import Array


class Task(NamedTuple):
    """One of the tasks of a MultiInferenceRequest; ``write`` puts its result into the response's."""

    signature: str
    kind: Method
    write: Callable[[Any, inference_pb2.InferenceResult], None]


def examples_of(given: inference_pb2.Input) -> Array:
    """Serialized tf.Examples, an object array [n]. Raises InvalidArgument for none."""
    examples = serialized(given)
    if not len(examples):
        raise InvalidArgument("Input is empty.")
    return examples


def classes(found: Classes, result: inference_pb2.ClassificationResult) -> None:
    """Put labels with scores into a result."""
    for row in found:
        made = result.classifications.add()
        for label, score in row:
            made.classes.add(label=label, score=score)


def values(found: Array, result: inference_pb2.RegressionResult) -> None:
    """Put numbers into a result."""
    for value in found.tolist():
        result.regressions.add(value=value)


_KINDS: dict[str, tuple[Method, Callable[[Any, inference_pb2.InferenceResult], None]]] = {
    "tensorflow/serving/classify": (CLASSIFY, lambda found, made: classes(found, made.classification_result)),
    "tensorflow/serving/regress": (REGRESS, lambda found, made: values(found, made.regression_result)),
}


def tasks_of(request: inference_pb2.MultiInferenceRequest) -> tuple[Target, list[Task]]:
    """What the first task is for, and all tasks.

    Raises InvalidArgument for none, tasks of several models and a signature that comes twice, Unimplemented for an
    unknown method.
    """
    if not request.tasks:
        raise InvalidArgument("MultiInferenceRequest: got no task, expected one or more")
    first = spec_of(request.tasks[0].model_spec).target()
    tasks: dict[str, Task] = {}
    for task in request.tasks:
        if not task.model_spec.name:
            raise InvalidArgument("Found ModelSpec with an empty model name.")
        if task.model_spec.name != first.model:
            raise InvalidArgument("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        signature = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if signature in tasks:
            raise InvalidArgument(f"Duplicate evaluation of signature: {signature}")
        if task.method_name not in _KINDS:
            raise Unimplemented(f"Unsupported signature method_name: {task.method_name}")
        tasks[signature] = Task(signature, *_KINDS[task.method_name])
    return first, list(tasks.values())
