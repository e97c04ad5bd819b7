"""URIs of files: their schemes, globs, formats, and how far a glob reaches.

`file:///folder/*.csv` is percent-decoded, as RFC 8089 says; `s3://bucket/key` is taken as it stands, as S3's own tools
take it. In a glob `*` and `?` stay within one folder, `**` crosses folders. A URI that names a folder means every file
below it whose name ends like its format, but for hidden ones, manifests and error parts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, unquote

from batchline.data.glob_states import DEEP, FOLDERS, STAR, GlobStates
from batchline.errors import BatchlineError, SourceError

Format = Literal["jsonl", "csv", "parquet"]

ENDINGS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_MAGIC = frozenset("*?[")
_WILD = {FOLDERS: "(?:[^/]+/)*", DEEP: ".*", STAR: "[^/]*"}
_MOST_WILD = 2
"""Wildcards of a pattern that a regular expression matches soon, whatever the path: its steps are path ** wildcards."""
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True, slots=True)
class S3Uri:
    """A bucket and a key (or pattern, or prefix) within it."""

    bucket: str
    key: str


def local_path(uri: str, error: type[BatchlineError] = SourceError) -> str:
    """The absolute path of a file:// URI without wildcards.

    Raises:
        SourceError, or what `error` says: not an absolute path, or bytes that no path has.
    """
    rest = uri.removeprefix("file://").removeprefix("localhost")
    path = unquote(rest, errors="surrogateescape")
    if not path.startswith("/") or "\0" in path:
        raise error(f"{uri!r} is no file URI: write file:///folder/name, with three slashes.")
    return path


def local_uri(path: str) -> str:
    """The inverse of `local_path`."""
    return "file://" + quote(path, safe="/:=@+,~!$&'()", errors="surrogateescape")


def local_pattern(uri: str) -> str:
    """The path of a file:// URI whose wildcards stay such, while encoded ones are letters."""
    literal = re.sub(r"%(2A|3F|5B)", lambda m: f"[{unquote(m[0])}]", uri, flags=re.IGNORECASE)
    return local_path(literal)


def s3_uri(uri: str, error: type[BatchlineError] = SourceError) -> S3Uri:
    """Bucket and key of an s3:// URI.

    Raises:
        SourceError, or what `error` says: no bucket's name.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not _BUCKET.fullmatch(bucket) or "\0" in key:
        raise error(f"{uri!r} is no S3 URI: write s3://bucket/key.")
    return S3Uri(bucket, key)


def has_wildcards(pattern: str) -> bool:
    """Whether a path or key is a glob."""
    return not _MAGIC.isdisjoint(pattern)


def fixed_folder(pattern: str) -> str:
    """The part of a glob before the first wildcard, up to and with its last slash."""
    first = min((at for at, c in enumerate(pattern) if c in _MAGIC), default=len(pattern))
    return pattern[: pattern.rfind("/", 0, first) + 1]


def glob_matcher(pattern: str) -> re.Pattern[str] | GlobStates:
    """What tells by `fullmatch` whether a whole path is meant."""
    pieces, out = _pieces(pattern)
    try:
        if sum(piece in _WILD for piece in pieces) > _MOST_WILD:
            return GlobStates(pieces, out)
        return re.compile("".join(out), re.DOTALL)
    except re.error:
        raise SourceError(f"{pattern!r} is no pattern that can be matched: see the letters within [ ].") from None


def _pieces(pattern: str) -> tuple[list[str], list[str]]:
    """The pieces of a glob, runs of one wildcard as one, and their regular expressions."""
    pieces: list[str] = []
    out: list[str] = []
    at = 0
    while at < len(pattern):
        wild = next((w for w in _WILD if pattern.startswith(w, at)), None)
        if wild is not None:
            piece, expression = wild, _WILD[wild]
        elif pattern[at] == "?":
            piece, expression = "?", "[^/]"
        elif pattern[at] == "[" and (end := pattern.find("]", at + 2)) > 0:
            piece = pattern[at : end + 1]
            inside = re.sub(r"([\\\[&~|])", r"\\\1", piece[1:-1])
            expression = f"[^/{inside[1:]}]" if inside.startswith("!") else f"(?!/)[{inside}]"
        else:
            piece, expression = pattern[at], re.escape(pattern[at])
        at += len(piece)
        if wild is None or pieces[-1:] != [wild]:
            pieces.append(piece)
            out.append(expression)
    return pieces, out


def is_gzip(uri: str) -> bool:
    """Whether the name says that the file is compressed."""
    return uri.lower().endswith(".gz")


def format_of(uri: str, given: Format | None) -> Format:
    """The format as given, else by the name's ending.

    Raises:
        SourceError: neither tells.
    """
    if given is not None:
        return given
    name = uri.lower().removesuffix(".gz")
    for ending, known in ENDINGS.items():
        if name.endswith(ending):
            return known
    raise SourceError(f"{uri} does not tell its format by its name: give `format` as jsonl, csv or parquet.")


def belongs(path: str, kind: Format) -> bool:
    """Whether a file that lies in a folder is one of its data files, by its name."""
    name = path[path.rfind("/") + 1 :].lower()
    if name.startswith((".", "_", "errors-", "manifest-")) or name == "manifest.json":
        return False
    name = name.removesuffix(".gz")
    return any(name.endswith(ending) for ending, known in ENDINGS.items() if known == kind)
