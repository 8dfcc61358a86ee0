"""What the study of methods compares: three tasks, and methods as overrides of a config."""

from __future__ import annotations

from dataclasses import dataclass

FULL, LIGHT = (5e-5, 2e-4, 8e-4), (5e-4, 2e-3, 8e-3)  # rates of a whole model, and of an adapter
REFERENCE = "full"
TUNED = "learned rates"  # its multipliers are those that benchmarks.studies.learned_rates learned


@dataclass(frozen=True)
class Task:
    """Task that the methods are compared on.

    Attributes:
        config: its config.
        metric: what is scored.
        blocks: of the model.
        overrides: rows and length, the same for every method.
    """

    config: str
    metric: str
    blocks: int
    overrides: tuple[str, ...]

    def for_all(self) -> list[str]:
        """Return the overrides of every run: all trains at one rate, scored once at its end."""
        end = self.overrides[-1].partition("=")[2]
        return [
            "groups=[]",
            "layer_decay.rate=1.0",
            *self.overrides,
            f"train.evaluate_every={end}",
            f"checkpoint.every={end}",
            f"report.layers_every={end}",
            "report.tensorboard=false",
        ]


TASKS = {
    "reviews": Task(
        "configs/sentiment.yaml",
        "accuracy",
        6,
        (
            "data.train=csv:assets/reviews/train.csv[:400]",
            "data.eval=csv:assets/reviews/train.csv[1000:1427]",
            "train.length=3 epochs",
        ),
    ),
    "entities": Task(
        "configs/ner.yaml",
        "f1",
        6,
        (
            "data.train=conll:assets/tweets/train.conll[:400]",
            "data.eval=conll:assets/tweets/train.conll[1000:1400]",
            "data.test=conll:assets/tweets/train.conll[1400:]",
            "data.batch_size=4",
            "data.max_length=80",
            "train.length=3 epochs",
        ),
    ),
    "digits": Task(
        "configs/digits.yaml",
        "accuracy",
        12,
        (
            "data.train=images:assets/digits/train[:384]",
            "data.eval=images:assets/digits/train[600:800]",
            "data.test=images:assets/digits/test",
            "model.image_size=56",
            "train.length=3 epochs",
        ),
    ),
}


@dataclass(frozen=True)
class Method:
    """Method as overrides of a config in which everything trains at one rate.

    Attributes:
        overrides: for a model of so many blocks; `{last}` is the last depth that is frozen.
        rates: that are tried.
        frozen: share of the blocks below `{last}`; None where the method has none.
    """

    overrides: tuple[str, ...] = ()
    rates: tuple[float, ...] = FULL
    frozen: float | None = None

    def for_blocks(self, blocks: int) -> list[str]:
        """Return the overrides for a model."""
        last = round((self.frozen or 0) * blocks)
        return [one.replace("LAST", str(last)) for one in self.overrides]


TRUNK = ("groups=[{name: trunk, depth: [0, LAST], freeze: true}]",)
PHASES = ("schedule.kind=constant", "schedule.warmup=0")


def selected(criterion: str) -> Method:
    """Train half of the matrices of each kind, by a criterion, and freeze the others."""
    chosen = f"{{name: chosen, select: {{by: {criterion}, fraction: 0.5}}}}"
    head = "{name: head, match: '(head|pooler)/.*'}"
    return Method((f"groups=[{head}, {chosen}, {{name: others, match: '.*', freeze: true}}]",))


METHODS = {
    REFERENCE: Method(),
    "frozen embeddings": Method(TRUNK, frozen=0.0),
    "frozen 1/6": Method(TRUNK, frozen=1 / 6),
    "frozen 1/2": Method(TRUNK, frozen=1 / 2),
    "frozen 5/6": Method(TRUNK, frozen=5 / 6),
    "decay 0.9 (mae)": Method(("layer_decay={rate: 0.9, preset: mae}",)),
    "decay 0.75 (mae)": Method(("layer_decay={rate: 0.75, preset: mae}",)),
    "decay 0.75 (timm)": Method(("layer_decay={rate: 0.75, preset: timm}",)),
    "decay 0.75 (electra)": Method(("layer_decay={rate: 0.75, preset: electra}",)),
    "decay 1/2.6 (ulmfit)": Method(("layer_decay={rate: 0.3846, preset: ulmfit}",)),
    "LP-FT": Method(("phases=lp_ft",)),
    "gradual unfreezing": Method(("phases=gradual_unfreezing",)),
    "FreezeOut": Method(("phases=freeze_out", *PHASES)),
    "AutoFreeze": Method(("phases=auto_freeze",)),
    "Auto-RGN": Method(("layer_decay.preset=auto_rgn",)),
    "heavy-tail rates": Method(("layer_decay.preset=heavy_tail",)),
    "sharpness": Method(("layer_decay.preset=sharpness",)),
    TUNED: Method(),
    "Spectrum 50%": selected("spectrum"),
    "Fisher 50%": selected("fisher"),
    "Layer Card 50%": selected("layer_card"),
    "random 50%": selected("random"),
    "LISA": Method(("sampling={method: lisa, blocks: 2, every: 5}",)),
    "OWS": Method(("sampling={method: ows, blocks: 2, every: 5}",)),
    "BAdam": Method(("sampling={method: badam, blocks: 1, every: 5, order: random}",)),
    "LoRA": Method(("adapter={kind: lora, rank: 8}",), LIGHT),
    "DoRA": Method(("adapter={kind: dora, rank: 8}",), LIGHT),
    "BitFit": Method(("adapter={kind: bitfit}",), LIGHT),
    "norms": Method(("adapter={kind: norms}",), LIGHT),
}
