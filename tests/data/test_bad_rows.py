"""`data.on_bad_row: skip` leaves out what each task cannot read, and nothing else."""

import json

import pytest
from PIL import Image

from jaxft.config.load import parse_config
from jaxft.config.tasks import task_sections
from jaxft.data.sources.open import open_source
from jaxft.engine.inputs import bad_rows
from jaxft.engine.setup import make_task
from jaxft.errors import UserError
from jaxft.tasks.parts.labels import BadValue
from tests.support.bare_tools import bare_tools

BOX = {"bbox": [[1, 1, 5, 5]], "label": ["a"]}
WORDS = {"tokens": ["a", "b"], "tags": ["O", "B-x"]}
ASKED, SAID = {"role": "user", "content": "who?"}, {"role": "assistant", "content": "me"}
SHOWN = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "who?"}]}, SAID]
# Of each task: its section, a good row, and what is changed in bad ones with what is said of each.
CASES = {
    "text_classification": (
        {},
        {"text": "fine", "label": "a"},
        [({"text": " "}, "has no text"), ({"label": "c"}, "has the label 'c'")],
    ),
    "distillation": (
        {"teacher": "none"},
        {"text": "fine", "label": "a"},
        [({"text": " "}, "has no text"), ({"label": "c"}, "has the label 'c'")],
    ),
    "token_classification": (
        {},
        WORDS,
        [
            ({"tags": ["O", "x"]}, "word 2 ('b') has the tag 'x', which is neither O nor B-TYPE"),
            ({"tags": ["O", "I-x"]}, "word 2 ('b') has the tag 'I-x' after 'O'"),
            ({"tags": ["O"]}, "has 2 words and 1 tags."),
            ({"tags": "O"}, "has tags that are not a list"),
            ({"tokens": ["a", ""]}, "word 2 is empty."),
            ({"tokens": [], "tags": []}, "has no words."),
        ],
    ),
    "masked_lm": (
        {},
        {"text": "fine"},
        [({"text": ""}, "has no text"), ({"text": 7}, "has 7 in text")],
    ),
    "causal_lm": (
        {"prompt": "prompt", "answer": "answer"},
        {"prompt": "who?", "answer": "me"},
        [({"prompt": ""}, "has no prompt"), ({"answer": None}, "has no answer")],
    ),
    "dpo": (
        {},
        {"prompt": "who?", "chosen": "me", "rejected": "you"},
        [
            ({"prompt": []}, "has no prompt"),
            ({"chosen": None}, "has no chosen"),
            ({"rejected": "me"}, "has the same answer in chosen and rejected"),
        ],
    ),
    "embedding": (
        {},
        {"anchor": "a", "positive": "b"},
        [
            ({"anchor": ""}, "has no anchor"),
            ({"positive": 3}, "has 3 in positive, which is not a text"),
        ],
    ),
    "reranking": (
        {"positive": "positive", "negatives": "negatives"},
        {"query": "who?", "positive": "me", "negatives": ["you", "him"]},
        [
            ({"query": " "}, "has no query"),
            ({"positive": []}, "has no positive"),
            ({"negatives": ["you", 3]}, "has 3 in negatives, which is not a text"),
            ({"negatives": None}, "has no negatives"),
        ],
    ),
    "question_answering": (
        {},
        {
            "question": "who?",
            "context": "it was me",
            "answers": {"text": ["me"], "answer_start": [7]},
        },
        [
            ({"question": ""}, "has no question"),
            ({"context": 3}, "has 3 in context, which is not a text"),
            ({"answers": {"text": ["me"], "answer_start": [6]}}, "at character 6 of its context"),
            (
                {"answers": {"text": ["me"], "answer_start": [-1]}},
                "has the start '-1' of an answer",
            ),
            ({"answers": {"text": ["me"], "answer_start": []}}, "has 1 texts and 0 starts"),
            ({"answers": "you"}, "has the answer 'you', which is not in its context"),
            ({"answers": [7]}, "has answers that are no answers"),
            ({"answers": []}, "has no answers"),
        ],
    ),
    "multiple_choice": (
        {},
        {"prompt": "who?", "choices": ["me", "you"], "label": 1},
        [
            ({"prompt": ""}, "has no prompt"),
            ({"choices": "me"}, "has choices that are not a list"),
            ({"choices": ["me"]}, "has 1 choices in choices"),
            ({"choices": ["me", ""]}, "has no choices"),
            ({"label": 2}, "has the label '2', which is none of its 2 choices"),
            ({"label": None}, "has no label"),
        ],
    ),
    "seq2seq": (
        {},
        {"source": "a", "target": "b"},
        [({"source": ""}, "has no source"), ({"target": None}, "has no target")],
    ),
    "image_classification": (
        {},
        {"image": "good.png", "label": "a"},
        [
            ({"image": "bad.png"}, "bad.png' cannot be decoded as an image"),
            ({"image": "gone.png"}, "There is no image"),
            ({"label": ""}, "has no label"),
        ],
    ),
    "contrastive": (
        {},
        {"image": "good.png", "text": "fine"},
        [
            ({"image": "bad.png"}, "bad.png' cannot be decoded as an image"),
            ({"text": " "}, "has no text"),
        ],
    ),
    "captioning": (
        {},
        {"image": "good.png", "text": "fine"},
        [({"image": ""}, "has no image"), ({"text": ""}, "has no text")],
    ),
    "vision_language": (
        {"messages": "chat"},
        {"image": "good.png", "chat": SHOWN},
        [
            ({"image": "bad.png"}, "bad.png' cannot be decoded as an image"),
            ({"image": ""}, "has no image"),
            ({"chat": [ASKED, SAID]}, "has no place for its image in chat"),
            ({"chat": [*SHOWN[:1], *SHOWN]}, "has 2 images in chat"),
            ({"chat": "who?"}, "has no conversation in chat"),
            ({"chat": SHOWN[:1]}, "the conversation has no answer by the assistant"),
        ],
    ),
    "object_detection": (
        {},
        {"image": "good.png", "objects": BOX},
        [
            ({"image": "bad.png"}, "bad.png' cannot be decoded as an image"),
            ({"objects": {**BOX, "label": ["z"]}}, "has the label 'z'"),
        ],
    ),
    "image_generation": (
        {"label": "label"},
        {"image": "good.png", "label": "a"},
        [
            ({"image": "bad.png"}, "bad.png' cannot be decoded as an image"),
            ({"label": "z"}, "has the label 'z'"),
        ],
    ),
}
CASES["semantic_segmentation"] = (
    {"labels": ["a", "b"]},
    {"image": "good.png", "mask": "mask.png"},
    [
        ({"image": "bad.png"}, "bad.png' cannot be decoded as an image"),
        ({"mask": "bad.png"}, "bad.png' cannot be decoded as an image"),
        ({"mask": "good.png"}, "good.png' is in color (RGB)"),
        ({"mask": "small.png"}, "small.png' is 2 x 2 pixels, and its image"),
    ],
)
CASES["diffusion"] = CASES["image_generation"]
NAMES = {"token_classification": ("O", "B-x", "I-x")}


def test_each_task_has_its_bad_rows():
    assert set(CASES) == set(task_sections())


@pytest.mark.parametrize("kind", CASES)
def test_bad_rows_are_found_and_told(kind, tmp_path):
    section, good, bad = CASES[kind]
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    Image.new("L", (8, 8)).save(tmp_path / "mask.png")
    Image.new("L", (2, 2)).save(tmp_path / "small.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    rows = [good, *({**good, **changed} for changed, _ in bad), good]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_source(f"jsonl:{path}:ordered")
    data = {"train": f"jsonl:{path}", "eval": f"jsonl:{path}"}
    given = {"run": {"name": "t"}, "model": {"checkpoint": "none"}, "data": data}
    task = make_task(parse_config({**given, "task": {"kind": kind, **section}}))
    bound = task.bind(bare_tools(tmp_path, kind), NAMES.get(kind, ("a", "b")))
    assert bad_rows(bound, source) == list(range(1, len(rows) - 1))
    for number, (_, said) in enumerate(bad, 1):
        with pytest.raises((BadValue, UserError)) as caught:
            bound.check_row(source, number, source[number])
        assert said in str(caught.value)
