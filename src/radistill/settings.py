"""The base class of everything a user can set.

A plugin's settings *are* the plugin: `RaDis(rationale_weight=0.5)`. Help, YAML check, JSON schema, manifest and
report are derived from the fields and from the docstring under each field.
"""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Frozen, comparable, printable; unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )
