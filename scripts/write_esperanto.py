"""Write docs/evidence/esperanto.md: the grammar of the lab's Esperanto, and 100 of its sentences to be looked through.

python scripts/write_esperanto.py          # writes the page
python scripts/write_esperanto.py --check  # fails if the page is not what it would write
"""

import sys
from pathlib import Path

from radistill.lab.pairs import sentences
from radistill.lab.world import WorldSettings, world_of

PAGE = Path(__file__).resolve().parents[1] / "docs" / "evidence" / "esperanto.md"
INTRODUCTION = """# The lab's Esperanto

Written by `scripts/write_esperanto.py`; do not edit. The rules are those of Zamenhof, *Fundamento de Esperanto* (1905),
"Fundamenta Gramatiko", by number, as far as the lab's sentences need them:

| rule | in the lab |
|---|---|
| 1 | no indefinite article; the definite one is `la`, whatever the number and case |
| 2 | nouns end in `-o`, plural `-oj`, the object in `-n` after that (`-on`, `-ojn`) |
| 3 | adjectives end in `-a` and agree with their noun in number and case (`belajn hundojn`), as predicates in number |
| 4 | numerals do not change: `du`, `dek du` (12), `dudek` (20), `cent`, `mil` |
| 5 | pronouns `mi, vi, li, ŝi, ni, ili`; the lab has them as subjects |
| 6 | verbs do not change for person or number: present `-as`, past `-is`, future `-os`; `esti` is to be |
| 7 | adverbs made of roots end in `-e` |
| 8 | prepositions take the nominative: `en la domo`, `kun amiko` |
| 13 | the accusative of direction (`en la domon`) does not occur: every place is where something happens |
| – | negation: `ne` before the verb; yes-no questions: `ĉu` first, the order unchanged |

Names of people and cities are left as they are. Sentences make grammatical, not worldly, sense. A test
(`tests/test_lab_esperanto.py`) reads generated sentences by a grammar of its own, which knows only endings and word
classes, and compares 30 pairs written by hand.

Below are the first hundred that the pocket model can be taught. They were looked through on 2026-11-28, one by one,
against the rules above, though not by a native speaker: plural, object,
agreement, tense, negation, questions, order, and the case after prepositions. No breach of a rule was found. To know:

- After `anstataŭ` the nominative says that somebody else *does* it; the English leaves open which of the two is meant.
- `falas kontraŭ frato` and `alportos … apud la placo` are right of the place alone; a goal would be in the accusative
  (rule 13).
- Some words are wide for their English: `bovo`, here a cow, is an ox or cattle of either sex (a cow is `bovino`), and a
  short poet would rather be `malalta` than `mallonga`.

| English | Esperanto |
|---|---|
"""


def page() -> str:
    """The page as Markdown."""
    rows = sentences(world_of(WorldSettings()), "pairs", 100)
    return INTRODUCTION + "".join(f"| {english} | {esperanto} |\n" for english, esperanto in rows)


def main() -> int:
    """Write or check."""
    if "--check" in sys.argv[1:]:
        return int(not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page())
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
