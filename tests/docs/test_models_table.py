"""The table of models in the docs is what the code says."""

from pathlib import Path

import pytest

from docs.models_table import END, START, main, table, with_table
from jaxft.errors import UserError

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def test_the_page_is_up_to_date():
    assert main(["--check", str(PAGE)]) == 0, "make docs"


def test_what_a_line_says():
    lines = table().splitlines()
    assert "| `electra` | `ElectraForPreTraining` | replaced_tokens | yes | - | yes | - |" in lines
    assert "| `bert` | `BertForMaskedLM` | masked_lm | yes | `masked_lm` | yes | - |" in lines
    t5 = "| `t5` | `T5ForConditionalGeneration` | seq2seq | yes | `seq2seq` | yes | "
    assert t5 + "`jaxft predict` |" in lines
    causal = "| `llama` | `LlamaForCausalLM` | causal_lm | yes | `causal_lm`, `dpo` | yes | "
    assert causal + "`jaxft predict` |" in lines
    assert "| `gpt2` | `GPT2Model` | - | yes | `embedding` | yes | - |" in lines
    assert "| `t5` | `T5Model` | - | yes | - | yes | - |" in lines


def test_a_page_that_is_stale_is_seen_and_mended(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{START}| old |\n{END}\nafter\n")
    assert main(["--check", str(page)]) == 1
    assert main([str(page)]) == 0
    assert page.read_text() == f"before\n\n{START}{table()}{END}\nafter\n"
    assert main(["--check", str(page)]) == 0
    with pytest.raises(UserError, match="lacks the lines"):
        with_table("a page without a place for it\n")
