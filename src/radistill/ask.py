"""Ask a model for what the ledger does not hold yet; shared by the stages that let a model write."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from radistill.backends.base import Flowing, Generator, Window
from radistill.errors import BackendError, RunFolderError
from radistill.events import Events
from radistill.known import Known
from radistill.ledger import Ledger
from radistill.progress import Progress, progress
from radistill.records import Generation, Request

WINDOW = 16_384
"""So many requests of a plan are sorted into batches together: memory does not grow with the plan."""


@dataclass(slots=True)
class Answered:
    """What asking came to."""

    requests: int = 0
    """Different requests; equal ones are asked once."""
    from_ledger: int = 0
    """Of them, those that were answered before."""
    written: int = 0
    tokens: int = 0
    """Tokens written now, not those that were in the ledger."""
    tokens_read: int = 0
    """Tokens of the prompts of what was written now."""
    failed: int = 0
    """Requests without a good answer: those that failed now, and those that have failed too often before."""
    given_up: int = 0
    """Of them, those that are not asked again."""
    generations: int = 0
    """Written now; several where a request asks for several."""
    cut: int = 0
    """Of them, those that ended at the limit of tokens."""
    empty: int = 0

    def __add__(self, other: "Answered") -> "Answered":
        return Answered(*(getattr(self, name) + getattr(other, name) for name in Answered.__slots__))

    def count(self, generations: Sequence[Generation], prompts: dict[str, int]) -> None:
        """What was written together; `prompts` are the tokens of each request."""
        bad = {g.key for g in generations if g.finish_reason == "error"}
        self.written += len({g.key for g in generations})
        self.generations += len(generations)
        self.tokens += sum(g.n_tokens for g in generations)
        self.tokens_read += sum(prompts[g.key] for g in generations)
        self.failed += len(bad)
        written = [g for g in generations if g.logprobs is None and g.finish_reason != "error"]
        self.cut += sum(g.finish_reason == "length" for g in written)
        self.empty += sum(not g.token_ids for g in written)

    @property
    def note(self) -> str:
        """For the progress line: what is not as it should be, and the cost so far."""
        parts = [f"{self.failed:,} failed"] if self.failed else []
        for count, what in ((self.cut, "cut by length"), (self.empty, "empty")):
            if count:
                parts.append(f"{count / self.generations:.1%} {what}")
        if self.written:
            parts.append(f"{self.tokens_read:,} tokens read, {self.tokens:,} written")
        elif self.from_ledger:
            parts.append(f"{self.from_ledger:,} from the ledger")
        return ", ".join(parts)


def ask(
    requests: Iterable[Request],
    generator: Generator,
    ledger: Ledger,
    *,
    title: str,
    total: int | None = None,
    attempts: int | None = None,
    events: Events | None = None,
    begun: Callable[[], None] = lambda: None,
) -> Answered:
    """Answer every request; what an engine gives together is committed to the ledger before it is asked for more.

    Args:
        requests: what is asked, addressed to this generator.
        generator: who answers.
        ledger: holds all answers.
        title: of the progress line.
        total: how many requests there are, if that is not `len(requests)`.
        attempts: what has failed so often is not asked again; None = it always is.
        events: a log to which progress is written.
        begun: called whenever something is about to be committed.
    """
    done = Answered()
    if total is None:
        requests = requests if isinstance(requests, Sequence) else list(requests)
        total = len(requests)
    with progress(title, total) as shown, (events or Events()).of(title, total, done) as log:
        plan = _Plan(requests, ledger, attempts, done, shown)
        for answers in _answers(generator, plan.windows()):
            before = done.written, done.tokens
            begun()
            ledger.append(answers)
            done.count(answers, plan.prompts)
            plan.forget(answers)
            shown.advance(done.written - before[0], done.tokens - before[1], note=done.note)
            log()
        plan.refuse_silence()
    return done


def _answers(generator: Generator, windows: Iterator[Window]) -> Iterator[Sequence[Generation]]:
    if isinstance(generator, Flowing):
        yield from generator.flow(windows)
    else:
        for window in windows:
            yield from generator.answers(window.plan, window.lacking)


@dataclass
class _Plan:
    """Requests, looked up in the ledger as they are needed."""

    requests: Iterable[Request]
    ledger: Ledger
    attempts: int | None
    done: Answered
    shown: Progress
    prompts: dict[str, int] = field(default_factory=dict)
    """Tokens of the prompts of what is asked, by key, until it is answered."""

    def forget(self, generations: Sequence[Generation]) -> None:
        """These are answered."""
        for key in {g.key for g in generations}:
            del self.prompts[key]

    def refuse_silence(self) -> None:
        """Every request has an answer at the end, if only that it failed.

        Raises:
            BackendError: an engine has left some out.
        """
        if self.prompts:
            raise BackendError(
                f"the engine gave no answer to {len(self.prompts):,} requests (key {min(self.prompts)}) and said "
                "nothing of it. What was written is kept: run the same command again."
            )

    def windows(self) -> Iterator[Window]:
        """The plan piece by piece, and what of it is to be asked."""
        known, rest, done = Known(), iter(self.requests), self.done
        while some := list(islice(rest, WINDOW)):
            different = {r.key: r for r in some if known.add(r.key)}
            lacking = self.ledger.missing(different, attempts=self.attempts)
            done.requests += len(different)
            done.given_up += (given_up := len(self.ledger.failures(different.keys() - lacking)))
            done.failed += given_up
            done.from_ledger += len(different) - len(lacking) - given_up
            self.prompts |= {key: len(different[key].prompt_ids) for key in lacking}
            self.shown.advance(len(some) - len(lacking), note=done.note, before=True)
            yield Window(list(different.values()), lacking)


def answers_to(requests: Sequence[Request], ledger: Ledger) -> dict[str, list[Generation]]:
    """What the ledger holds for these requests, by key.

    Raises:
        RunFolderError: some of them were asked, and are there no longer.
    """
    answers = ledger.read(r.key for r in requests)
    lost = {r.key for r in requests} - answers.keys()
    if lost:
        raise RunFolderError(
            f"the ledger {ledger.path} has lost {len(lost)} answers that were written (key {min(lost)}): its shards "
            "were changed or damaged. Run the same command again: what is lost is asked for again."
        )
    return answers
