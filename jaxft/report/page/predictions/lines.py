"""The fields of a line of predictions, view by view, and their types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The views that a run's task names in run.json, beside those of classes.
ENTITIES, BLANKS, PAIRS, BOXED = "entities", "blanks", "pairs", "boxes"
RETRIEVAL, TEXTS, SAMPLES, MASKS = "retrieval", "texts", "samples", "masks"
Keys = dict[str, tuple[type, ...]]
NUMBER = (int, float)

# Of a text there is the text; of an image its file and, for the worst mistakes, a picture, and one
# of where the model looked.
SHOWN: Keys = dict.fromkeys(("text", "file", "image", "attention"), (str, type(None)))
ONE_CLASS: Keys = {"label": (str,), "predicted": (str,), "probabilities": (dict,)}
MANY_LABELS: Keys = {"label": (list,), "predicted": (list,), "probabilities": (dict,)}
A_NUMBER: Keys = {"label": NUMBER, "predicted": NUMBER}
CLASSES: dict[str, Keys] = {  # views of classes or a number
    "single_label": {**SHOWN, **ONE_CLASS, "loss": NUMBER},
    "multi_label": {**SHOWN, **MANY_LABELS, "loss": NUMBER},
    "regression": {**SHOWN, **A_NUMBER, "loss": NUMBER},
}
BOXES: Keys = {"objects": (list,), "gold": (list,)}
TAGGED: Keys = {"text": (str,), "entities": (list,), "gold": (list,), "loss": NUMBER}
ENTITY: Keys = {"type": (str,), "start": (int,), "end": (int,)}
FILLED: Keys = {
    "id": (int,),
    "text": (str,),
    "blank": (list,),
    "hidden": (str,),
    "fills": (list,),
    "loss": NUMBER,
}
FILL: Keys = {"token": (str,), "probability": NUMBER}
PAIRED: Keys = {
    "id": (int,),
    "text": (str,),
    "positive": (str,),
    "before": (int,),
    "found": (list,),
}
FOUND: Keys = {"text": (str,), "similarity": NUMBER}
SEARCHED: Keys = {  # the first texts have the images that are nearest to them too
    "id": (int,),
    "text": (str,),
    "image": (str, type(None)),
    "images_before": (int, type(None)),
    "images": (list, type(None)),
}
FOUND_IMAGE: Keys = {"text": (str,), "similarity": NUMBER, "image": (str,), "own": (bool,)}
WRITTEN: Keys = {  # of a text its source; of an image as above
    "id": (int,),
    **dict.fromkeys(("source", "file", "image"), (str, type(None))),
    **dict.fromkeys(("target", "written"), (str,)),
    "loss": NUMBER,
}
ANSWER: Keys = {"id": (int,), **dict.fromkeys(("source", "target", "written"), (str,))}
MASKED: Keys = {"shares": (dict,), "iou": NUMBER}  # and pictures of the first
IMAGE: Keys = {"id": (int,)}  # and its bits per dimension, or its loss
# View -> the keys of a line, and of the lists in it.
LINES: dict[str, tuple[Keys, dict[str, Keys]]] = {
    **{view: (keys, {}) for view, keys in CLASSES.items()},
    ENTITIES: (TAGGED, {"entities": ENTITY, "gold": ENTITY}),
    BLANKS: (FILLED, {"fills": FILL}),
    PAIRS: (PAIRED, {"found": FOUND}),
    BOXED: (BOXES, {}),
    RETRIEVAL: (SEARCHED, {"images": FOUND_IMAGE}),
    TEXTS: (WRITTEN, {}),
    SAMPLES: (IMAGE, {}),
    MASKS: (MASKED, {}),
}
# `task.kind` -> view, of runs whose run.json names no view: those before jaxft 0.2.
EARLIER = {
    "token_classification": ENTITIES,
    "masked_lm": BLANKS,
    "embedding": PAIRS,
    "object_detection": BOXED,
    "contrastive": RETRIEVAL,
    "seq2seq": TEXTS,
    "captioning": TEXTS,
    "image_generation": SAMPLES,
}


def view_of(about: Mapping[str, Any], task: Mapping[str, Any]) -> str | None:
    """The view of a run's predictions; None where the page shows none.

    Args:
        about: the content of run.json.
        task: the config's `task` section.
    """
    if "view" in about:
        return about["view"] if about["view"] in LINES else None
    if (view := EARLIER.get(str(task.get("kind")))) is not None:
        return view
    if about.get("labels") == []:  # without classes no mistakes
        return None
    problem = str(task.get("problem"))
    return problem if problem in CLASSES else "single_label"
