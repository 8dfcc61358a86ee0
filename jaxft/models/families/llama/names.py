"""Tensor names of Llama and its kin."""

from __future__ import annotations

from collections.abc import Mapping

from jaxft.models.families.llama.config import NORMED_OUTPUTS
from jaxft.models.families.llama.mxfp4 import with_numbers
from jaxft.models.weights.names import Name, dense, embedding, fused
from jaxft.models.weights.tensor import EACH, Tensor
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


def expert_lines(module: str, gate: str, up: str, down: str) -> tuple[Name, ...]:
    """Return the lines of a mixture of experts, under the names that a file has for its parts."""
    maps = (("gate", gate), ("up", up), ("down", down))
    router = Name(f"{LAYER}.{module}.gate.weight", f"{BLOCK}/mlp/router/kernel", transpose=True)
    experts = f"{LAYER}.{module}.experts.{EACH}"
    return router, *(
        Name(f"{experts}.{hf}.weight", f"{BLOCK}/mlp/experts/{ours}/kernel", transpose=True)
        for ours, hf in maps
    )


# gpt-oss stores the maps of all experts as one tensor, the inputs before the outputs.
CLAMPED = (
    Name(f"{LAYER}.self_attn.sinks", f"{BLOCK}/attention/sinks"),
    *dense(f"{LAYER}.mlp.router", f"{BLOCK}/mlp/router"),
    Name(f"{LAYER}.mlp.experts.gate_up_proj", f"{BLOCK}/mlp/experts/gate_up/kernel"),
    Name(f"{LAYER}.mlp.experts.gate_up_proj_bias", f"{BLOCK}/mlp/experts/gate_up/bias"),
    Name(f"{LAYER}.mlp.experts.down_proj", f"{BLOCK}/mlp/experts/down/kernel"),
    Name(f"{LAYER}.mlp.experts.down_proj_bias", f"{BLOCK}/mlp/experts/down/bias"),
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
# What a file calls a block's mixture of experts, and the gate, up and down of each.
EXPERTS = {
    "qwen3_moe": ("mlp", "gate_proj", "up_proj", "down_proj"),
    "mixtral": ("block_sparse_moe", "w1", "w3", "w2"),
    "olmoe": ("mlp", "gate_proj", "up_proj", "down_proj"),
}
# The output matrix of a model that ties its words.
TIED = (("model.embed_tokens.weight", "lm_head.weight"),)
PREFIX = "model."
# What question answering calls the model in some, for files of transformers 4.
OLD_PREFIX = "transformer."
OLD_PREFIXED = ("llama", "qwen2", "qwen3", "qwen3_moe", "smollm3")


class LlamaNames(PrefixedNames):
    """Tensor names of Llama and its kin."""

    def unpacked(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return with_numbers(tensors)

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
    mixture = expert_lines(*EXPERTS[model_type]) if model_type in EXPERTS else ()
    mixture = CLAMPED if model_type == "gpt_oss" else mixture
    return (*SHARED, *(FUSED if model_type == "phi3" else APART), *norms, *mixture)
