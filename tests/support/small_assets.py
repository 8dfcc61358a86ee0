"""What `assets/` holds, of the same form and much smaller: random models of few numbers, few rows.

Depths are the true ones, since the configs name them.
"""

import csv
import json
from pathlib import Path

import torch
import yaml
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from jaxft.data.text.template import parse_template
from jaxft.demo.drawing import emoji_dit
from jaxft.demo.drawing.imagegpt import blank

CONFIGS = Path(__file__).parents[2] / "configs"
EVERY = {"train.csv": 51, "test.csv": 20}  # keep one review in so many
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
# On eight fake devices XLA repeats what draws a mask in all that reads it: minutes of compiling.
WHOLE = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
END = "<|im_end|>"
TEMPLATE = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
COLOURS = {"red": (200, 40, 50), "green": (50, 180, 60), "blue": (40, 60, 200)}
THINGS = ("car", "house", "star", "tree", "book", "ball", "fish", "boat")


def small_assets(folder: Path, minilm: Path, reviews: Path) -> Path:
    """Fills `folder` with all that the configs read; the BERT's tokenizer is MiniLM's own."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(minilm, **SMALL, **WHOLE)
    AutoModel.from_config(config).save_pretrained(folder / "minilm")
    words = AutoTokenizer.from_pretrained(minilm)
    words.save_pretrained(folder / "minilm")
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder / "tiny_mlm")
    words.save_pretrained(folder / "tiny_mlm")
    for name, every in EVERY.items():
        with (reviews / name).open(newline="", encoding="utf-8") as file:
            head, *rows = csv.reader(file)
        write_csv(folder / "reviews" / name, head, rows[::every])
    write_chat_model(folder / "smollm2")
    write_dialogues(folder / "dialogues")
    write_candidates(folder / "candidates")
    write_choices(folder / "choices")
    write_vit(folder / "vits", "vit")
    write_vit(folder / "dinov2", "dinov2")
    write_digits(folder / "digits")
    blank(folder / "imagegpt", side=6, levels=4, width=16, blocks=4, heads=2)
    tiny = emoji_dit.Size(side=8, patch=4, width=16, blocks=4, heads=2, classes=8)
    emoji_dit.blank(folder / "emoji_dit", tiny)
    write_emoji(folder / "emoji")
    write_drawings(folder / "emoji_drawings")
    write_tweets(folder / "tweets")
    write_questions(folder / "questions")
    write_loans(folder / "lending_club")
    write_t5(folder / "flan_t5", blocks=8)
    write_verses(folder / "verses")
    return folder


def write_csv(path: Path, head: list[str], rows: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])


def write_chat_model(folder: Path) -> None:
    """A Llama of 30 blocks with a byte-level tokenizer and a chat template."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words.train_from_iterator(
        THINGS, trainers.BpeTrainer(vocab_size=300, special_tokens=[END], initial_alphabet=alphabet)
    )
    end = words.token_to_id(END)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=words.get_vocab_size(),
        num_hidden_layers=30,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        **SMALL,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token=END, pad_token=END)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)


def write_dialogues(folder: Path) -> None:
    folder.mkdir()
    for name, count in (("train.jsonl", 40), ("test.jsonl", 8)):
        rows = [{"prompt": f"A {THINGS[i % 8]} {i}?", "answer": f"Yes, {i}."} for i in range(count)]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_candidates(folder: Path) -> None:
    """Questions with the answer and three answers to others."""
    folder.mkdir()
    for name, count in (("train.jsonl", 40), ("test.jsonl", 8)):
        rows = [
            {
                "query": f"A {THINGS[i % 8]} {i}?",
                "positive": f"Yes, {i}.",
                "negatives": [f"Yes, {i + 1 + other}." for other in range(3)],
            }
            for i in range(count)
        ]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_choices(folder: Path) -> None:
    """Questions with four answers, one of them the right one."""
    folder.mkdir()
    for name, count in (("train.jsonl", 40), ("test.jsonl", 8)):
        rows = [
            {
                "prompt": f"A {THINGS[i % 8]} {i}?",
                "choices": [f"Yes, {i + other - i % 4}." for other in range(4)],
                "label": i % 4,
            }
            for i in range(count)
        ]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_questions(folder: Path) -> None:
    """Questions for a thing in a sentence; one in four has no answer."""
    folder.mkdir()
    for name, count in (("train.jsonl", 40), ("test.jsonl", 8)):
        rows = []
        for number in range(count):
            answers = {"text": [], "answer_start": []}
            if number % 4:
                answers = {"text": [THINGS[number % 8]], "answer_start": [4]}
            context = f"the {THINGS[number % 8]} is here!"
            rows.append({"question": "Which thing?", "context": context, "answers": answers})
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_vit(folder: Path, model_type: str) -> None:
    """A ViT or DINOv2 of 12 blocks on patches of 14."""
    small = {name: size for name, size in SMALL.items() if name != "intermediate_size"}
    config = AutoConfig.for_model(
        model_type, num_hidden_layers=12, image_size=224, patch_size=14, **small
    )
    AutoModel.from_config(config).save_pretrained(folder)
    size = {"height": 224, "width": 224}
    described = {"image_processor_type": "ViTImageProcessor", "size": size}
    (folder / "preprocessor_config.json").write_text(json.dumps(described))


