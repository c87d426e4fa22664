"""What the lab's commands print."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from radistill.demo_words import Seen
    from radistill.lab.exam import Exam, Mark


def show_exam(found: "Exam") -> None:
    """A model's marks, one line each."""
    # Eighty columns hold it, so that nothing is cut in a plain terminal or a file.
    table = Table(title="points of 100 on held-out items, 95 % interval", title_justify="left", pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("score", no_wrap=True)
    for name in ("95 %", "n", "chance", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("touched", no_wrap=True)
    for mark in found.abilities:
        table.add_row(*_cells(mark), end_section=mark is found.abilities[-1])
    general = found.general
    numbers = (f"{general.value:.1f}", f"[{general.low:.1f}, {general.high:.1f}]")
    table.add_row("general", *numbers, "", "", "", "", end_section=True)
    for mark in found.new_language:
        table.add_row(*_cells(mark))
    table.add_row(*_cells(found.rationales))
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    for mark in (mark for mark in found.abilities if mark.groups):
        console.print(f"{mark.name}: {', '.join(f'{name} {value:.1f}' for name, value in mark.groups.items())}")
    console.print("general: mean of all abilities but the known language; share: of the chats of its upbringing, %;")
    console.print("touched: by rationales; rationales: well-formed, drawn after right translations.")


def show_demo(what: "Seen") -> None:
    """New skill and retention of every run, and what that means in three sentences."""
    from radistill.demo_words import table as rows_of

    console = Console(highlight=False, soft_wrap=True)
    table = Table(title="new skill and what is left of the abilities, 95 % interval", title_justify="left")
    table.add_column("run", no_wrap=True)
    for name in ("learning rate", "Esperanto, BLEU", "retention, %"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows_of(what):
        table.add_row(*row)
    console.print(table)
    plain = Console(highlight=False)
    for sentence in what.sentences:
        plain.print(sentence)
    plain.print("Intervals are over the test items, not over trainings: --seeds 3 shows how far those differ.")
    plain.print("This is a wind tunnel: a small closed world. Larger models must be measured themselves.")


def _cells(mark: "Mark") -> tuple[str, ...]:
    return (
        mark.name,
        f"{mark.value:.1f}{' BLEU' if mark.metric == 'bleu' else ''}",
        f"[{mark.low:.1f}, {mark.high:.1f}]",
        f"{mark.n:,}",
        f"{mark.chance:g}" if mark.share is not None else "",
        f"{mark.share:.1f}" if mark.share is not None else "",
        "" if mark.is_rehearsed is None else "yes" if mark.is_rehearsed else "never",
    )
