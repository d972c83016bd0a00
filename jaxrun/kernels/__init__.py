"""What makes the formulas of `layers.py` and `attention.py` fast on one platform. A reader of the models needs none of
it."""
