"""What a causal model learns from text: every token once, and of a conversation the answers."""

import json

import numpy as np
import pytest
import tokenizers
import transformers

from jaxft.data.text.chat import ChatTemplate, load_chat_template
from jaxft.data.text.dialogue import UNSCORED, of_conversations, of_documents
from jaxft.data.text.tokenizer import Tokenizer, load_tokenizer
from jaxft.demo.dialogues import held_out
from jaxft.errors import UserError

END, START, STOP = "<|end|>", "<|im_start|>", "<|im_end|>"


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Tokenizer:
    """A tokenizer of bytes, with an end token."""
    folder = tmp_path_factory.mktemp("words")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        special_tokens=[END, START, STOP], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([], trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END)
    fast.save_pretrained(folder)
    return load_tokenizer(folder)


def scored(lesson) -> list[int]:
    """The tokens that are scored, in order; each is the one after its position."""
    places = np.flatnonzero(lesson.targets != UNSCORED)
    np.testing.assert_array_equal(lesson.targets[places], lesson.ids[places + 1])
    return lesson.targets[places].tolist()


# ------------------------------------------------------------------------------- documents
def test_every_token_of_a_document_but_its_first_is_scored_once(words):
    texts = ["abcdefghijk", "ab", "", "abcdefg"]
    lessons = list(of_documents(texts, words, length=8))
    assert [len(one.ids) for one in lessons] == [8, 5, 3, 8]
    assert [one.row for one in lessons] == [0, 0, 1, 3]  # an end token alone teaches nothing
    assert all(one.targets[-1] == UNSCORED for one in lessons)
    for row, text in enumerate(texts):
        found = [token for one in lessons if one.row == row for token in scored(one)]
        whole = [*words.encode([text]).ids[0].tolist(), words.end_id]
        assert found == whole[1:]


# ---------------------------------------------------------------------------- conversations
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who is 1 + 1?"},
    {"role": "assistant", "content": "Two é 🙂, I think.\n\nYes."},
    {"role": "user", "content": "assistant\nTwo"},
    {"role": "assistant", "content": "Two"},
]
ALONE = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
# SmolLM2's template, with what the assistant writes marked as transformers wants it marked.
MARKED = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
    "Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    "{% endfor %}"
)


def test_answers_are_found_where_transformers_finds_them(smollm2):
    lessons = list(
        of_conversations([TALK, ALONE], load_chat_template(smollm2), load_tokenizer(smollm2), 1000)
    )
    theirs = transformers.AutoTokenizer.from_pretrained(smollm2)
    for talk, lesson in zip([TALK, ALONE], lessons, strict=True):
        marked = theirs.apply_chat_template(
            talk, chat_template=MARKED, return_assistant_tokens_mask=True, return_dict=True
        )
        assert lesson.ids.tolist() == marked["input_ids"]
        assert lesson.cut == 0
        mask = np.array(marked["assistant_masks"], bool)
        assert scored(lesson) == lesson.ids[mask].tolist()
        assert (lesson.targets[:-1] != UNSCORED).tolist() == mask[1:].tolist()
    said = theirs.decode(scored(lessons[0]))
    assert said == "Two é 🙂, I think.\n\nYes.<|im_end|>Two<|im_end|>"


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Qwen3's way: what was thought is written in the last answer only.
LAST = "('<think>' if loop.last and m.role == 'assistant' else '')"
THINKING = CHATML.replace("m.content", f"{LAST} + m.content")
# The answer begins before the end of what the model is asked to go on with.
HIDING = CHATML.replace("<|im_start|>assistant\n'", "<|im_start|>assistant\nWell: '")


def template(words, text) -> ChatTemplate:
    return ChatTemplate(words.folder, text, {})


def test_what_comes_after_the_last_answer_is_left_out_and_long_ones_are_cut(words):
    after = [*TALK, {"role": "user", "content": "And?"}]
    whole, short = (
        next(of_conversations([after], template(words, CHATML), words, length))
        for length in (1000, 90)
    )
    (same,) = of_conversations([TALK], template(words, CHATML), words, 1000)
    assert whole.ids.tolist() == same.ids.tolist()
    assert short.cut == len(whole.ids) - 90
    assert scored(short) == scored(whole)[: len(scored(short))]
    assert 0 < len(scored(short)) < len(scored(whole))


def test_an_answer_that_is_written_otherwise_later_is_not_scored(words):
    (lesson,) = of_conversations([TALK], template(words, THINKING), words, 1000)
    text = words.decode(scored(lesson))
    assert text.removesuffix(STOP) == "<think>Two"


@pytest.mark.parametrize(
    ("talk", "said"),
    [
        (ALONE[:1], "row 1: the conversation has no answer"),
        (ALONE[1:], "row 1: the conversation has no answer"),
        ([], "row 1 is not a conversation"),
        ("Hi", "row 1 is not a conversation"),
        ([{"role": "user"}], "row 1 is not a conversation"),
    ],
)
def test_a_row_that_teaches_nothing_is_named(words, talk, said):
    with pytest.raises(UserError, match=said):
        list(of_conversations([ALONE, talk], template(words, CHATML), words, 100))


def test_a_template_that_hides_where_an_answer_is_is_refused(words):
    with pytest.raises(UserError, match=r"row 0: .* so the answer cannot be located"):
        list(of_conversations([ALONE], template(words, HIDING), words, 100))


# ---------------------------------------------------------------------------------- the asset
def test_no_prompt_is_in_both_parts_of_the_dialogues(dialogues):
    parts = [
        [json.loads(line) for line in (dialogues / name).read_text("utf-8").splitlines()]
        for name in ("train.jsonl", "test.jsonl")
    ]
    assert [len(rows) for rows in parts] == [814, 84]
    assert all(row.keys() == {"prompt", "answer"} for rows in parts for row in rows)
    train, test = ({row["prompt"].lower() for row in rows} for rows in parts)
    assert not train & test
    assert all(map(held_out, test))
