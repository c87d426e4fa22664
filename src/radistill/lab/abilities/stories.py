"""Little stories, told by the pocket model and checked line by line."""

import random
import re

from radistill.lab import english
from radistill.lab.abilities.base import Ability, Item
from radistill.lab.lexicon import of_kind


class Stories(Ability):
    """Little stories about somebody and something."""

    name, share = "stories", 2.5
    WORDINGS = (
        "Tell a story about {p} and {t}.",
        "Write a short story about {p} and {t}.",
        "I want to hear a story about {p} and {t}.",
        "Make up a story with {p} and {t}.",
        "Can you tell me about {p} and {t}? A story, please.",
    )
    LINES = (
        ("Once upon a time {p} lived in {c}.", "There once was {p}, who lived in {c}.", "Long ago {p} came to {c}."),
        (
            "One day {p} found {t} in the {g}.",
            "One morning {p} saw {t} near the {g}.",
            "Then {p} met {o} who had {t}.",
        ),
        ("It was {q} and {r}.", "It looked {q}, but it was {r}.", "Nobody knew that it was {q} and {r}."),
        ("{p} kept it for {n} years.", "{p} gave it to {o}.", "{p} took it home to {c}."),
        ("Since then everybody in {c} is happy.", "That is the end of the story.", "And {p} was never sad again."),
    )

    def draw(self, rng: random.Random) -> Item:
        """Somebody, something, and one of very many stories."""
        thing = english.with_article(rng.choice(of_kind("animal", "thing")).english)
        person = rng.choice(self.world.people)
        text = self.tell(rng, person, thing)
        return Item(rng.choice(self.WORDINGS).format(p=person, t=thing), text, f"{person}|{thing}")

    def tell(self, rng: random.Random, person: str, thing: str) -> str:
        """One story."""
        adjectives = [word.english for word in rng.sample(of_kind("adjective"), 2)]
        slots = {
            "p": person,
            "t": thing,
            "c": rng.choice(self.world.cities),
            "g": rng.choice(of_kind("place")).english,
            "o": english.with_article(rng.choice(of_kind("person")).english),
            "q": adjectives[0],
            "r": adjectives[1],
            "n": rng.choice(of_kind("number")).english,
        }
        return " ".join(rng.choice(line).format(**slots) for line in self.LINES)

    def is_right(self, answer: str, item: Item) -> bool:
        """Five sentences of the right forms, about these two, in one city."""
        person, thing = item.gold.split("|")
        at, city = 0, ""
        for line in self.LINES:
            found = next((m for form in line if (m := self._form(form, person, thing).match(answer, at))), None)
            if found is None:
                return False
            told = found.groupdict().get("c") or city
            if (city and told != city) or (told and told not in self.world.cities):
                return False
            at, city = found.end(), told
        return not answer[at:].strip()

    def _form(self, form: str, person: str, thing: str) -> re.Pattern[str]:
        kinds = {"g": ("place",), "q": ("adjective",), "r": ("adjective",), "n": ("number",)}
        slots = {key: f"(?:{'|'.join(w.english for w in of_kind(*of))})" for key, of in kinds.items()}
        slots["o"] = f"(?:{'|'.join(english.with_article(w.english) for w in of_kind('person'))})"
        slots |= {"p": re.escape(person), "t": re.escape(thing), "c": r"(?P<c>[A-Z][a-z]+)"}
        pattern = re.sub(r"\{(\w)\}", lambda m: slots[m[1]], re.sub(r"[.?]", lambda m: "\\" + m[0], form))
        return re.compile(pattern + r"\s*")
