"""The study story: variants of a run, trained together in few programs, and ranked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from etils import epath

from jaxft.config.load import (
    Config,
    changed_keys,
    load_config,
    parse_config,
    require_config,
    to_yaml,
)
from jaxft.device.distributed import compare, from_first, is_first, wait_for_all
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
    check_study,
    create_study,
    study_facts,
)
from jaxft.studies.halving import Rungs, count_settings, first_part, rung_ends
from jaxft.studies.members import Member, make_members, make_members_choices
from jaxft.studies.parts import about_part, make_parts, reached_steps, train_parts
from jaxft.studies.rank import mark_rows, rank
from jaxft.studies.solo import check_solo
from jaxft.training.metadata import batch_line
from jaxft.training.preflight import join_processes

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
    halve: int | None = None,
    mesh_members: int = 1,
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
        halve: of the settings, the best 1 in `halve` go on after each rung of successive halving;
            None trains all to the end.
        mesh_members: shares of the devices, each of which trains its own members side by side;
            the config's mesh is that of a share.
        name: of the study's folder in `run.dir`; None for the run's name with `-study`.
        resume: go on with the parts that an earlier start of this study did not finish.
        overwrite: replace the study of this name.
        quiet: print nothing.
        command: the command line, for `study.json`.

    Returns:
        The study.

    Raises:
        UserError: a key or value is wrong, the members do not fit into memory, or the folder
            holds something else.
    """
    # ----------------------------------------------------------------------------- Processes
    require_config(config, "study")
    if not vary:
        raise UserError("study: no key is varied.", "Pass {'optimizer.lr': [1e-4, 3e-4]}.")
    quiet = not join_processes(config, resume=resume, overwrite=overwrite) or quiet
    asked = {"--vary": dict(vary), "--halve": halve, "--mesh-members": mesh_members}
    compare(asked, "Start every process with the same command.")
    console = EscapingConsole(quiet=quiet)
    name = name or f"{config.run.name}-study"

    # -------------------------------------------- Set-up: errors are raised before any write
    members = make_members(config, vary)
    shares = rung_ends(count_settings(members), halve)
    before = from_first(
        lambda: (
            _earlier_parts(run_path(name, config.run.dir), config, vary, halve)
            if check_study(name, config.run.dir, resume=resume, overwrite=overwrite)
            else None
        )
    )
    console.print(f"{len(members)} members: opening the data", highlight=False)
    members = make_members_choices(members, console)
    parts, needs = make_parts(members, before, groups=mesh_members)
    check_solo(parts, halve=halve, groups=mesh_members)
    parts = [first_part(part, shares[0]) for part in parts]
    any_setup = parts[0].setups[0]
    metric = best_metric(config, any_setup.task)
    lower_is_better = any_setup.task.metrics[metric].lower_is_better
    described = [about_part(part, need, vary) for part, need in zip(parts, needs, strict=True)]
    console.print(batch_line(any_setup.layout, any_setup.length, any_setup.why), highlight=False)
    console.print(parts_table(described))
    if warning := length_finding(any_setup.length.total_steps, any_setup.length.steps_per_epoch):
        console.print(warning, style="bold yellow", highlight=False)
    about = study_facts(config, vary, members, metric, command)
    about |= {"lower_is_better": lower_is_better, "halve": halve, "parts": described}

    with create_study(name, config.run.dir, overwrite=overwrite, facts=about) as folder:
        # -------------------------------------------------- The programs, one after another
        reached = reached_steps(folder)
        first = from_first(lambda: _keep_events(files.place(folder.path), reached))
        done = [part for part in parts if folder.part(part.index) is not None]
        if done:
            console.print(f"{len(done)} of {len(parts)} programs are done.")
        total = sum(part.setups[0].length.total_steps for part in parts)
        with (
            EventLog(files.place(folder.path), False, first, writes=is_first()) as log,
            Progress(total, sum(part.steps for part in done), console, quiet) as progress,
        ):
            rungs = Rungs(shares, halve, metric, lower_is_better)
            results = train_parts(parts, rungs, folder, log, progress, quiet=quiet)

        # ------------------------------------------------------------ The table and the page
        rows = mark_rows(
            [row for result in results for row in result["rows"]],
            metric,
            lower_is_better=lower_is_better,
        )
        diverged = {int(m): at for result in results for m, at in result["diverged"].items()}
        pairs = [zip(r["members"], r["test"], strict=True) for r in results if r["test"]]
        tested = {member: scores for pair in pairs for member, scores in pair}
        trained = {member: result["share"] for result in results for member in result["members"]}
        ranking = rank(
            members, rows, diverged, metric, tested, trained, lower_is_better=lower_is_better
        )
        folder.write_table([_flat(row, members, diverged) for row in rows])
        chosen = members[ranking[0]["members"][0]]
        folder.write_text(BEST_FILE, best_yaml(chosen, name, metric))
        limits = findings(ranking, rows, vary, metric, any_setup)
        folder.update(state="finished", ranking=ranking, best=chosen.index, findings=limits)
        if is_first():
            write_study_page(files.place(folder.path))
        folder.discard_old()
        wait_for_all()
    console.print(ranking_table(ranking, metric))
    for limit in limits:
        console.print(limit, style="bold yellow", highlight=False)
    return Study(files.place(folder.path))


def _earlier_parts(
    path: epath.Path, config: Config, vary: Mapping[str, Sequence[Any]], halve: int | None
) -> list[list[int]]:
    """Return the members of each part that the study that is resumed began with.

    Raises:
        UserError: it is not the same study.
    """
    old = StudyFolder(path).about()
    odd = changed_keys(parse_config(old["config"], f"{path}/{STUDY_FILE}"), config)
    if old["vary"] != json.loads(json.dumps({key: list(vary[key]) for key in vary})):
        odd.append("--vary")
    if old.get("halve") != halve:
        odd.append("--halve")
    if odd:
        raise UserError(
            f"A study cannot be resumed with a different {', '.join(odd)}.",
            "Restore the old value, or give the new study another --name.",
        )
    return [part["members"] for part in old["parts"] if not part.get("first")]


def _keep_events(folder: Path, reached: Mapping[int, int]) -> int | None:
    """Drop the events that come again; return the last remaining step, or None.

    Args:
        folder: of the study.
        reached: member -> the step that it goes on from.
    """
    events = [event for event in read_events(folder) if event["kind"] != "note"]
    events = [event for event in events if event["step"] <= reached.get(event.get("member", -1), 0)]
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
