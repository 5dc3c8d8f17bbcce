"""Real photographs that lie in installed packages: two of scikit-learn, one of matplotlib.

Each crop has a place, a scale and a brightness of its own, so that no codec gains from repetition: resampling leaves no
two crops with the same bytes. All three were JPEG files; what that took away is missing here too.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional


@cache
def photos() -> tuple[Tensor, ...]:
    """Return the photos, ``[height, width, 3]`` uint8."""
    # Imported late: matplotlib is slow to import and most processes of a benchmark need no photo.
    import matplotlib.cbook
    import matplotlib.image
    from sklearn.datasets import load_sample_images

    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        portrait = matplotlib.image.imread(file, format="jpg")
    return tuple(torch.from_numpy(each.copy()) for each in (*load_sample_images().images, portrait))


def crops(count: int, side: int) -> Tensor:
    """Return random crops, scaled down to one size, mirrored and made lighter or darker, ``[count, side, side, 3]``."""
    generator = torch.Generator().manual_seed(0)
    result = torch.empty(count, side, side, 3, dtype=torch.uint8)
    for number in range(count):
        photo = photos()[number % 3].permute(2, 0, 1)
        shares = torch.rand(4, generator=generator).tolist()
        size = round(side + shares[0] * (min(photo.shape[1:]) - side)) if side < min(photo.shape[1:]) else side
        top, left = (round(share * (extent - size)) for share, extent in zip(shares[1:3], photo.shape[1:], strict=True))
        part = photo[None, :, top : top + size, left : left + size].float() * (0.8 + 0.4 * shares[3])
        if number % 2:
            part = part.flip(-1)
        scaled = functional.interpolate(part, (side, side), mode="bilinear", antialias=True)
        result[number] = scaled[0].round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
    return result
