"""The vLLM engine. Only this package imports vllm, torch or transformers, and only once the engine starts."""
