"""Explicit networks to compare equilibria with: causal layers of a fixed depth."""

from tfdeq.baselines.recurrent import Recurrent
from tfdeq.baselines.residual_network import ResidualNetwork
from tfdeq.baselines.segment_layer import SegmentLayer
from tfdeq.baselines.temporal_convolution import TemporalConvolution
from tfdeq.baselines.transformer_stack import TransformerStack
from tfdeq.baselines.trellis_network import TrellisNetwork

__all__ = [
    "Recurrent",
    "ResidualNetwork",
    "SegmentLayer",
    "TemporalConvolution",
    "TransformerStack",
    "TrellisNetwork",
]
