"""From a constraint to a compiled grammar, in processes that may crash."""
