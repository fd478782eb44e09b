"""What runs a backbone: programs made from a private copy of its module, checked against the module itself."""

import copy
import functools
import importlib.util
import os
import threading
import weakref
from collections import OrderedDict

import torch
from torch import nn

from sktl._deps import import_extra
from sktl._forks import follow_forks
from sktl.backbones import PADDING
from sktl.embedding import _fusion

RUNTIMES = ("torch", "compile", "openvino")
# Prepared networks kept for the next call, and shapes of input of each; every one holds weights of its own.
_MAX_RUNNERS = 4
_MAX_PROGRAMS = 4
_CHECK_ROWS, _CHECK_TOKENS = 2, 128
_MIN_COSINE = {torch.float32: 0.9999, torch.bfloat16: 0.999, torch.float16: 0.999}


def _whole(network, mean, std):
    """Everything from a batch to embeddings as one module; a network of texts is that already."""
    return network if mean is None else PixelsToEmbedding(network, mean, std)


class PixelsToEmbedding(nn.Module):
    """Normalisation and network in one module.

    Takes uint8 pixels ``(n, height, width, 3)`` or an already normalised float input ``(n, 3, height, width)``.

    Parameters
    ----------
    network : nn.Module
        Maps normalised float batches to embeddings.
    mean, std : sequence of 3 float
        Of the channels, for pixels in [0, 1].
    """

    def __init__(self, network, mean, std):
        super().__init__()
        self.network = network
        std = torch.tensor(std, dtype=torch.float32)
        self.register_buffer("scale", 1.0 / (255.0 * std), persistent=False)
        self.register_buffer("shift", -torch.tensor(mean, dtype=torch.float32) / std, persistent=False)

    def forward(self, batch):
        if batch.dtype == torch.uint8:
            batch = (batch.to(torch.float32) * self.scale + self.shift).permute(0, 3, 1, 2)
        return self.network(batch)


