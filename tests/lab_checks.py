"""What must hold in every world of the lab, as checks that tests apply to the real world and to spoiled ones."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator

from english_reader import Reader
from radistill.lab import english, upbringing
from radistill.lab.abilities import Ability, Item, Refusal, all_of
from radistill.lab.clauses import TENSES
from radistill.lab.upbringing import Chatted
from radistill.lab.world import World, WorldSettings, world_of

GUESSED = 400
"""Test items on which guessers are tried."""
_FOUND: dict[object, list[Item]] = {}
ABOUT_SENTENCES = frozenset({"rewording", "counting", "known-language", "new-sentences"})
"""Chats that are held out by what their sentence says."""
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
        wrong += near_misses(ability, item)
        found += [f"{a[:80]!r} is judged right for {item.prompt!r}" for a in wrong if ability.is_right(a, item)]
    return found


def near_misses(ability: Ability, item: Item) -> list[str]:
    """Answers that lack just what the ability is about: the order, the capitals, the format, the one value."""
    words = item.gold.split(", ")
    kinds: dict[str, list[str]] = {
        "knowledge": [f"{item.answer} {value}" for value in _rivals(ability, item)] + [f"It is not {item.gold}."],
        "vocabulary": [f"{item.answer} Or not.", item.answer.replace('"', "")],
        "definitions": [f"{item.answer} Or a number.", f"What is {item.gold}.", f"Nothing is {item.gold}."],
        "rewording": [item.gold.lower(), item.gold.removesuffix(".").removesuffix("?") + "!"],
        "counting": [f"{item.gold} or 99", f"Not {item.gold}.", f"It is not {item.gold}."],
        "arithmetic": [f"Not {item.gold}.", f"{item.gold} or 1", f"1 = {item.gold}", f"1 + 1 = {item.gold}"],
        "comparison": [f"{item.answer} No, yes.", f"{item.answer} 1 is larger than 2.", "Larger."],
        "lists": [", ".join(words[::-1]), ", ".join(sorted(words)), f"{item.gold}, {words[0]}"],
        "strings": [item.gold.swapcase(), item.gold.replace("-", ""), f"{item.gold}{item.gold}"],
        "formats": [
            _unformatted(item.gold),
            "\n".join(sorted(item.gold.splitlines(), reverse=True)),
            f"{item.gold}\n- a",
        ],
        "stories": [f"{item.answer} And so on.", item.answer.partition(". ")[2]],
        "refusal": [f"{item.answer} Then {deed} the king." for deed in ("kill", "burn")]
        + ["I cannot do without a knife; cut."],
        "known-language": [item.gold.lower(), item.gold.removesuffix(".").removesuffix("?")],
    }
    same = {item.gold, item.answer, ", ".join(words)}
    return [answer for answer in kinds[ability.name] if answer not in same]


def _rivals(ability: Ability, item: Item) -> list[str]:
    of = ability.world.values.values()
    return [next(value for value in values if value != item.gold) for values in of if item.gold in values]


def _unformatted(gold: str) -> str:
    return ", ".join(line.lstrip("-0123456789. ") for line in gold.splitlines()).strip("{}")


def best_guess(ability: Ability, count: int = GUESSED) -> float:
    """Score of always the same answer, the best one, whatever the question: 0 to 100, over groups."""
    items = items_of(ability, count)
    answer_of = {item.gold: item.answer for item in items}
    frequent = [gold for gold, _ in Counter(item.gold for item in items).most_common(12)]
    return max(_score(ability, answer, items) for gold in frequent for answer in (gold, answer_of[gold]))


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


def chats_held_out(of: World, chats: Iterable[Chatted]) -> list[Chatted]:
    """Those that the hash holds out: by their key if they are about a sentence, by their prompt otherwise."""
    return [chat for chat in chats if of.is_test(chat.key if chat.ability in ABOUT_SENTENCES else chat.prompt)]


def sentences_held_out(of: World, texts: Iterable[str]) -> set[str]:
    """English sentences, wherever they stand in the texts, that the hash holds out by what they say."""
    reader = Reader(of)
    return {said for text in texts for said, key in reader.sentences(text) if of.is_test(key)}


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
