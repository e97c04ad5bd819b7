"""The model as a value: its reference, its declared tensors and its batching policy."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from batchline.errors import InvalidRequestError

DTYPES: dict[str, str] = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "object",
}
"""Open Inference Protocol v2 data types -> numpy's names."""

MODEL_FILE, TORCH_FILE = "model.onnx", "model.pt2"
MODEL_FILES = (MODEL_FILE, TORCH_FILE)
"""A version's folder holds one of them: an ONNX file, or a program that torch.export.save wrote."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One declared tensor. `shape` leaves out the batch axis; None is a free axis."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    @property
    def is_float(self) -> bool:
        return self.dtype.startswith("FP")


class Padding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How rows of different shape share a forward pass.

    `none`: only rows of equal shape run together. `pad`: free axes are filled up with `value` to the longest of the
    micro-batch, after sorting by length so that little is wasted.
    """

    mode: Literal["none", "pad"] = "none"
    value: float = 0.0


class BatchPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How rows are gathered. The names are Triton's where Triton has one."""

    max_batch_size: int = 64
    """Most rows of one forward pass; 1 means no batching."""
    max_bulk_batch_size: int | None = None
    """The same for batches; None: found by measuring, from max_batch_size upwards. Where that is 1, so is this."""
    max_queue_delay_microseconds: int = 0
    """How long a free device waits for more rows; 0 takes what is there."""
    pool: str = "cpu"
    padding: Padding = Padding()
    predict_timeout_s: float = 60.0
    """A forward pass that takes longer is taken for hung: the process is ended and its jobs run elsewhere."""
    allow_missing: bool = False
    """Whether a null in a float input means NaN."""


class TextFront(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Turns a string row into the model's token tensors."""

    tokenizer: str = "tokenizer.json"
    """A file beside the model, in the format of the `tokenizers` library."""
    max_length: int = 256
    """Tokens beyond this are cut off."""
    digest: str = ""
    """sha256 of the tokenizer's file, hex; filled in at the import, empty where an older release did that."""


class ModelSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client may send to a model and what it sends back."""

    name: str
    version: str
    digest: str
    """sha256 of `file`, hex."""
    size_bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    policy: BatchPolicy = BatchPolicy()
    text: TextFront | None = None
    file: str = MODEL_FILE
    """One of MODEL_FILES; says which runtime opens it."""

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def files(self) -> dict[str, str]:
        """The files that a worker needs -> their sha256, hex; those whose digest is known."""
        text = {self.text.tokenizer: self.text.digest} if self.text and self.text.digest else {}
        return {self.file: self.digest} | text


class ModelRecord(msgspec.Struct, frozen=True):
    """A catalogue entry: the spec under the number that jobs point to."""

    id: int
    spec: ModelSpec
    created_at_s: float
    """Epoch seconds."""


def check_name(name: str) -> str:
    """Return the name if it is one; names become folders and URLs.

    Raises:
        InvalidRequestError: otherwise.
    """
    if not _NAME.fullmatch(name):
        raise InvalidRequestError(
            f"{name!r} is no model name: use up to 100 of a-z, 0-9, '.', '_', '-', the first a letter or digit."
        )
    return name


def check_version(version: str) -> str:
    """Return the version if it is one: a whole number from 1.

    Raises:
        InvalidRequestError: otherwise.
    """
    if not _VERSION.fullmatch(version):
        raise InvalidRequestError(f"{version!r} is no model version: versions are whole numbers from 1.")
    return version
