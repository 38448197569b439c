"""Kinds of models and runs: what an export serves and measures, and what a verification asks.

There is one adapter per kind; no other code in `tfdeq.serving` checks a model's class. To add one,
write a module with a `Kind`, and add it to `tfdeq.serving.kinds.runs`.
"""
