"""Figures of models that classify pictures: accuracy, certificates, and their page."""
