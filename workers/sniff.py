"""What a file is by its first bytes: names the formats that people mistake for ONNX."""

_EXPORT = "export the model to ONNX (torch.onnx.export, skl2onnx, tf2onnx) and import that file"
_UNPACK = "unpack it and import the .onnx file inside"
# (offset, magic, what it is, what to do next)
_KINDS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"PK\x03\x04", "a zip archive (PyTorch .pt, Keras or .npz)", _EXPORT),
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
