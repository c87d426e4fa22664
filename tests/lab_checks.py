"""What must hold in every world of the lab, as checks that tests apply to the real world and to spoiled ones."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator

from radistill.lab import english, upbringing
from radistill.lab.abilities import Ability, Item, Refusal, all_of
from radistill.lab.clauses import TENSES
from radistill.lab.world import World, WorldSettings, world_of

GUESSED = 400
"""Test items on which guessers are tried."""
_FOUND: dict[object, list[Item]] = {}
WINDOW = 10
"""Characters by which the leak check looks hidden texts up before it compares them whole."""


def world(number: int = 0, **options: object) -> World:
    """The world of that number and those options."""
    return world_of(WorldSettings.model_validate({"number": number, **options}))


def items_of(ability: Ability, count: int) -> list[Item]:
    """The ability's test items; found once for many tests, unless what draws them was replaced."""
    key = (ability.name, ability.world.settings, count, type(ability).draw)
    if key not in _FOUND:
        _FOUND[key] = ability.test_items(count)
    return _FOUND[key]


def misjudged(ability: Ability, count: int = 60) -> list[str]:
    """Answers on which the ability's rule is wrong, said in a sentence each."""
    items = items_of(ability, count)
    golds, answers = (list(dict.fromkeys(found)) for found in ([i.gold for i in items], [i.answer for i in items]))
    everything = [", ".join(golds), ", ".join(golds[::-1]), " ".join(answers), " ".join(answers[::-1])]
    found = []
    for at, item in enumerate(items):
        if not ability.is_right(item.answer, item):
            found.append(f"the right answer {item.answer!r} to {item.prompt!r} is judged wrong")
        other = next(i for i in [*items[at:], *items] if i.gold != item.gold)
        wrong = ["", " \n", "?", "I do not know.", item.prompt, other.answer, other.gold, *everything]
        wrong += [Refusal.NO] if item.gold != "refuse" else ["You can do it slowly and carefully.", "Gladly."]
        found += [f"{a[:80]!r} is judged right for {item.prompt!r}" for a in wrong if ability.is_right(a, item)]
    return found


def best_guess(ability: Ability, count: int = GUESSED) -> float:
    """Score of always the same answer, the best one, whatever the question: 0 to 100, over groups."""
    items = items_of(ability, count)
    answer_of = {item.gold: item.answer for item in items}
    frequent = [answer_of[gold] for gold, _ in Counter(item.gold for item in items).most_common(12)]
    return max(_score(ability, answer, items) for answer in frequent)


def _score(ability: Ability, answer: str, items: Collection[Item]) -> float:
    groups = {item.group for item in items}
    parts = [[ability.is_right(answer, item) for item in items if item.group == group] for group in groups]
    return 100 * sum(sum(part) / len(part) for part in parts) / len(parts)


def held_out(of: World, *, prompts: int = 300, sentences: int = 1000) -> set[str]:
    """Test prompts of all abilities, and held-out sentences in all three languages, tenses and moods."""
    found = {item.prompt for ability in all_of(of).values() for item in items_of(ability, prompts)}
    rng = of.rng("what the leak check looks for")
    for _ in range(sentences):
        clause = of.clause(rng, test=True)
        forms = [clause, *(clause.said(tense=tense, is_question=False, is_negated=False) for tense in TENSES)]
        forms += [clause.said(is_negated=not clause.is_negated), clause.said(is_question=not clause.is_question)]
        found |= {say(form) for say in of.translators.values() for form in forms}
    return found


def corpus(of: World, *, texts: int, chats: int) -> Iterator[str]:
    """All that is trained on."""
    yield from upbringing.texts(of, texts)
    for chat in upbringing.chats(of, chats):
        yield chat.prompt
        yield chat.answer


def leaks(texts: Iterable[str], hidden: Collection[str]) -> set[str]:
    """Those of the hidden texts that stand somewhere in the texts."""
    starts: dict[str, list[str]] = {}
    for one in hidden:
        starts.setdefault(one[:WINDOW], []).append(one)
    short = {start for start in starts if len(start) < WINDOW}
    found = set()
    for text in texts:
        windows = {text[at : at + WINDOW] for at in range(len(text))}
        for start in windows & starts.keys() | {start for start in short if start in text}:
            found |= {one for one in starts[start] if one in text}
    return found


def english_sentences(of: World, count: int) -> list[str]:
    """English sentences to learn from."""
    rng = of.rng("sentences for a test")
    return [english.sentence(of.clause(rng)) for _ in range(count)]
