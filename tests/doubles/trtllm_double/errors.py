"""Errors with the names they have in TensorRT-LLM."""

from __future__ import annotations


class RequestError(RuntimeError):
    """One request failed; the LLM can be used on."""


class HFValidationError(ValueError):
    """Of huggingface_hub: what was given as a model is neither a folder nor the name of a repository."""
