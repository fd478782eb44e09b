"""Arrays and tensors to uint8 RGB: layout, dtype, range."""

import numpy as np

from sktl.inputs._errors import RowError

N_CHANNELS = (1, 3, 4)
_ROUNDING = 1e-6  # float32 arithmetic that should end at 1.0 may end a few ulp above


def to_numpy(array) -> np.ndarray:
    """Bring an array, or a tensor of any device, to numpy; numpy arrays and CPU tensors are not copied.

    Parameters
    ----------
    array : array-like or tensor
        Anything with ``__array__``, or a torch tensor.

    Returns
    -------
    array : ndarray
        The same values.
    """
    try:
        if hasattr(array, "detach") and hasattr(array, "cpu"):
            array = array.detach().cpu()
            array = array.float() if array.is_floating_point() else array.resolve_conj().resolve_neg()
        return np.asarray(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RowError(f"cannot be read as an array: {error}") from error


def find_layout(shape: tuple[int, ...], channels: str | None) -> str:
    """Say whether a colour image has its channels first or last.

    Parameters
    ----------
    shape : tuple of 3 int
        Shape of one image.
    channels : {"first", "last"} or None
        What the user said; ``None`` detects it from the shape.

    Returns
    -------
    layout : {"first", "last"}
        The axis of the channels.
    """
    possible = [name for name, size in (("first", shape[0]), ("last", shape[-1])) if size in N_CHANNELS]
    if channels is not None:
        possible = [channels] if channels in possible else []
    if len(possible) == 2:
        raise RowError(
            f"an image of shape {tuple(shape)} may have its channels first or last; pass channels='first' or 'last'"
        )
    if not possible:
        where = "first or last" if channels is None else channels
        raise RowError(f"an image of shape {tuple(shape)} has no axis of 1, 3 or 4 channels {where}")
    return possible[0]


def to_uint8(values: np.ndarray) -> np.ndarray:
    """Map pixel values of any accepted dtype to uint8.

    uint8 stays; bool becomes 0 or 255; uint16 is divided by 257; other integers must lie within 0..255; floats within
    [0, 1], and are multiplied by 255 and rounded.

    Parameters
    ----------
    values : ndarray
        Pixel values.

    Returns
    -------
    values : ndarray of uint8
        Of the same shape.
    """
    kind, width = values.dtype.kind, values.dtype.itemsize
    if kind == "u" and width == 1:
        return values
    if kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    if kind == "u" and width == 2:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if kind in "iu":
        return _integers_to_uint8(values)
    if kind == "f":
        return _floats_to_uint8(values)
    raise RowError(f"pixels of dtype {values.dtype}; expected uint8, or float in [0, 1]")


def _integers_to_uint8(values: np.ndarray) -> np.ndarray:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 255:
        raise RowError(
            f"{values.dtype} pixels must lie within 0..255, these range from {low} to {high}; "
            "scale them to float in [0, 1] or to uint8"
        )
    return values.astype(np.uint8)


def _floats_to_uint8(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if np.isnan(low):
        raise RowError(f"{values.dtype} pixels hold NaN")
    if np.isinf(low) or np.isinf(high):
        raise RowError(f"{values.dtype} pixels hold infinity")
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        fix = "divide them by 255 or use dtype uint8" if low >= 0 and high <= 255 else "undo their normalisation first"
        raise RowError(f"{values.dtype} pixels must lie in [0, 1], these range from {low:.4g} to {high:.4g}; {fix}")
    return np.rint(values.astype(np.float32, copy=False) * 255).clip(0, 255).astype(np.uint8)


def array_to_rgb(array, channels: str | None) -> np.ndarray:
    """Turn one image array into RGB pixels; a fourth channel is alpha and is composited on white.

    Parameters
    ----------
    array : array-like or tensor of shape (H, W), (H, W, C) or (C, H, W)
        The image; ``C`` is 1, 3 or 4.
    channels : {"first", "last"} or None
        Layout of a 3-D array; ``None`` detects it.

    Returns
    -------
    pixels : ndarray of uint8 of shape (H, W, 3)
        May share memory with ``array``.
    """
    array = to_numpy(array)
    if array.ndim not in (2, 3):
        raise RowError(f"an array of shape {array.shape} is not an image; expected (H, W), (H, W, C) or (C, H, W)")
    if 0 in array.shape:
        raise RowError(f"an array of shape {array.shape} has no pixels")
    if array.ndim == 2:
        array = array[:, :, np.newaxis]
    elif find_layout(array.shape, channels) == "first":
        array = array.transpose(1, 2, 0)
    array = to_uint8(array)
    if array.shape[2] == 1:
        array = np.broadcast_to(array, (*array.shape[:2], 3))
    elif array.shape[2] == 4:
        array = composite_on_white(array)
    return np.ascontiguousarray(array)


def composite_on_white(rgba: np.ndarray) -> np.ndarray:
    """Lay a picture with straight alpha over white.

    Parameters
    ----------
    rgba : ndarray of uint8 of shape (H, W, 4)
        Colour and alpha.

    Returns
    -------
    rgb : ndarray of uint8 of shape (H, W, 3)
        What a white page would show.
    """
    alpha = rgba[..., 3:].astype(np.uint32)
    blend = rgba[..., :3] * alpha + 255 * (255 - alpha)
    return ((blend + 127) // 255).astype(np.uint8)
