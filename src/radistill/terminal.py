"""What the commands print."""

from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from radistill import check_training, plugins
from radistill.errors import ConfigError, DataError, did_you_mean
from radistill.report_text import visible
from radistill.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from radistill.ask import Answered
    from radistill.chat import Chat
    from radistill.check import Findings
    from radistill.config import RunConfig
    from radistill.pipeline import StageOutcome
    from radistill.records import Example, Origin, Segment, TrainingRecord
    from radistill.shares import Share

SPARE = 100
"""So many rows more than asked for are looked at where some cannot be shown."""
COLOURS = {
    "prompt": "dim",
    "reference": "bold blue",
    "separator": "reverse dim",
    "rationale": "yellow",
    "model": "green",
    "replay": "magenta",
    "free": "cyan",
    "end": "bold red",
}


def outcome_line(outcome: "StageOutcome") -> str:
    """One line for one finished stage."""
    record = outcome.record
    numbers = dict(record.facts)
    if outcome.reused:
        left = int(numbers.get("failed", 0)) - int(numbers.get("given_up", 0))
        again = f"; {left:,} failed, which `radistill generate` tries again" if left > 0 else ""
        return f"{outcome.name}: done before, reused{again}"
    share = numbers.pop("filtered_share", None)
    not_judged = numbers.pop("not_judged", 0)
    facts = ", ".join(f"{k} {_plain(v)}" for k, v in numbers.items() if isinstance(v, int | float))
    if share is not None:
        facts += f", {share:.1%} of the rationales filtered"
    if not_judged:
        facts += f", {not_judged:,} not judged by their perplexity because their scores failed"
    stale = numbers.get("stale")
    later = f"; stale through {numbers['won']:,} new answers: {', '.join(stale)}" if stale else ""
    return f"{outcome.name}: {record.seconds:.1f} s" + (f" ({facts})" if facts else "") + later


def share_line(share: "Share", done: "Answered") -> str:
    """One line for a share of a stage."""
    facts = f"{done.requests:,} requests, {done.from_ledger:,} from the ledger, {done.written:,} written"
    return f"generate {share}: {facts}, {done.failed:,} failed. Without --shard and --limit the stage is finished."


def show_scores(report: dict[str, Any]) -> None:
    """New skill of every run in report.json beside the untouched model's."""
    table = Table(title="new skill (mean over directions, 95 % interval)", title_justify="left")
    for name in ("run", "method", "metric"):
        table.add_column(name)
    for name in ("score", "n"):
        table.add_column(name, justify="right")
    for run in report["runs"]:
        skill = run["new_skill"]
        if skill is None:  # no task of the run tests a new skill
            table.add_row(_safe(run["name"]), _safe(run["method"]), "–", "–", "–")
            continue
        value = f"{skill['value']:.2f} [{skill['low']:.2f}, {skill['high']:.2f}]"
        table.add_row(_safe(run["name"]), _safe(run["method"]), _safe(skill["metric"]), value, f"{skill['n']:,}")
    Console().print(table)


def show_findings(found: "Findings") -> None:
    """What `check` found; problems last, where they are read."""
    console = Console(highlight=False, soft_wrap=True)
    facts = found.facts
    for part in ("train", "test"):
        if part in facts:
            pairs = ", ".join(f"{p} {n:,}" for p, n in facts[part]["pairs"].items())
            console.print(
                f"{part}: {facts[part]['examples']:,} examples, {facts[part]['rejected']:,} rows refused"
                + (f" ({pairs})" if pairs else "")
            )
    if facts.get("contamination"):
        console.print(f"contamination: {_safe(_one_line(facts['contamination']))}")
    if "template" in facts:
        template = facts["template"]
        console.print(
            f"template: {template['bos']} BOS, a turn ends with {_safe(repr(template['end_of_turn']))}, generation "
            f"stops at {_safe(template['stops_at'])}"
        )
        console.print(Text("  first prompt: ").append(visible(repr(template["prompt"])), style="dim"))
    if "lengths" in facts:
        lengths = facts["lengths"]
        console.print(
            f"lengths in tokens ({lengths['sampled']:,} sampled): median {lengths['median']:.0f}, "
            f"95 % {lengths['p95']:.0f}, longest {lengths['max']:.0f}; context {lengths['context']}"
        )
        widest = max(lengths["histogram"].values())
        for name, count in lengths["histogram"].items():
            console.print(f"  {name:>11} {'█' * max(1, round(40 * count / widest))} {count:,}")
    if "cost" in facts:
        console.print(f"cost: {_one_line(facts['cost'])}")
    for line in check_training.lines(facts["training"]) if "training" in facts else ():
        console.print(_safe(line))
    for note in found.notes:
        console.print(Text("note: ", style="yellow").append(visible(note), style="default"))
    for problem in found.problems:
        console.print(Text("problem: ", style="bold red").append(visible(problem), style="default"))
    console.print("no problem found" if not found.problems else f"{len(found.problems)} problem(s) found")


