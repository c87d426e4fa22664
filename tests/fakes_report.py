"""A finished run folder without a model: three directions, twenty items each, answers made by rule.

The untouched model drops and swaps words and goes on to explain; the tuned one errs less and stops. Everything is
drawn from `radistill.seeds`, so the numbers in a report of it are the same on every machine.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from radistill import stats
from radistill.files import sha256, write_json, write_text
from radistill.metrics.bleu import BLEU
from radistill.records import Prediction, Segment, StageRecord, TrainingRecord, digest
from radistill.report import collect, schema, write_report
from radistill.runs import RunFolder
from radistill.seeds import generator
from radistill.tables import write_jsonl, write_predictions, write_records
from radistill.tasks.base import Task
from radistill.tasks.translation import Translation

TRIPLES = [
    tuple(line.split(" | "))
    for line in """\
The train to Hamburg leaves at nine. | Der Zug nach Hamburg fährt um neun Uhr ab. | 开往汉堡的火车九点出发。
She has been working here for ten years. | Sie arbeitet seit zehn Jahren hier. | 她在这里工作了十年。
The council rejected the plan on Monday. | Der Rat lehnte den Plan am Montag ab. | 委员会星期一否决了这项计划。
Nobody was hurt in the accident. | Bei dem Unfall wurde niemand verletzt. | 事故中没有人受伤。
Prices rose by three percent last month. | Die Preise stiegen im letzten Monat um drei Prozent. | 上月物价涨了百分之三。
The bridge will be closed until the end of May. | Die Brücke bleibt bis Ende Mai gesperrt. | 这座桥将关闭到五月底。
He apologised for the late reply. | Er entschuldigte sich für die späte Antwort. | 他为回复迟了而道歉。
The museum opens at ten in the morning. | Das Museum öffnet um zehn Uhr morgens. | 博物馆上午十点开门。
Two new schools are being built in the north. | Im Norden werden zwei neue Schulen gebaut. | 北部正在建两所新学校。
Please send me the order number. | Bitte senden Sie mir die Bestellnummer. | 请把订单号发给我。
The storm damaged several roofs. | Der Sturm beschädigte mehrere Dächer. | 暴风雨损坏了几处屋顶。
Researchers found a new species of frog. | Forscher fanden eine neue Froschart. | 研究人员发现了一种新的青蛙。
The team lost its third game in a row. | Die Mannschaft verlor ihr drittes Spiel in Folge. | 这支球队三连败。
You can return the shoes within two weeks. | Sie können die Schuhe binnen zwei Wochen zurückgeben. | 鞋子两周内可退。
The minister will visit Prague tomorrow. | Der Minister wird morgen Prag besuchen. | 部长明天将访问布拉格。
Water is more expensive than last year. | Wasser ist teurer als im letzten Jahr. | 水比去年贵。
The court will decide in the autumn. | Das Gericht wird im Herbst entscheiden. | 法院将在秋天作出裁决。
Most of the guests came by bicycle. | Die meisten Gäste kamen mit dem Fahrrad. | 大多数客人骑自行车来。
The old library was turned into a theatre. | Die alte Bibliothek wurde zum Theater. | 旧图书馆改成了剧院。
We are looking for volunteers for Saturday. | Wir suchen Freiwillige für Samstag. | 我们正在为星期六招募志愿者。
""".splitlines()
]
QUICK: dict[str, Task] = {"translation": Translation(metrics=(BLEU(),))}
VOID = {"meta", "link", "br", "hr", "img", "input"}
PAIRS = {"de-en": (1, 0), "en-de": (0, 1), "zh-en": (2, 0)}
RATIONALE = (
    "\n\nExplanation:\n1. I kept the tense of the source.\n"
    "2. “{word}” could also be rendered more freely.\n"
    "3. The word order follows what is usual in written {language}."
)
LANGUAGES = {"de": "German", "en": "English"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """How often a made-up model errs."""

    swaps: float
    explains: float
    fails: float = 0.0


BASE = Habits(swaps=0.30, explains=0.85, fails=0.05)
TUNED = Habits(swaps=0.12, explains=0.10)


def predictions(system: str, habits: Habits, *, seed: int = 0, pairs: Sequence[str] = tuple(PAIRS)) -> list[Prediction]:
    """Twenty answers per direction."""
    found = []
    for pair in pairs:
        source, target = PAIRS[pair]
        for ordinal, triple in enumerate(TRIPLES):
            rng = generator(seed, "fake", system, pair, ordinal)
            answer = "" if rng.random() < habits.fails else _worse(triple[target], habits.swaps, rng)
            extra = RATIONALE.format(word=triple[target].split()[0], language=LANGUAGES[pair[-2:]])
            explains = bool(answer) and bool(rng.random() < habits.explains)
            found.append(
                Prediction(
                    system=system,
                    example_id=digest("fake", pair, ordinal),
                    key=digest(system, pair, ordinal),
                    source=triple[source],
                    reference=triple[target],
                    raw=answer + extra if explains else answer,
                    answer=answer,
                    finish_reason="stop",
                    n_tokens=len(answer.split()) * 2 + 40 * explains,
                    labels=("leaked_rationale",) * explains if answer else ("empty",),
                    tags={"pair": pair, "split": "test"},
                )
            )
    return found


def run_folder(
    path: Path,
    *,
    method: str = "radis",
    tuned: Habits = TUNED,
    answers: Sequence[Prediction] | None = None,
    seed: int = 0,
) -> RunFolder:
    """A finished run of that method in `path`."""
    run = RunFolder(path)
    name = path.name
    write_text(run.config, CONFIG.format(name=name, method=method, path=path.as_posix(), seed=seed))
    rows = list(answers) if answers is not None else [*predictions("base", BASE), *predictions(name, tuned, seed=seed)]
    write_predictions(run.predictions("translation"), rows)
    origins = ("reference", "separator", "rationale", "end") if method == "radis" else ("reference", "end")
    write_records(run.records, _records(origins))
    write_json(run.summary, _summary(origins))
    write_jsonl(run.train_log, _log(origins, seed))
    for record in _stages(run, method):
        run.put_stage(record)
    return run


def hostile(row: Prediction, text: str) -> Prediction:
    """The prediction, with that text wherever other people's text can be."""
    return replace(row, raw=text + "\n\n" + text, answer=text, source=text, reference=text)


