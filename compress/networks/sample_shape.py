"""Which sample shapes a network can take."""

from __future__ import annotations

from deploy.errors import UserError


def require_image(
    network: str, input_shape: tuple[int, ...], *, least: tuple[int, int]
) -> tuple[int, int, int]:
    """Return ``input_shape`` as ``(height, width, channels)`` if it is at least that large.

    Args:
        network: the name that the message gives.
        input_shape: shape of one sample.
        least: the smallest height and width the network can take, in pixels.

    Raises:
        UserError: if the sample has not three axes, or is smaller than ``least``.

    >>> require_image("lenet_5", (28, 28, 1), least=(16, 16))
    (28, 28, 1)
    """
    if len(input_shape) != 3:
        raise UserError(
            f"{network}: needs samples of shape (height, width, channels), got {input_shape}; "
            f"add a reshape to the preprocessing"
        )
    height, width, channels = input_shape
    if height < least[0] or width < least[1]:
        raise UserError(
            f"{network}: needs images of at least {least[0]} × {least[1]} pixels, "
            f"got {height} × {width}; add a resize to the preprocessing or choose another network"
        )
    return height, width, channels
