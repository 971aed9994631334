"""Everything that is decided and checked before vLLM's engine starts."""