def show_preview(config: "RunConfig", rows: int) -> None:
    """Some records as they will be trained; without rationales as long as none are generated."""
    from itertools import islice
    from pathlib import Path

    from radistill.runs import RunFolder
    from radistill.tables import read_records

    console = Console(highlight=False, soft_wrap=True)
    run = RunFolder(Path(config.output_dir))
    if run.records.exists():
        console.print(Text(f"from {run.records}", style="dim"))
        records: Iterable[TrainingRecord] = islice(read_records(run.records), rows)
    else:
        records, notes = _unwritten(config, rows)
        for note in notes:
            console.print(Text(visible(note), style="dim"))
    for record in records:
        console.rule(f"record {record.id[:12]}, {len(record.token_ids)} tokens", align="left")
        text = Text()
        for segment, part in zip(record.segments, record.texts, strict=True):
            text.append(visible(part), style=COLOURS[segment.origin])
        console.print(text)
        for segment in record.segments:
            console.print(Text(_segment_line(segment, record.token_ids), style=COLOURS[segment.origin]))


def described_plugins(kind: str | None) -> dict[str, list[dict[str, Any]]]:
    """Kind → its plugins: name, first line of the docstring, and settings with their defaults, as plain values.

    Raises:
        ConfigError: there is no such kind.
    """
    if kind is not None and kind not in plugins.KINDS:
        known = ", ".join(plugins.KINDS)
        raise ConfigError(f"no such kind {kind!r}; known: {known}.{did_you_mean(kind, plugins.KINDS)}")
    return {
        one: [_described(name, plugins.load(one, name)) for name in plugins.available(one)]
        for one in plugins.KINDS
        if kind in (None, one)
    }


def _described(name: str, cls: type[Settings]) -> dict[str, Any]:
    settings = []
    for field, info in cls.model_fields.items():
        default = None if info.is_required() else info.get_default(call_default_factory=True)
        shown = TypeAdapter(Any).dump_python(default, mode="json")
        settings.append(
            {"name": field, "required": info.is_required(), "default": shown, "what": _squeezed(info.description)}
        )
    flags = {flag: getattr(cls, flag) for flag in ("ours", "brings_data") if hasattr(cls, flag)}
    return {"name": name, "what": (cls.__doc__ or "").strip().partition("\n")[0], **flags, "settings": settings}


def show_plugins(kind: str | None) -> None:
    """The same for people."""
    console = Console(highlight=False, soft_wrap=True)
    for one, found in described_plugins(kind).items():
        console.print(f"[bold]{one}[/bold]")
        for plugin in found:
            console.print(f"  [bold blue]{plugin['name']}[/bold blue]  {escape(plugin['what'])}")
            for setting in plugin["settings"]:
                default = "required" if setting["required"] else f"= {setting['default']!r}"
                console.print(Text(f"      {setting['name']} {default}  ").append(setting["what"], style="dim"))


def _unwritten(config: "RunConfig", rows: int) -> "tuple[list[TrainingRecord], list[str]]":
    """Records of the first examples before anything is generated, and what to know about them.

    Raises:
        DataError: none of the examples looked at can be put into ids.
    """
    from radistill import data
    from radistill.chat import RowError
    from radistill.speaker import untouched

    chat = untouched(config).chat
    examples = data.load(config.data, "train", seed=config.seed).examples[: rows + SPARE]
    records: list[TrainingRecord] = []
    skipped: list[str] = []
    is_whole = True
    for example in examples:
        if len(records) >= rows:
            break
        try:
            found, whole = _before_generation(config, chat, example)
        except RowError as error:
            skipped.append(str(error))
            continue
        records += found
        is_whole &= whole
    if skipped and not records:
        raise DataError(f"data.train: none of {len(skipped)} rows can be put into ids, the first because {skipped[0]}")
    missing = "" if is_whole else ": rationales are missing below"
    notes = [f"nothing is assembled yet{missing}"]
    if skipped:
        notes.append(
            f"{len(skipped)} rows cannot be put into ids and are left out here, the first because {skipped[0]}"
        )
    return records[:rows], notes


def _before_generation(
    config: "RunConfig", chat: "Chat", example: "Example"
) -> "tuple[Sequence[TrainingRecord], bool]":
    """The example's records as far as they are known, and whether that is all of them."""
    from radistill.methods.base import record

    method = config.method
    if not method.plan(example, chat, config.generate.sampling):
        return method.assemble(example, chat, []), True
    opening = chat.opening(example.messages, example.reference, getattr(method, "separator", ""))
    weights: dict[Origin, float] = {"reference": 1.0, "separator": getattr(method, "rationale_weight", 1.0)}
    return [record(example, chat, opening, weights=weights)], False


def _segment_line(segment: "Segment", ids: "Sequence[int]") -> str:
    shown = list(ids[segment.start : segment.stop])
    some = ", ".join(map(str, shown[:12])) + (", …" if len(shown) > 12 else "")
    return f"  {segment.origin:10} weight {segment.weight:<4g} {len(shown):4} ids: {some}"


def _one_line(facts: dict[str, Any]) -> str:
    return ", ".join(f"{k.replace('_', ' ')} {_plain(v)}" for k, v in facts.items())


def _plain(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if isinstance(value, float) else str(value)


def _safe(value: object) -> str:
    """Other people's text, for rich to print as it is."""
    return escape(visible(str(value)))


def _squeezed(text: str | None) -> str:
    return " ".join((text or "").split())
