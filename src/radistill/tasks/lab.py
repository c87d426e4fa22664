"""One ability of the pocket model, tested on the held-out questions of its world (`radistill.lab`).

The answer is the reply up to its first blank line, whatever the ability. The known language is scored by BLEU, all
else by the ability's own rule.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, SerializeAsAny, model_validator

from radistill import plugins
from radistill.lab.abilities import AbilityName
from radistill.lab.world import WorldChoice, WorldSettings, settings_of
from radistill.metrics.base import Metric
from radistill.metrics.bleu import BLEU
from radistill.metrics.lab_accuracy import LabAccuracy
from radistill.records import Example, Generation, Message, Prediction, Sampling
from radistill.tasks.base import Kind, Task

if TYPE_CHECKING:
    from radistill.lab.abilities import Ability, Item


class Lab(Task):
    """One ability of the pocket model's world."""

    kind: ClassVar[Kind] = "ability"
    labels: ClassVar[tuple[str, ...]] = ("empty", "truncated", "leaked_rationale")

    ability: AbilityName = "arithmetic"
    """Which one; `radistill lab exam` lists them all."""
    world: WorldChoice = WorldSettings()
    """Which world; its number alone will do."""
    items: int = Field(200, ge=2)
    """So many held-out questions, or all that exist."""
    max_new_tokens: int = Field(96, ge=1)
    """At most so many tokens are written."""
    metrics: tuple[SerializeAsAny[Metric], ...] = Field((LabAccuracy(),), min_length=1)
    """By default BLEU for the known language, and the share of right answers for all others."""

    @model_validator(mode="before")
    @classmethod
    def _judged_by_its_own_rule(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        ability, world = raw.get("ability", "arithmetic"), settings_of(raw.get("world", WorldSettings()))
        rule = LabAccuracy.model_construct(ability=ability, world=world)
        if raw.get("metrics") is None:
            return {**raw, "metrics": (BLEU() if ability == "known-language" else rule,)}
        # Whatever a metric was written with, it judges this ability in this world.
        found = [rule if isinstance(metric, LabAccuracy) else metric for metric in raw["metrics"]]
        return {**raw, "metrics": tuple(found)}

    @property
    def title(self) -> str:
        """The ability's name."""
        return self.ability

    @property
    def chance(self) -> float:
        """Score of a guesser, 0 to 100."""
        return self._ability().chance

    @property
    def is_rehearsed(self) -> bool:
        """Whether this world's rationales touch the ability."""
        from radistill.lab.abilities import touched
        from radistill.lab.world import world_of

        return self.ability in touched(world_of(self.world))

    def examples(self) -> tuple[Example, ...]:
        """The held-out questions."""
        return tuple(map(self._example, self._ability().test_items(self.items)))

    def validation_examples(self, count: int) -> tuple[Example, ...]:
        """The held-out questions that come next, which are no tests; fewer where no more exist."""
        tested = {item.key or item.prompt for item in self._ability().test_items(self.items)}
        more = self._ability().test_items(self.items + count)
        return tuple(self._example(item) for item in more if (item.key or item.prompt) not in tested)

    def sampling(self) -> Sampling:
        """Greedy."""
        return Sampling(temperature=0.0, top_p=1.0, max_new_tokens=self.max_new_tokens)

    def read(self, system: str, example: Example, generation: Generation) -> Prediction:
        """The reply's first paragraph."""
        answer, separator, rest = generation.text.strip().partition("\n\n")
        tests = {
            "empty": not answer,
            "truncated": generation.finish_reason == "length" and not separator,
            "leaked_rationale": bool(rest.strip()),
        }
        failed = generation.finish_reason == "error"
        labels = () if failed else tuple(label for label, holds in tests.items() if holds)
        source = example.messages[-1].content
        return Prediction.of(system, example, generation, source=source, answer=answer.strip(), labels=labels)

    def group(self, tags: Mapping[str, str]) -> str:
        """Direction of translation, harmful or harmless, or the ability itself."""
        return tags.get("group", self.ability)

    def language(self, group: str) -> str:
        """English, by whose rules BLEU cuts words."""
        return "en"

    def reading(self) -> str:
        """Replies are cut at the first blank line."""
        return "blank-line"

    def _example(self, item: "Item") -> Example:
        return Example.of(plugins.name_of(self), (Message("user", item.prompt),), item.gold, _tags(item, self.ability))

    def _ability(self) -> "Ability":
        from radistill.lab.abilities import all_of
        from radistill.lab.world import world_of

        return all_of(world_of(self.world))[self.ability]


def _tags(item: "Item", ability: str) -> dict[str, str]:
    """What is kept about a question; its held-out sentences are what training data are searched for."""
    tags = {"group": item.group or ability, "source": item.prompt, "ability": ability}
    return tags | ({"sentences": "\n".join(item.sentences)} if item.sentences else {})
