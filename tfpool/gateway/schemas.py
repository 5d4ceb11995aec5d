"""What bodies look like, as JSON schemas by name: the components of the OpenAPI document. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]
TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
FLAG: Schema = {"type": "boolean"}
ANY_OBJECT: Schema = {"type": "object"}


def ref(name: str) -> Schema:
    """The schema of that name."""
    return {"$ref": f"#/components/schemas/{name}"}


def array(of: Schema | None = None) -> Schema:
    return {"type": "array", "items": of or {}}


def obj(needed: Mapping[str, Schema], **optional: Schema) -> Schema:
    """An object with these members; others are allowed."""
    found: dict[str, Any] = {"type": "object", "properties": {**needed, **optional}}
    if needed:
        found["required"] = list(needed)
    return found


def choice(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


_VALUE: Schema = {"description": "A value, a list, lists of lists, or for a string of bytes {'b64': base64}."}
_EXAMPLE: Schema = {"type": "object", "description": "Features by name, each a value or a list."}
_PARAMETERS: Schema = {"type": "object", "description": "Values by name."}
_SHAPE = array(WHOLE)
_COUNTED = obj({"count": WHOLE, "ns": WHOLE})
_TENSOR = {"name": TEXT, "datatype": TEXT, "shape": _SHAPE}

SCHEMAS: Mapping[str, Schema] = {
    "Error": obj({"error": TEXT}),
    "PredictRequest": {
        "description": "By rows or by columns: instances, a list with one entry a row, or inputs, tensors by name.",
        "oneOf": [
            obj({"instances": array(_VALUE)}, signature_name=TEXT),
            obj({"inputs": _VALUE}, signature_name=TEXT),
        ],
    },
    "PredictResponse": {"oneOf": [obj({"predictions": array()}), obj({"outputs": {}})]},
    "ExamplesRequest": obj({"examples": array(_EXAMPLE)}, context=_EXAMPLE, signature_name=TEXT),
    "ClassifyResponse": obj(
        {"results": array(array({"type": "array", "description": "A label and its score.", "items": {}}))}
    ),
    "RegressResponse": obj({"results": array(NUMBER)}),
    "ModelStatus": obj(
        {
            "model_version_status": array(
                obj(
                    {
                        "version": TEXT,
                        "state": choice("UNKNOWN", "START", "LOADING", "AVAILABLE", "UNLOADING", "END"),
                        "status": obj({"error_code": TEXT, "error_message": TEXT}),
                    }
                )
            )
        }
    ),
    "ModelMetadata": obj({"model_spec": ANY_OBJECT, "metadata": ANY_OBJECT}),
    "ServerV2": obj({"name": TEXT, "version": TEXT, "extensions": array(TEXT)}),
    "LiveV2": obj({"live": FLAG}),
    "ReadyV2": obj({"ready": FLAG}, name=TEXT, error=TEXT),
    "MetadataV2": obj(
        {
            "name": TEXT,
            "versions": array(TEXT),
            "platform": TEXT,
            "inputs": array(obj(_TENSOR)),
            "outputs": array(obj(_TENSOR)),
        }
    ),
    "ConfigV2": obj({"name": TEXT, "platform": TEXT, "max_batch_size": WHOLE}),
    "StatisticsV2": obj(
        {
            "model_stats": array(
                obj(
                    {
                        "name": TEXT,
                        "version": TEXT,
                        "inference_count": WHOLE,
                        "execution_count": WHOLE,
                        "inference_stats": obj({"success": _COUNTED, "fail": _COUNTED, "queue": _COUNTED}),
                    }
                )
            )
        }
    ),
    "InferRequestV2": obj(
        {"inputs": array(obj(_TENSOR, data=array(), parameters=_PARAMETERS))},
        id=TEXT,
        parameters=_PARAMETERS,
        outputs=array(obj({"name": TEXT}, parameters=_PARAMETERS)),
    ),
    "InferResponseV2": obj(
        {
            "model_name": TEXT,
            "model_version": TEXT,
            "outputs": array(obj(_TENSOR, data=array(), parameters=_PARAMETERS)),
        },
        id=TEXT,
        parameters=_PARAMETERS,
    ),
    "IndexRequestV2": obj({}, ready=FLAG),
    "IndexV2": array(obj({"name": TEXT, "version": TEXT, "state": TEXT, "reason": TEXT})),
    "RepositoryRequestV2": obj({}, parameters=_PARAMETERS),
    "Live": obj({"live": FLAG}),
    "Ready": obj({"ready": FLAG}, reason=TEXT, missing={}, failed={}),
    "WhoAmI": obj({"access": choice("OPEN", "MONITOR", "PREDICT", "ADMIN"), "tokens": FLAG}),
    "Act": ANY_OBJECT,
    "Done": obj({"done": {}}),
}