def write_digits(folder: Path) -> None:
    """A few of each digit, and of nines as many as a tenth of them is some."""
    for split, each in (("train", 8), ("test", 2)):
        for digit in range(10):
            (folder / split / str(digit)).mkdir(parents=True)
            for number in range(each if digit < 9 else 5 * each):
                shade = (20 * digit, 255 - 20 * digit, 6 * number)
                path = folder / split / str(digit) / f"{number}.png"
                Image.new("RGB", (28, 28), shade).save(path)


def write_emoji(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    rows = []
    for colour, value in COLOURS.items():
        for number in range(48):
            name = f"images/{colour}-{number}.png"
            Image.new("RGB", (32, 32), tuple(min(part + number, 255) for part in value)).save(
                folder / name
            )
            rows.append((name, f"{colour} {THINGS[number % 8]}", "none"))
    write_csv(folder / "train.csv", ["image", "text", "tone"], rows[: -len(rows) // 8])
    write_csv(folder / "test.csv", ["image", "text", "tone"], rows[-len(rows) // 8 :])


def write_drawings(folder: Path) -> None:
    """Squares with the names of eight flags, in both tables, and of eight things."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number, thing in enumerate(THINGS):
        for group in ("flags", "objects"):
            name = f"images/{group}-{number}.png"
            Image.new("RGB", (16, 16), (25 * number, 255 - 25 * number, 80)).save(folder / name)
            rows.append((name, f"{thing} {group}", group))
    head = ("image", "name", "group")
    write_csv(folder / "train.csv", head, [row for row in rows for _ in range(5)])
    write_csv(folder / "test.csv", head, [row for row in rows if row[2] == "flags"])


def write_tweets(folder: Path) -> None:
    """Sentences in which a thing is an entity."""
    folder.mkdir()
    for name, count in (("train.conll", 40), ("test.conll", 8)):
        things = [THINGS[number % 8] for number in range(count)]
        told = [f"the\tO\n{thing}\tB-thing\n{thing}s\tI-thing\n!\tO\n\n" for thing in things]
        (folder / name).write_text("".join(told))


def write_loans(folder: Path) -> None:
    """A table with the columns that configs/fraud.yaml writes as text; one loan in four is bad."""
    config = yaml.safe_load((CONFIGS / "fraud.yaml").read_text())
    columns = parse_template(config["task"]["template"]).columns
    for name, count in (("train_thinned.csv", 40), ("eval.csv", 12), ("test.csv", 12)):
        rows = [
            [
                *[str(row % (7 + place)) for place in range(len(columns))],
                "good" if row % 4 else "bad",
            ]
            for row in range(count)
        ]
        write_csv(folder / name, [*columns, "Class"], rows)


def write_t5(folder: Path, blocks: int) -> None:
    """A T5 with so many blocks a side and a tokenizer of whole words."""
    known = ["<pad>", "</s>", "<unk>", "the", "el", "is", "es", "red", "rojo", ":", "translate"]
    known += [*THINGS, *(thing[::-1] for thing in THINGS)]
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(known)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    config = AutoConfig.for_model(
        "t5",
        vocab_size=len(known),
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_heads=2,
        num_layers=blocks,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
    )
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)


def write_verses(folder: Path) -> None:
    """Sentences of a thing; in the other language its name is read from behind."""
    folder.mkdir(parents=True)
    for name, count in (("train.jsonl", 100), ("test.jsonl", 8)):
        things = [THINGS[number % 8] for number in range(count)]
        rows = [{"es": f"el {one[::-1]} es rojo", "en": f"the {one} is red"} for one in things]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
