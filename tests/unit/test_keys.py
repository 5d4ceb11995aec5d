"""Key files: what is read, what is refused and why; no secret ever shows."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import zmq
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils import z85

from tfpool.cli.main import main
from tfpool.errors import InvalidArgument, NotFound, PermissionDenied, TfpoolError
from tfpool.keys import (
    Authorized,
    ClientKeys,
    Role,
    ServerKeys,
    check_key,
    read_authorized,
    read_client_keys,
    read_server_keys,
)

# the first is the reference text of ZeroMQ RFC 32, twice
A = "HelloWorld" * 4
B = "0" * 40
C = "0#" + "0" * 38


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "some.key"


def write(file: Path, text: str | bytes, mode: int = 0o600) -> str:
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    file.chmod(mode)
    return str(file)


def test_key_files(file: Path) -> None:
    path = write(file, f"# a comment\n\n public={A}\nsecret =  {B}\t\r\nserver = {C}\n# end")
    assert read_client_keys(path) == ClientKeys(A.encode(), B.encode(), C.encode())
    path = write(file, f"secret = {C}\npublic = {A}")
    assert read_server_keys(path) == ServerKeys(A.encode(), C.encode())


def test_what_stands_in_a_key_file_is_z85_and_no_comment(file: Path) -> None:
    equals = "=" + "0" * 39
    assert read_server_keys(write(file, f"public ={equals}\nsecret={C}")) == ServerKeys(equals.encode(), C.encode())


def test_no_secret_shows(file: Path) -> None:
    secret = "SECRET" + "0" * 34
    path = write(file, f"public = {A}\nsecret = {secret}\nserver = {B}")
    assert "SECRET" not in repr(read_client_keys(path))
    for text in (f"public = {A}\nsecret = {secret}0\nserver = {B}", f"secret {secret}", f"secret: {secret}"):
        with pytest.raises(InvalidArgument) as caught:
            read_client_keys(write(file, text))
        assert "SECRET" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", ": got no public, secret, expected public, secret"),
        (f"public = {A}", ": got no secret, expected"),
        (f"public = {A}\nsecret = {A}\nsecret = {A}", ":3: got secret twice"),
        (f"public = {A}\nserver = {A}", ":2: expected a line KEY = VALUE with one of public, secret"),
        (f"public = {A}\nsecret = {A[1:]}", ":2: secret: got 39 characters, expected a key: 40 of Z85"),
        (f"public = {A}\nsecret = {'~' * 40}", ":2: secret: got 40 characters, expected a key"),
        (f"public = {A}\nsecret = {'#' * 40}", ":2: secret: got 40 characters, expected a key"),
        (f"public = \xff{A[1:]}", ":1: public: got"),
        ("public", ":1: expected a line KEY = VALUE"),
        ("x" * (1 << 20) + "xx", ": got more than 1048576 bytes"),
    ],
)
def test_what_is_no_key_file(file: Path, text: str, problem: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read_server_keys(write(file, text))
    assert caught.value.message.startswith(f"{file}{problem}")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601, 0o777])
def test_secrets_that_others_may_read_are_refused(file: Path, mode: int) -> None:
    path = write(file, f"public = {A}\nsecret = {A}", mode)
    with pytest.raises(PermissionDenied, match=rf"others may read it \(mode {mode:04o}\), expected mode 0600"):
        read_server_keys(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    for read in (read_server_keys, read_client_keys, read_authorized):
        with pytest.raises(NotFound, match="no such file"):
            read(str(tmp_path / "nowhere"))
        for path in (tmp_path, pipe):
            with pytest.raises(InvalidArgument):
                read(str(path))
        with pytest.raises(InvalidArgument, match="cannot be read"):
            read("a\0b")


def test_authorized_keys(file: Path) -> None:
    path = write(file, f"# ROLE PUBLIC NAME\n\nadmin {A} ann\n  predict\t{B}  pete@host-1.example  \n", 0o644)
    assert read_authorized(path) == {
        A.encode(): Authorized("ann", Role.ADMIN),
        B.encode(): Authorized("pete@host-1.example", Role.PREDICT),
    }
    assert read_authorized(write(file, "")) == {}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"admin {A}", ":1: got 2 words, expected ROLE PUBLIC NAME"),
        (f"admin {A} ann lee", ":1: got 4 words"),
        (f"#\nroot {A} ann", ":2: role: got 'root', expected predict or admin"),
        (f"admin {A}0 ann", ":1: got 41 characters, expected a key"),
        (f"admin {A} ../ann", ":1: got name '../ann', expected 1 to 64"),
        (f"admin {A} ann\npredict {A} bob", ":2: got the key of 'bob' twice"),
        (f"admin {A} ann\npredict {B} ann", ":2: got the name of 'ann' twice"),
    ],
)
def test_what_is_no_list(file: Path, text: str, problem: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read_authorized(write(file, text))
    assert caught.value.message.startswith(f"{file}{problem}")


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_list_that_others_may_write_is_refused(file: Path, mode: int) -> None:
    with pytest.raises(PermissionDenied, match="others may write it"):
        read_authorized(write(file, f"admin {A} ann", mode))


@given(st.binary(min_size=32, max_size=32))
def test_every_key_is_a_key(key: bytes) -> None:
    assert z85.decode(check_key(z85.encode(key).decode())) == key


@given(st.text(max_size=44) | st.text(alphabet="#$%@0", min_size=40, max_size=40))
def test_what_is_checked_can_be_used(text: str) -> None:
    try:
        key = check_key(text)
    except InvalidArgument:
        return
    assert z85.encode(z85.decode(key)) == key


# -- keygen --------------------------------------------------------------------------------------------------------


def keygen(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["keygen", *map(str, arguments)])


def test_keygen(tmp_path: Path) -> None:
    place = tmp_path / "keys"
    done = keygen(place)
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.output.splitlines()] == [
        str(place / name) for name in ("server.key", "client.key", "authorized_keys")
    ]
    server = read_server_keys(str(place / "server.key"))
    client = read_client_keys(str(place / "client.key"))
    assert zmq.curve_public(server.secret) == server.public == client.server
    assert zmq.curve_public(client.secret) == client.public
    assert keygen(place, "--client", "ann", "--role", "admin").exit_code == 0
    ann = read_client_keys(str(place / "ann.key"))
    assert ann.server == server.public, "the server's key stays"
    assert read_authorized(str(place / "authorized_keys")) == {
        client.public: Authorized("client", Role.PREDICT),
        ann.public: Authorized("ann", Role.ADMIN),
    }
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in place.iterdir()} == {0o600}


def test_keygen_overwrites_nothing(tmp_path: Path) -> None:
    assert keygen(tmp_path).exit_code == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for change in (None, (tmp_path / "client.key").unlink):
        if change is not None:
            change()
        done = keygen(tmp_path, "--role", "admin")
        assert done.exit_code == 1
        assert "FAILED_PRECONDITION" in done.output
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == {
        path: text for path, text in before.items() if path.name != "client.key"
    }


def test_keygen_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "bob.key").symlink_to(tmp_path / "victim")
    assert keygen(tmp_path, "--client", "bob").exit_code == 1
    assert not (tmp_path / "victim").exists()


def test_keygen_ends_the_last_line_of_a_list(tmp_path: Path) -> None:
    write(tmp_path / "authorized_keys", f"admin {A} ann")
    assert keygen(tmp_path).exit_code == 0
    assert {known.name for known in read_authorized(str(tmp_path / "authorized_keys")).values()} == {"ann", "client"}


@pytest.mark.parametrize("name", ["server", "", "a/b", "..", "a b", "-x", "x" * 65])
def test_keygen_refuses_a_name(tmp_path: Path, name: str) -> None:
    assert keygen(tmp_path / "keys", f"--client={name}").exit_code == 2
    assert not (tmp_path / "keys").exists()


def test_keygen_says_what_is_wrong_with_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert keygen(tmp_path / "file").exit_code == 2
    write(tmp_path / "server.key", f"public = {A}\nsecret = {A}", 0o644)
    done = keygen(tmp_path)
    assert done.exit_code == 1
    assert "others may read it" in done.output
    with pytest.raises(TfpoolError):
        read_client_keys(str(tmp_path / "client.key"))
