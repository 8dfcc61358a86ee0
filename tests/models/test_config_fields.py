"""Every field of every family's config with every kind of value: a config, or one sentence."""

import json

import numpy as np
import pytest
from transformers import AutoConfig

from jaxft.errors import UserError
from jaxft.models import load as registry
from jaxft.models.family import ComposedFamily, leaves_of
from tests.support.families import FAMILIES, OF_TRANSFORMERS, names_of
from tests.support.random_configs import random_config

VALUES = [
    None,
    True,
    "x",
    "",
    -1,
    0,
    1.5,
    float("nan"),
    float("inf"),
    10**5,
    10**400,
    [],
    ["x"],
    [3, "x"],
    {},
    {"x": 1},
    {"rope_type": "llama3", "factor": "x"},
    {"rope_type": "linear", "factor": 0},
    {"rope_type": "linear", "factor": 10**400},
]


def fields_of(model_type):
    return json.loads(random_config(model_type, np.random.default_rng(0)).to_json_string())


def tried(family, fields, head, described):
    """Whether a config is read and its towers are described; else it is refused.

    Those of a config in `described` have been: many values of harmless fields say the same.
    """
    try:
        if isinstance(family, ComposedFamily):
            family = family.compose(fields, registry.families(), False)
        config = family.config.from_hf(fields)
        if config not in described:
            leaves_of(family.towers(config, head, 2))
            described.append(config)
    except UserError as error:
        sentence = str(error)
    else:
        return True
    assert sentence.startswith("config.json")
    assert len(sentence) < 400
    return False


@pytest.mark.parametrize("name", names_of(FAMILIES))
def test_a_field_of_another_kind(name):
    fields = fields_of(name)
    family = FAMILIES[fields["model_type"]]
    head = next(iter(family.model_types[fields["model_type"]]))
    described = []
    assert tried(family, fields, head, described)
    counts, faults = [0, 0], []
    for field in sorted(fields.keys() - {"model_type"}):
        for value in VALUES:
            try:
                counts[tried(family, {**fields, field: value}, head, described)] += 1
            except Exception as error:
                faults.append(f"{field} = {str(value)[:40]}: {type(error).__name__}: {error}")
    assert not faults, "\n".join(faults)
    assert min(counts) > 20


CAUSAL = ("bart", "clip_text_model", "gemma3_text", "gpt2", "gpt_neo", "gpt_neox", "imagegpt")
CAUSAL = (
    *CAUSAL,
    "llama",
    "marian",
    "modernbert-decoder",
    "mt5",
    "opt",
    "qwen2",
    "t5",
    "vit+trocr",
)
PAIRED = ("encoder-decoder", "vision-encoder-decoder", "vision-text-dual-encoder")
BOTH_WAYS = ("eurobert", "modernbert", "siglip_text_model")


@pytest.mark.parametrize("name", [*CAUSAL, *BOTH_WAYS, "t5gemma", "bert+bert"])
def test_a_decoder_that_sees_both_ways_is_refused(name):
    """transformers reads `is_causal` for a decoder's mask, though no config class has it."""
    fields = fields_of(name)
    family = FAMILIES[fields["model_type"]]
    head = next(iter(family.model_types[fields["model_type"]]))
    own = fields.get("decoder", fields)
    for value in (True, False):
        own["is_causal"] = value
        assert tried(family, fields, head, []) is (value or name in BOTH_WAYS)
    if "encoder" in fields:
        del own["is_causal"]
        fields["encoder"]["is_causal"] = False
        assert tried(family, fields, head, [])


@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_a_padding_token_that_is_not_named_is_transformers_own(name):
    if name in PAIRED:
        return
    fields, family = fields_of(name), OF_TRANSFORMERS[name]
    fields.pop("pad_token_id", None)
    config = AutoConfig.for_model(name)
    if isinstance(family, ComposedFamily):
        family = family.compose(fields, registry.families(), False)
    own = getattr(family.config.from_hf(fields), "fields", {})
    meant = getattr(config, "pad_token_id", None)
    assert own.get("pad_token_id", meant) == meant
    assert (name in family.unpadded) == ("pad_token_id" in own and meant is None)
