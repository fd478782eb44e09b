"""Where embeddings are computed, and in which precision."""

import torch

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# First compute capability whose tensor cores multiply bfloat16 (Ampere); before it, it is emulated and slow.
_CUDA_BFLOAT16_CAPABILITY = (8, 0)


def resolve_device(device="auto"):
    """Turn the ``device`` parameter into a device that is there.

    Parameters
    ----------
    device : {"auto"}, str or torch.device, default="auto"
        "auto" takes the first of CUDA, MPS and CPU that is available.

    Returns
    -------
    device : torch.device
        The device to compute on.

    Raises
    ------
    ValueError
        If the device is not known to torch, or not available on this machine.
    """
    if isinstance(device, str) and device == "auto":
        return torch.device(_best_device_type())
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"The 'device' parameter must be 'auto', a torch.device or a string that names one "
            f"('cpu', 'cuda', 'cuda:1', 'mps'), got {device!r} instead."
        ) from error
    _check_available(resolved, device)
    return resolved


def resolve_devices(device="auto"):
    """Turn the ``device`` parameter into the devices that rows are shared out to.

    Parameters
    ----------
    device : {"auto"}, str, torch.device or list of them, default="auto"
        One device, or several of the same type.

    Returns
    -------
    devices : tuple of torch.device
        At least one, each once.

    Raises
    ------
    ValueError
        If a device is not there, or they are not of one type.
    """
    if not isinstance(device, (list, tuple)):
        return (resolve_device(device),)
    devices = tuple(resolve_device(each) for each in device)
    different = {(each.type, each.index or 0) for each in devices}  # "cuda" is "cuda:0"
    if not devices or len(different) < len(devices) or len({each.type for each in devices}) > 1:
        raise ValueError(
            f"The 'device' parameter must name one device, or several different ones of one type, got {device!r} "
            "instead."
        )
    return devices


def resolve_dtype(dtype="auto", device="cpu"):
    """Turn the ``dtype`` parameter into the precision of the forward pass.

    Parameters
    ----------
    dtype : {"auto", "float32", "bfloat16", "float16"} or torch.dtype, default="auto"
        "auto" takes bfloat16 where the device multiplies it natively (CUDA from compute capability 8.0 on, CPUs with
        AMX-BF16, AVX512-BF16 or the ARM bf16 instructions), and float32 elsewhere.

    device : torch.device or str, default="cpu"
        The device that :func:`resolve_device` returned.

    Returns
    -------
    dtype : torch.dtype
        One of float32, bfloat16 and float16.

    Raises
    ------
    ValueError
        If `dtype` is none of the above.
    """
    device = torch.device(device)
    if isinstance(dtype, str) and dtype == "auto":
        return torch.bfloat16 if _has_native_bfloat16(device) else torch.float32
    if isinstance(dtype, str) and dtype in _DTYPES:
        return _DTYPES[dtype]
    if isinstance(dtype, torch.dtype) and dtype in _DTYPES.values():
        return dtype
    raise ValueError(
        f"The 'dtype' parameter must be 'auto', 'float32', 'bfloat16' or 'float16', got {dtype!r} instead."
    )


def _best_device_type():
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _check_available(device, asked):
    if device.type in ("cpu", "meta"):
        found = device.type == "cpu"
        rule = "a device that computes"
    elif device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        found = (device.index or 0) < count
        rule = f"a device that is available (torch sees {count} CUDA device{'' if count == 1 else 's'})"
    elif device.type == "mps":
        found = torch.backends.mps.is_available()
        rule = "a device that is available (torch cannot use MPS on this machine)"
    else:
        module = getattr(torch, device.type, None)
        found = bool(module is not None and hasattr(module, "is_available") and module.is_available())
        rule = "a device that is available"
    if not found:
        raise ValueError(f"The 'device' parameter must be {rule}, got {str(asked)!r} instead. 'auto' picks one.")


def _has_native_bfloat16(device):
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= _CUDA_BFLOAT16_CAPABILITY
    return device.type == "cpu" and _cpu_has_bfloat16()


def _cpu_has_bfloat16():
    capabilities = _cpu_capabilities()
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def _cpu_capabilities():
    """CPU flags as torch knows them; torch < 2.9 has single private probes only."""
    probe = getattr(torch.cpu, "get_capabilities", None)
    if probe is not None:
        return dict(probe())
    probes = {"avx512_bf16": "_is_avx512_bf16_supported", "amx_bf16": "_is_amx_tile_supported"}
    return {flag: bool(getattr(torch.cpu, name, bool)()) for flag, name in probes.items()}
