"""Runs that learn what pictures show."""
