"""Attention in windows and 8-bit products, on each platform. A reader of the models needs none of it."""
