"""Who gets in with which token, what a file of tokens may say, and which pages may call."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool.errors import InvalidArgument, NotFound, PermissionDenied, TfpoolError, Unauthenticated
from tfpool.gateway import access
from tfpool.gateway.access import Keeper, check_files, read_tokens
from tfpool.gateway.http import Access, Headers, refusal
from tfpool.settings import GatewaySettings

LOOKER, CALLER, BOSS = "look-" + "a" * 20, "call-" + "b" * 20, "boss-" + "c" * 20
FILE = f"# who\n\nmonitor {LOOKER}\n  predict\t{CALLER} pete \r\nadmin {BOSS} ann@example\n"
Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str | bytes, mode: int = 0o600) -> str:
        file = tmp_path / "tokens"
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        file.chmod(mode)
        return str(file)

    return write


def said(token: str) -> Headers:
    return ((b"host", b"h"), (b"authorization", f"Bearer {token}".encode()))


@pytest.mark.parametrize(("token", "role"), [(LOOKER, Access.MONITOR), (CALLER, Access.PREDICT), (BOSS, Access.ADMIN)])
def test_a_role_allows_what_those_before_it_do(write: Write, token: str, role: Access) -> None:
    keeper = Keeper(GatewaySettings(tokens=write(FILE)))
    for wanted in Access:
        if wanted <= role:
            assert keeper.check(said(token), wanted) is role
        else:
            with pytest.raises(
                PermissionDenied, match=rf"the role {role.name.lower()}, expected {wanted.name.lower()}"
            ):
                keeper.check(said(token), wanted)


WRONG = [
    (),
    ((b"authorization", b""),),
    ((b"authorization", b"Bearer"),),
    ((b"authorization", b"Bearer "),),
    ((b"authorization", f"Basic {BOSS}".encode()),),
    ((b"authorization", BOSS.encode()),),
    ((b"authorization", f"Bearer {BOSS}x".encode()),),
    ((b"authorization", f"Bearer {BOSS[:-1]}".encode()),),
    ((b"authorization", f"Bearer {BOSS.upper()}".encode()),),
    ((b"authorization", "Bearer é".encode()),),
    ((b"authorization", b"Bearer x"), (b"authorization", f"Bearer {BOSS}".encode())),
]


@pytest.mark.parametrize("headers", WRONG)
def test_whoever_has_no_token_of_ours_is_told_the_same(write: Write, headers: Headers) -> None:
    keeper = Keeper(GatewaySettings(tokens=write(FILE)))
    assert keeper.check(headers, Access.OPEN) is Access.OPEN
    for wanted in (Access.MONITOR, Access.PREDICT, Access.ADMIN):
        with pytest.raises(Unauthenticated) as caught:
            keeper.check(headers, wanted)
        assert caught.value.message == "expected a token of this server: Authorization: Bearer TOKEN"
        assert (b"www-authenticate", b"Bearer") in refusal(caught.value).headers


def test_how_a_token_is_said(write: Write) -> None:
    keeper = Keeper(GatewaySettings(tokens=write(FILE)))
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert keeper.check(((b"authorization", f"{scheme}  {BOSS} ".encode()),), Access.ADMIN) is Access.ADMIN


def test_every_token_is_compared(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = Keeper(GatewaySettings(tokens=write(FILE)))
    compared: list[bytes] = []

    def compare(known: bytes, digest: bytes) -> bool:
        compared.append(known)
        return known == digest

    monkeypatch.setattr(access, "compare_digest", compare)
    for token in (LOOKER, BOSS, "x"):
        compared.clear()
        keeper.check(said(token), Access.OPEN)
        assert len(compared) == 3


def test_without_tokens_everybody_may_do_everything() -> None:
    keeper = Keeper(GatewaySettings())
    for wanted in Access:
        assert keeper.check((), wanted) is Access.ADMIN


# -- the file ------------------------------------------------------------------------------------------------------


def test_tokens_are_kept_as_digests(write: Write) -> None:
    found = read_tokens(write(FILE))
    assert [role for _, role in found] == [Access.MONITOR, Access.PREDICT, Access.ADMIN]
    assert BOSS.encode() not in b"".join(digest for digest, _ in found)
    assert "boss" not in repr(vars(Keeper(GatewaySettings(tokens=write(FILE)))))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", ": got no token, expected at least one"),
        ("# nobody\n", ": got no token, expected at least one"),
        ("admin\n", ":1: got 1 words, expected ROLE TOKEN or ROLE TOKEN NAME"),
        (f"admin {BOSS} ann lee", ":1: got 4 words, expected ROLE TOKEN or ROLE TOKEN NAME"),
        (f"\nroot {BOSS}", ":2: expected a role first: monitor, predict, admin"),
        (f"Admin {BOSS}", ":1: expected a role first: monitor, predict, admin"),
        (f"{BOSS} admin", ":1: expected a role first: monitor, predict, admin"),
        ("admin SECRET,SECRET", ":1: expected a token of letters, digits and any of '-._~+/', '=' at its end"),
        ("admin SECRET=SECRET", ":1: expected a token of letters"),
        ("admin é", ":1: expected a token of letters"),
        (f"admin {BOSS} -ann/", ":1: got name '-ann/', expected 1 to 64 letters"),
        (f"admin {BOSS}\npredict {BOSS}", ":2: got the same token twice"),
    ],
)
def test_what_is_no_file_of_tokens(write: Write, text: str, problem: str) -> None:
    path = write(text)
    with pytest.raises(InvalidArgument) as caught:
        read_tokens(path)
    assert caught.value.message.startswith(f"{path}{problem}")
    assert "SECRET" not in caught.value.message
    assert BOSS not in caught.value.message


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o777])
def test_a_file_that_others_may_read_is_refused(write: Write, mode: int) -> None:
    path = write(FILE, mode)
    with pytest.raises(PermissionDenied, match="others may read it"):
        Keeper(GatewaySettings(tokens=path))
    with pytest.raises(InvalidArgument, match="others may read it"):
        check_files(GatewaySettings(tokens=path))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file"):
        read_tokens(str(tmp_path / "nowhere"))
    with pytest.raises(InvalidArgument, match="no such file"):
        check_files(GatewaySettings(tokens=str(tmp_path / "nowhere")))
    check_files(GatewaySettings())


@given(st.binary(max_size=200))
def test_any_file_is_survived(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "some-tokens"
    path.touch(0o600)
    path.write_bytes(data)
    with suppress(TfpoolError):
        assert read_tokens(str(path))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_a_new_file_counts_within_a_second_and_a_broken_one_changes_nothing(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(access, "time", clock)
    path = write(FILE)
    keeper = Keeper(GatewaySettings(tokens=path))
    assert keeper.check(said(BOSS), Access.ADMIN) is Access.ADMIN
    new = "next-" + "d" * 20

    write(f"admin {new}")
    os.utime(path, ns=(1, 1))
    assert keeper.check(said(BOSS), Access.ADMIN) is Access.ADMIN  # it is not looked at on every request
    clock.now += 1
    assert keeper.check(said(new), Access.ADMIN) is Access.ADMIN
    with pytest.raises(Unauthenticated):
        keeper.check(said(BOSS), Access.ADMIN)

    for break_it in (lambda: write("admin"), lambda: write(FILE, 0o644), lambda: os.remove(path)):
        break_it()
        clock.now += 1
        assert keeper.check(said(new), Access.ADMIN) is Access.ADMIN
        with pytest.raises(Unauthenticated):
            keeper.check(said(BOSS), Access.ADMIN)
    write(FILE)
    clock.now += 1
    assert keeper.check(said(BOSS), Access.ADMIN) is Access.ADMIN


# -- pages ---------------------------------------------------------------------------------------------------------


def page(origin: str, host: str) -> Headers:
    return ((b"host", host.encode()), (b"origin", origin.encode()))


@pytest.mark.parametrize(
    ("origin", "host", "address"),
    [
        ("http://127.0.0.1:8501", "127.0.0.1:8501", None),
        ("http://localhost:8501", "localhost:8501", None),
        ("http://LOCALHOST:8501", "localhost:8501", None),
        ("http://[::1]:8501", "[::1]:8501", None),
        ("https://10.1.2.3", "10.1.2.3", None),
        ("http://gpu1.example:8501", "gpu1.example:8501", "gpu1.example:8501"),
        ("https://pages.example", "127.0.0.1:8501", None),  # named in cors_origins
    ],
)
def test_our_own_page_may_change_the_pool(origin: str, host: str, address: str | None) -> None:
    keeper = Keeper(GatewaySettings(cors_origins=("https://pages.example",)), address)
    assert keeper.check(page(origin, host), Access.ADMIN) is Access.ADMIN


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://evil.example", "127.0.0.1:8501"),
        ("http://evil.example:8501", "evil.example:8501"),  # its name server leads here
        ("http://localhost.evil.example:8501", "localhost.evil.example:8501"),
        ("http://127.0.0.1.evil.example", "127.0.0.1.evil.example"),
        ("http://127.0.0.1:9000", "127.0.0.1:8501"),
        ("null", "127.0.0.1:8501"),
        ("http://", ""),
        ("http://evil.example#@127.0.0.1:8501", "127.0.0.1:8501"),
        ("é", "127.0.0.1"),
    ],
)
def test_other_pages_may_not(origin: str, host: str) -> None:
    keeper = Keeper(GatewaySettings(), "0.0.0.0:8501")
    with pytest.raises(PermissionDenied, match="see cors_origins"):
        keeper.check(page(origin, host), Access.ADMIN)
    assert keeper.check(page(origin, host), Access.PREDICT) is Access.ADMIN
    anybody = Keeper(GatewaySettings(cors_origins=("*",)))
    assert anybody.check(page(origin, host), Access.ADMIN) is Access.ADMIN


def test_a_token_is_what_no_other_page_has(write: Write) -> None:
    keeper = Keeper(GatewaySettings(tokens=write(FILE)))
    assert keeper.check((*page("http://proxy.example", "inner"), *said(BOSS)), Access.ADMIN) is Access.ADMIN
