"""All peers; a new one is added here."""

from __future__ import annotations

from collections.abc import Mapping

from bench.peers import bentoml, litserve, mlserver, mosec, ray_serve, triton
from bench.peers.peer import Peer

_ALL = (
    triton.Triton(),
    mosec.Mosec(),
    ray_serve.RayServe(),
    litserve.LitServe(),
    bentoml.BentoMl(),
    mlserver.MlServer(),
)
PEERS: Mapping[str, Peer] = {peer.name: peer for peer in _ALL}
