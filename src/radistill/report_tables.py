"""The tables of a report, as text in cells; HTML and Markdown show the same ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from radistill import stats
from radistill.columns import MACRO, RATE, RAW, TOKENS
from radistill.records import BASE, Score, StageRecord
from radistill.report_data import Run
from radistill.report_scores import Result
from radistill.report_text import ABSENT, count, duration, interval, number, p_value, signed

MEAN = "mean"
NOTHING = "–"
NAMES = {"bleu": "BLEU", "chrf": "chrF", "lab_accuracy": "right answers", "lab_rationale": "well-formed rationales"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A caption, a head, and rows of text."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1
    """The first so many columns are words, the others numbers."""
    strong: tuple[str, ...] = ()
    """Rows whose first cell is one of these matter most."""
    long: bool = False
    """The last column holds hashes or signatures."""
    folded: bool = False
    """Few want to see it."""


def metric_name(metric: str) -> str:
    """The metric as people write it."""
    return NAMES.get(metric, metric)


def group_name(group: str) -> str:
    """The group as people read it."""
    return MEAN if group == MACRO else group


def label_name(metric: str) -> str:
    """A rate's label in words: `rate_off_target` → `off target`."""
    return metric.removeprefix(RATE).replace("_", " ")


def settings(runs: Sequence[Run]) -> Table:
    """What was run: a row for each property, a column for each run."""
    chosen: list[tuple[str, Callable[[Run], object]]] = [
        ("method", lambda r: r.method),
        ("method's settings", lambda r: r.method_settings or NOTHING),
        ("model", lambda r: r.model),
        ("trained on", lambda r: _section(r, "data").get("train")),
        ("tested on", lambda r: _section(r, "data").get("test")),
        ("training", lambda r: _section(r, "train") or None),
        ("seed", lambda r: r.config.get("seed")),
        ("parameters", lambda r: count(r.fact("train", "parameters"))),
        ("trained parameters", lambda r: count(r.fact("train", "trainable"))),
        ("steps", lambda r: count(r.fact("train", "steps"))),
    ]
    return _by_run("What was run, by run", runs, [(name, [_plain(get(run)) for run in runs]) for name, get in chosen])


def scores(result: Result, metric: str) -> Table:
    """One metric: every group and the mean, every system, and its difference to the untouched model."""
    rows = []
    for group in (*result.groups, MACRO):
        for system in result.evaluation.systems:
            score = result.scored.find(system=system, metric=metric, group=group)
            if score is None:
                continue
            c = result.comparison(system=system, metric=metric, group=group)
            compared = (signed(c.difference), interval(c.low, c.high, difference=True), p_value(c.p_holm)) if c else ()
            cells = (number(score.value), interval(score.low, score.high), *(compared or (NOTHING,) * 3))
            rows.append((group_name(group), system, *cells, count(score.n), count(score.n_failed)))
    name = metric_name(metric)
    return Table(
        caption=f"{name} of the answers on {result.evaluation.name}, with 95 % intervals",
        head=("group", "system", name, "95 %", f"minus {BASE}", "95 %", "p (Holm)", "n", "failed"),
        rows=tuple(rows),
        words=2,
        strong=(MEAN,),
    )


def raw_and_cut(result: Result) -> Table:
    """What cutting the answer out of the reply does to each system's scores."""
    rows = []
    for group in (*result.groups, MACRO):
        for system in result.evaluation.systems:
            names = [name for metric in result.metrics for name in (metric, metric + RAW)]
            found = [result.scored.find(system=system, metric=name, group=group) for name in (*names, RATE + "cut")]
            rows.append((group_name(group), system, *map(_with_interval, found)))
    columns = [f"{metric_name(metric)}, {part}" for metric in result.metrics for part in ("answer", "whole reply")]
    return Table(
        caption=f"Answer and whole reply on {result.evaluation.name}, with 95 % intervals",
        head=("group", "system", *columns, "replies cut, %"),
        rows=tuple(rows),
        words=2,
        strong=(MEAN,),
    )


def rate_names(result: Result) -> list[str]:
    """Names of the rates that were taken, in their order."""
    return list(dict.fromkeys(s.metric for s in result.scored.scores if s.metric.startswith(RATE)))


def rates(result: Result) -> Table:
    """How often something is wrong with an answer, in percent, with Wilson intervals."""
    groups = (MACRO, *result.groups)
    rows = []
    for name in rate_names(result):
        for system in result.evaluation.systems:
            found = [result.scored.find(system=system, metric=name, group=group) for group in groups]
            rows.append((label_name(name), system, *(_with_interval(s) for s in found)))
    return Table(
        caption=f"Rates on {result.evaluation.name}, % of the answers with 95 % intervals",
        head=("rate", "system", *map(group_name, groups)),
        rows=tuple(rows),
        words=2,
    )


