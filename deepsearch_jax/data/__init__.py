"""Problem sets, prompts, tokenizers, the resumable problem iterator and the arithmetic task.

Import from the modules: transformers and grain take seconds to load and are needed by few callers.
"""
