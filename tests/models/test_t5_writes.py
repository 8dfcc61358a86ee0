"""Encoder-decoders write what transformers makes them write; Flan-T5 with real weights."""

import json

import numpy as np
import pytest
import torch
import transformers

from jaxft.cli.main import main
from jaxft.data.text.tokenizer import load_tokenizer
from jaxft.models import load as registry
from jaxft.models.generate.decode import Generator
from jaxft.models.generate.settings import Settings
from tests.models.test_encoder_decoders import pair  # noqa: F401 - a fixture

GERMAN = "translate English to German: The house is wonderful."
PROMPTS = (
    GERMAN,
    "translate English to French: I have two cats and a dog.",
    "translate English to German: Where is the station?",
    "translate English to Romanian: Good morning, my friends.",
    "translate German to English: Das Wetter ist heute schön.",
    "What is the capital of France?",
    "Answer the question: how many legs has a spider?",
    "Is this review positive or negative? A dull film without an idea.",
    "Is this review positive or negative? The best evening of the year.",
    "Write a title: The build fails since the compiler cannot find the header file.",
    "Write a title: Users are logged out when they change their password on another device.",
    "summarize: A storm hit the coast on Monday. Many trees fell, and two roads are closed.",
    "Premise: A man plays the guitar. Hypothesis: A man makes music. Does the premise entail it?",
    "Which word does not belong: apple, pear, hammer, plum?",
    "Q: What is 7 plus 5? A:",
    "Continue the sentence: Once upon a time",
    "Who wrote Hamlet?",
    "Name a colour of the rainbow.",
    "Qu'est-ce que l'amour ?",
    "x",
)
NEW = 16


def written_by(model: torch.nn.Module, source: list[int] | np.ndarray, **asked) -> list[int]:
    """What transformers writes for a text's tokens or an image, up to the end of the text."""
    given = torch.tensor(np.asarray(source)[None])
    images = given.ndim == 4
    read = {"pixel_values": given} if images else {"attention_mask": torch.ones_like(given)}
    told = {"do_sample": False, "decoder_start_token_id": 0, "pad_token_id": 0, **asked}
    out = model.generate(None if images else given, **read, **told)
    new = out[0, 1:].tolist()
    end = asked["eos_token_id"]
    return new[: new.index(end) + 1] if end in new else new


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"num_beams": 3, "length_penalty": 2.0},
        {"repetition_penalty": 1.7},
        {"num_beams": 2, "length_penalty": -1.0, "repetition_penalty": 1.3},
    ],
    ids=str,
)
def test_texts_from_sources_are_transformers(pair, asked):  # noqa: F811 - the fixture
    """Sources of several lengths side by side, each as if alone; some texts end early."""
    draw = np.random.default_rng(5)
    if "pixel_values" in pair.batch:
        shape = pair.batch["pixel_values"].shape[1:]
        sources = [draw.normal(size=shape).astype(np.float32) for _ in range(3)]
    else:
        words = getattr(pair.torch.config, "encoder", pair.torch.config).vocab_size
        sources = [draw.integers(1, words, n).tolist() for n in (9, 3, 14)]
    first = Generator(pair.ours).generate(sources, Settings(max_new_tokens=6))
    end = first[1][2]  # so that a text ends by itself
    settings = Settings(max_new_tokens=6, eos_token_id=(end,), **asked)
    ours = Generator(pair.ours).generate(sources, settings)
    asked = asked | {"decoder_start_token_id": pair.ours.config.start_token_id}
    theirs = [
        written_by(pair.torch, source, max_new_tokens=6, eos_token_id=end, **asked)
        for source in sources
    ]
    assert ours == theirs
    assert len(first[1]) == 6


@pytest.fixture(scope="module")
def theirs(flan_t5):
    return transformers.T5ForConditionalGeneration.from_pretrained(flan_t5).eval()


@pytest.fixture(scope="module")
def sources(flan_t5):
    tokenizer = transformers.AutoTokenizer.from_pretrained(flan_t5)
    ours = [ids.tolist() for ids in load_tokenizer(flan_t5).encode(PROMPTS).ids]
    assert ours == [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    return ours


@pytest.mark.full
@pytest.mark.parametrize("beams", [1, 4])
def test_twenty_prompts_have_transformers_tokens(theirs, sources, flan_t5, beams):
    asked = {"max_new_tokens": NEW, "num_beams": beams}
    generator = Generator(registry.load(str(flan_t5)))
    ours = generator.generate(sources, Settings(eos_token_id=(1,), **asked))
    for source, prompt, new in zip(sources, PROMPTS, ours, strict=True):
        assert new == written_by(theirs, source, eos_token_id=1, **asked), prompt


@pytest.mark.slow
def test_the_command_translates(flan_t5, capsys):
    assert main(["predict", str(flan_t5), GERMAN, "--max-new-tokens", "8"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["text"] == "Das Haus ist wunderbar."
    assert answer["whole"]
