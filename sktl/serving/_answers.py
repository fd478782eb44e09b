"""What answers look like, and how the documentation describes them."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from fastapi.responses import JSONResponse

from sktl.serving._gallery import Gallery, Similar
from sktl.serving._limits import Limits
from sktl.serving._model import Answer, ServedModel

UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {
                        "images": {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}
                    },
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


def _example(description: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"example": value}}}


PREDICTIONS = _example(
    "Predictions in the order of the images",
    {
        "classes": ["heron", "stork"],
        "predictions": [{"name": "holiday.jpg", "label": "heron", "probabilities": [0.93, 0.07]}],
    },
)
CARD = _example("The card", {"name": "birds", "kind": "classifier", "classes": ["heron", "stork"]})
_BAD = {
    "detail": "The image cannot be used: truncated JPEG file: it ends after 1,024 bytes",
    "rows": [
        {"index": 0, "name": "holiday.jpg", "reason": "truncated JPEG file: it ends after 1,024 bytes"},
    ],
}
REFUSED: dict[int | str, dict[str, Any]] = {
    400: {"description": "The form is damaged, or the body empty"},
    408: {"description": "The upload takes too long"},
    413: {"description": "The request holds too many bytes or images"},
    415: {"description": "The body is neither multipart/form-data nor an image"},
    422: _example("Images that cannot be used, each with the reason", _BAD),
    503: {"description": "Too busy, or too slow; try again"},
}


class AsciiJSONResponse(JSONResponse):
    """JSON in ASCII, which also has a form for names of files and classes that are not valid UTF-8."""

    def render(self, content: Any) -> bytes:
        """Return what is sent."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def predictions_of(
    answer: Answer, names: list[str], classes: list | None, similar: list[list[Similar]] | None
) -> dict[str, Any]:
    """Turn an answer into what the client gets.

    Parameters
    ----------
    answer : Answer
        Of the model.
    names : list of str
        Of the files.
    classes : list or None
        What the probabilities stand for.
    similar : list of list of Similar or None
        Images of the gallery for each.
    """
    key = "value" if classes is None else "label"
    predictions: list[dict[str, Any]] = [
        {"name": name, key: value} for name, value in zip(names, answer.predictions, strict=True)
    ]
    if answer.proba is not None:
        for prediction, row in zip(predictions, answer.proba.tolist(), strict=True):
            prediction["probabilities"] = row
    if similar is not None:
        for prediction, found in zip(predictions, similar, strict=True):
            prediction["similar"] = [{**each._asdict(), "thumbnail": f"gallery/{each.index}.jpg"} for each in found]
    return {"predictions": predictions} if classes is None else {"classes": classes, "predictions": predictions}


def card_of(
    model: ServedModel, name: str, limits: Limits, gallery: Gallery | None, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Say what a model is.

    Parameters
    ----------
    model : ServedModel
        The model.
    name : str
        What it is called.
    limits : Limits
        What a request may hold.
    gallery : Gallery or None
        Images to compare with.
    facts : dict
        What else is known; JSON-able.
    """
    card: dict[str, Any] = {
        "name": name,
        "kind": "regressor" if model.classes is None else "classifier",
        "classes": model.classes,
        "gives_probabilities": model.has_proba,
        "steps": [type(step).__name__ for _, step in getattr(model.model, "steps", [("", model.model)])],
        "versions": {package: version(package) for package in ("sktl", "torch", "timm", "scikit-learn")},
        "limits": {key: getattr(limits, key) for key in ("max_bytes", "max_images", "max_pixels")},
        "gallery": 0 if gallery is None else len(gallery),
    }
    if model.parts is not None:
        reader = model.parts.reader
        card["backbone"] = reader.backbone_.name
        card["input_size"] = model.parts.view.data_config["input_size"]
        card["strategy"] = repr(reader.strategy_) if hasattr(reader, "strategy_") else None
    return {**card, **facts}
