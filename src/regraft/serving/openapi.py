"""The API in OpenAPI's words."""

from typing import Any

from regraft.serving.limits import Limits

Schema = dict[str, Any]


def document(version: str, limits: Limits, *, needs_token: bool) -> Schema:
    """Return the OpenAPI 3.1 document.

    Args:
        version: Of regraft.
        limits: How much may be asked.
        needs_token: Whether requests have to bear a token.
    """
    health = _get("Whether all workers are ready", "application/json")
    health["responses"]["503"] = _json("A worker is being started.", _object(status={"type": "string"}))
    schema: Schema = {
        "openapi": "3.1.0",
        "info": {"title": "regraft", "version": version, "summary": "An image classifier."},
        "paths": {
            "/v1/predict": {"post": _predict(limits)},
            "/v1/model": {"get": _get("What the model is and how good", "application/json")},
            "/healthz": {"get": health},
            "/metrics": {"get": _get("Counters for Prometheus", "text/plain")},
        },
    }
    if needs_token:
        schema["components"] = {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}
        schema["security"] = [{"token": []}]
        refusal = _json("The token is missing or another.", _refusal())
        health["security"] = []
        for operation in (one for item in schema["paths"].values() for one in item.values() if one is not health):
            operation["responses"]["401"] = refusal
    return schema


def _predict(limits: Limits) -> Schema:
    refusals = {
        "408": f"The body took longer than {limits.body_s:g} s.",
        "413": f"More than {limits.max_bytes} bytes.",
        "403": "A page of another site asks, which --allow-origin does not name.",
        "415": "Neither a form, nor JSON, nor an image; or compressed in another way than gzip.",
        "503": "Busy; Retry-After says for how many seconds.",
    }
    base64 = {"type": "string", "contentEncoding": "base64"}
    return {
        "summary": "Labels and probabilities of photos",
        "parameters": [
            _query("top", {"type": "integer", "minimum": 1}, "How many classes to give probabilities of."),
            _query("heatmap", {"type": "boolean"}, "Also where the model looks, as a JPEG in a data URI."),
        ],
        "requestBody": {
            "required": True,
            "description": "May be compressed: Content-Encoding: gzip.",
            "content": {
                "multipart/form-data": {"schema": {"type": "object", "additionalProperties": _array(_binary())}},
                "image/*": {"schema": _binary()},
                "application/octet-stream": {"schema": _binary()},
                "binary/octet-stream": {"schema": _binary()},
                "application/json": {"schema": {"anyOf": [_object(image=base64), _object(images=_array(base64))]}},
            },
        },
        "responses": {
            "200": {
                **_json("An answer for each photo, in order.", _object(predictions=_array(_prediction()))),
                "headers": {"X-Model": {"schema": {"type": "string"}, "description": "The model that answered."}},
            },
            "400": _json(
                "No photo could be read, or the request cannot be understood.",
                {"anyOf": [_refusal(), _object(predictions=_array(_prediction()))]},
            ),
            **{status: _json(text, _refusal()) for status, text in refusals.items()},
        },
    }


def _prediction() -> Schema:
    number, text, flag = {"type": "number"}, {"type": "string"}, {"type": "boolean"}
    return _object(
        name={**text, "description": "As sent."},
        error={**text, "description": "Why the photo has no answer; then nothing else is there."},
        label=text,
        probability=number,
        probabilities={"type": "object", "additionalProperties": number, "description": "The most probable first."},
        novelty={"type": ["number", "null"], "description": "Above 1: like nothing it has learned from."},
        looks_new=flag,
        unsure=flag,
        labels={"type": ["array", "null"], "items": text},
        heatmap=text,
    )


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties}


def _refusal() -> Schema:
    return _object(error={"type": "string"})


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _binary() -> Schema:
    return {"type": "string", "format": "binary"}


def _query(name: str, schema: Schema, text: str) -> Schema:
    return {"name": name, "in": "query", "schema": schema, "description": text}


def _json(text: str, schema: Schema) -> Schema:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _get(text: str, kind: str) -> Schema:
    return {"summary": text, "responses": {"200": {"description": text, "content": {kind: {"schema": {}}}}}}
