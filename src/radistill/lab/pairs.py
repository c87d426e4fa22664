"""Sentences of a world in English and its new language, as the aligned line files that any tool reads."""

from pathlib import Path

from radistill.files import write_text
from radistill.lab import english
from radistill.lab.clauses import Clause
from radistill.lab.world import World

TRAIN, TEST, COMPARE = 3000, 400, 1350


def write_pairs(
    world: World, folder: Path, *, train: int = TRAIN, test: int = TEST, compare: int = COMPARE
) -> list[Path]:
    """Write train.en-eo.{en,eo} and, for each direction, files of sentences held out; returns the files.

    Args:
        world: whose sentences; its new language gives the code that stands for `eo`.
        folder: where they go.
        train: so many sentences to learn from.
        test: so many to be tested on in each direction.
        compare: so many others, of which a comparison of methods takes a part to choose by and the rest to test on.
    """
    code = world.new.code
    taught = _clauses(world, "pairs", train, test=False)
    tested = _clauses(world, "test-pairs", 2 * test, test=True)
    compared = _clauses(world, "compare-pairs", 2 * compare, test=True)
    parts = {
        f"train.en-{code}": taught,
        f"test.en-{code}": tested[:test],
        f"test.{code}-en": tested[test:],
        f"compare.en-{code}": compared[:compare],
        f"compare.{code}-en": compared[compare:],
    }
    written = []
    for name, clauses in parts.items():
        for language in (english.CODE, code):
            say = world.translators[language]
            path = folder / f"{name}.{language}"
            write_text(path, "".join(f"{say(clause)}\n" for clause in clauses))
            written.append(path)
    return written


def sentences(world: World, purpose: str, count: int) -> list[tuple[str, str]]:
    """So many sentences to learn from, in English and the new language; another purpose gives others."""
    return [(english.sentence(c), world.new.sentence(c)) for c in _clauses(world, purpose, count, test=False)]


def _clauses(world: World, purpose: str, count: int, *, test: bool) -> list[Clause]:
    """So many different clauses of one side of the split; always the same."""
    rng = world.rng(purpose)
    found: dict[str, Clause] = {}
    while len(found) < count:
        clause = world.clause(rng, test=test)
        found.setdefault(clause.key, clause)
    return list(found.values())
