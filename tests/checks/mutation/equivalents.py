"""Mutants that are right answers, each with the reason: exercise -> reason -> "operator: old line -> new line"."""

EQUIVALENTS: dict[str, dict[str, list[str]]] = {}
