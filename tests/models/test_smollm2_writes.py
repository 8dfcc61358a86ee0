"""SmolLM2, a real chat model, writes what transformers makes it write."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers

from jaxft.data.text.chat import load_chat_template
from jaxft.data.text.tokenizer import load_tokenizer
from jaxft.models import load as registry
from jaxft.models.generate.decode import Generator
from jaxft.models.generate.settings import read_settings
from tests.support.xla import xla_flags

QUESTIONS = (
    "What is the capital of France?",
    "Name three colours.",
    "Who wrote Hamlet?",
    "What is 7 times 8?",
    "Tell me a joke.",
    "Write a haiku about rain.",
    "What do bees make?",
    "How many legs has a spider?",
    "Translate 'good morning' into Spanish.",
    "Give me a recipe for pancakes, in one sentence.",
    "Why is the sky blue?",
    "What is the largest planet?",
    "Is water wet?",
    "Spell the word 'necessary'.",
    "What comes after Tuesday?",
    "List the primary colours, one a line.",
    "Explain photosynthesis to a child.",
    "Write a Python function that adds two numbers.",
    "Qu'est-ce que l'amour ?",
    "🙂 What does this mean?",
)
NEW = 16

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def theirs(smollm2):
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    return model.eval()


@pytest.fixture(scope="module")
def generator(smollm2):
    return Generator(registry.load(str(smollm2)))


@pytest.fixture(scope="module")
def prompts(smollm2):
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    texts = load_chat_template(smollm2).render(chats, add_generation_prompt=True)
    ours = [ids.tolist() for ids in load_tokenizer(smollm2).encode(texts, spelled=True).ids]
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    for chat, ids in zip(chats, ours, strict=True):
        assert tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] == ids
    return ours


@pytest.mark.parametrize("beams", [1, 4])
def test_twenty_prompts_have_transformers_tokens(theirs, generator, prompts, smollm2, beams):
    asked = {"max_new_tokens": NEW, "num_beams": beams}
    settings, notes = read_settings(smollm2, {}, asked)
    assert notes == ()
    written = [
        new for i in range(0, 20, 4) for new in generator.generate(prompts[i : i + 4], settings)
    ]
    for prompt, new, question in zip(prompts, written, QUESTIONS, strict=True):
        ids = torch.tensor([prompt])
        expected = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, **asked
        )[0, len(prompt) :]
        np.testing.assert_array_equal(new, expected.numpy(), err_msg=question)


def test_the_command_answers(smollm2):
    done = subprocess.run(
        [sys.executable, "-m", "jaxft", "predict", str(smollm2), QUESTIONS[0]],
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": xla_flags(1)},
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["text"] == "The capital of France is Paris."
    assert answer["whole"]
