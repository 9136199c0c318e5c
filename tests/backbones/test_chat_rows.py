"""Prompts as rows of a data set."""

import io

import numpy as np
import torch
from PIL import Image

from guerdon.backbones.chat_rows import content_of, pictures_of


def test_texts_and_places_of_pictures_stay_in_order():
    picture = torch.randint(0, 256, (3, 4, 6), dtype=torch.uint8)
    prompt = ["before", picture, "behind", 255 - picture]
    assert content_of(prompt) == [
        {"type": "text", "text": "before"},
        {"type": "image", "text": None},
        {"type": "text", "text": "behind"},
        {"type": "image", "text": None},
    ]
    shown = [np.array(Image.open(io.BytesIO(found["bytes"]))) for found in pictures_of(prompt)]
    for image, place in zip(shown, (1, 3), strict=True):
        assert torch.equal(torch.from_numpy(image).permute(2, 0, 1), prompt[place])
    assert content_of([]) == [] == pictures_of([])
