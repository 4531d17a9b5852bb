"""TensorRT-LLM on our side: what it is asked for, and whether what it answers may be believed.

contract     what is known of its versions              arguments    LLM(...) for an engine
command      trtllm-bench ... for a case                 inputs       the files that both of them read
serving      --engine tensorrt-llm                       benchmarking --engine trtllm-bench
report       a report of trtllm-bench, if it is one      opening      what both need before they start
plan         all of it on paper

Everything that differs between releases stands in `contract`, in the table of `arguments`, or is read from `--help` in
`command`. The facts, with what nobody has tried yet, are in docs/first-run-on-h200.md.
"""
