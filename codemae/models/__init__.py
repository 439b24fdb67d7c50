"""Encoders, decoders and teachers."""
