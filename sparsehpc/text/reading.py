"""Read UTF-8 text; what cannot be read is one clear error."""

from __future__ import annotations

from pathlib import Path

from sparsehpc.core.errors import UserError


def read_utf8(path: Path, what: str) -> str:
    """Text of a file, line ends as stored, without a byte-order mark.

    Parameters
    ----------
    path
        The file.
    what
        How errors call it, for example ``corpus file:notes.txt``.

    Raises
    ------
    UserError
        The file is missing, unreadable, not UTF-8, or holds nothing but white space.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        hint = "check the path; in a study file a relative one starts at the file's folder"
        raise UserError(f"{what}: there is no file {path}", hint) from error
    except OSError as error:
        raise UserError(f"{what}: {path} cannot be read: {error.strerror or error}") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{what}: {path} is not UTF-8 (byte 0x{raw[error.start]:02x} at offset {error.start})",
            f"convert it: iconv -f ISO-8859-1 -t UTF-8 {path} > NEW",
        ) from error
    if not text.strip():
        raise UserError(f"{what}: {path} holds no text")
    return text
