"""Images in messages: the part of a chat message, and the check of a data URL."""

from __future__ import annotations

import binascii
import re
from typing import Literal

from pydantic import Field

from tokka.core import Image
from tokka.protocol.common import OpenModel, Text

# Media types that image models read.
MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")
_DATA_URL = re.compile(r"data:([a-z]+/[a-z0-9.+-]+);base64,", re.IGNORECASE)


class ImageUrl(OpenModel):
    """The URL of an image, and how closely the model should look at it."""

    url: Text = Field(description="`data:image/png;base64,...`; also jpeg, webp and gif. The server fetches no URLs.")
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(OpenModel):
    """An image in a message of the user. Only for models that take images."""

    type: Literal["image_url"]
    # Some clients send the URL alone.
    image_url: ImageUrl | Text

    @property
    def url(self) -> str:
        return self.image_url if isinstance(self.image_url, str) else self.image_url.url


def image_of(url: str, param: str) -> Image:
    """Return the image of a message's part. `param`: the place of the part in the body."""
    return Image(url, param, _problem(url))


def _problem(url: str) -> str | None:
    """Return why no model can take the URL, or None. A model that takes no images has another reason."""
    match = _DATA_URL.match(url)
    if match is None:
        return "The server fetches no images. Send a data URL, like data:image/png;base64,..."
    if match[1].lower() not in MEDIA_TYPES:
        return f"An image must be one of {', '.join(MEDIA_TYPES)}"
    try:
        data = binascii.a2b_base64(url[match.end() :], strict_mode=True)
    except (binascii.Error, ValueError):
        return "The data of the image is not base64"
    return None if data else "The image is empty"
