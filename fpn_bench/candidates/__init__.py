"""Candidates: what they are, what they cost, how they are trained and judged, and the trained model in one file.

`candidate` is one as data; `context` (`EvaluationContext`) is what those of one study share, over `backbone` (loaded
ones), `costs`, `latency` and `training`; `evaluation` asks all three; `model` is a trained detector; `full_training`
trains one to the end.
"""
