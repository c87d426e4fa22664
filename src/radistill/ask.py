"""Ask a model for what the ledger does not hold yet; shared by the stages that let a model write."""

from collections.abc import Sequence
from dataclasses import dataclass

from radistill.backends.base import Generator
from radistill.errors import RunFolderError
from radistill.ledger import Ledger
from radistill.progress import progress
from radistill.records import Generation, Request


@dataclass(frozen=True, slots=True)
class Answered:
    """What asking came to."""

    requests: int
    """Different requests; equal ones are asked once."""
    from_ledger: int
    written: int
    tokens: int
    """Tokens written now, not those that were in the ledger."""
    failed: int


def ask(requests: Sequence[Request], generator: Generator, ledger: Ledger, *, title: str) -> Answered:
    """Answer every request; each unit of work is committed to the ledger before the next begins.

    The cut into units depends on the plan alone, so a run that was killed continues with the same batches.
    """
    unique = list({r.key: r for r in requests}.values())
    lacking = ledger.missing(r.key for r in unique)
    written = tokens = failed = 0
    with progress(title, len(unique)) as shown:
        shown.advance(len(unique) - len(lacking), note=f"{len(unique) - len(lacking):,} from the ledger")
        for unit in generator.units(unique):
            todo = [request for request in unit if request.key in lacking]
            if not todo:
                continue
            answers = generator.answer(todo)
            ledger.append(answers)
            now = sum(a.n_tokens for a in answers)
            written, tokens = written + len(todo), tokens + now
            failed += sum(a.finish_reason == "error" for a in answers)
            shown.advance(len(todo), now, note=f"{failed} failed" if failed else "")
    return Answered(
        requests=len(unique), from_ledger=len(unique) - len(lacking), written=written, tokens=tokens, failed=failed
    )


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
