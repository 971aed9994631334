"""The only code that imports vllm, torch or transformers, and never before the engine starts."""
