"""The one way a model is opened, and what it says of itself."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from deploy.binding import BoundSample
from deploy.errors import MissingExtraError, UserError
from deploy.litert import LiteRt, litert_version
from deploy.machine import SCHEMES, this_target, usable_cores
from deploy.preprocess import Op, apply
from deploy.probes import SUMMED, sum_model
from deploy.record import Goal, Record, SessionOptions
from deploy.tflite import is_tflite

_PREFIX = "lightship."
Runtime = Literal["ONNX Runtime", "LiteRT"]
_THREADS_PER_CORE = 4
"""More never helps; fewer would forbid to see on a small machine that more does not help."""


class ModelMetadata(Record, frozen=True):
    """What travels inside the model file, so that the file alone is enough to use it."""

    step: dict[str, object] = {}
    parent: str | None = None
    """sha256 of the file this model was made from."""
    preprocess: tuple[Op, ...] = ()
    labels: tuple[str, ...] = ()
    data: str = ""
    """Name of the data set that the model was trained on."""
    data_licence: str = ""
    versions: dict[str, str] = {}
    goal: Goal = Goal()

    def to_props(self) -> dict[str, str]:
        """Return one JSON text per field, keyed ``lightship.FIELD``, for ONNX ``metadata_props``."""
        fields = msgspec.structs.asdict(self)
        return {
            _PREFIX + name: msgspec.json.encode(value).decode() for name, value in fields.items()
        }

    @staticmethod
    def from_props(props: dict[str, str]) -> ModelMetadata:
        """Read back what ``to_props`` wrote; a model of another maker gives empty fields.

        Raises:
            UserError: if a ``lightship.`` entry is there and does not decode.
        """
        ours = {
            key.removeprefix(_PREFIX): msgspec.Raw(text.encode())
            for key, text in props.items()
            if key.startswith(_PREFIX)
        }
        try:
            return msgspec.json.decode(msgspec.json.encode(ours), type=ModelMetadata)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise UserError(
                f"metadata_props: {_PREFIX}* entries do not decode ({error})"
            ) from error


class _OnnxRuntime:
    """An open ONNX or ORT model with one input and one output, as ``LiteRt`` is one of LiteRT's."""

    def __init__(self, session: ort.InferenceSession) -> None:
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise UserError(
                f"needs a model with one input and one output, got {len(inputs)} and {len(outputs)}"
            )
        dtype = _NUMPY_TYPES.get(inputs[0].type)
        if dtype is None:
            raise UserError(f"input type {inputs[0].type} is not supported")
        batch, *sample = inputs[0].shape or [0]
        if (isinstance(batch, int) and batch != 1) or not all(isinstance(n, int) for n in sample):
            raise UserError(
                "the input needs a free batch axis (or one of 1) in front "
                f"and no other free axis, got shape {inputs[0].shape}"
            )
        self.session = session
        self._bound = BoundSample(session, inputs[0].name, outputs[0].name)
        self.input_name: str = inputs[0].name
        self.input_shape: tuple[int, ...] = tuple(sample)
        self.input_dtype: np.dtype[Any] = np.dtype(dtype)
        self.fixed_batch: int | None = batch if isinstance(batch, int) else None
        self.output_name: str = outputs[0].name
        self.props: dict[str, str] = session.get_modelmeta().custom_metadata_map

    def run(self, inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the output ``(n, ...)`` for inputs ``(n, ...)`` of the input's type."""
        return self._bound.run(inputs)


class Model:
    """An open model with one input and one output, in ONNX Runtime or LiteRT.

    Attributes:
        where: the file, as its user wrote it; errors begin with it.
        runtime: what runs it, as errors name it.
        runtime_version: the release of that.
        input_name: name of the graph's input.
        input_shape: shape of one sample, without the batch axis.
        input_dtype: element type of the input.
        fixed_batch: 1 if the model takes one sample at a time, None if the batch axis is free.
        output_name: name of the graph's output.
        metadata: what the file says of itself.
    """

    def __init__(self, engine: _OnnxRuntime | LiteRt, where: str) -> None:
        self._engine = engine
        self.where = where
        litert = isinstance(engine, LiteRt)
        self.runtime: Runtime = "LiteRT" if litert else "ONNX Runtime"
        self.runtime_version: str = (litert_version() or "") if litert else ort.__version__
        self.input_name = engine.input_name
        self.input_shape = engine.input_shape
        self.input_dtype = engine.input_dtype
        self.fixed_batch = engine.fixed_batch
        self.output_name = engine.output_name
        self.metadata = ModelMetadata.from_props(engine.props)

    def run(self, inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the output ``(n, ...)`` for preprocessed inputs ``(n, ...)``."""
        return self._engine.run(inputs)

    def scores(self, samples: npt.NDArray[Any], *, batch: int = 256) -> npt.NDArray[Any]:
        """Preprocess raw samples as the model's own spec says and return the outputs ``(n, ...)``.

        Raises:
            UserError: if there are no samples, they are not what the model takes once they are
                preprocessed, or the runtime fails on them.
        """
        return np.concatenate([outputs for _, outputs in self._batches(samples, batch)])

    def errors(self, samples: npt.NDArray[Any], *, batch: int = 256) -> npt.NDArray[np.float64]:
        """Return how far the outputs lie from the preprocessed samples, ``(n,)``: mean squares.

        Raises:
            UserError: as ``scores`` does, or if an output is not of its sample's shape.
        """
        errors = []
        for inputs, outputs in self._batches(samples, batch):
            if inputs.shape != outputs.shape:
                raise UserError(
                    f"{self.where}: a reconstruction must have its sample's shape "
                    f"{inputs.shape[1:]}, got {outputs.shape[1:]}"
                )
            errors.append(reconstruction_errors(inputs, outputs))
        return np.concatenate(errors)

    def _batches(
        self, samples: npt.NDArray[Any], batch: int
    ) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
        """Yield preprocessed samples and what the model makes of them, a batch at a time."""
        if len(samples) == 0:
            raise UserError(f"{self.where}: there are no samples to run")
        step = self.fixed_batch or batch
        for start in range(0, len(samples), step):
            inputs = apply(self.metadata.preprocess, samples[start : start + step])
            if inputs.shape[1:] != self.input_shape:
                raise UserError(
                    f"{self.where}: samples of shape {inputs.shape[1:]} after preprocessing do not "
                    f"fit the input {self.input_name!r}, which takes {self.input_shape}"
                )
            fitting = self.cast(inputs, first=start)
            yield fitting, self.asked(fitting)

    def asked(self, inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return what ``run`` does.

        Raises:
            UserError: in place of whatever the runtime fails with.
        """
        try:
            return self._engine.run(inputs)
        # The exceptions of the runtimes' C extensions share no base class below Exception.
        except Exception as error:
            raise UserError(
                f"{self.where}: {self.runtime} cannot run it: {_reason(error)}"
            ) from error

    def cast(self, inputs: npt.NDArray[Any], *, first: int = 0) -> npt.NDArray[Any]:
        """Return preprocessed inputs ``(n, ...)`` in the model's own type.

        Args:
            inputs: as preprocessing left them.
            first: number of the first sample, for the error.

        Raises:
            UserError: if an integer input would lose a fraction or a value out of its range.
        """
        lost = _lost(inputs, self.input_dtype)
        if lost is not None:
            place = np.unravel_index(int(lost.argmax()), lost.shape)  # the first
            raise UserError(
                f"{self.where}: the input {self.input_name!r} takes {self.input_dtype}, which "
                f"cannot hold {inputs[place]} of sample {first + int(place[0])} ({inputs.dtype} "
                f"after preprocessing); give samples in the form that the model was made for"
            )
        return inputs.astype(self.input_dtype, copy=False)


_NUMPY_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}


def reconstruction_errors(
    inputs: npt.NDArray[Any], outputs: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """Return the mean square of what each sample ``(n, ...)`` and its reconstruction differ by."""
    apart = inputs.astype(np.float64) - outputs
    errors: npt.NDArray[np.float64] = np.square(apart).reshape(len(apart), -1).mean(axis=1)
    return errors


def _lost(inputs: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[np.bool_] | None:
    """Return which values a cast to an integer type would change, or None if it changes none."""
    if dtype.kind not in "iu" or np.can_cast(inputs.dtype, dtype):
        return None
    limits = np.iinfo(dtype)
    lost: npt.NDArray[np.bool_]
    if inputs.dtype.kind == "f":
        # NaN compares false. 2**63 - 1 rounds up to a float that int64 cannot hold.
        held = (inputs >= float(limits.min)) & (inputs < float(limits.max) + 1.0)
        lost = ~held | (inputs != np.trunc(inputs))
    else:
        lost = (inputs < limits.min) | (inputs > limits.max)
    return lost if lost.any() else None


def random_inputs(model: Model, batch: int, *, seed: int) -> npt.NDArray[Any]:
    """Return inputs ``(batch, ...)`` of the model's type: uniform in [0, 1), bytes, or 0 and 1.

    Integers wider than a byte are likely codes that index a table, of which 0 and 1 surely exist.
    """
    rng = np.random.default_rng(seed)
    shape = (batch, *model.input_shape)
    if model.input_dtype.kind == "f":
        return rng.random(shape, dtype=np.float32).astype(model.input_dtype)
    if model.input_dtype.itemsize == 1:
        return rng.integers(0, 256, shape, dtype=np.uint8).view(model.input_dtype)
    return rng.integers(0, 2, shape).astype(model.input_dtype)


def require_startable(threads: int) -> None:
    """Refuse no thread, and more than a session can use here: thousands of them stall the machine.

    Raises:
        UserError: if there are fewer than one, which ONNX Runtime takes for as many as there are cores,
            or more than ``_THREADS_PER_CORE`` for each core that this process may use.
    """
    if threads < 1:
        raise UserError(f"threads: must be 1 or more, got {threads}; give how many a run may use")
    cores = usable_cores()
    if threads > _THREADS_PER_CORE * cores:
        raise UserError(
            f"threads: must be at most {_THREADS_PER_CORE * cores} on this machine, "
            f"{_THREADS_PER_CORE} for each of its {cores} cores, got {threads}; use fewer"
        )


@functools.cache
def fast_sums_overflow() -> bool:
    """Say whether the fast kernels that ONNX Runtime takes here for int8 products overflow.

    They do on an x86 without VNNI, and on no other architecture. The kernel of the matrix product, which is
    chosen together with that of convolutions, is asked once a process: what the system says of an
    emulated processor is that of its host, and some systems say nothing. Exact sums are not simply
    asked for everywhere: on a processor with VNNI and without AMX, ONNX Runtime 1.32 then takes
    kernels half as fast.
    """
    target = this_target()
    if target == "arm64":  # as everything counts that is no x86
        return False
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 4
    # The exceptions of ONNX Runtime's C extension share no base class below Exception; a build for one
    # model may lack the operator.
    with contextlib.suppress(Exception):
        session = ort.InferenceSession(
            sum_model(), sess_options=settings, providers=["CPUExecutionProvider"]
        )
        (made,) = session.run(None, {"x0": np.full((1, SUMMED), 255, np.uint8)})
        return bool(made.item() != SUMMED * 255 * 127)
    return SCHEMES[target].reduce_range


def ort_options(options: SessionOptions) -> ort.SessionOptions:
    """Return the ONNX Runtime options that ``options`` stand for.

    Raises:
        UserError: if there is no thread, or more than make sense on this machine.
    """
    require_startable(options.threads)
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 4  # not even errors: each is raised as well
    settings.enable_cpu_mem_arena = options.arena
    if options.mmap:
        # The second keeps the weights in the mapping; without it they are copied out again.
        for key in ("use_memory_mapped_ort_model", "use_ort_model_bytes_for_initializers"):
            settings.add_session_config_entry(f"session.{key}", "1")
    if options.exact_sums and fast_sums_overflow():
        settings.add_session_config_entry("session.x64quantprecision", "1")
    if options.disabled_optimizers:
        settings.add_session_config_entry(
            "optimization.disable_specified_optimizers", ";".join(options.disabled_optimizers)
        )
    return settings


def profiling(prefix: Path) -> Callable[[ort.SessionOptions], None]:
    """Return what prepares a session to write a profile, into a file whose name begins as told."""

    def prepare(settings: ort.SessionOptions) -> None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(prefix)

    return prepare


def why_not_mapped(source: Path | bytes) -> str | None:
    """Say why a model cannot be mapped into memory, or None if it can."""
    if not isinstance(source, Path) or source.suffix != ".ort":
        return "ONNX Runtime maps only files in ORT format (.ort); it copies what is in others"
    # It was added by pull request 28164; releases before let the option pass and do nothing.
    if tuple(int(part) for part in ort.__version__.split(".")[:2]) < (1, 26):
        return f"needs ONNX Runtime 1.26 or newer, this is {ort.__version__}"
    return None


def open_model(source: Path | bytes, options: SessionOptions = SessionOptions()) -> Model:
    """Open a model on the CPU with the options that ship.

    The bytes say what it is: ``.tflite`` goes to LiteRT, everything else to ONNX Runtime.

    Args:
        source: a file, or the bytes of one.
        options: how to open it; optimizers are ONNX Runtime's alone.

    Raises:
        UserError: if there is no thread or too many for this machine, or if the file is missing, is no
            model that its runtime accepts, has more than one input or output, or has names or
            metadata that do not decode, or is to be mapped and cannot be.
        MissingExtraError: if it is a ``.tflite`` file and LiteRT is not installed.
    """
    where = str(source) if isinstance(source, Path) else "model"
    if isinstance(source, Path) and not source.is_file():
        raise UserError(f"{where}: no such file; give an ONNX model, or a .tflite one")
    why_not = why_not_mapped(source) if options.mmap else None
    if why_not is not None:
        raise UserError(f"{where}: mmap: {why_not}; open it without")
    runtime: Runtime = "LiteRT" if is_tflite(_start_of(source)) else "ONNX Runtime"
    require_startable(options.threads)
    try:
        engine = (
            LiteRt(_content_of(source), threads=options.threads)
            if runtime == "LiteRT"
            else _OnnxRuntime(_open_session(source, options))
        )
        return Model(engine, where)
    except MissingExtraError:
        raise
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: holds names or metadata that are no text ({error}); the file is damaged, "
            f"make it again"
        ) from error
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    # The exceptions of LiteRT's C extension: ValueError on opening, RuntimeError on preparing.
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{where}: {runtime} cannot open it: {_reason(error)}") from error


def _open_session(source: Path | bytes, options: SessionOptions) -> ort.InferenceSession:
    try:
        return start_session(source, options)
    # The exceptions of ONNX Runtime's C extension share no base class below Exception.
    except Exception as error:
        raise UserError(f"ONNX Runtime cannot open it: {_reason(error)}") from error


def start_session(
    source: Path | bytes,
    options: SessionOptions,
    prepare: Callable[[ort.SessionOptions], None] = lambda settings: None,
    *,
    disabled_optimizers: Sequence[str] = (),
) -> ort.InferenceSession:
    """Start ONNX Runtime on the CPU; what it fails with is raised as it is.

    A file in which layers share a zero point of their weights cannot be opened with exact sums where
    these take another form of the weights: ONNX Runtime stops on storing the shared one twice. It is
    opened with fast sums there.

    Args:
        source: a file, or the bytes of one.
        options: how to open it.
        prepare: what else to set, such as a profile to write.
        disabled_optimizers: beside those of the options.
    """

    def started(options: SessionOptions) -> ort.InferenceSession:
        settings = ort_options(options)
        prepare(settings)
        return ort.InferenceSession(
            str(source) if isinstance(source, Path) else source,
            sess_options=settings,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=list(disabled_optimizers),
        )

    if options.exact_sums and fast_sums_overflow():
        # The exceptions of ONNX Runtime's C extension share no base class below Exception.
        with contextlib.suppress(Exception):
            return started(options)
        options = msgspec.structs.replace(options, exact_sums=False)
    return started(options)


def _start_of(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[:8]
    try:
        with source.open("rb") as file:
            return file.read(8)
    except OSError:  # its runtime will say what is wrong
        return b""


def _content_of(source: Path | bytes) -> bytes:
    return source if isinstance(source, bytes) else source.read_bytes()


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
