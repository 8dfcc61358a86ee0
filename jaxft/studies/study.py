"""The study story: variants of a run, trained together in few programs, and ranked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from etils import epath

from jaxft.config.load import Config, changed_keys, load_config, parse_config, to_yaml
from jaxft.engine.setup import build, with_config
from jaxft.engine.trained import best_metric
from jaxft.errors import UserError
from jaxft.report.events import METRICS, EventLog, read_events
from jaxft.report.page.study import write_study_page
from jaxft.report.terminal.console import EscapingConsole
from jaxft.report.terminal.progress import Progress
from jaxft.report.terminal.study import parts_table, ranking_table, value_text
from jaxft.runs.folder import run_path
from jaxft.storage import files
from jaxft.studies.findings import findings, length_finding
from jaxft.studies.folder import (
    STUDY_FILE,
    StudyFolder,
    check_one_process,
    check_study,
    create_study,
    study_facts,
)
from jaxft.studies.members import Member, make_buckets, make_members, make_members_choices
from jaxft.studies.memory import Need, available_bytes, chunk_sizes, need_of
from jaxft.studies.part import Part, train_part
from jaxft.studies.phase import Programs
from jaxft.studies.rank import mark_rows, rank
from jaxft.training.freezing.decisions import freezes_itself
from jaxft.training.metadata import batch_line
from jaxft.training.rates.multipliers import measures_rates

BEST_FILE = "best.yaml"


@dataclass(frozen=True)
class Study:
    """Folder of a study.

    Attributes:
        folder: where it is.
    """

    folder: Path

    @cached_property
    def about(self) -> dict[str, Any]:
        """Content of `study.json`."""
        return StudyFolder(self.folder).about()

    @property
    def ranking(self) -> list[dict[str, Any]]:
        """Settings, best first; see `rank.rank`."""
        return self.about["ranking"]

    @property
    def best(self) -> Config:
        """Config of the best setting, ready to train."""
        return load_config(self.folder / BEST_FILE)


def study(
    config: Config,
    vary: Mapping[str, Sequence[Any]],
    *,
    name: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    command: Sequence[str] = (),
) -> Study:
    """Train every combination of the varied values, score each as it goes, and rank them.

    Args:
        config: what the members have in common.
        vary: config key -> its values.
        name: of the study's folder in `run.dir`; None for the run's name with `-study`.
        resume: train the parts that an earlier start of this study did not finish.
        overwrite: replace the study of this name.
        quiet: print nothing.
        command: the command line, for `study.json`.

    Returns:
        The study.

    Raises:
        UserError: a key or value is wrong, the members do not fit into memory, or the folder
            holds something else.
    """
    check_one_process()
    console = EscapingConsole(quiet=quiet)
    name = name or f"{config.run.name}-study"

    # -------------------------------------------- Set-up: errors are raised before any write
    members = make_members(config, vary)
    before = None
    if check_study(name, config.run.dir, resume=resume, overwrite=overwrite):
        before = _earlier_parts(run_path(name, config.run.dir), config, vary)
    console.print(f"{len(members)} members: opening the data", highlight=False)
    members = make_members_choices(members, console)
    parts, needs = make_parts(members, before)
    any_setup = parts[0].setups[0]
    metric = best_metric(config, any_setup.task)
    lower_is_better = any_setup.task.metrics[metric].lower_is_better
    described = [_about_part(part, need, vary) for part, need in zip(parts, needs, strict=True)]
    console.print(batch_line(any_setup.layout, any_setup.length, any_setup.why), highlight=False)
    console.print(parts_table(described))
    if warning := length_finding(any_setup.length.total_steps, any_setup.length.steps_per_epoch):
        console.print(warning, style="bold yellow", highlight=False)
    about = study_facts(config, vary, members, metric, command)
    about |= {"lower_is_better": lower_is_better, "parts": described}

    with create_study(name, config.run.dir, overwrite=overwrite, facts=about) as folder:
        results_of = {part.index: folder.part(part.index) for part in parts}
        remaining = [part for part in parts if results_of[part.index] is None]
        steps = sum(part.steps for part in parts)
        done = steps - sum(part.steps for part in remaining)
        if len(remaining) < len(parts):
            console.print(f"{len(parts) - len(remaining)} of {len(parts)} programs are done.")

        # -------------------------------------------------- The programs, one after another
        programs: dict[int, Programs] = {part.bucket: Programs() for part in parts}
        first = _keep_events(
            files.place(folder.path), [m.index for p in remaining for m in p.members]
        )
        with (
            EventLog(files.place(folder.path), tensorboard=False, resume_step=first) as log,
            Progress(steps, done, console, quiet) as progress,
        ):
            for part in remaining:
                progress.heading(f"program {part.bucket + 1}, {len(part.members)} members")
                result = train_part(part, programs[part.bucket], log, progress, done)
                folder.write_part(part.index, json.loads(json.dumps(result)))
                results_of[part.index] = folder.part(part.index)
                done += part.steps

        # ------------------------------------------------------------ The table and the page
        results = [results_of[part.index] or {} for part in parts]
        rows = mark_rows(
            [row for result in results for row in result["rows"]],
            metric,
            lower_is_better=lower_is_better,
        )
        diverged = {int(m): at for result in results for m, at in result["diverged"].items()}
        pairs = [zip(r["members"], r["test"], strict=True) for r in results if r["test"]]
        tested = {member: scores for pair in pairs for member, scores in pair}
        ranking = rank(members, rows, diverged, metric, tested, lower_is_better=lower_is_better)
        folder.write_table([_flat(row, members, diverged) for row in rows])
        chosen = members[ranking[0]["members"][0]]
        folder.write_text(BEST_FILE, best_yaml(chosen, name, metric))
        limits = findings(ranking, rows, vary, metric, any_setup)
        folder.update(state="finished", ranking=ranking, best=chosen.index, findings=limits)
        write_study_page(files.place(folder.path))
        folder.discard_old()
    console.print(ranking_table(ranking, metric))
    for limit in limits:
        console.print(limit, style="bold yellow", highlight=False)
    return Study(files.place(folder.path))


def make_parts(
    members: Sequence[Member],
    before: Sequence[Sequence[int]] | None = None,
    devices: Sequence | None = None,
) -> tuple[list[Part], list[Need]]:
    """Decide which members train together, and compute the memory of each bucket.

    Args:
        members: of the study.
        before: the members of each part of the study that is resumed.
        devices: the devices to run on; None for all.

    Raises:
        UserError: a config, its data or its checkpoint is wrong, or a member does not fit.
    """
    parts: list[Part] = []
    needs: list[Need] = []
    for bucket, group in enumerate(make_buckets(members)):
        first = build(group[0].config, devices=devices)
        setups = {member.index: with_config(first, member.config) for member in group}
        for setup in setups.values():
            _check_can_be_studied(setup.config)
        need = need_of(first)
        if before is None:
            sizes = chunk_sizes(need, len(group), available_bytes(first.mesh))
        else:
            sizes = [len(part) for part in before if part[0] in setups]
        rest = list(group)
        for count in sizes:
            chosen, rest = tuple(rest[:count]), rest[count:]
            own = tuple(setups[member.index] for member in chosen)
            parts.append(Part(len(parts), bucket, chosen, own))
            needs.append(need)
    return parts, needs


def _check_can_be_studied(config: Config) -> None:
    """Raise a UserError where leaves or rates are decided during training."""
    key = "sampling" if config.sampling.method is not None else None
    if freezes_itself(config):
        key = f"phases: {config.phases}"
    if measures_rates(config):
        key = f"layer_decay.preset: {config.layer_decay.preset}"
    if config.regularise.l2_sp:
        raise UserError(
            "regularise.l2_sp: a study keeps no copy of the initial parameters.",
            "Train such runs one by one.",
        )
    if key is not None:
        raise UserError(
            f"{key} decides during training, for each run separately, so a study cannot use it.",
            "Train such runs one by one.",
        )


def _about_part(part: Part, need: Need, vary: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Describe a part for `study.json` and the terminal."""
    common = {
        key: part.members[0].values[key]
        for key in vary
        if len(vary[key]) > 1 and len({json.dumps(m.values[key]) for m in part.members}) == 1
    }
    return {
        "index": part.index,
        "bucket": part.bucket,
        "members": [member.index for member in part.members],
        "differs": ", ".join(f"{key} {value_text(value)}" for key, value in common.items()),
        "steps": part.steps,
        "bytes": need.of(len(part.members)),
        "state": need.state,
    }


