"""Bounds on files, rows, models and settings that come from outside.

Each is far above what real files have, and low enough that no file takes more than about 2 GB of
memory or keeps a command busy for minutes. `docs/bounds.md` lists them all, with what they bound.
"""

from __future__ import annotations

# Files. The largest JSON files of the hub are vocabularies of about 35 MB; the annotations of COCO
# have 470 MB; the tokenizers of 262,000 tokens take 33 MB.
MOST_CONFIG_BYTES = 1 << 18  # more takes its YAML reader tens of seconds
MOST_JSON_BYTES = 256 << 20
MOST_JSON_LEVELS = 100  # far below Python's recursion limit, so that any reader may recurse
MOST_COCO_BYTES = 4 << 30
MOST_SQUAD_BYTES = 1 << 30
MOST_PREDICTIONS_BYTES = 4 << 30
MOST_COMPANION_BYTES = 256 << 20

# Rows. An argument or a line of standard input is one text.
MOST_ROWS = 1 << 28
MOST_COLUMNS = 10_000
MOST_ROW_BYTES = 64 << 20
MOST_LINE_BYTES = 16 << 20
MOST_SAMPLE_CHARACTERS = 1 << 20
MOST_UNPACKED_BYTES = 1 << 30  # of a Parquet file; a larger one if it is within
MOST_UNPACKED_TIMES = 100  # its packed size
MOST_UNPACK_MEMORY = 4 << 30
MOST_SHARDS = 100_000
MOST_CLASSES = 1 << 20

# Images: 64 million pixels are 192 MB once decoded.
MOST_PIXELS = 64 << 20
MOST_SIDE_PIXELS = 1 << 14  # of the side of a model's images

# Models and tokenizers. The deepest models have some 130 blocks; each costs time before any weight
# is read. The library fills an array up to the highest id, whatever that is.
MOST_BLOCKS = 1024
MOST_VALUE = 2**31 - 1  # of a whole number in config.json
MOST_FREE_IDS = 1 << 20
MOST_TOKEN_CHARACTERS = 10_000  # of one token
MOST_TEXT_GROWTH = 256  # characters that a tokenizer's replacements may make of one
MOST_SPECIAL_TOKENS = 1000  # that a tokenizer adds to a text
MOST_ENCODE_SECONDS = 60  # for a batch of texts, and a second more for 20,000 characters
MOST_BEAMS = 256
MOST_CACHED_TOKENS = 1 << 22  # of all texts that are written together, with all their beams

# Configs.
MOST_GROUPS = 1000
MOST_PATTERN_CHARACTERS = 1000
MOST_PATTERN_SECONDS = 2.0
MOST_INTERPOLATIONS = 1000
MOST_STEPS = 10**8  # of a run, whose rates at every step are one array

# Buckets.
MOST_BUCKET_SECONDS = 10
