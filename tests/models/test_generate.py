"""Generation: the tokens are transformers', of every model type that writes text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList
from transformers.generation import logits_process

from jaxft.errors import UserError
from jaxft.models.generate.choose import warp
from jaxft.models.generate.decode import Generator
from jaxft.models.generate.prompts import bucket
from jaxft.models.generate.settings import Settings
from tests.support.families import FAMILIES, make_pair

LIKE_LLAMA = ("olmo2", "mixtral", "olmoe")  # their norms and experts are others', or have no cache
CAUSAL = [
    pytest.param(kind, marks=pytest.mark.full if kind in LIKE_LLAMA else ())
    for kind, family in FAMILIES.items()
    if "causal_lm" in family.model_types[kind]
]
LENGTHS, NEW = (9, 4, 13), 5


@pytest.fixture(scope="module", params=CAUSAL)
def pair(request, tmp_path_factory):
    return make_pair(request.param, "causal_lm", 0, tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make_pair("llama", "causal_lm", 1, tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def generator(llama):
    return Generator(llama.ours)


def prompts_of(pair, lengths=LENGTHS):
    draw = np.random.default_rng(3)
    return [draw.integers(1, pair.ours.vocab_size, length).tolist() for length in lengths]


def theirs_of(pair, prompts, **settings):
    """What transformers adds to the prompts, each cut where it ends."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    pair.torch.generation_config.eos_token_id = None
    pair.torch.config.output_router_logits = False  # with it transformers 5.24 cannot generate
    ends = settings.setdefault("eos_token_id", None) or []
    written = pair.torch.generate(
        ids, attention_mask=mask, pad_token_id=0, do_sample=False, **settings
    )[:, longest:].tolist()
    cuts = [next((i + 1 for i, t in enumerate(row) if t in ends), len(row)) for row in written]
    return [row[:cut] for row, cut in zip(written, cuts, strict=True)]


def test_greedy_tokens_are_transformers_and_scores_those_without_a_cache(pair):
    prompts = prompts_of(pair)
    generator = Generator(pair.ours)
    written = generator.generate(prompts, Settings(max_new_tokens=NEW))
    assert written == theirs_of(pair, prompts, max_new_tokens=NEW)

    # The same texts without a cache, and filled up on the right instead of the left.
    texts = [prompt + new for prompt, new in zip(prompts, written, strict=True)]
    longest = max(map(len, texts))
    ids = np.array([text + [0] * (longest - len(text)) for text in texts], np.int32)
    mask = np.array([[1] * len(text) + [0] * (longest - len(text)) for text in texts], np.int32)
    whole = np.asarray(pair.ours(input_ids=ids, attention_mask=mask)["logits"])
    length = bucket(max(LENGTHS))
    seen = np.ones((3, length + NEW), np.int32)
    left = np.zeros((3, length), np.int32)
    for row, prompt in enumerate(prompts):
        seen[row, : length - len(prompt)] = 0
        left[row, length - len(prompt) :] = prompt
    params = pair.ours.params
    scores, cache = generator.prefill(params, left, seen[:, :length], NEW)
    for step in range(NEW):
        expected = [whole[row, n + step - 1] for row, n in enumerate(LENGTHS)]
        np.testing.assert_allclose(scores, expected, atol=1e-5, rtol=1e-5)
        tokens = jnp.array([new[step] for new in written])
        scores, cache = generator.decode(params, cache, tokens, seen, np.int32(length + step))


def test_a_shape_is_compiled_once(llama):
    generator = Generator(llama.ours)
    drawn = {"do_sample": True, "max_new_tokens": 3}
    for lengths in ((3,), (7,), (12,)):
        prompts = prompts_of(llama, lengths)
        generator.generate(prompts, Settings(max_new_tokens=3))
        generator.generate(prompts, Settings(temperature=0.5, top_p=0.5, seed=lengths[0], **drawn))
    assert generator.prefill._cache_size() == generator.decode._cache_size() == 1


BEAMS = [
    {"length_penalty": 1.0, "early_stopping": False, "eos_token_id": ()},
    {"length_penalty": 2.0, "early_stopping": "never", "eos_token_id": (5, 9)},
    {"length_penalty": 0.0, "early_stopping": True, "eos_token_id": "many"},
    {"length_penalty": 1.0, "early_stopping": False, "eos_token_id": "many"},
    {"length_penalty": -1.0, "early_stopping": "never", "eos_token_id": "many"},
    {"repetition_penalty": 1.6, "eos_token_id": (7,)},
]


@pytest.mark.parametrize(
    "asked", [*BEAMS[1:3], *(pytest.param(one, marks=pytest.mark.full) for one in BEAMS)]
)
def test_beam_search_is_transformers(llama, generator, asked):
    ends = asked["eos_token_id"]
    ends = tuple(range(0, llama.ours.vocab_size, 6)) if ends == "many" else ends
    asked = asked | {"eos_token_id": ends, "num_beams": 4, "max_new_tokens": 8}
    prompts = prompts_of(llama)
    expected = theirs_of(llama, prompts, **asked | {"eos_token_id": list(ends) or None})
    assert generator.generate(prompts, Settings(**asked)) == expected
    if len(ends) > 2:
        assert min(map(len, expected)) < 8, "some text ends early"


