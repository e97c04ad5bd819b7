"""What a file is by its first bytes, or a zip archive by its members: names what people mistake for a model."""

from __future__ import annotations

from collections.abc import Sequence

_EXPORT = (
    "export the model to ONNX (skl2onnx, tf2onnx, torch.onnx.export), or from PyTorch with torch.export.save, and"
    " import that file"
)
_UNPACK = "unpack it and import the .onnx file inside"
_EXPORT_TORCH = (
    "export the model and import that file: torch.export.save(torch.export.export(model.eval(), (example,),"
    " dynamic_shapes=...), 'model.pt2'), or torch.onnx.export"
)
# (offset, magic, what it is, what to do next)
_KINDS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"PK\x05\x06", "an empty zip archive", _EXPORT),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras)", _EXPORT),
    (0, b"\x93NUMPY", "a NumPy array", _EXPORT),
    (0, b"GGUF", "a GGUF file", _EXPORT),
    (4, b"TFL3", "a TensorFlow Lite model", _EXPORT),
    (4, b"ORTM", "a model in ONNX Runtime's own .ort format", "import the .onnx file that it was made from"),
    (0, b"\x1f\x8b", "a gzip archive", _UNPACK),
    (0, b"BZh", "a bzip2 archive", _UNPACK),
    (0, b"\xfd7zXZ\x00", "an xz archive", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (0, b"\x04\x22\x4d\x18", "an lz4 archive", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"x\x01", "a zlib stream (joblib's compressed pickle)", _EXPORT),
    (0, b"x\x5e", "a zlib stream (joblib's compressed pickle)", _EXPORT),
    (0, b"x\x9c", "a zlib stream (joblib's compressed pickle)", _EXPORT),
    (0, b"x\xda", "a zlib stream (joblib's compressed pickle)", _EXPORT),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the model itself", "run `git lfs pull` and import again"),
    (0, b"\x7fELF", "a program", _EXPORT),
    (0, b"<", "a page of HTML or XML", "download the model itself, not the page that shows it"),
    (0, b"{", "a JSON text", _EXPORT),
)


def foreign_format(head: bytes) -> tuple[str, str] | None:
    """Name the known format that a file's first bytes show, if it is not ONNX.

    Only for the message: None does not mean that the file is ONNX. That is for the parser and the checker to say.

    Args:
        head: the first bytes of the file; 512 are enough for every format known here.

    Returns:
        (what the file is, what to do next), or None if the bytes belong to no format known here.
    """
    for offset, magic, kind, advice in _KINDS:
        if head[offset : offset + len(magic)] == magic:
            return kind, advice
    if len(head) > 2 and head[0] == 0x80 and 2 <= head[1] <= 5:
        return "a Python pickle (joblib, PyTorch, scikit-learn)", _EXPORT
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return "a safetensors file (weights without a graph)", _EXPORT
    return None


def is_zip(head: bytes) -> bool:
    """Whether a file is a zip archive, as torch.export programs are."""
    return head.startswith(b"PK\x03\x04")


def zip_kind(names: Sequence[str]) -> tuple[str, str]:
    """Name the kind of a zip archive that is no torch.export program.

    Args:
        names: of its members.

    Returns:
        (what the file is, what to do next).
    """
    if "serialized_exported_program.json" in names:
        return "a torch.export program of PyTorch before 2.8", "save it again with torch.export.save of 2.9 or later"
    if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
        return "a TorchScript module (PyTorch), which may hold code and pickles", _EXPORT_TORCH
    if any(name.endswith("data.pkl") for name in names):
        return "a PyTorch pickle, weights without a graph or a whole module", _EXPORT_TORCH
    if any(name.endswith(".npy") for name in names):
        return "an archive of NumPy arrays (.npz)", _EXPORT
    if any(name.endswith(".weights.h5") for name in names):
        return "a Keras archive", _EXPORT
    return "a zip archive", _UNPACK