def _earlier_parts(
    path: epath.Path, config: Config, vary: Mapping[str, Sequence[Any]]
) -> list[list[int]]:
    """Return the members of each part of the study that is resumed.

    Raises:
        UserError: it is not the same study.
    """
    old = StudyFolder(path).about()
    odd = changed_keys(parse_config(old["config"], f"{path}/{STUDY_FILE}"), config)
    if old["vary"] != json.loads(json.dumps({key: list(vary[key]) for key in vary})):
        odd.append("--vary")
    if odd:
        raise UserError(
            f"A study cannot be resumed with a different {', '.join(odd)}.",
            "Restore the old value, or give the new study another --name.",
        )
    return [part["members"] for part in old["parts"]]


def _keep_events(folder: Path, again: Sequence[int]) -> int | None:
    """Drop the events of members that train again; return the last remaining step, or None."""
    events = [event for event in read_events(folder) if event.get("member") not in again]
    events = [event for event in events if event["kind"] != "note"]
    if not events:
        return None
    files.write_atomic(folder / METRICS, "".join(json.dumps(event) + "\n" for event in events))
    return max(event["step"] for event in events)


def _flat(
    row: Mapping[str, Any], members: Sequence[Member], diverged: Mapping[int, int]
) -> dict[str, Any]:
    """Make a row of `study.parquet`, with the varied keys and the metrics side by side."""
    member = members[row["member"]]
    return {
        "member": member.index,
        "bucket": row["bucket"],
        **member.values,
        "step": row["step"],
        **row["scores"],
        "last": row["last"],
        "best": row["best"],
        "diverged": member.index in diverged,
    }


def best_yaml(member: Member, name: str, metric: str) -> str:
    """Format the best setting's config, with a comment that says how to run it."""
    written = member.config.dump()
    written["run"]["name"] = f"{name}-best"
    values = ", ".join(f"{key} {value_text(value)}" for key, value in member.values.items())
    return (
        f"# The best of the study {name} by {metric}: {values}\n"
        f"#   jaxft train {written['run']['dir']}/{name}/{BEST_FILE}\n{to_yaml(written)}"
    )
