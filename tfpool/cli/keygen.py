"""The keygen command: keys for tcp, in files."""

from __future__ import annotations

import os

import click

from tfpool.errors import FailedPrecondition, InvalidArgument, PermissionDenied
from tfpool.keys import Role, check_name, read_authorized, read_server_keys

_SERVER = "server"


def _client_name(text: str) -> str:
    try:
        check_name(text)
    except InvalidArgument as error:
        raise click.BadParameter(error.message) from None
    if text == _SERVER:
        raise click.BadParameter(f"got {text!r}, which is the name of the server's own key")
    return text


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False))
@click.option(
    "--client", type=_client_name, default="client", show_default=True, metavar="NAME", help="Who gets a key."
)
@click.option(
    "--role",
    type=click.Choice([role.value for role in Role]),
    default=Role.PREDICT.value,
    show_default=True,
    help="What the client may do; admin may predict as well.",
)
def keygen(directory: str, client: str, role: str) -> None:
    """Make keys for encrypted tcp.

    DIR gets server.key, if there is none yet, NAME.key for a client, and a line in authorized_keys that lets it in. A
    pool that runs sees the line within seconds. Nothing is ever overwritten; to keep a client out, remove its line.

    \b
      tfpool keygen keys --client ann --role admin
      tfpool serve ... --listen tcp://0.0.0.0:5555 --curve-key keys/server.key --authorized-keys keys/authorized_keys
      tfpool predict ... --connect tcp://HOST:5555 --keys ann.key
    """
    import zmq

    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        server_file, client_file, authorized = (
            os.path.join(directory, name) for name in (f"{_SERVER}.key", f"{client}.key", "authorized_keys")
        )
        if os.path.lexists(client_file):
            raise FailedPrecondition(f"{client_file} exists; nothing is overwritten")
        if os.path.lexists(authorized) and client in {known.name for known in read_authorized(authorized).values()}:
            raise FailedPrecondition(f"{authorized} has {client!r} already; remove that line, or choose another name")
        if not os.path.lexists(server_file):
            _write_key(server_file, "the server's key", *zmq.curve_keypair())
        server = read_server_keys(server_file)
        public, secret = zmq.curve_keypair()
        _write_key(client_file, f"the key of {client}", public, secret, server.public)
        _append(authorized, f"{role} {public.decode()} {client}\n")
    except OSError as error:
        raise PermissionDenied(f"{error.filename or directory}: {error.strerror}") from None
    for path, what in (
        (server_file, "the server's own: --curve-key"),
        (client_file, f"for {client}, role {role}: --keys"),
        (authorized, "who gets in: --authorized-keys"),
    ):
        click.echo(f"{path}  ({what})")


def _write_key(path: str, what: str, public: bytes, secret: bytes, server: bytes | None = None) -> None:
    lines = [f"# {what} for tfpool; whoever has this file can act in its name", f"public = {public.decode()}"]
    lines += [f"secret = {secret.decode()}"]
    if server is not None:
        lines += [f"server = {server.decode()}"]
    _write(path, "\n".join(lines) + "\n", os.O_EXCL)


def _append(path: str, line: str) -> None:
    """One line more, on a line of its own."""
    begun = ""
    if os.path.lexists(path):
        with open(path, "rb") as file:
            begun = "" if file.read()[-1:] in (b"", b"\n") else "\n"
    else:
        begun = "# ROLE PUBLIC-KEY NAME: the clients that get in; read again when it changes\n"
    _write(path, begun + line, os.O_APPEND)


def _write(path: str, text: str, flag: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | flag, 0o600)
    with open(fd, "w", encoding="ascii") as file:
        file.write(text)
