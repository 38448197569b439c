"""Kinds of models and runs: what is served of them, measured, and asked in a verification.

One adapter a kind; nothing else of `tfdeq.serving` asks for a model's class. To add one, write a module with
a `Kind`, and name it in `tfdeq.serving.kinds.runs`.
"""
