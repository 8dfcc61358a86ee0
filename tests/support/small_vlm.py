"""A small random checkpoint that reads images among its words, in SmolVLM's layout."""

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

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
# LLaVA's own turns: an answer ends in a blank.
TURNS = (
    "{% for message in messages %}{{ message['role'] | capitalize + ': ' }}"
    "{% for line in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for line in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ line['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
FRAMES = ("<start_of_image>", "<end_of_image>")
SPECIAL = ("<image>", "<fake_token_around_image>", "<global-img>", END, "<|im_start|>", *FRAMES)
TILES = tuple(f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4))
WORDS = ("User", "Assistant", ":", ".", "?", "\n", "Describe", "this", "image", "What", "is", "it")
PIECES = ("<pad>", "<unk>", *SPECIAL, *TILES, *WORDS, *COLOURS, *THINGS)
SIZES = SMALL | {"num_hidden_layers": 2}
VISION = SIZES | {"image_size": TILE, "patch_size": 7}
TEXT = SIZES | {"vocab_size": len(PIECES), "num_key_value_heads": 1}
GEMMA = TEXT | {"head_dim": 8, "pad_token_id": 0}
SIGLIP = VISION | {"model_type": "siglip_vision_model", "vision_use_head": False}


def write_vlm(folder: Path, positions: int = 96) -> Path:
    """An Idefics3 of two blocks each, a tokenizer of few words, a processor of tiles."""
    write_words(folder, TEMPLATE)
    config = AutoConfig.for_model(
        "idefics3",
        vision_config=VISION,
        text_config=TEXT | {"model_type": "llama", "max_position_embeddings": positions},
        scale_factor=2,
        image_token_id=PIECES.index("<image>"),
        tie_word_embeddings=True,
    )
    write_model(folder, config)
    Idefics3ImageProcessorPil(max_image_size={"longest_edge": TILE}).save_pretrained(folder)
    stored = {"processor_class": "Idefics3Processor", "image_seq_len": 4}
    (folder / "processor_config.json").write_text(json.dumps(stored))
    return folder


def write_gemma3(folder: Path) -> Path:
    """A Gemma 3 of two blocks each, of which the first of the decoder has a window."""
    write_words(folder, TEMPLATE.replace("<image>", FRAMES[0]))
    config = AutoConfig.for_model(
        "gemma3",
        vision_config=SIGLIP,
        text_config=GEMMA | {"model_type": "gemma3_text", "sliding_window": 8},
        mm_tokens_per_image=4,
        image_token_index=PIECES.index("<image>"),
        boi_token_index=PIECES.index(FRAMES[0]),
        eoi_token_index=PIECES.index(FRAMES[1]),
    )
    write_model(folder, config)
    Gemma3ImageProcessorPil(size={"height": TILE, "width": TILE}).save_pretrained(folder)
    return folder


def write_paligemma(folder: Path) -> Path:
    """A PaliGemma of two blocks each; it has no chat template."""
    write_words(folder, None)
    config = AutoConfig.for_model(
        "paligemma",
        vision_config=SIGLIP | {"projection_dim": GEMMA["hidden_size"]},
        text_config=GEMMA | {"model_type": "gemma"},
        projection_dim=GEMMA["hidden_size"],
        image_token_index=PIECES.index("<image>"),
    )
    write_model(folder, config)
    SiglipImageProcessorPil(size={"height": TILE, "width": TILE}).save_pretrained(folder)
    return folder


def write_llava(folder: Path) -> Path:
    """A LLaVA of two blocks each, which reads the output of its image tower's first."""
    write_words(folder, TURNS)
    config = AutoConfig.for_model(
        "llava",
        vision_config=VISION | {"model_type": "clip_vision_model"},
        text_config=TEXT | {"model_type": "llama"},
        image_token_index=PIECES.index("<image>"),
    )
    write_model(folder, config)
    size = {"size": {"shortest_edge": TILE}, "crop_size": {"height": TILE, "width": TILE}}
    CLIPImageProcessorPil(**size).save_pretrained(folder)
    return folder


def write_model(folder: Path, config) -> None:
    """Random weights."""
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)


def write_words(folder: Path, template: str | None) -> None:
    """A tokenizer of few words, which names those of images as Gemma 3's does."""
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(PIECES)}, unk_token="<unk>"))
    own = Regex(r"\n|\w+|[^\w\s]")
    words.pre_tokenizer = pre_tokenizers.Split(own, "removed", invert=True)
    words.decoder = decoders.WordPiece(prefix="##")
    special = [AddedToken(w, special=True, normalized=False) for w in (*SPECIAL, *TILES)]
    words.add_special_tokens(special)
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<|im_start|>",
        eos_token=END,
        extra_special_tokens=dict(
            zip(("boi_token", "eoi_token", "image_token"), (*FRAMES, "<image>"), strict=True)
        ),
        chat_template=template,
    ).save_pretrained(folder)
