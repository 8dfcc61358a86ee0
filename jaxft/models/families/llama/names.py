"""Tensor names of Llama and its kin."""

from __future__ import annotations

from jaxft.models.families.llama.config import NORMED_OUTPUTS
from jaxft.models.weights.names import Name, dense, embedding, fused
from jaxft.models.weights.tensor_names import HeadLines, PrefixedNames

LAYER, BLOCK = "model.layers.{i}", "blocks/{i}"
INWARD = tuple(f"{BLOCK}/attention/{part}" for part in ("query", "key", "value"))


def scale(hf: str, ours: str) -> tuple[Name, ...]:
    """Return the line of an RMSNorm."""
    return (Name(f"{hf}.weight", f"{ours}/scale"),)


SHARED = (
    *embedding("model.embed_tokens", "embeddings/word"),
    *scale(f"{LAYER}.input_layernorm", f"{BLOCK}/attention/norm"),
    *dense(f"{LAYER}.self_attn.o_proj", f"{BLOCK}/attention/output"),
    *scale(f"{LAYER}.self_attn.q_norm", f"{BLOCK}/attention/query_norm"),
    *scale(f"{LAYER}.self_attn.k_norm", f"{BLOCK}/attention/key_norm"),
    *dense(f"{LAYER}.mlp.down_proj", f"{BLOCK}/mlp/down"),
    *scale("model.norm", "norm"),
)
# The maps into attention and MLP: one tensor each, or stored side by side.
APART = (
    *dense(f"{LAYER}.self_attn.q_proj", INWARD[0]),
    *dense(f"{LAYER}.self_attn.k_proj", INWARD[1]),
    *dense(f"{LAYER}.self_attn.v_proj", INWARD[2]),
    *dense(f"{LAYER}.mlp.gate_proj", f"{BLOCK}/mlp/gate"),
    *dense(f"{LAYER}.mlp.up_proj", f"{BLOCK}/mlp/up"),
)
FUSED = (
    *fused(f"{LAYER}.self_attn.qkv_proj", *INWARD),
    *fused(f"{LAYER}.mlp.gate_up_proj", f"{BLOCK}/mlp/gate", f"{BLOCK}/mlp/up"),
)
# The norms of a block: before attention and MLP, before and after (Gemma), or after (OLMo).
NORMS = scale(f"{LAYER}.post_attention_layernorm", f"{BLOCK}/mlp/norm")
OUTPUT_NORMS = (
    *scale(f"{LAYER}.post_attention_layernorm", f"{BLOCK}/attention/output_norm"),
    *scale(f"{LAYER}.pre_feedforward_layernorm", f"{BLOCK}/mlp/norm"),
    *scale(f"{LAYER}.post_feedforward_layernorm", f"{BLOCK}/mlp/output_norm"),
)
HEAD_NAMES: HeadLines = {
    "causal_lm": (Name("lm_head.weight", "head/kernel", transpose=True),),
    "text_classification": (Name("score.weight", "head/kernel", transpose=True),),
    "token_classification": dense("score", "head"),
    "question_answering": dense("qa_outputs", "head"),
}
UNUSED = (
    r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",  # computed, as a buffer of old files
    r"lm_head\.weight",
    r"(score|qa_outputs)\..*",
)
PREFIX = "model."
# What question answering calls the model in some, for files of transformers 4.
OLD_PREFIX = "transformer."
OLD_PREFIXED = ("llama", "qwen2", "qwen3", "smollm3")


class LlamaNames(PrefixedNames):
    """Tensor names of Llama and its kin."""

    def canonical(self, name: str) -> str:
        if name.startswith(OLD_PREFIX):
            return PREFIX + name.removeprefix(OLD_PREFIX)
        return super().canonical(name)

    def exported(self, name: str, head: str | None, model_type: str) -> str:
        old = head == "question_answering" and model_type in OLD_PREFIXED
        if old and name.startswith(PREFIX):
            return OLD_PREFIX + name.removeprefix(PREFIX)
        return super().exported(name, head, model_type)


def lines_of(model_type: str) -> tuple[Name, ...]:
    """Return the lines of the name table that a model type's heads share."""
    norms = OUTPUT_NORMS if model_type in NORMED_OUTPUTS else NORMS
    return (*SHARED, *(FUSED if model_type == "phi3" else APART), *norms)
