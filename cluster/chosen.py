"""The network that a user means who names a run, or a network's file."""

from __future__ import annotations

from cluster.controls import GRID
from cluster.evaluation import choose, network_uris
from cluster.found_loop import StoredNetwork, read_network
from cluster.runs import part_uris, read_search
from data_prep import storage
from data_prep.storage import InputError


def network_of(run: str | None, network: str | None) -> StoredNetwork:
    """A run's found network (best on dev), or the one in a file. Raises InputError unless exactly one is named."""
    if (run is None) == (network is None):
        raise InputError("give either --run, for its found network, or --network, for a network's file.")
    if network is not None:
        return read_network(storage.absolute(network))
    run_uri = storage.absolute(str(run))
    read_search(run_uri)  # refuses what is none
    if parts := part_uris(run_uri):
        raise InputError(
            f"{run} is a run of several parts, each with its networks; give one as --run: {', '.join(parts.values())}."
        )
    uris = {name: uri for name, uri in network_uris(run_uri).items() if name.startswith(f"{GRID}/")}
    networks = {name: read_network(uri) for name, uri in uris.items()}
    found = choose({name: stored.facts for name, stored in networks.items()}, (GRID,))
    assert found is not None  # network_uris refuses a run without networks of the grid
    return networks[found]
