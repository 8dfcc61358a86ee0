"""`jaxft predict` of a model that writes text, and what it makes of the checkpoint's settings."""

import io
import json

import pytest
import transformers

from jaxft.cli.main import main
from jaxft.errors import UserError
from jaxft.models.generate.settings import MOST_NEW_TOKENS, Settings, read_settings
from jaxft.visible import visible
from tests.models.test_decoders import make_checkpoint

TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A causal checkpoint of random weights with a chat template."""
    folder = tmp_path_factory.mktemp("causal")
    make_checkpoint(folder, "llama")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def said(capsys, *words):
    assert main(["predict", *map(str, words)]) == 0
    return capsys.readouterr().out


def refused(capsys, *words):
    assert main(["predict", *map(str, words)]) == 2
    return capsys.readouterr().err.strip()


def test_prompts_are_answered_as_json_lines(folder, capsys, tmp_path):
    few = ("--max-new-tokens", 6)
    prompts = ["a witty plot", "stale"]
    lines = [json.loads(line) for line in said(capsys, folder, *prompts, *few).splitlines()]
    assert [line["prompt"] for line in lines] == prompts
    assert all(line["tokens"] == 6 and not line["whole"] for line in lines)
    assert all(line["tokens_per_second"] > 0 for line in lines)

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    for prompt, line in zip(prompts, lines, strict=True):
        chat = [{"role": "user", "content": prompt}]
        batch = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        written = model.generate(**batch, max_new_tokens=6, do_sample=False, pad_token_id=0)
        new = written[0, batch["input_ids"].shape[1] :]
        assert line["text"] == tokenizer.decode(new, skip_special_tokens=True)

    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(prompts))
    again = said(capsys, folder, "--file", file, *few).splitlines()
    assert [json.loads(line)["text"] for line in again] == [line["text"] for line in lines]
    plain = json.loads(said(capsys, folder, prompts[0], *few, "--no-chat"))
    assert plain["text"] != lines[0]["text"]


def test_a_table_of_prompts_is_refused(folder, capsys, tmp_path):
    """Its lines would be prompts, the names of its columns the first of them."""
    table = tmp_path / "prompts.csv"
    table.write_text("id,prompt\n1,a witty plot\n")
    assert "prompts.csv is a table, and" in refused(capsys, folder, "--file", table)
    few = ("--whole-file", "--max-new-tokens", 2)
    assert json.loads(said(capsys, folder, "--file", table, *few))["tokens"] == 2


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_the_text_as_it_comes(folder, capsys, monkeypatch):
    words = (folder, "a witty plot", "--max-new-tokens", 6)
    text = visible(json.loads(said(capsys, *words, "--json"))["text"])
    shown = Terminal()
    monkeypatch.setattr("sys.stdout", shown)
    assert main(["predict", *map(str, words)]) == 0
    assert shown.getvalue() == text + "\n"

    asked = iter(["a witty plot", "stale"])

    def typed(_):
        try:
            return next(asked)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("builtins.input", typed)
    assert main(["predict", str(folder), "--max-new-tokens", "6"]) == 0
    talk = shown.getvalue().removeprefix(text + "\n")
    assert talk.startswith(text + "\n")
    assert len(talk) > len(text) + 1


def test_a_stop_string_ends_the_text_before_it(folder, capsys):
    words = (folder, "a witty plot", "--max-new-tokens", 12)
    whole = json.loads(said(capsys, *words))["text"]
    stop = whole[4:6]
    cut = json.loads(said(capsys, *words, "--stop", stop))
    assert cut["text"] == whole[: whole.index(stop)]
    assert cut["whole"]
    assert cut["tokens"] < 12


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["x" * 500], "The model takes 64."),
        (["a", "--top-p", 0], "top_p must be above 0"),
        (["a", "--temperature", -1], "temperature must be above 0"),
        (["a", "--beams", 2, "--temperature", 1], "Beam search does not sample"),
        (["a", "--beams", 2, "--top-p", 0.5], "Beam search does not sample"),
        (["a", "--temperature", 0, "--top-k", 3], "--temperature 0 is greedy, and --top-k"),
        (["a", "--seed", 1], "seed is set, and no token is sampled"),
        (["a", "--temperature", 1, "--seed", 2**63], "'--seed': input should be less than"),
        (["a", "--max-new-tokens", 0], "max_new_tokens must be at least 1"),
        (["a", "--beams", 1000000], "num_beams must be from 1 to 256"),
        (["", "--no-chat"], "The prompt is empty"),
    ],
)
def test_what_cannot_be_answered_is_refused(folder, capsys, words, expected):
    assert expected.lower() in refused(capsys, folder, *words).lower()


@pytest.mark.parametrize(
    "asked", [("--top-p", 0.99), ("--top-k", 20), ("--min-p", 0.001), ("--temperature", 1)]
)
def test_an_option_of_sampling_samples(folder, capsys, asked):
    words = (folder, "a witty plot", "--max-new-tokens", 6, *asked, "--seed")
    texts = {json.loads(said(capsys, *words, seed))["text"] for seed in (1, 2**63 - 1)}
    assert len(texts) == 2


def test_a_template_that_loops_and_one_that_is_missing(capsys, tmp_path):
    make_checkpoint(tmp_path, "gpt2")
    assert "has no chat template" in refused(capsys, tmp_path, "a", "--chat")
    (tmp_path / "chat_template.jinja").write_text("{% for a in range(99999999) %}{% endfor %}")
    assert "The chat template of" in refused(capsys, tmp_path, "a")


def test_a_model_that_labels_takes_no_word_on_writing(capsys, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "generates no text" in refused(capsys, "runs/first", "a", "--beams", 2)


def settings_of(folder, given, config=None, **asked):
    if given is not None:
        (folder / "generation_config.json").write_text(json.dumps(given))
    return read_settings(folder, config or {}, asked)


def test_settings_are_the_files_and_then_the_persons(tmp_path):
    assert settings_of(tmp_path, None) == (Settings(max_new_tokens=MOST_NEW_TOKENS), ())
    found, _ = settings_of(tmp_path, None, {"eos_token_id": 7})
    assert found.eos_token_id == (7,)
    given = {"do_sample": True, "temperature": 0.6, "eos_token_id": [1, 2], "max_length": 50}
    found, notes = settings_of(tmp_path, given | {"pad_token_id": 0, "transformers_version": "5"})
    assert notes == ()
    assert found == Settings(
        max_new_tokens=None,
        max_length=50,
        do_sample=True,
        temperature=0.6,
        eos_token_id=(1, 2),
    )
    found, _ = settings_of(tmp_path, None, max_new_tokens=3, temperature=0.1)
    assert (found.max_new_tokens, found.max_length, found.temperature) == (3, None, 0.1)
    drawn, _ = settings_of(tmp_path, None, seed=2**63 - 1)
    assert (drawn.do_sample, drawn.seed) == (True, 2**63 - 1)
    with pytest.raises(UserError, match="seed must be from 0"):
        settings_of(tmp_path, None, seed=2**63)
    found, _ = settings_of(tmp_path, None, num_beams=2)
    assert (found.num_beams, found.do_sample) == (2, False)


def test_a_field_that_would_change_the_tokens_is_named(tmp_path):
    _, notes = settings_of(tmp_path, {"no_repeat_ngram_size": 3, "typical_p": 1.0, "min_length": 0})
    assert notes == (
        "generation_config.json: no_repeat_ngram_size (3) is not supported, and tokens are chosen "
        "without it.",
    )
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        settings_of(tmp_path, None)
    with pytest.raises(UserError, match=r"generation_config\.json: top_k must be"):
        settings_of(tmp_path, {"top_k": 1.5})
    with pytest.raises(UserError, match=r"generation_config\.json has text where"):
        settings_of(tmp_path, {"temperature": "hot"})


def test_beams_and_drawing_do_not_go_together(tmp_path):
    both = {"num_beams": 3, "do_sample": True}
    asked_for = [
        ({}, (3, False)),
        ({"do_sample": True}, (1, True)),
        ({"num_beams": 2}, (2, False)),
    ]
    for asked, expected in asked_for:
        found, _ = settings_of(tmp_path, both, **asked)
        assert (found.num_beams, found.do_sample) == expected
    with pytest.raises(UserError, match="does not sample"):
        settings_of(tmp_path, both, num_beams=2, do_sample=True)
