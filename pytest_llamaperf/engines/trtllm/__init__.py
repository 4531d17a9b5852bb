"""TensorRT-LLM on our side: what it is asked for, and whether what it answers may be believed.

serving      --engine tensorrt-llm                       benchmarking  --engine trtllm-bench
opening      what both need before they start            nodes         how many nodes there are to use
contract     what is known of its versions               arguments     LLM(...) for an engine
command      trtllm-bench ... for a case                 inputs        the files that both of them read
report       a report of trtllm-bench, if it is one      reproducing   the line that repeats a result by hand
plan         all of it on paper

Everything that differs between releases stands in `contract`, in the tables of `arguments`, or is read from `--help` in
`command`. The facts are in docs/tensorrt-llm.md, and what nobody has tried yet in docs/first-run-on-h200.md.
"""
