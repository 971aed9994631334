"""Refuses requests that ask a model for something that it cannot do."""

from __future__ import annotations

from collections.abc import Iterable

from tokka.core import ChatPrompt, Prompt
from tokka.engine_facts import ModelInfo
from tokka.errors import InvalidRequest, UnsupportedParameter


def check_images(prompts: Iterable[Prompt], info: ModelInfo | None) -> None:
    """Raise UnsupportedParameter for images if the model takes none, InvalidRequest for an invalid image."""
    for prompt in prompts:
        for image in prompt.images if isinstance(prompt, ChatPrompt) else ():
            if info is None or not info.takes_images:
                raise UnsupportedParameter(
                    f"Invalid value for '{image.param}.type': images are not supported by this model: send text.",
                    param=f"{image.param}.type",
                )
            if image.problem:
                raise InvalidRequest(f"Invalid value for '{image.param}': {image.problem}.", param=image.param)
