"""A small random checkpoint that reads images among its words, in SmolVLM's layout."""

import json
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from tests.support.small_assets import COLOURS, SMALL, THINGS

TILE = 28  # pixels a side
END = "<end_of_utterance>"
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}" + END + "\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
SPECIAL = ("<image>", "<fake_token_around_image>", "<global-img>", END, "<|im_start|>")
TILES = tuple(f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4))
WORDS = ("User", "Assistant", ":", ".", "?", "\n", "Describe", "this", "image", "What", "is", "it")


def write_vlm(folder: Path, positions: int = 96) -> Path:
    """Two blocks each of an image tower and a Llama, a tokenizer of few words, a processor."""
    pieces = ["<pad>", "<unk>", *SPECIAL, *TILES, *WORDS, *COLOURS, *THINGS]
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(pieces)}, unk_token="<unk>"))
    own = Regex(r"\n|\w+|[^\w\s]")
    words.pre_tokenizer = pre_tokenizers.Split(own, "removed", invert=True)
    words.decoder = decoders.WordPiece(prefix="##")
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token=END,
        additional_special_tokens=[*SPECIAL, *TILES],
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    sizes = {k: v for k, v in SMALL.items() if k != "num_hidden_layers"} | {"num_hidden_layers": 2}
    text = sizes | {"model_type": "llama", "vocab_size": len(pieces)}
    text |= {"max_position_embeddings": positions, "num_key_value_heads": 2}
    config = AutoConfig.for_model(
        "idefics3",
        vision_config=sizes | {"image_size": TILE, "patch_size": 7},
        text_config=text,
        scale_factor=2,
        image_token_id=pieces.index("<image>"),
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    Idefics3ImageProcessorPil(max_image_size={"longest_edge": TILE}).save_pretrained(folder)
    stored = {"processor_class": "Idefics3Processor", "image_seq_len": 4}
    (folder / "processor_config.json").write_text(json.dumps(stored))
    return folder
