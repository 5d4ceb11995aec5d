"""A loaded SavedModel -> the files of an entry: one graph of all its signatures, and their weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tfpool.compiler import tables
from tfpool.compiler.freeze import freeze, optimize
from tfpool.compiler.tables import Table
from tfpool.compiler.weigh import Weigher
from tfpool.errors import FailedPrecondition
from tfpool.store import identity
from tfpool.store.manifest import GRAPH, WEIGHTS, Compiled, Feature, Manifest
from tfpool.worker import restore
from tfpool.worker.loader import Loaded, Signature

_LARGEST_GRAPH = 1 << 31


def tables_of(original: Loaded, meta: Any) -> list[Table]:
    """The tables that its signatures use; those of ``meta``'s graph have names from now on.

    Raises FailedPrecondition where they cannot be read, or what runs at the start is different each time.
    """
    graph = meta.graph_def
    tables.check_start(graph, restore.initializer(meta))
    tables.name_them(graph)
    named = (meta.signature_def[signature.spec.name].outputs.values() for signature in original.signatures)
    return tables.contents(original.session, graph, (info.name for outputs in named for info in outputs))


def build(
    draft: str, original: Loaded, meta: Any, held: Sequence[Table], about: Manifest, say: Callable[[str], None]
) -> Manifest:
    """Write the files to ``draft``. Raises FailedPrecondition for what cannot be compiled."""
    known = {tables.name_of(table.node) for table in held}
    signatures = []
    with open(os.path.join(draft, WEIGHTS), "wb") as file:
        weigher = Weigher(file)
        for number, signature in enumerate(original.signatures):
            name, prefix = signature.spec.name, f"s{number}"
            definition = meta.signature_def[name]
            say("freeze")
            frozen = freeze(original.session, meta.graph_def, definition, name)
            say("optimize")
            graph = optimize(frozen, definition, name)
            del frozen
            tables.check_state(graph, known, name)
            weigher.add(graph, prefix, _ends(definition))
            signatures.append(_compiled(signature, definition, prefix))
        weigher.finish()
        file.flush()
        os.fsync(file.fileno())  # pages that wait to be written would be measured as a process's own
    nodes, start = tables.filling(held)
    weigher.graph.node.extend(nodes)
    _write(os.path.join(draft, GRAPH), weigher.graph)
    return replace(
        about,
        signatures=tuple(signatures),
        skipped=original.skipped,
        weights=tuple(weigher.weights),
        digests={name: identity.digest(os.path.join(draft, name)) for name in (GRAPH, WEIGHTS)},
        start=start,
    )


def _ends(definition: Any) -> set[str]:
    """Names of the nodes that are fed and fetched."""
    return {info.name.partition(":")[0] for infos in (definition.inputs, definition.outputs) for info in infos.values()}


def _compiled(signature: Signature, definition: Any, prefix: str) -> Compiled:
    spec = signature.spec
    names = [f"{prefix}/{definition.outputs[tensor.name].name}" for tensor in spec.outputs]
    fetches = list(dict.fromkeys(names))
    return Compiled(
        spec,
        tuple(f"{prefix}/{definition.inputs[tensor.name].name}" for tensor in spec.inputs),
        tuple(fetches),
        tuple(fetches.index(name) for name in names),
        signature.inner,
        tuple(Feature(f.name, int(f.dtype), f.count) for f in signature.features),
    )


def _write(path: str, graph: Any) -> None:
    nbytes = graph.ByteSize()
    if nbytes >= _LARGEST_GRAPH:
        raise FailedPrecondition(f"its graph has {nbytes} bytes without the weights, expected less than 2 GiB")
    with open(path, "wb") as file:
        file.write(graph.SerializeToString())
