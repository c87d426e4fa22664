"""Teach an instruction-tuned LLM a new skill without losing what it already knows (Rationale Distillation)."""

__version__ = "0.1.0"