def mean_rates(found: Sequence[Result], systems: Sequence[str]) -> Table:
    """The same, as unweighted means over several tasks: a row for each rate, a column for each system."""
    rows = []
    for name in dict.fromkeys(name for result in found for name in rate_names(result)):
        cells = []
        for system in systems:
            scores = [s for r in found if (s := r.scored.find(system=system, metric=name))]
            intervals = [stats.Interval(s.value, s.low, s.high) for s in scores]
            mean = stats.mean_of_proportions(intervals) if intervals else None
            cells.append(f"{number(mean.value)} {interval(mean.low, mean.high)}" if mean else NOTHING)
        rows.append((label_name(name), *cells))
    caption = f"Rates, mean over {len(found)} abilities, % of the answers with 95 % intervals"
    return Table(caption=caption, head=("rate", *systems), rows=tuple(rows))


def rates_of_each(found: Sequence[Result]) -> Table:
    """The same of each of several tasks: a row for each task and system, a column for each rate, then the tokens."""
    names = dict.fromkeys(name for result in found for name in rate_names(result))
    rows = [
        (
            result.evaluation.name,
            system,
            *(_with_interval(result.scored.find(system=system, metric=name)) for name in (*names, TOKENS)),
        )
        for result in found
        for system in result.evaluation.systems
    ]
    return Table(
        caption="Rates by test, % of the answers, and tokens per reply, with 95 % intervals",
        head=("test", "system", *map(label_name, names), "tokens"),
        rows=tuple(rows),
        words=2,
        folded=len(found) > 1,
    )


def lengths(result: Result) -> Table:
    """How many tokens a whole reply has, on average."""
    groups = (MACRO, *result.groups)
    rows = [
        (system, *(_with_interval(result.scored.find(system=system, metric=TOKENS, group=group)) for group in groups))
        for system in result.evaluation.systems
    ]
    caption = f"Tokens per reply on {result.evaluation.name}, with 95 % intervals"
    return Table(caption=caption, head=("system", *map(group_name, groups)), rows=tuple(rows))


def signatures(found: Sequence[Result]) -> Table:
    """What each metric was computed with."""
    groups: dict[tuple[str, str, str], dict[str, None]] = {}
    for result in found:
        names = {m: metric_name(m) for m in result.metrics} | {
            m + RAW: f"{metric_name(m)}, whole reply" for m in result.metrics
        }
        for s in result.scored.scores:
            if s.metric in names:
                groups.setdefault((s.task, names[s.metric], s.signature), {})[group_name(s.group)] = None
    rows = [(task, name, ", ".join(of), signature) for (task, name, signature), of in groups.items()]
    head = ("task", "metric", "groups", "signature")
    return Table(caption="Signatures", head=head, rows=tuple(rows), words=4, long=True)


def trained_on(runs: Sequence[Run]) -> Table:
    """Counts of what was asked for, made, dropped and kept."""
    facts = [
        ("input rows refused", "generate", "rejected"),
        ("requests", "generate", "requests"),
        ("answered from the ledger", "generate", "from_ledger"),
        ("written", "generate", "written"),
        ("failed", "generate", "failed"),
    ]
    rows = [(label, [count(run.fact(stage, name)) for run in runs]) for label, stage, name in facts]
    rows.append(("contamination", [_plain(_facts(run, "evaluate").get("contamination")) for run in runs]))
    rows += [(name, [count(run.summary.get(name)) for run in runs]) for name in ("examples", "records")]
    reasons = dict.fromkeys(reason for run in runs for reason in _part(run, "dropped"))
    rows += [(f"dropped: {r}", [count(_part(run, "dropped").get(r, 0)) for run in runs]) for r in reasons]
    rows += [
        (f"rationales: {label}", [_rationales(run, name, digits) for run in runs])
        for label, name, digits in (
            ("written", "written", 0), ("empty", "empty", 0), ("ended by themselves", "stopped", 0),
            ("cut at the limit", "cut", 0), ("mean tokens", "mean_tokens", 1),
        )
        if any(name in _part(run, "rationales") for run in runs)
    ]  # fmt: skip
    rows.append(("tokens in a row: min, median, p95, max", [_lengths(_part(run, "lengths")) for run in runs]))
    return _by_run("What was trained on, by run", runs, rows)


def token_shares(runs: Sequence[Run]) -> Table | None:
    """Tokens by origin: in the rows, learned, and as a share of the loss weight."""
    rows = []
    for run in runs:
        tokens, learned, weight = (_part(run, name) for name in ("tokens", "trained_tokens", "weight_share"))
        for origin in dict.fromkeys([*tokens, *learned, *weight]):
            share = number(100 * weight[origin], 2) if origin in weight else NOTHING
            rows.append((origin, run.name, count(tokens.get(origin, 0)), count(learned.get(origin, 0)), share))
    head = ("origin", "run", "tokens", "learned", "share of the loss weight, %")
    return Table(caption="Tokens by origin", head=head, rows=tuple(rows), words=2) if rows else None


