"""STGS-BMNAS: architecture search for the fusion of face and voice (IJCB 2024, arXiv 2406.13384)."""

from stgs.config import FoundConfig, InputError, SearchConfig, WeightSchedule, released_found_config
from stgs.cost import ExpectedParameters
from stgs.decoding import decode, entropies
from stgs.estimators import ESTIMATORS, gumbel_noise, relax
from stgs.found_network import FoundNetwork
from stgs.found_training import FoundTraining
from stgs.genotype import Genotype, count_macs, count_parameters, genotype_from_json
from stgs.population import PopulationSearch
from stgs.schedule import scheduled_temperature
from stgs.search_space import SearchSpace, search_space
from stgs.supernet import Member, Supernet

__all__ = [
    "ESTIMATORS",
    "ExpectedParameters",
    "FoundConfig",
    "FoundNetwork",
    "FoundTraining",
    "Genotype",
    "InputError",
    "Member",
    "PopulationSearch",
    "SearchConfig",
    "SearchSpace",
    "Supernet",
    "WeightSchedule",
    "count_macs",
    "count_parameters",
    "decode",
    "entropies",
    "genotype_from_json",
    "gumbel_noise",
    "relax",
    "released_found_config",
    "scheduled_temperature",
    "search_space",
]
