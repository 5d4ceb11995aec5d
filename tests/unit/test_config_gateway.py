"""The settings of the gateways: [gateway], and the addresses in [server]."""

from __future__ import annotations

import pytest

from tfpool import config
from tfpool.addresses import check_gateway, is_loopback
from tfpool.cpus import gateway_processes
from tfpool.errors import InvalidArgument
from tfpool.settings import GatewaySettings


def test_every_gateway_key() -> None:
    text = (
        "[server]\nhttp = '0.0.0.0:8501'\ngrpc = 8500\n[gateway]\nprocesses = 3\ntokens = 'tokens'\n"
        "tls_cert = 'cert'\ntls_key = 'key'\ntls_client_ca = 'ca'\ncors_origins = ['https://a.b']\n"
        "max_body = '1MiB'\nread_s = 1\ntimeout_s = 2\nidle_s = 3\notlp_endpoint = 'http://c:4318'\n"
    )
    paths = [f"/etc/{name}" for name in ("tokens", "cert", "key", "ca")]
    wanted = GatewaySettings(3, *paths, ("https://a.b",), 1 << 20, 1, 2, 3, "http://c:4318")
    settings = config.parse(text, "/etc/pool.toml")
    assert settings.gateway == wanted
    assert (settings.server.http, settings.server.grpc) == ("0.0.0.0:8501", "127.0.0.1:8500")


@pytest.mark.parametrize(
    ("address", "host"), [("127.0.0.1:80", True), ("localhost:80", True), ("[::1]:80", True), ("0.0.0.0:80", False)]
)
def test_who_can_reach_an_address(address: str, host: bool) -> None:
    assert is_loopback(address.rpartition(":")[0]) is host
    if host:
        check_gateway(address, insecure=False, tokens=False)
    else:
        with pytest.raises(InvalidArgument, match="can be reached from other hosts"):
            check_gateway(address, insecure=False, tokens=False)
        check_gateway(address, insecure=True, tokens=False)
        check_gateway(address, insecure=False, tokens=True)


@pytest.mark.parametrize(("count", "processes"), [(1, 1), (2, 1), (8, 2), (64, 16)])
def test_as_many_gateways_as_the_cpus_call_for(count: int, processes: int) -> None:
    assert gateway_processes(GatewaySettings(), range(count)) == processes
    assert gateway_processes(GatewaySettings(processes=5), range(count)) == 5
