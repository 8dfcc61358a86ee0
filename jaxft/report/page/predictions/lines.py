"""The fields of a line of predictions, task by task, and their types."""

from __future__ import annotations

TAGGED_TASK, MASKED_TASK, PAIRED_TASK = "token_classification", "masked_lm", "embedding"
BOXES_TASK, SEARCHED_TASK = "object_detection", "contrastive"
WRITTEN_TASKS = ("seq2seq", "captioning")
DRAWN_TASK = "image_generation"
Keys = dict[str, tuple[type, ...]]
NUMBER = (int, float)

# Of a text there is the text; of an image its file and, for the worst mistakes, a picture, and one
# of where the model looked.
SHOWN: Keys = dict.fromkeys(("text", "file", "image", "attention"), (str, type(None)))
ONE_CLASS: Keys = {"label": (str,), "predicted": (str,), "probabilities": (dict,)}
MANY_LABELS: Keys = {"label": (list,), "predicted": (list,), "probabilities": (dict,)}
A_NUMBER: Keys = {"label": NUMBER, "predicted": NUMBER}
PREDICTIONS: dict[str, Keys] = {  # by `task.problem`
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
IMAGE: Keys = {"id": (int,), "bits_per_dimension": NUMBER}
# Of tasks whose predictions are no classes: the keys of a line, and of the lists in it.
LINES: dict[str, tuple[Keys, dict[str, Keys]]] = {
    TAGGED_TASK: (TAGGED, {"entities": ENTITY, "gold": ENTITY}),
    MASKED_TASK: (FILLED, {"fills": FILL}),
    PAIRED_TASK: (PAIRED, {"found": FOUND}),
    BOXES_TASK: (BOXES, {}),
    SEARCHED_TASK: (SEARCHED, {"images": FOUND_IMAGE}),
    **dict.fromkeys(WRITTEN_TASKS, (WRITTEN, {})),
    DRAWN_TASK: (IMAGE, {}),
}
