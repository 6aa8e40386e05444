"""Training: sentence lists, the tokenizer, text tasks, corruption, losses and the staged recipe."""
