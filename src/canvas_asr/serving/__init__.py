"""The server: ``canvas-asr serve`` and what it is made of."""
