"""Costs of single parts beside the least that work of their kind costs: the guard against what makes them slower."""
