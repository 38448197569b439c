"""Tests of tfdeq.training.reasoning."""
