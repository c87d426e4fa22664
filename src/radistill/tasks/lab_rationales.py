"""Whether the pocket model's translations into the known language are followed by a well-formed rationale.

Shown beside the abilities and never averaged in: it is what RaDis trains on, not what it is to keep.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, SerializeAsAny, model_validator

from radistill import plugins
from radistill.lab.world import WorldChoice, WorldSettings, settings_of
from radistill.metrics.base import Metric
from radistill.metrics.lab_rationale import LabRationale
from radistill.records import Example, Generation, Message, Prediction, Sampling
from radistill.tasks.base import Kind, Task


class LabRationales(Task):
    """Rationale writing after translations of the known language."""

    kind: ClassVar[Kind] = "probe"
    labels: ClassVar[tuple[str, ...]] = ("empty",)

    world: WorldChoice = WorldSettings()
    """Which world; its number alone will do."""
    items: int = Field(100, ge=2)
    """So many held-out sentences."""
    max_new_tokens: int = Field(128, ge=1)
    """At most so many tokens are written."""
    metrics: tuple[SerializeAsAny[Metric], ...] = Field((LabRationale(),), min_length=1)
    """By default the share of well-formed rationales, in this world."""

    @model_validator(mode="before")
    @classmethod
    def _judged_in_its_own_world(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        rule = LabRationale(world=settings_of(raw.get("world", WorldSettings())))
        # Whatever a metric was written with, it judges in this world.
        found = [rule if isinstance(metric, LabRationale) else metric for metric in raw.get("metrics") or (rule,)]
        return {**raw, "metrics": tuple(found)}

    @property
    def title(self) -> str:
        """What files and tables call it."""
        return "rationales"

    def examples(self) -> tuple[Example, ...]:
        """Translations that are held out."""
        from radistill.lab.abilities import KnownLanguage
        from radistill.lab.world import world_of

        items = KnownLanguage(world_of(self.world)).test_items(self.items)
        name = plugins.name_of(self)
        return tuple(
            Example.of(
                name,
                (Message("user", i.prompt),),
                i.gold,
                {"group": i.group, "source": i.prompt, "sentences": "\n".join(i.sentences)},
            )
            for i in items
        )

    def sampling(self) -> Sampling:
        """Greedy."""
        return Sampling(temperature=0.0, top_p=1.0, max_new_tokens=self.max_new_tokens)

    def read(self, system: str, example: Example, generation: Generation) -> Prediction:
        """What stands after the first blank line."""
        answer = generation.text.strip().partition("\n\n")[2].strip()
        labels = ("empty",) if not answer and generation.finish_reason != "error" else ()
        source = example.messages[-1].content
        return Prediction.of(system, example, generation, source=source, answer=answer, labels=labels)

    def group(self, tags: Mapping[str, str]) -> str:
        """Direction of translation."""
        return tags.get("group", self.title)

    def language(self, group: str) -> str:
        """English."""
        return "en"