class Page(HTMLParser):
    """Every tag with its attributes, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, *names: str) -> list[dict[str, str]]:
        return [attrs for tag, attrs in self.tags if tag in names]


@contextmanager
def fewer_draws() -> Iterator[None]:
    """The bootstrap has its own tests; here it need only be the same everywhere."""
    with pytest.MonkeyPatch.context() as patch:
        defaults: dict[str, Any] = stats.draw.__kwdefaults__ or {}
        assert defaults["draws"] == stats.DRAWS
        patch.setitem(defaults, "draws", 200)
        yield


def numbers_of(*runs: RunFolder, tasks: Mapping[str, Task] = QUICK) -> dict[str, Any]:
    """What report.json would hold, checked against its schema."""
    found = collect(runs, margin=0.02, seed=0, tasks=tasks).numbers
    Draft202012Validator(schema()).validate(found)
    return found


def report(runs: Sequence[RunFolder], output: Path, **options: Any) -> tuple[dict[str, Any], Page, str]:
    """report.json, report.html and report.md of the runs, written and read back."""
    write_report(runs, output, **{"margin": 0.02, "seed": 0, "tasks": QUICK, **options})
    html, markdown = ((output / f"report.{e}").read_text(encoding="utf-8") for e in ("html", "md"))
    numbers = json.loads((output / "report.json").read_text(encoding="utf-8"))
    Draft202012Validator(schema()).validate(numbers)
    return numbers, Page(html), markdown


def two_runs(root: Path) -> tuple[list[RunFolder], Path]:
    """RaDis and vanilla, and a report on both."""
    runs = [
        run_folder(root / "alma-radis"),
        run_folder(root / "alma-vanilla", method="vanilla", tuned=Habits(swaps=0.2, explains=0.0)),
    ]
    # Without `tasks`, so that they are made from the run files as on the command line.
    write_report(runs, root / "report", margin=0.02, seed=0, title="Two ways")
    return runs, root / "report"


def _worse(text: str, rate: float, rng: Any) -> str:
    parts = text.split(" ") if " " in text else list(text)
    kept = [p if rng.random() >= rate else p[: len(p) // 2] + "…" for p in parts]
    return (" " if " " in text else "").join(kept)


def _records(origins: Sequence[str]) -> list[TrainingRecord]:
    records = []
    for ordinal, (english, german, _) in enumerate(TRIPLES):
        prompt = f"<s>[INST] Translate this from German to English:\nGerman: {german}\nEnglish: [/INST]"
        texts = {"prompt": prompt, "reference": english, "separator": "\n\n", "end": "</s>"}
        texts["rationale"] = RATIONALE.format(word=english.split()[0], language="English").strip()
        at, segments = 0, []
        for origin in ("prompt", *origins):
            stop = at + max(1, len(texts[origin]) // 4)
            segments.append(Segment(origin, at, stop, 0.0 if origin == "prompt" else 1.0))  # type: ignore[arg-type]
            at = stop
        spelled = tuple(texts[s.origin] for s in segments)
        name = digest("record", ordinal)
        record = TrainingRecord(
            id=name, example_id=name, token_ids=tuple(range(at)), segments=tuple(segments), texts=spelled
        )
        records.append(record)
    return records


def _summary(origins: Sequence[str]) -> dict[str, Any]:
    tokens = {"prompt": 88_210, "reference": 61_904, "separator": 1_978, "rationale": 214_377, "end": 1_861}
    trained = {origin: tokens[origin] for origin in origins}
    rationales = {"written": 1989, "empty": 11, "stopped": 1861, "cut": 128, "mean_tokens": 107.8}
    return {
        "records": 1978,
        "examples": 2000,
        "dropped": {"refusal": 9, "repetition loop": 13},
        "tokens": {"prompt": tokens["prompt"], **trained},
        "trained_tokens": trained,
        "weight_share": {origin: trained[origin] / sum(trained.values()) for origin in origins},
        "lengths": {"min": 41, "median": 178, "mean": 186.2, "p95": 402, "max": 640},
        "rationales": rationales if "rationale" in origins else {},
        "notes": [],
    }


def _log(origins: Sequence[str], seed: int) -> list[dict[str, Any]]:
    noise = generator(seed, "fake", "log")
    start = {"reference": (1.6, 0.9), "separator": (0.2, 0.01), "rationale": (0.5, 0.35), "end": (0.4, 0.05)}
    rows = []
    for step in range(5, 305, 5):
        row: dict[str, Any] = {"step": step, "epoch": step / 300}
        for origin in origins:
            high, low = start[origin]
            row[f"loss/{origin}"] = low + (high - low) * math.exp(-step / 60) + float(noise.normal(0, 0.02))
        row |= {"loss": row["loss/reference"], "learning_rate": 1e-4 * (1 - step / 300), "grad_norm": 0.8}
        rows.append(row | {"tokens": step * 1200, "tokens_per_second": 2300.0})
    return rows


def _stages(run: RunFolder, method: str) -> list[StageRecord]:
    facts: dict[str, dict[str, Any]] = {
        "generate": {"requests": 2000, "from_ledger": 0, "written": 2000, "tokens": 214_377, "rejected": 3},
        "assemble": {"records": 1978},
        "train": {
            "tokens_trained": 278_142 if method == "radis" else 63_765,
            "tokens_processed": 366_352 if method == "radis" else 151_975,
            "steps": 300,
            "parameters": 6_738_415_616,
            "trainable": 39_976_960,
        },
        "evaluate": {"predictions": 120, "tokens": 5_120},
    }
    seconds = {"generate": 841.2, "assemble": 3.9, "train": 1620.5, "evaluate": 95.25}
    made = {"assemble": run.records, "train": run.train_log, "evaluate": run.predictions("translation")}
    return [
        StageRecord(
            stage=stage,
            status="finished",
            settings={},
            inputs={"data/train.de-en.json": digest("train") * 2},
            outputs={made[stage].relative_to(run.path).as_posix(): sha256(made[stage])} if stage in made else {},
            versions={"python": "3.11.2", "torch": "2.13.0", "transformers": "5.23.0", "sacrebleu": "2.6.0"},
            device="NVIDIA H200",
            started_at="2026-11-20T09:00:00+00:00",
            seconds=seconds[stage],
            facts=facts[stage],
        )
        for stage in seconds
        if method == "radis" or stage != "generate"
    ]


CONFIG = """\
name: {name}
model: mistralai/Mistral-7B-Instruct-v0.2
output_dir: {path}
seed: {seed}
data:
  task: translation
  train: {{path: data/alma/deen, format: auto, pairs: [de-en, en-de], limit: 2000}}
  test: {{path: data/alma/deen, split: test, pairs: [de-en, en-de, zh-en], limit: 20}}
method: {{name: {method}}}
train: {{weighting: tokens, labels: hard, learning_rate: 1.0e-4, num_train_epochs: 1}}
evaluate:
  - {{task: translation, metrics: [bleu, chrf]}}
report: {{margin: 0.02}}
"""
