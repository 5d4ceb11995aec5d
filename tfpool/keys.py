"""CURVE keys in files: what a server is, what a client is, and who is let in as what.

A key file has lines of ``key = value``; an authorized_keys file has lines of ``ROLE PUBLIC NAME``. A line that begins
with ``#`` is a comment. Keys are 40 characters of Z85, as ZeroMQ writes them.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from enum import Enum
from typing import NoReturn

from tfpool.errors import InvalidArgument, NotFound, PermissionDenied

MAX_FILE_BYTES = 1 << 20
_ALPHABET = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_DIGITS = {byte: i for i, byte in enumerate(_ALPHABET)}
_KEY_CHARACTERS = 40
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}", re.ASCII)
READ_BY_OTHERS, _WRITTEN_BY_OTHERS = 0o077, 0o022


class Role(Enum):
    """What a client may do: predict and look, or change the pool as well."""

    PREDICT = "predict"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class ServerKeys:
    """The key pair of a server, Z85."""

    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ClientKeys:
    """The key pair of a client, and the public key of the server it trusts, Z85."""

    public: bytes
    secret: bytes = field(repr=False)
    server: bytes


@dataclass(frozen=True, slots=True)
class Authorized:
    """Somebody who is let in."""

    name: str
    role: Role


def read_server_keys(path: str) -> ServerKeys:
    """The file that ``[server] curve_key`` names.

    Raises NotFound, PermissionDenied where others may read it, InvalidArgument for anything but such a file.
    """
    public, secret = _read_keys(path, ("public", "secret"))
    return ServerKeys(public, secret)


def read_client_keys(path: str) -> ClientKeys:
    """A client's key file. Raises as :func:`read_server_keys` does."""
    public, secret, server = _read_keys(path, ("public", "secret", "server"))
    return ClientKeys(public, secret, server)


def read_authorized(path: str) -> dict[bytes, Authorized]:
    """Who is let in, by public key (Z85); no name and no key stands there twice.

    Raises NotFound, PermissionDenied where others may write it, InvalidArgument for anything but such a file.
    """
    found: dict[bytes, Authorized] = {}
    names: set[str] = set()
    for number, line in lines(path, _WRITTEN_BY_OTHERS):
        words = line.split()
        if len(words) != 3:
            _fail(path, number, f"got {len(words)} words, expected ROLE PUBLIC NAME")
        role, public, name = words
        if role not in {r.value for r in Role}:
            _fail(path, number, f"role: got {role[:40]!r}, expected {' or '.join(r.value for r in Role)}")
        try:
            key, known = check_key(public), check_name(name)
        except InvalidArgument as error:
            _fail(path, number, error.message)
        if key in found or known in names:
            _fail(path, number, f"got {'the key' if key in found else 'the name'} of {known!r} twice")
        found[key] = Authorized(known, Role(role))
        names.add(known)
    return found


def check_key(text: str) -> bytes:
    """A key as Z85. Raises InvalidArgument, without the text: it may be a secret."""
    key = text.encode(errors="replace")
    groups = (key[at : at + 5] for at in range(0, len(key), 5))
    if len(key) == _KEY_CHARACTERS and all(map(_is_word, groups)):
        return key
    raise InvalidArgument(f"got {len(key)} characters, expected a key: {_KEY_CHARACTERS} of Z85")


def check_name(name: str) -> str:
    """The name of a client, which is also that of a file. Raises InvalidArgument."""
    if _NAME.fullmatch(name):
        return name
    raise InvalidArgument(f"got name {name[:40]!r}, expected 1 to 64 letters, digits and any of '_.@-'")


def _is_word(group: bytes) -> bool:
    """Whether five characters are a number of 32 bits."""
    value = 0
    for byte in group:
        if byte not in _DIGITS:
            return False
        value = value * len(_ALPHABET) + _DIGITS[byte]
    return value < 1 << 32


def _read_keys(path: str, names: tuple[str, ...]) -> list[bytes]:
    keys: dict[str, bytes] = {}
    for number, line in lines(path, READ_BY_OTHERS):
        name, equals, value = line.partition("=")
        name = name.strip()
        if not equals or name not in names:
            _fail(path, number, f"expected a line KEY = VALUE with one of {', '.join(names)}")  # it may be a secret
        if name in keys:
            _fail(path, number, f"got {name} twice")
        try:
            keys[name] = check_key(value.strip())
        except InvalidArgument as error:
            _fail(path, number, f"{name}: {error.message}")
    missing = [name for name in names if name not in keys]
    if missing:
        raise InvalidArgument(f"{path}: got no {', '.join(missing)}, expected {', '.join(names)}")
    return [keys[name] for name in names]


def lines(path: str, forbidden: int) -> list[tuple[int, str]]:
    """The lines that say something, numbered from 1, of a file that others have no ``forbidden`` access to."""
    try:
        with open(path, "rb", opener=_opener) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InvalidArgument(f"{path}: expected a file")
            mode = stat.S_IMODE(status.st_mode)
            if mode & forbidden:
                verb = "read" if forbidden & 0o044 else "write"
                raise PermissionDenied(f"{path}: others may {verb} it (mode {mode:04o}), expected mode 0600")
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise NotFound(f"{path}: no such file") from None
    except PermissionError as error:
        raise PermissionDenied(f"{path}: {error.strerror}") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise InvalidArgument(f"{path}: cannot be read: {error}") from None
    if len(data) > MAX_FILE_BYTES:
        raise InvalidArgument(f"{path}: got more than {MAX_FILE_BYTES} bytes")
    text = data.decode(errors="replace")
    numbered = ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1))
    return [(number, line) for number, line in numbered if line and not line.startswith("#")]


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a named pipe is no key file, and must not be waited for


def _fail(path: str, number: int, problem: str) -> NoReturn:
    raise InvalidArgument(f"{path}:{number}: {problem}")
