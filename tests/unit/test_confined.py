"""Files of a model lie in trusted places, wherever links lead; sockets and their directories are a user's own."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tfpool import config
from tfpool.errors import InvalidArgument, PermissionDenied
from tfpool.repository.describe import describe, fingerprint
from tfpool.repository.scan import check_inside, trusted_roots
from tfpool.settings import ServerSettings
from tfpool.supervisor.ground import Claim


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    (tmp_path / "in" / "1" / "variables").mkdir(parents=True)
    (tmp_path / "in" / "1" / "saved_model.pb").write_bytes(b"")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("secret")
    return tmp_path / "in"


LINKS = {
    "the version": ("2", "../out"),
    "the graph": ("1/saved_model.pbtxt", "../../out/file"),
    "a directory": ("1/assets", "../../out"),
    "a file of variables": ("1/variables/variables.index", "../../../out/file"),
    "absolute": ("1/x", "/etc/passwd"),
    "by way of another": ("1/x", "../../by/file"),
}


@pytest.mark.parametrize(("link", "target"), LINKS.values(), ids=LINKS)
def test_a_link_that_leads_out(inside: Path, link: str, target: str) -> None:
    (inside.parent / "by").symlink_to("out")
    (inside / link).symlink_to(target)
    version = str(inside / link[0])
    with pytest.raises(PermissionDenied, match=r" leads to /.*, which is outside of allowed_roots"):
        describe(version, roots=[str(inside)])
    assert fingerprint(version, [str(inside), "/etc", str(inside.parent / "out")]) == fingerprint(version)


def test_links_that_stay_inside(inside: Path) -> None:
    shared = inside / "shared"
    shared.mkdir()
    (shared / "weights").write_text("x")
    (inside / "1" / "assets").symlink_to("../shared")
    (inside / "1" / "variables" / "w").symlink_to(shared / "weights")
    (inside.parent / "alias").symlink_to(inside)
    for version in (inside / "1", inside.parent / "alias" / "1"):
        for root in (inside, inside.parent / "alias"):
            assert fingerprint(str(version), [str(root)]) == fingerprint(str(version))


def test_a_link_behind_a_link(inside: Path) -> None:
    (inside / "shared").mkdir()
    (inside / "shared" / "away").symlink_to(inside.parent / "out" / "file")
    (inside / "1" / "assets").symlink_to("../shared")
    with pytest.raises(PermissionDenied, match="shared/away leads to"):
        fingerprint(str(inside / "1"), [str(inside)])


def test_inside() -> None:
    check_inside("/a/b/c", ["/x", "/a/b"])
    check_inside("/a/b", ["/a/b/"])
    check_inside("/a", ["/"])
    for path in ("/a/bc", "/a", "/a/b/../c"):
        with pytest.raises(PermissionDenied, match=r"is outside of allowed_roots"):
            check_inside(path, ["/a/b"])


def test_what_the_configuration_names_is_trusted(inside: Path) -> None:
    settings = config.build({"m": str(inside)}, models_root="/models", allowed_roots=["/srv"])
    assert trusted_roots(settings) == ("/srv", str(inside), "/models")
    assert trusted_roots(config.build({"m": str(inside)}, models_root="/models")) == ()


# -- the ground ----------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> ServerSettings:
    return ServerSettings((f"ipc://{tmp_path}/place/pool",), f"ipc://{tmp_path}/place/admin")


def test_directories_that_are_made_are_private(server: ServerSettings, tmp_path: Path) -> None:
    Claim(server).release()
    assert (tmp_path / "place").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("mode", "warned"), [(0o755, False), (0o775, True), (0o757, True), (0o1777, False)])
def test_directories_that_others_may_write_to_are_warned_of(
    server: ServerSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, warned: bool
) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / "place").chmod(mode)
    Claim(server).release()
    assert [record.getMessage() for record in caplog.records] == ["endpoint.open"] * warned


def test_a_lock_that_leads_elsewhere_is_not_followed(server: ServerSettings, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "pool.lock").symlink_to(victim)
    with pytest.raises(PermissionDenied, match=r"pool\.lock: "):
        Claim(server)
    assert victim.read_text() == "precious"


def test_a_default_directory_that_is_a_link_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "tfpool").symlink_to("mine")
    server = ServerSettings((f"ipc://{tmp_path}/tfpool/pool",), f"ipc://{tmp_path}/tfpool/admin")
    with pytest.raises(PermissionDenied, match="expected mode 0700"):
        Claim(server)
    (tmp_path / "tfpool").unlink()
    Claim(server).release()


def test_keys_are_complete_and_can_be_read(server: ServerSettings, tmp_path: Path) -> None:
    exposed = replace(server, listen=("tcp://0.0.0.0:7",))
    with pytest.raises(InvalidArgument, match=r"can be reached from other hosts.*keygen"):
        Claim(exposed)
    key, known = str(tmp_path / "server.key"), str(tmp_path / "authorized_keys")
    for half in ({"curve_key": key}, {"authorized_keys": known}):
        with pytest.raises(InvalidArgument, match=r"without .*, expected both"):
            Claim(replace(exposed, **half))
    for path, text in ((key, f"public={'0' * 40}\nsecret={'0' * 40}"), (known, "")):
        with pytest.raises(Exception, match="no such file"):
            Claim(replace(exposed, curve_key=key, authorized_keys=known))
        Path(path).write_text(text)
        os.chmod(path, 0o600)
    Claim(replace(exposed, curve_key=key, authorized_keys=known)).release()
    os.chmod(key, 0o644)
    with pytest.raises(PermissionDenied, match="others may read it"):
        Claim(replace(exposed, curve_key=key, authorized_keys=known))
