"""Scores, fixed test sets and the evaluation run. Needs the extra ``[eval]`` (jiwer, whisper-normalizer)."""