class Runner:
    """Runs a view's network on batches; for each shape of input a program is made once, and checked.

    Parameters
    ----------
    view : FeatureView
        What to run. Its module is copied, never changed.
    device : torch.device
        Where to run it.
    dtype : torch.dtype
        Precision to aim at.
    runtime : {"torch", "compile", "openvino"}
        What to run it with.
    mean, std : sequence of 3 float, or None
        Of the channels, for pixels in [0, 1]; None for a network of texts.
    share : CpuShare
        How the cores are divided, if the device is a CPU.

    Attributes
    ----------
    batch_limit : int or None
        The largest batch that fitted into memory, once a larger one did not.
    complaint : str or None
        Why another precision or runtime than the one asked for is used.
    """

    def __init__(self, view, device, dtype, runtime, mean, std, share):
        # Each caller holds one, so one is there during a call; a runner must not keep a network alive that nobody has.
        self.equal_views = weakref.WeakValueDictionary({id(view): view})
        self.device, self.dtype, self.runtime = device, dtype, runtime
        self.mean, self.std, self.share = mean, std, share
        self.batch_limit = None
        self.complaint = None
        self._programs = {}
        self._lock = threading.Lock()

    @property
    def view(self):
        """One of the equal views that are in use, or None once nobody else holds any."""
        return next((view for ref in self.equal_views.valuerefs() if (view := ref()) is not None), None)

    def __call__(self, batch, exact=False):
        """Compute embeddings.

        Parameters
        ----------
        batch : Tensor
            On the CPU: uint8 (n, height, width, 3), float32 (n, 3, height, width), or int32 (n, length).
        exact : bool, default=False
            Whether to compute in float32, whatever the precision aimed at.

        Returns
        -------
        embeddings : Tensor of shape (n, width), dtype float32
            On the device, perhaps not computed yet.
        """
        # torch runs one copy of a network of texts on all their lengths.
        is_for_all = batch.dtype == torch.int32 and self.runtime == "torch"
        key = (None if is_for_all else tuple(batch.shape), batch.dtype, exact)
        program = self._programs.get(key)
        if program is None:
            with self._lock:
                program = self._programs.get(key)
                if program is None:
                    program = self._make_program(tuple(batch.shape), batch.dtype, exact)
                    while len(self._programs) >= _MAX_PROGRAMS:
                        del self._programs[next(iter(self._programs))]
                    self._programs[key] = program
        return program(batch)

    def _make_program(self, shape, dtype, exact):
        """The first candidate that agrees with the module itself."""
        *candidates, last_resort = self._candidates(dtype, exact)
        if candidates:
            batch, reference = self._check_batch(shape, dtype)
        reason = None
        for make, precision in candidates:
            try:
                program = make(self, batch, precision)
                cosine = _least_cosine(program(batch)[:_CHECK_ROWS].cpu(), reference)
            except Exception as error:
                # Tracers and compilers may fail on any network in any way; the next candidate asks less of them.
                if is_out_of_memory(error):
                    raise
                reason = f"fails with {type(error).__name__}: {str(error).partition(chr(10))[0]}"
                continue
            if cosine >= _MIN_COSINE[precision]:
                self._note_replacement(precision, reason)
                return program
            reason = f"changes them (cosine to float32: {cosine:.4f})"
        make, precision = last_resort
        self._note_replacement(precision, reason)
        return make(self, None, precision)

    def _note_replacement(self, precision, reason):
        """Remember why the precision or runtime that was asked for is not used, if it is not."""
        if reason and (self.runtime != "torch" or precision != self.dtype):
            asked = f"runtime={self.runtime!r} with dtype={str(self.dtype).removeprefix('torch.')!r}"
            self.complaint = f"The embeddings are computed by torch in float32, because {asked} {reason}."

    def _candidates(self, dtype, exact):
        """Makers of programs with their precision, the fastest first; the last needs no check."""
        candidates = [(_torch_program, torch.float32)]
        if exact:
            return candidates
        maker = {"torch": _torch_program, "compile": _compiled_program, "openvino": _openvino_program}[self.runtime]
        if (maker, self.dtype) not in candidates:
            candidates.insert(0, (maker, self.dtype))
        if dtype == torch.uint8 and _fusion.is_fusable(self.view.module):
            make = _FusedPrograms()
            candidates.insert(-1, (make, torch.float32))
            if self.runtime == "torch" and self.dtype != torch.float32:
                candidates.insert(0, (make, self.dtype))
        return candidates

    def _check_batch(self, shape, dtype):
        """A fixed batch of the shape, and what the untouched module gives for its first rows."""
        generator = torch.Generator().manual_seed(0)
        if dtype == torch.int32:
            return self._check_tokens(shape, generator)
        coarse = torch.rand((shape[0], *(-(-side // 8) for side in shape[1:])), generator=generator)
        for axis, side in enumerate(shape[1:], start=1):  # blotches with fine noise: nearer to pictures than noise is
            coarse = coarse.repeat_interleave(8, dim=axis).narrow(axis, 0, side)
        batch = 0.7 * coarse + 0.3 * torch.rand(shape, generator=generator)
        batch = (255 * batch).to(torch.uint8) if dtype == torch.uint8 else 4 * batch - 2
        return batch, self._reference(batch)

    def _check_tokens(self, shape, generator):
        """Random tokens, every other row half as long as the first, and not too few: errors grow with their number."""
        config = self.view.data_config
        n_tokens = max(shape[1], min(_CHECK_TOKENS, config["max_length"])) if self.runtime == "torch" else shape[1]
        batch = torch.randint(config["vocabulary"], (shape[0], n_tokens), generator=generator, dtype=torch.int32)
        batch[1::2, -(n_tokens // 2) :] = PADDING
        return batch, self._reference(batch)

    def _reference(self, batch):
        """What the untouched module gives for the first rows of a batch."""
        module = _whole(self.view.module, self.mean, self.std)
        with torch.inference_mode():
            return module(batch[:_CHECK_ROWS]).to(torch.float32)


# Programs: callables from a batch on the CPU to embeddings on the device --------------------------------------------


def _torch_program(runner, batch, dtype):
    network = _copied_network(runner).to(dtype)
    return _Eager(runner, network, dtype)


class _FusedPrograms:
    """Makes programs of several precisions, tracing the network once."""

    def __init__(self):
        self._traced = None

    def __call__(self, runner, batch, dtype):
        if self._traced is None:
            example = torch.zeros(batch.shape, device=runner.device).permute(0, 3, 1, 2)
            self._traced = _fusion.trace(_copied_network(runner), example)
        return _Eager(runner, _fusion.fuse(self._traced, dtype), dtype)


def _compiled_program(runner, batch, dtype):
    network = _copied_network(runner).to(dtype)
    options = {"freezing": True}
    if runner.device.type == "cpu":
        options["cpp.threads"] = runner.share.threads
    return _Eager(runner, torch.compile(network, dynamic=False, options=options), dtype)


class _Eager:
    """Normalisation on the device, then a torch callable."""

    def __init__(self, runner, network, dtype):
        self.network, self.device, self.dtype = network, runner.device, dtype
        if runner.mean is not None:
            module = PixelsToEmbedding(nn.Identity(), runner.mean, runner.std).to(runner.device)
            self.scale, self.shift = module.scale, module.shift
        self._constants = {}

    def __call__(self, batch):
        with torch.inference_mode():
            inputs = batch.to(self.device, non_blocking=True)
            if inputs.dtype == torch.uint8:
                inputs = self._normalised(inputs).permute(0, 3, 1, 2)
            elif inputs.dtype != torch.int32:
                inputs = inputs.to(self.dtype).contiguous(memory_format=torch.channels_last)
            return self.network(inputs).to(torch.float32)

    def _normalised(self, pixels):
        if self.device.type != "cpu":
            return torch.addcmul(self.shift, pixels.to(torch.float32), self.scale).to(self.dtype)
        # One picture at a time stays in the core's cache, and constants as large as it spare the broadcasting over a
        # last axis of 3: an eighth of the time of the single expression.
        scale, shift = self._full_size(pixels.shape[1:])
        result = torch.empty(pixels.shape, dtype=self.dtype)
        for row, out in zip(pixels, result, strict=True):
            torch.addcmul(shift, row.to(torch.float32), scale, out=out) if self.dtype == torch.float32 else out.copy_(
                torch.addcmul(shift, row.to(torch.float32), scale)
            )
        return result

    def _full_size(self, shape):
        if shape not in self._constants:
            self._constants[shape] = tuple(value.expand(shape).contiguous() for value in (self.scale, self.shift))
        return self._constants[shape]


def _openvino_program(runner, batch, dtype):
    """OpenVINO reads uint8 and normalises by itself, one stream of execution per lane."""
    openvino = import_extra("openvino", extra="openvino", caller='runtime="openvino"')
    module = _whole(_copied_network(runner), runner.mean, runner.std).eval()
    with torch.no_grad():
        exported = torch.export.export(module, (batch,), strict=False)
    config = {
        "INFERENCE_PRECISION_HINT": {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[dtype],
        "NUM_STREAMS": str(runner.share.lanes),
        "INFERENCE_NUM_THREADS": str(runner.share.cores),
        "ENABLE_CPU_PINNING": "NO",
    }
    model = openvino.convert_model(exported)
    compiled = _openvino_core(os.getpid()).compile_model(model, "CPU", config)
    local = threading.local()

    def program(batch):
        if not hasattr(local, "request"):
            local.request = compiled.create_infer_request()
        # A copy: the request writes its next result to the same memory.
        return torch.from_numpy(local.request.infer([batch.numpy()], share_inputs=True)[0].copy())

    return program


@functools.cache
def _openvino_core(process_id):
    return import_extra("openvino", extra="openvino", caller='runtime="openvino"').Core()


def _copied_network(runner):
    network = copy.deepcopy(runner.view.module).eval().requires_grad_(False).to(runner.device)
    for weight in network.parameters():
        if weight.dim() == 4:  # Module.to(memory_format=) raises an error for weights of five axes
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return network


def _least_cosine(rows, reference):
    if not torch.isfinite(rows).all():
        return float("nan")
    return torch.cosine_similarity(rows.double(), reference.double(), dim=1).min().item()


def is_out_of_memory(error):
    """Whether an exception of torch says that memory did not suffice, on any device."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    said = ("out of memory", "can't allocate memory", "not enough memory")  # GPUs, CPUs, CPUs under Windows
    return isinstance(error, RuntimeError) and any(text in str(error) for text in said)


# The runners of the process -----------------------------------------------------------------------------------------


class RunnerCache:
    """The most recently used runners of networks in use, shared by all threads of the process.

    Parameters
    ----------
    max_runners : int
        How many are kept for each device.
    """

    def __init__(self, max_runners=_MAX_RUNNERS):
        self.max_runners = max_runners
        self._left = []
        self.reset()
        follow_forks(self)

    def start_anew(self):
        """Start anew in a forked child: locks may be held, and runners waited for, by threads that are not there."""
        self._left.append(self._runners)  # to destroy them would wait for those threads as well
        self.reset()

    def reset(self):
        """Forget all runners."""
        self._lock = threading.Lock()
        self._runners = OrderedDict()

    def get(self, view, device, dtype, runtime, mean, std, share):
        """The runner of a view, new on the first call."""
        key = (view.key, str(device), dtype, runtime, repr((mean, std)), share)
        with self._lock:
            for unused in [key for key, runner in self._runners.items() if runner.view is None]:
                del self._runners[unused]
            runner = self._runners.pop(key, None)
            if runner is None:
                runner = Runner(view, device, dtype, runtime, mean, std, share)
            runner.equal_views[id(view)] = view
            self._runners[key] = runner
            n_devices = len({device for _, device, *_ in self._runners})
            while len(self._runners) > self.max_runners * n_devices:
                self._runners.popitem(last=False)
        return runner


_RUNNERS = RunnerCache()
get_runner = _RUNNERS.get


def clear_cache():
    """Drop all prepared networks, and with them their memory."""
    _RUNNERS.reset()


def resolve_runtime(runtime, device):
    """Turn the ``runtime`` parameter into the runtime to use.

    Parameters
    ----------
    runtime : {"auto", "torch", "compile", "openvino"}
        "auto" takes OpenVINO on a CPU if it is installed, else torch.
    device : torch.device
        Where it is to run.

    Returns
    -------
    runtime : {"torch", "compile", "openvino"}
        What to use.
    """
    if runtime == "auto":
        return "openvino" if device.type == "cpu" and importlib.util.find_spec("openvino") else "torch"
    if runtime not in RUNTIMES:
        raise ValueError(
            f"The 'runtime' parameter must be 'auto', {', '.join(map(repr, RUNTIMES[:-1]))} or {RUNTIMES[-1]!r}, "
            f"got {runtime!r} instead."
        )
    if runtime == "openvino":
        import_extra("openvino", extra="openvino", caller='runtime="openvino"')
        if device.type != "cpu":
            raise ValueError(f"The 'runtime' parameter must be 'torch' or 'compile' on {device.type}, got {runtime!r}.")
    return runtime