def costs(runs: Sequence[Run]) -> Table:
    """Time and tokens of each stage."""
    rows = []
    for run in runs:
        for name, stage in run.stages.items():
            tokens = run.fact(name, "tokens_processed" if name == "train" else "tokens")
            # After a restart the ledger has a part of the tokens, while the time is all of it.
            is_speed = bool(tokens) and stage.seconds > 0 and not run.fact(name, "from_ledger")
            speed = count(tokens / stage.seconds) if is_speed and tokens is not None else NOTHING
            learned = count(run.fact(name, "tokens_trained")) if name == "train" else NOTHING
            spent = NOTHING if tokens is None and name not in ("generate", "train", "evaluate") else count(tokens)
            where = (stage.started_at or NOTHING, stage.device or NOTHING)
            rows.append((name, run.name, *where, duration(stage.seconds), spent, learned, speed))
        total = sum(stage.seconds for stage in run.stages.values())
        rows.append(("all", run.name, "", "", duration(total), NOTHING, NOTHING, NOTHING))
    head = ("stage", "run", "started", "device", "time", "tokens", "of them learned", "tokens/s")
    return Table(caption="Time and tokens", head=head, rows=tuple(rows), words=4, strong=("all",))


def loss_ends(curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> Table:
    """Where each loss curve starts and ends."""
    rows = [
        (origin, run, count(points[-1][0]), number(points[0][1], 3), number(points[-1][1], 3))
        for run, by_origin in curves.items()
        for origin, points in by_origin.items()
    ]
    head = ("origin", "run", "last step", "first loss", "last loss")
    return Table(caption="Loss by origin, nats per token", head=head, rows=tuple(rows), words=2)


def versions(runs: Sequence[Run]) -> Table:
    """Versions of what can change a result."""
    found = [_versions(run.stages.values()) for run in runs]
    names = sorted({name for of_run in found for name in of_run})
    return _by_run("Versions, by run", runs, [(name, [v.get(name, ABSENT) for v in found]) for name in names])


def files(runs: Sequence[Run]) -> Table:
    """Every file that went in or came out, with its hash."""
    rows = [
        (run.name, name, way, path, hashed)
        for run in runs
        for name, stage in run.stages.items()
        for way, hashes in (("in", stage.inputs), ("out", stage.outputs))
        for path, hashed in hashes.items()
    ]
    head = ("run", "stage", "", "file", "sha256")
    return Table(caption="Files and their hashes", head=head, rows=tuple(rows), words=5, long=True, folded=True)


def _by_run(caption: str, runs: Sequence[Run], rows: Sequence[tuple[str, Sequence[str]]]) -> Table:
    cells = tuple((name, *values) for name, values in rows)
    return Table(caption=caption, head=("", *(run.name for run in runs)), rows=cells, words=1 + len(runs))


def _with_interval(score: Score | None) -> str:
    return f"{number(score.value)} {interval(score.low, score.high)}" if score else NOTHING


def _section(run: Run, name: str) -> Mapping[str, Any]:
    section = run.config.get(name)
    return section if isinstance(section, Mapping) else {}


def _part(run: Run, name: str) -> Mapping[str, Any]:
    part = run.summary.get(name)
    return part if isinstance(part, Mapping) else {}


def _facts(run: Run, stage: str) -> Mapping[str, Any]:
    return run.stages[stage].facts if stage in run.stages else {}


def _plain(value: object) -> str:
    """Settings as people write them: `path: data, limit: 200`."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_plain(v)}" for k, v in value.items() if v is not None) or NOTHING
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_plain, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return ABSENT if value is None else repr(value) if isinstance(value, str) and value.strip() != value else str(value)


def _rationales(run: Run, name: str, digits: int) -> str:
    # A method that plans none has none; that is recorded.
    is_planned = bool(_part(run, "rationales")) or not run.summary
    return number(_part(run, "rationales").get(name), digits) if is_planned else NOTHING


def _lengths(lengths: Mapping[str, Any]) -> str:
    return ", ".join(count(lengths[k]) for k in ("min", "median", "p95", "max") if k in lengths) or ABSENT


def _versions(stages: Sequence[StageRecord] | Any) -> dict[str, str]:
    found: dict[str, dict[str, None]] = {}
    for stage in stages:
        for name, version in stage.versions.items():
            found.setdefault(name, {})[version] = None
    return {name: ", ".join(all_of_them) for name, all_of_them in found.items()}
