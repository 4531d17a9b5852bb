"""What the doubles of all versions of TensorRT-LLM share; `versions` says what tells them apart."""
