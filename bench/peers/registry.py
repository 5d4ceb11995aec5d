"""All peers; a new one is added here."""

from __future__ import annotations

from collections.abc import Mapping

from bench.peers import mosec
from bench.peers.peer import Peer

PEERS: Mapping[str, Peer] = {peer.name: peer for peer in (mosec.Mosec(),)}
