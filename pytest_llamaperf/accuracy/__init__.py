"""Accuracy: is a quantized model as right as the one it was made from?"""