def test_a_penalty_on_repetition_and_ends_of_text_are_transformers(llama, generator):
    prompts = prompts_of(llama)
    plain = generator.generate(prompts, Settings(max_new_tokens=8))
    ends = (plain[0][3], plain[1][5])
    for asked in ({"repetition_penalty": 1.6}, {"eos_token_id": ends}):
        expected = theirs_of(
            llama,
            prompts,
            **{name: list(v) if name == "eos_token_id" else v for name, v in asked.items()},
            max_new_tokens=8,
        )
        assert generator.generate(prompts, Settings(max_new_tokens=8, **asked)) == expected != plain


@pytest.mark.parametrize("top_k", [0, 1, 7, 500])
@pytest.mark.parametrize(("top_p", "min_p"), [(1.0, None), (0.4, None), (0.9, 0.2), (1.0, 0.05)])
def test_what_may_be_drawn_is_transformers(top_k, top_p, min_p):
    scores = np.random.default_rng(0).normal(size=(4, 60)).astype(np.float32) * 2
    steps = [logits_process.TemperatureLogitsWarper(0.7)]
    steps += [logits_process.TopKLogitsWarper(top_k)] if top_k else []
    steps += [logits_process.TopPLogitsWarper(top_p)] if top_p < 1 else []
    steps += [logits_process.MinPLogitsWarper(min_p)] if min_p else []
    expected = LogitsProcessorList(steps)(torch.zeros(4, 1, dtype=torch.long), torch.tensor(scores))
    numbers = {
        "temperature": np.float32(0.7),
        "top_p": np.float32(top_p) if top_p < 1 else None,
        "min_p": None if min_p is None else np.float32(min_p),
    }
    got = np.asarray(warp(scores, numbers, top_k))
    np.testing.assert_array_equal(np.isinf(got), np.isinf(expected.numpy()))
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-6)


def test_what_is_drawn_hangs_on_the_seed_alone(llama, generator):
    prompts = prompts_of(llama)

    def drawn(seed, **asked):
        settings = Settings(max_new_tokens=8, do_sample=True, seed=seed, **asked)
        return generator.generate(prompts, settings)

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(1, top_k=1) == generator.generate(prompts, Settings(max_new_tokens=8))


def test_a_stream_gives_each_token_and_ends_each_text_by_itself(llama, generator):
    prompts = prompts_of(llama)
    whole = generator.generate(prompts, Settings(max_new_tokens=8))
    cuts = (3, 8, 5)
    stream = list(
        generator.stream(
            prompts, Settings(max_new_tokens=8), lambda row, tokens: len(tokens) >= cuts[row]
        )
    )
    assert len(stream) == 8
    for row, cut in enumerate(cuts):
        assert [new[row] for new in stream] == whole[row][:cut] + [None] * (8 - cut)


def test_a_text_ends_where_the_positions_do(llama, generator):
    most = llama.ours.max_positions
    (written,) = generator.generate(prompts_of(llama, (most - 2,)), Settings(max_new_tokens=8))
    assert len(written) == 3, "two more positions, and a token that is never put in"
    with pytest.raises(UserError, match=f"{most + 1} tokens; the model takes {most}"):
        generator.generate(prompts_of(llama, (most + 1,)), Settings())
    with pytest.raises(UserError, match="is empty"):
        generator.generate([[1], []], Settings())
    with pytest.raises(UserError, match="max_length is 4"):
        generator.generate([[1] * 5], Settings(max_new_tokens=None, max_length=4))
    prompts = prompts_of(llama)
    plain = generator.generate(prompts, Settings(max_new_tokens=8))
    assert plain == generator.generate(prompts, Settings(max_new_tokens=None, max_length=13 + 8))


@pytest.mark.parametrize(
    "asked", [{}, {"num_beams": 2}, {"num_beams": 2, "early_stopping": "never"}]
)
def test_a_text_hangs_on_no_other_of_its_batch(llama, generator, asked):
    """One has less room than the other, and ends with the token of that end in either batch."""
    most, end = llama.ours.max_positions, 5
    prompts = prompts_of(llama, (4, most - 2))
    settings = Settings(max_new_tokens=8, forced_eos_token_id=(end,), **asked)
    alone = [generator.generate([prompt], settings)[0] for prompt in prompts]
    assert generator.generate(prompts, settings) == alone
    assert [len(text) for text in alone] == [8, 3]
    assert [text[-1] for text in alone] == [end, end]


def test_a_model_that_writes_no_text_is_refused(tmp_path):
    with pytest.raises(UserError, match="the head masked_lm cannot generate text"):
        Generator(make_pair("bert", "masked_lm", 0, tmp_path).ours)


def test_the_cache_is_written_in_place(llama, generator):
    """Donated buffers are taken: one step allocates no second cache."""
    ids, seen = np.ones((3, 32), np.int32), np.ones((3, 40), np.int32)
    _, cache = generator.prefill(llama.ours.params, ids, seen[:, :32], 8)
    places = {array.unsafe_buffer_pointer() for array in jax.tree.leaves(cache)}
    _, after = generator.decode(llama.ours.params, cache, ids[:, 0], seen, np.int32(32))
    assert {array.unsafe_buffer_pointer() for array in jax.tree.leaves(after)} == places
