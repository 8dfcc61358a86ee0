"""Bounds on files, rows, models and settings that come from outside.

Each is far above what real files have, and low enough that no file takes more than about 2 GB of
memory or keeps a command busy for minutes. `docs/bounds.md` lists them all, with what they bound.
"""

from __future__ import annotations

# Files. The largest JSON files of the hub are vocabularies of about 35 MB; the annotations of COCO
# have 470 MB; the tokenizers of 262,000 tokens take 33 MB.
CONFIG_BYTES = 1 << 20
JSON_BYTES = 256 << 20
JSON_LEVELS = 100  # far below Python's recursion limit, so that any reader may recurse
COCO_BYTES = 4 << 30
COMPANION_BYTES = 256 << 20
PICKLE_TIMES = 64  # unpacked over packed size of a zip of pickled weights

# Rows. An argument or a line of standard input is one text.
ROWS = 1 << 28
COLUMNS = 10_000
ROW_BYTES = 64 << 20
INPUT_LINE_BYTES = 16 << 20
SAMPLE_CHARACTERS = 1 << 20
UNPACKED_BYTES = 1 << 30  # of a Parquet file; a larger one if it is within
UNPACKED_TIMES = 100  # its packed size
UNPACK_MEMORY = 4 << 30
SHARDS = 100_000

# Images: 64 million pixels are 192 MB once decoded.
IMAGE_PIXELS = 64 << 20

# Models and tokenizers. The deepest models have some 130 blocks; each costs time before any weight
# is read. The library fills an array up to the highest id, whatever that is.
BLOCKS = 1024
FIELD_VALUE = 2**31 - 1
FREE_IDS = 1 << 20
PIECE_CHARACTERS = 10_000  # of one token
TEXT_GROWTH = 256  # characters that a tokenizer's replacements may make of one
SPECIAL_TOKENS = 1000  # that a tokenizer adds to a text
ENCODE_SECONDS = 60  # for a batch of texts, and a second more for 20,000 characters
BEAMS = 256

# Configs.
GROUPS = 1000
PATTERN_CHARACTERS = 1000
PATTERN_SECONDS = 2.0
INTERPOLATIONS = 1000

# Buckets.
BUCKET_SECONDS = 10
