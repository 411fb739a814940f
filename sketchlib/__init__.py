"""Sketchbook's library: thin glue between drawings, timm models and notebooks."""

__version__ = "0.1.0"
