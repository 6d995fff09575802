"""Which slice holds a model, and how fast it can be there: compiled for TPUs that are not there."""

from gr_jax.planning._environment import require_compiler, without_accelerators
from gr_jax.planning._plan import Plan, make_plan, needed_memory, smallest
from gr_jax.planning._programs import Search, Training, random_docids
from gr_jax.planning._suggest import suggest_search, suggest_training
from gr_jax.planning._topologies import Topology, parse_topology, slices_of

__all__ = [
    "Plan",
    "Search",
    "Topology",
    "Training",
    "make_plan",
    "needed_memory",
    "parse_topology",
    "random_docids",
    "require_compiler",
    "slices_of",
    "smallest",
    "suggest_search",
    "suggest_training",
    "without_accelerators",
]
