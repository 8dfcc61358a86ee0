"""What loading a sharded checkpoint takes: memory beside the parameters, and time beside reading.

`python -m benchmarks.load` writes a Llama of random weights (2 GB in float32) and loads it onto 8
fake CPU devices that share every matrix (fsdp 8), in processes of their own.

Memory: anonymous memory (`RssAnon`: what this process alone holds) is looked at every
millisecond; `VmHWM` is the kernel's own highest mark and counts the mapped pages of the files
too. On CPU all devices are this host, so the addressable shards are the whole model. What is over
them is given in parts of the largest tensor.

Time: loading and reading take turns, once with the files in the page cache and once after they
were dropped from it. Reading is all files into memory that is kept, in one go each.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np

from benchmarks.measure import median, record

MOST_MEMORY, MOST_TIME = 1.2, 1.5  # largest tensors over the shards; times the time to read
SHARD = 512 << 20  # bytes of a file
STORED = {"float32": ("F32", 4), "bfloat16": ("BF16", 2)}
DEVICES = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}


def llama(blocks: int, width: int, vocab: int) -> dict[str, Any]:
    """The config.json of a Llama, its MLP 2.75 times as wide as the model."""
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": width * 11 // 4,
        "num_hidden_layers": blocks,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 256,
        "max_position_embeddings": 2048,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }


def tensors_of(fields: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a Llama: name -> shape."""
    width, inner, vocab = (
        fields[name] for name in ("hidden_size", "intermediate_size", "vocab_size")
    )
    keys = width * fields["num_key_value_heads"] // fields["num_attention_heads"]
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, width)}
    for index in range(fields["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        for name, rows in (("q", width), ("k", keys), ("v", keys), ("o", width)):
            found[f"{layer}.self_attn.{name}_proj.weight"] = (rows, width)
        found[f"{layer}.mlp.gate_proj.weight"] = found[f"{layer}.mlp.up_proj.weight"] = (
            inner,
            width,
        )
        found[f"{layer}.mlp.down_proj.weight"] = (width, inner)
        found[f"{layer}.input_layernorm.weight"] = (width,)
        found[f"{layer}.post_attention_layernorm.weight"] = (width,)
    return found | {"model.norm.weight": (width,), "lm_head.weight": (vocab, width)}


def write_checkpoint(folder: Path, fields: dict[str, Any], stored: str, shard: int) -> None:
    """A sharded checkpoint of random weights.

    Args:
        folder: where.
        fields: its config.json.
        stored: the type in the files, `float32` or `bfloat16`.
        shard: bytes of a file at most, where one tensor has no more.
    """
    kind, size = STORED[stored]
    noise = np.random.default_rng(0).standard_normal(1 << 22, np.float32)
    parts: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in tensors_of(fields).items():
        held = sum(int(np.prod(other)) for other in parts[-1].values())
        if parts[-1] and (held + int(np.prod(shape))) * size > shard:
            parts.append({})
        parts[-1][name] = shape
    weight_map: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        weight_map |= dict.fromkeys(part, file)
        header, end = {}, 0
        for name, shape in part.items():
            begin, end = end, end + int(np.prod(shape)) * size
            header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for shape in part.values():
                values = np.resize(noise, int(np.prod(shape)))  # again and again
                # The upper half of a float32 is the bfloat16 that is nearest to it from below.
                out.write((values if size == 4 else values.view(np.uint16)[1::2]).tobytes())
            out.flush()
            os.fsync(out.fileno())
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(fields))


def load_onto_mesh(folder: Path, dtype: str) -> dict[str, Any]:
    """The parameters of a checkpoint, each cut over 8 devices."""
    import jax

    from jaxft.device.mesh import make_mesh, param_shardings
    from jaxft.models.load import describe, load

    shapes = describe(str(folder))
    sizes = {name: leaf.shape for name, leaf in shapes.params.items()}
    places = param_shardings(sizes, shapes.axes, make_mesh(1, 8, 1))
    model = load(str(folder), dtype=dtype, sharding=lambda name, shape, axes: places[name])
    return jax.block_until_ready(model.params)


def status(*names: str) -> list[int]:
    """Bytes that /proc/self/status gives under each of the names."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return [int(found[name].split()[0]) << 10 for name in names]


class Highest:
    """The most anonymous memory, and the most memory of any kind, that a block held."""

    def __enter__(self) -> Self:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
        self.before, self.rss = status("RssAnon", "VmRSS")
        self.anonymous, self._over = self.before, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.001):
            self.anonymous = max(self.anonymous, *status("RssAnon"))

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.extra_anonymous = self.anonymous - self.before
        self.extra = status("VmHWM")[0] - self.rss


def memory(folder: Path, dtype: str) -> dict[str, float]:
    """What loading holds at its peak, over the shards, in parts of the largest tensor."""
    with tempfile.TemporaryDirectory() as scratch:  # what is imported and set up once
        write_checkpoint(Path(scratch), llama(1, 256, 64), "float32", SHARD)
        load_onto_mesh(Path(scratch), dtype)
    with Highest() as highest:
        params = load_onto_mesh(folder, dtype)
    shards = sum(part.data.nbytes for leaf in params.values() for part in leaf.addressable_shards)
    largest = max(leaf.nbytes for leaf in params.values())
    return {
        "shards": shards,
        "largest": largest,
        "anonymous": (highest.extra_anonymous - shards) / largest,
        "all": (highest.extra - shards) / largest,
    }


def seconds(run: Callable[[], Any]) -> dict[str, float]:
    """How long it takes, in wall time and in CPU seconds of this process.

    What it gives is let go of after the clocks have stopped.
    """
    start = {"second": time.perf_counter(), "cpu_second": time.process_time()}
    kept = run()
    end = {"second": time.perf_counter(), "cpu_second": time.process_time()}
    del kept
    gc.collect()
    return {measure: end[measure] - start[measure] for measure in start}


def drop_from_cache(files: list[Path]) -> None:
    """Let the system forget what it keeps of the files."""
    for file in files:
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def times(folder: Path, dtype: str, pairs: int) -> dict[str, Any]:
    """Loading over reading, warm and cold, by turns."""
    files = sorted(folder.glob("*.safetensors"))
    contestants: dict[str, Callable[[], Any]] = {
        "load": lambda: load_onto_mesh(folder, dtype),
        "read": lambda: [np.fromfile(file, np.uint8) for file in files],
    }
    found: dict[str, Any] = {}
    seconds(contestants["load"])
    for state in ("warm", "cold"):
        taken: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
        for pair in range(pairs):
            for name in list(contestants)[:: -1 if pair % 2 else 1]:
                if state == "cold":
                    drop_from_cache(files)
                taken[name].append(seconds(contestants[name]))
        for measure in ("second", "cpu_second"):
            each = {name: [one[measure] for one in turns] for name, turns in taken.items()}
            ratios = [a / b for a, b in zip(each["load"], each["read"], strict=True)]
            middles = {name: median(values).median for name, values in each.items()}
            found[f"{state} {measure}"] = {"ratio": vars(median(ratios)), "median": middles}
    return found


def in_a_process(folder: Path, *words: str) -> dict[str, Any]:
    """What this program prints when it does one thing in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.load", "--folder", str(folder), *words]
    done = subprocess.run(
        command, env={**os.environ, **DEVICES}, check=True, stdout=subprocess.PIPE
    )
    return json.loads(done.stdout)


def main() -> int:
    """Write, load, measure and record; say whether it holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=9)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--pairs", type=int, default=9, help="turns each takes")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="float32", help=argparse.SUPPRESS)
    parser.add_argument("--one", choices=("memory", "time"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one = memory(given.folder, given.dtype) if given.one == "memory" else None
        print(json.dumps(one or times(given.folder, given.dtype, given.pairs)))
        return 0
    fields, result, holds = llama(given.blocks, given.width, given.vocab), {}, True
    for stored, dtype in (
        ("float32", "float32"),
        ("bfloat16", "float32"),
        ("bfloat16", "bfloat16"),
    ):
        with tempfile.TemporaryDirectory() as scratch:
            write_checkpoint(Path(scratch), fields, stored, SHARD)
            held = in_a_process(Path(scratch), "--one", "memory", "--dtype", dtype)
            asked = ("--one", "time", "--dtype", dtype, "--pairs", str(given.pairs))
            took = in_a_process(Path(scratch), *asked)
        result[f"{stored} to {dtype}"] = {"memory": held, **took}
        ratios = {name: one["ratio"]["median"] for name, one in took.items()}
        warm, cold = ratios["warm second"], ratios["cold second"]
        holds &= held["anonymous"] <= MOST_MEMORY and max(warm, cold) <= MOST_TIME
        print(
            f"{stored} to {dtype}: {held['shards'] / 1e9:.2f} GB; over it {held['anonymous']:.2f} "
            f"largest tensors ({held['all']:.2f} with mapped pages), at most {MOST_MEMORY} wanted; "
            f"load / read = {warm:.2f} warm, {cold:.2f} cold, at most {MOST_TIME} wanted "
            f"(in CPU seconds {ratios['warm cpu_second']:.2f}, {ratios['cold cpu_second']:.2f})",
            flush=True,
        )
    record("load", {"load": os.getloadavg()[1], **result})
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
