"""Text from files: .txt and other text files, .jsonl, folders of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from rookery.errors import DataError

__all__ = ["Document", "hold_out", "read_documents", "standard_library"]

# What is not the source code of a library: other packages, tests; and what was generated: tables, topics.
_NOT_THE_LIBRARY = (
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "encodings",
    "pydoc_data",
    "_sysconfigdata*",
)


@dataclass(frozen=True)
class Document:
    """One text that stands for itself: a file, or one line of a .jsonl file."""

    name: str
    """Where it is from: a path relative to the folder that was named, and ``:LINE`` in a .jsonl file."""

    text: str


def read_documents(
    paths: Sequence[str | Path],
    *,
    text_field: str = "text",
    suffix: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> list[Document]:
    """All documents of some files and folders, in the order of the arguments and of the sorted paths.

    A folder is read with all folders below it, hidden files left out. Documents with no text are left out.

    Args:
        paths: .jsonl files, other files (each one text), and folders of both.
        text_field: the field of each line of a .jsonl file that holds the text.
        suffix: in folders, read only files that end in one of these; ``.py`` and ``py`` mean the same.
        exclude: in folders, patterns for names of files and folders (of any depth) to leave out.

    Raises:
        DataError: a file is missing, not UTF-8 text, or broken JSON; or there is no text at all.
    """
    documents: list[Document] = []
    for path in map(Path, paths):
        if path.is_dir():
            files = list(_files_below(path, suffix, exclude))
            if not files:
                wanted = f" with the suffix {' or '.join(suffix)}" if suffix else ""
                raise DataError(f"{path}: there is no file{wanted} in this folder to read")
        else:
            files = [path]
        root = path if path.is_dir() else path.parent
        for file in files:
            documents += _read_file(file, file.relative_to(root).as_posix(), text_field)
    if not documents:
        raise DataError(f"{', '.join(map(str, paths))}: empty: there is no text to read")
    return documents


def standard_library() -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """The source code of the standard library of the running Python.

    Returns:
        Its folder, the suffixes to read, and the names to leave out, as ``read_documents`` takes them.
    """
    import sysconfig

    return sysconfig.get_path("stdlib"), (".py",), _NOT_THE_LIBRARY


def hold_out(documents: Sequence[Document], fraction: float) -> tuple[list[Document], list[Document]]:
    """Split documents into those to train on and those to validate on.

    Of several documents whole ones are held out, by the SHA-256 of their names: the choice depends on nothing
    else, and a file stays on its side when others come. Of a single one its end is held out.

    Args:
        fraction: the part to hold out: the chance of each document, or the part of the characters of one.

    Raises:
        DataError: there is too little text to split.
    """
    if len(documents) == 1:
        [whole] = documents
        cut = int(len(whole.text) * (1 - fraction))
        parts = Document(whole.name, whole.text[:cut]), Document(whole.name, whole.text[cut:])
        if not all(part.text for part in parts):
            raise DataError(f"{whole.name}: {len(whole.text)} characters are too few to hold out a part")
        return [parts[0]], [parts[1]]
    ranked = sorted(documents, key=_rank)
    # At least one on each side, however few there are.
    held = min(max(sum(_rank(document) < fraction for document in ranked), 1), len(ranked) - 1)
    chosen = set(map(id, ranked[:held]))
    return (
        [document for document in documents if id(document) not in chosen],
        [document for document in documents if id(document) in chosen],
    )


def _rank(document: Document) -> float:
    digest = hashlib.sha256(document.name.encode("utf-8", errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _files_below(folder: Path, suffix: Sequence[str], exclude: Sequence[str]) -> Iterator[Path]:
    endings = tuple(end if end.startswith(".") else f".{end}" for end in suffix)
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or any(fnmatch(path.name, pattern) for pattern in exclude):
            continue
        if path.is_dir():
            # A link to a folder may lead back up and never end.
            if not path.is_symlink():
                yield from _files_below(path, suffix, exclude)
        elif path.is_file() and (not endings or path.name.endswith(endings)):
            yield path


def _read_file(path: Path, name: str, text_field: str) -> list[Document]:
    text = _read_text(path)
    if path.suffix == ".jsonl":
        # Not splitlines(): JSON strings may hold U+2028 and the like as they are.
        lines = enumerate(text.split("\n"), start=1)
        documents = [
            Document(f"{name}:{number}", _text_of_line(line, path, number, text_field))
            for number, line in lines
            if line.strip()
        ]
    else:
        documents = [Document(name, text)]
    return [document for document in documents if document.text]


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file or folder") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    advice = "convert it, or leave it out (in a folder: --suffix, --exclude)"
    zero = data.find(b"\0")
    if zero >= 0:
        raise DataError(f"{path}: not a text file: there is a NUL byte at offset {zero}; {advice}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not a text file in UTF-8: there is a byte 0x{data[error.start]:02x} "
            f"at offset {error.start}; {advice}"
        ) from error


def _text_of_line(line: str, path: Path, number: int, text_field: str) -> str:
    where = f"{path}, line {number}"
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: broken JSON: {error}") from error
    if not isinstance(value, dict) or text_field not in value:
        has = f"; it has {', '.join(map(repr, value))}" if isinstance(value, dict) and value else ""
        raise DataError(f"{where}: there is no field {text_field!r}{has}; name one with --text-field")
    if not isinstance(value[text_field], str):
        raise DataError(f"{where}: the field {text_field!r} is {type(value[text_field]).__name__}, not text")
    return value[text_field]
