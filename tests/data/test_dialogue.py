"""What a causal model learns from text: every token once, and of a conversation the answers."""

import json

import numpy as np
import pytest
import tokenizers
import transformers

from jaxft.data.text.answers import Scoring
from jaxft.data.text.chat import ChatTemplate, load_chat_template
from jaxft.data.text.chat_warnings import chat_warnings
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


def test_an_answer_that_is_written_otherwise_later_is_an_example_of_its_own(words):
    own, whole = of_conversations([TALK], template(words, THINKING), words, 1000)
    assert (own.rewritten, whole.rewritten) == (True, False)
    assert own.row == whole.row == 0
    assert words.decode(scored(own)) == f"<think>{TALK[2]['content']}"
    assert words.decode(scored(whole)) == "<think>Two"
    ends = (scored(own)[-1], scored(whole)[-1])
    assert [words.piece(end) for end in ends] == [STOP, STOP]
    prompt = template(words, THINKING).render([TALK[:2]], add_generation_prompt=True)
    (asked,) = words.encode(prompt, spelled=True).ids
    np.testing.assert_array_equal(own.ids[: len(asked)], asked)
    assert (own.targets[: len(asked) - 1] == UNSCORED).all()
    (last,) = of_conversations(
        [TALK], template(words, THINKING), words, 1000, scoring=Scoring("last")
    )
    assert scored(last) == scored(whole)
    (said,) = chat_warnings([own, whole], words, frozenset())
    assert (
        "earlier answers of 1 of 1 conversations once they go on: these 1 answers are examples"
        in said
    )
    assert f"({len(own.ids)} tokens); task.train_on=last leaves them out" in said


def test_only_the_last_answer_is_scored_where_that_is_asked_for(words):
    every, last = (
        next(of_conversations([TALK], template(words, CHATML), words, 1000, scoring=Scoring(on)))
        for on in ("all", "last")
    )
    assert every.ids.tolist() == last.ids.tolist()
    assert words.decode(scored(last)) == "Two"
    assert scored(every)[-len(scored(last)) :] == scored(last)
    assert len(scored(every)) > len(scored(last))


# Qwen3's shape: a think block, empty without thoughts, in the answers after the last question.
QWEN = (
    "{% set ns = namespace(asked=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.asked = loop.index0 %}{% endif %}"
    "{% endfor %}"
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}{% endfor %}<|im_end|>\n"
    "{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.index0 > ns.asked and (loop.last or m.thought) %}"
    "<think>\n{{ m.thought or '' }}\n</think>\n\n{% endif %}{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPENED = QWEN.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
EMPTY = "<think>\n\n</think>\n\n"
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALLS = [
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]},
    {"role": "tool", "content": "2"},
    {"role": "assistant", "content": "Two", "thought": "As it says."},
    {"role": "user", "content": "Thanks"},
    {"role": "assistant", "content": "Bye"},
]


def test_each_answer_follows_the_text_that_asks_for_it_tools_included(words):
    """Calls, thoughts and answers are each scored after exactly what the model is asked with."""
    qwen = template(words, QWEN)
    lessons = list(of_conversations([CALLS], qwen, words, 1000, tools=[[TOOL]]))
    turns = [1, 3, 5]
    assert [one.rewritten for one in lessons] == [True, True, False]
    prompts = qwen.render([CALLS[:t] for t in turns], [[TOOL]] * 3, add_generation_prompt=True)
    assert '"name": "add"' in prompts[0]
    call = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    for lesson, prompt, answer in zip(
        lessons,
        prompts,
        [EMPTY + call, "<think>\nAs it says.\n</think>\n\nTwo", f"{EMPTY}Bye"],
        strict=True,
    ):
        (asked,) = words.encode([prompt], spelled=True).ids
        np.testing.assert_array_equal(lesson.ids[: len(asked)], asked)
        assert scored(lesson) == lesson.ids[len(asked) : len(asked) + len(scored(lesson))].tolist()
        assert words.decode(scored(lesson)) == answer
        assert words.piece(scored(lesson)[-1]) == STOP


@pytest.mark.parametrize("text", [QWEN, OPENED])
def test_an_empty_think_block_can_be_left_out_of_the_loss(words, text):
    scoring = Scoring(ignore_empty_think=True)
    lessons = list(of_conversations([CALLS], template(words, text), words, 1000, scoring=scoring))
    texts = [words.decode(scored(lesson)) for lesson in lessons]
    thought = "<think>\n" * (text == QWEN) + "As it says.\n</think>\n\nTwo"
    assert texts == [
        '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>',
        thought,
        "Bye",
    ]
    same = of_conversations([CALLS], template(words, text), words, 1000)
    for one, other in zip(lessons, same, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)  # the model reads the block all the same


# GLM's shape: an answer ends where the next turn's token begins, which is an end token.
GLM = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}<think></think>\n{% endif %}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_the_token_of_the_next_turn_is_scored_where_it_ends_an_answer(words):
    (start,) = words.encode([START], spelled=True).ids[0].tolist()
    scoring = Scoring(ignore_empty_think=True, end_ids=frozenset({start}))
    (lesson,) = of_conversations([TALK], template(words, GLM), words, 1000, scoring=scoring)
    first = words.encode([TALK[2]["content"] + START], spelled=True).ids[0].tolist()
    assert scored(lesson) == [*first, *words.encode(["Two"], spelled=True).ids[0].tolist()]
    (said,) = chat_warnings([lesson], words, scoring.end_ids)
    assert said.startswith("50.0% of the answers end with a token such as 'o'")
    assert said.endswith("let the template write an end token after each answer")


def test_an_end_token_that_is_not_the_checkpoints_is_named(words):
    lessons = list(of_conversations([TALK, ALONE], template(words, CHATML), words, 60))
    assert lessons[0].ids[-1] != lessons[0].last_ids[-1]  # the last answer is truncated
    stop = lessons[1].last_ids[0]
    assert not chat_warnings(lessons, words, frozenset({stop}))
    (said,) = chat_warnings(lessons, words, frozenset({words.end_id}))
    assert f"100.0% of the answers end with a token such as '{STOP}' ({stop})" in said
    assert f"no end token of the checkpoint ('{END}' ({words.end_id}))" in said
    assert f"add {stop} to eos_token_id in the checkpoint's generation_config.json" in said


def test_answers_that_cannot_be_located_are_counted_and_not_scored(words):
    hiding = CHATML.replace(
        "assistant\n'", "assistant\n' + ('Well' if messages | length > 1 else '')"
    )
    lessons = list(of_conversations([TALK, ALONE], template(words, hiding), words, 1000))
    assert [len(scored(one)) > 0 for one in lessons] == [False, True]
    (said,) = chat_warnings(lessons, words, frozenset())
    assert said.startswith("2 answers of 1 of 2 conversations are not scored")


@pytest.mark.parametrize(
    ("talk", "said"),
    [
        (ALONE[:1], "row 1: the conversation has no answer"),
        (ALONE[1:], "row 1: the conversation has no answer"),
        ([], "row 1 is not a conversation"),
        ("Hi", "row 1 is not a conversation"),
        ([{"role": "user"}], "row 1 is not a conversation"),
        ([{"role": "assistant", "tool_calls": []}] * 2, "row 1 is not a conversation"),
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
